//! What the graph tells of itself.

use std::sync::Arc;

use block::graph::DetectZeroes;
use block::{Image, Node, Operation};
use qmp::QmpError;
use serde_json::{Map, Value, json};

use crate::graph::{Driver, GraphNode, Role};
use crate::qapi::query::{QueryBlockstats, QueryNamedBlockNodes};
use crate::{Blockdev, Device, lock};

/// A device by its name, what is known of it, and the node that it leads to.
type Disk = (String, Option<Arc<dyn Device>>, Option<Arc<GraphNode>>);

impl Blockdev {
    /// The file of a node, or of what it lies on.
    fn filename(&self, node: &Arc<GraphNode>) -> String {
        node.spec().file.display().to_string()
    }

    /// ImageInfo, with what is below unless `flat`.
    async fn image_info(&self, node: &Arc<GraphNode>, flat: bool) -> Value {
        let size = node.vertex.size();
        let filename = self.filename(node);
        let mut info = json!({
            "filename": filename,
            "format": node.driver().name(),
            "virtual-size": size,
        });
        if let Ok(metadata) = std::fs::metadata(&node.spec().file) {
            let blocks = std::os::unix::fs::MetadataExt::blocks(&metadata);
            info["actual-size"] = blocks.saturating_mul(512).into();
        }
        if let Driver::Image(Image::Qcow2(qcow2)) = node.driver() {
            let own = qcow2.info();
            info["cluster-size"] = own.cluster_size.into();
            if let Some(name) = &own.references.backing_file {
                info["backing-filename"] = String::from_utf8_lossy(name).into();
                let below = self.graph().below(node);
                if let Some(below) = below {
                    info["full-backing-filename"] = self.filename(&below).into();
                }
            }
            if let Some(format) = &own.references.backing_format {
                info["backing-filename-format"] = format.as_str().into();
            }
            if let Ok(snapshots) = qcow2.snapshots().await
                && !snapshots.is_empty()
            {
                let tell = |s: &block::qcow2::Snapshot| {
                    json!({
                        "id": s.id,
                        "name": s.name,
                        "vm-state-size": s.vm_state_size,
                        "date-sec": s.date_sec,
                        "date-nsec": s.date_nsec,
                        "vm-clock-sec": s.vm_clock_nsec / 1_000_000_000,
                        "vm-clock-nsec": s.vm_clock_nsec % 1_000_000_000,
                    })
                };
                info["snapshots"] = snapshots.iter().map(tell).collect();
            }
        }
        let below = self.graph().below(node);
        if !flat && let Some(below) = below {
            info["backing-image"] = Box::pin(self.image_info(&below, false)).await;
        }
        info
    }

    /// BlockDeviceInfo.
    async fn node_info(&self, node: &Arc<GraphNode>, flat: bool) -> Value {
        let spec = node.spec();
        let depth = self.graph().chain(node).len().saturating_sub(1);
        let mut info = json!({
            "node-name": node.name,
            "drv": node.driver().name(),
            "file": self.filename(node),
            "ro": node.vertex.is_read_only(),
            "encrypted": spec.key_file.is_some() || node.state().key.is_some(),
            "detect_zeroes": match node.vertex.detect_zeroes() {
                DetectZeroes::Off => "off",
                DetectZeroes::On => "on",
                DetectZeroes::Unmap => "unmap",
            },
            "backing_file_depth": depth,
            "cache": {
                "writeback": true,
                "direct": spec.cache.is_direct(),
                "no-flush": spec.cache.ignores_flush(),
            },
            "active": true,
            "write_threshold": node.state().write_threshold,
            "bps": 0, "bps_rd": 0, "bps_wr": 0,
            "iops": 0, "iops_rd": 0, "iops_wr": 0,
            "image": self.image_info(node, flat).await,
        });
        let below = self.graph().below(node);
        if let Some(below) = below {
            info["backing_file"] = self.filename(&below).into();
        }
        let bitmaps = self.bitmap_infos(node);
        if !bitmaps.is_empty() {
            info["dirty-bitmaps"] = bitmaps.into();
        }
        let children: Vec<Value> = node
            .children()
            .iter()
            .filter_map(|(role, edge)| {
                let child = self.graph().behind(edge)?;
                Some(json!({ "child": role.name(), "node-name": child.name }))
            })
            .collect();
        info["children"] = children.into();
        info
    }

    pub(crate) async fn query_named_block_nodes(
        &self,
        command: QueryNamedBlockNodes,
    ) -> Result<Vec<Value>, QmpError> {
        let nodes: Vec<_> = self.graph().nodes().cloned().collect();
        let mut all = Vec::with_capacity(nodes.len());
        for node in &nodes {
            all.push(self.node_info(node, command.flat.unwrap_or(false)).await);
        }
        Ok(all)
    }

