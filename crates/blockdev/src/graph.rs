//! Which nodes there are, and which edges lead from one to the other.
//!
//! ```text
//!   root (device, export) ──▶ filter ──▶ image ──backing──▶ image ──backing──▶ ...
//!                                          └─file─▶ storage     └─file─▶ storage
//! ```
//!
//! Requests go along all edges but those to storages: an image and its storage are joined at
//! compile time, and the node of a storage is there to be named.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use block::graph::{Edge, Observer, Vertex};
use block::storage::AnyStorage;
use block::throttle::Throttle;
use block::{DiskSpec, Image};
use luks::Passphrase;

use crate::BlockdevError;
use crate::bitmap::DirtyBitmap;
use crate::options::DriverName;

/// What a child is to its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// An image's storage, or what a filter is in front of.
    File,
    /// What shows where the image has nothing.
    Backing,
    /// Where the image's data is.
    DataFile,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Backing => "backing",
            Self::DataFile => "data-file",
        }
    }
}

/// What a node does.
#[derive(Clone)]
pub(crate) enum Driver {
    /// It has bytes.
    Storage(DriverName, AnyStorage),
    /// It gives bytes a meaning.
    Image(Image),
    /// It delays requests.
    Throttle(Arc<Throttle>),
    /// It keeps what is read.
    CopyOnRead,
    /// It is being opened anew.
    None,
}

impl Driver {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Storage(driver, _) => driver.name(),
            Self::Image(image) => match image.format() {
                block::Format::Raw => "raw",
                block::Format::Qcow2 => "qcow2",
                block::Format::Luks => "luks",
            },
            Self::Throttle(_) => "throttle",
            Self::CopyOnRead => "copy-on-read",
            Self::None => "none",
        }
    }
}

/// A node with what the graph knows of it.
pub(crate) struct GraphNode {
    pub name: String,
    pub vertex: Arc<Vertex>,
    state: Mutex<State>,
    /// Somebody named it, and has to delete it.
    pub is_explicit: bool,
}

/// What changes of a node.
pub(crate) struct State {
    pub driver: Driver,
    /// How its file was opened; for what has none, with an empty path.
    pub spec: DiskSpec,
    /// The passphrase with which it was opened, if no file has it.
    pub key: Option<Passphrase>,
    pub children: Vec<(Role, Arc<Edge>)>,
    pub bitmaps: BTreeMap<String, Arc<DirtyBitmap>>,
    /// Offset beyond which a write is told of.
    pub write_threshold: u64,
    /// Who watches for that.
    pub threshold: Option<Arc<dyn Observer>>,
}

