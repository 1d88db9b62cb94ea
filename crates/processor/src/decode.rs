//! Instruction fetch and decoding.
//!
//! Decoded instructions are kept and found by physical address. Their bytes are compared with
//! memory each time, so that nobody has to tell when code changes.
#![allow(unsafe_code, reason = "code is read by address in guest memory")]

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

use crate::classify;
use crate::mmu::{Place, host, host::Word};
use crate::platform::Platform;
use crate::state::{Cpu, Mode, seg};
use crate::stop::{DeviceRequest, Exception, Stop};

#[cfg(test)]
mod tests;

/// Longest instruction, bytes.
const MAX: usize = 15;
const PAGE: usize = 4096;
/// Decoded instructions that are kept.
const KEPT: usize = 4096;

/// An instruction decoded before.
#[derive(Debug, Clone, Copy)]
struct Decoded {
    /// Guest-physical address; all ones: none.
    physical: u64,
    bits: u32,
    /// The mode in which it was found to be allowed last.
    allowed: Mode,
    /// Its bytes, and ones for each of them.
    bytes: u128,
    mask: u128,
    instruction: Instruction,
}

/// The instructions decoded last. Can be taken out of the [`Cpu`] for as long as one of them is
/// needed, so that it need not be copied.
#[derive(Default)]
pub(crate) struct DecodeCache(Option<Box<Kept>>);

struct Kept {
    /// By physical address, [`KEPT`] of them.
    table: Vec<Decoded>,
    /// One across pages, or from a device.
    other: Instruction,
}

impl Kept {
    fn new() -> Box<Self> {
        let none = Decoded {
            physical: u64::MAX,
            bits: 0,
            allowed: Mode::default(),
            bytes: 0,
            mask: 0,
            instruction: Instruction::default(),
        };
        Box::new(Kept {
            table: vec![none; KEPT],
            other: Instruction::default(),
        })
    }
}

impl Mode {
    /// Size of code: 16, 32 or 64 bits.
    #[must_use]
    pub fn bits(self) -> u32 {
        if self.has(Mode::CODE64) {
            64
        } else if self.has(Mode::CODE32) {
            32
        } else {
            16
        }
    }
}

/// One try with what bytes there are.
enum Attempt {
    Done(Instruction),
    /// It goes on behind them.
    Short,
}

