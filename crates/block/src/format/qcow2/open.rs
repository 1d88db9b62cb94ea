//! Opening.

use std::sync::{Arc, OnceLock};

use luks::Passphrase;

use super::bitmaps::Bitmaps;
use super::check::Repair;
use super::checkpoint::Checkpoints;
use super::compress::Decompressed;
use super::header::{Compression, Header, compatible, crypt, incompatible};
use super::layout::{L1Entry, Layout, refcount_block};
use super::refcounts::Refcounts;
use super::slices::Slices;
use super::{Core, L1, Qcow2, Qcow2Error, SECTOR, read_bytes};
use crate::crypt::Crypt;
use crate::graph::{Edge, Vertex};
use crate::storage::Storage;
use crate::stripes::Stripes;
use crate::sync::atomic::{AtomicBool, AtomicU64};
use crate::sync::{Mutex, RwLock};
use crate::{CryptError, Discard, Encryption, SizeWatchers, buffer};

/// Bytes of L2 tables that are cached at most, unless the user says otherwise. What is not used
/// costs nothing.
const L2_CACHE: u64 = 32 << 20;
const REFCOUNT_CACHE: u64 = 1 << 20;
/// Stripes of guest ranges, and the least bytes of one.
const RANGES: usize = 1024;
const RANGE: u64 = 4096;
const TABLES: usize = 64;
/// Images with more refcounts than fit into so many bytes are not searched for free clusters
/// from their beginning.
const SEARCHED: u64 = 4 << 20;

/// How an image is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qcow2Options {
    /// Bytes of L2 tables that are cached.
    pub l2_cache: u64,
    /// Bytes of refcount blocks that are cached.
    pub refcount_cache: u64,
    /// What becomes of the host's space behind discarded clusters.
    pub discard: Discard,
    /// Discarded clusters keep their place in the image.
    pub discard_no_unref: bool,
    /// Count the references anew when the image was not closed.
    pub repair_dirty: bool,
    /// Open also what is marked corrupt, or dirty, for writing: for repairs.
    pub ignore_marks: bool,
    /// The passphrase of an encrypted image.
    pub key: Option<Passphrase>,
    /// An encrypted image opens without its passphrase; its data is then out of reach.
    pub metadata_only: bool,
}

impl Default for Qcow2Options {
    fn default() -> Self {
        Self {
            l2_cache: L2_CACHE,
            refcount_cache: REFCOUNT_CACHE,
            discard: Discard::Unmap,
            discard_no_unref: false,
            repair_dirty: true,
            ignore_marks: false,
            key: None,
            metadata_only: false,
        }
    }
}

/// Other files that an image's header names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct References {
    /// The backing file, as it is written there.
    pub backing_file: Option<Vec<u8>>,
    /// Its format.
    pub backing_format: Option<String>,
    /// The image needs an external data file.
    pub needs_data_file: bool,
    /// Which one.
    pub data_file: Option<Vec<u8>>,
}

/// What an image says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// 2 or 3.
    pub version: u32,
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// Width of refcounts.
    pub refcount_bits: u32,
    /// How clusters are compressed.
    pub compression: Compression,
    /// Refcounts are not kept up to date.
    pub lazy_refcounts: bool,
    /// L2 entries have subclusters.
    pub extended_l2: bool,
    /// It was not closed.
    pub dirty: bool,
    /// It is marked corrupt.
    pub corrupt: bool,
    /// The external data file is a raw image.
    pub data_file_raw: bool,
    /// Internal snapshots.
    pub snapshots: u32,
    /// How guests' data is encrypted.
    pub encryption: Option<Encryption>,
    /// Other files.
    pub references: References,
}

impl ImageInfo {
    pub(crate) fn of(header: &Header) -> Self {
        let has = |bit| header.incompatible & bit != 0;
        Self {
            version: header.version,
            size: header.size,
            cluster_size: header.cluster_size(),
            refcount_bits: 1 << header.refcount_order,
            compression: header.compression,
            lazy_refcounts: header.compatible & compatible::LAZY_REFCOUNTS != 0,
            extended_l2: has(incompatible::EXTENDED_L2),
            dirty: has(incompatible::DIRTY),
            corrupt: has(incompatible::CORRUPT),
            data_file_raw: header.autoclear & super::header::autoclear::RAW_DATA_FILE != 0,
            snapshots: header.snapshots,
            encryption: None,
            references: References::of(header),
        }
    }
}

