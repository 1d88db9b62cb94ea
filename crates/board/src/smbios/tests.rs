use super::*;
use crate::memory_map::MemoryMapConfig;

const GIB: u64 = 1 << 30;

fn map(ram: u64) -> MemoryMap {
    MemoryMap::new(&MemoryMapConfig {
        ram,
        hotplug: 0,
        phys_bits: 46,
    })
    .unwrap()
}

fn config(memory: &MemoryMap) -> SmbiosConfig<'_> {
    SmbiosConfig {
        system: System {
            manufacturer: "Vireo".to_owned(),
            product: "q35".to_owned(),
            version: "1.0".to_owned(),
            serial: "S-1".to_owned(),
            sku: String::new(),
            family: "Virtual Machine".to_owned(),
            uuid: *b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff",
        },
        firmware_version: "1.2".to_owned(),
        firmware_date: "11/23/2026".to_owned(),
        processors: Processors {
            sockets: 2,
            cores: 4,
            threads: 2,
            manufacturer: "AuthenticAMD".to_owned(),
            version: "EPYC".to_owned(),
            signature: 0x0080_0f12,
            features: 0x178b_fbff,
        },
        memory,
    }
}

struct Parsed {
    kind: u8,
    fixed: Vec<u8>,
    strings: Vec<String>,
}

/// Walks the structures by section 6.1.
fn parse(mut bytes: &[u8]) -> Vec<Parsed> {
    let mut structures = Vec::new();
    while let [kind, len, ..] = *bytes {
        let (fixed, rest) = bytes.split_at(len.into());
        let end = rest.windows(2).position(|pair| pair == [0, 0]).unwrap();
        let strings = rest[..end]
            .split(|b| *b == 0)
            .filter(|s| !s.is_empty())
            .map(|s| String::from_utf8(s.to_vec()).unwrap())
            .collect();
        structures.push(Parsed {
            kind,
            fixed: fixed.to_vec(),
            strings,
        });
        bytes = &rest[end + 2..];
    }
    structures
}

fn kinds(structures: &[Parsed]) -> Vec<u8> {
    structures.iter().map(|s| s.kind).collect()
}

#[test]
fn every_structure_has_its_length_and_strings() {
    let memory = map(4 * GIB);
    let tables = SmbiosTables::build(&config(&memory)).unwrap();
    let structures = parse(tables.structures());
    assert_eq!(kinds(&structures), [0, 1, 3, 4, 4, 16, 17, 19, 19, 32, 127]);
    let lengths: Vec<_> = structures.iter().map(|s| s.fixed.len()).collect();
    assert_eq!(
        lengths,
        [0x18, 0x1b, 0x16, 0x30, 0x30, 0x17, 0x28, 0x1f, 0x1f, 11, 4],
        "lengths that SMBIOS 3.0 gives"
    );
    let system = &structures[1];
    assert_eq!(
        system.strings,
        ["Vireo", "q35", "1.0", "S-1", "Virtual Machine"]
    );
    assert_eq!(
        system.fixed[8..24],
        *b"\x33\x22\x11\x00\x55\x44\x77\x66\x88\x99\xaa\xbb\xcc\xdd\xee\xff"
    );
    assert_eq!(system.fixed[25..27], [0, 5], "no SKU, family is string 5");
    let mut handles: Vec<_> = structures.iter().map(|s| &s.fixed[2..4]).collect();
    handles.sort();
    handles.dedup();
    assert_eq!(handles.len(), structures.len());
}

#[test]
fn large_memory_is_told_in_extended_fields() {
    let memory = map(8192 * GIB);
    let tables = SmbiosTables::build(&config(&memory)).unwrap();
    let structures = parse(tables.structures());
    let dimms = structures.iter().filter(|s| s.kind == 17);
    let mib: u64 = dimms
        .map(|s| u64::from(u32::from_le_bytes(*s.fixed[28..].first_chunk().unwrap())))
        .sum();
    assert_eq!(mib << 20, 8192 * GIB);
    let last = structures.iter().rfind(|s| s.kind == 19).unwrap();
    assert_eq!(last.fixed[4..12], [0xff; 8]);
    assert_eq!(
        u64::from_le_bytes(*last.fixed[23..].first_chunk().unwrap()),
        8194 * GIB - 1
    );
}

#[test]
fn a_user_cannot_break_out_of_a_string() {
    let memory = map(GIB);
    let mut config = config(&memory);
    config.system.serial = "a\0\0b".to_owned();
    let tables = SmbiosTables::build(&config).unwrap();
    assert_eq!(parse(tables.structures())[1].strings[3], "ab");
    config.system.serial = "x".repeat(70_000);
    let error = SmbiosTables::build(&config).unwrap_err().to_string();
    assert!(error.starts_with("the SMBIOS tables take 14"), "{error}");
}

#[test]
fn the_entry_point_leads_to_the_structures() {
    use memory::GuestAddressSpace;
    let map = map(GIB);
    let tables = SmbiosTables::build(&config(&map)).unwrap();
    let ram = memory::small(2 << 20).unwrap().memory();
    tables.install(&ram).unwrap();
    let mut entry = [0; ENTRY_POINT_LEN];
    ram.read_slice(&mut entry, GuestAddress(mem::SMBIOS))
        .unwrap();
    assert_eq!(entry.iter().fold(0_u8, |s, b| s.wrapping_add(*b)), 0);
    assert_eq!(&entry[..5], b"_SM3_");
    let address = u64::from_le_bytes(*entry[16..].first_chunk().unwrap());
    let len = u32::from_le_bytes(*entry[12..].first_chunk().unwrap());
    let mut structures = vec![0; len as usize];
    ram.read_slice(&mut structures, GuestAddress(address))
        .unwrap();
    assert_eq!(structures, tables.structures());
    // Firmware-less guests scan in steps of 16.
    assert_eq!(mem::SMBIOS % 16, 0);
}

#[test]
fn dmidecode_has_no_complaint() {
    let memory = map(4 * GIB);
    let tables = SmbiosTables::build(&config(&memory)).unwrap();
    // The format of `dmidecode --dump-bin`: the structures follow the entry point in the file.
    let mut dump = tables.entry_point(TABLES_OFFSET).to_vec();
    dump.resize(TABLES_OFFSET as usize, 0);
    dump.extend_from_slice(tables.structures());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), dump).unwrap();
    let output = std::process::Command::new("/usr/sbin/dmidecode")
        .arg("--from-dump")
        .arg(file.path())
        .output()
        .expect("dmidecode does not run: install the package dmidecode");
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains("UUID: 00112233-4455-6677-8899-aabbccddeeff"),
        "{text}"
    );
    assert!(text.contains("End Of Table"), "{text}");
    for complaint in [
        "OUT OF SPEC",
        "BAD INDEX",
        "TRUNCATED",
        "nvalid",
        "Wrong",
        "broken",
    ] {
        assert!(!text.contains(complaint), "{complaint}: {text}");
    }
}
