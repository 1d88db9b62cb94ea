//! Adding nodes, taking them out, opening them in another way, making images.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use block::qcow2::{Compression, CreateOptions, Preallocation};
use block::{DiskSpec, Format};
use luks::Passphrase;
use qmp::{Empty, QmpError};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::encryption::{CreateEncrypt, LuksOptions};
use crate::graph::{Driver, GraphNode, Role};
use crate::job::{Driver as JobDriver, Job, JobOptions, JobType, LocalFuture};
use crate::open::{Below, Files, storage_of};
use crate::options::{NodeOptions, NodeRef};
use crate::qapi::block::{BlockdevAdd, BlockdevCreate, BlockdevDel, BlockdevReopen};
use crate::{Blockdev, BlockdevError};

impl Blockdev {
    pub(crate) async fn blockdev_add(&self, command: BlockdevAdd) -> Result<Empty, QmpError> {
        let options = NodeOptions::read(command.0)?;
        if options.node_name.is_none() {
            let missing = "'node-name' must be specified for the root node";
            return Err(BlockdevError::Options(missing.to_owned()).into());
        }
        let _turn = self.serial.turn().await;
        let mut made = self.making();
        self.open_options(&mut made, options).await?;
        made.keep();
        Ok(Empty {})
    }

    pub(crate) async fn blockdev_del(&self, command: BlockdevDel) -> Result<Empty, QmpError> {
        let _turn = self.serial.turn().await;
        let node = {
            let mut graph = self.graph();
            let node = graph.node(&command.node_name)?;
            if !node.is_explicit {
                let why = "belongs to another node: delete that one";
                return Err(BlockdevError::unsuitable(&node.name, why).into());
            }
            graph.check_unused(&node)?;
            if let Some((who, _)) = graph.parents(&node).first() {
                return Err(BlockdevError::Busy {
                    node: node.name.clone(),
                    why: format!("node is used as {who}"),
                }
                .into());
            }
            graph.remove(&node.name);
            node
        };
        self.close_node(&node).await;
        drop(node);
        self.close_unused().await;
        Ok(Empty {})
    }

    pub(crate) async fn blockdev_reopen(&self, command: BlockdevReopen) -> Result<Empty, QmpError> {
        let _turn = self.serial.turn().await;
        for options in command.options {
            let options = NodeOptions::read(options)?;
            self.reopen_one(options).await?;
        }
        Ok(Empty {})
    }

    async fn reopen_one(&self, options: NodeOptions) -> Result<(), BlockdevError> {
        let name = options.node_name.clone().unwrap_or_default();
        let node = self.graph().node(&name)?;
        self.graph().check_free(&node)?;
        node.vertex.set_detect_zeroes(options.detect_zeroes);
        match node.driver() {
            Driver::Throttle(throttle) => {
                let group = options.throttle_group.unwrap_or_default();
                return self.move_to_group(&throttle, &group);
            }
            Driver::CopyOnRead => return Ok(()),
            Driver::Storage(..) => {
                // Its options come into force with the image on it.
                let mut state = node.state();
                let wanted = options.spec(state.spec.file.clone());
                state.spec.cache = wanted.cache;
                state.spec.aio = wanted.aio;
                return Ok(());
            }
            Driver::Image(_) | Driver::None => {}
        }
        let below = match &options.backing {
            None => None,
            Some(None) => Some(None),
            Some(Some(NodeRef::Name(name))) => Some(Some(self.graph().node(name)?)),
            Some(Some(NodeRef::Options(_))) => {
                return Err(BlockdevError::Options(
                    "Cannot change the option 'backing' to one that is not a node's name".into(),
                ));
            }
        };
        if let Some(below) = below {
            let edge = node.child(Role::Backing).ok_or_else(|| {
                BlockdevError::unsuitable(&node.name, "cannot have a backing file")
            })?;
            if let Some(below) = &below
                && self
                    .graph()
                    .chain(below)
                    .iter()
                    .any(|n| Arc::ptr_eq(n, &node))
            {
                return Err(BlockdevError::unsuitable(
                    &below.name,
                    format!("lies on '{name}' already: that would be a loop"),
                ));
            }
            let quiet = self.drain(&[Arc::clone(&node)]).await;
            edge.lead(below.map(|node| Arc::clone(&node.vertex)));
            drop(quiet);
        }
        let old = node.spec();
        let storage = self.child_node(&node, Role::File);
        let file = storage.map_or_else(|| old.clone(), |node| node.spec());
        let new = DiskSpec {
            locking: old.locking,
            cache: file.cache,
            aio: file.aio,
            backing_files: old.backing_files,
            key_file: old.key_file.clone(),
            ..options.spec(old.file.clone())
        };
        match new == old {
            true => Ok(()),
            false => self.reopen(&node, new).await,
        }
    }

    pub(crate) async fn blockdev_create(&self, command: BlockdevCreate) -> Result<Empty, QmpError> {
        let work = self.creation(command.options)?;
        let options = JobOptions {
            auto_dismiss: false,
            ..JobOptions::new(command.job_id)
        };
        let job = self
            .jobs
            .create(
                options,
                Box::new(Creating(std::cell::RefCell::new(Some(work)))),
            )
            .map_err(crate::jobs::refused)?;
        job.start();
        Ok(Empty {})
    }

