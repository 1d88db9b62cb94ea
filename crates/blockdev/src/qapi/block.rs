//! qapi/block-core.json, transaction.json, block-export.json: what changes disks.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::job::{BitmapMode, CopyMode, OnError, Sync};
use block::throttle::BlockIoThrottle;
use qmp::{Command, Empty, command};

/// Options of a node (BlockdevOptions), which have their own reader.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct BlockdevAdd(pub Map<String, Value>);

impl Command for BlockdevAdd {
    const NAME: &'static str = "blockdev-add";
    type Return = Empty;
}

command! {
    /// Takes a node out of the graph and closes it.
    BlockdevDel = "blockdev-del" -> Empty {
        /// Its name.
        node_name: String,
    }
}
command! {
    /// Opens nodes anew with other options: another file below, writable or not.
    BlockdevReopen = "blockdev-reopen" -> Empty {
        /// The options of each node, whole.
        options: Vec<Map<String, Value>>,
    }
}
command! {
    /// Begins a job that makes an image.
    BlockdevCreate = "blockdev-create" -> Empty {
        /// The job's name.
        job_id: String,
        /// BlockdevCreateOptions.
        options: Map<String, Value>,
    }
}
command! {
    /// Gives a node another size.
    BlockResize = "block_resize" -> Empty {
        /// The device's name.
        #[serde(default)]
        device: Option<String>,
        /// The node's name.
        #[serde(default, rename = "node-name")]
        node_name: Option<String>,
        /// New size in bytes.
        size: u64,
    }
}
command! {
    /// Puts an overlay, which is a node without users, on top of a node.
    BlockdevSnapshot = "blockdev-snapshot" -> Empty {
        /// The node.
        node: String,
        /// The overlay.
        overlay: String,
    }
}

/// Where a new image comes from (NewImageMode).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NewImageMode {
    /// It is there.
    Existing,
    /// It is made, and refers to what is below by an absolute path.
    #[default]
    AbsolutePaths,
}

command! {
    /// Makes an overlay and puts it on top of a node.
    BlockdevSnapshotSync = "blockdev-snapshot-sync" -> Empty {
        /// The device's name.
        #[serde(default)]
        device: Option<String>,
        /// The node's name.
        #[serde(default)]
        node_name: Option<String>,
        /// The overlay's file.
        snapshot_file: String,
        /// The overlay's name.
        #[serde(default)]
        snapshot_node_name: Option<String>,
        /// The overlay's format; qcow2.
        #[serde(default)]
        format: Option<String>,
        /// Whether the file is there.
        #[serde(default)]
        mode: NewImageMode,
    }
}
command! {
    /// Takes a snapshot inside an image.
    BlockdevSnapshotInternalSync = "blockdev-snapshot-internal-sync" -> Empty {
        /// The device's or node's name.
        device: String,
        /// The snapshot's name.
        name: String,
    }
}

/// A snapshot inside an image (SnapshotInfo).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SnapshotInfo {
    /// Number.
    pub id: String,
    /// Name.
    pub name: String,
    /// Bytes of the machine's state.
    pub vm_state_size: u64,
    /// Seconds since 1970.
    pub date_sec: u64,
    /// And nanoseconds.
    pub date_nsec: u64,
    /// The guest's time, in seconds.
    pub vm_clock_sec: u64,
    /// And nanoseconds.
    pub vm_clock_nsec: u64,
}

command! {
    /// Deletes a snapshot inside an image.
    BlockdevSnapshotDeleteInternalSync = "blockdev-snapshot-delete-internal-sync" -> SnapshotInfo {
        /// The device's or node's name.
        device: String,
        /// The snapshot's number.
        #[serde(default)]
        id: Option<String>,
        /// The snapshot's name.
        #[serde(default)]
        name: Option<String>,
    }
}

