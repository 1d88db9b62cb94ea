//! Making images.

use event::WriteFlags;

use super::header::{
    Compression, Header, MAX_BACKING_NAME, MAX_L1_BYTES, MAX_SIZE, autoclear, compatible, crypt,
    incompatible, l1_entries,
};
use super::layout::{Entry, Layout};
use super::open::Opened;
use super::{Core, Qcow2Error, Qcow2Options, buffer};
use crate::crypt::new_header;
use crate::storage::Storage;
use crate::{CryptError, NewEncryption};

spec::choice! {
    /// How much of an image is there before it is written.
    pub enum Preallocation {
        /// Nothing.
        Off = "off",
        /// The tables.
        Metadata = "metadata",
        /// The tables, and space on the host that reads as zeros.
        Falloc = "falloc",
        /// Every byte, by writing zeros.
        Full = "full",
    }
}

/// What a new image is to be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateOptions {
    /// Bytes of the disk.
    pub size: u64,
    /// 2 or 3.
    pub version: u32,
    /// Bytes of a cluster, a power of two from 512 to 2 MiB.
    pub cluster_size: u64,
    /// Width of refcounts, a power of two from 1 to 64.
    pub refcount_bits: u32,
    /// Do not keep refcounts up to date while the image is open.
    pub lazy_refcounts: bool,
    /// Divide clusters into 32 subclusters.
    pub extended_l2: bool,
    /// How clusters will be compressed.
    pub compression: Compression,
    /// What is there before it is written.
    pub preallocation: Preallocation,
    /// Name of the backing file.
    pub backing_file: Option<Vec<u8>>,
    /// Its format.
    pub backing_format: Option<String>,
    /// Name of the external data file.
    pub data_file: Option<Vec<u8>>,
    /// The external data file is to be a raw image by itself.
    pub data_file_raw: bool,
    /// How guests' data is to be encrypted.
    pub encryption: Option<NewEncryption>,
}

impl CreateOptions {
    /// A disk of `size` bytes with everything else as usual.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self {
            size,
            version: 3,
            cluster_size: 64 << 10,
            refcount_bits: 16,
            lazy_refcounts: false,
            extended_l2: false,
            compression: Compression::Zlib,
            preallocation: Preallocation::Off,
            backing_file: None,
            backing_format: None,
            data_file: None,
            data_file_raw: false,
            encryption: None,
        }
    }

    pub(crate) fn check(&self) -> Result<(), Qcow2Error> {
        let wrong = |why| Err(Qcow2Error::Unsupported(why));
        if !self.cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&self.cluster_size) {
            return wrong("cluster sizes are powers of two from 512 bytes to 2 MiB");
        }
        if !self.refcount_bits.is_power_of_two() || self.refcount_bits > 64 {
            return wrong("refcounts are 1, 2, 4, 8, 16, 32 or 64 bits wide");
        }
        if self.size > MAX_SIZE {
            return wrong("the disk is larger than 2^62 bytes");
        }
        if !matches!(self.version, 2 | 3) {
            return wrong("qcow2 has versions 2 (compat=0.10) and 3 (compat=1.1)");
        }
        let needs_v3 = self.lazy_refcounts
            || self.extended_l2
            || self.refcount_bits != 16
            || self.compression != Compression::Zlib
            || self.data_file.is_some();
        if self.version < 3 && needs_v3 {
            return wrong("that needs version 3 (compat=1.1)");
        }
        if self.extended_l2 && self.cluster_size < 16 << 10 {
            return wrong("extended L2 entries need clusters of at least 16 KiB");
        }
        if self.backing_file.is_some() && self.preallocation != Preallocation::Off {
            return wrong("an image with a backing file cannot be preallocated");
        }
        if self.data_file_raw && (self.data_file.is_none() || self.backing_file.is_some()) {
            return wrong("a raw external data file needs a data file and excludes a backing file");
        }
        if let Some(encryption) = &self.encryption {
            encryption.header.check().map_err(CryptError::from)?;
            if self.data_file_raw {
                return wrong("a raw external data file cannot be encrypted");
            }
            if self.version < 3 && self.preallocation != Preallocation::Off {
                return wrong("to preallocate an encrypted image needs version 3 (compat=1.1)");
            }
        }
        let names = self.backing_file.iter().chain(&self.data_file);
        for name in names {
            if name.len() > MAX_BACKING_NAME as usize || name.is_empty() || name.contains(&0) {
                return wrong("names of other files have 1 to 1023 bytes");
            }
        }
        Ok(())
    }

    fn header(&self) -> Result<Header, Qcow2Error> {
        self.check()?;
        let bits = self.cluster_size.trailing_zeros();
        let set = |yes: bool, bit: u64| if yes { bit } else { 0 };
        let zstd = self.compression != Compression::Zlib;
        let size = self.size.next_multiple_of(super::SECTOR);
        let entries = l1_entries(size, bits, self.extended_l2);
        if entries * 8 > MAX_L1_BYTES {
            return Err(Qcow2Error::Unsupported(
                "the disk is too large for clusters of that size",
            ));
        }
        let mut header = Header {
            version: self.version,
            cluster_bits: bits,
            size,
            crypt_method: match &self.encryption {
                None => 0,
                Some(_) => crypt::LUKS,
            },
            l1_size: entries as u32,
            l1_offset: 0,
            refcount_table_offset: 0,
            refcount_table_clusters: 0,
            snapshots: 0,
            snapshots_offset: 0,
            incompatible: set(self.extended_l2, incompatible::EXTENDED_L2)
                | set(zstd, incompatible::COMPRESSION)
                | set(self.data_file.is_some(), incompatible::DATA_FILE),
            compatible: set(self.lazy_refcounts, compatible::LAZY_REFCOUNTS),
            autoclear: set(self.data_file_raw, autoclear::RAW_DATA_FILE),
            refcount_order: self.refcount_bits.trailing_zeros(),
            compression: self.compression,
            unknown_fields: Vec::new(),
            backing_file: self.backing_file.clone(),
            backing_format: self.backing_format.clone(),
            data_file: self.data_file.clone(),
            bitmaps: None,
            encryption: None,
            other_extensions: Vec::new(),
        };
        // Small clusters have no room for what is only told to people.
        if self.version >= 3 && self.cluster_size >= 4096 {
            header.add_feature_names();
        }
        Ok(header)
    }
}

