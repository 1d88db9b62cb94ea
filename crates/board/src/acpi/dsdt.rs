//! The DSDT: what the operating system cannot find out by itself, in AML.
//!
//! It is kept small on purpose: every device here is one that Linux walks, asks and probes.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal,
    IO, If, Local, Memory32Fixed, Method, Name, NotEqual, Or, Package, PackageBuilder, Path,
    ResourceTemplate, Return, Scope, Store, Uuid,
};
use acpi_tables::{Aml, AmlSink};

use super::tables::{last_bus, table};
use super::{AcpiConfig, SerialPort};
use crate::address::{command, irq, mem, port};

/// Processors are called C000 to CFFF.
pub(super) const MAX_CPUS: usize = 0x1000;

/// AML that is encoded already.
#[derive(Default)]
struct Raw(Vec<u8>);

impl Raw {
    fn of(item: &dyn Aml) -> Self {
        let mut bytes = Vec::new();
        item.to_aml_bytes(&mut bytes);
        Raw(bytes)
    }

    fn push(&mut self, item: &dyn Aml) {
        item.to_aml_bytes(&mut self.0);
    }
}

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// IRQ descriptor without flags: edge triggered, active high, not shared (ACPI 6.5 section
/// 6.4.2.1).
struct Irq(u8);

impl Aml for Irq {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const IRQ_NO_FLAGS: u8 = 0x22;
        sink.byte(IRQ_NO_FLAGS);
        sink.word(1 << (self.0 & 15));
    }
}

fn name(name: &str, value: &dyn Aml) -> Name {
    Name::new(Path::new(name), value)
}

fn io(port: u16, len: u8) -> IO {
    IO::new(port, port, 1, len)
}

/// The whole table (ACPI 6.5 section 5.2.11.1); revision 2 means 64-bit integers.
pub(super) fn dsdt(config: &AcpiConfig) -> Vec<u8> {
    const REVISION: u8 = 2;
    let host_bridge = host_bridge(config);
    let isa = isa(config);
    let motherboard = motherboard(config);
    let cpus = cpus(config);
    let mut aml = Raw::default();
    aml.push(&Scope::new(
        Path::new("_SB_"),
        vec![&host_bridge, &isa, &motherboard, &cpus],
    ));
    let s5: [&dyn Aml; 4] = [&command::SLEEP_TYPE_S5, &0_u8, &0_u8, &0_u8];
    aml.push(&name("_S5_", &Package::new(s5.to_vec())));
    table(b"DSDT", REVISION, &aml.0)
}

/// The PCI Express host bridge with its windows (PCI Firmware Specification 3.3 section 4).
fn host_bridge(config: &AcpiConfig) -> Raw {
    let map = config.memory;
    let buses = AddressSpace::<u16>::new_bus_number(0, last_bus(config).into());
    let config_ports = io(port::PCI_CONFIG_ADDRESS, 8);
    let io_below = AddressSpace::<u16>::new_io(0, port::PCI_CONFIG_ADDRESS - 1, None);
    let io_above = AddressSpace::<u16>::new_io(port::PCI_CONFIG_DATA + 4, u16::MAX, None);
    let window = |base: u64, end: u64| {
        AddressSpace::<u32>::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            base as u32,
            (end - 1) as u32,
            None,
        )
    };
    let vga = window(mem::VGA, mem::OPTION_ROMS);
    let low = window(map.pci32.base, map.pci32.base + map.pci32.size);
    let high = map.pci64.map(|range| {
        AddressSpace::<u64>::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            range.base,
            range.base + range.size - 1,
            None,
        )
    });
    let mut resources: Vec<&dyn Aml> = vec![&buses, &config_ports, &io_below, &io_above];
    if config.vga {
        resources.push(&vga);
    }
    resources.push(&low);
    if let Some(high) = &high {
        resources.push(high);
    }
    Raw::of(&Device::new(
        Path::new("PCI0"),
        vec![
            &name("_HID", &EISAName::new("PNP0A08")),
            &name("_CID", &EISAName::new("PNP0A03")),
            &name("_UID", &0_u8),
            &name("_CRS", &ResourceTemplate::new(resources)),
            &name("_PRT", &routing(config.intx_gsi)),
            &osc(),
        ],
    ))
}

/// Interrupt routing of the root bus (ACPI 6.5 section 6.2.13). Deeper buses need no table: the
/// guest turns the pins at each bridge.
fn routing(intx_gsi: fn(u8, u8) -> u32) -> PackageBuilder {
    const DEVICES: u8 = 32;
    const PINS: u8 = 4;
    const ALL_FUNCTIONS: u32 = 0xffff;
    let mut routing = PackageBuilder::new();
    for device in 0..DEVICES {
        for pin in 0..PINS {
            let address = u32::from(device) << 16 | ALL_FUNCTIONS;
            let gsi = intx_gsi(device, pin);
            routing.add_element(&Package::new(vec![&address, &pin, &0_u8, &gsi]));
        }
    }
    routing
}

