//! Questions about descriptors: LAR, LSL, VERR, VERW, and ARPL (SDM vol. 2).

use x86::cr::{efer, rflags};

use crate::platform::Platform;
use crate::segment::{Descriptor, is_null, rpl, system_type};
use crate::state::Cpu;
use crate::stop::Stop;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Query {
    Lar,
    Lsl,
    Verr,
    Verw,
}

impl Cpu {
    /// Answers a query about a selector and sets ZF: the descriptor if it may be seen.
    ///
    /// # Errors
    /// Faults of reading the table.
    pub(crate) fn query(
        &mut self,
        p: &mut dyn Platform,
        selector: u16,
        query: Query,
    ) -> Result<Option<Descriptor>, Stop> {
        let found = if is_null(selector) {
            None
        } else {
            self.descriptor(p, selector)?
        };
        let long = self.efer & efer::LMA != 0;
        let seen = match found {
            Some(found) if visible(found.descriptor, query, long) => {
                let d = found.descriptor;
                let reaches = d.is_conforming() || d.dpl() >= self.cpl().max(rpl(selector));
                // In long mode the whole 16-byte descriptor must be inside of the table.
                let whole = d.s() || !long || self.descriptor_high(p, found, selector)?.is_some();
                (reaches && whole).then_some(d)
            }
            _ => None,
        };
        self.set_zero_flag(seen.is_some());
        Ok(seen)
    }

    pub(crate) fn set_zero_flag(&mut self, on: bool) {
        if on {
            self.rflags |= rflags::ZF;
        } else {
            self.rflags &= !rflags::ZF;
        }
    }
}

/// Whether this type of descriptor answers this query (SDM vol. 2A tables 3-53 and 3-62).
fn visible(d: Descriptor, query: Query, long: bool) -> bool {
    use system_type::{CALL, CALL16, LDT, TASK, TSS, TSS_BUSY, TSS16, TSS16_BUSY};
    if d.s() {
        return match query {
            Query::Lar | Query::Lsl => true,
            Query::Verr => d.is_readable(),
            Query::Verw => d.is_writable_data(),
        };
    }
    match (query, d.kind()) {
        (Query::Lar | Query::Lsl, LDT | TSS | TSS_BUSY) | (Query::Lar, CALL) => true,
        (Query::Lar | Query::Lsl, TSS16 | TSS16_BUSY) | (Query::Lar, CALL16 | TASK) => !long,
        _ => false,
    }
}
