//! What a device finds where it is built, and what is said about its place.

use std::collections::BTreeMap;
use std::sync::Arc;

use blockdev::Blockdev;
use event::IoThread;
use memory::GuestRam;
use spec::{Properties, Property, Spec, spec};
use virtio::TransportSpec;
use virtio::blk::IoError;

use crate::catalog::Place;
use crate::error::MachineError;

spec! {
    /// Where a device goes.
    pub struct SlotSpec("slot") {
        /// Name of the device for control.
        id: Option<String>,
        /// Name of the root port behind which it sits; bus 0 when not given.
        bus: Option<String>,
        /// Device number on its bus, 1 to 30; the next free one when not given.
        addr: Option<u8>,
    }
}

/// The properties that every device of a place has.
#[must_use]
pub fn common_properties(place: Place) -> Vec<Property> {
    let slot = SlotSpec::properties();
    match place {
        Place::Virtio => slot
            .into_iter()
            .chain(TransportSpec::properties())
            .collect(),
        Place::Pci => slot,
        Place::Isa => slot.into_iter().filter(|p| p.name == "id").collect(),
    }
}

/// Takes the properties of `S` out of what was given, but for `keep`, which the device has too.
pub(crate) fn take<S: Spec>(given: &mut Properties, keep: &[Property]) -> Result<S, MachineError> {
    let mut own = Properties::new();
    for property in S::properties() {
        if keep.iter().any(|p| p.name == property.name) {
            continue;
        }
        if let Some(value) = given.remove(&property.name) {
            own.set(&property.name, value);
        }
    }
    Ok(S::from_properties(own)?)
}

/// The I/O threads of a machine, by name.
pub(crate) struct IoThreads {
    threads: BTreeMap<String, (IoThread, u32)>,
    /// Serves what names no thread.
    default: IoThread,
}

impl IoThreads {
    pub(crate) fn new(default: IoThread) -> Self {
        Self {
            threads: BTreeMap::new(),
            default,
        }
    }

    pub(crate) fn add(
        &mut self,
        name: &str,
        thread: IoThread,
        poll_us: u32,
    ) -> Result<(), MachineError> {
        match self.threads.insert(name.to_owned(), (thread, poll_us)) {
            None => Ok(()),
            Some(_) => Err(MachineError::Description(format!(
                "two I/O threads are called {name:?}"
            ))),
        }
    }

    pub(crate) fn default_thread(&self) -> &IoThread {
        &self.default
    }

    /// The threads that the user made: name, thread, longest polling time in microseconds.
    pub(crate) fn named(&self) -> impl Iterator<Item = (&str, &IoThread, u32)> {
        self.threads
            .iter()
            .map(|(name, (thread, poll))| (name.as_str(), thread, *poll))
    }

    /// The thread of this name.
    pub(crate) fn get(&self, name: &str) -> Result<IoThread, MachineError> {
        self.threads
            .get(name)
            .map(|(thread, _)| thread.clone())
            .ok_or_else(|| {
                let known: Vec<&str> = self.threads.keys().map(String::as_str).collect();
                MachineError::Description(
                    match (spec::nearest(name, known.iter().copied()), known.is_empty()) {
                        (Some(near), _) => {
                            format!("there is no I/O thread {name:?}; did you mean {near:?}?")
                        }
                        (None, true) => {
                            format!("there is no I/O thread {name:?}; add --iothread id={name}")
                        }
                        (None, false) => format!(
                            "there is no I/O thread {name:?}; there are {}",
                            known.join(", ")
                        ),
                    },
                )
            })
    }

    /// The named threads, or the default one.
    pub(crate) fn choose(&self, names: &[String]) -> Result<Vec<IoThread>, MachineError> {
        if names.is_empty() {
            return Ok(vec![self.default.clone()]);
        }
        names.iter().map(|name| self.get(name)).collect()
    }
}

/// Who hears of what the host fails, with the disk's id.
pub(crate) type IoErrors = Arc<dyn Fn(&str, IoError) + Send + Sync>;

/// What a device is given when it is made.
pub(crate) struct Site<'a> {
    /// The user's name for the device.
    pub(crate) id: Option<String>,
    /// The device's name: the user's, or the one that it gets.
    pub(crate) name: String,
    /// The disks behind devices.
    pub(crate) blockdev: &'a Arc<Blockdev>,
    /// Guest memory.
    pub(crate) ram: &'a GuestRam,
    /// I/O threads.
    pub(crate) threads: &'a IoThreads,
    /// Number of virtual processors.
    pub(crate) cpus: u32,
    /// Called when the user leaves the console.
    pub(crate) escape: chardev::Escape,
    /// Called when the host fails a disk's request.
    pub(crate) io_errors: IoErrors,
    /// Made from the machine's UUID, for addresses that stay the same when it does; counts on.
    pub(crate) seed: &'a mut u64,
    /// Number of the next root port's slot.
    pub(crate) next_slot: u16,
    /// Chardevs that were opened on the way, to be kept as long as the machine.
    pub(crate) chardevs: &'a mut Vec<chardev::Chardev>,
}

impl Site<'_> {
    /// A number that no other device of the machine gets.
    pub(crate) fn next_seed(&mut self) -> u64 {
        *self.seed = self.seed.wrapping_add(1);
        *self.seed
    }
}
