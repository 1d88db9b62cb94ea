//! From the plan to the machine: the q35 board, then the devices in their places.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use accel::{Accelerator, Kick, VcpuSetup, Vm};
use blockdev::Blockdev;
use board::acpi::{self, AcpiConfig, AcpiTables};
use board::address::{irq, port};
use board::memory_map::{MemoryMap, MemoryMapConfig};
use board::smbios::{Processors, SmbiosConfig, SmbiosTables, System};
use bus::{Bus, IrqLine, IrqSink, MsiHost, MsiMessage};
use chipset::{Gsi, TimerHost};
use event::{IoThread, IoThreadConfig};
use nix::sys::prctl;
use pci::IntxPin;
use spec::Spec;
use virtio::{TransportSpec, VirtioPci};
use x86::model::CpuTemplate;

use crate::boot::BootSource;
use crate::catalog::{Built, Part, Place};
use crate::clock::{Timers, VirtualClock};
use crate::description::DeviceDescription;
use crate::error::MachineError;
use crate::inventory::{Inventory, Item};
use crate::legacy;
use crate::machine::Machine;
use crate::plan::Plan;
use crate::settings::RootPortSpec;
use crate::site::{IoErrors, IoThreads, Site, SlotSpec, common_properties, take};
use crate::slots::Slots;
use crate::vcpu::{ExternalInterrupts, Surroundings, VcpuEvent, VcpuThread};

/// How long the default I/O thread looks for more work before it sleeps.
const DEFAULT_POLL: Duration = Duration::from_micros(32);
/// What SMBIOS and control call this type of machine: what guests see of it never changes.
const MACHINE_VERSION: &str = "q35-1.0";
/// The date that SMBIOS shows for the firmware, which is this program.
const FIRMWARE_DATE: &str = "11/23/2026";

/// What the machine tells its owner while it runs.
pub(crate) struct Ears {
    pub(crate) vcpus: Arc<dyn Fn(u32, VcpuEvent) + Send + Sync>,
    pub(crate) escape: chardev::Escape,
    pub(crate) io_errors: IoErrors,
    pub(crate) events: blockdev::EventSink,
}

/// The PIC's way to the bootstrap processor: a kick, after which the loop looks at the PIC.
#[derive(Default)]
struct BootProcessor(OnceLock<Arc<dyn Kick>>);

impl chipset::pic::ExtIntSink for BootProcessor {
    fn set_intr(&self, asserted: bool) {
        if let (true, Some(kicker)) = (asserted, self.0.get()) {
            kicker.kick();
        }
    }
}

struct PicOutput(Arc<chipset::pic::Pic>);

impl ExternalInterrupts for PicOutput {
    fn asserted(&self) -> bool {
        self.0.intr()
    }

    fn acknowledge(&self) -> u8 {
        self.0.acknowledge()
    }
}

/// Tells the accelerator what the I/O APIC's pins send.
struct PinRoutes(Arc<dyn Vm>);

impl chipset::ioapic::RouteObserver for PinRoutes {
    fn route_changed(&self, pin: u32, message: Option<MsiMessage>) {
        self.0.ioapic_route(pin, message);
    }
}

/// The board's fixed parts, under construction.
pub(crate) struct Board<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) ports: Arc<Bus>,
    pub(crate) memory: Arc<Bus>,
    pub(crate) timers: Arc<dyn TimerHost>,
    pub(crate) gsi: Arc<Gsi>,
    pub(crate) inventory: Inventory,
}

impl Board<'_> {
    pub(crate) fn line(&self, pin: u32) -> IrqLine {
        IrqLine::new(Arc::clone(&self.gsi) as Arc<dyn IrqSink>, pin)
    }

    /// Puts a device with ports into its place.
    pub(crate) fn add_ports(
        &mut self,
        id: &str,
        ports: chipset::PortMap,
        state: Arc<dyn state::Stateful + Sync>,
    ) -> Result<(), MachineError> {
        for (range, device) in ports {
            self.ports
                .insert(range, device)
                .map_err(MachineError::step(format!("place {id} at its ports")))?;
        }
        self.inventory.add(Item::fixed(id, state));
        Ok(())
    }
}

/// Keeps the host from giving out huge pages. A thread's stack would else begin with one, of which
/// it uses a few KiB; the first of its pages is taken when the thread is made.
struct SmallPages;

