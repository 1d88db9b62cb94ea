//! Delivery through the gates of protected and of long mode (SDM vol. 3A 6.12, 6.14).

use x86::cr::rflags;

use crate::event::{Event, Source};
use crate::mmu::As;
use crate::platform::Platform;
use crate::segment::stack::Stack;
use crate::segment::{Descriptor, canonical, index, is_null, system_type};
use crate::state::{Cpu, Mode, Seg, reg, seg};
use crate::stop::{Exception, Stop};

/// Flags that the delivery through any gate clears.
const CLEARED: u64 = rflags::TF | rflags::NT | rflags::RF | rflags::VM;

/// Error code that points at an entry of the interrupt descriptor table.
fn idt_code(vector: u8, ext: u32) -> u32 {
    u32::from(vector) << 3 | 2 | ext
}

impl Cpu {
    /// Checks that gates of all sizes share; `kind_ok` says which types are gates.
    fn check_gate(&self, gate: Descriptor, event: &Event, kind_ok: bool) -> Result<(), Exception> {
        let code = idt_code(event.vector, event.ext());
        if gate.s() || !kind_ok {
            return Err(Exception::gp(code));
        }
        if event.source == Source::Software && gate.dpl() < self.cpl() {
            return Err(Exception::gp(code));
        }
        if !gate.present() {
            return Err(Exception::with_code(Exception::NP, code));
        }
        Ok(())
    }

    /// The code segment that a gate names: selector and descriptor, as a segment register holds
    /// it, its DPL being at most CPL.
    fn gate_code(
        &mut self,
        p: &mut dyn Platform,
        gate: Descriptor,
        ext: u32,
    ) -> Result<Descriptor, Stop> {
        let selector = gate.gate_selector();
        if is_null(selector) {
            return Err(Exception::gp(ext).into());
        }
        let gp = Exception::gp(index(selector) | ext);
        let found = self.descriptor(p, selector)?.ok_or(gp)?;
        let d = found.descriptor;
        let long = self.mode.has(Mode::LONG);
        if !d.is_code() || d.dpl() > self.cpl() || (long && (!d.long() || d.db())) {
            return Err(gp.into());
        }
        if !d.present() {
            return Err(Exception::with_code(Exception::NP, index(selector) | ext).into());
        }
        self.mark_accessed(p, found)
    }

    fn pushed_flags(&self, event: &Event) -> u64 {
        if event.resume {
            self.rflags | rflags::RF
        } else {
            self.rflags
        }
    }

    /// Delivery in long mode.
    pub(super) fn deliver_long(&mut self, p: &mut dyn Platform, event: &Event) -> Result<(), Stop> {
        let ext = event.ext();
        let offset = u32::from(event.vector) * 16;
        if offset + 15 > u32::from(self.idtr.limit) {
            return Err(Exception::gp(idt_code(event.vector, ext)).into());
        }
        let at = self.idtr.base.wrapping_add(offset.into());
        let gate = Descriptor(self.read::<u64>(p, at, As::System)?);
        let high = self.read::<u64>(p, at.wrapping_add(8), As::System)?;
        let kind = gate.kind();
        let kind_ok = matches!(kind, system_type::INTERRUPT | system_type::TRAP);
        self.check_gate(gate, event, kind_ok)?;
        let d = self.gate_code(p, gate, ext)?;
        let old_cpl = self.cpl();
        let cpl = if d.is_conforming() { old_cpl } else { d.dpl() };
        let target = gate.gate_offset() | high << 32;
        if !canonical(target) {
            return Err(Exception::gp(ext).into());
        }
        let ist = (gate.0 >> 32 & 7) as u32;
        let sp = if ist != 0 {
            self.tss_pointer(p, 3 + ist, ext)?
        } else if cpl < old_cpl {
            self.tss_pointer(p, cpl.into(), ext)?
        } else {
            self.gpr[reg::RSP]
        };
        let as_ = if cpl == 3 { As::Current } else { As::System };
        let mut stack = Stack::long(sp & !0xf, as_, ext);
        let frame = [
            u64::from(self.segs[seg::SS].selector),
            self.gpr[reg::RSP],
            self.pushed_flags(event),
            u64::from(self.segs[seg::CS].selector),
            event.rip,
            u64::from(event.error_code.unwrap_or(0)),
        ];
        let len = if event.error_code.is_some() { 6 } else { 5 };
        stack.push(self, p, &frame[..len], 8)?;

        if cpl != old_cpl {
            self.segs[seg::SS] = Seg::null(cpl.into(), cpl);
        }
        self.gpr[reg::RSP] = stack.sp;
        self.enter(gate, d, cpl, target);
        Ok(())
    }

