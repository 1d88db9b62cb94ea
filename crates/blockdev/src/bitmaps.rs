//! Dirty bitmaps of nodes, and those that images keep.
//!
//! While an image is open, its bitmaps are observers of its node; what the image itself records is
//! put right when it is closed. The image marks them as in use on the disk meanwhile.

use std::sync::Arc;

use block::graph::Observer;
use qmp::{Empty, QmpError};
use serde_json::json;

use crate::bitmap::DirtyBitmap;
use crate::graph::GraphNode;
use crate::qapi::block::{
    BitmapSource, BlockDirtyBitmapAdd, BlockDirtyBitmapClear, BlockDirtyBitmapDisable,
    BlockDirtyBitmapEnable, BlockDirtyBitmapMerge, BlockDirtyBitmapRemove,
};
use crate::{Blockdev, BlockdevError};

/// Bytes that a bit stands for, when nothing is said: the clusters of most images.
const GRANULARITY: u64 = 64 << 10;

pub(crate) fn refused(error: crate::bitmap::BitmapError) -> BlockdevError {
    BlockdevError::Refused(error.to_string())
}

/// How to undo a change of bitmaps.
pub(crate) type Undo = Box<dyn FnOnce(&Blockdev)>;

impl Blockdev {
    /// The bitmap of a node.
    pub(crate) fn bitmap(
        &self,
        node: &Arc<GraphNode>,
        name: &str,
    ) -> Result<Arc<DirtyBitmap>, BlockdevError> {
        let found = node.state().bitmaps.get(name).cloned();
        found.ok_or_else(|| {
            BlockdevError::Refused(format!(
                "Dirty bitmap '{name}' not found on '{}'",
                node.name
            ))
        })
    }

    fn node_and_bitmap(
        &self,
        node: &str,
        name: &str,
    ) -> Result<(Arc<GraphNode>, Arc<DirtyBitmap>), BlockdevError> {
        let node = self.graph().device_or_node(node)?;
        let bitmap = self.bitmap(&node, name)?;
        Ok((node, bitmap))
    }

    /// Takes up the bitmaps that an image has kept.
    pub(crate) async fn adopt_bitmaps(&self, node: &Arc<GraphNode>) -> Result<(), BlockdevError> {
        let Ok(qcow2) = node.qcow2() else {
            return Ok(());
        };
        let failed = |source| BlockdevError::Qcow2 {
            what: "read the bitmaps",
            node: node.name.clone(),
            source,
        };
        for info in qcow2.bitmaps().await.map_err(failed)? {
            let size = block::Node::size(&*node.vertex);
            let bitmap = DirtyBitmap::new(info.name.clone(), size, info.granularity);
            let bitmap = bitmap.map_err(refused)?;
            bitmap.set_persistent(true);
            bitmap.set_recording(info.auto);
            match node.spec().read_only {
                true => {
                    bitmap.set_read_only(true);
                    if info.in_use {
                        bitmap.set_inconsistent();
                    }
                }
                false => match qcow2.dirty_ranges(&info.name).await {
                    Ok(ranges) => ranges.into_iter().for_each(|range| bitmap.mark(range)),
                    Err(error) => {
                        log::warn!("bitmap '{}' of node '{}': {error}", info.name, node.name);
                        bitmap.set_inconsistent();
                    }
                },
            }
            let observer: Arc<dyn Observer> = Arc::<DirtyBitmap>::clone(&bitmap);
            node.vertex.observe(observer);
            node.state().bitmaps.insert(info.name, bitmap);
        }
        Ok(())
    }

    /// Gives the image what its bitmaps are now, before it is closed.
    pub(crate) fn store_bitmaps(&self, node: &Arc<GraphNode>) {
        let Ok(qcow2) = node.qcow2() else {
            return;
        };
        if node.spec().read_only {
            return;
        }
        let bitmaps: Vec<_> = node.state().bitmaps.values().cloned().collect();
        for bitmap in bitmaps
            .iter()
            .filter(|b| b.is_persistent() && !b.is_inconsistent())
        {
            let stored = qcow2.set_dirty_ranges(bitmap.name(), &bitmap.dirty_ranges());
            if let Err(error) = stored {
                log::error!(
                    "bitmap '{}' of node '{}' is not kept: {error}",
                    bitmap.name(),
                    node.name
                );
            }
        }
    }

