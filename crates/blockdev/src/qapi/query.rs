//! qapi/block-core.json: what disks there are. The large answers are built as JSON.

use qmp::command;
use serde_json::Value;

command! {
    /// Asks for the disks.
    QueryBlock = "query-block" -> Vec<Value>
}
command! {
    /// Asks for the nodes.
    QueryNamedBlockNodes = "query-named-block-nodes" -> Vec<Value> {
        /// Without their backing files.
        #[serde(default)]
        flat: Option<bool>,
    }
}
command! {
    /// Asks for statistics.
    QueryBlockstats = "query-blockstats" -> Vec<Value> {
        /// Of all nodes instead of all disks.
        #[serde(default)]
        query_nodes: Option<bool>,
    }
}
