use std::sync::Mutex;

use memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestRam};

/// The memory of a guest that only runs a driver. Clones are the same guest.
#[derive(Clone)]
pub struct Guest {
    memory: GuestRam,
    next: std::sync::Arc<Mutex<u64>>,
}

impl Guest {
    /// A guest with RAM at `0 .. size`; `size` is a multiple of 4096.
    ///
    /// # Panics
    /// The host has no memory.
    #[must_use]
    pub fn new(size: usize) -> Self {
        Self::with_memory(memory::small(size).expect("guest memory"))
    }

    /// A guest with this memory, of which the first page stays unused.
    #[must_use]
    pub fn with_memory(memory: GuestRam) -> Self {
        Self {
            memory,
            next: std::sync::Arc::new(Mutex::new(4096)),
        }
    }

    /// The memory, for the device.
    #[must_use]
    pub fn memory(&self) -> &GuestRam {
        &self.memory
    }

    /// The address of `len` bytes that nobody else uses, aligned to `align` (a power of two).
    /// Nothing is ever given back.
    ///
    /// # Panics
    /// The memory is full.
    #[must_use]
    pub fn alloc(&self, len: usize, align: u64) -> u64 {
        let mut next = self.next.lock().expect("no allocation panics");
        let address = next.next_multiple_of(align);
        let range = self.memory.memory().check_range(GuestAddress(address), len);
        assert!(range, "the test guest's memory is full");
        *next = address + len as u64;
        address
    }

    /// Fresh memory that holds `bytes`.
    #[must_use]
    pub fn put(&self, bytes: &[u8]) -> u64 {
        let address = self.alloc(bytes.len(), 16);
        self.write(address, bytes);
        address
    }

    /// Writes memory.
    ///
    /// # Panics
    /// There is no memory.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        let ram = self.memory.memory();
        ram.write_slice(bytes, GuestAddress(address)).expect("RAM");
    }

    /// Reads memory.
    ///
    /// # Panics
    /// There is no memory.
    #[must_use]
    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let ram = self.memory.memory();
        ram.read_slice(&mut bytes, GuestAddress(address))
            .expect("RAM");
        bytes
    }
}
