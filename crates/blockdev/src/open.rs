//! Opening nodes: from a disk's description, or from the options that QMP gives.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use block::graph::{DetectZeroes, Edge, Vertex};
use block::storage::AnyStorage;
use block::throttle::Throttle;
use block::{DiskSpec, Format, Image, Layer, Node, OpenOptions, Raw};
use luks::Passphrase;

use crate::copy_on_read::CopyOnRead;
use crate::graph::{Driver, GraphNode, MAX_CHAIN, Role};
use crate::null::Null;
use crate::options::{DiscardOption, DriverName, NodeOptions, NodeRef};
use crate::{Blockdev, BlockdevError};

type Opening<'a> = Pin<Box<dyn Future<Output = Result<Arc<GraphNode>, BlockdevError>> + 'a>>;

/// Nodes that were made for one request; they leave the graph again unless it succeeds.
pub(crate) struct Made<'a> {
    blockdev: &'a Blockdev,
    names: Vec<String>,
    /// Files that lead to one another.
    files: BTreeSet<PathBuf>,
}

impl Made<'_> {
    fn add(&mut self, node: &Arc<GraphNode>) {
        self.names.push(node.name.clone());
        self.blockdev.graph().add(Arc::clone(node));
    }

    /// They stay.
    pub(crate) fn keep(mut self) {
        self.names.clear();
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        let mut graph = self.blockdev.graph();
        for name in &self.names {
            graph.remove(name);
        }
    }
}

