use super::*;
use crate::regs::*;
use crate::testing::Bench;
use crate::tests::{Probe, probe, read32};
use crate::{RootPort, RootPortConfig};
use bus::Range;

struct Board {
    bench: Bench,
    root: Arc<RootComplex>,
    device: Arc<Probe>,
}

fn board() -> Board {
    let bench = Bench::new();
    let root = bench.root_complex();
    let device = probe();
    root.add(at("3.0"), Arc::clone(&device) as _).unwrap();
    let ports = Range::new(CONFIG_PORTS, 8);
    bench.ports.insert(ports, root.config_ports()).unwrap();
    let ecam = Range::new(ECAM_BASE, ECAM_SIZE);
    bench.memory.insert(ecam, root.ecam()).unwrap();
    Board {
        bench,
        root,
        device,
    }
}

fn at(text: &str) -> Bdf {
    text.parse().unwrap()
}

fn ecam(bdf: Bdf, register: u64) -> u64 {
    ECAM_BASE + (u64::from(bdf.bus()) << 20) + (u64::from(bdf.devfn()) << 12) + register
}

fn inl(bench: &Bench, port: u64) -> u32 {
    let mut data = [0; 4];
    bench.ports.read(port, &mut data);
    u32::from_le_bytes(data)
}

fn outl(bench: &Bench, port: u64, value: u32) -> Action {
    bench.ports.write(port, &value.to_le_bytes())
}

#[test]
fn both_ways_lead_to_the_same_registers() {
    let Board {
        bench,
        device,
        root: _root,
    } = board();
    let id = read32(&*device, VENDOR_ID);
    assert_eq!(id, 0x1041_1af4);
    let _ = outl(&bench, 0xcf8, 0x8000_1800);
    assert_eq!(inl(&bench, 0xcf8), 0x8000_1800);
    assert_eq!(inl(&bench, 0xcfc), id);
    let mut half = [0; 2];
    bench.ports.read(0xcfe, &mut half);
    assert_eq!(u16::from_le_bytes(half), 0x1041);
    let mut data = [0; 4];
    bench.memory.read(ecam(at("3.0"), 0), &mut data);
    assert_eq!(u32::from_le_bytes(data), id);

    let _ = outl(&bench, 0xcf8, 0x8000_183c);
    let _ = bench.ports.write(0xcfc, &[0x0b]);
    let mut line = [0];
    bench.memory.read(ecam(at("3.0"), 0x3c), &mut line);
    assert_eq!(line, [0x0b]);
    let _ = bench.memory.write(ecam(at("3.0"), 0x3c), &[0x0a]);
    assert_eq!(inl(&bench, 0xcfc) & 0xff, 0x0a);
}

#[test]
fn linux_finds_configuration_mechanism_1() {
    // pci_check_type1() of Linux.
    let Board {
        bench, root: _root, ..
    } = board();
    let _ = bench.ports.write(0xcfb, &[1]);
    let old = inl(&bench, 0xcf8);
    let _ = outl(&bench, 0xcf8, 0x8000_0000);
    assert_eq!(inl(&bench, 0xcf8), 0x8000_0000);
    let _ = outl(&bench, 0xcf8, old);
    assert_eq!(inl(&bench, 0xcfc), !0, "not enabled");
}

#[test]
fn nobody_reads_as_ones() {
    let Board {
        bench, root: _root, ..
    } = board();
    for bdf in ["4.0", "3.1", "1:0.0", "ff:1f.7"] {
        let mut data = [0; 4];
        bench.memory.read(ecam(at(bdf), 0), &mut data);
        assert_eq!(data, [0xff; 4]);
        assert_eq!(bench.memory.write(ecam(at(bdf), 4), &[7; 4]), Action::None);
    }
}