impl References {
    fn of(header: &Header) -> Self {
        Self {
            backing_file: header.backing_file.clone(),
            backing_format: header.backing_format.clone(),
            needs_data_file: header.incompatible & incompatible::DATA_FILE != 0,
            data_file: header.data_file.clone(),
        }
    }

    /// Asks an image which other files it needs.
    ///
    /// # Errors
    /// It is no qcow2 image, or one that is not supported.
    pub async fn read<S: Storage>(image: &S) -> Result<Self, Qcow2Error> {
        Ok(Self::of(&read_header(image).await?))
    }
}

async fn read_header<S: Storage>(image: &S) -> Result<Header, Qcow2Error> {
    let fail = || Qcow2Error::io("read the header");
    let first = read_bytes(image, 0, SECTOR).await.map_err(fail())?;
    let cluster = 1 << Header::peek_cluster_bits(&first)?;
    let bytes = read_bytes(image, 0, cluster).await.map_err(fail())?;
    Header::parse(&bytes)
}

/// Bytes of a table that are read at once: less than the allocator takes from the host for each
/// buffer anew.
const TABLE_PIECE: u64 = 64 << 10;

async fn read_words<S: Storage>(
    image: &S,
    offset: u64,
    words: u64,
    what: &'static str,
) -> Result<Vec<u64>, Qcow2Error> {
    let fail = |source| Qcow2Error::Io { what, source };
    let (mut at, end) = (offset, offset + words * 8);
    let mut all = Vec::with_capacity(words as usize);
    let mut piece = None;
    while at < end {
        let len = (end - at).min(TABLE_PIECE) as usize;
        let mut buf = match piece.take() {
            Some(buf) => buf,
            None => buffer::zeroed(len).map_err(fail)?,
        };
        // The last piece is the shorter one.
        buf.rewind(len);
        let (result, buf) = image.read(buf, at).await;
        result.map_err(fail)?;
        let bytes = buf.bytes().and_then(|bytes| bytes.get(..len));
        let word = |word: &[u8]| u64::from_be_bytes(word.try_into().unwrap_or_default());
        all.extend(bytes.unwrap_or_default().chunks_exact(8).map(word));
        at += len as u64;
        piece = Some(buf);
    }
    Ok(all)
}

/// The files of an image, opened.
pub struct Opened<S> {
    /// The image.
    pub image: S,
    /// Its external data file.
    pub data: Option<S>,
    /// Its backing file.
    pub backing: Option<Arc<Vertex>>,
}

impl<S: Storage> Qcow2<S> {
    /// Opens an image. It is read-only if its storage is.
    ///
    /// # Errors
    /// It is no qcow2 image, or one that is not supported; it is damaged; the host fails.
    pub async fn open(
        name: String,
        files: Opened<S>,
        options: Qcow2Options,
    ) -> Result<Self, Qcow2Error> {
        Ok(Self {
            name,
            core: Core::open(files, options).await?,
            watchers: SizeWatchers::default(),
        })
    }
}