    /// The devices, and what they lead to.
    fn disks(&self) -> Vec<Disk> {
        let devices = lock(&self.devices).clone();
        let graph = self.graph();
        let disk = |(id, root): (&String, &crate::graph::Root)| {
            let device = devices.get(id).cloned();
            (id.clone(), device, graph.behind(&root.edge))
        };
        let exports = |(id, _): &(&String, &crate::graph::Root)| !id.starts_with("export:");
        graph.roots().filter(exports).map(disk).collect()
    }

    pub(crate) async fn query_block(&self) -> Result<Vec<Value>, QmpError> {
        let mut all = Vec::new();
        for (id, device, node) in self.disks() {
            let mut info = json!({
                "device": id,
                "type": "unknown",
                "removable": false,
                "locked": false,
                "io-status": "ok",
            });
            let mut limits = None;
            if let Some(device) = device {
                info["qdev"] = device.qdev().into();
                info["io-status"] = device.io_status().into();
                limits = Some(device.throttle().group());
            }
            if let Some(node) = node {
                let top = self.graph().skip_filters(Arc::clone(&node));
                let mut inserted = self.node_info(&top, false).await;
                if let Some(group) = limits.filter(|group| group.is_limited())
                    && let Ok(Value::Object(limits)) = serde_json::to_value(
                        block::throttle::BlockIoThrottle::from(&group.limits()),
                    )
                    && let Value::Object(inserted) = &mut inserted
                {
                    inserted.extend(limits);
                    inserted.insert("group".to_owned(), group.name().into());
                }
                info["inserted"] = inserted;
            }
            all.push(info);
        }
        Ok(all)
    }

    pub(crate) async fn query_blockstats(
        &self,
        command: QueryBlockstats,
    ) -> Result<Vec<Value>, QmpError> {
        if command.query_nodes == Some(true) {
            let nodes: Vec<_> = self.graph().nodes().cloned().collect();
            return Ok(nodes.iter().map(|node| self.node_stats(node)).collect());
        }
        let mut all = Vec::new();
        for (id, device, node) in self.disks() {
            let mut stats = match &node {
                Some(node) => {
                    let top = self.graph().skip_filters(Arc::clone(node));
                    self.node_stats(&top)
                }
                None => json!({}),
            };
            stats["device"] = id.into();
            if let Some(device) = device {
                stats["qdev"] = device.qdev().into();
                stats["stats"] = counters(&|operation| device.totals(operation));
            }
            all.push(stats);
        }
        Ok(all)
    }

    /// What is known of a node by itself: sizes, and its children.
    fn node_stats(&self, node: &Arc<GraphNode>) -> Value {
        let mut stats = json!({
            "node-name": node.name,
            "stats": counters(&|_| block::Totals::default()),
        });
        if let Ok(metadata) = std::fs::metadata(&node.spec().file) {
            stats["stats"]["wr_highest_offset"] = metadata.len().into();
        }
        for (role, name) in [(Role::File, "parent"), (Role::Backing, "backing")] {
            let child = self.child_node(node, role);
            if let Some(child) = child {
                stats[name] = self.node_stats(&child);
            }
        }
        stats
    }
}

/// BlockDeviceStats.
fn counters(totals: &dyn Fn(Operation) -> block::Totals) -> Value {
    let mut stats = Map::new();
    for (operation, name) in [
        (Operation::Read, "rd"),
        (Operation::Write, "wr"),
        (Operation::Flush, "flush"),
        (Operation::Unmap, "unmap"),
    ] {
        let of = totals(operation);
        let nanoseconds = u64::try_from(of.time.as_nanos()).unwrap_or(u64::MAX);
        stats.insert(format!("{name}_operations"), of.operations.into());
        stats.insert(format!("{name}_total_time_ns"), nanoseconds.into());
        if name != "flush" {
            stats.insert(format!("{name}_bytes"), of.bytes.into());
            stats.insert(format!("{name}_merged"), 0.into());
        }
        stats.insert(format!("failed_{name}_operations"), of.failed.into());
        stats.insert(format!("invalid_{name}_operations"), of.invalid.into());
    }
    // There are no zoned disks.
    for name in [
        "zone_append_bytes",
        "zone_append_operations",
        "zone_append_total_time_ns",
        "zone_append_merged",
        "failed_zone_append_operations",
        "invalid_zone_append_operations",
        "wr_highest_offset",
    ] {
        stats.insert(name.to_owned(), 0.into());
    }
    stats.insert("account_invalid".to_owned(), true.into());
    stats.insert("account_failed".to_owned(), true.into());
    stats.insert("timed_stats".to_owned(), Value::Array(Vec::new()));
    Value::Object(stats)
}
