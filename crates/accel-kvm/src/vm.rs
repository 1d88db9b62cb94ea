#![allow(
    unsafe_code,
    reason = "KVM_SET_USER_MEMORY_REGION hands memory of this process to the guest"
)]

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use accel::{AccelError, ClockState, Vcpu, VcpuSetup, Vm};
use bus::{
    DoorbellAddress, DoorbellError, DoorbellHost, EventFd, MsiError, MsiHost, MsiMessage, MsiRoute,
    Space,
};
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_CLOCK_REALTIME,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, kvm_clock_data,
    kvm_enable_cap, kvm_msi, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, NoDatamatch, VmFd};
use memory::{Block, GuestAddressSpace, GuestRam};

use crate::kvm::host;
use crate::routes::{IOAPIC_PINS, Routes};
use crate::vcpu::KvmVcpu;

/// Pages that VMX needs for real mode: between the local APICs and the firmware, where the board
/// has nothing (crates/board, address::mem).
const TSS_ADDRESS: usize = 0xfeff_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfeff_c000;

pub(crate) struct KvmVm {
    fd: Arc<VmFd>,
    ram: GuestRam,
    slots: Mutex<BTreeMap<u32, Block>>,
    routes: Arc<Mutex<Routes>>,
    max_vcpus: u32,
    xsave_size: usize,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl KvmVm {
    pub(crate) fn new(
        kvm: &kvm_ioctls::Kvm,
        ram: GuestRam,
        max_vcpus: u32,
    ) -> Result<Arc<Self>, AccelError> {
        // A signal during the creation gives EINTR; nothing was made then, so it is tried again.
        let fd = loop {
            match kvm.create_vm() {
                Err(e) if e.errno() == libc::EINTR => {}
                other => break other.map_err(host("create a virtual machine"))?,
            }
        };
        let mut split = kvm_enable_cap {
            cap: KVM_CAP_SPLIT_IRQCHIP,
            ..Default::default()
        };
        split.args[0] = u64::from(IOAPIC_PINS);
        fd.enable_cap(&split)
            .map_err(host("split the interrupt chip"))?;
        let mut x2apic = kvm_enable_cap {
            cap: KVM_CAP_X2APIC_API,
            ..Default::default()
        };
        x2apic.args[0] =
            u64::from(KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK);
        fd.enable_cap(&x2apic)
            .map_err(host("use 32-bit APIC IDs"))?;
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS)
            .map_err(host("set the identity map's address"))?;
        fd.set_tss_address(TSS_ADDRESS)
            .map_err(host("set the task state segment's address"))?;
        let xsave_size = usize::try_from(fd.check_extension_int(Cap::Xsave2))
            .unwrap_or(0)
            .max(4096);
        let vm = Self {
            fd: Arc::new(fd),
            ram,
            slots: Mutex::default(),
            routes: Arc::new(Mutex::new(Routes::new())),
            max_vcpus,
            xsave_size,
        };
        vm.memory_changed()?;
        Ok(Arc::new(vm))
    }

    pub(crate) fn vcpu(&self, setup: &VcpuSetup) -> Result<KvmVcpu, AccelError> {
        if setup.index >= self.max_vcpus {
            return Err(AccelError::TooManyVcpus {
                accelerator: "kvm",
                wanted: setup.index.saturating_add(1),
                limit: self.max_vcpus,
            });
        }
        let fd = self
            .fd
            .create_vcpu(u64::from(setup.apic_id))
            .map_err(host(format!(
                "create virtual processor {} with APIC ID {}",
                setup.index, setup.apic_id
            )))?;
        KvmVcpu::new(fd, setup, self.xsave_size)
    }

    fn set_slot(&self, slot: u32, block: Block, size: u64) -> Result<(), AccelError> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: block.guest,
            memory_size: size,
            userspace_addr: block.host,
        };
        // SAFETY: the block is a mapping of guest memory, which is never unmapped (memory::allocate),
        // and which nobody reaches by Rust references.
        unsafe { self.fd.set_user_memory_region(region) }.map_err(host(format!(
            "map {size:#x} bytes of guest memory at {:#x}",
            block.guest
        )))
    }
}

impl Vm for KvmVm {
    fn create_vcpu(&self, setup: VcpuSetup) -> Result<Box<dyn Vcpu>, AccelError> {
        Ok(Box::new(self.vcpu(&setup)?))
    }

    fn memory_changed(&self) -> Result<(), AccelError> {
        let blocks = memory::blocks(&self.ram.memory());
        let mut slots = locked(&self.slots);
        let gone: Vec<u32> = slots
            .iter()
            .filter(|(_, b)| !blocks.contains(b))
            .map(|(slot, _)| *slot)
            .collect();
        for slot in gone {
            if let Some(block) = slots.remove(&slot) {
                self.set_slot(slot, block, 0)?;
            }
        }
        for block in blocks {
            if slots.values().any(|b| *b == block) {
                continue;
            }
            let slot = (0..).find(|slot| !slots.contains_key(slot)).unwrap_or(0);
            self.set_slot(slot, block, block.size)?;
            slots.insert(slot, block);
        }
        Ok(())
    }