impl<S: Storage> Core<S> {
    pub(crate) async fn open(
        files: Opened<S>,
        mut options: Qcow2Options,
    ) -> Result<Self, Qcow2Error> {
        let Opened {
            image,
            data,
            backing,
        } = files;
        let header = read_header(&image).await?;
        let layout = Layout::of(&header);
        let read_only = image.is_read_only();
        if layout.data_file && data.is_none() {
            return Err(Qcow2Error::NoDataFile);
        }
        let is_dirty = header.incompatible & incompatible::DIRTY != 0;
        let is_corrupt = header.incompatible & incompatible::CORRUPT != 0;
        if is_corrupt && !read_only && !options.ignore_marks {
            return Err(Qcow2Error::MarkedCorrupt);
        }
        let key = options.key.take();
        let crypt = match (header.crypt_method, header.encryption) {
            (crypt::AES, _) => Some(Crypt::aes(key.as_ref())),
            (crypt::LUKS, Some((at, _))) => {
                Some(Crypt::luks(&image, at, false, key.as_ref()).await?)
            }
            _ => None,
        };
        if let (Some(Encryption::Luks(luks)), Some((_, length))) =
            (crypt.as_ref().map(|crypt| &crypt.kind), header.encryption)
            && luks.end() > length
        {
            return Err(Qcow2Error::Table("encryption header"));
        }
        let is_locked = crypt.as_ref().is_some_and(|crypt| !crypt.is_open());
        if is_locked && !options.metadata_only {
            return Err(CryptError::NoKey.into());
        }
        let l1 = read_words(
            &image,
            header.l1_offset,
            header.l1_size.into(),
            "read the L1 table",
        )
        .await?;
        let place = (
            header.refcount_table_offset,
            u64::from(header.refcount_table_clusters),
        );
        // A reader does not count.
        let table = match read_only && !options.ignore_marks {
            true => Vec::new(),
            false => {
                let words = place.1 << layout.cluster_bits >> 3;
                read_words(&image, place.0, words, "read the refcount table").await?
            }
        };
        let slice = layout.slice();
        let refcounts = Refcounts::new(table, place, options.refcount_cache / slice);
        let l2 = Slices::new(options.l2_cache / slice);
        let grows_with_zeros = image.grows_with_zeros();
        let core = Self {
            data: if layout.data_file { data } else { None },
            backing: Edge::new(backing),
            layout,
            options,
            size: AtomicU64::new(header.size),
            l1: RwLock::new(L1 {
                words: l1,
                ..L1::default()
            }),
            l2,
            refcounts,
            ranges: Stripes::new(layout.cluster().max(RANGE), RANGES),
            tables: Stripes::new(1, TABLES),
            checkpoints: Checkpoints::new(),
            crypt,
            frees: Mutex::default(),
            abandoned: Mutex::default(),
            decompressed: Decompressed::default(),
            bitmaps: Bitmaps::default(),
            grows_with_zeros,
            read_only,
            is_corrupt: AtomicBool::new(false),
            on_corruption: OnceLock::new(),
            is_marked_dirty: AtomicBool::new(is_dirty && !read_only),
            header: Mutex::new(header),
            image,
        };
        if !read_only {
            core.start_writing(is_dirty).await?;
        }
        Ok(core)
    }

    async fn start_writing(&self, is_dirty: bool) -> Result<(), Qcow2Error> {
        let layout = &self.layout;
        let used = self.image.size().div_ceil(layout.cluster()).max(1);
        let counts = used << layout.refcount_order >> 3;
        let cursor = if counts > SEARCHED { used } else { 0 };
        self.refcounts.start(cursor, used);
        self.note_metadata();
        if self.options.ignore_marks {
            return Ok(());
        }
        if is_dirty {
            if !self.options.repair_dirty {
                return Err(Qcow2Error::Unsupported(
                    "it was not closed; `vireo image check --repair all` counts its clusters anew",
                ));
            }
            log::warn!("a qcow2 image was not closed: its clusters are counted anew");
            let report = self.check_and_repair(Repair::All).await?;
            if report.corruptions != 0 {
                return Err(Qcow2Error::Corrupt("it was not closed, and has errors"));
            }
        }
        self.open_bitmaps().await?;
        self.clear_unknown_features()
            .await
            .map_err(Qcow2Error::io("write the header"))
    }

    /// Where no guest's data may be.
    pub(crate) fn note_metadata(&self) {
        let bits = self.layout.cluster_bits;
        let clusters = |offset: u64, bytes: u64| {
            offset >> bits..offset.saturating_add(bytes).div_ceil(1 << bits)
        };
        let (l1, l1_bytes, snapshots, encryption) = {
            let header = self.header();
            (
                header.l1_offset,
                u64::from(header.l1_size) * 8,
                header.snapshots_offset,
                header.encryption,
            )
        };
        let l1_guard = self.l1();
        let mut state = self.refcounts.state();
        state.metadata.insert(0);
        state.metadata.extend(clusters(l1, l1_bytes));
        let (table, count) = state.place;
        state.metadata.extend(clusters(table, count << bits));
        if let Some((offset, bytes)) = encryption.filter(|_| self.crypt.is_some()) {
            state.metadata.extend(clusters(offset, bytes));
        }
        if snapshots != 0 {
            state.metadata.insert(snapshots >> bits);
        }
        let tables = l1_guard.words.iter();
        let tables = tables.filter_map(|word| L1Entry::decode(*word, &self.layout).ok());
        let tables = tables.filter(|entry| entry.offset != 0);
        let blocks = state.table.iter();
        let blocks = blocks.filter_map(|word| refcount_block(*word, &self.layout).ok());
        let blocks: Vec<u64> = blocks.filter(|offset| *offset != 0).collect();
        state
            .metadata
            .extend(tables.map(|entry| entry.offset >> bits));
        state
            .metadata
            .extend(blocks.iter().map(|offset| offset >> bits));
    }
}