    /// The last steps of every delivery: flags, CS and RIP.
    fn enter(&mut self, gate: Descriptor, code: Descriptor, cpl: u8, rip: u64) {
        self.rflags &= !CLEARED;
        // Interrupt gates have bit 0 of their type clear.
        if gate.kind() & 1 == 0 {
            self.rflags &= !rflags::IF;
        }
        self.rip = rip;
        self.set_code(code.seg(gate.gate_selector()), cpl);
    }

    /// Delivery in protected mode, from virtual-8086 mode too.
    pub(super) fn deliver_protected(
        &mut self,
        p: &mut dyn Platform,
        event: &Event,
    ) -> Result<(), Stop> {
        let ext = event.ext();
        let offset = u32::from(event.vector) * 8;
        if offset + 7 > u32::from(self.idtr.limit) {
            return Err(Exception::gp(idt_code(event.vector, ext)).into());
        }
        let at = self.system_address(self.idtr.base.wrapping_add(offset.into()));
        let gate = Descriptor(self.read::<u64>(p, at, As::System)?);
        let kind = gate.kind();
        let kind_ok = matches!(
            kind,
            system_type::TASK
                | system_type::INTERRUPT
                | system_type::TRAP
                | system_type::INTERRUPT16
                | system_type::TRAP16
        );
        self.check_gate(gate, event, kind_ok)?;
        if kind == system_type::TASK {
            self.refuse_task("task gate");
            return Err(
                Exception::with_code(Exception::TS, index(gate.gate_selector()) | ext).into(),
            );
        }
        let size = if kind & 8 != 0 { 4 } else { 2 };
        let target = if size == 4 {
            gate.gate_offset()
        } else {
            gate.gate_offset() & 0xffff
        };
        let d = self.gate_code(p, gate, ext)?;
        let old_cpl = self.cpl();
        let vm86 = self.mode.has(Mode::VM86);
        let inner = !d.is_conforming() && d.dpl() < old_cpl;
        if vm86 && (!inner || d.dpl() != 0) {
            return Err(Exception::gp(index(gate.gate_selector()) | ext).into());
        }
        self.check_rip(&d.seg(0), target, ext)?;
        let mut frame = [0u64; 10];
        let mut len = 0;
        let mut add = |values: &[u64]| {
            for value in values {
                if let Some(slot) = frame.get_mut(len) {
                    *slot = *value;
                    len += 1;
                }
            }
        };
        let selector = |which: usize| u64::from(self.segs[which].selector);
        if vm86 {
            add(&[seg::GS, seg::FS, seg::DS, seg::ES].map(selector));
        }
        if inner {
            add(&[selector(seg::SS), self.gpr[reg::RSP]]);
        }
        let flags = self.pushed_flags(event);
        add(&[flags, selector(seg::CS), event.rip]);
        if let Some(code) = event.error_code {
            add(&[code.into()]);
        }
        let cpl = if inner { d.dpl() } else { old_cpl };
        let (ss, mut stack) = if inner {
            let (ss, sp) = self.tss_stack(p, cpl, ext)?;
            let ss = self.stack_segment(p, ss, cpl, Exception::TS, ext)?;
            (ss, Stack::inner(ss, sp, ext))
        } else {
            (self.segs[seg::SS], Stack::for_event(self, ext))
        };
        stack.push(self, p, &frame[..len], size)?;

        self.segs[seg::SS] = ss;
        stack.commit(self);
        if vm86 {
            for which in [seg::GS, seg::FS, seg::DS, seg::ES] {
                self.segs[which] = Seg::null(0, 0);
            }
        }
        self.enter(gate, d, cpl, target);
        Ok(())
    }
}
