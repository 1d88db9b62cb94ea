//! Snapshots, and several things at one instant.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use block::qcow2::{CreateOptions, SnapshotRequest};
use block::{DiskSpec, Format, NewEncryption, Node};
use qmp::{Empty, QmpError};

use crate::bitmaps::Undo;
use crate::graph::{GraphNode, MAX_CHAIN, Role};
use crate::job::{CreatedJob, Transaction as Jobs};
use crate::jobs::Prepared as PreparedJob;
use crate::qapi::block::{
    BlockdevSnapshot, BlockdevSnapshotDeleteInternalSync, BlockdevSnapshotInternalSync,
    BlockdevSnapshotSync, CompletionMode, NewImageMode, SnapshotInfo, Transaction,
    TransactionAction as Action,
};
use crate::{Blockdev, BlockdevError};

/// What an action needs, found or made before the instant.
enum Ready {
    /// Put the second node on top of the first.
    Overlay(Arc<GraphNode>, Arc<GraphNode>),
    /// Take a snapshot inside the image.
    Internal(Arc<GraphNode>, String),
    /// Begin a job.
    Job(Box<PreparedJob>),
    /// Change bitmaps, when its turn has come.
    Bitmap(Action),
    Abort,
}

impl Ready {
    /// The nodes whose users have to wait.
    fn nodes(&self, this: &Blockdev) -> Vec<Arc<GraphNode>> {
        match self {
            Self::Overlay(node, _) | Self::Internal(node, _) => vec![Arc::clone(node)],
            Self::Job(job) => vec![Arc::clone(&job.source)],
            Self::Bitmap(_) => {
                // Which of them, and on which node, is known when its turn has come.
                this.graph().nodes().cloned().collect()
            }
            Self::Abort => Vec::new(),
        }
    }
}

impl Blockdev {
    pub(crate) async fn blockdev_snapshot(
        &self,
        command: BlockdevSnapshot,
    ) -> Result<Empty, QmpError> {
        self.at_once(
            vec![Action::BlockdevSnapshot(command)],
            CompletionMode::Individual,
        )
        .await
    }

    pub(crate) async fn blockdev_snapshot_sync(
        &self,
        command: BlockdevSnapshotSync,
    ) -> Result<Empty, QmpError> {
        self.at_once(
            vec![Action::BlockdevSnapshotSync(command)],
            CompletionMode::Individual,
        )
        .await
    }

    pub(crate) async fn blockdev_snapshot_internal_sync(
        &self,
        command: BlockdevSnapshotInternalSync,
    ) -> Result<Empty, QmpError> {
        let action = Action::BlockdevSnapshotInternalSync(command);
        self.at_once(vec![action], CompletionMode::Individual).await
    }

    pub(crate) async fn transaction(&self, command: Transaction) -> Result<Empty, QmpError> {
        self.at_once(command.actions, command.properties.completion_mode)
            .await
    }

    async fn at_once(&self, actions: Vec<Action>, mode: CompletionMode) -> Result<Empty, QmpError> {
        let _turn = self.serial.turn().await;
        let grouped = match mode {
            CompletionMode::Grouped => Some(Arc::<Jobs>::default()),
            CompletionMode::Individual => None,
        };
        let mut made = Vec::new();
        let mut ready = Vec::with_capacity(actions.len());
        let mut prepared = Ok(());
        for action in actions {
            match self.prepare(action, grouped.as_ref(), &mut made).await {
                Ok(action) => ready.push(action),
                Err(error) => {
                    prepared = Err(error);
                    break;
                }
            }
        }
        let done = match prepared {
            Ok(()) => self.perform(ready).await,
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            for (node, file) in made {
                self.undo_overlay(&node, file).await;
            }
            return Err(error.into());
        }
        self.close_unused().await;
        Ok(Empty {})
    }