    /// What makes the image.
    fn creation(&self, options: Map<String, Value>) -> Result<Work, BlockdevError> {
        let read: CreateBlockdev = serde_json::from_value(Value::Object(options))
            .map_err(|error| BlockdevError::Options(error.to_string()))?;
        match read {
            CreateBlockdev::File { filename, size, .. } => Ok(Box::pin(async move {
                let spec = DiskSpec {
                    format: Some(Format::Raw),
                    ..DiskSpec::new(filename)
                };
                let made = block::create_image(&spec, &CreateOptions::new(size)).await;
                made.map_err(io::Error::other)
            })),
            CreateBlockdev::Qcow2(options) => {
                let node = self.graph().node(&options.file)?;
                let storage = storage_of(&node)?;
                let data = match &options.data_file {
                    None => None,
                    Some(name) => Some(self.graph().node(name)?.spec().file),
                };
                let encryption = match options.encrypt {
                    None => None,
                    Some(encrypt) => Some(encrypt.encryption(self)?),
                };
                let create = CreateOptions {
                    encryption,
                    cluster_size: options.cluster_size.unwrap_or(64 << 10),
                    backing_file: options.backing_file.map(String::into_bytes),
                    backing_format: options.backing_fmt,
                    lazy_refcounts: options.lazy_refcounts,
                    extended_l2: options.extended_l2,
                    data_file: data.map(|path| path.to_string_lossy().into_owned().into_bytes()),
                    data_file_raw: options.data_file_raw,
                    compression: match options.compression_type.as_deref() {
                        Some("zstd") => Compression::Zstd,
                        _ => Compression::Zlib,
                    },
                    preallocation: match options.preallocation.as_deref() {
                        Some("metadata") => Preallocation::Metadata,
                        Some("falloc") => Preallocation::Falloc,
                        Some("full") => Preallocation::Full,
                        _ => Preallocation::Off,
                    },
                    ..CreateOptions::new(options.size)
                };
                Ok(Box::pin(async move {
                    let made = block::qcow2::create(&storage, &create).await;
                    made.map_err(io::Error::other)
                }))
            }
            CreateBlockdev::Luks(options) => {
                let node = self.graph().node(&options.file)?;
                let storage = storage_of(&node)?;
                let encryption = LuksOptions::read(options.encryption)?.encryption(self)?;
                let size = options.size;
                let path = node.spec().file;
                Ok(Box::pin(async move {
                    let made = block::create_luks(&storage, &path, size, &encryption).await;
                    made.map_err(io::Error::other)
                }))
            }
        }
    }

    /// Opens an overlay that was made, with nothing below, as `spec` says.
    pub(crate) async fn open_overlay(
        &self,
        spec: &DiskSpec,
        name: Option<String>,
        key: Option<Passphrase>,
    ) -> Result<Arc<GraphNode>, BlockdevError> {
        let spec = DiskSpec {
            node_name: name,
            ..spec.clone()
        };
        let files = Files::with_key(key);
        let mut made = self.making();
        let node = self
            .open_image(&mut made, spec, files, Below::Nothing)
            .await?;
        made.keep();
        Ok(node)
    }
}

/// BlockdevCreateOptions.
#[derive(Deserialize)]
#[serde(tag = "driver", rename_all = "kebab-case")]
enum CreateBlockdev {
    File {
        filename: PathBuf,
        size: u64,
        #[allow(dead_code, reason = "a file is made sparse, which is its default")]
        preallocation: Option<String>,
    },
    Qcow2(Box<CreateQcow2>),
    Luks(Box<CreateLuks>),
}

/// BlockdevCreateOptionsLUKS.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct CreateLuks {
    file: String,
    size: u64,
    #[serde(flatten)]
    encryption: Map<String, Value>,
}

/// BlockdevCreateOptionsQcow2.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct CreateQcow2 {
    file: String,
    size: u64,
    data_file: Option<String>,
    #[serde(default)]
    data_file_raw: bool,
    #[serde(default)]
    extended_l2: bool,
    #[allow(dead_code, reason = "both versions of v3 are made as v3")]
    version: Option<String>,
    backing_file: Option<String>,
    backing_fmt: Option<String>,
    cluster_size: Option<u64>,
    preallocation: Option<String>,
    #[serde(default)]
    lazy_refcounts: bool,
    compression_type: Option<String>,
    encrypt: Option<CreateEncrypt>,
}

type Work = LocalFuture<'static, io::Result<()>>;

/// A job that makes an image.
struct Creating(std::cell::RefCell<Option<Work>>);

impl JobDriver for Creating {
    fn kind(&self) -> JobType {
        JobType::Create
    }

    fn attach(&self) -> io::Result<()> {
        Ok(())
    }

    fn run<'a>(&'a self, _job: &'a Arc<Job>) -> LocalFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let work = self.0.borrow_mut().take();
            match work {
                Some(work) => work.await,
                None => Ok(()),
            }
        })
    }

    fn prepare<'a>(&'a self, _job: &'a Arc<Job>) -> LocalFuture<'a, io::Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn clean(&self) {}
}
