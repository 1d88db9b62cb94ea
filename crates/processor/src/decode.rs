//! Instruction fetch and decoding.
//!
//! Decoded instructions are kept and found by physical address. Their bytes are compared with
//! memory each time, so that nobody has to tell when code changes.
#![allow(unsafe_code, reason = "code is read by address in guest memory")]

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

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
    /// Its bytes, and ones for each of them.
    bytes: u128,
    mask: u128,
    instruction: Instruction,
}

/// The instructions decoded last.
pub(crate) struct DecodeCache(Box<[Decoded]>);

impl DecodeCache {
    pub(crate) fn new() -> Self {
        let none = Decoded {
            physical: u64::MAX,
            bits: 0,
            bytes: 0,
            mask: 0,
            instruction: Instruction::default(),
        };
        DecodeCache(vec![none; KEPT].into_boxed_slice())
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
    /// Fetches and decodes the instruction at CS:RIP. Its IP is RIP, not the linear address.
    ///
    /// # Errors
    /// #PF; #GP(0) beyond the code segment or for more than 15 bytes; #UD for what is no
    /// instruction; or the code is on a device, which has to be asked.
    pub fn decode(&mut self, p: &mut dyn Platform) -> Result<Instruction, Stop> {
        let bits = self.mode.bits();
        let linear = self.code_address(self.rip, bits)?;
        let (host, physical) = match self.lookup_code(linear)? {
            Place::Ram { host, physical } => (host, physical),
            Place::Device { .. } => return self.decode_slow(p, bits),
        };
        let room = PAGE - (physical as usize & (PAGE - 1));
        let mut bytes = [0; 16];
        if room >= 16 {
            // SAFETY: the look-up found `host` in guest memory, and 16 bytes from there are in
            // the same page.
            let (low, high) = unsafe { (u64::load(host), u64::load(host.wrapping_add(8))) };
            bytes[..8].copy_from_slice(&low.to_le_bytes());
            bytes[8..].copy_from_slice(&high.to_le_bytes());
        } else {
            // SAFETY: as above, up to the end of the page.
            unsafe { host::copy_out(host, &mut bytes[..room]) };
        }
        let window = u128::from_le_bytes(bytes);
        let kept = &self.decoded.0[physical as usize % KEPT];
        let instruction = if kept.physical == physical
            && kept.bits == bits
            && window & kept.mask == kept.bytes
            && kept.instruction.ip() == self.rip
        {
            kept.instruction
        } else {
            match attempt(&bytes[..room.min(MAX)], bits, self.rip) {
                Ok(Attempt::Done(instruction)) => {
                    let mask = u128::MAX >> (128 - 8 * instruction.len());
                    self.decoded.0[physical as usize % KEPT] = Decoded {
                        physical,
                        bits,
                        bytes: window & mask,
                        mask,
                        instruction,
                    };
                    instruction
                }
                // A segment's end may come before what is wrong with it.
                Err(_) if bits != 64 => return self.decode_slow(p, bits),
                Err(exception) => return Err(exception.into()),
                Ok(Attempt::Short) => return self.decode_slow(p, bits),
            }
        };
        if bits != 64 {
            let last = self.rip + instruction.len() as u64 - 1;
            if last > u64::from(self.segs[seg::CS].limit) {
                return Err(Exception::gp(0).into());
            }
        }
        Ok(instruction)
    }

    /// Byte by byte: across pages, up to a segment's end, from devices.
    #[cold]
    fn decode_slow(&mut self, p: &mut dyn Platform, bits: u32) -> Result<Instruction, Stop> {
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
            if let Attempt::Done(instruction) = attempt(&bytes[..=n], bits, self.rip)? {
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
