//! Internal snapshots: the table of them. `snapshots.rs` makes, deletes and applies them.

use std::io;

use nix::errno::Errno;

use super::header::{Header, MAX_L1_BYTES};
use super::{Core, Qcow2Error};
use crate::storage::Storage;

/// Bytes of an entry before its extra data.
const FIXED: u64 = 40;
/// Extra data that we understand: size of the VM state, size of the disk, instruction count.
const EXTRA: usize = 24;
/// Extra data that is accepted, as QEMU does.
const MAX_EXTRA: u32 = 1024;
/// Bytes of the table that are accepted, as QEMU does.
const MAX_TABLE: u64 = 64 << 20;

/// An internal snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Unique, mostly a number.
    pub id: String,
    /// What the user calls it.
    pub name: String,
    /// Seconds since 1970.
    pub date_sec: u32,
    /// And nanoseconds.
    pub date_nsec: u32,
    /// How long the guest had run, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Bytes of the VM's state.
    pub vm_state_size: u64,
    /// Bytes of the disk; `None`: as many as the image has now.
    pub disk_size: Option<u64>,
    /// Instructions that the guest had executed.
    pub icount: Option<u64>,
    pub(crate) l1_offset: u64,
    pub(crate) l1_size: u32,
    /// Extra data that we do not understand.
    pub(crate) unknown: Vec<u8>,
}

/// Clusters that the snapshots use by themselves.
#[derive(Debug, Default)]
pub(crate) struct SnapshotTables {
    /// The table of snapshots.
    pub place: u64,
    pub bytes: u64,
    /// The L1 tables, and how many entries they have.
    pub l1: Vec<(u64, u32)>,
}

impl Snapshot {
    /// Its entry in the table.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut extra = self.vm_state_size.to_be_bytes().to_vec();
        if self.disk_size.is_some() || self.icount.is_some() || !self.unknown.is_empty() {
            extra.extend_from_slice(&self.disk_size.unwrap_or(0).to_be_bytes());
        }
        if self.icount.is_some() || !self.unknown.is_empty() {
            extra.extend_from_slice(&self.icount.unwrap_or(u64::MAX).to_be_bytes());
        }
        extra.extend_from_slice(&self.unknown);
        let mut out = self.l1_offset.to_be_bytes().to_vec();
        out.extend_from_slice(&self.l1_size.to_be_bytes());
        out.extend_from_slice(&(self.id.len() as u16).to_be_bytes());
        out.extend_from_slice(&(self.name.len() as u16).to_be_bytes());
        out.extend_from_slice(&self.date_sec.to_be_bytes());
        out.extend_from_slice(&self.date_nsec.to_be_bytes());
        out.extend_from_slice(&self.vm_clock_nsec.to_be_bytes());
        let short = u32::try_from(self.vm_state_size).unwrap_or(u32::MAX);
        out.extend_from_slice(&short.to_be_bytes());
        out.extend_from_slice(&(extra.len() as u32).to_be_bytes());
        out.extend_from_slice(&extra);
        out.extend_from_slice(self.id.as_bytes());
        out.extend_from_slice(self.name.as_bytes());
        out.resize(out.len().next_multiple_of(8), 0);
        out
    }
}

/// A time and what a virtual machine had done at it, for a new snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SnapshotRequest {
    /// What the user calls it.
    pub name: String,
    /// Seconds since 1970.
    pub date_sec: u32,
    /// And nanoseconds.
    pub date_nsec: u32,
    /// How long the guest had run, in nanoseconds.
    pub vm_clock_nsec: u64,
}

fn be<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let field = bytes.get(at..at + N).and_then(|f| f.try_into().ok());
    field.unwrap_or([0; N])
}

impl<S: Storage> Core<S> {
    /// The snapshots, and the bytes of their table.
    pub(crate) async fn read_snapshots(
        &self,
        header: &Header,
    ) -> Result<(Vec<Snapshot>, u64), Qcow2Error> {
        let fail = || Qcow2Error::io("read the snapshot table");
        let mut at = header.snapshots_offset;
        let start = at;
        let mut snapshots = Vec::new();
        for _ in 0..header.snapshots {
            let fixed = self.read_metadata(at, FIXED).await.map_err(fail())?;
            let id = usize::from(u16::from_be_bytes(be(&fixed, 12)));
            let name = usize::from(u16::from_be_bytes(be(&fixed, 14)));
            let extra = u32::from_be_bytes(be(&fixed, 36));
            if extra > MAX_EXTRA {
                return Err(Qcow2Error::Corrupt("a snapshot has too much extra data"));
            }
            let extra = extra as usize;
            let rest = self
                .read_metadata(at + FIXED, (extra + id + name) as u64)
                .await
                .map_err(fail())?;
            let text = |from: usize, len: usize| {
                let bytes = rest.get(from..from + len).unwrap_or_default();
                String::from_utf8_lossy(bytes).into_owned()
            };
            let long = |at: usize| (extra >= at + 8).then(|| u64::from_be_bytes(be(&rest, at)));
            snapshots.push(Snapshot {
                id: text(extra, id),
                name: text(extra + id, name),
                date_sec: u32::from_be_bytes(be(&fixed, 16)),
                date_nsec: u32::from_be_bytes(be(&fixed, 20)),
                vm_clock_nsec: u64::from_be_bytes(be(&fixed, 24)),
                vm_state_size: long(0).unwrap_or_else(|| u32::from_be_bytes(be(&fixed, 32)).into()),
                disk_size: long(8),
                icount: long(16).filter(|count| *count != u64::MAX),
                l1_offset: u64::from_be_bytes(be(&fixed, 0)),
                l1_size: u32::from_be_bytes(be(&fixed, 8)),
                unknown: rest.get(EXTRA..extra).unwrap_or_default().to_vec(),
            });
            at += (FIXED + (extra + id + name) as u64).next_multiple_of(8);
            if at - start > MAX_TABLE {
                return Err(Qcow2Error::Corrupt("the snapshot table is too long"));
            }
        }
        Ok((snapshots, at - start))
    }

    /// What the snapshots refer to.
    pub(crate) async fn snapshot_tables(
        &self,
        header: &Header,
    ) -> Result<Option<SnapshotTables>, Qcow2Error> {
        if header.snapshots == 0 {
            return Ok(None);
        }
        let (snapshots, bytes) = self.read_snapshots(header).await?;
        Ok(Some(SnapshotTables {
            place: header.snapshots_offset,
            bytes,
            l1: snapshots.iter().map(|s| (s.l1_offset, s.l1_size)).collect(),
        }))
    }

    /// Reads an L1 table.
    pub(crate) async fn read_l1(&self, offset: u64, entries: u32) -> io::Result<Vec<u64>> {
        let bytes = u64::from(entries) * 8;
        if bytes > MAX_L1_BYTES || self.layout.within(offset) != 0 || offset >> 56 != 0 {
            return Err(Errno::EFBIG.into());
        }
        let bytes = self.read_metadata(offset, bytes).await?;
        let word = |word: &[u8]| u64::from_be_bytes(be(word, 0));
        Ok(bytes.chunks_exact(8).map(word).collect())
    }
}