    /// All of it, or none.
    async fn perform(&self, ready: Vec<Ready>) -> Result<(), BlockdevError> {
        let nodes: Vec<_> = ready.iter().flat_map(|action| action.nodes(self)).collect();
        let quiet = self.drain(&nodes).await;
        let mut undo: Vec<Undo> = Vec::new();
        let mut jobs: Vec<(CreatedJob, Box<PreparedJob>)> = Vec::new();
        let mut below = Vec::new();
        let mut snapshots = Vec::new();
        let mut result = Ok(());
        for action in ready {
            let done = match action {
                Ready::Overlay(node, overlay) => {
                    below.push(Arc::clone(&node));
                    Ok(self.put_on_top(node, overlay))
                }
                Ready::Internal(node, name) => {
                    let taken = self.take_internal(&node, &name).await;
                    taken.map(|()| {
                        snapshots.push((node, name));
                        Box::new(|_: &Blockdev| {}) as Undo
                    })
                }
                Ready::Job(mut job) => match job.created.take() {
                    Some(created) => match created.attach() {
                        Ok(()) => {
                            jobs.push((created, job));
                            Ok(Box::new(|_: &Blockdev| {}) as Undo)
                        }
                        Err(error) => Err(BlockdevError::io("begin the job")(error)),
                    },
                    None => Ok(Box::new(|_: &Blockdev| {}) as Undo),
                },
                Ready::Bitmap(action) => self.change_bitmap(action).await,
                Ready::Abort => Err(BlockdevError::Refused(
                    "Transaction aborted using Abort action".to_owned(),
                )),
            };
            match done {
                Ok(step) => undo.push(step),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        if let Err(error) = result {
            drop(jobs);
            for step in undo.into_iter().rev() {
                step(self);
            }
            for (node, name) in snapshots {
                if let Ok(qcow2) = node.qcow2()
                    && let Err(error) = qcow2.delete_snapshot(&name).await
                {
                    log::error!("snapshot '{name}' of '{}' stays: {error}", node.name);
                }
            }
            return Err(error);
        }
        for (created, job) in jobs {
            self.graph().hold(created.job().id(), job.hold());
            created.start();
        }
        // What is below an overlay now is not written any more: others may read it, and it is
        // complete on the disk.
        for node in below {
            if let Err(error) = self.set_writable(&node, false).await {
                log::warn!("node '{}' stays open for writing: {error}", node.name);
            }
        }
        drop(quiet);
        Ok(())
    }

    async fn prepare(
        &self,
        action: Action,
        grouped: Option<&Arc<Jobs>>,
        made: &mut Vec<(Arc<GraphNode>, Option<PathBuf>)>,
    ) -> Result<Ready, BlockdevError> {
        match action {
            Action::BlockdevSnapshot(command) => {
                let (node, overlay) = {
                    let graph = self.graph();
                    let node = graph.device_or_node(&command.node)?;
                    (graph.skip_filters(node), graph.node(&command.overlay)?)
                };
                self.check_overlay(&node, &overlay)?;
                Ok(Ready::Overlay(node, overlay))
            }
            Action::BlockdevSnapshotSync(command) => {
                let node = {
                    let graph = self.graph();
                    let node =
                        graph.either(command.device.as_deref(), command.node_name.as_deref())?;
                    graph.skip_filters(node)
                };
                self.graph().check_free(&node)?;
                let (overlay, file) = self.make_overlay(&node, command).await?;
                made.push((Arc::clone(&overlay), file));
                self.check_overlay(&node, &overlay)?;
                Ok(Ready::Overlay(node, overlay))
            }
            Action::BlockdevSnapshotInternalSync(command) => {
                let node = {
                    let graph = self.graph();
                    let node = graph.device_or_node(&command.device)?;
                    graph.skip_filters(node)
                };
                self.graph().check_free(&node)?;
                let qcow2 = node.qcow2()?;
                let taken = qcow2
                    .snapshots()
                    .await
                    .map_err(|source| BlockdevError::Qcow2 {
                        what: "read the snapshots",
                        node: node.name.clone(),
                        source,
                    })?;
                if taken.iter().any(|snapshot| snapshot.name == command.name) {
                    return Err(BlockdevError::Refused(format!(
                        "Snapshot with name '{}' already exists on device '{}'",
                        command.name, command.device
                    )));
                }
                Ok(Ready::Internal(node, command.name))
            }
            Action::BlockdevBackup(command) => {
                let job = self.prepare_backup(command, grouped.cloned()).await?;
                Ok(Ready::Job(Box::new(job)))
            }
            Action::Abort(Empty {}) => Ok(Ready::Abort),
            bitmap => Ok(Ready::Bitmap(bitmap)),
        }
    }

    async fn change_bitmap(&self, action: Action) -> Result<Undo, BlockdevError> {
        match action {
            Action::BlockDirtyBitmapAdd(command) => self.bitmap_add(&command).await,
            Action::BlockDirtyBitmapRemove(command) => self.bitmap_remove(&command),
            Action::BlockDirtyBitmapClear(command) => self.bitmap_clear(&command),
            Action::BlockDirtyBitmapEnable(command) => {
                self.bitmap_enable(&command.node, &command.name, true).await
            }
            Action::BlockDirtyBitmapDisable(command) => {
                self.bitmap_enable(&command.node, &command.name, false)
                    .await
            }
            Action::BlockDirtyBitmapMerge(command) => self.bitmap_merge(&command),
            _ => Ok(Box::new(|_| {})),
        }
    }

    fn check_overlay(
        &self,
        node: &Arc<GraphNode>,
        overlay: &Arc<GraphNode>,
    ) -> Result<(), BlockdevError> {
        let unsuitable = |why: &str| Err(BlockdevError::unsuitable(&overlay.name, why));
        let graph = self.graph();
        graph.check_free(node)?;
        graph.check_free(overlay)?;
        overlay.qcow2()?;
        if Arc::ptr_eq(node, overlay) {
            return unsuitable("cannot lie on itself");
        }
        if !graph.parents(overlay).is_empty() {
            return unsuitable("is in use already");
        }
        if overlay
            .child(Role::Backing)
            .is_some_and(|edge| edge.is_some())
        {
            return unsuitable("has a backing file already: open it with backing=null");
        }
        if overlay.vertex.is_read_only() && !node.vertex.is_read_only() {
            return unsuitable("is read-only");
        }
        if overlay.vertex.size() < node.vertex.size() {
            return unsuitable("is smaller than what it is to lie on");
        }
        if graph.chain(node).len() >= MAX_CHAIN {
            return Err(BlockdevError::Refused(format!(
                "'{}' is the last of {MAX_CHAIN} images that lie on one another: merge some of them",
                node.name
            )));
        }
        Ok(())
    }

    /// Makes an image and opens it, with nothing below yet.
    async fn make_overlay(
        &self,
        node: &Arc<GraphNode>,
        command: BlockdevSnapshotSync,
    ) -> Result<(Arc<GraphNode>, Option<PathBuf>), BlockdevError> {
        let format = command.format.as_deref().unwrap_or("qcow2");
        if format != "qcow2" {
            return Err(BlockdevError::Options(format!(
                "Invalid image format '{format}': snapshots are qcow2"
            )));
        }
        let below = node.spec();
        let path = PathBuf::from(&command.snapshot_file);
        let spec = DiskSpec {
            file: path.clone(),
            format: Some(Format::Qcow2),
            read_only: false,
            node_name: None,
            ..below.clone()
        };
        let file = match command.mode {
            NewImageMode::Existing => None,
            NewImageMode::AbsolutePaths => {
                if path.exists()
                    && std::fs::canonicalize(&path).ok() == below.file.canonicalize().ok()
                {
                    return Err(BlockdevError::Options(format!(
                        "{} is the image itself",
                        path.display()
                    )));
                }
                let absolute = std::path::absolute(&below.file)
                    .map_err(BlockdevError::io("find the image's absolute path"))?;
                let mut options = CreateOptions {
                    backing_file: Some(absolute.to_string_lossy().into_owned().into_bytes()),
                    backing_format: Some(node.driver().name().to_owned()),
                    ..CreateOptions::new(node.vertex.size())
                };
                // What is written from now on is as secret as what was written before.
                if let Some(passphrase) = node.key()? {
                    options.encryption = Some(NewEncryption {
                        header: luks::NewHeader::default(),
                        passphrase,
                    });
                }
                let was_there = path.exists();
                block::create_image(&spec, &options).await?;
                (!was_there).then_some(path)
            }
        };
        let overlay = {
            let key = node.state().key.clone();
            self.open_overlay(&spec, command.snapshot_node_name, key)
                .await?
        };
        Ok((overlay, file))
    }

    async fn undo_overlay(&self, overlay: &Arc<GraphNode>, file: Option<PathBuf>) {
        let storage = self.child_node(overlay, Role::File);
        self.graph().remove(&overlay.name);
        self.close_node(overlay).await;
        if let Some(storage) = storage {
            self.graph().remove(&storage.name);
            self.close_node(&storage).await;
        }
        if let Some(file) = file
            && let Err(error) = std::fs::remove_file(&file)
        {
            log::warn!("cannot remove {}: {error}", file.display());
        }
    }

    /// Leads the users of a node to an overlay on it, while they wait.
    fn put_on_top(&self, node: Arc<GraphNode>, overlay: Arc<GraphNode>) -> Undo {
        let users = self.replace_users(&node, &overlay.vertex, None);
        let backing = overlay.child(Role::Backing);
        if let Some(backing) = &backing {
            backing.lead(Some(Arc::clone(&node.vertex)));
        }
        Box::new(move |_| {
            if let Some(backing) = backing {
                backing.lead(None);
            }
            for edge in users {
                edge.lead(Some(Arc::clone(&node.vertex)));
            }
        })
    }

    async fn take_internal(&self, node: &Arc<GraphNode>, name: &str) -> Result<(), BlockdevError> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let request = SnapshotRequest {
            name: name.to_owned(),
            date_sec: u32::try_from(now.as_secs()).unwrap_or(u32::MAX),
            date_nsec: now.subsec_nanos(),
            vm_clock_nsec: 0,
        };
        let taken = node.qcow2()?.create_snapshot(&request).await;
        taken.map(|_| ()).map_err(|source| BlockdevError::Qcow2 {
            what: "take a snapshot",
            node: node.name.clone(),
            source,
        })
    }

    pub(crate) async fn snapshot_delete_internal(
        &self,
        command: BlockdevSnapshotDeleteInternalSync,
    ) -> Result<SnapshotInfo, QmpError> {
        if command.id.is_none() && command.name.is_none() {
            return Err(QmpError::generic("Name or id must be provided"));
        }
        let _turn = self.serial.turn().await;
        let node = {
            let graph = self.graph();
            let node = graph.device_or_node(&command.device)?;
            let node = graph.skip_filters(node);
            graph.check_free(&node)?;
            node
        };
        let failed = |source| BlockdevError::Qcow2 {
            what: "delete a snapshot",
            node: node.name.clone(),
            source,
        };
        let qcow2 = node.qcow2()?;
        let all = qcow2.snapshots().await.map_err(failed)?;
        let matches =
            |given: &Option<String>, own: &String| given.as_ref().is_none_or(|g| g == own);
        let found = all
            .iter()
            .find(|s| matches(&command.id, &s.id) && matches(&command.name, &s.name));
        let Some(found) = found else {
            return Err(QmpError::generic(format!(
                "Snapshot with id '{}' and name '{}' does not exist on device '{}'",
                command.id.as_deref().unwrap_or("null"),
                command.name.as_deref().unwrap_or("null"),
                command.device
            )));
        };
        let quiet = self.drain(&[Arc::clone(&node)]).await;
        let which = if command.id.is_some() {
            &found.id
        } else {
            &found.name
        };
        qcow2.delete_snapshot(which).await.map_err(failed)?;
        drop(quiet);
        Ok(SnapshotInfo {
            id: found.id.clone(),
            name: found.name.clone(),
            vm_state_size: found.vm_state_size,
            date_sec: found.date_sec.into(),
            date_nsec: found.date_nsec.into(),
            vm_clock_sec: found.vm_clock_nsec / 1_000_000_000,
            vm_clock_nsec: found.vm_clock_nsec % 1_000_000_000,
        })
    }
}
