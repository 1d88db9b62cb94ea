use std::process::Command;

use super::*;
use crate::address::{irq, port};
use crate::memory_map::MemoryMapConfig;

const GIB: u64 = 1 << 30;

fn map(ram: u64) -> MemoryMap {
    MemoryMap::new(&MemoryMapConfig {
        ram,
        hotplug: 0,
        phys_bits: 40,
    })
    .unwrap()
}

fn cpus(count: u32) -> Vec<Cpu> {
    (0..count)
        .map(|apic_id| Cpu {
            apic_id,
            node: apic_id % 2,
            present: true,
        })
        .collect()
}

fn small(memory: &MemoryMap) -> AcpiConfig<'_> {
    AcpiConfig {
        memory,
        cpus: cpus(1),
        nodes: Vec::new(),
        last_bus: 0,
        intx_gsi: |device, pin| 20 + u32::from((device + pin) % 4),
        serial: vec![SerialPort {
            port: port::COM[0],
            irq: irq::COM[0] as u8,
        }],
        i8042: false,
        pm_timer_32bit: false,
        vga: false,
        pvpanic: None,
        fw_cfg: None,
    }
}

fn large(memory: &MemoryMap) -> AcpiConfig<'_> {
    let mut cpus = cpus(300);
    cpus[299].present = false;
    AcpiConfig {
        cpus,
        nodes: vec![
            Node {
                memory: memory.split(&[3 * GIB, 5 * GIB])[0].clone(),
                distances: vec![10, 21],
            },
            Node {
                memory: memory.split(&[3 * GIB, 5 * GIB])[1].clone(),
                distances: Vec::new(),
            },
        ],
        serial: (0..4)
            .map(|i| SerialPort {
                port: port::COM[i],
                irq: irq::COM[i] as u8,
            })
            .collect(),
        i8042: true,
        last_bus: 255,
        pm_timer_32bit: true,
        vga: true,
        pvpanic: Some(port::PVPANIC),
        fw_cfg: Some(port::FW_CFG),
        ..small(memory)
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(*bytes[offset..].first_chunk().unwrap())
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(*bytes[offset..].first_chunk().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Follows the pointers in guest memory from the root as an operating system does.
fn walk(ram: &Ram, rsdp: u64) -> Vec<(String, Vec<u8>)> {
    let bytes = |address: u64, len: usize| {
        let mut bytes = vec![0; len];
        ram.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    };
    let table = |address: u64| {
        let header = bytes(address, 8);
        let table = bytes(address, u32_at(&header, 4) as usize);
        let signature = String::from_utf8(table[..4].to_vec()).unwrap();
        if signature != "FACS" {
            assert_eq!(sum(&table), 0, "checksum of {signature}");
        }
        (signature, table)
    };
    let root = bytes(rsdp, RSDP_LEN);
    assert_eq!(&root[..8], b"RSD PTR ");
    assert_eq!(sum(&root[..20]), 0);
    assert_eq!(sum(&root), 0);
    let rsdt = table(u32_at(&root, 16).into()).1;
    let xsdt = table(u64_at(&root, 24)).1;
    let mut tables = Vec::new();
    for (i, pointer) in xsdt[36..].chunks(8).enumerate() {
        let address = u64_at(pointer, 0);
        assert_eq!(u64::from(u32_at(&rsdt, 36 + 4 * i)), address);
        tables.push(table(address));
    }
    let fadt = tables[0].1.clone();
    assert_eq!(tables[0].0, "FACP");
    assert_eq!(u64::from(u32_at(&fadt, 40)), u64_at(&fadt, 140));
    tables.push(table(u64_at(&fadt, 140)));
    let facs = u32_at(&fadt, 36);
    assert_eq!(facs % 64, 0);
    tables.push(table(facs.into()));
    tables.push(("XSDT".to_owned(), xsdt));
    tables.push(("RSDT".to_owned(), rsdt));
    tables
}

fn installed(config: &AcpiConfig) -> Vec<(String, Vec<u8>)> {
    let ram = memory::allocate(&config.memory.ram_ranges(), &memory::Options::default()).unwrap();
    let ram = vm_memory_snapshot(&ram);
    let tables = AcpiTables::build(config).unwrap();
    let area = tables.install(&ram, config.memory).unwrap();
    assert!(area.base + tables.size() <= config.memory.low_ram_end);
    walk(&ram, area.rsdp)
}

fn vm_memory_snapshot(ram: &memory::GuestRam) -> memory::RamSnapshot {
    use memory::GuestAddressSpace;
    ram.memory()
}

fn find<'a>(tables: &'a [(String, Vec<u8>)], signature: &str) -> &'a [u8] {
    &tables.iter().find(|(s, _)| s == signature).unwrap().1
}