#[test]
fn odd_accesses_are_cut_at_registers() {
    let Board {
        bench,
        device,
        root: _root,
    } = board();
    let mut wide = [0; 8];
    bench.memory.read(ecam(at("3.0"), 0), &mut wide);
    assert_eq!(wide[..4], read32(&*device, 0).to_le_bytes());
    assert_eq!(wide[4..], read32(&*device, 4).to_le_bytes());
    let mut odd = [0; 4];
    bench.memory.read(ecam(at("3.0"), 1), &mut odd);
    assert_eq!(odd, wide[1..5]);
    let mut across = [0; 4];
    bench.memory.read(ecam(at("3.0"), 0xffe), &mut across);
    assert_eq!(across, [0, 0, 0xff, 0xff], "the next function is not there");
    let _ = outl(&bench, 0xcf8, 0x8000_1800);
    bench.ports.read(0xcfe, &mut across);
    assert_eq!(across, [wide[2], wide[3], 0xff, 0xff]);
    let _ = bench.ports.write(0xcff, &[1, 2, 3, 4]);
    bench.ports.read(0xcf8, &mut wide);
    assert_eq!(wide[4..], read32(&*device, 0).to_le_bytes());
}

#[test]
fn the_reset_control_register_resets() {
    let Board { bench, root, .. } = board();
    assert_eq!(bench.ports.write(0xcf9, &[0x02]), Action::None);
    let mut value = [0];
    bench.ports.read(0xcf9, &mut value);
    assert_eq!(value, [0x02]);
    assert_eq!(bench.ports.write(0xcf9, &[0x06]), Action::Reset);
    assert_eq!(inl(&bench, 0xcf8), 0, "the address is another register");
    root.reset();
    bench.ports.read(0xcf9, &mut value);
    assert_eq!(value, [0]);
}

#[test]
fn cycles_follow_the_bridges_numbers() {
    let Board { bench, root, .. } = board();
    let config = RootPortConfig {
        port: 1,
        slot: 1,
        multifunction: false,
    };
    let port = RootPort::new(config, None).unwrap();
    let behind = probe();
    port.insert(Arc::clone(&behind) as _).unwrap();
    root.add(at("2.0"), Arc::clone(&port) as _).unwrap();
    assert!(root.function(at("5:0.0")).is_none());
    assert!(root.function(at("0:0.0")).is_none());
    assert_eq!(root.functions().len(), 2);

    let _ = bench.memory.write(ecam(at("2.0"), 0x18), &[0, 5, 7]);
    assert!(root.function(at("5:0.0")).is_some());
    for absent in ["5:1.0", "5:0.1", "6:0.0", "8:0.0"] {
        assert!(root.function(at(absent)).is_none(), "{absent}");
    }
    let places: Vec<_> = root.functions().iter().map(|f| f.0.to_string()).collect();
    assert_eq!(places, ["00:02.0", "00:03.0", "05:00.0"]);

    // INTA# of the device behind the port is INTA# of the port.
    behind.pci.set_intx(true);
    assert!(bench.pins.level(intx_pirq(2, IntxPin::A) as u32));
    assert!(root.remove(at("2.0")).is_some());
    assert!(!bench.pins.level(intx_pirq(2, IntxPin::A) as u32));
    assert!(root.function(at("5:0.0")).is_none());
}

#[test]
fn a_taken_or_foreign_place_is_refused() {
    let Board { root, device, .. } = board();
    let again = root.add(at("3.0"), probe() as _);
    assert_eq!(again, Err(PciError::Taken(at("3.0"))));
    let far = root.add(at("1:0.0"), probe() as _);
    assert_eq!(far, Err(PciError::NotRootBus(at("1:0.0"))));
    assert!(root.remove(at("1:3.0")).is_none());
    assert!(root.remove(at("3.0")).is_some());
    assert_eq!(Arc::strong_count(&device), 1);
}

#[test]
fn the_registers_round_trip() {
    let Board { bench, root, .. } = board();
    let _ = outl(&bench, 0xcf8, 0x8000_f840);
    let _ = bench.ports.write(0xcf9, &[0x0a]);
    let payload = root.save().unwrap();
    let other = Board { ..board() };
    other.root.restore(payload.clone()).unwrap();
    assert_eq!(other.root.save().unwrap(), payload);
    assert_eq!(inl(&other.bench, 0xcf8), 0x8000_f840);
    assert!(other.root.restore(state::no_state("other")).is_err());
    assert_eq!(inl(&other.bench, 0xcf8), 0);
}
