//! Copying up: making the image have itself what it shows of its backing file.

use std::io;
use std::ops::Range;

use super::Core;
use super::mapping::Kind;
use crate::buffer::Parts;
use crate::storage::Storage;
use crate::{Node, StatusKind};

/// Bytes that are locked and copied at a time.
const PIECE: u64 = 1 << 20;

impl<S: Storage> Core<S> {
    /// See [`Node::copy_up`]. Whole subclusters are copied.
    pub(crate) async fn copy_up(&self, offset: u64, len: u64) -> io::Result<()> {
        let unit = self.layout.subcluster();
        let size = self.size().next_multiple_of(super::SECTOR);
        let end = offset.saturating_add(len).min(size);
        let mut at = offset - offset % unit;
        while at < end {
            let to = (at - at % PIECE + PIECE)
                .min(end)
                .next_multiple_of(unit)
                .min(size);
            {
                let range = self.whole_clusters(at, to - at);
                let _range = self.ranges.exclusive(range).await;
                self.copy_up_locked(at..to).await?;
            }
            self.relieve().await;
            at = to;
        }
        Ok(())
    }

    async fn copy_up_locked(&self, bytes: Range<u64>) -> io::Result<()> {
        let mut at = bytes.start;
        while at < bytes.end {
            let extent = self.extent(at, bytes.end - at).await?;
            let mut len = extent.len.min(bytes.end - at);
            if matches!(extent.kind, Kind::Unallocated) {
                let zero = self.zero_from_below(at, &mut len).await?;
                match zero {
                    // Another backing file may have data there.
                    true if self.layout.version >= 3 => self.hide_locked(at..at + len).await?,
                    _ => {
                        let old = self.read_old(at, len).await?;
                        self.write_new(&Parts::new(old), at, len).await?;
                    }
                }
            }
            at += len;
        }
        Ok(())
    }

    /// Whether what is unallocated at `at` is known to read as zeros. `len`, up to the end of it,
    /// becomes how much of it is alike, in whole subclusters.
    async fn zero_from_below(&self, at: u64, len: &mut u64) -> io::Result<bool> {
        let unit = self.layout.subcluster();
        let below = self.backing_size().saturating_sub(at);
        if below == 0 {
            return Ok(true);
        }
        let status = self.backing.block_status(at, (*len).min(below)).await?;
        let zero = matches!(status.kind, StatusKind::Zero | StatusKind::Unallocated);
        let alike = status.len.min(*len);
        if zero && (alike == *len || alike >= unit) {
            *len = if alike == *len {
                alike
            } else {
                alike - alike % unit
            };
            return Ok(true);
        }
        *len = alike.next_multiple_of(unit).min(*len);
        Ok(false)
    }
}