    /// Takes the bitmaps off a node that is closed; those that the image keeps come back when it
    /// is opened again.
    pub(crate) fn drop_kept_bitmaps(&self, node: &Arc<GraphNode>) {
        let kept: Vec<_> = {
            let mut state = node.state();
            let all = std::mem::take(&mut state.bitmaps);
            let (kept, other): (Vec<_>, Vec<_>) =
                all.into_iter().partition(|(_, b)| b.is_persistent());
            state.bitmaps = other.into_iter().collect();
            kept
        };
        for (_, bitmap) in kept {
            let observer: Arc<dyn Observer> = bitmap;
            node.vertex.ignore(&observer);
        }
    }

    pub(crate) async fn bitmap_add(
        &self,
        command: &BlockDirtyBitmapAdd,
    ) -> Result<Undo, BlockdevError> {
        let node = self.graph().device_or_node(&command.node)?;
        if node.state().bitmaps.contains_key(&command.name) {
            return Err(BlockdevError::Refused(format!(
                "Bitmap already exists: {}",
                command.name
            )));
        }
        let granularity = command.granularity.unwrap_or(GRANULARITY);
        let size = block::Node::size(&*node.vertex);
        let bitmap = DirtyBitmap::new(command.name.clone(), size, granularity);
        let bitmap = bitmap.map_err(refused)?;
        bitmap.set_recording(!command.disabled);
        if command.persistent {
            let qcow2 = node.qcow2()?;
            let failed = |source| BlockdevError::Qcow2 {
                what: "keep the bitmap in the image",
                node: node.name.clone(),
                source,
            };
            qcow2
                .add_bitmap(&command.name, granularity)
                .map_err(failed)?;
            if command.disabled {
                qcow2
                    .enable_bitmap(&command.name, false)
                    .await
                    .map_err(failed)?;
            }
            bitmap.set_persistent(true);
        }
        let observer: Arc<dyn Observer> = Arc::<DirtyBitmap>::clone(&bitmap);
        node.vertex.observe(observer);
        node.state().bitmaps.insert(command.name.clone(), bitmap);
        let name = command.name.clone();
        Ok(Box::new(move |this| {
            // It was just made.
            _ = this.take_bitmap(&node, &name);
        }))
    }

    fn take_bitmap(
        &self,
        node: &Arc<GraphNode>,
        name: &str,
    ) -> Result<Arc<DirtyBitmap>, BlockdevError> {
        let bitmap = self.bitmap(node, name)?;
        if bitmap.is_busy() {
            return Err(BlockdevError::Refused(format!(
                "Bitmap '{name}' is currently in use by another operation and cannot be used"
            )));
        }
        if bitmap.is_persistent() {
            node.qcow2()?
                .remove_bitmap(name)
                .map_err(|source| BlockdevError::Qcow2 {
                    what: "remove the bitmap from the image",
                    node: node.name.clone(),
                    source,
                })?;
        }
        node.state().bitmaps.remove(name);
        let observer: Arc<dyn Observer> = Arc::<DirtyBitmap>::clone(&bitmap);
        node.vertex.ignore(&observer);
        Ok(bitmap)
    }

    pub(crate) fn bitmap_remove(
        &self,
        command: &BlockDirtyBitmapRemove,
    ) -> Result<Undo, BlockdevError> {
        let node = self.graph().device_or_node(&command.node)?;
        let bitmap = self.take_bitmap(&node, &command.name)?;
        Ok(Box::new(move |this| {
            let name = bitmap.name().to_owned();
            if bitmap.is_persistent()
                && let Ok(qcow2) = node.qcow2()
                && let Err(error) = qcow2.add_bitmap(&name, bitmap.granularity())
            {
                log::error!("bitmap '{name}' of node '{}' is lost: {error}", node.name);
            }
            let observer: Arc<dyn Observer> = Arc::<DirtyBitmap>::clone(&bitmap);
            node.vertex.observe(observer);
            node.state().bitmaps.insert(name, bitmap);
            this.store_bitmaps(&node);
        }))
    }

    pub(crate) fn bitmap_clear(
        &self,
        command: &BlockDirtyBitmapClear,
    ) -> Result<Undo, BlockdevError> {
        let (_, bitmap) = self.node_and_bitmap(&command.node, &command.name)?;
        bitmap.check().map_err(refused)?;
        let before = bitmap.clear();
        Ok(Box::new(move |_| bitmap.merge_back(&before)))
    }

