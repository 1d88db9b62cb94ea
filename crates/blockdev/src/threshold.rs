//! Telling when a node is written beyond an offset: a host that gives space in time.

use std::sync::Arc;

use block::graph::{Change, Observer};
use qmp::{Empty, QmpError};
use serde_json::json;

use crate::Blockdev;
use crate::graph::GraphNode;
use crate::qapi::block::BlockSetWriteThreshold;

impl Blockdev {
    pub(crate) async fn set_write_threshold(
        &self,
        command: BlockSetWriteThreshold,
    ) -> Result<Empty, QmpError> {
        let node = self.graph().node(&command.node_name)?;
        self.watch_threshold(&node, command.write_threshold);
        Ok(Empty {})
    }

    /// Tells once when the node is written beyond an offset; 0 is never.
    fn watch_threshold(&self, node: &Arc<GraphNode>, threshold: u64) {
        let (this, of) = (self.this.clone(), Arc::downgrade(node));
        let observer: Option<Arc<dyn Observer>> = match threshold {
            0 => None,
            _ => Some(Arc::new(Threshold(move |end: u64| {
                let (Some(this), Some(node)) = (this.upgrade(), of.upgrade()) else {
                    return;
                };
                let exceeded = {
                    let mut state = node.state();
                    if state.write_threshold != threshold || end <= threshold {
                        return;
                    }
                    state.write_threshold = 0;
                    end - threshold
                };
                this.emit(
                    "BLOCK_WRITE_THRESHOLD",
                    json!({
                        "node-name": node.name,
                        "amount-exceeded": exceeded,
                        "write-threshold": threshold,
                    }),
                );
            }))),
        };
        let old = {
            let mut state = node.state();
            state.write_threshold = threshold;
            std::mem::replace(&mut state.threshold, observer.clone())
        };
        if let Some(old) = old {
            node.vertex.ignore(&old);
        }
        if let Some(observer) = observer {
            node.vertex.observe(observer);
        }
    }
}

/// Is told where each write ends.
struct Threshold<F>(F);

impl<F: Fn(u64) + Send + Sync> Observer for Threshold<F> {
    fn after(&self, change: Change) {
        (self.0)(change.offset.saturating_add(change.len));
    }
}
