use std::sync::atomic::Ordering;

use memory::{AtomicAccess, Bytes, GuestAddress, GuestMemoryBackend, Ram, VolatileSlice};

use super::QueueError;

/// A part of a ring in guest memory, with little-endian fields.
#[derive(Clone, Copy)]
pub(super) struct Area<'a> {
    ram: &'a Ram,
    address: u64,
    slice: VolatileSlice<'a>,
}

impl<'a> Area<'a> {
    /// The `len` bytes at `address`, which must be within one region.
    pub(super) fn new(ram: &'a Ram, address: u64, len: usize) -> Result<Self, QueueError> {
        match ram.get_slice(GuestAddress(address), len) {
            Ok(slice) => Ok(Self {
                ram,
                address,
                slice,
            }),
            Err(_) => Err(QueueError::NotRam {
                address,
                len: len as u64,
            }),
        }
    }

    fn load<T: AtomicAccess>(&self, offset: usize, order: Ordering) -> Result<T, QueueError> {
        self.slice.load(offset, order).map_err(QueueError::Memory)
    }

    fn store<T: AtomicAccess>(
        &self,
        offset: usize,
        value: T,
        order: Ordering,
    ) -> Result<(), QueueError> {
        self.slice
            .store(value, offset, order)
            .map_err(QueueError::Memory)?;
        memory::written(
            self.ram,
            self.address + offset as u64,
            size_of::<T>() as u64,
        );
        Ok(())
    }

    pub(super) fn load_u16(&self, offset: usize, order: Ordering) -> Result<u16, QueueError> {
        self.load(offset, order).map(u16::from_le)
    }

    pub(super) fn load_u32(&self, offset: usize, order: Ordering) -> Result<u32, QueueError> {
        self.load(offset, order).map(u32::from_le)
    }

    /// Two consecutive 64-bit numbers. Rings are aligned, but an indirect table need not be.
    pub(super) fn load_pair(&self, offset: usize) -> Result<[u64; 2], QueueError> {
        if self.slice.ptr_guard().as_ptr().addr().is_multiple_of(8) {
            let first = self.load(offset, Ordering::Relaxed)?;
            let second = self.load(offset + 8, Ordering::Relaxed)?;
            return Ok([u64::from_le(first), u64::from_le(second)]);
        }
        let mut bytes = [0; 16];
        self.slice
            .read_slice(&mut bytes, offset)
            .map_err(QueueError::Memory)?;
        let pair = u128::from_le_bytes(bytes);
        Ok([pair as u64, (pair >> 64) as u64])
    }

    pub(super) fn store_u16(
        &self,
        offset: usize,
        value: u16,
        order: Ordering,
    ) -> Result<(), QueueError> {
        self.store(offset, value.to_le(), order)
    }

    pub(super) fn store_u32(
        &self,
        offset: usize,
        value: u32,
        order: Ordering,
    ) -> Result<(), QueueError> {
        self.store(offset, value.to_le(), order)
    }

    pub(super) fn store_u64(
        &self,
        offset: usize,
        value: u64,
        order: Ordering,
    ) -> Result<(), QueueError> {
        self.store(offset, value.to_le(), order)
    }
}
