//! From a piece of guest code to a block.

use iced_x86::{
    Decoder, DecoderError, DecoderOptions, Encoder, Instruction, InstructionInfoFactory,
    InstructionInfoOptions, OpKind,
};
use processor::Cpu;
use processor::classify::{self, Unit};

use crate::builder::{Builder, Cold, Refused, Target};
use crate::emit::Asm;
use crate::exits::Exit;
use crate::flags::{self, Effect};
use crate::plan::{Plan, plan};

/// Instructions of a block.
const LIMIT: usize = 48;
/// Conditional jumps of a block; it goes on behind those that are not taken.
const BRANCHES: usize = 4;
/// The longest instruction in bytes.
const LONGEST: usize = 15;

/// The most bytes of guest code that a block is made of.
pub(crate) const MAX_BYTES: usize = LIMIT * LONGEST;

/// What the translator keeps between blocks.
pub(crate) struct Translator {
    encoder: Encoder,
    infos: InstructionInfoFactory,
    items: Vec<Item>,
    /// Room that the last block has left.
    code: Vec<u8>,
    exits: Vec<Exit>,
    faults: Vec<(u32, u32)>,
    cold: Vec<Cold>,
}

struct Item {
    instruction: Instruction,
    plan: Plan,
    effect: Effect,
    /// Flags that are wanted when it begins, when it is done, and where it jumps to.
    live_before: u32,
    live_after: u32,
    live_target: u32,
}

impl Item {
    /// Whether it works on the vector registers, in this block.
    fn needs_vectors(&self) -> bool {
        let unit = classify::unit(self.instruction.code());
        self.plan == Plan::Copy && matches!(unit, Unit::Sse | Unit::Avx)
    }
}

/// A block as it goes to the cache.
pub(crate) struct Code {
    pub(crate) code: Vec<u8>,
    /// Position at which direct jumps enter.
    pub(crate) body: usize,
    pub(crate) exits: Vec<Exit>,
    pub(crate) faults: Vec<(u32, u32)>,
    /// Bytes of guest code that it was made of.
    pub(crate) len: usize,
}

impl Translator {
    pub(crate) fn new() -> Self {
        Translator {
            encoder: Encoder::new(64),
            infos: InstructionInfoFactory::new(),
            items: Vec::with_capacity(LIMIT),
            code: Vec::new(),
            exits: Vec::new(),
            faults: Vec::new(),
            cold: Vec::new(),
        }
    }

    /// Whether the instruction at the end of a page goes on in the next.
    pub(crate) fn crosses(bytes: &[u8]) -> bool {
        let mut decoder = Decoder::new(64, bytes, DecoderOptions::NONE);
        decoder.decode().is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes
    }

    /// Makes a block of the guest code at this linear address. The bytes are the rest of its
    /// page, or at least [`MAX_BYTES`]; or those of `limit` instructions, where one of them goes
    /// on in the next page.
    pub(crate) fn block(
        &mut self,
        cpu: &Cpu,
        linear: u64,
        bytes: &[u8],
        limit: usize,
        target: Target,
    ) -> Option<Code> {
        let len = self.decode(cpu, linear, bytes, limit.min(LIMIT));
        if self.items.is_empty() {
            return None;
        }
        self.wanted_flags();
        let mut b = Builder {
            asm: Asm {
                code: std::mem::take(&mut self.code),
            },
            encoder: &mut self.encoder,
            target,
            cold: std::mem::take(&mut self.cold),
            exits: std::mem::take(&mut self.exits),
            faults: std::mem::take(&mut self.faults),
            linear,
            body: 0,
            again: 0,
            vectors: false,
            rip: linear,
            done: 0,
            start: 0,
            looked_up: false,
            vectors_at_start: false,
            live_before: flags::ARITHMETIC,
            live_target: flags::ARITHMETIC,
        };
        // Jumps by the jump cache enter here.
        b.live_target = self.items.first()?.live_before;
        b.entry();
        b.body = b.asm.here();
        if self.items.iter().any(Item::needs_vectors) {
            b.need_vectors();
        }
        b.again = b.asm.here();
        let mut ended = false;
        let mut next = linear;
        let last = self.items.len() - 1;
        for (n, item) in self.items.iter().enumerate() {
            b.rip = item.instruction.ip();
            next = item.instruction.next_ip();
            b.start = b.asm.here();
            b.looked_up = false;
            b.vectors_at_start = b.vectors;
            b.live_before = item.live_before;
            b.live_target = item.live_target;
            ended = emit(&mut b, item, n == last, &mut self.infos);
            b.done += 1;
            if ended {
                break;
            }
        }
        b.live_target = flags::ARITHMETIC;
        if !ended {
            let count = b.done;
            // An instruction across pages is not to be linked to.
            let at = (next - linear) as usize;
            if bytes
                .get(at..)
                .is_some_and(|rest| rest.len() < LONGEST && Self::crosses(rest))
            {
                b.retire(count);
                b.go_far(next);
            } else {
                b.go(next, count);
            }
        }
        b.finish();
        b.cold.clear();
        self.cold = b.cold;
        Some(Code {
            body: b.body,
            exits: b.exits,
            faults: b.faults,
            code: b.asm.code,
            len,
        })
    }

