//! The commands that begin jobs and speak to them, and the changes of the graph at their end.

use std::io;
use std::sync::Arc;

use block::Node;
use qmp::{Empty, ErrorClass, QmpError};

use crate::graph::{Driver, GraphNode, Hold, Role};
use crate::job::{
    Backup, BackupOptions, BitmapMode, BlockJobInfo, CommitOptions, CompressedSink, CreatedJob,
    Driver as JobDriver, Ending, Finish, Job, JobError, JobEvent, JobInfo, JobOptions, JobStatus,
    JobType, Mirror, MirrorOptions, Settler, Stream, StreamOptions, Sync, Transaction, commit,
};
use crate::qapi::block::{BlockCommit, BlockStream, BlockdevBackup, BlockdevMirror};
use crate::{Blockdev, BlockdevError};

pub(crate) fn refused(error: JobError) -> BlockdevError {
    BlockdevError::Refused(error.to_string())
}

fn impossible(error: io::Error) -> BlockdevError {
    BlockdevError::Refused(error.to_string())
}

/// A job that has not begun.
pub(crate) struct Prepared {
    pub created: Option<CreatedJob>,
    /// Whose users wait while it begins.
    pub source: Arc<GraphNode>,
    what: &'static str,
    nodes: Vec<Arc<GraphNode>>,
    targets: Vec<Arc<GraphNode>>,
    writable: Option<Arc<GraphNode>>,
}

impl Prepared {
    pub(crate) fn hold(&self) -> Hold {
        Hold {
            what: self.what,
            nodes: self.nodes.clone(),
            targets: self.targets.clone(),
            writable: self.writable.clone(),
        }
    }
}

/// Who asks for a job, and how it is to be.
struct Wanted<'a> {
    id: Option<String>,
    device: &'a str,
    speed: u64,
    auto_finalize: bool,
    auto_dismiss: bool,
    transaction: Option<Arc<Transaction>>,
}

impl Blockdev {
    fn job_options(&self, wanted: Wanted<'_>) -> Result<JobOptions, BlockdevError> {
        let of_device = || {
            let graph = self.graph();
            graph.root(wanted.device).map(|_| wanted.device.to_owned())
        };
        let id = wanted.id.filter(|id| !id.is_empty()).or_else(of_device);
        let id = id.ok_or_else(|| {
            BlockdevError::Refused("An explicit job ID is required for this node".to_owned())
        })?;
        Ok(JobOptions {
            id,
            speed: wanted.speed,
            auto_finalize: wanted.auto_finalize,
            auto_dismiss: wanted.auto_dismiss,
            transaction: wanted.transaction,
        })
    }

    fn create(
        &self,
        options: JobOptions,
        driver: Box<dyn JobDriver>,
        source: &Arc<GraphNode>,
        nodes: Vec<Arc<GraphNode>>,
        targets: Vec<Arc<GraphNode>>,
    ) -> Result<Prepared, BlockdevError> {
        let what = driver.kind().as_str();
        let created = self.jobs.create(options, driver).map_err(refused)?;
        Ok(Prepared {
            created: Some(created),
            source: Arc::clone(source),
            what,
            nodes,
            targets,
            writable: None,
        })
    }

    /// Creates and begins a job for which `written` was opened for writing, if `was_read_only`.
    async fn merge<D: JobDriver>(
        &self,
        options: JobOptions,
        driver: io::Result<Box<D>>,
        top: &Arc<GraphNode>,
        hold: (Vec<Arc<GraphNode>>, Vec<Arc<GraphNode>>),
        (written, was_read_only): (&Arc<GraphNode>, bool),
    ) -> Result<Empty, QmpError> {
        let created = driver
            .map_err(impossible)
            .and_then(|driver| self.create(options, driver, top, hold.0, hold.1));
        let begun = match created {
            Err(error) => Err(error.into()),
            Ok(mut job) => {
                job.writable = was_read_only.then(|| Arc::clone(written));
                self.begin(job).await
            }
        };
        if begun.is_err() && was_read_only {
            self.set_writable(written, false).await?;
        }
        begun
    }

    /// Begins a job at an instant at which its source is quiet.
    async fn begin(&self, mut job: Prepared) -> Result<Empty, QmpError> {
        let Some(created) = job.created.take() else {
            return Ok(Empty {});
        };
        let quiet = self.drain(&[Arc::clone(&job.source)]).await;
        created
            .attach()
            .map_err(BlockdevError::io("begin the job"))?;
        self.graph().hold(created.job().id(), job.hold());
        created.start();
        drop(quiet);
        Ok(Empty {})
    }

