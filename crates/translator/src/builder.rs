//! One block in the making: the state that all parts of the translator share, and the ways out.

use iced_x86::{Encoder, Instruction};
use processor::Mode;

use crate::emit::{Asm, Cond, Mem, Reg, host};
use crate::exits::{Exit, Kind};
use crate::flags;
use crate::frame::frame;
use crate::thunks::find_jump;

/// Why an instruction is left to the interpreter, or a block is not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused;

/// What the host and the user decided.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    /// PEXT, PDEP and RORX exist.
    pub(crate) bmi2: bool,
    /// All flags are kept at each instruction.
    pub(crate) exact_flags: bool,
    /// Offset in the cache at which the block will lie.
    pub(crate) base: usize,
    /// Address of offset zero of the cache.
    pub(crate) origin: u64,
    /// Offset of the thunk that returns to Rust.
    pub(crate) exit: usize,
    /// Offset of the thunk that loads the vector registers.
    pub(crate) vectors: usize,
    /// Offset of the thunk of likely jumps that lead elsewhere.
    pub(crate) elsewhere: usize,
    /// Offset of the thunk that finds the stack's page.
    pub(crate) stack: usize,
    /// Number of the block's first exit.
    pub(crate) first_exit: usize,
    /// View of the soft TLB.
    pub(crate) view: usize,
    /// The mode of the code.
    pub(crate) mode: Mode,
    /// The platform's time stamp counter is the host's.
    pub(crate) host_tsc: bool,
}

/// Code out of the way, to be written behind the block.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cold {
    /// A missed look-up; the jump there is at `from`.
    Miss {
        from: usize,
        address: Reg,
        flags_pushed: bool,
        exit: Exit,
    },
    /// Another page of the stack: an attempt by way of the TLB.
    Stack {
        from: usize,
        back: usize,
        address: Reg,
        exit: Exit,
    },
    /// A likely jump leads elsewhere.
    Elsewhere {
        from: usize,
        constant: usize,
        operand: usize,
    },
    /// An exit.
    Exit {
        from: usize,
        flags_pushed: bool,
        exit: Exit,
    },
    /// A conditional jump was taken.
    Taken {
        from: usize,
        target: u64,
        retired: u16,
        /// Flags that are wanted there.
        live: u32,
    },
    /// The vector registers are not loaded.
    Vectors {
        from: usize,
        back: usize,
        exit: Exit,
    },
}

/// A block in the making.
pub(crate) struct Builder<'a> {
    pub(crate) asm: Asm,
    pub(crate) encoder: &'a mut Encoder,
    pub(crate) target: Target,
    pub(crate) cold: Vec<Cold>,
    pub(crate) exits: Vec<Exit>,
    /// Offsets, in the cache, of code that may fault on the host, with the exits to take then.
    pub(crate) faults: Vec<(u32, u32)>,
    /// Guest address of the block, and its page.
    pub(crate) linear: u64,
    /// Position of the block's body in its code.
    pub(crate) body: usize,
    /// Position of the body behind the look at the vector registers.
    pub(crate) again: usize,
    /// The vector registers are known to be loaded.
    pub(crate) vectors: bool,
    /// Of the instruction at hand: its address,
    pub(crate) rip: u64,
    /// how many are completed before it,
    pub(crate) done: u16,
    /// position of its code,
    pub(crate) start: usize,
    /// whether it has looked up an address already,
    pub(crate) looked_up: bool,
    /// whether the vector registers were loaded there,
    pub(crate) vectors_at_start: bool,
    /// flags that are wanted when it begins,
    pub(crate) live_before: u32,
    /// and where it jumps to.
    pub(crate) live_target: u32,
}