command! {
    /// Merges images towards the root.
    BlockCommit = "block-commit" -> Empty {
        /// The job's name.
        #[serde(default)]
        job_id: Option<String>,
        /// The device's or root node's name.
        device: String,
        /// The node that takes the data.
        #[serde(default)]
        base_node: Option<String>,
        /// The same by its file.
        #[serde(default)]
        base: Option<String>,
        /// The uppermost node that is merged.
        #[serde(default)]
        top_node: Option<String>,
        /// The same by its file.
        #[serde(default)]
        top: Option<String>,
        /// What the header of the image above is to say of its backing file.
        #[serde(default)]
        backing_file: Option<String>,
        /// Bytes a second; 0: as fast as possible.
        #[serde(default)]
        speed: u64,
        /// What to do about errors.
        #[serde(default = "super::job::report")]
        on_error: OnError,
        /// Accepted: there is no filter node.
        #[serde(default)]
        filter_node_name: Option<String>,
        /// Finish without being told.
        #[serde(default = "super::job::yes")]
        auto_finalize: bool,
        /// Disappear without being told.
        #[serde(default = "super::job::yes")]
        auto_dismiss: bool,
    }
}
command! {
    /// Merges images towards the active one.
    BlockStream = "block-stream" -> Empty {
        /// The job's name.
        #[serde(default)]
        job_id: Option<String>,
        /// The device's or the node's name: who takes the data.
        device: String,
        /// The file of the node that stays below.
        #[serde(default)]
        base: Option<String>,
        /// The node that stays below.
        #[serde(default)]
        base_node: Option<String>,
        /// The lowest node that is merged.
        #[serde(default)]
        bottom: Option<String>,
        /// What the header is to say of the backing file.
        #[serde(default)]
        backing_file: Option<String>,
        /// Bytes a second; 0: as fast as possible.
        #[serde(default)]
        speed: u64,
        /// What to do about errors.
        #[serde(default = "super::job::report")]
        on_error: OnError,
        /// Accepted: there is no filter node.
        #[serde(default)]
        filter_node_name: Option<String>,
        /// Finish without being told.
        #[serde(default = "super::job::yes")]
        auto_finalize: bool,
        /// Disappear without being told.
        #[serde(default = "super::job::yes")]
        auto_dismiss: bool,
    }
}
command! {
    /// Copies a disk to another node while it is used.
    BlockdevMirror = "blockdev-mirror" -> Empty {
        /// The job's name.
        #[serde(default)]
        job_id: Option<String>,
        /// The device's or the node's name.
        device: String,
        /// The node that is written.
        target: String,
        /// The node that the target replaces in the end; the source by default.
        #[serde(default)]
        replaces: Option<String>,
        /// Which part is copied.
        sync: Sync,
        /// Bytes a second; 0: as fast as possible.
        #[serde(default)]
        speed: u64,
        /// Bytes that are copied at least.
        #[serde(default)]
        granularity: Option<u32>,
        /// Bytes of memory for copying.
        #[serde(default)]
        buf_size: Option<u64>,
        /// What to do about errors of the source.
        #[serde(default = "super::job::report")]
        on_source_error: OnError,
        /// What to do about errors of the target.
        #[serde(default = "super::job::report")]
        on_target_error: OnError,
        /// Accepted: there is no filter node.
        #[serde(default)]
        filter_node_name: Option<String>,
        /// When writes are copied.
        #[serde(default = "super::job::background")]
        copy_mode: CopyMode,
        /// The target reads as zeros already.
        #[serde(default)]
        target_is_zero: bool,
        /// Finish without being told.
        #[serde(default = "super::job::yes")]
        auto_finalize: bool,
        /// Disappear without being told.
        #[serde(default = "super::job::yes")]
        auto_dismiss: bool,
    }
}
command! {
    /// Copies a disk as it is at this instant.
    BlockdevBackup = "blockdev-backup" -> Empty {
        /// The job's name.
        #[serde(default)]
        job_id: Option<String>,
        /// The device's or the node's name.
        device: String,
        /// The node that is written.
        target: String,
        /// Which part is copied.
        sync: Sync,
        /// Bytes a second; 0: as fast as possible.
        #[serde(default)]
        speed: u64,
        /// The bitmap that says what to copy.
        #[serde(default)]
        bitmap: Option<String>,
        /// What becomes of it.
        #[serde(default)]
        bitmap_mode: Option<BitmapMode>,
        /// Write compressed clusters.
        #[serde(default)]
        compress: bool,
        /// What to do about errors of the source.
        #[serde(default = "super::job::report")]
        on_source_error: OnError,
        /// What to do about errors of the target.
        #[serde(default = "super::job::report")]
        on_target_error: OnError,
        /// Accepted: there is no filter node.
        #[serde(default)]
        filter_node_name: Option<String>,
        /// Finish without being told.
        #[serde(default = "super::job::yes")]
        auto_finalize: bool,
        /// Disappear without being told.
        #[serde(default = "super::job::yes")]
        auto_dismiss: bool,
    }
}

command! {
    /// Begins to record writes.
    BlockDirtyBitmapAdd = "block-dirty-bitmap-add" -> Empty {
        /// The node.
        node: String,
        /// The bitmap's name.
        name: String,
        /// Bytes that a bit stands for.
        #[serde(default)]
        granularity: Option<u64>,
        /// Kept in the image when it is closed.
        #[serde(default)]
        persistent: bool,
        /// Does not record yet.
        #[serde(default)]
        disabled: bool,
    }
}
command! {
    /// Removes a bitmap.
    BlockDirtyBitmapRemove = "block-dirty-bitmap-remove" -> Empty {
        /// The node.
        node: String,
        /// The bitmap's name.
        name: String,
    }
}
command! {
    /// Clears a bitmap.
    BlockDirtyBitmapClear = "block-dirty-bitmap-clear" -> Empty {
        /// The node.
        node: String,
        /// The bitmap's name.
        name: String,
    }
}
command! {
    /// Lets a bitmap record.
    BlockDirtyBitmapEnable = "block-dirty-bitmap-enable" -> Empty {
        /// The node.
        node: String,
        /// The bitmap's name.
        name: String,
    }
}
command! {
    /// Lets a bitmap record no more.
    BlockDirtyBitmapDisable = "block-dirty-bitmap-disable" -> Empty {
        /// The node.
        node: String,
        /// The bitmap's name.
        name: String,
    }
}

