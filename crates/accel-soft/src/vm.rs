//! One machine: its memory, its processors' mailboxes, its doorbells and its clock.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use accel::{AccelError, ClockState, Vcpu, VcpuSetup, Vm};
use bus::{
    DoorbellAddress, DoorbellError, DoorbellHost, EventFd, MsiError, MsiHost, MsiMessage, MsiRoute,
};
use memory::{GuestAddressSpace, GuestRam};
use processor::{CodePages, CodeWatch, RamMap};

use crate::clock::{self, Clock};
use crate::doorbells::Doorbells;
use crate::lapic::{Delivery, Message, Target};
use crate::mailbox::{CodeEvent, Mailbox, Startup, bits};
use crate::options::Options;
use crate::vcpu::SoftVcpu;

/// What processors and devices share.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) ram: GuestRam,
    map: RwLock<Arc<RamMap>>,
    pub(crate) code: Arc<CodePages>,
    pub(crate) doorbells: Doorbells,
    pub(crate) clock: Clock,
    /// By index.
    processors: RwLock<Vec<(u32, Arc<Mailbox>)>>,
    /// Takes turns for interrupts that one of several processors gets.
    turn: AtomicUsize,
    /// The offset that the processors' time stamp counters were given last.
    tsc_offset: Mutex<Option<u64>>,
    /// A guest gave one of its counters an offset of its own.
    tsc_apart: AtomicBool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn map_of(ram: &GuestRam) -> Arc<RamMap> {
    let snapshot = ram.memory();
    let keep = memory::RamSnapshot::into_inner(snapshot);
    RamMap::new(&memory::blocks(&keep), keep)
}

impl Shared {
    fn new(ram: GuestRam, options: Options) -> Self {
        Self {
            options,
            map: RwLock::new(map_of(&ram)),
            code: CodePages::of(&ram.memory()),
            ram,
            doorbells: Doorbells::default(),
            clock: Clock::new(),
            processors: RwLock::default(),
            turn: AtomicUsize::new(0),
            tsc_offset: Mutex::new(None),
            tsc_apart: AtomicBool::new(false),
        }
    }

