//! Far jumps, calls and returns (SDM vol. 2A "CALL", "JMP", vol. 2B "RET"; vol. 3A 5.8).

use x86::cr::{efer, rflags};

use crate::mmu::As;
use crate::platform::Platform;
use crate::segment::stack::Stack;
use crate::segment::{
    Descriptor, Found, canonical, index, is_null, real_segment, rpl, system_type,
};
use crate::state::{Cpu, Seg, seg};
use crate::stop::{Exception, Stop};

/// Where a far transfer goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub(crate) selector: u16,
    pub(crate) offset: u64,
    /// Operand size in bytes: 2, 4 or 8.
    pub(crate) size: usize,
}

/// A call gate, read and checked.
struct Gate {
    selector: u16,
    offset: u64,
    size: usize,
    parameters: usize,
}

impl Cpu {
    fn long_active(&self) -> bool {
        self.efer & efer::LMA != 0
    }

    /// Whether this instruction pointer may be used in this code segment: #GP(0) if not.
    pub(crate) fn check_rip(&self, code: &Seg, rip: u64, ext: u32) -> Result<(), Exception> {
        let fits = if self.long_active() && code.attributes & Seg::L != 0 {
            canonical(rip)
        } else {
            rip <= u64::from(code.limit)
        };
        if fits {
            Ok(())
        } else {
            Err(Exception::gp(ext))
        }
    }

    /// Whether L and D are both set, which long mode forbids.
    pub(crate) fn bad_size(&self, d: Descriptor) -> bool {
        self.long_active() && d.long() && d.db()
    }

    /// What both real and virtual-8086 mode load into CS.
    pub(crate) fn real_code(&self, selector: u16) -> Seg {
        if self.rflags & rflags::VM != 0 {
            Seg::vm86(selector)
        } else {
            real_segment(self.segs[seg::CS], selector)
        }
    }

    /// A far jump.
    ///
    /// # Errors
    /// #GP, #NP, #PF.
    pub(crate) fn far_jump(&mut self, p: &mut dyn Platform, to: Target) -> Result<(), Stop> {
        let offset = to.offset & mask(to.size);
        if self.real_segments() {
            let code = self.real_code(to.selector);
            self.check_rip(&code, offset, 0)?;
            self.set_code_real(code);
            self.rip = offset;
            return Ok(());
        }
        let cpl = self.cpl();
        let found = self.far_target(p, to.selector)?;
        let (selector, offset, found) = if found.descriptor.s() {
            (to.selector, offset, found)
        } else {
            let gate = self.call_gate(p, to.selector, found, "JMP")?;
            let found = self.far_target(p, gate.selector)?;
            self.check_gate_code(gate.selector, found.descriptor)?;
            let d = found.descriptor;
            if !d.is_conforming() && d.dpl() != cpl {
                return Err(Exception::gp(index(gate.selector)).into());
            }
            (gate.selector & !3, gate.offset, found)
        };
        let code = self.direct_code(p, selector, found)?;
        self.check_rip(&code, offset, 0)?;
        self.set_code(code, cpl);
        self.rip = offset;
        Ok(())
    }

    /// A far call that returns to `next`.
    ///
    /// # Errors
    /// #GP, #NP, #SS, #TS, #PF.
    pub(crate) fn far_call(
        &mut self,
        p: &mut dyn Platform,
        to: Target,
        next: u64,
    ) -> Result<(), Stop> {
        let offset = to.offset & mask(to.size);
        let cpl = self.cpl();
        let back = [u64::from(self.segs[seg::CS].selector), next];
        let mut stack = Stack::current(self);
        if self.real_segments() {
            let code = self.real_code(to.selector);
            self.check_rip(&code, offset, 0)?;
            stack.push(self, p, &back, to.size)?;
            stack.commit(self);
            self.set_code_real(code);
            self.rip = offset;
            return Ok(());
        }
        let found = self.far_target(p, to.selector)?;
        let (selector, offset, size, found) = if found.descriptor.s() {
            (to.selector, offset, to.size, found)
        } else {
            let gate = self.call_gate(p, to.selector, found, "CALL")?;
            let found = self.far_target(p, gate.selector)?;
            self.check_gate_code(gate.selector, found.descriptor)?;
            if !found.descriptor.is_conforming() && found.descriptor.dpl() < cpl {
                return self.call_inner(p, &gate, found, back);
            }
            (gate.selector & !3, gate.offset, gate.size, found)
        };
        let code = self.direct_code(p, selector, found)?;
        // The frame is pushed by the stack of the code that calls, in the size of what is called.
        if self.long_active() && code.attributes & Seg::L != 0 && !self.code64() {
            stack = Stack::long(stack.sp & 0xffff_ffff, As::Current, 0);
        }
        self.check_rip(&code, offset, 0)?;
        stack.push(self, p, &back, size)?;
        stack.commit(self);
        self.set_code(code, cpl);
        self.rip = offset;
        Ok(())
    }