    /// The topmost image of a device, or the node of that name.
    fn source(&self, device: &str) -> Result<Arc<GraphNode>, BlockdevError> {
        let graph = self.graph();
        let node = graph.device_or_node(device)?;
        let node = graph.skip_filters(node);
        graph.check_free(&node)?;
        Ok(node)
    }

    fn target(&self, name: &str, source: &Arc<GraphNode>) -> Result<Arc<GraphNode>, BlockdevError> {
        let graph = self.graph();
        let target = graph.node(name)?;
        graph.check_unused(&target)?;
        if Arc::ptr_eq(&target, source) {
            return Err(BlockdevError::unsuitable(
                name,
                "cannot be copied onto itself",
            ));
        }
        if let Some((who, _)) = graph.parents(&target).first() {
            return Err(BlockdevError::Busy {
                node: name.to_owned(),
                why: format!("it is {who}"),
            });
        }
        if target.vertex.is_read_only() {
            return Err(BlockdevError::unsuitable(name, "is read-only"));
        }
        Ok(target)
    }

    pub(crate) async fn blockdev_mirror(&self, command: BlockdevMirror) -> Result<Empty, QmpError> {
        let _turn = self.serial.turn().await;
        let source = self.source(&command.device)?;
        let target = self.target(&command.target, &source)?;
        let replaced = match &command.replaces {
            Some(name) => self.graph().node(name)?,
            None => Arc::clone(&source),
        };
        let options = self.job_options(Wanted {
            id: command.job_id,
            device: &command.device,
            speed: command.speed,
            auto_finalize: command.auto_finalize,
            auto_dismiss: command.auto_dismiss,
            transaction: None,
        })?;
        let default = MirrorOptions::new(Arc::clone(&source.vertex), Arc::clone(&target.vertex));
        let cluster = match target.driver() {
            Driver::Image(block::Image::Qcow2(image)) => CompressedSink::cluster_size(&*image),
            _ => 0,
        };
        let given = command.granularity.map_or(0, u64::from);
        let granularity = match given {
            0 => default.granularity.max(cluster),
            given => given.max(if command.sync == Sync::Full {
                0
            } else {
                cluster
            }),
        };
        let mirror = Mirror::new(MirrorOptions {
            sync: command.sync,
            copy_mode: command.copy_mode,
            granularity,
            buffer: command.buf_size.unwrap_or(default.buffer).max(granularity),
            on_source_error: command.on_source_error,
            on_target_error: command.on_target_error,
            finish: Some(self.pivot(&replaced, &target)),
            ..default
        });
        let mirror = mirror.map_err(impossible)?;
        let (nodes, targets) = (vec![Arc::clone(&source)], vec![target]);
        let job = self.create(options, mirror, &source, nodes, targets)?;
        self.begin(job).await
    }

    /// Leads the users of `from` to `to`.
    fn pivot(&self, from: &Arc<GraphNode>, to: &Arc<GraphNode>) -> Finish {
        let (this, from, to) = (self.this(), Arc::clone(from), Arc::clone(to));
        Box::new(move |ending: Ending, settler: Settler| {
            Box::pin(async move {
                let _turn = this.serial.turn().await;
                let quiet = this.drain(&[Arc::clone(&from)]).await;
                settler.settle().await?;
                if ending == Ending::Pivot {
                    this.replace_users(&from, &to.vertex, Some(&to));
                }
                drop(quiet);
                Ok(())
            })
        })
    }

