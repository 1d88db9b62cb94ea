//! Reads and writes at linear addresses: RAM at once, devices by asking.
#![allow(unsafe_code, reason = "guest memory is reached by address")]

use crate::mmu::host::{self, Word};
use crate::mmu::{As, OFFSET, PAGE, Place, slot};
use crate::platform::Platform;
use crate::state::{Cpu, Mode};
use crate::stop::{Access, DeviceRequest, Exception, Stop};

/// Most bytes that are moved as one: at most two pages are touched.
const CHUNK: usize = PAGE as usize;

impl Cpu {
    /// Reads one word, with one load if it lies in one page of RAM.
    ///
    /// # Errors
    /// #PF, #AC, or a device has to be asked.
    #[inline]
    pub fn read<T: Word>(&mut self, p: &mut dyn Platform, linear: u64, as_: As) -> Result<T, Stop> {
        let view = self.view_as(as_);
        let entry = &self.tlb[view][slot(linear)];
        if linear.wrapping_sub(entry.read) <= PAGE - T::SIZE && !self.mode.has(Mode::ALIGNMENT) {
            let host = linear.wrapping_add(entry.addend) as *const u8;
            // SAFETY: the entry's tag matches, so these bytes lie in a page of guest memory,
            // which `ram` keeps mapped.
            return Ok(unsafe { T::load(host) });
        }
        self.read_slow(p, linear, as_)
    }

    #[cold]
    fn read_slow<T: Word>(
        &mut self,
        p: &mut dyn Platform,
        linear: u64,
        as_: As,
    ) -> Result<T, Stop> {
        self.check_alignment(linear, T::SIZE, as_)?;
        if linear & OFFSET > PAGE - T::SIZE {
            let mut bytes = [0; 8];
            self.read_bytes(p, linear, &mut bytes[..T::SIZE as usize], as_)?;
            return Ok(T::narrow(u64::from_le_bytes(bytes)));
        }
        let view = self.view_as(as_);
        let place = self.lookup(linear, Access::Read, view)?;
        self.note_breakpoints(linear, T::SIZE, Access::Read);
        match place {
            // SAFETY: the look-up found these bytes in guest memory, which `ram` keeps mapped.
            Place::Ram { host, .. } => Ok(unsafe { T::load(host) }),
            Place::Device { physical } => {
                let size = T::SIZE as u8;
                let address = physical;
                let value = self.ask(p, DeviceRequest::MemoryRead { address, size })?;
                Ok(T::narrow(value))
            }
        }
    }

    /// Writes one word, with one store if it lies in one page of RAM.
    ///
    /// # Errors
    /// #PF, #AC, or a device has to be told.
    #[inline]
    pub fn write<T: Word>(
        &mut self,
        p: &mut dyn Platform,
        linear: u64,
        value: T,
        as_: As,
    ) -> Result<(), Stop> {
        let view = self.view_as(as_);
        let entry = &self.tlb[view][slot(linear)];
        if linear.wrapping_sub(entry.write) <= PAGE - T::SIZE && !self.mode.has(Mode::ALIGNMENT) {
            let host = linear.wrapping_add(entry.addend) as *mut u8;
            // SAFETY: the entry's tag matches, so these bytes lie in a page of guest memory,
            // which `ram` keeps mapped.
            unsafe { value.store(host) };
            return Ok(());
        }
        self.write_slow(p, linear, value, as_)
    }

    #[cold]
    fn write_slow<T: Word>(
        &mut self,
        p: &mut dyn Platform,
        linear: u64,
        value: T,
        as_: As,
    ) -> Result<(), Stop> {
        self.check_alignment(linear, T::SIZE, as_)?;
        if linear & OFFSET > PAGE - T::SIZE {
            let bytes = value.widen().to_le_bytes();
            return self.write_bytes(p, linear, &bytes[..T::SIZE as usize], as_);
        }
        let view = self.view_as(as_);
        let place = self.lookup(linear, Access::Write, view)?;
        self.note_breakpoints(linear, T::SIZE, Access::Write);
        match place {
            Place::Ram { host, physical } => {
                // SAFETY: the look-up found these bytes in guest memory, which `ram` keeps
                // mapped.
                unsafe { value.store(host) };
                self.code.written(physical, T::SIZE);
                Ok(())
            }
            Place::Device { physical } => {
                let request = DeviceRequest::MemoryWrite {
                    address: physical,
                    size: T::SIZE as u8,
                    value: value.widen(),
                };
                self.ask(p, request).map(drop)
            }
        }
    }