    /// A call through a gate to an inner privilege level: onto the stack that the TSS names.
    fn call_inner(
        &mut self,
        p: &mut dyn Platform,
        gate: &Gate,
        found: Found,
        back: [u64; 2],
    ) -> Result<(), Stop> {
        let d = found.descriptor;
        if !d.present() {
            return Err(Exception::with_code(Exception::NP, index(gate.selector)).into());
        }
        let cpl = d.dpl();
        let old = Stack::current(self);
        let old_ss = u64::from(self.segs[seg::SS].selector);
        let (ss, mut stack) = if self.long_active() {
            let sp = self.tss_pointer(p, cpl.into(), 0)?;
            (Seg::null(cpl.into(), cpl), Stack::long(sp, As::System, 0))
        } else {
            let (selector, sp) = self.tss_stack(p, cpl, 0)?;
            let ss = self.stack_segment(p, selector, cpl, Exception::TS, 0)?;
            (ss, Stack::inner(ss, sp, 0))
        };
        let mut frame = vec![old_ss, self.gpr[crate::state::reg::RSP]];
        if gate.parameters > 0 {
            let mut from = old;
            let mut parameters = Vec::with_capacity(gate.parameters);
            for _ in 0..gate.parameters {
                let [value] = from.pop::<1>(self, p, gate.size)?;
                parameters.push(value);
            }
            frame.extend(parameters.iter().rev());
        }
        frame.extend(back);
        let code = self.mark_accessed(p, found)?.seg(gate.selector);
        self.check_rip(&code, gate.offset, 0)?;
        stack.push(self, p, &frame, gate.size)?;
        self.segs[seg::SS] = ss;
        self.set_code(code, cpl);
        stack.commit(self);
        self.rip = gate.offset;
        Ok(())
    }

    /// A far return that drops `release` bytes of parameters.
    ///
    /// # Errors
    /// #GP, #NP, #SS, #PF.
    pub(crate) fn far_return(
        &mut self,
        p: &mut dyn Platform,
        size: usize,
        release: u64,
    ) -> Result<(), Stop> {
        let mut stack = Stack::current(self);
        let [rip, selector] = stack.pop::<2>(self, p, size)?;
        let selector = selector as u16;
        if self.real_segments() {
            let code = self.real_code(selector);
            self.check_rip(&code, rip, 0)?;
            stack.release(release);
            stack.commit(self);
            self.set_code_real(code);
            self.rip = rip;
            return Ok(());
        }
        let code = self.return_code(p, selector)?;
        if rpl(selector) == self.cpl() {
            self.check_rip(&code, rip, 0)?;
            stack.release(release);
            stack.commit(self);
            self.set_code(code, rpl(selector));
            self.rip = rip;
            return Ok(());
        }
        stack.release(release);
        let [sp, ss] = stack.pop::<2>(self, p, size)?;
        self.return_outer(p, code, rip, ss as u16, sp, release)
    }

    /// The last part of a return to an outer level: new stack, null selectors for what the outer
    /// level may not use.
    pub(crate) fn return_outer(
        &mut self,
        p: &mut dyn Platform,
        code: Seg,
        rip: u64,
        ss: u16,
        sp: u64,
        release: u64,
    ) -> Result<(), Stop> {
        let cpl = rpl(code.selector);
        let stack = self.return_stack(p, &code, ss)?;
        self.check_rip(&code, rip, 0)?;
        self.segs[seg::SS] = stack;
        self.set_code(code, cpl);
        self.drop_inner_segments(cpl);
        let mask = self.stack_mask();
        crate::segment::stack::set_pointer(self, sp.wrapping_add(release), mask);
        self.rip = rip;
        Ok(())
    }

    /// SS for a return into `code`.
    pub(crate) fn return_stack(
        &mut self,
        p: &mut dyn Platform,
        code: &Seg,
        selector: u16,
    ) -> Result<Seg, Stop> {
        let cpl = rpl(code.selector);
        let to_long = self.long_active() && code.attributes & Seg::L != 0;
        if is_null(selector) && to_long && cpl != 3 && rpl(selector) == cpl {
            return Ok(Seg::null(selector, cpl));
        }
        self.stack_segment(p, selector, cpl, Exception::GP, 0)
    }

