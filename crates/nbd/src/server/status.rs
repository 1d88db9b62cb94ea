//! Answers to BLOCK_STATUS.

use std::io;

use block::{BlockStatus, Node, StatusKind};
use nix::errno::Errno;

use super::export::Export;
use super::negotiation::Context;
use crate::protocol::allocation;

/// Extents in one answer.
const MOST: usize = 4096;
/// Questions to a node for one answer, which may then be about less than was asked.
const QUESTIONS: usize = 4 * MOST;

/// Consecutive parts of a range: their lengths and status flags.
#[derive(Default)]
struct Extents(Vec<(u64, u64)>);

impl Extents {
    fn add(&mut self, len: u64, flags: u64) {
        match self.0.last_mut() {
            Some(last) if last.1 == flags => last.0 = last.0.saturating_add(len),
            _ => self.0.push((len, flags)),
        }
    }
}

/// What the range is in a context: lengths and flags, one at least, `one` at most if that was
/// asked for. The range is not empty and lies in the disk.
pub(crate) async fn extents(
    export: &Export,
    context: Context,
    offset: u64,
    len: u64,
    one: bool,
) -> io::Result<Vec<(u64, u64)>> {
    let most = if one { 1 } else { MOST };
    match context {
        Context::Allocation => by_node(&*export.node, offset, len, most, allocation_flags).await,
        Context::Depth => by_node(&*export.node, offset, len, most, depth).await,
        Context::Bitmap(at) => {
            let bitmap = export.bitmaps.get(at).ok_or(Errno::EINVAL)?;
            let mut extents = Extents::default();
            let mut left = len;
            for (len, dirty) in bitmap.extents(offset, len, most)? {
                let len = len.min(left);
                left -= len;
                if len != 0 {
                    extents.add(len, dirty.into());
                }
            }
            extents.0.truncate(most);
            match extents.0.is_empty() {
                true => Err(Errno::EIO.into()),
                false => Ok(extents.0),
            }
        }
    }
}

fn allocation_flags(status: &BlockStatus) -> u64 {
    match status.kind {
        StatusKind::Data | StatusKind::Compressed => 0,
        StatusKind::Zero | StatusKind::Unallocated => allocation::HOLE | allocation::ZERO,
    }
}

/// 0: nowhere in the chain; 1: in the image itself; 2: in its backing file; and so on.
fn depth(status: &BlockStatus) -> u64 {
    match status.kind {
        StatusKind::Unallocated => 0,
        _ => u64::from(status.depth) + 1,
    }
}

async fn by_node(
    node: &dyn Node,
    mut offset: u64,
    mut len: u64,
    most: usize,
    flags: fn(&BlockStatus) -> u64,
) -> io::Result<Vec<(u64, u64)>> {
    let mut extents = Extents::default();
    for _ in 0..QUESTIONS {
        if len == 0 {
            break;
        }
        let status = node.block_status(offset, len).await?;
        let step = status.len.clamp(1, len);
        extents.add(step, flags(&status));
        if extents.0.len() > most {
            extents.0.pop();
            break;
        }
        offset = offset.saturating_add(step);
        len -= step;
    }
    Ok(extents.0)
}