impl GraphNode {
    pub(crate) fn new(
        name: String,
        vertex: Arc<Vertex>,
        driver: Driver,
        spec: DiskSpec,
        is_explicit: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            name,
            vertex,
            state: Mutex::new(State {
                driver,
                spec,
                key: None,
                children: Vec::new(),
                bitmaps: BTreeMap::new(),
                write_threshold: 0,
                threshold: None,
            }),
            is_explicit,
        })
    }

    /// The passphrase of its image.
    ///
    /// # Errors
    /// The file that has it cannot be read.
    pub(crate) fn key(&self) -> Result<Option<Passphrase>, BlockdevError> {
        let (key, file) = {
            let state = self.state();
            (state.key.clone(), state.spec.key_file.clone())
        };
        match (key, file) {
            (None, Some(file)) => block::read_key_file(&file)
                .map(Some)
                .map_err(BlockdevError::io("read the passphrase")),
            (key, _) => Ok(key),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn driver(&self) -> Driver {
        self.state().driver.clone()
    }

    pub(crate) fn spec(&self) -> DiskSpec {
        self.state().spec.clone()
    }

    /// The edges to its children.
    pub(crate) fn children(&self) -> Vec<(Role, Arc<Edge>)> {
        self.state().children.clone()
    }

    pub(crate) fn child(&self, role: Role) -> Option<Arc<Edge>> {
        let state = self.state();
        let found = state.children.iter().find(|(other, _)| *other == role);
        found.map(|(_, edge)| Arc::clone(edge))
    }

    /// The qcow2 image that it is.
    pub(crate) fn qcow2(&self) -> Result<Arc<block::qcow2::Qcow2<AnyStorage>>, BlockdevError> {
        match self.driver() {
            Driver::Image(Image::Qcow2(image)) => Ok(image),
            other => Err(BlockdevError::unsuitable(
                &self.name,
                format!("is {}, and that needs a qcow2 image", other.name()),
            )),
        }
    }

    pub(crate) fn is_filter(&self) -> bool {
        matches!(
            self.state().driver,
            Driver::Throttle(_) | Driver::CopyOnRead
        )
    }

    pub(crate) fn is_storage(&self) -> bool {
        matches!(self.state().driver, Driver::Storage(..))
    }
}

/// Most images of a disk. A request goes down the chain on its I/O thread's stack.
pub(crate) const MAX_CHAIN: usize = 200;

/// A user of the graph: a device or an export.
#[derive(Clone)]
pub(crate) struct Root {
    pub edge: Arc<Edge>,
    /// What it is, for people.
    pub what: String,
}

/// What a job needs.
pub(crate) struct Hold {
    /// What it does.
    pub what: &'static str,
    /// It must find these as it left them.
    pub nodes: Vec<Arc<GraphNode>>,
    /// And these must stay.
    pub targets: Vec<Arc<GraphNode>>,
    /// It was opened for writing for the job, and is not to stay so below another image.
    pub writable: Option<Arc<GraphNode>>,
}

/// All nodes and their users.
#[derive(Default)]
pub(crate) struct Graph {
    nodes: BTreeMap<String, Arc<GraphNode>>,
    roots: BTreeMap<String, Root>,
    holds: BTreeMap<String, Hold>,
    named: u64,
}

impl Graph {
    /// A name that is not taken.
    pub(crate) fn new_name(&mut self) -> String {
        loop {
            self.named += 1;
            let name = format!("#block{:03}", self.named);
            if !self.nodes.contains_key(&name) {
                return name;
            }
        }
    }

    /// Whether a user may choose that name.
    pub(crate) fn check_name(&self, name: &str) -> Result<(), BlockdevError> {
        let first = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic());
        let rest = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if !first || !name.chars().all(rest) || name.len() > 31 * 8 {
            return Err(BlockdevError::Options(format!(
                "Invalid node-name: '{name}': begin with a letter; letters, digits, '-', '.', '_' \
                 may follow"
            )));
        }
        match self.nodes.contains_key(name) || self.roots.contains_key(name) {
            true => Err(BlockdevError::Duplicate(name.to_owned())),
            false => Ok(()),
        }
    }

    pub(crate) fn add(&mut self, node: Arc<GraphNode>) {
        self.nodes.insert(node.name.clone(), node);
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.nodes.remove(name);
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Arc<GraphNode>> {
        self.nodes.values()
    }

    pub(crate) fn roots(&self) -> impl Iterator<Item = (&String, &Root)> {
        self.roots.iter()
    }

    pub(crate) fn root(&self, id: &str) -> Option<&Root> {
        self.roots.get(id)
    }

    pub(crate) fn add_root(&mut self, id: &str, root: Root) {
        self.roots.insert(id.to_owned(), root);
    }

    pub(crate) fn remove_root(&mut self, id: &str) -> Option<Root> {
        self.roots.remove(id)
    }

    pub(crate) fn node(&self, name: &str) -> Result<Arc<GraphNode>, BlockdevError> {
        let found = self.nodes.get(name).cloned();
        found.ok_or_else(|| BlockdevError::NoNode(name.to_owned()))
    }

    /// The node by its name, or the topmost one of a device.
    pub(crate) fn device_or_node(&self, name: &str) -> Result<Arc<GraphNode>, BlockdevError> {
        let of_root = self.roots.get(name).and_then(|root| root.edge.target());
        of_root
            .and_then(|vertex| self.of(&vertex))
            .or_else(|| self.nodes.get(name).cloned())
            .ok_or_else(|| BlockdevError::NoDevice(name.to_owned()))
    }

    /// As [`Graph::device_or_node`], where a command has one argument for each.
    pub(crate) fn either(
        &self,
        device: Option<&str>,
        node: Option<&str>,
    ) -> Result<Arc<GraphNode>, BlockdevError> {
        match (device, node) {
            (_, Some(node)) if !node.is_empty() => self.node(node),
            (Some(device), _) if !device.is_empty() => self.device_or_node(device),
            _ => Err(BlockdevError::Options(
                "Either 'device' or 'node-name' must be given".to_owned(),
            )),
        }
    }

    /// The node that a vertex belongs to.
    pub(crate) fn of(&self, vertex: &Arc<Vertex>) -> Option<Arc<GraphNode>> {
        let mut nodes = self.nodes.values();
        nodes
            .find(|node| Arc::ptr_eq(&node.vertex, vertex))
            .cloned()
    }

    /// The node that an edge leads to.
    pub(crate) fn behind(&self, edge: &Edge) -> Option<Arc<GraphNode>> {
        self.of(&edge.target()?)
    }

    /// What is below a node in its backing chain, filters left out.
    pub(crate) fn below(&self, node: &GraphNode) -> Option<Arc<GraphNode>> {
        let below = self.behind(&*node.child(Role::Backing)?)?;
        Some(self.skip_filters(below))
    }

    /// The first node from here on that is no filter.
    pub(crate) fn skip_filters(&self, node: Arc<GraphNode>) -> Arc<GraphNode> {
        let mut node = node;
        while node.is_filter() {
            let next = node.child(Role::File).and_then(|edge| self.behind(&edge));
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node
    }

    /// Whether a device or an export writes to this image itself, not to one above it.
    pub(crate) fn is_active(&self, node: &Arc<GraphNode>) -> bool {
        let tops = self
            .roots
            .values()
            .filter_map(|root| self.behind(&root.edge));
        tops.map(|top| self.skip_filters(top))
            .any(|top| Arc::ptr_eq(&top, node))
    }

    /// The nodes of a backing chain, from `top` down.
    pub(crate) fn chain(&self, top: &Arc<GraphNode>) -> Vec<Arc<GraphNode>> {
        let mut chain = vec![self.skip_filters(Arc::clone(top))];
        while let Some(below) = chain.last().and_then(|node| self.below(node)) {
            // A graph has no loop; this is for certain.
            if chain.iter().any(|node| Arc::ptr_eq(node, &below)) {
                break;
            }
            chain.push(below);
        }
        chain
    }

    /// All edges that lead to a node, and whose they are.
    pub(crate) fn parents(&self, node: &GraphNode) -> Vec<(String, Arc<Edge>)> {
        let leads_here = |edge: &Arc<Edge>| {
            edge.target()
                .is_some_and(|target| Arc::ptr_eq(&target, &node.vertex))
        };
        let mut parents: Vec<_> = self
            .roots
            .values()
            .filter(|root| leads_here(&root.edge))
            .map(|root| (root.what.clone(), Arc::clone(&root.edge)))
            .collect();
        for other in self.nodes.values() {
            for (role, edge) in other.children() {
                if leads_here(&edge) {
                    parents.push((format!("{} of node '{}'", role.name(), other.name), edge));
                }
            }
        }
        parents
    }

    /// The roots from which requests come to one of these nodes.
    pub(crate) fn roots_above(&self, nodes: &[Arc<GraphNode>]) -> Vec<Arc<Edge>> {
        let reaches = |root: &&Root| {
            let top = self.behind(&root.edge);
            let below = top.map_or_else(Vec::new, |top| self.reachable(&top));
            let among = |node: &Arc<GraphNode>| nodes.iter().any(|other| Arc::ptr_eq(other, node));
            below.iter().any(among)
        };
        let roots = self.roots.values().filter(reaches);
        roots.map(|root| Arc::clone(&root.edge)).collect()
    }

    /// The nodes that requests to `node` may reach, itself among them.
    pub(crate) fn reachable(&self, node: &Arc<GraphNode>) -> Vec<Arc<GraphNode>> {
        let mut found: Vec<Arc<GraphNode>> = Vec::new();
        let mut todo = vec![Arc::clone(node)];
        while let Some(node) = todo.pop() {
            if found.iter().any(|other| Arc::ptr_eq(other, &node)) {
                continue;
            }
            let children = node.children();
            todo.extend(children.iter().filter_map(|(_, edge)| self.behind(edge)));
            found.push(node);
        }
        found
    }

    /// Throttles, whose requests are not to be waited for.
    pub(crate) fn throttles(&self) -> Vec<Arc<Throttle>> {
        let throttle = |node: &Arc<GraphNode>| match node.driver() {
            Driver::Throttle(throttle) => Some(throttle),
            _ => None,
        };
        self.nodes.values().filter_map(throttle).collect()
    }

    /// From now on a job needs these nodes.
    pub(crate) fn hold(&mut self, job: &str, hold: Hold) {
        self.holds.insert(job.to_owned(), hold);
    }

    /// The job is over.
    pub(crate) fn release(&mut self, job: &str) -> Option<Hold> {
        self.holds.remove(job)
    }

    /// Whether no job needs the node as it is.
    pub(crate) fn check_free(&self, node: &Arc<GraphNode>) -> Result<(), BlockdevError> {
        self.check_holds(node, |hold| &hold.nodes)
    }

    /// Whether no job has to do with the node.
    pub(crate) fn check_unused(&self, node: &Arc<GraphNode>) -> Result<(), BlockdevError> {
        self.check_free(node)?;
        self.check_holds(node, |hold| &hold.targets)
    }

    fn check_holds(
        &self,
        node: &Arc<GraphNode>,
        of: impl Fn(&Hold) -> &Vec<Arc<GraphNode>>,
    ) -> Result<(), BlockdevError> {
        let held = |hold: &Hold| of(hold).iter().any(|held| Arc::ptr_eq(held, node));
        match self.holds.iter().find(|(_, hold)| held(hold)) {
            None => Ok(()),
            Some((job, hold)) => Err(BlockdevError::Busy {
                node: node.name.clone(),
                why: format!(
                    "block device is in use by block job: {} ('{job}')",
                    hold.what
                ),
            }),
        }
    }

    /// Nodes that nobody named and nothing leads to any more, taken out.
    pub(crate) fn take_unused(&mut self) -> Vec<Arc<GraphNode>> {
        let mut taken = Vec::new();
        loop {
            let unused = self.nodes.values().find(|node| {
                !node.is_explicit
                    && self.parents(node).is_empty()
                    && self.check_unused(node).is_ok()
            });
            let Some(unused) = unused.cloned() else {
                return taken;
            };
            self.nodes.remove(&unused.name);
            taken.push(unused);
        }
    }

    /// The node of a file, among these.
    pub(crate) fn by_file(nodes: &[Arc<GraphNode>], file: &str) -> Option<Arc<GraphNode>> {
        let path = std::path::Path::new(file);
        let canonical = std::fs::canonicalize(path).ok();
        let same = |node: &&Arc<GraphNode>| {
            let own = node.spec().file;
            own == path || (canonical.is_some() && std::fs::canonicalize(own).ok() == canonical)
        };
        nodes.iter().find(same).cloned()
    }
}