    /// Takes a block back, for its room.
    pub(crate) fn recycle(&mut self, mut block: Code) {
        block.code.clear();
        block.exits.clear();
        block.faults.clear();
        self.code = block.code;
        self.exits = block.exits;
        self.faults = block.faults;
    }

    /// Fills `items`. Returns the bytes they take.
    fn decode(&mut self, cpu: &Cpu, linear: u64, bytes: &[u8], limit: usize) -> usize {
        self.items.clear();
        let mut decoder = Decoder::with_ip(64, bytes, linear, DecoderOptions::NONE);
        let mut branches = 0;
        while self.items.len() < limit && decoder.can_decode() {
            let start = decoder.position();
            let instruction = decoder.decode();
            if instruction.is_invalid()
                && decoder.last_error() == DecoderError::NoMoreBytes
                && !self.items.is_empty()
            {
                // It goes on in the next page, and is a block of its own.
                return start;
            }
            let plan = plan(cpu, &instruction);
            self.items.push(Item {
                instruction,
                plan,
                effect: match plan {
                    Plan::Interpret | Plan::Syscall => Effect::ALL,
                    Plan::Sysret => Effect::OTHERS,
                    Plan::ReadControl | Plan::Access(_) => Effect::NONE,
                    _ => flags::effect(&instruction),
                },
                live_before: flags::ARITHMETIC,
                live_after: flags::ARITHMETIC,
                live_target: flags::ARITHMETIC,
            });
            if plan.ends_block() {
                break;
            }
            if matches!(plan, Plan::Branch | Plan::CountBranch) {
                branches += 1;
                // A loop ends here more often than not.
                let target = instruction.near_branch_target();
                let back = target <= instruction.ip() && target >> 12 == linear >> 12;
                if back || branches > BRANCHES {
                    break;
                }
            }
        }
        decoder.position()
    }

    /// Notes which flags are wanted where. Everything that leaves the block wants all; jumps
    /// inside of it want what their target wants.
    fn wanted_flags(&mut self) {
        // Each pass begins with too many at the targets of backward jumps, and is right.
        for _ in 0..2 {
            let mut live = flags::ARITHMETIC;
            for n in (0..self.items.len()).rev() {
                let at_target = self.wanted_at_target(n);
                let item = &mut self.items[n];
                item.live_target = at_target;
                live = match item.plan {
                    Plan::Branch | Plan::CountBranch => live | at_target,
                    Plan::Jump => at_target,
                    _ => live,
                };
                item.live_after = live;
                live = item.effect.before(live);
                item.live_before = live;
            }
        }
    }

    /// Flags that are wanted where the jump of this number leads.
    fn wanted_at_target(&self, n: usize) -> u32 {
        let jump = &self.items[n];
        let direct = matches!(jump.plan, Plan::Branch | Plan::CountBranch | Plan::Jump);
        if !direct || jump.instruction.op0_kind() != OpKind::NearBranch64 {
            return flags::ARITHMETIC;
        }
        let target = jump.instruction.near_branch_target();
        let item = self.items.iter().find(|i| i.instruction.ip() == target);
        item.map_or(flags::ARITHMETIC, |item| item.live_before)
    }
}

/// Writes one instruction; `last`: the block has no more. Tells whether the block ends with it.
fn emit(b: &mut Builder<'_>, item: &Item, last: bool, infos: &mut InstructionInfoFactory) -> bool {
    let i = &item.instruction;
    let count = b.done + 1;
    let before = (b.asm.here(), b.exits.len(), b.faults.len(), b.cold.len());
    let vectors = b.vectors;
    let done: Result<(), Refused> = match item.plan {
        Plan::Skip => Ok(()),
        Plan::Copy => {
            let info = infos.info_options(i, InstructionInfoOptions::NONE);
            b.copy(i, info)
        }
        Plan::Lea => b.lea(i),
        Plan::Push => b.push(i),
        Plan::Pop => b.pop(i),
        Plan::Leave => b.leave_frame(),
        Plan::Call => b.call(i, count),
        Plan::Return => b.ret(i, count),
        Plan::Jump => b.jump(i, count),
        Plan::Branch => {
            b.conditional(i, count);
            Ok(())
        }
        Plan::CountBranch => b.count_branch(i, count),
        Plan::Divide => b.divide(i),
        Plan::BitString => b.bit_string(i),
        Plan::String => b.string(i),
        Plan::Interrupts => b.interrupts(i, last),
        Plan::PushFlags => b.push_flags(),
        Plan::SwapGs => {
            b.swap_gs();
            Ok(())
        }
        Plan::FromSegment => b.load_selector(i),
        Plan::Direction => {
            b.direction(i);
            Ok(())
        }
        Plan::StoreSegment => b.store_selector(i),
        Plan::Syscall => b.syscall(i, count),
        Plan::Sysret => b.sysret(count),
        Plan::Access(which) => b.access(which, i, count),
        Plan::ReadTime => b.read_time(i),
        Plan::ReadControl => b.read_control(i),
        Plan::ReadBase => b.read_base(i),
        Plan::WriteBase => b.write_base(i),
        Plan::Interpret => Err(Refused),
    };
    match done {
        Ok(()) => item.plan.ends_block(),
        Err(Refused) => {
            b.asm.code.truncate(before.0);
            b.exits.truncate(before.1);
            b.faults.truncate(before.2);
            b.cold.truncate(before.3);
            b.vectors = vectors;
            b.interpret();
            true
        }
    }
}