impl Blockdev {
    pub(crate) fn making(&self) -> Made<'_> {
        Made {
            blockdev: self,
            names: Vec::new(),
            files: BTreeSet::new(),
        }
    }

    /// A name for a node: the one that was chosen, or a new one.
    fn name(&self, chosen: Option<&str>) -> Result<String, BlockdevError> {
        let mut graph = self.graph();
        match chosen {
            Some(name) => graph.check_name(name).map(|()| name.to_owned()),
            None => Ok(graph.new_name()),
        }
    }

    /// The storage that a description names: a file, or an NBD server's export.
    async fn open_named(
        &self,
        made: &mut Made<'_>,
        spec: &DiskSpec,
    ) -> Result<Arc<GraphNode>, BlockdevError> {
        match spec.file.to_str() {
            Some(uri) if nbd::Uri::is_uri(uri) => {
                let storage = crate::nbd_client::open_uri(uri, spec.read_only).await?;
                let name = self.name(None)?;
                Ok(self.storage_node(made, name, DriverName::Nbd, storage, spec.clone()))
            }
            _ => self.open_file(made, spec, None),
        }
    }

    /// The storage of a file, as a node.
    pub(crate) fn open_file(
        &self,
        made: &mut Made<'_>,
        spec: &DiskSpec,
        name: Option<&str>,
    ) -> Result<Arc<GraphNode>, BlockdevError> {
        let name = self.name(name)?;
        let storage = block::open_storage(spec)?;
        let is_device = std::os::unix::fs::FileTypeExt::is_block_device(
            &std::fs::metadata(&spec.file)
                .map_err(BlockdevError::io(format!(
                    "look at {}",
                    spec.file.display()
                )))?
                .file_type(),
        );
        let driver = match is_device {
            true => DriverName::HostDevice,
            false => DriverName::File,
        };
        Ok(self.storage_node(made, name, driver, storage, spec.clone()))
    }

    fn storage_node(
        &self,
        made: &mut Made<'_>,
        name: String,
        driver: DriverName,
        storage: AnyStorage,
        spec: DiskSpec,
    ) -> Arc<GraphNode> {
        let raw: Arc<dyn Node> = Arc::new(Raw::new(name.clone(), storage.clone()));
        let is_explicit = !name.starts_with('#');
        let node = GraphNode::new(
            name.clone(),
            Vertex::new(name, raw),
            Driver::Storage(driver, storage),
            spec,
            is_explicit,
        );
        made.add(&node);
        node
    }

    /// Opens the image on a storage, and its backing chain as its header says. `backing` is what
    /// is below instead, which may be nothing.
    pub(crate) fn open_image<'a>(
        &'a self,
        made: &'a mut Made<'_>,
        spec: DiskSpec,
        files: Files,
        backing: Below,
    ) -> Opening<'a> {
        Box::pin(async move {
            let name = self.name(spec.node_name.as_deref())?;
            let storage = match files.storage {
                Some(storage) => storage,
                None => self.open_named(made, &spec).await?,
            };
            let data = files.data.as_ref().map(storage_of).transpose()?;
            let options = OpenOptions {
                backing: backing == Below::Header,
                ..OpenOptions::default()
            };
            let named = DiskSpec {
                node_name: Some(name.clone()),
                ..spec.clone()
            };
            let bytes = storage_of(&storage)?;
            let Layer { image, below } =
                block::open_layer_with_key(&named, Some(bytes), data, files.key.clone(), &options)
                    .await?;
            let is_explicit = !name.starts_with('#');
            let vertex = Vertex::new(name.clone(), image.node());
            let mut children = vec![(Role::File, Edge::new(Some(Arc::clone(&storage.vertex))))];
            if let Some(data) = &files.data {
                children.push((Role::DataFile, Edge::new(Some(Arc::clone(&data.vertex)))));
            }
            let below = match (backing, below) {
                (Below::Node(node), _) => Some(node),
                (Below::Header, Some(below)) => {
                    let path = std::fs::canonicalize(&spec.file).unwrap_or(spec.file.clone());
                    if !made.files.insert(path) {
                        return Err(BlockdevError::Options(format!(
                            "{} leads back to itself by its backing files",
                            spec.file.display()
                        )));
                    }
                    if made.files.len() >= MAX_CHAIN {
                        return Err(BlockdevError::Options(format!(
                            "{} is number {MAX_CHAIN} of a chain of images that goes on",
                            spec.file.display()
                        )));
                    }
                    // As a key file opens those below too.
                    let files = Files::with_key(files.key.clone());
                    Some(self.open_image(made, below, files, Below::Header).await?)
                }
                _ => None,
            };
            if let Image::Qcow2(qcow2) = &image {
                qcow2
                    .backing()
                    .lead(below.map(|node| Arc::clone(&node.vertex)));
                children.push((Role::Backing, Arc::clone(qcow2.backing())));
            }
            let node = GraphNode::new(name, vertex, Driver::Image(image), spec, is_explicit);
            {
                let mut state = node.state();
                state.children = children;
                state.key = files.key;
            }
            made.add(&node);
            self.watch_corruption(&node);
            self.adopt_bitmaps(&node).await?;
            Ok(node)
        })
    }

    /// Opens the disk that a description names, with everything below it.
    pub(crate) async fn open_spec(&self, spec: &DiskSpec) -> Result<Arc<GraphNode>, BlockdevError> {
        let mut made = self.making();
        let node = self
            .open_image(&mut made, spec.clone(), Files::default(), Below::Header)
            .await?;
        made.keep();
        Ok(node)
    }

    /// Opens a node and what its options name.
    pub(crate) fn open_options<'a>(
        &'a self,
        made: &'a mut Made<'_>,
        options: NodeOptions,
    ) -> Opening<'a> {
        Box::pin(async move {
            let detect = options.detect_zeroes;
            if detect == DetectZeroes::Unmap && options.discard != Some(DiscardOption::Unmap) {
                return Err(BlockdevError::Options(
                    "setting detect-zeroes to unmap is not allowed without setting discard \
                     operation to unmap"
                        .to_owned(),
                ));
            }
            let opened = self.open_driver(made, options).await?;
            opened.vertex.set_detect_zeroes(detect);
            Ok(opened)
        })
    }

    fn open_driver<'a>(&'a self, made: &'a mut Made<'_>, options: NodeOptions) -> Opening<'a> {
        Box::pin(async move {
            match options.driver {
                DriverName::File | DriverName::HostDevice => {
                    let file = options.filename.clone().unwrap_or_default();
                    let mut spec = options.spec(file);
                    if options.read_only.is_none() && options.auto_read_only == Some(true) {
                        spec.read_only = !is_writable(&spec.file);
                    }
                    self.open_file(made, &spec, options.node_name.as_deref())
                }
                DriverName::NullCo | DriverName::NullAio => {
                    let name = self.name(options.node_name.as_deref())?;
                    let null = Null::new(
                        options.size.unwrap_or(1 << 30),
                        options.read_zeroes.unwrap_or(false),
                        options.read_only.unwrap_or(false),
                    );
                    let storage = AnyStorage::other(null);
                    let spec = options.spec(PathBuf::new());
                    Ok(self.storage_node(made, name, options.driver, storage, spec))
                }
                DriverName::Nbd => self.open_nbd(made, &options).await,
                DriverName::Raw | DriverName::Qcow2 | DriverName::Luks => {
                    self.open_format(made, options).await
                }
                DriverName::Throttle | DriverName::CopyOnRead => {
                    self.open_filter(made, options).await
                }
            }
        })
    }

    async fn open_nbd(
        &self,
        made: &mut Made<'_>,
        options: &NodeOptions,
    ) -> Result<Arc<GraphNode>, BlockdevError> {
        let name = self.name(options.node_name.as_deref())?;
        let storage = crate::nbd_client::open(options).await?;
        let spec = options.spec(PathBuf::new());
        Ok(self.storage_node(made, name, DriverName::Nbd, storage, spec))
    }

    /// A child that is named, or opened by its options.
    async fn child(
        &self,
        made: &mut Made<'_>,
        child: NodeRef,
        above: &NodeOptions,
    ) -> Result<Arc<GraphNode>, BlockdevError> {
        match child {
            NodeRef::Name(name) => self.graph().node(&name),
            NodeRef::Options(mut options) => {
                options.read_only = options.read_only.or(above.read_only);
                options.check()?;
                self.open_options(made, *options).await
            }
        }
    }

    async fn open_format(
        &self,
        made: &mut Made<'_>,
        mut options: NodeOptions,
    ) -> Result<Arc<GraphNode>, BlockdevError> {
        // Their presence was checked.
        let Some(file) = options.file.take() else {
            return Err(BlockdevError::Options("Parameter 'file' is missing".into()));
        };
        let storage = self.child(made, file, &options).await?;
        if !storage.is_storage() {
            return Err(BlockdevError::unsuitable(
                &storage.name,
                "is no storage: name a node whose driver is file, host_device, nbd or null-co",
            ));
        }
        self.check_exclusive(&storage)?;
        let data = match options.data_file.take() {
            Some(data) => Some(self.child(made, data, &options).await?),
            None => None,
        };
        let backing = match options.backing.take() {
            None => Below::Header,
            Some(None) => Below::Nothing,
            Some(Some(backing)) => {
                let above = NodeOptions {
                    read_only: Some(true),
                    ..options.clone()
                };
                Below::Node(self.child(made, backing, &above).await?)
            }
        };
        let below = storage.spec();
        let spec = DiskSpec {
            read_only: options.read_only.unwrap_or(below.read_only),
            locking: below.locking,
            cache: below.cache,
            aio: below.aio,
            ..options.spec(below.file.clone())
        };
        if !spec.read_only && below.read_only {
            return Err(BlockdevError::unsuitable(
                &storage.name,
                "is read-only: open it with read-only=false, or this one with read-only=true",
            ));
        }
        if options.offset.unwrap_or(0) != 0 || (options.size.is_some()) {
            let part = crate::part::Part::new(
                storage_of(&storage)?,
                options.offset.unwrap_or(0),
                options.size,
            )?;
            let name = self.name(options.node_name.as_deref())?;
            let image = Image::Raw(Arc::new(Raw::new(name.clone(), AnyStorage::other(part))));
            let vertex = Vertex::new(name.clone(), image.node());
            let is_explicit = !name.starts_with('#');
            let node = GraphNode::new(name, vertex, Driver::Image(image), spec, is_explicit);
            let edge = Edge::new(Some(Arc::clone(&storage.vertex)));
            node.state().children = vec![(Role::File, edge)];
            made.add(&node);
            return Ok(node);
        }
        let key = options.key_secret().map(|id| self.secret(id)).transpose()?;
        let files = Files {
            storage: Some(storage),
            data,
            key,
        };
        self.open_image(made, spec, files, backing).await
    }

    async fn open_filter(
        &self,
        made: &mut Made<'_>,
        mut options: NodeOptions,
    ) -> Result<Arc<GraphNode>, BlockdevError> {
        let Some(file) = options.file.take() else {
            return Err(BlockdevError::Options("Parameter 'file' is missing".into()));
        };
        let below = self.child(made, file, &options).await?;
        let name = self.name(options.node_name.as_deref())?;
        let edge = Edge::new(Some(Arc::clone(&below.vertex)));
        let (driver, inner): (Driver, Arc<dyn Node>) = match options.driver {
            DriverName::Throttle => {
                let group = options.throttle_group.clone().unwrap_or_default();
                let group = self.throttle_group(&group)?;
                let inner: Arc<dyn Node> = Arc::<Edge>::clone(&edge);
                let throttle = Arc::new(Throttle::new(name.clone(), inner, group));
                (Driver::Throttle(Arc::clone(&throttle)), throttle)
            }
            _ => {
                let filter = CopyOnRead::new(name.clone(), Arc::clone(&edge));
                (Driver::CopyOnRead, filter)
            }
        };
        let is_explicit = !name.starts_with('#');
        let vertex = Vertex::new(name.clone(), inner);
        let spec = options.spec(PathBuf::new());
        let node = GraphNode::new(name, vertex, driver, spec, is_explicit);
        node.state().children = vec![(Role::File, edge)];
        made.add(&node);
        Ok(node)
    }

    /// Tells when an image turns out to be corrupt.
    fn watch_corruption(&self, node: &Arc<GraphNode>) {
        let Ok(image) = node.qcow2() else {
            return;
        };
        let (this, name) = (self.this.clone(), node.name.clone());
        image.on_corruption(Box::new(move |why| {
            if let Some(this) = this.upgrade() {
                this.emit(
                    "BLOCK_IMAGE_CORRUPTED",
                    serde_json::json!({
                        "device": "", "node-name": name, "msg": why, "fatal": true,
                    }),
                );
            }
        }));
    }

    /// Whether no other image lies on a storage.
    fn check_exclusive(&self, storage: &Arc<GraphNode>) -> Result<(), BlockdevError> {
        let parents = self.graph().parents(storage);
        match parents.first() {
            None => Ok(()),
            Some((who, _)) => Err(BlockdevError::Busy {
                node: storage.name.clone(),
                why: format!("it is {who}"),
            }),
        }
    }

    /// Opens an image and its storage anew, writable or not, under its users. Requests to it wait.
    ///
    /// # Errors
    /// It cannot be opened so; it is then as it was before.
    pub(crate) async fn set_writable(
        &self,
        node: &Arc<GraphNode>,
        writable: bool,
    ) -> Result<(), BlockdevError> {
        let old = node.spec();
        if old.read_only != writable {
            return Ok(());
        }
        let new = DiskSpec {
            read_only: !writable,
            ..old.clone()
        };
        self.reopen(node, new).await
    }

    /// Opens an image and its storage anew as `spec` says, under its users.
    pub(crate) async fn reopen(
        &self,
        node: &Arc<GraphNode>,
        spec: DiskSpec,
    ) -> Result<(), BlockdevError> {
        let old = node.spec();
        let (Driver::Image(image), Some(file)) = (node.driver(), node.child(Role::File)) else {
            return Err(BlockdevError::unsuitable(
                &node.name,
                "is no image that can be opened anew",
            ));
        };
        let storage = self.graph().behind(&file);
        let storage = storage.ok_or_else(|| BlockdevError::NoNode(node.name.clone()))?;
        if !matches!(
            storage.driver(),
            Driver::Storage(DriverName::File | DriverName::HostDevice, _)
        ) {
            return Err(BlockdevError::unsuitable(
                &node.name,
                "lies on no file, and cannot be opened anew",
            ));
        }
        let below = match &image {
            Image::Qcow2(qcow2) => qcow2.backing().target(),
            _ => None,
        };
        let _drained = self.drain(&[Arc::clone(node), Arc::clone(&storage)]).await;
        self.store_bitmaps(node);
        node.vertex
            .close()
            .await
            .map_err(BlockdevError::io(format!("close node '{}'", node.name)))?;
        self.drop_kept_bitmaps(node);
        // Two holders of locks on one file would exclude each other.
        let frozen = Arc::new(crate::null::Frozen::of(&*node.vertex));
        node.state().driver = Driver::None;
        node.vertex
            .replace(Arc::<crate::null::Frozen>::clone(&frozen) as Arc<dyn Node>);
        storage.state().driver = Driver::None;
        storage.vertex.replace(frozen);
        drop(image);
        match self.open_again(node, &storage, &spec, below.clone()).await {
            Ok(()) => Ok(()),
            Err(error) => {
                if let Err(worse) = self.open_again(node, &storage, &old, below).await {
                    log::error!(
                        "node '{}' cannot be opened as it was: {worse}; it fails all requests",
                        node.name
                    );
                }
                Err(error)
            }
        }
    }

    async fn open_again(
        &self,
        node: &Arc<GraphNode>,
        storage: &Arc<GraphNode>,
        spec: &DiskSpec,
        below: Option<Arc<Vertex>>,
    ) -> Result<(), BlockdevError> {
        let bytes = block::open_storage(spec)?;
        let data = node.child(Role::DataFile);
        let data = data.and_then(|edge| self.graph().behind(&edge));
        let data = data.map(|node| storage_of(&node)).transpose()?;
        let named = DiskSpec {
            node_name: Some(node.name.clone()),
            format: Some(match &spec.format {
                Some(format) => *format,
                None => Format::Raw,
            }),
            ..spec.clone()
        };
        let options = OpenOptions {
            backing: false,
            ..OpenOptions::default()
        };
        let key = node.state().key.clone();
        let layer =
            block::open_layer_with_key(&named, Some(bytes.clone()), data, key, &options).await?;
        {
            let mut state = node.state();
            if let Image::Qcow2(qcow2) = &layer.image {
                qcow2.backing().lead(below);
                let edge = Arc::clone(qcow2.backing());
                state.children.retain(|(role, _)| *role != Role::Backing);
                state.children.push((Role::Backing, edge));
            }
            state.driver = Driver::Image(layer.image.clone());
            state.spec = spec.clone();
        }
        node.vertex.replace(layer.image.node());
        let raw: Arc<dyn Node> = Arc::new(Raw::new(storage.name.clone(), bytes.clone()));
        {
            let mut state = storage.state();
            state.driver = Driver::Storage(DriverName::File, bytes);
            state.spec.read_only = spec.read_only;
        }
        storage.vertex.replace(raw);
        self.watch_corruption(node);
        self.adopt_bitmaps(node).await
    }
}

