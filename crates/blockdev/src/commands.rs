//! The commands, one line each.

use std::future::Future;
use std::sync::Arc;

use qmp::{AsyncTable, QmpError};

use crate::Blockdev;
use crate::job::Job;
use crate::qapi::block as b;
use crate::qapi::export as e;
use crate::qapi::job as j;
use crate::qapi::query as q;

/// Runs a command on the graph's thread.
async fn there<Q, T, F>(
    this: Arc<Blockdev>,
    command: Q,
    run: impl FnOnce(Arc<Blockdev>, Q) -> F + Send + 'static,
) -> Result<T, QmpError>
where
    Q: Send + 'static,
    T: Send + 'static,
    F: Future<Output = Result<T, QmpError>> + 'static,
{
    this.on_thread(move |this| run(this, command)).await
}

/// `Command => method`: the command's arguments go to the method, on the graph's thread.
macro_rules! table {
    ($($command:ty => $method:ident,)*) => {
        AsyncTable::new()$(.on::<$command, _>(|this, command| {
            there(this, command, |this, command| async move { this.$method(command).await })
        }))*
    };
}

pub(crate) fn table() -> AsyncTable<Blockdev> {
    let table: AsyncTable<Blockdev> = table! {
        b::BlockdevAdd => blockdev_add,
        b::BlockdevDel => blockdev_del,
        b::BlockdevReopen => blockdev_reopen,
        b::BlockdevCreate => blockdev_create,
        b::BlockdevChangeMedium => change_medium,
        b::BlockResize => block_resize,
        b::BlockdevSnapshot => blockdev_snapshot,
        b::BlockdevSnapshotSync => blockdev_snapshot_sync,
        b::BlockdevSnapshotInternalSync => blockdev_snapshot_internal_sync,
        b::BlockdevSnapshotDeleteInternalSync => snapshot_delete_internal,
        b::Transaction => transaction,
        b::BlockCommit => block_commit,
        b::BlockStream => block_stream,
        b::BlockdevMirror => blockdev_mirror,
        b::BlockdevBackup => blockdev_backup,
        b::ChangeBackingFile => change_backing_file,
        b::BlockDirtyBitmapAdd => block_dirty_bitmap_add,
        b::BlockDirtyBitmapRemove => block_dirty_bitmap_remove,
        b::BlockDirtyBitmapClear => block_dirty_bitmap_clear,
        b::BlockDirtyBitmapEnable => block_dirty_bitmap_enable,
        b::BlockDirtyBitmapDisable => block_dirty_bitmap_disable,
        b::BlockDirtyBitmapMerge => block_dirty_bitmap_merge,
        b::BlockSetIoThrottle => set_io_throttle,
        b::BlockSetWriteThreshold => set_write_threshold,
        b::ObjectAdd => object_add,
        b::ObjectDel => object_del,
        b::QomSet => qom_set,
        b::QomGet => qom_get,
        e::NbdServerStart => nbd_server_start,
        e::NbdServerAdd => nbd_server_add,
        e::NbdServerRemove => nbd_server_remove,
        e::BlockExportAdd => block_export_add,
        e::BlockExportDel => block_export_del,
        q::QueryNamedBlockNodes => query_named_block_nodes,
        q::QueryBlockstats => query_blockstats,
    };
    table
        .on::<e::NbdServerStop, _>(|this, _| {
            there(
                this,
                (),
                |this, ()| async move { this.nbd_server_stop().await },
            )
        })
        .on::<e::QueryBlockExports, _>(|this, _| async move { this.query_block_exports().await })
        .on::<q::QueryBlock, _>(|this, _| {
            there(this, (), |this, ()| async move { this.query_block().await })
        })
        .on::<j::QueryJobs, _>(|this, _| async move { this.query_jobs().await })
        .on::<j::QueryBlockJobs, _>(|this, _| async move { this.query_block_jobs().await })
        .on::<j::JobPause, _>(|this, c| async move { this.ask(&c.id, Job::pause) })
        .on::<j::JobResume, _>(|this, c| async move { this.ask(&c.id, Job::resume) })
        .on::<j::JobComplete, _>(|this, c| async move { this.ask(&c.id, Job::complete) })
        .on::<j::JobFinalize, _>(|this, c| async move { this.ask(&c.id, Job::finalize) })
        .on::<j::JobDismiss, _>(|this, c| async move { this.ask(&c.id, Job::dismiss) })
        .on::<j::JobCancel, _>(|this, c| async move { this.ask(&c.id, |job| job.cancel(true)) })
        .on::<j::BlockJobPause, _>(|this, c| async move { this.ask_block(&c.device, Job::pause) })
        .on::<j::BlockJobResume, _>(|this, c| async move { this.ask_block(&c.device, Job::resume) })
        .on::<j::BlockJobComplete, _>(
            |this, c| async move { this.ask_block(&c.device, Job::complete) },
        )
        .on::<j::BlockJobFinalize, _>(
            |this, c| async move { this.ask_block(&c.device, Job::finalize) },
        )
        .on::<j::BlockJobDismiss, _>(
            |this, c| async move { this.ask_block(&c.device, Job::dismiss) },
        )
        .on::<j::BlockJobCancel, _>(|this, c| async move {
            this.ask_block(&c.device, |job| job.block_cancel(c.force))
        })
        .on::<j::BlockJobSetSpeed, _>(|this, c| async move {
            this.ask_block(&c.device, |job| job.set_speed(c.speed))
        })
        .on::<j::BlockJobChange, _>(|this, c| async move {
            this.ask(&c.id, |job| match c.copy_mode {
                Some(mode) => job.change(mode),
                None => Ok(()),
            })
        })
}