    pub(crate) async fn block_commit(&self, command: BlockCommit) -> Result<Empty, QmpError> {
        let _turn = self.serial.turn().await;
        let active = self.source(&command.device)?;
        let chain = self.graph().chain(&active);
        let find = |node: &Option<String>, file: &Option<String>| match (node, file) {
            (Some(name), _) => {
                let mut chain = chain.iter();
                let found = chain.find(|node| node.name == *name).cloned();
                found.map(Some).ok_or_else(|| {
                    let why = format!("is not in the backing chain of '{}'", command.device);
                    BlockdevError::unsuitable(name, why)
                })
            }
            (None, Some(file)) => {
                let found = crate::graph::Graph::by_file(&chain, file);
                found.map(Some).ok_or_else(|| {
                    BlockdevError::Refused(format!(
                        "'{file}' is not in the backing chain of '{}'",
                        command.device
                    ))
                })
            }
            (None, None) => Ok(None),
        };
        let top = find(&command.top_node, &command.top)?.unwrap_or_else(|| Arc::clone(&active));
        let base = match find(&command.base_node, &command.base)? {
            Some(base) => base,
            None => match chain.last() {
                Some(last) => Arc::clone(last),
                None => Arc::clone(&active),
            },
        };
        let place = |node: &Arc<GraphNode>| chain.iter().position(|n| Arc::ptr_eq(n, node));
        let (Some(upper), Some(lower)) = (place(&top), place(&base)) else {
            return Err(BlockdevError::NoNode(base.name.clone()).into());
        };
        if lower <= upper {
            let why = format!("is not below '{}': nothing can be merged into it", top.name);
            return Err(BlockdevError::unsuitable(&base.name, why).into());
        }
        let merged: Vec<_> = chain[upper..=lower].to_vec();
        for node in &merged {
            self.graph().check_unused(node)?;
        }
        let is_active = upper == 0;
        if !is_active && let Some(parent) = chain.get(upper - 1) {
            self.graph().check_unused(parent)?;
        }
        let options = self.job_options(Wanted {
            id: command.job_id,
            device: &command.device,
            speed: command.speed,
            auto_finalize: command.auto_finalize,
            auto_dismiss: command.auto_dismiss,
            transaction: None,
        })?;
        let was_read_only = base.spec().read_only;
        self.set_writable(&base, true).await?;
        let layers = u32::try_from(lower - upper).unwrap_or(u32::MAX);
        let finish = self.after_commit(&top, &base, is_active, was_read_only, command.backing_file);
        let driver = commit(CommitOptions {
            on_error: command.on_error,
            finish: Some(finish),
            ..CommitOptions::new(
                Arc::clone(&top.vertex),
                Arc::clone(&base.vertex),
                layers,
                is_active,
            )
        });
        let mut nodes = merged;
        nodes.extend(chain[..upper].iter().cloned());
        let hold = (nodes, Vec::new());
        self.merge(options, driver, &top, hold, (&base, was_read_only))
            .await
    }

    /// Takes the merged layers out of the chain.
    fn after_commit(
        &self,
        top: &Arc<GraphNode>,
        base: &Arc<GraphNode>,
        is_active: bool,
        was_read_only: bool,
        backing_file: Option<String>,
    ) -> Finish {
        let (this, top, base) = (self.this(), Arc::clone(top), Arc::clone(base));
        Box::new(move |ending: Ending, settler: Settler| {
            Box::pin(async move {
                let _turn = this.serial.turn().await;
                let quiet = this.drain(&[Arc::clone(&top)]).await;
                settler.settle().await?;
                if ending == Ending::Stay {
                    return Ok(());
                }
                // On the disk first: from here on the layers between are needed no more, and
                // until then they show the same.
                if !is_active {
                    let overlays = this.overlays(&top);
                    for overlay in overlays {
                        this.record_backing(&overlay, Some(&base), backing_file.as_deref())
                            .await
                            .map_err(io::Error::other)?;
                    }
                }
                this.replace_users(&top, &base.vertex, None);
                if !is_active
                    && was_read_only
                    && let Err(error) = this.set_writable(&base, false).await
                {
                    log::warn!("node '{}' stays open for writing: {error}", base.name);
                }
                drop(quiet);
                Ok(())
            })
        })
    }

    /// The images whose backing file a node is.
    fn overlays(&self, node: &Arc<GraphNode>) -> Vec<Arc<GraphNode>> {
        let graph = self.graph();
        let lies_on = |other: &&Arc<GraphNode>| {
            let below = graph.below(other);
            below.is_some_and(|below| Arc::ptr_eq(&below, node))
        };
        graph.nodes().filter(lies_on).cloned().collect()
    }

    /// Writes into an image's header what lies below it.
    async fn record_backing(
        &self,
        node: &Arc<GraphNode>,
        below: Option<&Arc<GraphNode>>,
        given: Option<&str>,
    ) -> Result<(), BlockdevError> {
        let Some(below) = below else {
            return self.write_backing(node, None, None).await;
        };
        let path = below.spec().file;
        let file = match given {
            Some(given) => given.to_owned(),
            None if path.as_os_str().is_empty() => {
                return Err(BlockdevError::unsuitable(
                    &below.name,
                    "has no file name: say with backing-file what the header is to have",
                ));
            }
            None => std::path::absolute(&path)
                .map_err(BlockdevError::io("find the image's absolute path"))?
                .to_string_lossy()
                .into_owned(),
        };
        let format = below.driver().name();
        self.write_backing(node, Some(&file), Some(format)).await
    }