    pub(crate) fn map(&self) -> Arc<RamMap> {
        Arc::clone(&self.map.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn with_processors<T>(&self, body: impl FnOnce(&[(u32, Arc<Mailbox>)]) -> T) -> T {
        body(
            &self
                .processors
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    fn add_processor(&self, index: u32, mailbox: Arc<Mailbox>) {
        let mut processors = self
            .processors
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        processors.retain(|(other, _)| *other != index);
        processors.push((index, mailbox));
        processors.sort_by_key(|(index, _)| *index);
    }

    /// Sends an interrupt message; `sender` is the index of the processor that it comes from.
    /// Returns how many processors it was for.
    pub(crate) fn deliver(&self, message: Message, sender: Option<u32>) -> usize {
        if matches!(message.delivery, Delivery::Smi | Delivery::External) {
            return 0;
        }
        self.with_processors(|processors| {
            let is_for = |(index, mailbox): &&(u32, Arc<Mailbox>)| {
                mailbox
                    .address()
                    .matches(message.target, sender == Some(*index))
            };
            if message.delivery == Delivery::LowestPriority {
                let count = processors.iter().filter(is_for).count();
                if count != 0 {
                    let turn = self.turn.fetch_add(1, Ordering::Relaxed) % count;
                    if let Some((_, mailbox)) = processors.iter().filter(is_for).nth(turn) {
                        mailbox.request(message.vector, message.level);
                    }
                }
                return count.min(1);
            }
            let mut count = 0;
            for (_, mailbox) in processors.iter().filter(is_for) {
                count += 1;
                match message.delivery {
                    Delivery::Fixed => mailbox.request(message.vector, message.level),
                    Delivery::Nmi => mailbox.nmi(),
                    Delivery::Init => mailbox.startup(Startup::Init),
                    Delivery::StartUp => mailbox.startup(Startup::Sipi(message.vector)),
                    Delivery::LowestPriority | Delivery::Smi | Delivery::External => (),
                }
                if matches!(message.target, Target::Myself) {
                    break;
                }
            }
            count
        })
    }

    /// The mailbox of the processor with this physical APIC ID.
    pub(crate) fn by_apic_id(&self, id: u32) -> Option<Arc<Mailbox>> {
        self.with_processors(|processors| {
            processors
                .iter()
                .find(|(_, mailbox)| mailbox.address().id == id)
                .map(|(_, mailbox)| Arc::clone(mailbox))
        })
    }

    fn attend_all(&self, bit: u32) {
        self.with_processors(|processors| {
            processors
                .iter()
                .for_each(|(_, mailbox)| mailbox.attend(bit));
        });
    }

    /// The offset for a processor whose counter is set to show `value` when the host's shows
    /// `host`. Processors that are set to about the same value, one after the other, are meant
    /// to count in step (as KVM reads it, too).
    pub(crate) fn agree_on_tsc(&self, value: u64, host: u64) -> u64 {
        let offset = value.wrapping_sub(host);
        let mut agreed = locked(&self.tsc_offset);
        let second = i64::from(clock::tsc_khz()) * 1000;
        match *agreed {
            Some(before) if (offset.wrapping_sub(before) as i64).abs() < second => before,
            _ => {
                *agreed = Some(offset);
                offset
            }
        }
    }

    /// Whether all time stamp counters count in step, after this processor's offset was set.
    pub(crate) fn counts_in_step(&self, offset: u64) -> bool {
        if locked(&self.tsc_offset).is_some_and(|agreed| agreed != offset) {
            self.tsc_apart.store(true, Ordering::Relaxed);
        }
        !self.tsc_apart.load(Ordering::Relaxed)
    }
}

/// Tells all processors about code pages.
struct Watch(std::sync::Weak<Shared>);

impl Watch {
    fn tell(&self, event: CodeEvent) {
        if let Some(shared) = self.0.upgrade() {
            shared.with_processors(|processors| {
                processors
                    .iter()
                    .for_each(|(_, mailbox)| mailbox.code(event));
            });
        }
    }
}

impl CodeWatch for Watch {
    fn written(&self, physical: u64, len: u64) {
        self.tell(CodeEvent::Written { physical, len });
    }

    fn marked(&self, page: u64) {
        self.tell(CodeEvent::Marked { page });
    }
}

pub(crate) struct SoftVm {
    shared: Arc<Shared>,
    max_vcpus: u32,
}

impl SoftVm {
    pub(crate) fn new(ram: GuestRam, options: Options, max_vcpus: u32) -> Arc<Self> {
        let shared = Arc::new(Shared::new(ram, options));
        let watch = Arc::new(Watch(Arc::downgrade(&shared)));
        // The only watch that this value is ever given.
        _ = shared.code.set_watch(watch);
        Arc::new(Self { shared, max_vcpus })
    }

    pub(crate) fn vcpu(&self, setup: VcpuSetup) -> Result<SoftVcpu, AccelError> {
        if setup.index >= self.max_vcpus {
            return Err(AccelError::TooManyVcpus {
                accelerator: crate::NAME,
                wanted: setup.index.saturating_add(1),
                limit: self.max_vcpus,
            });
        }
        let index = setup.index;
        let vcpu = SoftVcpu::new(Arc::clone(&self.shared), setup)?;
        self.shared.add_processor(index, vcpu.mailbox());
        Ok(vcpu)
    }
}

impl Vm for SoftVm {
    fn create_vcpu(&self, setup: VcpuSetup) -> Result<Box<dyn Vcpu>, AccelError> {
        Ok(Box::new(self.vcpu(setup)?))
    }

    fn memory_changed(&self) -> Result<(), AccelError> {
        let map = map_of(&self.shared.ram);
        *self
            .shared
            .map
            .write()
            .unwrap_or_else(PoisonError::into_inner) = map;
        self.shared.attend_all(bits::MEMORY);
        Ok(())
    }

    fn ioapic_route(&self, _pin: u32, _message: Option<MsiMessage>) {
        // The message itself says that it is level-triggered, and the local APIC remembers it.
    }

    fn clock(&self) -> Result<ClockState, AccelError> {
        Ok(self.shared.clock.state())
    }

    fn set_clock(&self, clock: ClockState) -> Result<(), AccelError> {
        self.shared.clock.set(clock);
        self.shared.attend_all(bits::CLOCK);
        Ok(())
    }
}

impl MsiHost for SoftVm {
    fn send(&self, message: MsiMessage) -> Result<(), MsiError> {
        self.shared.deliver(Message::from_msi(message), None);
        Ok(())
    }

    fn open_route(&self) -> Result<Arc<dyn MsiRoute>, MsiError> {
        Ok(Arc::new(Route {
            shared: Arc::clone(&self.shared),
            message: Mutex::new(None),
        }))
    }
}

/// A message that any thread can send.
struct Route {
    shared: Arc<Shared>,
    message: Mutex<Option<Message>>,
}

impl MsiRoute for Route {
    fn set(&self, message: Option<MsiMessage>) -> Result<(), MsiError> {
        *locked(&self.message) = message.map(Message::from_msi);
        Ok(())
    }

    fn trigger(&self) {
        if let Some(message) = *locked(&self.message) {
            self.shared.deliver(message, None);
        }
    }

    fn eventfd(&self) -> Option<&EventFd> {
        None
    }
}

impl DoorbellHost for SoftVm {
    fn attach(&self, address: DoorbellAddress, event: &EventFd) -> Result<(), DoorbellError> {
        self.shared.doorbells.attach(address, event)
    }

    fn detach(&self, address: DoorbellAddress, _event: &EventFd) -> Result<(), DoorbellError> {
        self.shared.doorbells.detach(address)
    }
}