    pub(crate) async fn bitmap_enable(
        &self,
        node: &str,
        name: &str,
        enable: bool,
    ) -> Result<Undo, BlockdevError> {
        let (node, bitmap) = self.node_and_bitmap(node, name)?;
        bitmap.check().map_err(refused)?;
        let before = bitmap.is_recording();
        bitmap.set_recording(enable);
        if bitmap.is_persistent() {
            let kept = node.qcow2()?.enable_bitmap(name, enable).await;
            kept.map_err(|source| BlockdevError::Qcow2 {
                what: "change the bitmap",
                node: node.name.clone(),
                source,
            })?;
        }
        Ok(Box::new(move |_| bitmap.set_recording(before)))
    }

    pub(crate) fn bitmap_merge(
        &self,
        command: &BlockDirtyBitmapMerge,
    ) -> Result<Undo, BlockdevError> {
        let (node, target) = self.node_and_bitmap(&command.node, &command.target)?;
        target.check().map_err(refused)?;
        let mut sources = Vec::with_capacity(command.bitmaps.len());
        for source in &command.bitmaps {
            let bitmap = match source {
                BitmapSource::Local(name) => self.bitmap(&node, name)?,
                BitmapSource::External { node, name } => self.node_and_bitmap(node, name)?.1,
            };
            bitmap.check_to_read().map_err(refused)?;
            sources.push(bitmap);
        }
        let before = target.backup();
        let undone = Arc::clone(&target);
        let undo: Undo = Box::new(move |_| undone.restore(&before));
        for source in sources {
            if let Err(error) = target.merge(&source) {
                undo(self);
                return Err(refused(error));
            }
        }
        Ok(undo)
    }

    /// What `query-block` and `query-named-block-nodes` tell of a node's bitmaps.
    pub(crate) fn bitmap_infos(&self, node: &Arc<GraphNode>) -> Vec<serde_json::Value> {
        let bitmaps: Vec<_> = node.state().bitmaps.values().cloned().collect();
        let tell = |bitmap: &Arc<DirtyBitmap>| {
            let info = bitmap.info();
            let mut value = json!({
                "name": info.name,
                "count": info.count,
                "granularity": info.granularity,
                "recording": info.recording,
                "busy": info.busy,
                "persistent": info.persistent,
            });
            if info.inconsistent {
                value["inconsistent"] = true.into();
            }
            value
        };
        bitmaps.iter().map(tell).collect()
    }

    pub(crate) async fn block_dirty_bitmap_add(
        &self,
        command: BlockDirtyBitmapAdd,
    ) -> Result<Empty, QmpError> {
        let _turn = self.serial.turn().await;
        drop(self.bitmap_add(&command).await?);
        Ok(Empty {})
    }

    pub(crate) async fn block_dirty_bitmap_remove(
        &self,
        command: BlockDirtyBitmapRemove,
    ) -> Result<Empty, QmpError> {
        let _turn = self.serial.turn().await;
        drop(self.bitmap_remove(&command)?);
        Ok(Empty {})
    }

    pub(crate) async fn block_dirty_bitmap_clear(
        &self,
        command: BlockDirtyBitmapClear,
    ) -> Result<Empty, QmpError> {
        let _turn = self.serial.turn().await;
        drop(self.bitmap_clear(&command)?);
        Ok(Empty {})
    }

    pub(crate) async fn block_dirty_bitmap_enable(
        &self,
        command: BlockDirtyBitmapEnable,
    ) -> Result<Empty, QmpError> {
        let _turn = self.serial.turn().await;
        drop(
            self.bitmap_enable(&command.node, &command.name, true)
                .await?,
        );
        Ok(Empty {})
    }

    pub(crate) async fn block_dirty_bitmap_disable(
        &self,
        command: BlockDirtyBitmapDisable,
    ) -> Result<Empty, QmpError> {
        let _turn = self.serial.turn().await;
        drop(
            self.bitmap_enable(&command.node, &command.name, false)
                .await?,
        );
        Ok(Empty {})
    }

    pub(crate) async fn block_dirty_bitmap_merge(
        &self,
        command: BlockDirtyBitmapMerge,
    ) -> Result<Empty, QmpError> {
        let _turn = self.serial.turn().await;
        drop(self.bitmap_merge(&command)?);
        Ok(Empty {})
    }
}
