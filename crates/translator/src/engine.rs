//! The run loop: finds or makes blocks, enters them, and does what they leave to do.

#![allow(
    unsafe_code,
    reason = "enters translated code, writes the frame that it uses, and reads guest code"
)]

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use processor::state::reg;
use processor::{Access, CodePages, Cpu, CpuBox, Exception, Mode, Platform, Stop};
use x86::cr::rflags;

use crate::blocks::{Blocks, Found, Key};
use crate::builder::Target;
use crate::cache::Cache;
use crate::exits::{Exit, Kind};
use crate::frame::{FRAME, Frame};
use crate::jumps::{JUMP_MASK, Jumps};
use crate::memory::TLB_MASK;
use crate::plan::translatable;
use crate::signal::{self, Faults};
use crate::switch::{Switches, Switching};
use crate::thunks::{self, Thunks};
use crate::translate::{MAX_BYTES, Translator};
use crate::{Options, Statistics, TranslatorError};

/// Flags that are in the host's register while translated code runs.
pub(crate) const HOST_FLAGS: u64 =
    rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF | rflags::DF | rflags::OF;

/// Instructions that the interpreter does at a time in modes that are not translated.
const INTERPRETED: u32 = 256;

/// MXCSR of Rust code.
const MXCSR: u32 = 0x1f80;

/// The most exits of one cache: their numbers have to fit in 32 bits, with room.
const MAX_EXITS: usize = 1 << 28;

/// More bytes than a block takes.
const ROOM: usize = 32 << 10;

/// How often in a row instructions that missed their second address are tried again.
const SECONDS: u32 = 8;

/// So many likely jumps that lead elsewhere cost about as much as to look after one of them.
const PATIENCE: u64 = 16;

/// Likewise for programs' in an address space that was switched to just now, and may be left
/// before it pays.
const PATIENCE_WITH_NEW: u64 = 256;

/// A page that no guest has, as its addresses are not canonical.
const NOWHERE: u64 = 0x5a3c_96e1_7d24_8000;

/// What is there instead.
#[repr(align(4096))]
struct Page([u8; 4096]);

type Enter = extern "sysv64" fn(*mut Frame, u64) -> u64;

/// The translator of one processor, with its code cache.
pub struct Engine {
    cache: Cache,
    thunks: Thunks,
    translator: Translator,
    blocks: Blocks,
    jumps: Jumps,
    exits: Vec<Exit>,
    faults: Vec<(u32, u32)>,
    options: Options,
    bmi2: bool,
    /// Where the pages that have blocks are marked.
    code_pages: Option<Arc<CodePages>>,
    switches: Switches,
    /// How often in a row an instruction's second address was missed and it was tried again.
    seconds: u32,
    /// What stands for a stack that is nowhere.
    nowhere: Box<Page>,
    statistics: Statistics,
}

/// Where to enter code.
#[derive(Debug, Clone, Copy)]
enum Entry {
    At(u64),
    /// With the vector registers loaded.
    WithVectors(u64),
}

impl Engine {
    /// An engine with an empty cache.
    ///
    /// # Errors
    /// The host has no memory for it, or forbids executable memory: then there is nothing but
    /// the interpreter.
    pub fn new(options: Options) -> Result<Self, TranslatorError> {
        if !std::arch::is_x86_feature_detected!("xsave") {
            return Err(TranslatorError::Host("XSAVE"));
        }
        signal::install()?;
        let mut cache = Cache::new(options.cache_size)?;
        let components = if std::arch::is_x86_feature_detected!("avx") {
            thunks::SSE | thunks::AVX
        } else {
            thunks::SSE
        };
        let bmi2 = options.bmi2 && std::arch::is_x86_feature_detected!("bmi2");
        let thunks = thunks::write(&mut cache, components, bmi2)?;
        Ok(Engine {
            cache,
            thunks,
            translator: Translator::new(),
            blocks: Blocks::default(),
            jumps: Jumps::new(),
            exits: Vec::new(),
            faults: Vec::new(),
            bmi2,
            options,
            code_pages: None,
            switches: Switches::new(),
            seconds: 0,
            nowhere: Box::new(Page([0; 4096])),
            statistics: Statistics::default(),
        })
    }

