//! What the machine consists of: every part that has state, by its id.

use std::sync::Arc;

use pci::Bdf;
use state::{Payload, StateError, Stateful};
use virtio::VirtioPci;

use crate::catalog::Abilities;
use crate::error::MachineError;

/// One part.
pub(crate) struct Item {
    /// Name, unique in the machine.
    pub(crate) id: String,
    /// Device type, or `"board"` for the board's own.
    pub(crate) kind: &'static str,
    /// Where it was put on PCI: the number of its bus's root port, and its own.
    address: Option<Bdf>,
    /// Its state.
    state: Arc<dyn Stateful + Sync>,
    /// Its virtio transport, if it has one.
    virtio: Option<Arc<VirtioPci>>,
    /// What else control can do with it.
    pub(crate) abilities: Abilities,
}

impl Item {
    /// A part of the board.
    pub(crate) fn fixed(id: &str, state: Arc<dyn Stateful + Sync>) -> Self {
        Self {
            id: id.to_owned(),
            kind: "board",
            address: None,
            state,
            virtio: None,
            abilities: Abilities::default(),
        }
    }

    /// Where it is, in words for a log line.
    pub(crate) fn place(&self) -> String {
        self.address
            .map(|bdf| format!(" at {bdf}"))
            .unwrap_or_default()
    }

    /// A device of the user.
    pub(crate) fn device(
        id: String,
        kind: &'static str,
        address: Option<Bdf>,
        state: Arc<dyn Stateful + Sync>,
        virtio: Option<Arc<VirtioPci>>,
        abilities: Abilities,
    ) -> Self {
        Self {
            id,
            kind,
            address,
            state,
            virtio,
            abilities,
        }
    }
}

/// All parts, in the order in which they were built.
#[derive(Default)]
pub(crate) struct Inventory {
    items: Vec<Item>,
}

impl Inventory {
    pub(crate) fn add(&mut self, item: Item) {
        self.items.push(item);
    }

    pub(crate) fn get(&self, id: &str) -> Option<&Item> {
        self.items.iter().find(|item| item.id == id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Item> {
        self.items.iter()
    }

    /// An id that nobody has: `disk0`, `disk1`, ...
    pub(crate) fn free_id(&self, prefix: &str) -> String {
        let taken = |id: &String| self.get(id).is_none();
        (0..=self.items.len())
            .map(|n| format!("{prefix}{n}"))
            .find(taken)
            .unwrap_or_default()
    }

    /// Fails when the id is taken.
    pub(crate) fn check_free(&self, id: &str) -> Result<(), MachineError> {
        match self.get(id) {
            None => Ok(()),
            Some(item) => Err(MachineError::Description(format!(
                "two devices are called {id:?}; the other one is a {}",
                item.kind
            ))),
        }
    }

    /// Back to power-on. No processor runs.
    pub(crate) fn reset(&self) {
        self.items.iter().for_each(|item| item.state.reset());
    }

    /// Stops the workers of all devices; what is in flight is completed.
    pub(crate) fn quiesce(&self) {
        self.items
            .iter()
            .filter_map(|item| item.virtio.as_ref())
            .for_each(|v| v.quiesce());
    }

    /// Lets the workers go on.
    pub(crate) fn resume(&self) {
        self.items
            .iter()
            .filter_map(|item| item.virtio.as_ref())
            .for_each(|v| v.resume());
    }

    /// The state of every part, by id. Workers are quiesced.
    pub(crate) fn save(&self) -> Result<Vec<(&str, Payload)>, StateError> {
        self.items
            .iter()
            .map(|item| Ok((item.id.as_str(), item.state.save()?)))
            .collect()
    }
}