impl SmallPages {
    fn new() -> Option<Self> {
        if prctl::get_thp_disable() != Ok(false) {
            return None;
        }
        prctl::set_thp_disable(true).ok().map(|()| Self)
    }
}

impl Drop for SmallPages {
    fn drop(&mut self) {
        if let Err(e) = prctl::set_thp_disable(false) {
            log::warn!("the guest gets no transparent huge pages: {e}");
        }
    }
}

/// Builds the machine. Its processors are made and wait.
pub(crate) fn assemble(
    mut plan: Plan,
    accelerator: &dyn Accelerator,
    control: IoThread,
    ears: Ears,
) -> Result<Machine, MachineError> {
    let host = accelerator.capabilities();
    let cpu = x86::model::build(&plan.cpu, &host.cpu, plan.topology)
        .map_err(MachineError::step("give the guest this processor"))?;
    let cpus = plan.topology.count();
    if cpus > host.max_vcpus || plan.topology.max_apic_id() >= host.max_apic_id {
        return Err(accel::AccelError::TooManyVcpus {
            accelerator: accelerator.name(),
            wanted: cpus,
            limit: host.max_vcpus,
        }
        .into());
    }
    let map = MemoryMap::new(&MemoryMapConfig {
        ram: plan.memory.size.0,
        hotplug: 0,
        phys_bits: cpu.phys_bits(),
    })
    .map_err(MachineError::step("lay out guest memory"))?;
    let ram = memory::allocate(&map.ram_ranges(), &plan.memory_options)?;
    let _small_pages = SmallPages::new();
    let vm = accelerator.create_vm(ram.clone())?;

    let boot_processor = Arc::new(BootProcessor::default());
    let pic = chipset::pic::Pic::new(boot_processor.clone());
    let ioapic = chipset::ioapic::IoApic::new(
        Arc::clone(&vm) as Arc<dyn MsiHost>,
        Some(Arc::new(PinRoutes(Arc::clone(&vm)))),
    );
    let clock = VirtualClock::new(control.clone());
    let mut board = Board {
        plan: &plan,
        vm: Arc::clone(&vm),
        ports: Arc::new(Bus::new()),
        memory: Arc::new(Bus::new()),
        timers: Arc::new(Timers(Arc::clone(&clock))),
        gsi: Gsi::new(Arc::clone(&pic), Arc::clone(&ioapic)),
        inventory: Inventory::default(),
    };
    board
        .memory
        .insert(chipset::ioapic::MMIO, ioapic.clone())
        .map_err(MachineError::step("place the I/O APIC"))?;
    board.inventory.add(Item::fixed("ioapic", ioapic.clone()));
    board.add_ports("pic", pic.ports(), pic.clone())?;
    let io = IoThread::spawn(IoThreadConfig {
        poll_max: DEFAULT_POLL,
        ..IoThreadConfig::new("io")
    })
    .map_err(MachineError::step("start the I/O thread"))?;
    legacy::add_timers(&mut board, &map, cpus)?;
    let power = legacy::add_power(&mut board)?;
    let mut chardevs = legacy::add_serial(&mut board, &io, &ears)?;
    let root = legacy::add_pci(&mut board, &ram, &power)?;

    let blockdev = Blockdev::new(Arc::clone(&ears.events))
        .map_err(MachineError::step("start the thread of the disks"))?;
    let mut threads = IoThreads::new(io);
    for wanted in &plan.iothreads {
        let config = IoThreadConfig {
            cpus: wanted.cpus.clone(),
            poll_max: Duration::from_micros(wanted.poll_us.into()),
            ..IoThreadConfig::new(wanted.name.clone())
        };
        let thread = IoThread::spawn(config).map_err(MachineError::step(format!(
            "start I/O thread {:?}",
            wanted.name
        )))?;
        threads.add(&wanted.name, thread, wanted.poll_us)?;
    }
    let mut slots = Slots::new(Arc::clone(&root));
    let mut next_slot = 1;
    let mut seed = plan
        .uuid
        .first_chunk()
        .map_or(0, |bytes| u64::from_le_bytes(*bytes));
    // Root ports first: a device may be described before the port behind which it sits.
    let ports = plan.devices.iter().filter(|d| is_root_port(d));
    let others = plan.devices.iter().filter(|d| !is_root_port(d));
    for description in ports.chain(others) {
        let mut site = Site {
            id: None,
            name: String::new(),
            blockdev: &blockdev,
            ram: &ram,
            threads: &threads,
            cpus,
            escape: Arc::clone(&ears.escape),
            io_errors: Arc::clone(&ears.io_errors),
            chardevs: &mut chardevs,
            seed: &mut seed,
            next_slot,
        };
        add_device(&mut board, &mut site, &mut slots, description)?;
        next_slot = site.next_slot;
    }

    let Board {
        ports,
        memory,
        inventory,
        ..
    } = board;
    let boot = boot_source(&mut plan, &cpu, map)?;
    let surroundings = Surroundings {
        ports,
        memory,
        end_of_interrupt: Arc::new(move |vector| ioapic.eoi(vector)),
        external: Arc::new(PicOutput(pic)),
    };
    let vcpus = start_vcpus(&vm, &cpu, &surroundings, &ears)?;
    accelerator.ready()?;
    if let Some(first) = vcpus.first() {
        // Set once, right here; the PIC is silent until a processor runs.
        _ = boot_processor.0.set(first.gate.kicker());
    }
    Ok(Machine::new(crate::machine::Parts {
        plan,
        accelerator: accelerator.name(),
        vm,
        ram,
        cpu,
        vcpus,
        clock,
        boot,
        inventory,
        blockdev,
        threads,
        power,
        _root: root,
        _chardevs: chardevs,
    }))
}

