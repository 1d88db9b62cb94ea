//! What keeps an instruction from completing.

/// An exception (SDM vol. 3A 6.15) with what its delivery needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    /// Vector.
    pub vector: u8,
    /// Error code, for the vectors that push one.
    pub error_code: Option<u32>,
    /// New CR2 (#PF), or the bits to set in DR6 (#DB).
    pub payload: u64,
}

#[expect(missing_docs, reason = "vectors with the manual's mnemonics")]
impl Exception {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
}

impl Exception {
    /// An exception without an error code.
    #[must_use]
    pub const fn plain(vector: u8) -> Self {
        Exception {
            vector,
            error_code: None,
            payload: 0,
        }
    }

    /// An exception with an error code.
    #[must_use]
    pub const fn with_code(vector: u8, error_code: u32) -> Self {
        Exception {
            vector,
            error_code: Some(error_code),
            payload: 0,
        }
    }

    /// A page fault at this linear address.
    #[must_use]
    pub const fn page_fault(address: u64, error_code: u32) -> Self {
        Exception {
            vector: Self::PF,
            error_code: Some(error_code),
            payload: address,
        }
    }

    /// #UD.
    #[must_use]
    pub const fn ud() -> Self {
        Self::plain(Self::UD)
    }

    /// #GP with this error code.
    #[must_use]
    pub const fn gp(error_code: u32) -> Self {
        Self::with_code(Self::GP, error_code)
    }
}

/// What is done with memory; the bits of a page fault's error code follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// A read of data.
    Read,
    /// A write, or a read that will be written: the page must be writable.
    Write,
    /// An instruction fetch.
    Execute,
}

/// An access to a device, which the machine around the processor must carry out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceRequest {
    /// Read of `size` bytes outside of RAM.
    MemoryRead {
        /// Guest-physical address.
        address: u64,
        /// 1 to 8 bytes.
        size: u8,
    },
    /// Write of the low `size` bytes of `value` outside of RAM.
    MemoryWrite {
        /// Guest-physical address.
        address: u64,
        /// 1 to 8 bytes.
        size: u8,
        /// Little-endian.
        value: u64,
    },
    /// IN.
    PortRead {
        /// Port.
        port: u16,
        /// 1, 2 or 4 bytes.
        size: u8,
    },
    /// OUT.
    PortWrite {
        /// Port.
        port: u16,
        /// 1, 2 or 4 bytes.
        size: u8,
        /// Little-endian.
        value: u32,
    },
}

/// Why an instruction did not complete. Nothing of it has happened, but for whole iterations of
/// a repeated string instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// It raised an exception, which is to be delivered.
    Exception(Exception),
    /// It accesses a device. Give the answer to `Cpu::answer` and run it again: it finds the
    /// answers of all its accesses so far and goes on to the next.
    Device(DeviceRequest),
    /// HLT (or MWAIT) completed: wait for an interrupt. RIP is behind it.
    Halt,
    /// An exception during the delivery of a double fault: the processor shut down.
    TripleFault,
    /// The platform wants the thread back: [`crate::Cpu::attention`] is set. RIP is where to go
    /// on.
    Attention,
}

impl From<Exception> for Stop {
    fn from(exception: Exception) -> Self {
        Stop::Exception(exception)
    }
}