/// Makes an image in an empty storage.
///
/// # Errors
/// The options contradict one another; the host fails.
pub async fn create<S: Storage>(image: &S, options: &CreateOptions) -> Result<(), Qcow2Error> {
    let mut header = options.header()?;
    let layout = Layout::of(&header);
    let bits = layout.cluster_bits;
    let l1_clusters = (u64::from(header.l1_size) * 8)
        .div_ceil(layout.cluster())
        .max(1);
    let luks = match &options.encryption {
        None => Vec::new(),
        Some(new) => new_header(new).await?,
    };
    let luks_clusters = (luks.len() as u64).div_ceil(layout.cluster());
    let behind_blocks = l1_clusters + luks_clusters;
    // Header, refcount table, refcount blocks, L1, LUKS: each counts, and so do the blocks.
    let (mut table, mut blocks) = (1, 1);
    loop {
        let clusters = 1 + table + blocks + behind_blocks;
        let needed = clusters.div_ceil(layout.block_refcounts());
        let room = (needed * 8).div_ceil(layout.cluster());
        if (room, needed) == (table, blocks) {
            break;
        }
        (table, blocks) = (room, needed);
    }
    header.refcount_table_offset = 1 << bits;
    header.refcount_table_clusters = table as u32;
    header.l1_offset = (1 + table + blocks) << bits;
    let luks_first = 1 + table + blocks + l1_clusters;
    if options.encryption.is_some() {
        header.encryption = Some((luks_first << bits, luks.len() as u64));
    }
    let clusters = luks_first + luks_clusters;
    let fail = || Qcow2Error::io("write the new image");
    let cluster = layout.cluster() as usize;
    let first = header.encode()?;
    for index in 1..luks_first {
        let mut bytes = vec![0; cluster];
        if index <= table {
            let first = (index - 1) * layout.cluster() / 8;
            let words = bytes.chunks_exact_mut(8).zip(first..blocks.max(first));
            for (word, block) in words {
                word.copy_from_slice(&((1 + table + block) << bits).to_be_bytes());
            }
        } else if index <= table + blocks {
            let first = (index - 1 - table) * layout.block_refcounts();
            let width = 1u64 << layout.refcount_order;
            for at in 0..layout.block_refcounts().min(clusters.saturating_sub(first)) {
                // Big-endian bytes; less than a byte from the least significant bit on.
                let (byte, bit) = match width >= 8 {
                    true => ((at + 1) * width / 8 - 1, 0),
                    false => (at * width / 8, at * width % 8),
                };
                if let Some(byte) = bytes.get_mut(byte as usize) {
                    *byte |= 1 << bit;
                }
            }
        }
        let buf = buffer::aligned(&bytes).map_err(fail())?;
        let flags = WriteFlags::default();
        image
            .write(buf, index << bits, flags)
            .await
            .0
            .map_err(fail())?;
    }
    if luks_clusters != 0 {
        let mut bytes = luks;
        bytes.resize((luks_clusters << bits) as usize, 0);
        let buf = buffer::aligned(&bytes).map_err(fail())?;
        let flags = WriteFlags::default();
        let written = image.write(buf, luks_first << bits, flags).await;
        written.0.map_err(fail())?;
    }
    image.flush().await.map_err(fail())?;
    // The header is last: whoever finds one finds a whole image, whenever the power failed.
    let mut bytes = vec![0; cluster];
    if let Some(to) = bytes.get_mut(..first.len()) {
        to.copy_from_slice(&first);
    }
    let buf = buffer::aligned(&bytes).map_err(fail())?;
    let written = image.write(buf, 0, WriteFlags::default()).await;
    written.0.map_err(fail())?;
    image.flush().await.map_err(fail())
}