fn is_root_port(description: &DeviceDescription) -> bool {
    description.device.name == RootPortSpec::NAME
}

/// Makes a device and puts it into its place.
fn add_device(
    board: &mut Board<'_>,
    site: &mut Site<'_>,
    slots: &mut Slots,
    description: &DeviceDescription,
) -> Result<(), MachineError> {
    let DeviceDescription { device, properties } = description;
    let own = (device.properties)();
    let all: Vec<_> = own
        .iter()
        .cloned()
        .chain(common_properties(device.place))
        .collect();
    properties.only(device.name, &all)?;
    let mut properties = properties.clone();
    let slot: SlotSpec = take(&mut properties, &own)?;
    let transport = match device.place {
        Place::Virtio => Some(take::<TransportSpec>(&mut properties, &own)?),
        Place::Pci | Place::Isa => None,
    };
    site.id.clone_from(&slot.id);
    site.name = slot.id.clone().unwrap_or_else(|| {
        board
            .inventory
            .free_id(device.shorthand.unwrap_or(device.name))
    });
    let Built { part, abilities } = (device.build)(site, properties)?;
    let id = site.id.take().unwrap_or_else(|| site.name.clone());
    board.inventory.check_free(&id)?;
    if let Some(disk) = &abilities.disk {
        let (id, io_errors) = (id.clone(), Arc::clone(&site.io_errors));
        disk.on_error(Arc::new(move |error| io_errors(&id, error)));
    }

    let item = match part {
        Part::Virtio(virtio) => {
            let express = slots
                .is_behind_port(&slot)
                .then_some(pci::Express::Endpoint {
                    function_level_reset: false,
                });
            let options = transport
                .map(|t| t.options(&id, express))
                .unwrap_or_default();
            let function = VirtioPci::new(virtio, site.ram.clone(), &options).map_err(
                MachineError::device(device.name, Some(&id), "become a PCI function"),
            )?;
            let address = slots.place(&slot, function.clone())?;
            Item::device(
                id,
                device.name,
                address,
                function.clone(),
                Some(function),
                abilities,
            )
        }
        Part::RootPort(port) => {
            let address = slots.place(&slot, port.clone())?;
            slots.add_port(&id, port.clone());
            Item::device(id, device.name, address, port, None, abilities)
        }
        Part::Ports(ports, state) => {
            for (range, part) in ports {
                board
                    .ports
                    .insert(range, part)
                    .map_err(MachineError::device(
                        device.name,
                        Some(&id),
                        "take its ports",
                    ))?;
            }
            Item::device(id, device.name, None, state, None, abilities)
        }
    };
    log::debug!("{}: {}{}", item.id, item.kind, item.place());
    board.inventory.add(item);
    Ok(())
}