/// A bitmap (BlockDirtyBitmapOrStr).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum BitmapSource {
    /// Of the same node.
    Local(String),
    /// Of another one.
    External {
        /// The node.
        node: String,
        /// The bitmap's name.
        name: String,
    },
}

command! {
    /// Adds to a bitmap what others have.
    BlockDirtyBitmapMerge = "block-dirty-bitmap-merge" -> Empty {
        /// The node.
        node: String,
        /// The bitmap that is added to.
        target: String,
        /// The others.
        bitmaps: Vec<BitmapSource>,
    }
}

/// One of the things that are done at one instant (TransactionAction).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case")]
pub enum TransactionAction {
    /// See the command.
    BlockdevSnapshot(BlockdevSnapshot),
    /// See the command.
    BlockdevSnapshotSync(BlockdevSnapshotSync),
    /// See the command.
    BlockdevSnapshotInternalSync(BlockdevSnapshotInternalSync),
    /// See the command.
    BlockdevBackup(BlockdevBackup),
    /// See the command.
    BlockDirtyBitmapAdd(BlockDirtyBitmapAdd),
    /// See the command.
    BlockDirtyBitmapRemove(BlockDirtyBitmapRemove),
    /// See the command.
    BlockDirtyBitmapClear(BlockDirtyBitmapClear),
    /// See the command.
    BlockDirtyBitmapEnable(BlockDirtyBitmapEnable),
    /// See the command.
    BlockDirtyBitmapDisable(BlockDirtyBitmapDisable),
    /// See the command.
    BlockDirtyBitmapMerge(BlockDirtyBitmapMerge),
    /// Lets everything fail.
    Abort(Empty),
}

/// How the jobs of a transaction end (ActionCompletionMode).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CompletionMode {
    /// Each by itself.
    #[default]
    Individual,
    /// All or none.
    Grouped,
}

/// TransactionProperties.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TransactionProperties {
    /// How its jobs end.
    #[serde(default)]
    pub completion_mode: CompletionMode,
}

command! {
    /// Does several things at one instant, or none of them.
    Transaction = "transaction" -> Empty {
        /// The things.
        actions: Vec<TransactionAction>,
        /// And how.
        #[serde(default)]
        properties: TransactionProperties,
    }
}
/// Limits the requests of a device.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct BlockSetIoThrottle(pub BlockIoThrottle);

impl Command for BlockSetIoThrottle {
    const NAME: &'static str = "block_set_io_throttle";
    type Return = Empty;
}

command! {
    /// Tells when a node's file is written beyond an offset.
    BlockSetWriteThreshold = "block-set-write-threshold" -> Empty {
        /// The node.
        node_name: String,
        /// Offset in bytes; 0: never.
        write_threshold: u64,
    }
}
command! {
    /// Tells an image what to say of its backing file, and changes nothing else.
    ChangeBackingFile = "change-backing-file" -> Empty {
        /// The device's or root node's name.
        device: String,
        /// The image's node.
        image_node_name: String,
        /// What its header is to say.
        backing_file: String,
    }
}

/// Makes an object. Of this interface: a throttle-group, with its limits; a secret, with its data.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ObjectAdd {
    /// Its kind.
    pub qom_type: String,
    /// Its name.
    pub id: String,
    /// Its properties.
    #[serde(flatten)]
    pub properties: Map<String, Value>,
}

impl Command for ObjectAdd {
    const NAME: &'static str = "object-add";
    type Return = Empty;
}

command! {
    /// Removes an object.
    ObjectDel = "object-del" -> Empty {
        /// Its name.
        id: String,
    }
}
command! {
    /// Changes a property of an object: the limits of a throttle-group.
    QomSet = "qom-set" -> Empty {
        /// Its path or name.
        path: String,
        /// Which.
        property: String,
        /// The new value.
        value: Value,
    }
}
command! {
    /// Asks for a property of an object: the limits of a throttle-group.
    QomGet = "qom-get" -> Value {
        /// Its path or name.
        path: String,
        /// Which.
        property: String,
    }
}

command! {
    /// Puts another medium into a drive.
    BlockdevChangeMedium = "blockdev-change-medium" -> Empty {
        /// The device's name.
        #[serde(default)]
        device: Option<String>,
        /// Likewise.
        #[serde(default)]
        id: Option<String>,
        /// The medium's file.
        filename: String,
        /// Its format.
        #[serde(default)]
        format: Option<String>,
        /// Also while the guest has locked the drive.
        #[serde(default)]
        force: Option<bool>,
        /// retain, read-only or read-write.
        #[serde(default)]
        read_only_mode: Option<String>,
    }
}