#[test]
fn a_machine_without_nodes_has_no_numa_tables() {
    let memory = map(GIB);
    let tables = installed(&small(&memory));
    let names: Vec<_> = tables.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "FACP", "APIC", "MCFG", "WAET", "DSDT", "FACS", "XSDT", "RSDT"
        ]
    );
    assert!(
        find(&tables, "DSDT").len() < 2800,
        "{} bytes of AML for a guest to walk",
        find(&tables, "DSDT").len()
    );
}

#[test]
fn fadt_tells_the_power_management_block() {
    let memory = map(GIB);
    let fadt = find(&installed(&small(&memory)), "FACP").to_vec();
    assert_eq!(fadt.len(), 276);
    assert_eq!(u32_at(&fadt, 56), 0x600);
    assert_eq!(u32_at(&fadt, 64), 0x604);
    assert_eq!(u32_at(&fadt, 76), 0x608);
    assert_eq!(u32_at(&fadt, 80), 0x620);
    assert_eq!(fadt[109..111], [0b101, 0], "no 8042, no VGA");
    assert_eq!(u32_at(&fadt, 112), 0x4a5, "24-bit timer, flat APIC mode");
    let memory = map(8 * GIB);
    let large = find(&installed(&large(&memory)), "FACP").to_vec();
    assert_eq!(u32_at(&large, 112), 0x4_05a5, "32-bit timer, cluster mode");
    assert_eq!(u64_at(&fadt, 120), 0xcf9);
    assert_eq!(fadt[128], 0x0e);
}

#[test]
fn processors_from_255_on_are_x2apic_entries() {
    let memory = map(8 * GIB);
    let madt = find(&installed(&large(&memory)), "APIC").to_vec();
    let mut entries = Vec::new();
    let mut rest = &madt[44..];
    while let [kind, len, ..] = *rest {
        entries.push((kind, rest[..len.into()].to_vec()));
        rest = &rest[len.into()..];
    }
    let count = |wanted| entries.iter().filter(|(kind, _)| *kind == wanted).count();
    assert_eq!((count(0), count(9), count(1)), (255, 45, 1));
    assert_eq!((count(2), count(4), count(10)), (5, 1, 1));
    let absent = &entries.iter().rfind(|(kind, _)| *kind == 9).unwrap().1;
    assert_eq!(u32_at(absent, 4), 299);
    assert_eq!(u32_at(absent, 8), 2, "online capable, not enabled");
}

#[test]
fn nodes_have_memory_and_distances() {
    let memory = map(8 * GIB);
    let tables = installed(&large(&memory));
    let slit = find(&tables, "SLIT");
    assert_eq!(slit[44..], [10, 21, 20, 10]);
    let srat = find(&tables, "SRAT");
    let memory_entries = srat.len() - 48 - 255 * 16 - 45 * 24;
    assert_eq!(
        memory_entries,
        3 * 40,
        "node 0 lies on both sides of the hole"
    );
}

#[test]
fn the_bus_numbers_end_where_they_are_told_to() {
    let memory = map(GIB);
    for last_bus in [0, 7, 255] {
        let config = AcpiConfig {
            last_bus,
            ..small(&memory)
        };
        let mcfg = tables::mcfg(&config);
        assert_eq!(
            mcfg[44 + 11],
            last_bus,
            "MCFG, end bus number (offset 11 of the entry)"
        );
        AcpiTables::build(&config).unwrap();
    }
}

