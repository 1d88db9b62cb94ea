//! Changes of the graph under running users.

use std::collections::HashSet;
use std::sync::Arc;

use block::Node;
use block::graph::{Drained, Edge, Vertex, drain};
use block::throttle::Unthrottled;
use qmp::{Empty, QmpError};

use crate::graph::{Driver, GraphNode, Role};
use crate::qapi::block::{BlockResize, BlockdevChangeMedium, ChangeBackingFile};
use crate::{Blockdev, BlockdevError};

/// Disks whose users wait, until this is dropped.
#[must_use]
pub(crate) struct Quiet {
    _drained: Drained,
    _unthrottled: Vec<Unthrottled>,
}

impl Blockdev {
    /// Lets everything go that filters hold back, until what is returned is dropped: for a device
    /// that waits until nothing is on its way.
    #[must_use]
    pub fn unthrottled(&self) -> Vec<Unthrottled> {
        let throttles = self.graph().throttles();
        throttles.iter().map(|t| t.unthrottled()).collect()
    }

    /// Waits until no request of a user is on its way to these nodes; others wait from now on.
    pub(crate) async fn drain(&self, nodes: &[Arc<GraphNode>]) -> Quiet {
        let (roots, throttles) = {
            let graph = self.graph();
            (graph.roots_above(nodes), graph.throttles())
        };
        // Requests that a limit holds back are on their way too.
        let unthrottled = throttles.iter().map(|t| t.unthrottled()).collect();
        Quiet {
            _drained: drain(roots).await,
            _unthrottled: unthrottled,
        }
    }

    /// Leads all users of a node to another one, but for those that `except` itself needs.
    /// Returns who they were.
    pub(crate) fn replace_users(
        &self,
        node: &GraphNode,
        with: &Arc<Vertex>,
        except: Option<&Arc<GraphNode>>,
    ) -> Vec<Arc<Edge>> {
        let edges: Vec<_> = {
            let graph = self.graph();
            let below = except.map_or_else(Vec::new, |node| graph.reachable(node));
            let keeps = |edge: &Arc<Edge>| {
                let mut children = below.iter().flat_map(|node| node.children());
                children.any(|(_, own)| Arc::ptr_eq(edge, &own))
            };
            let parents = graph.parents(node).into_iter().map(|(_, edge)| edge);
            parents.filter(|edge| !keeps(edge)).collect()
        };
        for edge in &edges {
            edge.lead(Some(Arc::clone(with)));
        }
        edges
    }

    /// Closes nodes that nobody named and nobody uses any more.
    pub(crate) async fn close_unused(&self) {
        loop {
            let unused = self.graph().take_unused();
            if unused.is_empty() {
                return;
            }
            for node in unused {
                self.close_node(&node).await;
            }
        }
    }

    /// Closes a node that is out of the graph.
    pub(crate) async fn close_node(&self, node: &Arc<GraphNode>) {
        if !node.is_storage() && !node.is_filter() {
            self.store_bitmaps(node);
            if let Err(error) = node.vertex.close().await {
                log::error!("closing node '{}': {error}", node.name);
            }
        }
        let mut state = node.state();
        state.driver = Driver::None;
        state.children.clear();
        drop(state);
        node.vertex
            .replace(Arc::new(crate::null::Frozen::of(&*node.vertex)));
    }

    pub(crate) async fn close_all(&self) {
        let jobs = self.jobs.list();
        for job in &jobs {
            // One that is over cannot be cancelled, and need not.
            _ = job.cancel(true);
        }
        for job in &jobs {
            // It has said so itself.
            _ = job.concluded().await;
        }
        self.stop_exports().await;
        let _turn = self.serial.turn().await;
        let nodes: Vec<_> = self.graph().nodes().cloned().collect();
        let _quiet = self.drain(&nodes).await;
        // From the top, so that what one writes at last reaches those below.
        let mut left = nodes;
        while !left.is_empty() {
            let below: HashSet<*const Vertex> = left
                .iter()
                .flat_map(|node| node.children())
                .filter_map(|(_, edge)| edge.target())
                .map(|vertex| Arc::as_ptr(&vertex))
                .collect();
            let (top, rest): (Vec<_>, Vec<_>) = left
                .iter()
                .cloned()
                .partition(|node| !below.contains(&Arc::as_ptr(&node.vertex)));
            if top.is_empty() {
                break;
            }
            for node in &top {
                self.close_node(node).await;
                self.graph().remove(&node.name);
            }
            left = rest;
        }
    }

    pub(crate) async fn block_resize(&self, command: BlockResize) -> Result<Empty, QmpError> {
        let _turn = self.serial.turn().await;
        let node = {
            let graph = self.graph();
            let node = graph.either(command.device.as_deref(), command.node_name.as_deref())?;
            let node = graph.skip_filters(node);
            graph.check_free(&node)?;
            node
        };
        let _quiet = self.drain(&[Arc::clone(&node)]).await;
        node.vertex
            .resize(command.size)
            .await
            .map_err(BlockdevError::from)?;
        Ok(Empty {})
    }

    pub(crate) async fn change_backing_file(
        &self,
        command: ChangeBackingFile,
    ) -> Result<Empty, QmpError> {
        let _turn = self.serial.turn().await;
        let node = {
            let graph = self.graph();
            let top = graph.device_or_node(&command.device)?;
            let node = graph.node(&command.image_node_name)?;
            if !graph.chain(&top).iter().any(|n| Arc::ptr_eq(n, &node)) {
                let why = format!("is not in the backing chain of '{}'", command.device);
                return Err(BlockdevError::unsuitable(&node.name, why).into());
            }
            graph.check_free(&node)?;
            node
        };
        let format = self.graph().below(&node);
        let format = format.map(|below| below.driver().name());
        self.write_backing(&node, Some(&command.backing_file), format)
            .await?;
        Ok(Empty {})
    }

    /// Writes what an image's header says of its backing file; one that is open read-only is
    /// opened for writing meanwhile.
    pub(crate) async fn write_backing(
        &self,
        node: &Arc<GraphNode>,
        file: Option<&str>,
        format: Option<&str>,
    ) -> Result<(), BlockdevError> {
        let was_read_only = node.spec().read_only;
        if was_read_only {
            self.set_writable(node, true).await?;
        }
        let written = {
            let qcow2 = node.qcow2()?;
            let name = file.filter(|file| !file.is_empty());
            qcow2.set_backing(name.map(str::as_bytes), format).await
        };
        if was_read_only {
            self.set_writable(node, false).await?;
        }
        written.map_err(|source| BlockdevError::Qcow2 {
            what: "record the backing file",
            node: node.name.clone(),
            source,
        })
    }

    pub(crate) async fn change_medium(
        &self,
        command: BlockdevChangeMedium,
    ) -> Result<Empty, QmpError> {
        let name = command.id.or(command.device).unwrap_or_default();
        let graph = self.graph();
        match graph.root(&name) {
            // There are no drives with media to change yet.
            Some(_) => Err(QmpError::generic(format!(
                "Device '{name}' is not removable"
            ))),
            None => Err(BlockdevError::NoDevice(name).into()),
        }
    }

    /// What is below a node after `role`, as the graph has it.
    pub(crate) fn child_node(&self, node: &GraphNode, role: Role) -> Option<Arc<GraphNode>> {
        let edge = node.child(role)?;
        self.graph().behind(&edge)
    }
}