    /// What has happened so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        Statistics {
            blocks: self.blocks.len() as u64,
            cache_used: self.cache.used() as u64,
            ..self.statistics
        }
    }

    /// These bytes of guest-physical memory have changed: drops the blocks made of them. Tells
    /// whether there were any.
    pub fn code_written(&mut self, physical: u64, len: u64) -> bool {
        let mut dropped = 0;
        let end = physical.saturating_add(len.max(1));
        let mut at = physical;
        while at < end {
            let piece = (4096 - at % 4096).min(end - at);
            let origin = self.cache.address(0);
            let (cache, jumps) = (&mut self.cache, &mut self.jumps);
            let empty = self.blocks.remove(at, piece, |block, incoming| {
                for (operand, stub) in incoming {
                    cache.patch(*operand as usize, *stub as usize);
                }
                jumps.remove(block.key.physical, origin + u64::from(block.entry));
                dropped += 1;
            });
            if empty && let Some(code_pages) = &self.code_pages {
                code_pages.unmark(at);
            }
            at += piece;
        }
        self.statistics.dropped += dropped;
        dropped != 0
    }

    /// Forgets all translated code.
    pub fn flush(&mut self) {
        self.unmark();
        self.blocks.clear();
        self.jumps.clear();
        self.exits.clear();
        self.faults.clear();
        self.cache.clear();
        self.statistics.flushes += 1;
    }

    /// No page has blocks any longer.
    fn unmark(&mut self) {
        if let Some(code_pages) = &self.code_pages {
            self.blocks.pages().for_each(|page| code_pages.unmark(page));
        }
    }

    /// Runs the processor until something stops it: translated code where that is possible, and
    /// the interpreter for the rest. At least one instruction or exception is completed, unless
    /// a device has to be asked or the attention word is not zero. [`Stop::Attention`] comes
    /// when it is not; never [`Stop::Exception`].
    pub fn run(&mut self, cpu: &mut CpuBox, p: &mut dyn Platform) -> Stop {
        self.prepare(cpu);
        let mut entry = None;
        loop {
            let next = match entry.take() {
                Some(entry) => Some(entry),
                None if self.must_interpret(cpu) => None,
                None => self.find(cpu).map(Entry::At),
            };
            let stop = match next {
                Some(at) => {
                    let exit = self.enter(cpu, at);
                    match self.after(cpu, exit) {
                        Next::Find => None,
                        Next::Enter(at) => {
                            entry = Some(at);
                            continue;
                        }
                        // What the interpreter does may tell other processors (an interrupt) of
                        // what was stored here; whether one of these stores went past a new
                        // code page has to be sorted out before.
                        Next::Interpret | Next::Switch(_) | Next::Raise(_)
                            if cpu.attention.load(Ordering::Acquire) != 0 =>
                        {
                            return Stop::Attention;
                        }
                        Next::Interpret => self.interpret(cpu, p),
                        Next::Raise(fault) => cpu.raise(p, fault).err(),
                        Next::Switch(which) => {
                            let from = cpu.mode;
                            let stop = self.interpret(cpu, p);
                            self.switches.learn(which, from, cpu, &mut self.jumps);
                            self.publish(cpu);
                            stop
                        }
                    }
                }
                None => self.interpret(cpu, p),
            };
            if let Some(stop) = stop {
                return stop;
            }
            if cpu.attention.load(Ordering::Acquire) != 0 {
                return Stop::Attention;
            }
        }
    }

    /// Whether the next instruction is the interpreter's, wherever it is.
    fn must_interpret(&self, cpu: &mut Cpu) -> bool {
        if !translatable(cpu.mode) || cpu.interrupt_shadow != 0 || cpu.pending.is_some() {
            return true;
        }
        // There are no breakpoints that RF could hold off, and what faults sets it anew.
        cpu.rflags &= !rflags::RF;
        false
    }

    /// Lets the interpreter do an instruction, or many where nothing is translated.
    fn interpret(&mut self, cpu: &mut CpuBox, p: &mut dyn Platform) -> Option<Stop> {
        let budget = if translatable(cpu.mode) {
            1
        } else {
            INTERPRETED
        };
        self.statistics.interpreted += 1;
        let stop = cpu.advance(p, budget);
        match stop {
            Stop::Attention => None,
            stop => Some(stop),
        }
    }

    /// Fills in the frame's constant words.
    fn prepare(&mut self, cpu: &mut CpuBox) {
        let attention = Arc::as_ptr(&cpu.attention);
        let fpu = ptr::from_mut(&mut *cpu.fpu).cast::<u8>();
        let frame = Frame {
            high: [0; 4],
            attention,
            jumps: ptr::null(),
            vectors_away: 1,
            retired: 0,
            page: 0,
            key: 0,
            stack_tag: NOWHERE,
            stack_addend: 0,
            spare: [0; 2],
            parked: [0; 2],
            tlb_mask: TLB_MASK,
            page_mask: !0xfff,
            patience: [PATIENCE, PATIENCE_WITH_NEW],
            jump_mask: JUMP_MASK,
            host_rsp: 0,
            fpu,
            scratch: [0; 2],
            flags: 0,
            host_flags: HOST_FLAGS | rflags::RESERVED_ONE,
            not_interrupt: !rflags::IF,
            low_bits: [31, 63],
            mxcsr: MXCSR,
            nowhere: [NOWHERE, self.nowhere_addend()],
            kept_flags: Switches::kept_flags(cpu),
            switches: self.switches.known(),
        };
        // SAFETY: the frame lies in the reserve of the CpuBox, which is ours while we borrow the
        // CpuBox; it is aligned as the Cpu is, by its size.
        unsafe { frame_of(cpu).write(frame) };
    }

    /// Makes [`NOWHERE`] the address of a page of our own. Nobody gets there, but if somebody
    /// does, he finds that.
    fn nowhere_addend(&mut self) -> u64 {
        (self.nowhere.0.as_mut_ptr() as u64).wrapping_sub(NOWHERE)
    }

    /// Tells translated code what is known of changes of the mode.
    fn publish(&mut self, cpu: &mut CpuBox) {
        let kept_flags = Switches::kept_flags(cpu);
        let frame = frame_of(cpu);
        // SAFETY: as in `enter`; no code runs now.
        unsafe {
            (*frame).switches = self.switches.known();
            (*frame).kept_flags = kept_flags;
            (*frame).patience[1] = PATIENCE_WITH_NEW;
        }
    }

    /// The mode's code for RIP: looks it up, or makes it. Nothing: the interpreter has to fetch
    /// the instruction.
    fn find(&mut self, cpu: &mut Cpu) -> Option<u64> {
        let rip = cpu.rip;
        let table = self.jumps.select(cpu.mode, cpu.code_epoch());
        if let Some(code) = table.get(rip) {
            return Some(code);
        }
        let (found, physical) = self.block(cpu)?;
        let code = self.cache.address(found.entry());
        let table = self.jumps.select(cpu.mode, cpu.code_epoch());
        if found.crosses() {
            table.insert(rip, code);
        } else {
            table.insert_page(rip, physical, code);
        }
        Some(code)
    }

    /// The block for RIP, which is made if it does not exist, and RIP's physical address.
    fn block(&mut self, cpu: &mut Cpu) -> Option<(Found, u64)> {
        let linear = cpu.rip;
        let physical = cpu.translate_code(linear).ok()?;
        let key = Key {
            physical,
            mode: cpu.mode,
        };
        if let Some(found) = self.blocks.find(key) {
            if !found.crosses() {
                return Some((found, physical));
            }
            let second = self.blocks.get(found.number)?.second;
            if cpu.translate_code(next_page(linear)).ok() == second {
                return Some((found, physical));
            }
            // Jumps lead to it by the jump cache only, which knows it no more.
            self.blocks.discard(found.number);
        }
        Some((self.translate(cpu, key)?, physical))
    }

    /// Lets a likely jump lead to RIP: the constant, the operand, and where that leads otherwise,
    /// by their offsets.
    fn likely(&mut self, cpu: &mut Cpu, (constant, operand, stub): (u32, u32, u32)) -> Next {
        let flushes = self.statistics.flushes;
        let Some(code) = self.find(cpu) else {
            return Next::Find;
        };
        // Blocks that go on in another page are known to the jump cache only.
        if let Some((found, _)) = self.block(cpu)
            && !found.crosses()
            && self.statistics.flushes == flushes
        {
            let key = self.jumps.select(cpu.mode, cpu.code_epoch()).key();
            let sum = cpu.rip.wrapping_add(key);
            self.cache
                .set_constant(constant as usize, sum.wrapping_neg());
            self.cache.patch(operand as usize, found.entry());
            self.blocks.linked(found.number, operand, stub);
        }
        Next::Enter(Entry::At(code))
    }

    fn translate(&mut self, cpu: &mut Cpu, key: Key) -> Option<Found> {
        let len = (4096 - key.physical as usize % 4096).min(MAX_BYTES);
        let host = cpu.ram().host(key.physical, len)?;
        if !self.cache.fits(ROOM) || self.exits.len() > MAX_EXITS {
            self.flush();
        }
        let new_page = !self.blocks.has_page(key.physical);
        if new_page {
            let code_pages = cpu.code_pages().clone();
            code_pages.mark(key.physical);
            cpu.drop_writes(key.physical & !0xfff);
            self.code_pages = Some(code_pages);
        }
        let made = self.make(cpu, key, host, len);
        if made.is_none() && new_page {
            cpu.code_pages().unmark(key.physical);
        }
        made
    }

    /// The bytes of an instruction that goes on in the next page, whose physical address comes
    /// with them. That page is marked.
    fn crossing(&mut self, cpu: &mut Cpu, bytes: &[u8]) -> Option<([u8; 32], u64)> {
        let second = cpu.translate_code(next_page(cpu.rip)).ok()?;
        let host = cpu.ram().host(second, 16)?;
        if !self.blocks.has_page(second) {
            cpu.code_pages().mark(second);
            cpu.drop_writes(second);
        }
        let mut joined = [0; 32];
        let (first, rest) = joined.split_at_mut_checked(bytes.len())?;
        first.copy_from_slice(bytes);
        for (n, byte) in rest.iter_mut().enumerate().take(16) {
            // SAFETY: as in `make`.
            *byte = unsafe { host.add(n).read_volatile() };
        }
        Some((joined, second))
    }

    /// Makes a block of the code at this host address; its page is marked.
    fn make(&mut self, cpu: &mut Cpu, key: Key, host: *const u8, len: usize) -> Option<Found> {
        let mut bytes = [0; MAX_BYTES];
        let bytes = bytes.get_mut(..len)?;
        for (n, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: the caller found `len` bytes of guest memory there. Others may write them
            // meanwhile: then this reads either value, and the block is dropped by
            // `code_written`.
            *byte = unsafe { host.add(n).read_volatile() };
        }
        let base = self.cache.next();
        let target = Target {
            bmi2: self.bmi2,
            exact_flags: self.options.exact_flags,
            base,
            origin: self.cache.address(0),
            exit: self.thunks.exit,
            vectors: self.thunks.vectors,
            elsewhere: self.thunks.elsewhere[usize::from(cpu.cpl() == 3)],
            stack: self.thunks.stack.get(cpu.view()).copied()?,
            first_exit: self.exits.len(),
            view: cpu.view(),
            mode: cpu.mode,
            host_tsc: self.options.host_tsc,
        };
        let crossing = if bytes.len() < 16 && Translator::crosses(bytes) {
            self.crossing(cpu, bytes)
        } else {
            None
        };
        let (bytes, limit): (&[u8], usize) = match &crossing {
            Some((joined, _)) => (joined, 1),
            None => (bytes, usize::MAX),
        };
        let mut code = self.translator.block(cpu, cpu.rip, bytes, limit, target)?;
        for exit in &mut code.exits {
            exit.rip = exit.rip.wrapping_sub(cpu.rip & !0xfff);
        }
        if !self.cache.append(&code.code) {
            return None;
        }
        self.exits.append(&mut code.exits);
        self.faults.append(&mut code.faults);
        self.statistics.translated += 1;
        let second = crossing.map(|(_, second)| second);
        let places = (base, base + code.body);
        let found = self.blocks.insert(key, code.len, second, places);
        self.translator.recycle(code);
        Some(found)
    }

    /// Runs code until it exits.
    fn enter(&mut self, cpu: &mut CpuBox, entry: Entry) -> Option<Exit> {
        if self.switches.check(cpu, &mut self.jumps) {
            self.publish(cpu);
        }
        let table = self.jumps.select(cpu.mode, cpu.code_epoch());
        let (jumps, key) = (table.as_ptr(), table.key());
        let (thunk, code) = match entry {
            Entry::At(code) => (self.thunks.enter, code),
            Entry::WithVectors(code) => (self.thunks.enter_with_vectors, code),
        };
        let faults = Faults {
            origin: self.cache.address(0),
            len: self.cache.len() as u64,
            exit: self.cache.address(self.thunks.exit),
            sites: self.faults.as_ptr(),
            count: self.faults.len(),
        };
        let frame = frame_of(cpu);
        // SAFETY: the thunk has this signature; it lies in the executable mapping.
        let enter: Enter = unsafe {
            std::mem::transmute::<*const (), Enter>(self.cache.address(thunk) as *const ())
        };
        let stack = stack_page(cpu, cpu.gpr[reg::RSP]);
        let (stack_tag, stack_addend) = stack.unwrap_or((NOWHERE, self.nowhere_addend()));
        let high = [cpu.gpr[12], cpu.gpr[13], cpu.gpr[14], cpu.gpr[15]];
        // SAFETY: the frame is in the reserve of the CpuBox, written by `prepare`. Translated
        // code uses only the frame, the reserve below it, the Cpu behind it, guest RAM by way of
        // the soft TLB, the attention word and the jump cache, all of which live until it
        // returns; nothing of Rust's refers to them meanwhile.
        let (number, flags, high, retired) = unsafe {
            (*frame).jumps = jumps;
            (*frame).key = key;
            (*frame).retired = 0;
            (*frame).scratch[0] = cpu.rip;
            (*frame).stack_tag = stack_tag;
            (*frame).stack_addend = stack_addend;
            (*frame).flags = cpu.rflags & HOST_FLAGS | rflags::RESERVED_ONE | rflags::IF;
            (*frame).high = high;
            cpu.rflags &= !(HOST_FLAGS | rflags::RESERVED_ONE);
            let number = signal::with(&faults, || enter(frame, code));
            (number, (*frame).flags, (*frame).high, (*frame).retired)
        };
        cpu.retired = cpu.retired.wrapping_add(retired);
        cpu.gpr[12..].copy_from_slice(&high);
        cpu.rflags |= flags & HOST_FLAGS | rflags::RESERVED_ONE;
        self.exits.get(number as usize).copied()
    }

    /// Does what an exit asks for.
    fn after(&mut self, cpu: &mut CpuBox, exit: Option<Exit>) -> Next {
        let seconds = std::mem::take(&mut self.seconds);
        let Some(exit) = exit else {
            // Only a resumed instruction whose vector registers were not to be had.
            return Next::Interpret;
        };
        // SAFETY: as in `enter`; no code runs now.
        let page = unsafe { (*frame_of(cpu)).page };
        cpu.rip = page.wrapping_add(exit.rip);
        match exit.kind {
            Kind::Link { operand, stub } => {
                self.statistics.links += 1;
                let flushes = self.statistics.flushes;
                let Some((Found { number, .. }, _)) = self.block(cpu) else {
                    return Next::Interpret;
                };
                let Some(block) = self.blocks.get(number) else {
                    return Next::Interpret;
                };
                let (body, crosses) = (block.body, block.second.is_some());
                if !crosses && self.statistics.flushes == flushes {
                    self.cache.patch(operand as usize, body as usize);
                    self.blocks.linked(number, operand, stub);
                }
                Next::Enter(Entry::At(self.cache.address(body as usize)))
            }
            Kind::Indirect => {
                self.statistics.indirect += 1;
                // SAFETY: as in `enter`; no code runs now.
                cpu.rip = unsafe { (*frame_of(cpu)).scratch[0] };
                Next::Find
            }
            Kind::Likely {
                constant,
                operand,
                stub,
            } => {
                self.statistics.indirect += 1;
                // SAFETY: as in `enter`; no code runs now.
                cpu.rip = unsafe {
                    let frame = frame_of(cpu);
                    (*frame).patience[usize::from(cpu.cpl() == 3)] = PATIENCE;
                    (*frame).scratch[0]
                };
                self.likely(cpu, (constant, operand, stub))
            }
            Kind::Miss {
                write,
                size,
                resume,
                vectors,
                second,
                stack,
            } => {
                self.statistics.misses += 1;
                // SAFETY: as above.
                let address = unsafe { (*frame_of(cpu)).scratch[0] };
                let access = if write { Access::Write } else { Access::Read };
                let inside = address % 4096 + u64::from(size) <= 4096;
                let view = cpu.view();
                let result = if inside {
                    cpu.fill(address, access, view)
                } else {
                    Ok(false)
                };
                // What else may be wrong with the access is for the interpreter to find out.
                let plain = size <= 8 && !second && !cpu.mode.has(Mode::ALIGNMENT);
                if let (Err(fault), true, true) = (result, plain, canonical(address)) {
                    cpu.retired = cpu.retired.wrapping_add(u64::from(exit.retired));
                    return Next::Raise(fault);
                }
                let mut filled = result == Ok(true);
                if stack {
                    filled &= stack_page(cpu, address).is_some();
                }
                // The two addresses may share an entry, and throw each other out for ever.
                self.seconds = seconds + u32::from(second);
                let again = filled && self.seconds <= SECONDS;
                if again && cpu.attention.load(Ordering::Relaxed) == 0 {
                    let code = self.cache.address(resume as usize);
                    return Next::Enter(if vectors {
                        Entry::WithVectors(code)
                    } else {
                        Entry::At(code)
                    });
                }
                cpu.retired = cpu.retired.wrapping_add(u64::from(exit.retired));
                if again {
                    return Next::Find;
                }
                self.seconds = 0;
                self.statistics.slow_accesses += 1;
                Next::Interpret
            }
            Kind::Interpret => {
                cpu.retired = cpu.retired.wrapping_add(u64::from(exit.retired));
                Next::Interpret
            }
            Kind::Switch(which) => {
                cpu.retired = cpu.retired.wrapping_add(u64::from(exit.retired));
                Next::Switch(which)
            }
            Kind::Attention => Next::Find,
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.unmark();
    }
}

