use super::*;
use crate::tests::{IO, MEMORY32, MEMORY64, PROBE, capability, probe, read32, write16, write32};
use crate::{IntxPin, PciError};

const MEMORY: BarKind = BarKind::Memory32 {
    prefetchable: false,
};

/// Sizes a BAR as Linux's __pci_read_base does: remember, write ones, read, put back.
fn size_of(function: &dyn crate::Function, offset: u16, mask: u32) -> u64 {
    let old = read32(function, offset);
    write32(function, offset, old | mask);
    let size = read32(function, offset);
    write32(function, offset, old);
    assert_eq!(read32(function, offset), old);
    u64::from(size & mask)
}

#[test]
fn bars_size_as_linux_sizes_them() {
    let device = probe();
    let memory = size_of(&*device, 0x10, !0xf);
    assert_eq!(memory & memory.wrapping_neg(), MEMORY32);
    let io = size_of(&*device, 0x14, !0x3);
    assert_eq!(io & io.wrapping_neg(), IO);
    assert_eq!(read32(&*device, 0x14) & 3, 1);
    let low = size_of(&*device, 0x18, !0xf);
    let wide = low | size_of(&*device, 0x1c, !0) << 32;
    assert_eq!(wide & wide.wrapping_neg(), MEMORY64);
    assert_eq!(read32(&*device, 0x18) & 0xf, 0xc, "64-bit, prefetchable");
    assert_eq!(size_of(&*device, 0x20, !0xf), 0, "no BAR 4");
    assert_eq!(size_of(&*device, 0x30, !0x7ff), 0, "no expansion ROM");
}

#[test]
fn a_bar_is_decoded_only_while_the_command_register_allows_it() {
    let mut config = ConfigBuilder::endpoint(PROBE);
    config.bar(0, MEMORY, 0x1000).unwrap();
    config.bar(1, BarKind::Io, 0x20).unwrap();
    let mut config = config.build();
    config.write(BAR0, &0xfebd_0fff_u32.to_le_bytes());
    config.write(BAR0 + 4, &0xc05f_u32.to_le_bytes());
    assert_eq!(config.bar_ranges(), [None; 6]);

    let effects = config.write(COMMAND, &COMMAND_MEMORY.to_le_bytes());
    assert!(effects.decode && !effects.bus_master && !effects.intx);
    let memory = (Space::Memory, Range::new(0xfebd_0000, 0x1000));
    assert_eq!(config.bar_range(0), Some(memory));
    assert_eq!(config.bar_range(1), None);

    config.write(COMMAND, &[COMMAND_IO as u8]);
    assert_eq!(config.bar_range(0), None);
    let ports = (Space::Port, Range::new(0xc040, 0x20));
    assert_eq!(config.bar_range(1), Some(ports));
    assert!(!config.write(BAR0, &[0; 4]).decode, "memory is off");
}

#[test]
fn what_sizing_leaves_in_a_bar_is_not_decoded() {
    let mut config = ConfigBuilder::endpoint(PROBE);
    let wide = BarKind::Memory64 {
        prefetchable: false,
    };
    config.bar(0, MEMORY, 0x1000).unwrap();
    config.bar(1, BarKind::Io, 0x20).unwrap();
    config.bar(2, wide, 0x4000).unwrap();
    let mut config = config.build();
    config.write(COMMAND, &[3]);
    assert_eq!(config.bar_ranges(), [None; 6], "address 0");
    config.write(BAR0, &[0xff; 16]);
    assert_eq!(config.bar_ranges(), [None; 6], "the end of each space");
}

#[test]
fn impossible_bars_are_refused() {
    let wide = BarKind::Memory64 {
        prefetchable: false,
    };
    let mut config = ConfigBuilder::endpoint(PROBE);
    for (bar, kind, size) in [
        (6, MEMORY, 0x1000),
        (5, wide, 0x1000),
        (0, MEMORY, 0x1001),
        (0, MEMORY, 0),
        (0, MEMORY, 8),
        (0, MEMORY, 1 << 32),
        (0, BarKind::Io, 2),
        (0, BarKind::Io, 0x2_0000),
    ] {
        let refused = config.bar(bar, kind, size).map(drop);
        assert!(
            matches!(refused, Err(PciError::BadBar { .. })),
            "{bar} {size:#x}"
        );
    }
    config.bar(2, wide, 0x1000).unwrap();
    assert!(config.bar(2, MEMORY, 0x1000).is_err());
    assert!(config.bar(3, MEMORY, 0x1000).is_err(), "the upper half");
    assert!(config.bar(1, wide, 0x1000).is_err());
    assert!(ConfigBuilder::bridge(PROBE).bar(2, MEMORY, 0x1000).is_err());
}