/// What an image has below it.
#[derive(Clone)]
pub(crate) enum Below {
    /// What its header names.
    Header,
    Nothing,
    Node(Arc<GraphNode>),
}

impl PartialEq for Below {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Header, Self::Header) | (Self::Nothing, Self::Nothing) => true,
            (Self::Node(a), Self::Node(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// The nodes that an image lies on.
#[derive(Default)]
pub(crate) struct Files {
    storage: Option<Arc<GraphNode>>,
    data: Option<Arc<GraphNode>>,
    /// The image's passphrase, if no file has it.
    key: Option<Passphrase>,
}

impl Files {
    /// Files that are found by their names; the image has this passphrase.
    pub(crate) fn with_key(key: Option<Passphrase>) -> Self {
        Self {
            key,
            ..Self::default()
        }
    }
}

/// The storage that a node is.
pub(crate) fn storage_of(node: &Arc<GraphNode>) -> Result<AnyStorage, BlockdevError> {
    match node.driver() {
        Driver::Storage(_, storage) => Ok(storage),
        _ => Err(BlockdevError::unsuitable(&node.name, "is no storage")),
    }
}

/// Whether this process may write to a file.
fn is_writable(path: &std::path::Path) -> bool {
    nix::unistd::access(path, nix::unistd::AccessFlags::W_OK).is_ok()
}