    pub(crate) async fn block_stream(&self, command: BlockStream) -> Result<Empty, QmpError> {
        let _turn = self.serial.turn().await;
        let top = self.source(&command.device)?;
        let chain = self.graph().chain(&top);
        let base = match (&command.base_node, &command.base, &command.bottom) {
            (Some(name), _, _) => Some(self.graph().node(name)?),
            (None, Some(file), _) => {
                let found = crate::graph::Graph::by_file(&chain, file);
                Some(found.ok_or_else(|| {
                    BlockdevError::Refused(format!(
                        "'{file}' is not in the backing chain of '{}'",
                        command.device
                    ))
                })?)
            }
            (None, None, Some(bottom)) => {
                let bottom = self.graph().node(bottom)?;
                self.graph().below(&bottom)
            }
            (None, None, None) => None,
        };
        let place = match &base {
            None => chain.len(),
            Some(base) => {
                let place = chain.iter().position(|node| Arc::ptr_eq(node, base));
                place.filter(|place| *place != 0).ok_or_else(|| {
                    let why = format!("is not below '{}'", top.name);
                    BlockdevError::unsuitable(&base.name, why)
                })?
            }
        };
        for node in &chain[..place] {
            self.graph().check_unused(node)?;
        }
        let options = self.job_options(Wanted {
            id: command.job_id,
            device: &command.device,
            speed: command.speed,
            auto_finalize: command.auto_finalize,
            auto_dismiss: command.auto_dismiss,
            transaction: None,
        })?;
        let between = u32::try_from(place - 1).unwrap_or(u32::MAX);
        let layers = base.as_ref().map(|_| between);
        let was_read_only = top.spec().read_only;
        self.set_writable(&top, true).await?;
        let finish = self.after_stream(&top, base.as_ref(), was_read_only, command.backing_file);
        let driver = Stream::new(StreamOptions {
            shortest: chain[1..place]
                .iter()
                .map(|node| node.vertex.size())
                .min()
                .unwrap_or(u64::MAX),
            on_error: command.on_error,
            finish: Some(finish),
            ..StreamOptions::new(Arc::clone(&top.vertex), layers)
        });
        let nodes = chain[..place].to_vec();
        let targets = base.into_iter().collect();
        let hold = (nodes, targets);
        self.merge(options, driver, &top, hold, (&top, was_read_only))
            .await
    }

    fn after_stream(
        &self,
        top: &Arc<GraphNode>,
        base: Option<&Arc<GraphNode>>,
        was_read_only: bool,
        backing_file: Option<String>,
    ) -> Finish {
        let (this, top, base) = (self.this(), Arc::clone(top), base.cloned());
        Box::new(move |_ending: Ending, settler: Settler| {
            Box::pin(async move {
                let _turn = this.serial.turn().await;
                let quiet = this.drain(&[Arc::clone(&top)]).await;
                settler.settle().await?;
                this.record_backing(&top, base.as_ref(), backing_file.as_deref())
                    .await
                    .map_err(io::Error::other)?;
                if let Some(edge) = top.child(Role::Backing) {
                    edge.lead(base.map(|node| Arc::clone(&node.vertex)));
                }
                if was_read_only && let Err(error) = this.set_writable(&top, false).await {
                    log::warn!("node '{}' stays open for writing: {error}", top.name);
                }
                drop(quiet);
                Ok(())
            })
        })
    }

    pub(crate) async fn blockdev_backup(&self, command: BlockdevBackup) -> Result<Empty, QmpError> {
        let _turn = self.serial.turn().await;
        let job = self.prepare_backup(command, None).await?;
        self.begin(job).await
    }