/// The entry of the soft TLB of this address' page, if it is valid for stores: its tag and what
/// makes its addresses the host's.
fn stack_page(cpu: &Cpu, address: u64) -> Option<(u64, u64)> {
    let entry = cpu
        .tlb
        .get(cpu.view())?
        .get(processor::mmu::slot(address))?;
    let page = address & !0xfff;
    (entry.write == page).then_some((page, entry.addend))
}

/// Whether this is an address of 48 bits.
fn canonical(linear: u64) -> bool {
    (linear as i64) << 16 >> 16 == linear as i64
}

/// The beginning of the next page.
fn next_page(linear: u64) -> u64 {
    (linear | 0xfff).wrapping_add(1)
}

/// How to go on after an exit.
enum Next {
    /// At RIP.
    Find,
    Enter(Entry),
    /// With the interpreter at RIP.
    Interpret,
    /// Likewise, with an instruction that changes the mode.
    Switch(Switching),
    /// With the delivery of this exception.
    Raise(Exception),
}

/// The frame of a processor.
fn frame_of(cpu: &mut CpuBox) -> *mut Frame {
    cpu.as_ptr().wrapping_byte_sub(FRAME).cast()
}

const _: () = assert!(FRAME < CpuBox::RESERVE / 2 && reg::RSP == 4 && reg::RCX == 1);
const _: fn(Mode) -> bool = translatable;