    /// Reads bytes, of any number; at most 4,096 of them are checked as one.
    ///
    /// # Errors
    /// #PF, or a device has to be asked.
    pub fn read_bytes(
        &mut self,
        p: &mut dyn Platform,
        linear: u64,
        into: &mut [u8],
        as_: As,
    ) -> Result<(), Stop> {
        let mut at = linear;
        for chunk in into.chunks_mut(CHUNK) {
            let places = self.places(at, chunk.len(), Access::Read, as_)?;
            self.note_breakpoints(at, chunk.len() as u64, Access::Read);
            let (first, second) = chunk.split_at_mut(places.split);
            self.read_piece(p, places.first, first)?;
            if let Some(place) = places.second {
                self.read_piece(p, place, second)?;
            }
            at = self.advance_linear(at, CHUNK as u64);
        }
        Ok(())
    }

    fn read_piece(
        &mut self,
        p: &mut dyn Platform,
        place: Place,
        into: &mut [u8],
    ) -> Result<(), Stop> {
        match place {
            Place::Ram { host, .. } => {
                // SAFETY: the look-up found this part of a page in guest memory, which `ram`
                // keeps mapped.
                unsafe { host::copy_out(host, into) };
            }
            Place::Device { physical } => {
                for (n, piece) in into.chunks_mut(8).enumerate() {
                    let request = DeviceRequest::MemoryRead {
                        address: physical + 8 * n as u64,
                        size: piece.len() as u8,
                    };
                    let value = self.ask(p, request)?.to_le_bytes();
                    piece.copy_from_slice(&value[..piece.len()]);
                }
            }
        }
        Ok(())
    }

    /// Writes bytes, of any number; at most 4,096 of them are checked as one before any is
    /// written.
    ///
    /// # Errors
    /// #PF, or a device has to be told.
    pub fn write_bytes(
        &mut self,
        p: &mut dyn Platform,
        linear: u64,
        from: &[u8],
        as_: As,
    ) -> Result<(), Stop> {
        let mut at = linear;
        for chunk in from.chunks(CHUNK) {
            let places = self.places(at, chunk.len(), Access::Write, as_)?;
            self.note_breakpoints(at, chunk.len() as u64, Access::Write);
            let (first, second) = chunk.split_at(places.split);
            let pieces = [(Some(places.first), first), (places.second, second)];
            // Devices first: they may stop the instruction, and nothing of it may have happened.
            for (place, bytes) in &pieces {
                if let Some(Place::Device { physical }) = *place {
                    self.write_device(p, physical, bytes)?;
                }
            }
            for (place, bytes) in &pieces {
                if let Some(Place::Ram { host, physical }) = *place {
                    // SAFETY: the look-up found this part of a page in guest memory, which
                    // `ram` keeps mapped.
                    unsafe { host::copy_in(host, bytes) };
                    self.code.written(physical, bytes.len() as u64);
                }
            }
            at = self.advance_linear(at, CHUNK as u64);
        }
        Ok(())
    }

    fn write_device(
        &mut self,
        p: &mut dyn Platform,
        physical: u64,
        bytes: &[u8],
    ) -> Result<(), Stop> {
        for (n, piece) in bytes.chunks(8).enumerate() {
            let mut value = [0; 8];
            value[..piece.len()].copy_from_slice(piece);
            let request = DeviceRequest::MemoryWrite {
                address: physical + 8 * n as u64,
                size: piece.len() as u8,
                value: u64::from_le_bytes(value),
            };
            self.ask(p, request)?;
        }
        Ok(())
    }

    /// Whether an access would succeed; accessed and dirty bits are set as if it had.
    ///
    /// # Errors
    /// #PF.
    pub fn probe(
        &mut self,
        linear: u64,
        len: u64,
        access: Access,
        as_: As,
    ) -> Result<(), Exception> {
        let view = self.view_as(as_);
        let mut at = linear;
        let mut left = len;
        while left != 0 {
            self.lookup(at, access, view)?;
            let piece = left.min(PAGE - (at & OFFSET));
            at = self.advance_linear(at, piece);
            left -= piece;
        }
        Ok(())
    }