#[test]
fn too_many_processors_are_refused() {
    let memory = map(GIB);
    let config = AcpiConfig {
        cpus: cpus(4097),
        ..small(&memory)
    };
    let error = AcpiTables::build(&config).unwrap_err();
    assert!(error.to_string().contains("4097"), "{error}");
}

/// Runs the linker's commands as firmware does and compares with what `install` writes.
#[test]
fn the_loader_script_links_the_same_tables() {
    let memory = map(GIB);
    let tables = AcpiTables::build(&small(&memory)).unwrap();
    let base = 0x3fff_0000_u64;
    let mut files = [tables.tables_blob().to_vec(), tables.rsdp_blob().to_vec()];
    let file = |field: &[u8]| match field.split(|b| *b == 0).next().unwrap() {
        b"etc/acpi/tables" => 0,
        b"etc/acpi/rsdp" => 1,
        other => panic!("{other:?}"),
    };
    let loader = tables.loader_blob();
    assert_eq!(loader.len() % 128, 0);
    for command in loader.chunks(128) {
        match u32_at(command, 0) {
            1 => {}
            2 => {
                assert_eq!(file(&command[60..116]), 0);
                let offset = u32_at(command, 116) as usize;
                let size = usize::from(command[120]);
                let field = &mut files[file(&command[4..60])][offset..offset + size];
                let mut value = [0; 8];
                value[..size].copy_from_slice(field);
                let value = u64::from_le_bytes(value) + base;
                field.copy_from_slice(&value.to_le_bytes()[..size]);
            }
            3 => {
                let file = &mut files[file(&command[4..60])];
                let [offset, start, len] = [60, 64, 68].map(|at| u32_at(command, at) as usize);
                file[offset] = 0_u8.wrapping_sub(sum(&file[start..start + len]));
            }
            other => panic!("command {other}"),
        }
    }
    let (linked, rsdp) = tables.blob.placed(base);
    assert_eq!(files[0], linked);
    assert_eq!(files[1], rsdp);
}

/// iasl takes every table apart without a complaint and makes the same bytes of it again.
#[test]
fn iasl_accepts_every_table() {
    for (label, ram) in [("small", GIB), ("large", 8 * GIB)] {
        let memory = map(ram);
        let mut config = if label == "small" {
            small(&memory)
        } else {
            large(&memory)
        };
        // Debian 12's iasl drops the online-capable bit, which is younger than it is.
        for cpu in &mut config.cpus {
            cpu.present = true;
        }
        for (signature, bytes) in installed(&config) {
            let dir = tempfile::tempdir().unwrap();
            let name = signature.to_lowercase();
            std::fs::write(dir.path().join(format!("{name}.dat")), &bytes).unwrap();
            let run = |arguments: &[&str]| {
                let output = Command::new("iasl")
                    .args(arguments)
                    .current_dir(dir.path())
                    .output()
                    .expect("iasl does not run: install the package acpica-tools");
                let text = [output.stdout, output.stderr].concat();
                let text = String::from_utf8_lossy(&text).into_owned();
                assert!(output.status.success(), "{label} {signature}: {text}");
                text
            };
            let text = run(&["-d", &format!("{name}.dat")]);
            let source = std::fs::read_to_string(dir.path().join(format!("{name}.dsl"))).unwrap();
            for text in [&text, &source] {
                for complaint in ["Error", "Warning", "Invalid", "invalid", "ncorrect", "****"] {
                    let found = text
                        .lines()
                        .find(|line| line.contains(complaint) && !line.contains("Disassembl"));
                    assert_eq!(found, None, "{label} {signature}: {text}");
                }
            }
            let output = format!("{name}-again");
            let text = run(&["-p", &output, &format!("{name}.dsl")]);
            assert!(
                text.contains("0 Errors, 0 Warnings, 0 Remarks") || signature != "DSDT",
                "{label} {signature}: {text}"
            );
            assert!(
                !text.contains("Warning  ") && !text.contains("Error  "),
                "{label} {signature}: {text}"
            );
            let again = std::fs::read(dir.path().join(format!("{output}.aml"))).unwrap();
            let body = if signature == "FACS" { 8 } else { 36 };
            assert!(
                again[body..] == bytes[body..],
                "{label} {signature} comes back changed: {source}"
            );
        }
    }
}
