//! Nodes for others: the NBD server and its exports.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use block::Node;
use block::graph::Edge;
use event::{IoThread, IoThreadConfig};
use nbd::{BitmapSource, Export, Removal, Server, ServerCredentials, ServerOptions};
use qmp::{Empty, QmpError};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::bitmap::DirtyBitmap;
use crate::graph::{GraphNode, Root};
use crate::nbd_client::{address, chain};
use crate::qapi::export::{
    BlockExportAdd, BlockExportDel, NbdServerAdd, NbdServerRemove, NbdServerStart, RemoveMode,
};
use crate::{Blockdev, BlockdevError, lock};

/// The server, and what it offers.
#[derive(Default)]
pub(crate) struct Exports {
    server: Option<Server>,
    /// By id: the export's name, and its node's.
    list: BTreeMap<String, (String, String)>,
}

/// BlockExportOptions.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ExportOptions {
    #[serde(rename = "type")]
    kind: String,
    id: String,
    node_name: String,
    #[serde(default)]
    writable: bool,
    #[allow(dead_code, reason = "NBD's flush does what it says either way")]
    writethrough: Option<bool>,
    #[allow(dead_code, reason = "requests come on the server's threads")]
    iothread: Option<String>,
    #[allow(dead_code, reason = "requests come on the server's threads")]
    fixed_iothread: Option<bool>,
    name: Option<String>,
    description: Option<String>,
    #[serde(default)]
    bitmaps: Vec<BitmapName>,
    #[serde(default)]
    allocation_depth: bool,
}

/// A bitmap of the node, or of another one.
#[derive(Deserialize)]
#[serde(untagged)]
enum BitmapName {
    Local(String),
    External { node: String, name: String },
}

/// A bitmap as NBD clients see it.
struct Shown(Arc<DirtyBitmap>);

impl BitmapSource for Shown {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn extents(&self, offset: u64, len: u64, most: usize) -> io::Result<Vec<(u64, bool)>> {
        Ok(self.0.extents(offset, len, most))
    }
}

impl Blockdev {
    pub(crate) async fn nbd_server_start(
        &self,
        command: NbdServerStart,
    ) -> Result<Empty, QmpError> {
        let mut exports = lock(&self.exports);
        if exports.server.is_some() {
            return Err(QmpError::generic("NBD server already running"));
        }
        if command.tls_authz.is_some() {
            return Err(QmpError::generic(
                "Parameter 'tls-authz' is not supported: certificates decide who may come",
            ));
        }
        let failed = |error: &dyn std::error::Error| QmpError::generic(chain(error));
        let address = address(&command.addr.0)?;
        let tls = match &command.tls_creds {
            None => None,
            Some(directory) => {
                Some(ServerCredentials::load(directory.as_ref(), true).map_err(|e| failed(&e))?)
            }
        };
        let thread = IoThread::spawn(IoThreadConfig::new("nbd")).map_err(|e| failed(&e))?;
        let server = Server::new(ServerOptions {
            max_connections: match command.max_connections {
                None => ServerOptions::MAX_CONNECTIONS,
                Some(0) => usize::MAX,
                Some(most) => most as usize,
            },
            tls,
            ..ServerOptions::new(vec![thread])
        });
        server.listen(&address).map_err(|e| failed(&e))?;
        exports.server = Some(server);
        Ok(Empty {})
    }

    pub(crate) async fn nbd_server_stop(&self) -> Result<Empty, QmpError> {
        if lock(&self.exports).server.is_none() {
            return Err(QmpError::generic("NBD server not running"));
        }
        self.stop_exports().await;
        Ok(Empty {})
    }

    /// Removes all exports, and stops the server.
    pub(crate) async fn stop_exports(&self) {
        let (server, list) = {
            let mut exports = lock(&self.exports);
            (exports.server.take(), std::mem::take(&mut exports.list))
        };
        if let Some(server) = server {
            for (name, _) in list.values() {
                if let Ok(gone) = server.remove_export(name, Removal::Hard) {
                    // The server's thread lives as long as the server.
                    _ = gone.await;
                }
            }
            _ = server.stop().await;
        }
        for id in list.keys() {
            self.graph().remove_root(&root_name(id));
            self.emit("BLOCK_EXPORT_DELETED", json!({ "id": id }));
        }
    }

    pub(crate) async fn nbd_server_add(&self, command: NbdServerAdd) -> Result<Empty, QmpError> {
        let node = self.graph().device_or_node(&command.device)?;
        let name = command.name.unwrap_or(command.device);
        let options = ExportOptions {
            kind: "nbd".to_owned(),
            id: name.clone(),
            node_name: node.name.clone(),
            // As QEMU: not an error for this command.
            writable: command.writable && !node.vertex.is_read_only(),
            writethrough: None,
            iothread: None,
            fixed_iothread: None,
            name: Some(name),
            description: command.description,
            bitmaps: command.bitmap.into_iter().map(BitmapName::Local).collect(),
            allocation_depth: false,
        };
        self.add_export(options).await
    }