    /// Reads, computes, writes: the page is checked for the write before anything is read.
    /// Returns what was there. With `locked` nobody else changes it between, as with LOCK; `f` may
    /// then be called several times.
    ///
    /// # Errors
    /// #PF, #AC, or a device has to be asked.
    pub fn update<T: Word>(
        &mut self,
        p: &mut dyn Platform,
        linear: u64,
        locked: bool,
        f: &mut dyn FnMut(T) -> T,
    ) -> Result<T, Stop> {
        self.check_alignment(linear, T::SIZE, As::Current)?;
        if linear & OFFSET > PAGE - T::SIZE {
            return self.update_split(p, linear, locked, f);
        }
        let place = self.lookup(linear, Access::Write, self.view())?;
        self.note_breakpoints(linear, T::SIZE, Access::Write);
        match place {
            Place::Ram { host, physical } => {
                // SAFETY: the look-up found these bytes in guest memory, which `ram` keeps
                // mapped.
                let mut old = unsafe { T::load(host) };
                if locked {
                    loop {
                        let new = f(old);
                        // SAFETY: as above.
                        let was = unsafe { T::compare_exchange(host, old, new) };
                        if was == old {
                            break;
                        }
                        old = was;
                    }
                } else {
                    // SAFETY: as above.
                    unsafe { f(old).store(host) };
                }
                self.code.written(physical, T::SIZE);
                Ok(old)
            }
            Place::Device { physical } => {
                let (address, size) = (physical, T::SIZE as u8);
                let old = self.ask(p, DeviceRequest::MemoryRead { address, size })?;
                let old = T::narrow(old);
                let value = f(old).widen();
                let request = DeviceRequest::MemoryWrite {
                    address,
                    size,
                    value,
                };
                self.ask(p, request)?;
                Ok(old)
            }
        }
    }

    /// [`Cpu::update`] across a page's end. Locked against others of its kind only.
    fn update_split<T: Word>(
        &mut self,
        p: &mut dyn Platform,
        linear: u64,
        locked: bool,
        f: &mut dyn FnMut(T) -> T,
    ) -> Result<T, Stop> {
        let size = T::SIZE as usize;
        self.places(linear, size, Access::Write, As::Current)?;
        let code = self.code.clone();
        let _guard = locked.then(|| code.split_lock());
        let mut bytes = [0; 8];
        self.read_bytes(p, linear, &mut bytes[..size], As::Current)?;
        let old = T::narrow(u64::from_le_bytes(bytes));
        let bytes = f(old).widen().to_le_bytes();
        self.write_bytes(p, linear, &bytes[..size], As::Current)?;
        Ok(old)
    }

    /// CMPXCHG16B: stores `new` if `old` is there. Tells whether it was, and what was there. The
    /// address is a multiple of 16.
    ///
    /// # Errors
    /// #PF, #GP(0) for another address, or a device has to be asked.
    pub fn compare_exchange_16(
        &mut self,
        p: &mut dyn Platform,
        linear: u64,
        old: u128,
        new: u128,
    ) -> Result<(bool, u128), Stop> {
        if linear & 15 != 0 {
            return Err(Exception::gp(0).into());
        }
        let place = self.lookup(linear, Access::Write, self.view())?;
        self.note_breakpoints(linear, 16, Access::Write);
        match place {
            Place::Ram { host, physical } => {
                // SAFETY: the look-up found these bytes in guest memory, which `ram` keeps
                // mapped; pages are aligned alike in guest and host, so the host address is a
                // multiple of 16 too.
                let was = unsafe { host::compare_exchange_16(host, old, new) };
                self.code.written(physical, 16);
                Ok((was == old, was))
            }
            Place::Device { physical } => {
                let mut bytes = [0; 16];
                self.read_piece(p, place, &mut bytes)?;
                let was = u128::from_le_bytes(bytes);
                let stored = if was == old { new } else { was };
                self.write_device(p, physical, &stored.to_le_bytes())?;
                Ok((was == old, was))
            }
        }
    }