    pub(crate) async fn prepare_backup(
        &self,
        command: BlockdevBackup,
        transaction: Option<Arc<Transaction>>,
    ) -> Result<Prepared, BlockdevError> {
        // Several backups of one disk may run at the same time.
        let source = {
            let graph = self.graph();
            let node = graph.device_or_node(&command.device)?;
            graph.skip_filters(node)
        };
        let target = self.target(&command.target, &source)?;
        let (sync, default_mode) = match command.sync {
            Sync::Incremental => (Sync::Bitmap, Some(BitmapMode::OnSuccess)),
            sync => (sync, None),
        };
        let bitmap = match &command.bitmap {
            Some(name) => Some(self.bitmap(&source, name)?),
            None => None,
        };
        if sync == Sync::Bitmap && bitmap.is_none() {
            return Err(BlockdevError::Options(format!(
                "must provide a valid bitmap name for '{}' sync mode",
                command.sync
            )));
        }
        let bitmap_mode = match (&bitmap, default_mode, command.bitmap_mode) {
            (Some(_), Some(mode), None) => mode,
            (Some(_), Some(mode), Some(given)) if given == mode => mode,
            (Some(_), Some(_), Some(_)) => {
                return Err(BlockdevError::Options(
                    "Bitmap sync mode must be 'on-success' when using sync mode 'incremental'"
                        .to_owned(),
                ));
            }
            (Some(_), None, Some(given)) => given,
            (Some(_), None, None) => {
                return Err(BlockdevError::Options(
                    "Bitmap sync mode must be given when providing a bitmap".to_owned(),
                ));
            }
            (None, _, Some(_)) => {
                return Err(BlockdevError::Options(
                    "Cannot specify bitmap sync mode without a bitmap".to_owned(),
                ));
            }
            (None, _, None) => BitmapMode::Never,
        };
        let options = self.job_options(Wanted {
            id: command.job_id,
            device: &command.device,
            speed: command.speed,
            auto_finalize: command.auto_finalize,
            auto_dismiss: command.auto_dismiss,
            transaction,
        })?;
        let default = BackupOptions::new(Arc::clone(&source.vertex), Arc::clone(&target.vertex));
        let qcow2 = target.qcow2().ok();
        let compress: Option<Arc<dyn CompressedSink>> = match (command.compress, &qcow2) {
            (false, _) => None,
            (true, Some(image)) => {
                let image = Arc::clone(image);
                Some(image)
            }
            (true, None) => {
                let why = "cannot be compressed: it is no qcow2 image";
                return Err(BlockdevError::unsuitable(&target.name, why));
            }
        };
        let cluster = qcow2.map_or(0, |image| CompressedSink::cluster_size(&*image));
        let backup = Backup::new(BackupOptions {
            sync,
            bitmap,
            bitmap_mode,
            cluster_size: default.cluster_size.max(cluster),
            compress,
            on_source_error: command.on_source_error,
            on_target_error: command.on_target_error,
            ..default
        });
        let backup = backup.map_err(impossible)?;
        let targets = vec![Arc::clone(&source), target];
        self.create(options, backup, &source, Vec::new(), targets)
    }

    /// What the graph does when a job says something.
    pub(crate) fn job_event(&self, event: &JobEvent) {
        let JobEvent::StatusChange { id, status } = event else {
            return;
        };
        if !matches!(status, JobStatus::Concluded | JobStatus::Null) {
            return;
        }
        let hold = self.graph().release(id);
        let this = self.this();
        self.thread
            .spawn_task(move || async move {
                let _turn = this.serial.turn().await;
                // A merge that failed or was cancelled did not come to this.
                if let Some(node) = hold.and_then(|hold| hold.writable)
                    && !this.graph().is_active(&node)
                    && let Err(error) = this.set_writable(&node, false).await
                {
                    log::warn!("node '{}' stays open for writing: {error}", node.name);
                }
                this.close_unused().await;
            })
            .detach();
    }

    pub(crate) async fn query_jobs(&self) -> Result<Vec<JobInfo>, QmpError> {
        Ok(self.jobs.query())
    }

    pub(crate) async fn query_block_jobs(&self) -> Result<Vec<BlockJobInfo>, QmpError> {
        let all = self.jobs.query_block();
        Ok(all
            .into_iter()
            .filter(|job| job.kind != JobType::Create)
            .collect())
    }

    /// Asks something of a job by its name.
    pub(crate) fn ask(
        &self,
        id: &str,
        ask: impl FnOnce(&Job) -> Result<(), JobError>,
    ) -> Result<Empty, QmpError> {
        let job = self.jobs.find(id).map_err(refused)?;
        ask(&job).map_err(refused)?;
        Ok(Empty {})
    }

    /// The same, where clients expect another class of error for a job that is not there.
    pub(crate) fn ask_block(
        &self,
        id: &str,
        ask: impl FnOnce(&Job) -> Result<(), JobError>,
    ) -> Result<Empty, QmpError> {
        let job = self.jobs.find(id).map_err(|_| QmpError {
            class: ErrorClass::DeviceNotActive,
            desc: format!("Block job '{id}' not found"),
        })?;
        ask(&job).map_err(refused)?;
        Ok(Empty {})
    }
}
