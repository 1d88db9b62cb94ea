//! The LPC bridge's interrupt routing: where PCI's INTx wires end.
//!
//! ```text
//!   INTA# to INTD# of a slot ──▶ PIRQA to PIRQH ──┬─ I/O APIC: pin 16 to 23, always
//!                                                └─ PIC: the IRQ in PIRQx_ROUT, if enabled
//! ```
//!
//! The registers stand in the bridge's configuration space (ICH9 datasheet 13.1.16 and 13.1.19);
//! their owner keeps the bytes and asks this module what they mean.

/// Configuration space offsets of PIRQA_ROUT to PIRQH_ROUT.
pub const ROUT_REGISTERS: [u16; 8] = [0x60, 0x61, 0x62, 0x63, 0x68, 0x69, 0x6a, 0x6b];

/// A PIRQx_ROUT register after reset: not routed to the PIC.
pub const ROUT_RESET: u8 = 0x80;

/// The I/O APIC pin of PIRQA.
pub const FIRST_PIN: u32 = 16;

const NOT_ROUTED: u8 = 0x80;
const DEFINED: u8 = 0x8f;

/// What a PIRQx_ROUT register holds after `value` is written: reserved bits stay zero.
#[must_use]
pub fn rout_written(value: u8) -> u8 {
    value & DEFINED
}

/// The PIC interrupt that a PIRQx_ROUT register selects; `None` when it is off or names one of
/// the reserved interrupts 0, 1, 2, 8 and 13.
#[must_use]
pub fn irq(rout: u8) -> Option<u32> {
    let irq = rout & 0x0f;
    let usable = rout & NOT_ROUTED == 0 && !matches!(irq, 0 | 1 | 2 | 8 | 13);
    usable.then_some(u32::from(irq))
}

/// The I/O APIC pin of `pirq`, 0 for PIRQA to 7 for PIRQH.
#[must_use]
pub fn pin(pirq: u32) -> u32 {
    FIRST_PIN + (pirq & 7)
}

/// The PIRQ, 0 for PIRQA to 3 for PIRQD, of interrupt pin `intx` (0 for INTA#) of `slot` on the
/// root bus, by the usual rotation (PCI 3.0 section 2.2.6). Slots 25 and up are the chipset's
/// own: they use PIRQE to PIRQH as the board's _PRT must say too.
#[must_use]
pub fn pirq(slot: u32, intx: u32) -> u32 {
    let rotated = (slot.wrapping_add(intx)) & 3;
    if slot >= 25 { rotated + 4 } else { rotated }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_interrupts_and_the_off_bit() {
        let routed: Vec<u32> = (0..=0xff).filter_map(irq).collect();
        assert_eq!(
            routed[..11],
            [3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15],
            "{routed:?}"
        );
        assert_eq!(irq(ROUT_RESET), None);
        assert_eq!(irq(0x8b), None);
        assert_eq!(rout_written(0xff), 0x8f);
    }

    #[test]
    fn wires_rotate_over_the_slots() {
        assert_eq!([0, 1, 2, 3].map(|slot| pirq(slot, 0)), [0, 1, 2, 3]);
        assert_eq!([0, 1, 2, 3].map(|intx| pirq(2, intx)), [2, 3, 0, 1]);
        assert_eq!(pirq(31, 0), 7);
        assert_eq!(pin(pirq(31, 3)), FIRST_PIN + 6);
    }
}
