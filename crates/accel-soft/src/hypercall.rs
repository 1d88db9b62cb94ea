//! KVM's hypercalls (Linux's Documentation/virt/kvm/x86/hypercalls.rst).

use crate::lapic::{Delivery, Message, Target};
use crate::mailbox::bits;
use crate::platform::Around;

/// KVM_HC_KICK_CPU.
const KICK_CPU: u64 = 5;
/// KVM_HC_SEND_IPI.
const SEND_IPI: u64 = 10;
/// KVM_HC_SCHED_YIELD.
const SCHED_YIELD: u64 = 11;

/// -KVM_ENOSYS: there is no such call.
const NO_SUCH_CALL: u64 = -1000i64 as u64;
/// -KVM_EINVAL.
const INVALID: u64 = -22i64 as u64;

/// Bits of a word of the set of targets.
const WORD: u32 = 64;

pub(crate) fn execute(around: &mut Around, number: u64, [a0, a1, a2, a3]: [u64; 4]) -> u64 {
    match number {
        KICK_CPU => {
            let target = u32::try_from(a1).ok();
            if let Some(mailbox) = target.and_then(|id| around.shared.by_apic_id(id)) {
                mailbox.attend(bits::UNHALT);
            }
            0
        }
        SEND_IPI => send_ipi(around, [a0, a1], a2 as u32, a3 as u32),
        SCHED_YIELD => {
            std::thread::yield_now();
            0
        }
        _ => NO_SUCH_CALL,
    }
}

/// Sends the message of `icr` to the processors whose bit is set, the first bit being that of
/// APIC ID `first`. Returns how many it reached.
fn send_ipi(around: &mut Around, set: [u64; 2], first: u32, icr: u32) -> u64 {
    let delivery = match icr >> 8 & 7 {
        0 => Delivery::Fixed,
        4 => Delivery::Nmi,
        _ => return INVALID,
    };
    if delivery == Delivery::Fixed && icr as u8 <= 15 {
        return INVALID;
    }
    let mut count = 0;
    for (n, mut word) in (0..).zip(set) {
        while word != 0 {
            let bit = word.trailing_zeros();
            word &= word - 1;
            let Some(id) = first.checked_add(n * WORD + bit) else {
                continue;
            };
            let message = Message {
                vector: icr as u8,
                delivery,
                level: false,
                target: Target::Physical(id),
            };
            count += around.shared.deliver(message, Some(around.index)) as u64;
        }
    }
    count
}
