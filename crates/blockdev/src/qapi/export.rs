//! qapi/block-export.json: disks for others.

use qmp::{Command, Empty, command};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Where a server listens (SocketAddress, and SocketAddressLegacy with its `data`).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct SocketAddress(pub Map<String, Value>);

command! {
    /// Starts the NBD server.
    NbdServerStart = "nbd-server-start" -> Empty {
        /// Where.
        addr: SocketAddress,
        /// The folder of its certificates, or the name of an object that has it.
        #[serde(default)]
        tls_creds: Option<String>,
        /// Not supported.
        #[serde(default)]
        tls_authz: Option<String>,
        /// Clients at a time; 0: no limit.
        #[serde(default)]
        max_connections: Option<u32>,
    }
}
command! {
    /// Stops the NBD server and removes its exports.
    NbdServerStop = "nbd-server-stop" -> Empty
}
command! {
    /// Exports a node by NBD.
    NbdServerAdd = "nbd-server-add" -> Empty {
        /// The device's or node's name.
        device: String,
        /// The export's name; that of the node by default.
        #[serde(default)]
        name: Option<String>,
        /// For people.
        #[serde(default)]
        description: Option<String>,
        /// Clients may write.
        #[serde(default)]
        writable: bool,
        /// A bitmap that clients may read.
        #[serde(default)]
        bitmap: Option<String>,
    }
}

/// Whether an export is removed while clients use it (BlockExportRemoveMode).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RemoveMode {
    /// No.
    #[default]
    Safe,
    /// Yes, and they are cut off.
    Hard,
}

command! {
    /// Removes an export.
    NbdServerRemove = "nbd-server-remove" -> Empty {
        /// Its name.
        name: String,
        /// Also while clients use it.
        #[serde(default)]
        mode: RemoveMode,
    }
}

/// Exports a node (BlockExportOptions): type, id, node-name, writable, and for nbd name,
/// description, bitmaps, allocation-depth.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct BlockExportAdd(pub Map<String, Value>);

impl Command for BlockExportAdd {
    const NAME: &'static str = "block-export-add";
    type Return = Empty;
}

command! {
    /// Removes an export.
    BlockExportDel = "block-export-del" -> Empty {
        /// Its id.
        id: String,
        /// Also while clients use it.
        #[serde(default)]
        mode: RemoveMode,
    }
}
command! {
    /// Asks for the exports.
    QueryBlockExports = "query-block-exports" -> Vec<Value>
}
