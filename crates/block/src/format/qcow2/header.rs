//! The header and its extensions (QEMU docs/interop/qcow2.txt, "Header" and "Header extensions").

use super::Qcow2Error;

/// `QFI\xfb`.
pub(crate) const MAGIC: u32 = 0x5146_49fb;
/// Bytes of a version 2 header.
pub(crate) const V2_LENGTH: u32 = 72;
/// Bytes of a version 3 header with all fields that we know.
pub(crate) const V3_LENGTH: u32 = 112;
/// Bytes of the L1 table that we accept, as QEMU does.
pub(crate) const MAX_L1_BYTES: u64 = 32 << 20;
/// Bytes of the refcount table that we accept, as QEMU does.
pub(crate) const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Internal snapshots that we accept, as QEMU does.
pub(crate) const MAX_SNAPSHOTS: u32 = 65536;
/// Longest name of a backing file, in bytes.
pub(crate) const MAX_BACKING_NAME: u32 = 1023;
/// Virtual disks are smaller.
pub(crate) const MAX_SIZE: u64 = 1 << 62;

/// Bytes of a LUKS header with its key material that we accept: more than any has.
pub(crate) const MAX_ENCRYPTION_BYTES: u64 = 64 << 20;

/// Values of `crypt_method`.
pub(crate) mod crypt {
    pub(crate) const AES: u32 = 1;
    pub(crate) const LUKS: u32 = 2;
}

/// Bits of `incompatible_features`.
pub(crate) mod incompatible {
    pub(crate) const DIRTY: u64 = 1 << 0;
    pub(crate) const CORRUPT: u64 = 1 << 1;
    pub(crate) const DATA_FILE: u64 = 1 << 2;
    pub(crate) const COMPRESSION: u64 = 1 << 3;
    pub(crate) const EXTENDED_L2: u64 = 1 << 4;
    pub(crate) const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;
}

/// Bits of `compatible_features`.
pub(crate) mod compatible {
    pub(crate) const LAZY_REFCOUNTS: u64 = 1 << 0;
}

/// Bits of `autoclear_features`.
pub(crate) mod autoclear {
    pub(crate) const BITMAPS: u64 = 1 << 0;
    pub(crate) const RAW_DATA_FILE: u64 = 1 << 1;
}

/// Types of header extensions.
mod extension {
    pub(super) const END: u32 = 0;
    pub(super) const BACKING_FORMAT: u32 = 0xe279_2aca;
    pub(super) const FEATURE_NAMES: u32 = 0x6803_f857;
    pub(super) const BITMAPS: u32 = 0x2385_2875;
    pub(super) const ENCRYPTION: u32 = 0x0537_be77;
    pub(super) const DATA_FILE: u32 = 0x4441_5441;
}

spec::choice! {
    /// How compressed clusters are compressed.
    pub enum Compression {
        /// Deflate without a zlib header.
        Zlib = "zlib",
        /// Zstandard.
        Zstd = "zstd",
    }
}

/// The bitmaps extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BitmapsExtension {
    pub count: u32,
    pub directory_size: u64,
    pub directory_offset: u64,
}

/// What the first cluster says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub version: u32,
    pub cluster_bits: u32,
    /// Bytes of the virtual disk.
    pub size: u64,
    pub crypt_method: u32,
    /// Entries.
    pub l1_size: u32,
    pub l1_offset: u64,
    pub refcount_table_offset: u64,
    pub refcount_table_clusters: u32,
    pub snapshots: u32,
    pub snapshots_offset: u64,
    pub incompatible: u64,
    pub compatible: u64,
    pub autoclear: u64,
    pub refcount_order: u32,
    pub compression: Compression,
    /// Bytes of the header beyond the fields that we know.
    pub unknown_fields: Vec<u8>,
    pub backing_file: Option<Vec<u8>>,
    pub backing_format: Option<String>,
    pub data_file: Option<Vec<u8>>,
    pub bitmaps: Option<BitmapsExtension>,
    /// Offset and length of a LUKS header.
    pub encryption: Option<(u64, u64)>,
    /// Extensions that are kept as they are: type and data.
    pub other_extensions: Vec<(u32, Vec<u8>)>,
}

/// Big-endian numbers of a byte string; beyond its end there is nothing.
fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(field.try_into().ok()?))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_be_bytes(field.try_into().ok()?))
}

impl Header {
    /// Bytes of a cluster.
    pub(crate) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Whether the cluster size in the first bytes can be believed, and what it is.
    pub(crate) fn peek_cluster_bits(bytes: &[u8]) -> Result<u32, Qcow2Error> {
        if be32(bytes, 0) != Some(MAGIC) {
            return Err(Qcow2Error::NotQcow2);
        }
        match be32(bytes, 4) {
            Some(2 | 3) => (),
            version => return Err(Qcow2Error::Version(version.unwrap_or(0))),
        }
        match be32(bytes, 20) {
            Some(bits @ 9..=21) => Ok(bits),
            bits => Err(Qcow2Error::ClusterBits(bits.unwrap_or(0))),
        }
    }