impl Builder<'_> {
    /// Whether arithmetic flags must survive until the instruction at hand executes.
    pub(crate) fn flags_live(&self) -> bool {
        self.target.exact_flags || self.live_before & flags::ARITHMETIC != 0
    }

    /// Offset in the cache of a position in the block.
    pub(crate) fn offset(&self, position: usize) -> u32 {
        (self.target.base + position) as u32
    }

    fn link_offset(&mut self, operand: usize, offset: usize) {
        let target = offset as i64 - self.target.base as i64;
        self.asm.link(operand, target);
    }

    /// A host instruction by the encoder.
    pub(crate) fn encode(&mut self, i: &Instruction) -> Result<(), Refused> {
        let code = std::mem::take(&mut self.asm.code);
        let len = code.len();
        self.encoder.set_buffer(code);
        let result = self.encoder.encode(i, 0);
        self.asm.code = self.encoder.take_buffer();
        if result.is_err() {
            self.asm.code.truncate(len);
            return Err(Refused);
        }
        Ok(())
    }

    /// Whether the flags that are wanted at a jump's target may be destroyed.
    fn free_at_target(&self) -> bool {
        !self.target.exact_flags && self.live_target & flags::ARITHMETIC == 0
    }

    /// Counts completed instructions. RCX is lost, and the flags if nobody wants them.
    pub(crate) fn retire(&mut self, count: u16) {
        if count == 0 {
            return;
        }
        if self.free_at_target() {
            self.asm.add_to(frame!(retired), i32::from(count));
        } else {
            self.asm.load(host::RCX, frame!(retired));
            self.asm
                .lea(host::RCX, Mem::at(host::RCX, i32::from(count)));
            self.asm.store(frame!(retired), host::RCX);
        }
    }

    fn exit_here(&self, kind: Kind) -> Exit {
        Exit {
            rip: self.rip,
            retired: self.done,
            kind,
        }
    }

    /// Loads a number of an exit and leaves.
    fn leave(&mut self, exit: Exit) {
        let number = self.target.first_exit + self.exits.len();
        self.exits.push(exit);
        self.asm.constant(host::RCX, number as u64);
        let jump = self.asm.jmp();
        self.link_offset(jump, self.target.exit);
    }

    /// Leaves the instruction at hand, and what follows, to the interpreter.
    pub(crate) fn interpret(&mut self) {
        let exit = self.exit_here(Kind::Interpret);
        self.leave(exit);
    }

    /// The instruction at hand goes to the interpreter if the condition holds.
    pub(crate) fn interpret_if(&mut self, cond: Cond) {
        let from = self.asm.jcc(cond);
        self.interpret_from(from, false);
    }

    /// A jump that was written leads to where the instruction at hand goes to the interpreter.
    pub(crate) fn interpret_from(&mut self, from: usize, flags_pushed: bool) {
        self.leave_from(from, Kind::Interpret, flags_pushed);
    }

    /// A jump that was written leads to this exit, with nothing of the instruction at hand done.
    pub(crate) fn leave_from(&mut self, from: usize, kind: Kind, flags_pushed: bool) {
        let exit = self.exit_here(kind);
        self.cold.push(Cold::Exit {
            from,
            flags_pushed,
            exit,
        });
    }

    fn miss_exit(&mut self, size: usize, write: bool, stack: bool) -> Exit {
        let exit = self.exit_here(Kind::Miss {
            write,
            size: size as u16,
            resume: self.offset(self.start),
            vectors: self.vectors_at_start,
            second: self.looked_up,
            stack,
        });
        self.looked_up = true;
        exit
    }

    /// A missed look-up of the TLB; the jump was written.
    pub(crate) fn miss(&mut self, from: usize, address: Reg, access: (usize, bool), pushed: bool) {
        let exit = self.miss_exit(access.0, access.1, false);
        self.cold.push(Cold::Miss {
            from,
            address,
            flags_pushed: pushed,
            exit,
        });
    }

    /// The page of the stack is another; the jump was written. The look-up begins at `back`.
    pub(crate) fn stack_miss(
        &mut self,
        (from, back): (usize, usize),
        address: Reg,
        access: (usize, bool),
    ) {
        let exit = self.miss_exit(access.0, access.1, true);
        self.cold.push(Cold::Stack {
            from,
            back,
            address,
            exit,
        });
    }

    /// The host instruction that comes next may fault; the guest's then goes to the interpreter.
    pub(crate) fn may_fault(&mut self) {
        let number = self.target.first_exit + self.exits.len();
        let exit = self.exit_here(Kind::Interpret);
        self.exits.push(exit);
        self.faults
            .push((self.offset(self.asm.here()), number as u32));
    }

    /// Leaves when somebody wants the thread; `rip` is where the guest stands. Flags stay if
    /// somebody wants them.
    pub(crate) fn poll(&mut self, rip: u64) {
        self.asm.load(host::RCX, frame!(attention));
        let free = self.free_at_target();
        let (from, quiet) = if free {
            self.asm.compare32(Mem::at(host::RCX, 0), 0);
            (self.asm.jcc(Cond::NE), None)
        } else {
            self.asm.load32(host::RCX, Mem::at(host::RCX, 0));
            let quiet = self.asm.jrcxz();
            (self.asm.jmp(), Some(quiet))
        };
        self.cold.push(Cold::Exit {
            from,
            flags_pushed: false,
            exit: Exit {
                rip,
                retired: 0,
                kind: Kind::Attention,
            },
        });
        if let Some(quiet) = quiet {
            let _reaches = self.asm.land(quiet);
        }
    }

    /// Whether an address is in the block's page.
    pub(crate) fn in_page(&self, target: u64) -> bool {
        target >> 12 == self.linear >> 12
    }

    /// Ends this path of the block: the guest goes on at a constant address, `count`
    /// instructions completed.
    pub(crate) fn go(&mut self, target: u64, count: u16) {
        self.retire(count);
        if !self.in_page(target) {
            self.go_far(target);
            return;
        }
        if target <= self.rip {
            self.poll(target);
        }
        let operand = self.asm.jmp();
        if target == self.linear {
            self.asm.link(operand, self.again as i64);
            return;
        }
        // Until it is linked, it leads to what follows.
        self.asm.link_here(operand);
        let stub = self.offset(self.asm.here());
        let operand = self.offset(operand);
        self.leave(Exit {
            rip: target,
            retired: 0,
            kind: Kind::Link { operand, stub },
        });
    }

    /// Goes on in another page by way of the jump cache.
    pub(crate) fn go_far(&mut self, target: u64) {
        self.linear_constant(host::R14, target);
        self.go_likely(0);
    }

    /// An address that moves with the code's page; at most a little more than 2 GiB from it.
    /// Flags stay.
    pub(crate) fn linear_constant(&mut self, to: Reg, value: u64) {
        let distance = value.wrapping_sub(self.linear & !0xfff) as i64;
        self.asm.load(to, frame!(page));
        let half = (distance / 2) as i32;
        match i32::try_from(distance) {
            Ok(distance) => self.asm.lea(to, Mem::at(to, distance)),
            Err(_) => {
                self.asm.lea(to, Mem::at(to, half));
                let rest = (distance - i64::from(half)) as i32;
                self.asm.lea(to, Mem::at(to, rest));
            }
        }
    }

    /// The beginning of a block for entries by the jump cache: RIP is in R14.
    pub(crate) fn entry(&mut self) {
        let offset = (self.linear & 0xfff) as i32;
        self.asm.lea(host::RCX, Mem::at(host::R14, -offset));
        self.asm.store(frame!(page), host::RCX);
        self.poll(self.linear);
    }

    /// Ends the block: the guest goes on at the address in R14, which is likely always the same.
    /// The code keeps that address, with the key of the mode and the epoch in which it was found,
    /// and has a direct jump to what was found.
    pub(crate) fn go_likely(&mut self, count: u16) {
        self.retire(count);
        self.asm.load(host::R15, frame!(key));
        let constant = self.asm.constant_later(host::RCX);
        self.asm.lea(host::R15, Mem::sum(host::R15, host::R14, 0));
        self.asm.lea(host::RCX, Mem::sum(host::RCX, host::R15, 0));
        let same = self.asm.jrcxz();
        let from = self.asm.jmp();
        let _reaches = self.asm.land(same);
        let operand = self.asm.jmp();
        self.cold.push(Cold::Elsewhere {
            from,
            constant,
            operand,
        });
    }

    /// Ends the block: the guest goes on at the address in R14.
    pub(crate) fn go_indirect(&mut self, count: u16) {
        self.retire(count);
        let hit = find_jump(&mut self.asm, self.target.bmi2);
        self.leave(Exit {
            rip: 0,
            retired: 0,
            kind: Kind::Indirect,
        });
        let _reaches = self.asm.land(hit);
        self.asm.jmp_mem(Mem::at(host::R15, 8));
    }

    /// A conditional jump; `count` instructions are completed with it. Goes on behind it.
    pub(crate) fn branch(&mut self, cond: Cond, target: u64, count: u16) {
        if self.in_page(target) && target <= self.rip {
            let over = self.asm.jcc(cond.not());
            self.go(target, count);
            self.asm.link_here(over);
        } else {
            let from = self.asm.jcc(cond);
            self.cold.push(Cold::Taken {
                from,
                target,
                retired: count,
                live: self.live_target,
            });
        }
    }

    /// Goes on at a constant address, by code out of the way.
    pub(crate) fn go_cold(&mut self, target: u64, count: u16) {
        let from = self.asm.jmp();
        self.cold.push(Cold::Taken {
            from,
            target,
            retired: count,
            live: self.live_target,
        });
    }

    /// Makes sure that the vector registers are loaded, at the beginning of an instruction.
    pub(crate) fn need_vectors(&mut self) {
        if self.vectors {
            return;
        }
        self.vectors = true;
        self.asm.load(host::RCX, frame!(vectors_away));
        let loaded = self.asm.jrcxz();
        let from = self.asm.jmp();
        let _reaches = self.asm.land(loaded);
        let exit = self.exit_here(Kind::Interpret);
        self.cold.push(Cold::Vectors {
            from,
            back: self.asm.here(),
            exit,
        });
    }

    /// Writes what is out of the way. Nothing comes after it.
    pub(crate) fn finish(&mut self) {
        let mut next = 0;
        // Writing some of it may add more.
        while let Some(cold) = self.cold.get(next).copied() {
            next += 1;
            match cold {
                Cold::Miss {
                    from,
                    address,
                    flags_pushed,
                    exit,
                } => {
                    self.asm.link_here(from);
                    if flags_pushed {
                        self.asm.popfq();
                    }
                    self.asm.mov(host::R14, address);
                    self.leave(exit);
                }
                Cold::Stack {
                    from,
                    back,
                    address,
                    exit,
                } => {
                    self.asm.link_here(from);
                    self.asm.mov(host::R14, address);
                    let number = self.target.first_exit + self.exits.len();
                    self.exits.push(exit);
                    self.asm.constant(host::R15, number as u64);
                    let operand = self.asm.lea_code(host::RCX);
                    self.asm.link(operand, back as i64);
                    let jump = self.asm.jmp();
                    self.link_offset(jump, self.target.stack);
                }
                Cold::Elsewhere {
                    from,
                    constant,
                    operand,
                } => {
                    self.asm.link_here(from);
                    self.asm.link_here(operand);
                    let kind = Kind::Likely {
                        constant: self.offset(constant),
                        operand: self.offset(operand),
                        stub: self.offset(self.asm.here()),
                    };
                    let number = self.target.first_exit + self.exits.len();
                    self.exits.push(Exit {
                        rip: 0,
                        retired: 0,
                        kind,
                    });
                    self.asm.constant(host::RCX, number as u64);
                    let jump = self.asm.jmp();
                    self.link_offset(jump, self.target.elsewhere);
                }
                Cold::Exit {
                    from,
                    flags_pushed,
                    exit,
                } => {
                    self.asm.link_here(from);
                    if flags_pushed {
                        self.asm.popfq();
                    }
                    self.leave(exit);
                }
                Cold::Taken {
                    from,
                    target,
                    retired,
                    live,
                } => {
                    self.live_target = live;
                    self.asm.link_here(from);
                    // Forward or far, so `rip` does not matter for polls.
                    self.go(target, retired);
                }
                Cold::Vectors { from, back, exit } => {
                    self.asm.link_here(from);
                    let number = self.target.first_exit + self.exits.len();
                    self.exits.push(exit);
                    self.asm.constant(host::R15, number as u64);
                    let back = self.target.origin + (self.target.base + back) as u64;
                    self.asm.constant(host::R14, back);
                    let jump = self.asm.jmp();
                    self.link_offset(jump, self.target.vectors);
                }
            }
        }
    }
}
