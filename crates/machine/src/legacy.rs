//! The board's own devices: what stands in the ICH9 and on bus 0 of every machine.

use std::sync::{Arc, Mutex, PoisonError};

use board::address::{irq, port};
use board::memory_map::MemoryMap;
use bus::{Bus, DoorbellHost, MsiHost, Range, SharedLine};
use chardev::Chardev;
use chipset::acpi_pm::{AcpiPm, TimerWidth};
use chipset::pvpanic::PvPanic;
use chipset::rtc::{Rtc, RtcConfig};
use event::IoThread;
use memory::{GuestAddressSpace, GuestRam};
use pci::{Bdf, HostResources, RootComplex};

use crate::assemble::{Board, Ears};
use crate::error::MachineError;
use crate::inventory::Item;
use crate::serial;
use crate::settings::RtcBase;

/// Timer and clock.
pub(crate) fn add_timers(
    board: &mut Board<'_>,
    map: &MemoryMap,
    cpus: u32,
) -> Result<(), MachineError> {
    let pit = chipset::pit::Pit::new(&board.timers, board.line(irq::PIT));
    board.add_ports("pit", pit.ports(), pit)?;
    let rtc = Rtc::new(
        &board.timers,
        board.line(irq::RTC),
        &RtcConfig {
            base: match board.plan.settings.rtc {
                RtcBase::Utc => chipset::rtc::RtcBase::Utc,
                RtcBase::Localtime => chipset::rtc::RtcBase::LocalTime {
                    utc_offset_s: local_offset(),
                },
            },
            ram_below_4g: map.low_ram_end,
            ram_above_4g: map.high_ram.map_or(0, |range| range.size),
            cpus,
        },
    );
    board.add_ports("rtc", rtc.ports(), rtc)
}

/// Seconds by which local time is ahead of UTC now.
fn local_offset() -> i64 {
    // libc's own table of time zones; "%z" gives +hhmm.
    let output = std::process::Command::new("date").arg("+%z").output();
    let text = output
        .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
        .unwrap_or_default();
    let number: i64 = text.parse().unwrap_or(0);
    (number / 100 * 60 + number % 100) * 60
}

/// COM1 to COM4.
pub(crate) fn add_serial(
    board: &mut Board<'_>,
    thread: &IoThread,
    ears: &Ears,
) -> Result<Vec<Chardev>, MachineError> {
    let mut chardevs = Vec::new();
    let places = port::COM.into_iter().zip(irq::COM);
    let targets = board.plan.serial.clone();
    for (index, (target, (base, irq))) in targets.iter().zip(places).enumerate() {
        let (uart, chardev) = serial::connect(
            base,
            board.line(irq),
            target,
            thread,
            Arc::clone(&ears.escape),
        )?;
        board.add_ports(&format!("serial{index}"), uart.ports(), uart)?;
        chardevs.push(chardev);
    }
    Ok(chardevs)
}

/// Power management, keyboard controller and the guest's ways to say that it panicked.
pub(crate) fn add_power(board: &mut Board<'_>) -> Result<Power, MachineError> {
    let sci = SharedLine::new(board.line(irq::SCI));
    let pm = AcpiPm::new(&board.timers, sci, TimerWidth::Bits32);
    // The PM block itself follows PMBASE; only the APM ports are fixed.
    board.add_ports("acpi-pm", pm.ports(), pm.clone())?;
    let pvpanic = PvPanic::new();
    board.add_ports("pvpanic", pvpanic.ports(), pvpanic.clone())?;
    let post = chipset::post::Post::new();
    board.add_ports("post", post.ports(), post)?;
    if board.plan.settings.i8042 {
        let i8042 = chipset::i8042::I8042::new(board.line(irq::KEYBOARD), board.line(irq::MOUSE));
        board.add_ports("i8042", i8042.ports(), i8042)?;
    }
    Ok(Power { pm, pvpanic })
}

/// The devices by which the guest and control talk about power.
pub(crate) struct Power {
    pub(crate) pm: Arc<AcpiPm>,
    pub(crate) pvpanic: Arc<PvPanic>,
}

/// Follows the LPC bridge's registers: interrupt routing, and where the PM block is.
struct LpcFollower {
    router: Arc<pci::PirqRouter>,
    ports: Arc<Bus>,
    pm: Arc<AcpiPm>,
    pm_base: Mutex<Option<u16>>,
}

impl pci::LpcHandler for LpcFollower {
    fn settings_changed(&self, settings: &pci::LpcSettings) {
        self.router.set_routes(settings.pirq_routes);
        let mut base = self.pm_base.lock().unwrap_or_else(PoisonError::into_inner);
        if *base == settings.pm_base {
            return;
        }
        if let Some(old) = base.take() {
            self.ports.remove(old.into());
        }
        let Some(new) = settings.pm_base else { return };
        match self.ports.insert(
            Range::new(new.into(), port::PM_SIZE.into()),
            self.pm.clone(),
        ) {
            Ok(()) => *base = Some(new),
            Err(e) => log::warn!("the guest put the ACPI PM block where it cannot be: {e}"),
        }
    }
}

/// The root complex with its host bridge and the ICH9's LPC bridge.
pub(crate) fn add_pci(
    board: &mut Board<'_>,
    ram: &GuestRam,
    power: &Power,
) -> Result<Arc<RootComplex>, MachineError> {
    let isa: Vec<SharedLine> = (0..16)
        .map(|pin| SharedLine::new(board.line(pin)))
        .collect();
    let router = pci::PirqRouter::new(board.gsi.clone(), &isa);
    let is_ram = {
        let ram = ram.clone();
        move |range: Range| {
            let ram = ram.memory();
            let overlaps = |base: u64, size: u64| {
                range.base < base.saturating_add(size)
                    && base < range.base.saturating_add(range.size)
            };
            memory::blocks(&ram)
                .iter()
                .any(|block| overlaps(block.guest, block.size))
        }
    };
    let root = RootComplex::new(HostResources {
        memory: Arc::clone(&board.memory),
        ports: Arc::clone(&board.ports),
        msi: Arc::clone(&board.vm) as Arc<dyn MsiHost>,
        doorbells: Arc::clone(&board.vm) as Arc<dyn DoorbellHost>,
        is_ram: Arc::new(is_ram),
        pirqs: router.lines(),
    });
    board
        .ports
        .insert(Range::new(pci::CONFIG_PORTS, 8), root.config_ports())
        .map_err(MachineError::step("place the PCI configuration ports"))?;
    board.inventory.add(Item::fixed("pci", root.clone()));
    let host_bridge = pci::HostBridge::new(root.ecam(), Some(pci::ECAM_BASE), None);
    let follower = LpcFollower {
        router,
        ports: Arc::clone(&board.ports),
        pm: Arc::clone(&power.pm),
        pm_base: Mutex::default(),
    };
    let lpc = pci::Lpc::new(Some(port::PM), Arc::new(follower));
    let functions: [(&str, u8, Arc<dyn pci::Function>); 2] =
        [("host-bridge", 0, host_bridge), ("lpc", 31, lpc)];
    for (id, device, function) in functions {
        let bdf = Bdf::new(0, device, 0)
            .ok_or_else(|| MachineError::Description(format!("no device {device}")))?;
        root.add(bdf, Arc::clone(&function))
            .map_err(MachineError::step(format!("place the {id}")))?;
        board.inventory.add(Item::fixed(id, function));
    }
    Ok(root)
}