    /// Understands the first cluster. Everything that the result says about sizes is bounded.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Qcow2Error> {
        let cluster_bits = Self::peek_cluster_bits(bytes)?;
        let short = || Qcow2Error::Header("it is cut off");
        let u32_at = |at| be32(bytes, at).ok_or_else(short);
        let u64_at = |at| be64(bytes, at).ok_or_else(short);
        let version = u32_at(4)?;
        let (length, order) = match version {
            2 => (V2_LENGTH, 4),
            _ => (u32_at(100)?, u32_at(96)?),
        };
        if version >= 3 && (length < 104 || !length.is_multiple_of(8)) {
            return Err(Qcow2Error::Header("its length is impossible"));
        }
        if bytes.len() < length as usize {
            return Err(short());
        }
        let v3 = |at| if version >= 3 { u64_at(at) } else { Ok(0) };
        let incompatible = v3(72)?;
        let type_byte = match length > 104 {
            true => bytes.get(104).copied().unwrap_or(0),
            false => 0,
        };
        let mut header = Self {
            version,
            cluster_bits,
            size: u64_at(24)?,
            crypt_method: u32_at(32)?,
            l1_size: u32_at(36)?,
            l1_offset: u64_at(40)?,
            refcount_table_offset: u64_at(48)?,
            refcount_table_clusters: u32_at(56)?,
            snapshots: u32_at(60)?,
            snapshots_offset: u64_at(64)?,
            incompatible,
            compatible: v3(80)?,
            autoclear: v3(88)?,
            refcount_order: order,
            compression: match type_byte {
                0 => Compression::Zlib,
                1 => Compression::Zstd,
                other => return Err(Qcow2Error::Compression(other)),
            },
            unknown_fields: bytes
                .get(V3_LENGTH as usize..length as usize)
                .unwrap_or_default()
                .to_vec(),
            backing_file: None,
            backing_format: None,
            data_file: None,
            bitmaps: None,
            encryption: None,
            other_extensions: Vec::new(),
        };
        header.extensions(bytes, length as usize)?;
        header.backing_file = backing_file(bytes, u64_at(8)?, u32_at(16)?)?;
        header.check()?;
        Ok(header)
    }

    fn extensions(&mut self, bytes: &[u8], start: usize) -> Result<(), Qcow2Error> {
        // They end where the name of the backing file begins.
        let end = match be64(bytes, 8) {
            Some(0) | None => bytes.len(),
            Some(offset) => usize::try_from(offset).map_or(bytes.len(), |o| o.min(bytes.len())),
        };
        let bytes = bytes.get(..end).unwrap_or_default();
        let mut at = start;
        while let (Some(kind), Some(length)) = (be32(bytes, at), be32(bytes, at + 4)) {
            if kind == extension::END {
                break;
            }
            let from = at + 8;
            let data = usize::try_from(length)
                .ok()
                .and_then(|length| bytes.get(from..from.checked_add(length)?))
                .ok_or(Qcow2Error::Header("an extension is longer than its room"))?;
            self.extension(kind, data)?;
            at = from + data.len().next_multiple_of(8);
        }
        Ok(())
    }

    fn extension(&mut self, kind: u32, data: &[u8]) -> Result<(), Qcow2Error> {
        let bad = |what| move || Qcow2Error::Header(what);
        match kind {
            extension::BACKING_FORMAT => {
                let name = String::from_utf8(data.to_vec());
                let name = name.map_err(|_| Qcow2Error::Header("the backing format is no text"))?;
                self.backing_format = Some(name.trim_end_matches('\0').to_owned());
            }
            extension::DATA_FILE => self.data_file = Some(data.to_vec()),
            extension::BITMAPS => {
                let wrong = bad("the bitmaps extension is too short");
                self.bitmaps = Some(BitmapsExtension {
                    count: be32(data, 0).ok_or_else(wrong)?,
                    directory_size: be64(data, 8).ok_or_else(wrong)?,
                    directory_offset: be64(data, 16).ok_or_else(wrong)?,
                });
            }
            extension::ENCRYPTION => {
                let wrong = bad("the encryption extension is too short");
                self.encryption = Some((
                    be64(data, 0).ok_or_else(wrong)?,
                    be64(data, 8).ok_or_else(wrong)?,
                ));
            }
            _ => self.other_extensions.push((kind, data.to_vec())),
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Qcow2Error> {
        let unknown = self.incompatible & !incompatible::KNOWN;
        if unknown != 0 {
            return Err(Qcow2Error::UnknownFeatures(self.feature_names(unknown)));
        }
        match (self.crypt_method, self.encryption) {
            (0 | crypt::AES, _) => (),
            (crypt::LUKS, Some((offset, length))) => {
                let end = offset.checked_add(length).filter(|end| *end <= 1 << 56);
                if offset == 0 || !offset.is_multiple_of(self.cluster_size()) || end.is_none() {
                    return Err(Qcow2Error::Table("encryption header"));
                }
                if length > MAX_ENCRYPTION_BYTES {
                    return Err(Qcow2Error::Table("encryption header"));
                }
            }
            (crypt::LUKS, None) => {
                return Err(Qcow2Error::Header(
                    "it does not say where the LUKS header is",
                ));
            }
            (other, _) => return Err(Qcow2Error::CryptMethod(other)),
        }
        if self.refcount_order > 6 {
            return Err(Qcow2Error::Header("refcounts are wider than 64 bits"));
        }
        if self.size > MAX_SIZE {
            return Err(Qcow2Error::Header("the disk is larger than 2^62 bytes"));
        }
        let extended = self.incompatible & incompatible::EXTENDED_L2 != 0;
        if extended && self.cluster_bits < 14 {
            return Err(Qcow2Error::Header(
                "subclusters would be less than a sector",
            ));
        }
        let compression = self.incompatible & incompatible::COMPRESSION != 0;
        if compression != (self.compression != Compression::Zlib) {
            return Err(Qcow2Error::Header(
                "compression type and its feature bit contradict one another",
            ));
        }
        let cluster = self.cluster_size();
        let table = |offset: u64, bytes: u64, most: u64, what| {
            let end = offset.checked_add(bytes).filter(|end| *end <= 1 << 56);
            if !offset.is_multiple_of(cluster) || end.is_none() || bytes > most {
                return Err(Qcow2Error::Table(what));
            }
            Ok(())
        };
        let l1_bytes = u64::from(self.l1_size) * 8;
        table(self.l1_offset, l1_bytes, MAX_L1_BYTES, "L1 table")?;
        if u64::from(self.l1_size) < l1_entries(self.size, self.cluster_bits, extended) {
            return Err(Qcow2Error::Table("L1 table"));
        }
        table(
            self.refcount_table_offset,
            u64::from(self.refcount_table_clusters) << self.cluster_bits,
            MAX_REFCOUNT_TABLE_BYTES.max(cluster),
            "refcount table",
        )?;
        if self.refcount_table_clusters == 0 || self.refcount_table_offset == 0 {
            return Err(Qcow2Error::Table("refcount table"));
        }
        if self.snapshots > MAX_SNAPSHOTS {
            return Err(Qcow2Error::Table("snapshot table"));
        }
        table(self.snapshots_offset, 0, 0, "snapshot table")?;
        if self.bitmaps.is_none() && self.autoclear & autoclear::BITMAPS != 0 {
            log::debug!("a qcow2 image says that its bitmaps are consistent, and has none");
        }
        Ok(())
    }

    /// Names of features, from the image's own table where it has one.
    fn feature_names(&self, bits: u64) -> String {
        let table = self
            .other_extensions
            .iter()
            .find(|(kind, _)| *kind == extension::FEATURE_NAMES)
            .map_or(&[][..], |(_, data)| data);
        let name = |bit: u32| {
            table
                .chunks_exact(48)
                .find(|row| row[0] == 0 && u32::from(row[1]) == bit)
                .map(|row| {
                    let name = row[2..].split(|byte| *byte == 0).next();
                    String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
                })
                .unwrap_or_else(|| format!("incompatible feature {bit}"))
        };
        let names: Vec<String> = (0..64).filter(|b| bits >> b & 1 != 0).map(name).collect();
        names.join(", ")
    }

    /// Bytes of the fields.
    pub(crate) fn length(&self) -> u32 {
        match self.version {
            2 => V2_LENGTH,
            _ => V3_LENGTH + self.unknown_fields.len() as u32,
        }
    }

    /// The fields alone: what a change of tables, size or feature bits has to write.
    pub(crate) fn encode_fields(&self, backing_offset: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(V3_LENGTH as usize);
        let mut put32 = |value: u32| out.extend_from_slice(&value.to_be_bytes());
        put32(MAGIC);
        put32(self.version);
        let name = self.backing_file.as_ref().map_or(0, Vec::len) as u32;
        put32((backing_offset >> 32) as u32);
        put32(backing_offset as u32);
        put32(name);
        put32(self.cluster_bits);
        out.extend_from_slice(&self.size.to_be_bytes());
        out.extend_from_slice(&self.crypt_method.to_be_bytes());
        out.extend_from_slice(&self.l1_size.to_be_bytes());
        out.extend_from_slice(&self.l1_offset.to_be_bytes());
        out.extend_from_slice(&self.refcount_table_offset.to_be_bytes());
        out.extend_from_slice(&self.refcount_table_clusters.to_be_bytes());
        out.extend_from_slice(&self.snapshots.to_be_bytes());
        out.extend_from_slice(&self.snapshots_offset.to_be_bytes());
        if self.version >= 3 {
            out.extend_from_slice(&self.incompatible.to_be_bytes());
            out.extend_from_slice(&self.compatible.to_be_bytes());
            out.extend_from_slice(&self.autoclear.to_be_bytes());
            out.extend_from_slice(&self.refcount_order.to_be_bytes());
            out.extend_from_slice(&self.length().to_be_bytes());
            out.push(match self.compression {
                Compression::Zlib => 0,
                Compression::Zstd => 1,
            });
            out.extend_from_slice(&[0; 7]);
            out.extend_from_slice(&self.unknown_fields);
        }
        out
    }

    /// The fields, the extensions and the backing file's name.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, Qcow2Error> {
        let mut tail = Vec::new();
        let mut put = |kind: u32, data: &[u8]| {
            tail.extend_from_slice(&kind.to_be_bytes());
            tail.extend_from_slice(&(data.len() as u32).to_be_bytes());
            tail.extend_from_slice(data);
            tail.resize(tail.len().next_multiple_of(8), 0);
        };
        if let Some(format) = &self.backing_format {
            put(extension::BACKING_FORMAT, format.as_bytes());
        }
        if let Some(name) = &self.data_file {
            put(extension::DATA_FILE, name);
        }
        if let Some((offset, length)) = self.encryption {
            let data = [offset.to_be_bytes(), length.to_be_bytes()].concat();
            put(extension::ENCRYPTION, &data);
        }
        if let Some(bitmaps) = &self.bitmaps {
            let mut data = bitmaps.count.to_be_bytes().to_vec();
            data.extend_from_slice(&[0; 4]);
            data.extend_from_slice(&bitmaps.directory_size.to_be_bytes());
            data.extend_from_slice(&bitmaps.directory_offset.to_be_bytes());
            put(extension::BITMAPS, &data);
        }
        for (kind, data) in &self.other_extensions {
            put(*kind, data);
        }
        put(extension::END, &[]);
        let fields = self.length() as usize;
        let name = self.backing_file.as_deref().unwrap_or_default();
        let offset = match name.is_empty() {
            true => 0,
            false => (fields + tail.len()) as u64,
        };
        let mut out = self.encode_fields(offset);
        out.extend_from_slice(&tail);
        out.extend_from_slice(name);
        if out.len() as u64 > self.cluster_size() {
            return Err(Qcow2Error::HeaderFull);
        }
        Ok(out)
    }

    /// Where the backing file's name is when the header is encoded as a whole.
    pub(crate) fn backing_offset(bytes: &[u8]) -> u64 {
        be64(bytes, 8).unwrap_or(0)
    }

    /// The table of feature names that a new image gets.
    pub(crate) fn add_feature_names(&mut self) {
        let names: [(u8, u8, &str); 8] = [
            (0, 0, "dirty bit"),
            (0, 1, "corrupt bit"),
            (0, 2, "external data file"),
            (0, 3, "compression type"),
            (0, 4, "extended L2 entries"),
            (1, 0, "lazy refcounts"),
            (2, 0, "bitmaps"),
            (2, 1, "raw external data"),
        ];
        let mut data = Vec::with_capacity(names.len() * 48);
        for (kind, bit, name) in names {
            let mut row = [0; 48];
            row[0] = kind;
            row[1] = bit;
            row[2..2 + name.len()].copy_from_slice(name.as_bytes());
            data.extend_from_slice(&row);
        }
        self.other_extensions.push((extension::FEATURE_NAMES, data));
    }
}

/// Entries that the L1 table of a disk of `size` bytes needs.
pub(crate) fn l1_entries(size: u64, cluster_bits: u32, extended: bool) -> u64 {
    let covered = 2 * cluster_bits - if extended { 4 } else { 3 };
    // At most 39 bits; sizes are at most 62.
    size.div_ceil(1 << covered)
}

fn backing_file(bytes: &[u8], offset: u64, length: u32) -> Result<Option<Vec<u8>>, Qcow2Error> {
    if offset == 0 || length == 0 {
        return Ok(None);
    }
    if length > MAX_BACKING_NAME {
        return Err(Qcow2Error::Header("the backing file's name is too long"));
    }
    let name = usize::try_from(offset)
        .ok()
        .and_then(|from| bytes.get(from..from.checked_add(length as usize)?));
    match name {
        Some(name) if !name.contains(&0) => Ok(Some(name.to_vec())),
        _ => Err(Qcow2Error::Header(
            "the backing file's name is not where it should be",
        )),
    }
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