    pub(crate) async fn block_export_add(
        &self,
        command: BlockExportAdd,
    ) -> Result<Empty, QmpError> {
        let options: ExportOptions = serde_json::from_value(Value::Object(command.0))
            .map_err(|error| QmpError::generic(error.to_string()))?;
        self.add_export(options).await
    }

    async fn add_export(&self, options: ExportOptions) -> Result<Empty, QmpError> {
        if options.kind != "nbd" {
            return Err(QmpError::generic(format!(
                "Parameter 'type' does not accept value '{}': there is nbd",
                options.kind
            )));
        }
        let _turn = self.serial.turn().await;
        let server = lock(&self.exports).server.clone();
        let server = server.ok_or_else(|| QmpError::generic("NBD server not running"))?;
        if lock(&self.exports).list.contains_key(&options.id) {
            let text = format!("Block export id '{}' is already in use", options.id);
            return Err(QmpError::generic(text));
        }
        let node = self.graph().node(&options.node_name)?;
        if options.writable && node.vertex.is_read_only() {
            return Err(BlockdevError::unsuitable(&node.name, "is read-only").into());
        }
        let edge = Edge::new(Some(Arc::clone(&node.vertex)));
        let bitmaps = self.shown_bitmaps(&node, &options.bitmaps)?;
        let name = options.name.unwrap_or_else(|| node.name.clone());
        let exported: Arc<dyn Node> = Arc::<Edge>::clone(&edge);
        let export = Export {
            description: options.description.unwrap_or_default(),
            writable: options.writable,
            bitmaps,
            allocation_depth: options.allocation_depth,
            ..Export::new(name.clone(), exported)
        };
        let added = server.add_export(export);
        added.map_err(|error| QmpError::generic(chain(&error)))?;
        let root = Root {
            edge,
            what: format!("exported by '{}'", options.id),
        };
        self.graph().add_root(&root_name(&options.id), root);
        let entry = (name, node.name.clone());
        lock(&self.exports).list.insert(options.id, entry);
        Ok(Empty {})
    }

    fn shown_bitmaps(
        &self,
        node: &Arc<GraphNode>,
        names: &[BitmapName],
    ) -> Result<Vec<Arc<dyn BitmapSource>>, BlockdevError> {
        let mut shown: Vec<Arc<dyn BitmapSource>> = Vec::new();
        for name in names {
            let bitmap = match name {
                BitmapName::Local(name) => {
                    // The bitmaps of the chain are looked through, as QEMU does.
                    let chain = self.graph().chain(node);
                    let found = chain.iter().find_map(|n| self.bitmap(n, name).ok());
                    found.ok_or_else(|| {
                        BlockdevError::unsuitable(&node.name, format!("has no bitmap '{name}'"))
                    })?
                }
                BitmapName::External { node, name } => {
                    let node = self.graph().node(node)?;
                    self.bitmap(&node, name)?
                }
            };
            shown.push(Arc::new(Shown(bitmap)));
        }
        Ok(shown)
    }

    pub(crate) async fn nbd_server_remove(
        &self,
        command: NbdServerRemove,
    ) -> Result<Empty, QmpError> {
        let id = {
            let exports = lock(&self.exports);
            let mut list = exports.list.iter();
            let found = list.find(|(_, (name, _))| *name == command.name);
            found.map(|(id, _)| id.clone())
        };
        match id {
            Some(id) => self.remove_export(&id, command.mode).await,
            None => Err(QmpError::generic(format!(
                "Export '{}' is not found",
                command.name
            ))),
        }
    }

    pub(crate) async fn block_export_del(
        &self,
        command: BlockExportDel,
    ) -> Result<Empty, QmpError> {
        self.remove_export(&command.id, command.mode).await
    }

    async fn remove_export(&self, id: &str, mode: RemoveMode) -> Result<Empty, QmpError> {
        let _turn = self.serial.turn().await;
        let (server, name) = {
            let exports = lock(&self.exports);
            let Some((name, _)) = exports.list.get(id) else {
                let text = format!("Export '{id}' is not found");
                return Err(QmpError::generic(text));
            };
            (exports.server.clone(), name.clone())
        };
        if let Some(server) = server {
            let removal = match mode {
                RemoveMode::Safe => Removal::Soft,
                RemoveMode::Hard => Removal::Hard,
            };
            let gone = server
                .remove_export(&name, removal)
                .map_err(|error| QmpError::generic(chain(&error)))?;
            // It comes, or the server's thread is gone with all its clients.
            _ = gone.await;
        }
        lock(&self.exports).list.remove(id);
        self.graph().remove_root(&root_name(id));
        self.emit("BLOCK_EXPORT_DELETED", json!({ "id": id }));
        self.close_unused().await;
        Ok(Empty {})
    }

    pub(crate) async fn query_block_exports(&self) -> Result<Vec<Value>, QmpError> {
        let exports = lock(&self.exports);
        let tell = |(id, (_, node)): (&String, &(String, String))| json!({ "id": id, "type": "nbd", "node-name": node, "shutting-down": false });
        Ok(exports.list.iter().map(tell).collect())
    }
}

/// Roots of exports do not meet those of devices.
fn root_name(id: &str) -> String {
    format!("export:{id}")
}