/// Takes clusters for all of a new disk.
///
/// # Errors
/// The host fails; there is not enough space.
pub async fn preallocate<S: Storage>(
    files: Opened<S>,
    options: &CreateOptions,
) -> Result<(), Qcow2Error> {
    let qcow2_options = Qcow2Options {
        key: options
            .encryption
            .as_ref()
            .map(|new| new.passphrase.clone()),
        ..Qcow2Options::default()
    };
    let core = Core::open(files, qcow2_options).await?;
    let fail = || Qcow2Error::io("preallocate the image");
    core.preallocate(options.preallocation)
        .await
        .map_err(fail())?;
    core.close().await.map_err(fail())
}

impl<S: Storage> Core<S> {
    async fn preallocate(&self, how: Preallocation) -> std::io::Result<()> {
        let layout = &self.layout;
        let bits = layout.cluster_bits;
        let clusters = self.size().div_ceil(layout.cluster());
        let mut cluster = 0;
        self.before_allocation().await?;
        while cluster < clusters {
            let index = self.slice_of(cluster);
            let slice = self.l2_slice_to_change(index).await?;
            let end = ((index + 1) * layout.slice_entries()).min(clusters);
            while cluster < end {
                let (first, count) = match layout.data_file {
                    true => (cluster, end - cluster),
                    false => {
                        let run = self.allocate(end - cluster).await?;
                        (run.first, run.count)
                    }
                };
                let (host, len) = (first << bits, count << bits);
                match how {
                    Preallocation::Full => self.write_all_zeroes(host, len).await?,
                    Preallocation::Falloc => self.data().reserve(host, len).await?,
                    Preallocation::Metadata | Preallocation::Off => (),
                }
                // What is not written would not decrypt to zeros.
                let (allocated, zero) = match self.crypt {
                    Some(_) => (0, layout.all()),
                    None => (layout.all(), 0),
                };
                for at in 0..count {
                    let entry = Entry::Standard {
                        host: Some((first + at) << bits),
                        copied: true,
                        allocated,
                        zero,
                    };
                    self.set_entry(&slice, cluster + at, entry);
                }
                cluster += count;
            }
            self.relieve().await;
        }
        // What was taken is inside of the file.
        let end = match layout.data_file {
            true => self.size(),
            false => self.refcounts.end() << bits,
        };
        if self.data().size() < end {
            self.data()
                .resize(end)
                .await
                .map_err(std::io::Error::other)?;
        }
        Ok(())
    }

    /// Writes zeros, so that every byte has its place on the host.
    async fn write_all_zeroes(&self, mut at: u64, len: u64) -> std::io::Result<()> {
        const PIECE: u64 = 1 << 20;
        let end = at + len;
        while at < end {
            let piece = PIECE.min(end - at);
            let zeros = buffer::zeroed(piece as usize)?;
            self.data()
                .write(zeros, at, WriteFlags::default())
                .await
                .0?;
            at += piece;
        }
        Ok(())
    }
}
