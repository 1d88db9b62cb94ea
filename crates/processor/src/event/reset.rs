//! INIT and the start-up IPI (SDM vol. 3A 9.1.4, 9.4).

use x86::cr::{cr0, rflags};

use crate::event::debug;
use crate::segment::system_type;
use crate::state::{Cpu, Seg, reg, seg};

impl Cpu {
    /// What INIT does: as a reset, but x87 and SSE state, XCR0, MSRs and CR0's cache bits stay
    /// (SDM vol. 3A table 10-1). The local APIC and waiting for the start-up IPI are the
    /// caller's.
    pub fn init(&mut self) {
        let cache = self.cr0 & (cr0::CD | cr0::NW);
        let signature = self.cpuid.get(1, 0).map_or(0, |leaf| leaf.eax);
        self.gpr = [0; 16];
        self.gpr[reg::RDX] = signature.into();
        self.rip = 0xfff0;
        self.rflags = rflags::RESERVED_ONE;
        let data = Seg {
            base: 0,
            limit: 0xffff,
            selector: 0,
            attributes: Seg::P | Seg::S | 3,
        };
        self.segs = [data; 6];
        self.segs[seg::CS] = Seg {
            base: 0xffff_0000,
            selector: 0xf000,
            attributes: Seg::P | Seg::S | 0xb,
            ..data
        };
        self.tr = Seg {
            attributes: Seg::P | u16::from(system_type::TSS_BUSY),
            ..data
        };
        self.ldtr = Seg {
            attributes: Seg::P | u16::from(system_type::LDT),
            ..data
        };
        let table = x86::DescriptorTable {
            base: 0,
            limit: 0xffff,
        };
        self.gdtr = table;
        self.idtr = table;
        self.cr0 = cr0::ET | cache;
        self.cr2 = 0;
        self.cr3 = 0;
        self.cr4 = 0;
        self.efer = 0;
        self.pdptrs = [0; 4];
        self.dr = [0; 4];
        self.dr6 = debug::DR6_ONES;
        self.dr7 = debug::DR7_ONE;
        self.interrupt_shadow = 0;
        self.nmi_masked = false;
        self.pending = None;
        self.forget_answers();
        self.flush_tlb();
        self.update_mode();
    }

    /// What a start-up IPI with this vector does: real mode at `vector << 12`.
    pub fn sipi(&mut self, vector: u8) {
        self.segs[seg::CS] = Seg {
            base: u64::from(vector) << 12,
            limit: 0xffff,
            selector: u16::from(vector) << 8,
            attributes: Seg::P | Seg::S | 0xb,
        };
        self.rip = 0;
        self.update_mode();
    }
}