#[test]
fn capabilities_form_lists_that_software_can_walk() {
    let device = probe();
    let caps = [CAP_POWER_MANAGEMENT, CAP_MSIX, CAP_EXPRESS];
    assert_eq!(
        caps.map(|id| capability(&*device, id)),
        [Some(0x40), Some(0x48), Some(0x54)]
    );
    assert_eq!(capability(&*device, CAP_VENDOR), None);
    let serial = read32(&*device, 0x100);
    assert_eq!(serial, 0x10c << 20 | 1 << 16 | 3);
    assert_eq!(read32(&*device, 0x104), 0x5566_7788);
    assert_eq!(read32(&*device, 0x10c), 2 << 16 | 1, "AER is the last");
    assert_eq!(read32(&*device, 0xffc), 0);
}

#[test]
fn a_capability_that_does_not_fit_is_refused() {
    let mut config = ConfigBuilder::endpoint(PROBE);
    assert_eq!(config.vendor_capability(&[1, 2], &[]).unwrap(), 0x40);
    assert_eq!(config.build().u32(0x40), 0x0105_0009);
    assert!(config.vendor_capability(&[0; 253], &[]).is_err());
    assert!(config.capability(1, &[0; 0xbb], &[]).is_err());
    assert_eq!(config.capability(1, &[0; 0xb6], &[]).unwrap(), 0x48);
    assert!(config.capability(1, &[], &[]).is_err());
    assert!(config.serial_number(1).is_err(), "no PCI Express function");
}

#[test]
fn misplaced_msix_structures_are_refused() {
    let layout = MsixLayout {
        vectors: 4,
        bar: 0,
        table: 0,
        pba: 0x800,
    };
    let mut config = ConfigBuilder::endpoint(PROBE);
    assert!(config.msix(layout).is_err(), "no BAR");
    config.bar(0, MEMORY, 0x1000).unwrap();
    for wrong in [
        MsixLayout {
            vectors: 0,
            ..layout
        },
        MsixLayout {
            vectors: 2049,
            ..layout
        },
        MsixLayout {
            table: 0xfd0,
            ..layout
        },
        MsixLayout { table: 4, ..layout },
        MsixLayout {
            pba: 0x1000,
            ..layout
        },
        MsixLayout {
            pba: 0x38,
            ..layout
        },
    ] {
        assert!(config.msix(wrong).is_err(), "{wrong:?}");
    }
    let at = config.msix(layout).unwrap();
    let config = config.build();
    assert_eq!(config.u16(at + 2), 3);
    assert_eq!((config.u32(at + 4), config.u32(at + 8)), (0, 0x800));
}

#[test]
fn an_own_bar_holds_table_and_pending_bits() {
    for vectors in [1, 2, 64, 128, 129, 2048] {
        let (layout, size) = MsixLayout::own_bar(1, vectors);
        let mut config = ConfigBuilder::endpoint(PROBE);
        config.bar(1, MEMORY, size).unwrap();
        config.msix(layout).unwrap();
    }
    assert_eq!(MsixLayout::own_bar(0, 1).1, 0x1000);
    assert_eq!(MsixLayout::own_bar(0, 129).1, 0x2000);
}

#[test]
fn error_bits_are_cleared_by_ones_and_only_by_ones() {
    let mut config = ConfigBuilder::endpoint(PROBE).build();
    config.update(STATUS, 0xffff, 0x6000);
    config.write(STATUS, &0_u16.to_le_bytes());
    assert_eq!(config.u16(STATUS), 0x6000);
    config.write(STATUS, &0x2008_u16.to_le_bytes());
    assert_eq!(config.u16(STATUS), 0x4000);
}

#[test]
fn function_level_reset_is_asked_for_by_its_own_bit() {
    let device = probe();
    let at = capability(&*device, CAP_EXPRESS).unwrap();
    write16(&*device, at + 8, 0x7fff);
    assert_eq!(*device.resets.lock().unwrap(), 0);
    write32(&*device, at + 8, 0x8000);
    assert_eq!(*device.resets.lock().unwrap(), 1);
    assert_eq!(read32(&*device, at + 8) & 0x8000, 0);
}

#[test]
fn the_space_ends_where_it_ends() {
    let mut config = ConfigBuilder::endpoint(PROBE).build();
    let mut data = [0; 4];
    config.read(0xfe, &mut data);
    assert_eq!(data, [0, 0, 0xff, 0xff]);
    config.read(0xffff, &mut data);
    assert_eq!(data, [0xff; 4]);
    assert_eq!(config.write(0xffff, &[1, 2]), Effects::default());
}

#[test]
fn another_functions_registers_are_refused() {
    let mut config = ConfigBuilder::endpoint(PROBE);
    config.interrupt_pin(IntxPin::B);
    let mut config = config.build();
    let mut other = config.save();
    other.registers[2] ^= 1;
    let refused = config.restore("probe", &other).unwrap_err();
    assert!(refused.to_string().contains("differs at 0x2"), "{refused}");
    other.registers.pop();
    assert!(config.restore("probe", &other).is_err());
}