/// What goes into memory before the first instruction.
fn boot_source(
    plan: &mut Plan,
    cpu: &CpuTemplate,
    map: MemoryMap,
) -> Result<BootSource, MachineError> {
    let topology = plan.topology;
    let cpus = topology.count();
    let nodes = plan.memory.numa_nodes;
    let node_of = |index: u32| {
        u32::try_from(u64::from(index) * u64::from(nodes) / u64::from(cpus)).unwrap_or(0)
    };
    let numa = if nodes > 1 {
        numa_nodes(&map, nodes)
    } else {
        Vec::new()
    };
    let root_ports = plan.devices.iter().filter(|d| is_root_port(d)).count();
    let root_ports = u8::try_from(root_ports).unwrap_or(u8::MAX);
    let config = AcpiConfig {
        memory: &map,
        cpus: (0..cpus)
            .map(|index| acpi::Cpu {
                apic_id: topology.apic_id(index),
                node: node_of(index),
                present: true,
            })
            .collect(),
        nodes: numa,
        last_bus: root_ports,
        intx_gsi: |device, pin| {
            let pin = IntxPin::ALL
                .into_iter()
                .nth(usize::from(pin))
                .unwrap_or(IntxPin::A);
            pci::intx_gsi(device, pin)
        },
        serial: plan
            .serial
            .iter()
            .zip(port::COM.into_iter().zip(irq::COM))
            .map(|(_, (port, irq))| acpi::SerialPort {
                port,
                irq: irq as u8,
            })
            .collect(),
        i8042: plan.settings.i8042,
        // The power management block is made with a timer of that width (legacy.rs).
        pm_timer_32bit: true,
        vga: false,
        pvpanic: Some(port::PVPANIC),
        fw_cfg: None,
    };
    let acpi = AcpiTables::build(&config).map_err(MachineError::step("build the ACPI tables"))?;
    let signature = cpu.cpuid_for(0);
    let leaf1 = signature.get(1, 0).copied().unwrap_or_default();
    let smbios = SmbiosTables::build(&SmbiosConfig {
        system: System {
            manufacturer: "Vireo".into(),
            product: "q35".into(),
            version: MACHINE_VERSION.into(),
            serial: String::new(),
            sku: String::new(),
            family: "Virtual Machine".into(),
            uuid: plan.uuid,
        },
        firmware_version: env!("CARGO_PKG_VERSION").into(),
        firmware_date: FIRMWARE_DATE.into(),
        processors: Processors {
            sockets: topology.sockets(),
            cores: topology.cores(),
            threads: topology.threads(),
            manufacturer: cpu.vendor().to_string(),
            version: cpu.model().to_owned(),
            signature: leaf1.eax,
            features: leaf1.edx,
        },
        memory: &map,
    })
    .map_err(MachineError::step("build the SMBIOS tables"))?;
    Ok(BootSource {
        map,
        acpi,
        smbios,
        kernel: plan.kernel.take(),
    })
}

/// Equal parts of memory.
fn numa_nodes(map: &MemoryMap, nodes: u32) -> Vec<acpi::Node> {
    let unit = board::memory_map::RAM_ALIGN;
    let total = map.ram_size();
    let part = total / u64::from(nodes) / unit * unit;
    let mut sizes = vec![part; nodes as usize];
    if let Some(last) = sizes.last_mut() {
        *last = total - part * u64::from(nodes - 1);
    }
    map.split(&sizes)
        .into_iter()
        .map(|memory| acpi::Node {
            memory,
            ..acpi::Node::default()
        })
        .collect()
}

fn start_vcpus(
    vm: &Arc<dyn Vm>,
    cpu: &CpuTemplate,
    surroundings: &Surroundings,
    ears: &Ears,
) -> Result<Vec<VcpuThread>, MachineError> {
    let mut vcpus = Vec::new();
    for index in 0..cpu.topology().count() {
        let apic_id = cpu.apic_id(index);
        let vcpu = vm.create_vcpu(VcpuSetup {
            index,
            apic_id,
            cpuid: cpu.cpuid_for(index),
        })?;
        let thread = VcpuThread::start(vcpu, index, surroundings.clone(), Arc::clone(&ears.vcpus))
            .map_err(MachineError::step(format!(
                "start the thread of processor {index}"
            )))?;
        vcpus.push(thread);
    }
    Ok(vcpus)
}