    fn ioapic_route(&self, pin: u32, message: Option<MsiMessage>) {
        if let Err(e) = locked(&self.routes).set_pin(&self.fd, pin, message) {
            log::warn!("I/O APIC pin {pin}: {e}");
        }
    }

    fn clock(&self) -> Result<ClockState, AccelError> {
        let data = self
            .fd
            .get_clock()
            .map_err(host("read the paravirtual clock"))?;
        let realtime = (data.flags & KVM_CLOCK_REALTIME != 0).then_some(data.realtime);
        Ok(ClockState {
            nanoseconds: data.clock,
            realtime,
        })
    }

    fn set_clock(&self, clock: ClockState) -> Result<(), AccelError> {
        let data = kvm_clock_data {
            clock: clock.nanoseconds,
            ..Default::default()
        };
        self.fd
            .set_clock(&data)
            .map_err(host("set the paravirtual clock"))
    }
}

impl MsiHost for KvmVm {
    fn send(&self, message: MsiMessage) -> Result<(), MsiError> {
        let msi = kvm_msi {
            address_lo: message.address as u32,
            address_hi: (message.address >> 32) as u32,
            data: message.data,
            ..Default::default()
        };
        // The count of processors that took it may be zero: a guest may send to nobody.
        self.fd
            .signal_msi(msi)
            .map(|_| ())
            .map_err(|e| MsiError::Host {
                what: "send an interrupt message",
                source: io::Error::from_raw_os_error(e.errno()),
            })
    }

    fn open_route(&self) -> Result<Arc<dyn MsiRoute>, MsiError> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(|source| {
            MsiError::Host {
                what: "create an eventfd",
                source,
            }
        })?;
        let gsi = locked(&self.routes).open()?;
        Ok(Arc::new(Irqfd {
            vm: Arc::clone(&self.fd),
            routes: Arc::clone(&self.routes),
            gsi,
            event,
            attached: Mutex::new(false),
        }))
    }
}

/// A GSI of its own with an irqfd on it while it may send.
struct Irqfd {
    vm: Arc<VmFd>,
    routes: Arc<Mutex<Routes>>,
    gsi: u32,
    event: EventFd,
    attached: Mutex<bool>,
}

impl MsiRoute for Irqfd {
    fn set(&self, message: Option<MsiMessage>) -> Result<(), MsiError> {
        let mut attached = locked(&self.attached);
        let failed = |what| {
            move |e: kvm_ioctls::Error| MsiError::Host {
                what,
                source: io::Error::from_raw_os_error(e.errno()),
            }
        };
        if let Some(message) = message {
            locked(&self.routes).set(&self.vm, self.gsi, message)?;
        }
        if *attached != message.is_some() {
            if *attached {
                self.vm
                    .unregister_irqfd(&self.event, self.gsi)
                    .map_err(failed("detach an irqfd"))?;
            } else {
                self.vm
                    .register_irqfd(&self.event, self.gsi)
                    .map_err(failed("attach an irqfd"))?;
            }
            *attached = message.is_some();
        }
        Ok(())
    }

    fn trigger(&self) {
        // The only failure is a counter at its limit, and then the interrupt is pending anyway.
        _ = self.event.write(1);
    }

    fn eventfd(&self) -> Option<&EventFd> {
        Some(&self.event)
    }
}

impl Drop for Irqfd {
    fn drop(&mut self) {
        _ = self.set(None);
        locked(&self.routes).close(self.gsi);
    }
}

impl KvmVm {
    fn doorbell(
        &self,
        address: DoorbellAddress,
        event: &EventFd,
        attach: bool,
    ) -> Result<(), DoorbellError> {
        let at = match address.space {
            Space::Memory => IoEventAddress::Mmio(address.address),
            Space::Port => IoEventAddress::Pio(address.address),
        };
        // The datamatch's type carries the width to KVM.
        macro_rules! call {
            ($datamatch:expr) => {
                if attach {
                    self.fd.register_ioevent(event, &at, $datamatch)
                } else {
                    self.fd.unregister_ioevent(event, &at, $datamatch)
                }
            };
        }
        let value = address.value;
        let done = match (address.length, value) {
            (0, None) => call!(NoDatamatch),
            (1, Some(v)) => call!(v as u8),
            (2, Some(v)) => call!(v as u16),
            (4, Some(v)) => call!(v as u32),
            (8, Some(v)) => call!(v),
            // KVM has no "any value of this width"; any width is a superset of it.
            (_, None) => call!(NoDatamatch),
            (_, Some(_)) => Err(kvm_ioctls::Error::new(libc::EINVAL)),
        };
        done.map_err(|e| match e.errno() {
            libc::EEXIST => DoorbellError::InUse(address),
            errno => DoorbellError::Host {
                address,
                source: io::Error::from_raw_os_error(errno),
            },
        })
    }
}

impl DoorbellHost for KvmVm {
    fn attach(&self, address: DoorbellAddress, event: &EventFd) -> Result<(), DoorbellError> {
        self.doorbell(address, event, true)
    }

    fn detach(&self, address: DoorbellAddress, event: &EventFd) -> Result<(), DoorbellError> {
        self.doorbell(address, event, false)
    }
}
