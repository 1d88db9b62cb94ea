use std::io;

use memory::GuestMemoryError;

/// Why the board could not be laid out or a kernel not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BoardError {
    /// Too little RAM.
    #[error(
        "{size} bytes of memory are too little: the machine needs {} MiB or more",
        crate::memory_map::MIN_RAM >> 20
    )]
    RamTooSmall {
        /// What was asked for, in bytes.
        size: u64,
    },
    /// A size that is no multiple of the page size.
    #[error("{what} of {size} bytes is not a multiple of {} KiB", .align >> 10)]
    RamUnaligned {
        /// What was asked for.
        what: &'static str,
        /// Its size in bytes.
        size: u64,
        /// What it has to be a multiple of, in bytes.
        align: u64,
    },
    /// The guest's processor cannot address its RAM.
    #[error(
        "memory up to {end:#x} does not fit in the processor's {phys_bits} address bits: give the guest less memory or a processor with more (phys-bits)"
    )]
    RamBeyondAddressBits {
        /// First address behind the RAM.
        end: u64,
        /// Physical address bits of the guest's processor.
        phys_bits: u8,
    },
    /// A number of address bits that no processor has.
    #[error("{phys_bits} physical address bits: a processor has 32 to 52")]
    PhysBits {
        /// What was asked for.
        phys_bits: u8,
    },
    /// The tables do not go where they must.
    #[error(
        "the {what} tables take {size} bytes, and there is room for {room}: fewer processors or devices help"
    )]
    TablesTooLarge {
        /// "ACPI" or "SMBIOS".
        what: &'static str,
        /// Their size in bytes.
        size: u64,
        /// Bytes there are.
        room: u64,
    },
    /// More processors than the tables can name.
    #[error("{cpus} processors are too many: the ACPI tables can name {max}")]
    TooManyCpus {
        /// Processors asked for.
        cpus: usize,
        /// Limit.
        max: usize,
    },
    /// Guest memory refused an access: the map and the RAM do not belong together.
    #[error("cannot write {what} to guest memory at {address:#x}")]
    GuestMemory {
        /// What was being written.
        what: &'static str,
        /// Where.
        address: u64,
        /// Reason.
        #[source]
        source: GuestMemoryError,
    },
    /// A file could not be read.
    #[error("cannot read the {what} at offset {offset}")]
    Read {
        /// "kernel" or "initrd".
        what: &'static str,
        /// Offset in the file, bytes.
        offset: u64,
        /// Reason.
        #[source]
        source: io::Error,
    },
    /// The file is no kernel.
    #[error(
        "{name} is no kernel: expected a bzImage, an ELF file (vmlinux) or a Multiboot kernel, found {found}"
    )]
    NotAKernel {
        /// Its name.
        name: String,
        /// What it looks like.
        found: String,
    },
    /// A kernel, but one that this machine cannot start.
    #[error("cannot boot the {kind} {name}: {problem}")]
    Kernel {
        /// Its name.
        name: String,
        /// What it is.
        kind: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The kernel needs more memory than there is.
    #[error(
        "the kernel needs memory at {start:#x} to {end:#x}, and the guest's memory below 4 GiB ends at {ram_end:#x}: give the guest more memory"
    )]
    KernelBeyondRam {
        /// First address.
        start: u64,
        /// First address behind it.
        end: u64,
        /// End of usable low RAM.
        ram_end: u64,
    },
    /// The initrd finds no place.
    #[error(
        "the initrd of {size} bytes does not fit between {start:#x} (end of the kernel) and {end:#x}: give the guest more memory"
    )]
    InitrdTooLarge {
        /// Its size in bytes.
        size: u64,
        /// First usable address.
        start: u64,
        /// First address that is not usable.
        end: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error("the kernel's command line has {len} bytes, and this kernel takes {max}")]
    CmdlineTooLong {
        /// Its length in bytes.
        len: usize,
        /// Limit in bytes.
        max: usize,
    },
    /// The command line holds a zero byte.
    #[error("the kernel's command line has a zero byte at position {position}")]
    CmdlineZero {
        /// Its position.
        position: usize,
    },
}