/// `_OSC` (PCI Firmware Specification 3.3 section 4.5): the guest may have all that it asks for
/// among native hot-plug, PME, AER, the capability structure and LTR; SHPC there is none.
fn osc() -> Raw {
    const HOST_BRIDGE: &str = "33DB4D5B-1FF7-401C-9657-7441C03DD766";
    const NATIVE_HOTPLUG: u8 = 1 << 0;
    const PME: u8 = 1 << 2;
    const AER: u8 = 1 << 3;
    const CAPABILITY: u8 = 1 << 4;
    const LTR: u8 = 1 << 5;
    const UNKNOWN_UUID: u8 = 1 << 2;
    const UNKNOWN_REVISION: u8 = 1 << 3;
    const MASKED: u8 = 1 << 4;

    let status = Path::new("CDW1");
    let control = Path::new("CDW3");
    Raw::of(&Method::new(
        Path::new("_OSC"),
        4,
        true,
        vec![
            &CreateDWordField::new(&status, &Arg(3), &0_u8),
            &If::new(
                &Equal::new(&Arg(0), &Uuid::new(HOST_BRIDGE)),
                vec![
                    &CreateDWordField::new(&control, &Arg(3), &8_u8),
                    &And::new(
                        &Local(0),
                        &control,
                        &(NATIVE_HOTPLUG | PME | AER | CAPABILITY | LTR),
                    ),
                    &If::new(
                        &NotEqual::new(&Arg(1), &1_u8),
                        vec![&Or::new(&status, &status, &UNKNOWN_REVISION)],
                    ),
                    &If::new(
                        &NotEqual::new(&Local(0), &control),
                        vec![&Or::new(&status, &status, &MASKED)],
                    ),
                    &Store::new(&control, &Local(0)),
                ],
            ),
            &Else::new(vec![&Or::new(&status, &status, &UNKNOWN_UUID)]),
            &Return::new(&Arg(3)),
        ],
    ))
}

/// The devices behind the LPC bridge.
fn isa(config: &AcpiConfig) -> Raw {
    const LPC_BRIDGE: u32 = 0x001f_0000;
    let mut devices = Raw::default();
    devices.push(&name("_ADR", &LPC_BRIDGE));
    devices.push(&rtc());
    if config.i8042 {
        devices.push(&keyboard());
        devices.push(&mouse());
    }
    for (index, serial) in (1_u8..).zip(&config.serial) {
        devices.push(&serial_port(index, *serial));
    }
    if let Some(port) = config.pvpanic {
        const ENABLED_AND_SHOWN: u8 = 0xf;
        devices.push(&Device::new(
            Path::new("PEVT"),
            vec![
                &name("_HID", &"QEMU0001"),
                &name("_STA", &ENABLED_AND_SHOWN),
                &name("_CRS", &ResourceTemplate::new(vec![&io(port, 1)])),
            ],
        ));
    }
    if let Some(first) = config.fw_cfg {
        const ENABLED_AND_HIDDEN: u8 = 0xb;
        let ports = io(first, port::FW_CFG_SIZE as u8);
        devices.push(&Device::new(
            Path::new("FWCF"),
            vec![
                &name("_HID", &"QEMU0002"),
                &name("_STA", &ENABLED_AND_HIDDEN),
                &name("_CRS", &ResourceTemplate::new(vec![&ports])),
            ],
        ));
    }
    let isa = Raw::of(&Device::new(Path::new("ISA_"), vec![&devices]));
    Raw::of(&Scope::new(Path::new("PCI0"), vec![&isa]))
}

fn rtc() -> Raw {
    let (ports, interrupt) = (io(port::RTC, 8), Irq(irq::RTC as u8));
    Raw::of(&Device::new(
        Path::new("RTC_"),
        vec![
            &name("_HID", &EISAName::new("PNP0B00")),
            &name("_CRS", &ResourceTemplate::new(vec![&ports, &interrupt])),
        ],
    ))
}

fn keyboard() -> Raw {
    let (data, status) = (io(port::I8042_DATA, 1), io(port::I8042_COMMAND, 1));
    let interrupt = Irq(irq::KEYBOARD as u8);
    Raw::of(&Device::new(
        Path::new("PS2K"),
        vec![
            &name("_HID", &EISAName::new("PNP0303")),
            &name(
                "_CRS",
                &ResourceTemplate::new(vec![&data, &status, &interrupt]),
            ),
        ],
    ))
}

fn mouse() -> Raw {
    let interrupt = Irq(irq::MOUSE as u8);
    Raw::of(&Device::new(
        Path::new("PS2M"),
        vec![
            &name("_HID", &EISAName::new("PNP0F13")),
            &name("_CRS", &ResourceTemplate::new(vec![&interrupt])),
        ],
    ))
}

fn serial_port(index: u8, serial: SerialPort) -> Raw {
    let (ports, interrupt) = (io(serial.port, 8), Irq(serial.irq));
    Raw::of(&Device::new(
        Path::new(&format!("COM{:X}", index & 0xf)),
        vec![
            &name("_HID", &EISAName::new("PNP0501")),
            &name("_UID", &index),
            &name("_CRS", &ResourceTemplate::new(vec![&ports, &interrupt])),
        ],
    ))
}

/// Addresses that are taken and belong to no other device: Linux does not believe the MCFG table
/// without this.
fn motherboard(config: &AcpiConfig) -> Raw {
    let ecam = config.memory.ecam;
    let area = Memory32Fixed::new(true, ecam.base as u32, ecam.size as u32);
    let pm = io(port::PM, port::PM_SIZE as u8);
    Raw::of(&Device::new(
        Path::new("MBRD"),
        vec![
            &name("_HID", &EISAName::new("PNP0C02")),
            &name("_CRS", &ResourceTemplate::new(vec![&area, &pm])),
        ],
    ))
}

/// The processors (ACPI 6.5 section 8.4); their UIDs are those of the MADT.
fn cpus(config: &AcpiConfig) -> Raw {
    let mut devices = Raw::default();
    for (uid, _) in config
        .cpus
        .iter()
        .enumerate()
        .filter(|(_, cpu)| cpu.present)
    {
        devices.push(&Device::new(
            Path::new(&format!("C{uid:03X}")),
            vec![&name("_HID", &"ACPI0007"), &name("_UID", &(uid as u32))],
        ));
    }
    Raw::of(&Device::new(
        Path::new("CPUS"),
        vec![&name("_HID", &"ACPI0010"), &devices],
    ))
}