fn attempt(bytes: &[u8], bits: u32, rip: u64) -> Result<Attempt, Exception> {
    let mut decoder = Decoder::with_ip(bits, bytes, rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if !instruction.is_invalid() {
        return Ok(Attempt::Done(instruction));
    }
    match decoder.last_error() {
        DecoderError::NoMoreBytes => Ok(Attempt::Short),
        // The decoder stops behind the fifteenth byte of what would be longer.
        _ if decoder.position() >= MAX => Err(Exception::gp(0)),
        _ => Err(Exception::ud()),
    }
}

impl Cpu {
    /// Fetches and decodes the instruction at CS:RIP, and checks that it is allowed
    /// ([`classify::check`]). Its IP is RIP, not the linear address.
    ///
    /// # Errors
    /// #PF; #GP(0) beyond the code segment or for more than 15 bytes; #UD for what is no
    /// instruction; #UD or #NM for what is not allowed; or the code is on a device, which has to
    /// be asked.
    pub fn decode(&mut self, p: &mut dyn Platform) -> Result<Instruction, Stop> {
        let mut cache = std::mem::take(&mut self.decoded);
        let result = self.decode_in(p, &mut cache).copied();
        self.decoded = cache;
        result
    }

    /// [`Cpu::decode`] without a copy; `cache` was taken out of [`Cpu::decoded`].
    #[inline]
    pub(crate) fn decode_in<'c>(
        &mut self,
        p: &mut dyn Platform,
        cache: &'c mut DecodeCache,
    ) -> Result<&'c Instruction, Stop> {
        let kept = &mut **cache.0.get_or_insert_with(Kept::new);
        let bits = self.mode.bits();
        let linear = self.code_address(self.rip, bits)?;
        let mut short = 0;
        if let Place::Ram { host, physical } = self.lookup_code(linear)? {
            let room = PAGE - (physical as usize & (PAGE - 1));
            let window = if room >= 16 {
                // SAFETY: the look-up found `host` in guest memory, and 16 bytes from there are
                // in the same page.
                let (low, high) = unsafe { (u64::load(host), u64::load(host.wrapping_add(8))) };
                u128::from(high) << 64 | u128::from(low)
            } else {
                let mut bytes = [0; 16];
                // SAFETY: as above, up to the end of the page.
                unsafe { host::copy_out(host, &mut bytes[..room]) };
                u128::from_le_bytes(bytes)
            };
            let entry = &mut kept.table[physical as usize % KEPT];
            let hit = entry.physical == physical
                && entry.bits == bits
                && window & entry.mask == entry.bytes
                && entry.instruction.ip() == self.rip;
            short = room.min(MAX);
            if hit || self.decode_window(entry, physical, bits, &window.to_le_bytes()[..short])? {
                self.check_end(&entry.instruction, bits)?;
                if entry.allowed != self.mode {
                    classify::check(self, &entry.instruction)?;
                    entry.allowed = self.mode;
                }
                return Ok(&entry.instruction);
            }
        }
        kept.other = self.decode_slow(p, bits, short)?;
        classify::check(self, &kept.other)?;
        Ok(&kept.other)
    }

    /// Decodes and keeps what is in these bytes of one page. False if there is more to it.
    #[cold]
    fn decode_window(
        &self,
        entry: &mut Decoded,
        physical: u64,
        bits: u32,
        bytes: &[u8],
    ) -> Result<bool, Exception> {
        match attempt(bytes, bits, self.rip) {
            Ok(Attempt::Done(instruction)) => {
                let mut window = [0; 16];
                let len = instruction.len();
                window[..len].copy_from_slice(&bytes[..len]);
                *entry = Decoded {
                    physical,
                    bits,
                    allowed: Mode(u32::MAX),
                    bytes: u128::from_le_bytes(window),
                    mask: u128::MAX >> (128 - 8 * len),
                    instruction,
                };
                Ok(true)
            }
            // A segment's end may come before what is wrong with it.
            Err(exception) if bits == 64 => Err(exception),
            _ => Ok(false),
        }
    }

    /// The whole instruction has to be inside of its segment.
    fn check_end(&self, instruction: &Instruction, bits: u32) -> Result<(), Exception> {
        let last = self.rip.wrapping_add(instruction.len() as u64 - 1);
        if bits != 64 && last > u64::from(self.segs[seg::CS].limit) {
            return Err(Exception::gp(0));
        }
        Ok(())
    }

    /// Byte by byte: across pages, up to a segment's end, from devices. It is known that `short`
    /// bytes are not enough, or that they are no instruction unless the segment ends in them.
    #[cold]
    fn decode_slow(
        &mut self,
        p: &mut dyn Platform,
        bits: u32,
        short: usize,
    ) -> Result<Instruction, Stop> {
        let mut bytes = [0; MAX];
        for n in 0..MAX {
            let rip = self.rip.wrapping_add(n as u64);
            let linear = self.code_address(rip, bits)?;
            bytes[n] = match self.lookup_code(linear)? {
                // SAFETY: the look-up found this byte in guest memory.
                Place::Ram { host, .. } => unsafe { u8::load(host) },
                Place::Device { physical } => {
                    let request = DeviceRequest::MemoryRead {
                        address: physical,
                        size: 1,
                    };
                    self.ask(p, request)? as u8
                }
            };
            if n + 1 >= short
                && let Attempt::Done(instruction) = attempt(&bytes[..=n], bits, self.rip)?
            {
                return Ok(instruction);
            }
        }
        Err(Exception::gp(0).into())
    }

    /// Linear address of code, inside of its segment.
    fn code_address(&self, rip: u64, bits: u32) -> Result<u64, Exception> {
        if bits == 64 {
            return if is_canonical(rip) {
                Ok(rip)
            } else {
                Err(Exception::gp(0))
            };
        }
        let cs = &self.segs[seg::CS];
        if rip > u64::from(cs.limit) {
            return Err(Exception::gp(0));
        }
        Ok(cs.base.wrapping_add(rip) & 0xffff_ffff)
    }
}

/// Whether bits 63 to 47 of a linear address are equal (SDM vol. 1 3.3.7.1).
#[must_use]
#[inline]
pub fn is_canonical(linear: u64) -> bool {
    (linear.cast_signed() << 16 >> 16) == linear.cast_signed()
}