    /// The next linear address, which wraps at 4 GiB where there are no longer ones.
    fn advance_linear(&self, linear: u64, by: u64) -> u64 {
        let next = linear.wrapping_add(by);
        if self.mode.has(Mode::LONG) {
            next
        } else {
            next & 0xffff_ffff
        }
    }

    /// The one or two pages of an access of at most [`CHUNK`] bytes, all checked.
    fn places(
        &mut self,
        linear: u64,
        len: usize,
        access: Access,
        as_: As,
    ) -> Result<Places, Exception> {
        let view = self.view_as(as_);
        let room = (PAGE - (linear & OFFSET)) as usize;
        let first = self.lookup(linear, access, view)?;
        let second = if len > room {
            let next = self.advance_linear(linear, room as u64);
            Some(self.lookup(next, access, view)?)
        } else {
            None
        };
        Ok(Places {
            first,
            second,
            split: len.min(room),
        })
    }

    /// #AC (SDM vol. 3A 6.15, vector 17).
    fn check_alignment(&self, linear: u64, size: u64, as_: As) -> Result<(), Exception> {
        if self.mode.has(Mode::ALIGNMENT) && as_ == As::Current && linear & (size - 1) != 0 {
            return Err(Exception::with_code(Exception::AC, 0));
        }
        Ok(())
    }

    /// Notes which data breakpoints this access hits ([`Cpu::breakpoints`]). Watched pages have
    /// no entries in the soft TLB, so that every access to them comes by here.
    fn note_breakpoints(&mut self, linear: u64, len: u64, access: Access) {
        if self.dr7 & 0xff == 0 {
            return;
        }
        for n in 0..4 {
            if self.dr7 >> (2 * n) & 3 == 0 {
                continue;
            }
            let control = self.dr7 >> (16 + 4 * n) & 0xf;
            let (kind, size) = (control & 3, [1, 2, 8, 4][(control >> 2) as usize]);
            let wanted = match kind {
                1 => access == Access::Write,
                3 => true,
                _ => false,
            };
            let first = self.dr[n] & !(size - 1);
            let overlaps = first.wrapping_sub(linear) < len || linear.wrapping_sub(first) < size;
            if wanted && overlaps {
                self.breakpoints |= 1 << n;
            }
        }
    }
}

/// Where an access of up to two pages leads.
struct Places {
    first: Place,
    second: Option<Place>,
    /// Bytes in the first page.
    split: usize,
}

impl Cpu {
    /// Asks for a device access: what was answered to this instruction before, else the
    /// platform, else the machine. Writes are answered with any value.
    ///
    /// # Errors
    /// [`Stop::Device`]: the machine has to answer ([`Cpu::answer`]).
    pub fn ask(&mut self, p: &mut dyn Platform, request: DeviceRequest) -> Result<u64, Stop> {
        if let Some((asked, value)) = self.answers.get(self.answers_used) {
            if *asked == request {
                self.answers_used += 1;
                return Ok(*value);
            }
            // Somebody changed the instruction or its operands meanwhile.
            self.answers.truncate(self.answers_used);
        }
        let answer = match request {
            DeviceRequest::MemoryRead { address, size } => p.device_read(address, size),
            DeviceRequest::MemoryWrite {
                address,
                size,
                value,
            } => p.device_write(address, size, value).then_some(0),
            DeviceRequest::PortRead { .. } => None,
            DeviceRequest::PortWrite { port, size, value } => {
                p.port_write(port, size, value).then_some(0)
            }
        };
        let value = answer.ok_or(Stop::Device(request))?;
        // Kept: the instruction may stop later and run again, but not act on the device twice.
        self.answers.push((request, value));
        self.answers_used += 1;
        Ok(value)
    }

    /// The machine's answer to [`Stop::Device`]; for writes any value. The instruction runs
    /// again and finds it.
    pub fn answer(&mut self, request: DeviceRequest, value: u64) {
        self.answers.push((request, value));
    }

    /// An instruction begins, perhaps again.
    pub(crate) fn begin(&mut self) {
        self.answers_used = 0;
        self.breakpoints = 0;
    }

    /// The instruction completed or raised an exception: its answers are used up.
    pub(crate) fn forget_answers(&mut self) {
        self.answers.clear();
        self.answers_used = 0;
    }
}