    /// CS for a return to `selector`.
    pub(crate) fn return_code(&mut self, p: &mut dyn Platform, selector: u16) -> Result<Seg, Stop> {
        let found = self.far_target(p, selector)?;
        let d = found.descriptor;
        let gp = Exception::gp(index(selector));
        let level = rpl(selector);
        let right = if d.is_conforming() {
            d.dpl() <= level
        } else {
            d.dpl() == level
        };
        if !d.is_code() || level < self.cpl() || !right || self.bad_size(d) {
            return Err(gp.into());
        }
        if !d.present() {
            return Err(Exception::with_code(Exception::NP, index(selector)).into());
        }
        Ok(self.mark_accessed(p, found)?.seg(selector))
    }

    /// After a transfer to an outer level: data segments of inner levels become null.
    fn drop_inner_segments(&mut self, cpl: u8) {
        for which in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let s = &mut self.segs[which];
            let conforming = s.attributes & 0xc == 0xc;
            if s.attributes & Seg::UNUSABLE == 0 && s.dpl() < cpl && !conforming {
                *s = Seg {
                    base: s.base,
                    ..Seg::null(0, 0)
                };
            }
        }
    }

    /// The descriptor that a far transfer names.
    fn far_target(&mut self, p: &mut dyn Platform, selector: u16) -> Result<Found, Stop> {
        if is_null(selector) {
            return Err(Exception::gp(0).into());
        }
        let found = self.descriptor(p, selector)?;
        found.ok_or_else(|| Exception::gp(index(selector)).into())
    }

    /// Checks of a code segment that is called or jumped to without a change of privilege.
    fn direct_code(
        &mut self,
        p: &mut dyn Platform,
        selector: u16,
        found: Found,
    ) -> Result<Seg, Stop> {
        let d = found.descriptor;
        let cpl = self.cpl();
        let right = if d.is_conforming() {
            d.dpl() <= cpl
        } else {
            rpl(selector) <= cpl && d.dpl() == cpl
        };
        if !d.is_code() || !right || self.bad_size(d) {
            return Err(Exception::gp(index(selector)).into());
        }
        if !d.present() {
            return Err(Exception::with_code(Exception::NP, index(selector)).into());
        }
        Ok(self.mark_accessed(p, found)?.seg(selector))
    }

    /// Reads a call gate and checks who may use it.
    fn call_gate(
        &mut self,
        p: &mut dyn Platform,
        selector: u16,
        found: Found,
        what: &str,
    ) -> Result<Gate, Stop> {
        let gp = Exception::gp(index(selector));
        let d = found.descriptor;
        let long = self.long_active();
        match d.kind() {
            system_type::CALL => {}
            system_type::CALL16 if !long => {}
            system_type::TASK | system_type::TSS16 | system_type::TSS if !long => {
                self.refuse_task(what);
                return Err(gp.into());
            }
            _ => return Err(gp.into()),
        }
        if d.dpl() < self.cpl().max(rpl(selector)) {
            return Err(gp.into());
        }
        if !d.present() {
            return Err(Exception::with_code(Exception::NP, index(selector)).into());
        }
        let low = d.gate_offset();
        if !long {
            let wide = d.kind() == system_type::CALL;
            return Ok(Gate {
                selector: d.gate_selector(),
                offset: if wide { low } else { low & 0xffff },
                size: if wide { 4 } else { 2 },
                parameters: (d.0 >> 32 & 0x1f) as usize,
            });
        }
        let high = self.descriptor_high(p, found, selector)?.ok_or(gp)?;
        // The type field of the upper half must be zero, so that it is no descriptor by itself.
        if high >> 40 & 0x1f != 0 {
            return Err(gp.into());
        }
        Ok(Gate {
            selector: d.gate_selector(),
            offset: low | high << 32,
            size: 8,
            parameters: 0,
        })
    }

    /// Checks of the code segment that a call gate names.
    fn check_gate_code(&self, selector: u16, d: Descriptor) -> Result<(), Exception> {
        let gp = Exception::gp(index(selector));
        if !d.is_code() || d.dpl() > self.cpl() {
            return Err(gp);
        }
        if self.long_active() && (!d.long() || d.db()) {
            return Err(gp);
        }
        Ok(())
    }

    /// CS in real or virtual-8086 mode.
    pub(crate) fn set_code_real(&mut self, code: Seg) {
        self.segs[seg::CS] = code;
        self.update_mode();
    }
}

/// Bits of an operand of this size.
pub(crate) fn mask(size: usize) -> u64 {
    match size {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => !0,
    }
}
