//! What a server offers.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use block::Node;
use event::{OneshotReceiver, OneshotSender, StopSource, StopToken, oneshot};

use crate::NbdError;
use crate::protocol::{LONGEST_STRING, context};

/// A dirty bitmap as an export shows it, as the metadata context `qemu:dirty-bitmap:NAME`.
pub trait BitmapSource: Send + Sync {
    /// Its name.
    fn name(&self) -> &str;

    /// What the `len` bytes (not 0) from `offset` on are: lengths in bytes, none of them 0, and
    /// whether they are dirty; at most `most` of them. They begin at `offset` and need not reach
    /// the end of the range, but there is one at least.
    ///
    /// # Errors
    /// The bitmap cannot be read.
    fn extents(&self, offset: u64, len: u64, most: usize) -> io::Result<Vec<(u64, bool)>>;
}

/// A disk, and how clients see it.
#[derive(Clone)]
pub struct Export {
    /// Its name; clients that name none mean the empty one.
    pub name: String,
    /// For people.
    pub description: String,
    /// The disk.
    pub node: Arc<dyn Node>,
    /// Whether clients may change it. One that is open read-only they never may.
    pub writable: bool,
    /// Dirty bitmaps that clients may look at.
    pub bitmaps: Vec<Arc<dyn BitmapSource>>,
    /// Whether clients may see in which image of a backing chain data is, as the metadata context
    /// `qemu:allocation-depth`.
    pub allocation_depth: bool,
}

impl Export {
    /// A read-only export without bitmaps.
    pub fn new(name: impl Into<String>, node: Arc<dyn Node>) -> Self {
        Self {
            name: name.into(),
            description: String::new(),
            node,
            writable: false,
            bitmaps: Vec::new(),
            allocation_depth: false,
        }
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.writable && !self.node.is_read_only()
    }

    /// Whether everything can be said in the protocol.
    fn check(&self) -> Result<(), NbdError> {
        let sayable = |what, text: &str, most| match text.len() <= most && !text.contains('\0') {
            true => Ok(()),
            false => Err(NbdError::Name { what, most }),
        };
        sayable("the name of an export", &self.name, LONGEST_STRING)?;
        sayable("a description", &self.description, LONGEST_STRING)?;
        for bitmap in &self.bitmaps {
            let most = LONGEST_STRING - context::DIRTY_BITMAP.len();
            sayable("the name of a bitmap", bitmap.name(), most)?;
        }
        Ok(())
    }
}

/// How an export is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Refused while clients use it.
    Soft,
    /// Clients that use it are cut off.
    Hard,
}

/// An export that is offered.
pub(crate) struct Entry {
    pub(crate) export: Export,
    stop: StopSource,
    users: Mutex<Users>,
}

#[derive(Default)]
struct Users {
    count: usize,
    /// Nobody may begin any more.
    closed: bool,
    /// To be told when the last one has gone.
    waiting: Vec<OneshotSender<()>>,
}

impl Entry {
    fn users(&self) -> MutexGuard<'_, Users> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to use it, unless it was removed meanwhile.
    pub(crate) fn lease(self: &Arc<Self>) -> Option<Lease> {
        let mut users = self.users();
        if users.closed {
            return None;
        }
        users.count += 1;
        drop(users);
        Some(Lease(Arc::clone(self)))
    }

    /// Says when users have to go.
    pub(crate) fn stop_token(&self) -> StopToken {
        self.stop.token()
    }
}

/// A client's use of an export.
pub(crate) struct Lease(Arc<Entry>);

impl Lease {
    pub(crate) fn entry(&self) -> &Arc<Entry> {
        &self.0
    }

    pub(crate) fn export(&self) -> &Export {
        &self.0.export
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut users = self.0.users();
        users.count -= 1;
        let waiting = match users.count {
            0 => std::mem::take(&mut users.waiting),
            _ => Vec::new(),
        };
        drop(users);
        waiting.into_iter().for_each(|sender| sender.send(()));
    }
}

/// All exports of a server, by name.
#[derive(Default)]
pub(crate) struct Exports(Mutex<BTreeMap<String, Arc<Entry>>>);

impl Exports {
    fn map(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Entry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, export: Export) -> Result<(), NbdError> {
        export.check()?;
        let mut map = self.map();
        if map.contains_key(&export.name) {
            return Err(NbdError::Exists(export.name));
        }
        let entry = Entry {
            stop: StopSource::new().0,
            users: Mutex::default(),
            export,
        };
        map.insert(entry.export.name.clone(), Arc::new(entry));
        Ok(())
    }

    pub(crate) fn remove(
        &self,
        name: &str,
        removal: Removal,
    ) -> Result<OneshotReceiver<()>, NbdError> {
        let mut map = self.map();
        let Some(entry) = map.get(name).map(Arc::clone) else {
            return Err(NbdError::NoExport(name.to_owned()));
        };
        let (sender, receiver) = oneshot();
        let mut users = entry.users();
        match (users.count, removal) {
            (0, _) => sender.send(()),
            (_, Removal::Hard) => users.waiting.push(sender),
            (clients, Removal::Soft) => {
                return Err(NbdError::InUse {
                    name: name.to_owned(),
                    clients,
                });
            }
        }
        users.closed = true;
        drop(users);
        map.remove(name);
        drop(map);
        entry.stop.stop();
        Ok(receiver)
    }

    pub(crate) fn find(&self, name: &str) -> Option<Arc<Entry>> {
        self.map().get(name).map(Arc::clone)
    }

    /// In the order of their names.
    pub(crate) fn all(&self) -> Vec<Arc<Entry>> {
        self.map().values().map(Arc::clone).collect()
    }
}
