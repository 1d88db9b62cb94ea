use std::path::PathBuf;

use spec::Size;

spec::choice! {
    /// How an image's bytes relate to the guest's disk.
    pub enum Format {
        /// Byte for byte.
        Raw = "raw",
        /// qcow2, versions 2 and 3.
        Qcow2 = "qcow2",
        /// LUKS version 1: encrypted sectors behind a header.
        Luks = "luks",
    }
}

spec::choice! {
    /// How far a write gets before the guest is told that it is done.
    pub enum Cache {
        /// Into the host's page cache; on the disk after a flush.
        Writeback = "writeback",
        /// Past the host's page cache (O_DIRECT); on the disk after a flush.
        None = "none",
        /// Through the host's page cache onto the disk.
        Writethrough = "writethrough",
        /// Past the host's page cache onto the disk.
        Directsync = "directsync",
        /// Into the host's page cache; flushes are ignored, so a host's crash destroys the disk.
        Unsafe = "unsafe",
    }
}

impl Cache {
    /// Whether the host's page cache is bypassed (O_DIRECT).
    #[must_use]
    pub fn is_direct(self) -> bool {
        matches!(self, Cache::None | Cache::Directsync)
    }

    /// Whether the guest is shown a volatile write cache that it has to flush. Without one,
    /// every write is made stable before it completes.
    #[must_use]
    pub fn is_writeback(self) -> bool {
        matches!(self, Cache::Writeback | Cache::None | Cache::Unsafe)
    }

    /// Whether flushes do nothing.
    #[must_use]
    pub fn ignores_flush(self) -> bool {
        self == Cache::Unsafe
    }
}

spec::choice! {
    /// Who carries out requests on the host.
    pub enum Aio {
        /// io_uring on the I/O thread; threads where the host forbids it.
        IoUring = "io_uring",
        /// A pool of threads with preadv and pwritev.
        Threads = "threads",
    }
}

spec::choice! {
    /// What becomes of sectors that the guest discards.
    pub enum Discard {
        /// Their space is given back to the host.
        Unmap = "unmap",
        /// Nothing.
        Ignore = "ignore",
    }
}

spec::choice! {
    /// Whether the image is locked against other processes, compatibly with QEMU.
    pub enum Locking {
        /// Always; an error where the file system cannot.
        On = "on",
        /// Never.
        Off = "off",
        /// Where the file system can.
        Auto = "auto",
    }
}

spec::choice! {
    /// Which other files an image's header may lead to: whoever made the image chose their names.
    pub enum BackingFiles {
        /// Those in the image's own directory or below it.
        SameDirectory = "same-directory",
        /// Any that this process may open.
        Any = "any",
        /// None: an image that needs one is refused.
        None = "none",
    }
}

spec::spec! {
    /// A disk's image: where its bytes are, and how they are reached.
    pub struct DiskSpec("disk") {
        /// Path of the image file or host block device, or where a disk of a machine is at an NBD
        /// server: nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH.
        file: PathBuf,
        /// Format of the image; when not given, qcow2 if its name ends in .qcow2, and raw
        /// otherwise, but then an image that looks like another format is refused.
        format: Option<Format>,
        /// How far a write gets before the guest is told that it is done.
        cache: Cache = Cache::Writeback,
        /// Who carries out requests on the host.
        aio: Aio = Aio::IoUring,
        /// Refuse to write; several processes may then use the image at once.
        read_only: bool = false,
        /// What becomes of sectors that the guest discards.
        discard: Discard = Discard::Unmap,
        /// Whether the image is locked against other processes, compatibly with QEMU.
        locking: Locking = Locking::Auto,
        /// Which other files the image's header may lead to (backing file, external data file).
        backing_files: BackingFiles = BackingFiles::SameDirectory,
        /// qcow2: most memory for L2 tables.
        l2_cache_size: Size = Size(32 << 20),
        /// qcow2: most memory for refcounts.
        refcount_cache_size: Size = Size(1 << 20),
        /// qcow2: discarded clusters keep their place in the image.
        discard_no_unref: bool = false,
        /// File whose bytes, all of them, are the passphrase of an encrypted image, and of those
        /// below it.
        key_file: Option<PathBuf>,
        /// Name of the node in the block graph; made from the path when not given.
        node_name: Option<String>,
    }
}

impl DiskSpec {
    /// The image at `file` with every other property at its default.
    #[must_use]
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self {
            file: file.into(),
            format: None,
            cache: Cache::Writeback,
            aio: Aio::IoUring,
            read_only: false,
            discard: Discard::Unmap,
            locking: Locking::Auto,
            backing_files: BackingFiles::SameDirectory,
            l2_cache_size: Size(32 << 20),
            refcount_cache_size: Size(1 << 20),
            discard_no_unref: false,
            key_file: None,
            node_name: None,
        }
    }
}
