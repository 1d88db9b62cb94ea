//! What becomes of a request that the host fails.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use block::{Node, Operation};

use super::spec::{BlkDeviceSpec, ReadErrorPolicy, WriteErrorPolicy};
use crate::Chain;

/// How often at most it is told that a request failed and the guest goes on: a guest could make
/// such requests all the time.
const TELL: Duration = Duration::from_secs(1);

/// What becomes of a request that the host failed (QMP's BlockErrorAction).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorAction {
    /// The guest is told that it worked.
    Ignore,
    /// The guest is told.
    Report,
    /// The request is kept, and the guest is stopped until it can be made again.
    Stop,
}

impl ErrorAction {
    /// QMP's word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ignore => "ignore",
            Self::Report => "report",
            Self::Stop => "stop",
        }
    }
}

/// A request that the host failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoError {
    /// Name of the disk's node in the block graph.
    pub node: String,
    /// Whether it was a read; everything else is a write (QMP's IoOperationType).
    pub is_read: bool,
    /// What became of it.
    pub action: ErrorAction,
    /// The host has no room.
    pub no_space: bool,
    /// The host's words.
    pub reason: String,
}

/// How a disk is (QMP's BlockDeviceIoStatus).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoStatus {
    /// No request is kept.
    Ok,
    /// Requests are kept that failed.
    Failed,
    /// Requests are kept for which the host has no room.
    NoSpace,
}

/// Who hears of errors, on the I/O threads.
pub(super) type Listener = dyn Fn(IoError) + Send + Sync;

/// The error policy of a disk, and what happened so far. Shared by the workers.
pub(super) struct Errors {
    read: ReadErrorPolicy,
    write: WriteErrorPolicy,
    listener: OnceLock<Arc<Listener>>,
    /// Requests that are kept, in all queues.
    kept: AtomicUsize,
    /// The last one was kept because the host had no room.
    no_space: AtomicBool,
    told: Mutex<Option<Instant>>,
}

impl Errors {
    pub(super) fn new(spec: &BlkDeviceSpec) -> Arc<Self> {
        Arc::new(Self {
            read: spec.rerror,
            write: spec.werror,
            listener: OnceLock::new(),
            kept: AtomicUsize::new(0),
            no_space: AtomicBool::new(false),
            told: Mutex::new(None),
        })
    }

    /// From now on somebody listens, and can stop the guest. The first one counts.
    pub(super) fn listen(&self, listener: Arc<Listener>) {
        _ = self.listener.set(listener);
    }

    pub(super) fn kept(&self) -> usize {
        self.kept.load(Ordering::Relaxed)
    }

    pub(super) fn status(&self) -> IoStatus {
        match (self.kept(), self.no_space.load(Ordering::Relaxed)) {
            (0, _) => IoStatus::Ok,
            (_, true) => IoStatus::NoSpace,
            (_, false) => IoStatus::Failed,
        }
    }

    /// What becomes of a request that failed with `error`.
    pub(super) fn action(&self, operation: Option<Operation>, error: &io::Error) -> ErrorAction {
        let action = match operation {
            Some(Operation::Read) => match self.read {
                ReadErrorPolicy::Ignore => ErrorAction::Ignore,
                ReadErrorPolicy::Report | ReadErrorPolicy::Auto => ErrorAction::Report,
                ReadErrorPolicy::Stop => ErrorAction::Stop,
            },
            _ => match self.write {
                WriteErrorPolicy::Ignore => ErrorAction::Ignore,
                WriteErrorPolicy::Report => ErrorAction::Report,
                WriteErrorPolicy::Stop => ErrorAction::Stop,
                WriteErrorPolicy::Enospc | WriteErrorPolicy::Auto => match is_no_space(error) {
                    true => ErrorAction::Stop,
                    false => ErrorAction::Report,
                },
            },
        };
        match action {
            // Nobody would ever let it go on.
            ErrorAction::Stop if self.listener.get().is_none() => ErrorAction::Report,
            action => action,
        }
    }

    /// Tells what became of a request: always that it was kept, and that the guest goes on now
    /// and then.
    pub(super) fn tell(
        &self,
        node: &dyn Node,
        operation: Option<Operation>,
        action: ErrorAction,
        error: &io::Error,
    ) {
        let Some(listener) = self.listener.get() else {
            return;
        };
        let no_space = is_no_space(error);
        if action == ErrorAction::Stop {
            self.no_space.store(no_space, Ordering::Relaxed);
        } else {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.is_some_and(|told| told.elapsed() < TELL) {
                return;
            }
            *told = Some(Instant::now());
        }
        listener(IoError {
            node: node.name(),
            is_read: operation == Some(Operation::Read),
            action,
            no_space,
            reason: words(error),
        });
    }
}

/// The file system is full, or what the user may have of it is.
fn is_no_space(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// What strerror(3) says, without the number that Rust adds.
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    let words = text.split(" (os error ").next().unwrap_or_default();
    words.to_owned()
}

/// Requests of one queue that failed and are to be made again.
pub(super) struct Kept {
    /// In the order in which they were begun.
    chains: Vec<(u64, Chain)>,
    errors: Arc<Errors>,
}

impl Kept {
    pub(super) fn new(errors: &Arc<Errors>) -> Self {
        Self {
            chains: Vec::new(),
            errors: Arc::clone(errors),
        }
    }

    /// Adds one, which was begun as number `order`.
    pub(super) fn keep(&mut self, order: u64, chain: Chain) {
        let place = self.chains.partition_point(|(other, _)| *other < order);
        self.chains.insert(place, (order, chain));
        self.errors.kept.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    pub(super) fn chains(&self) -> impl Iterator<Item = &Chain> {
        self.chains.iter().map(|(_, chain)| chain)
    }

    /// What a queue that holds just these counts as in flight.
    pub(super) fn in_flight(&self) -> usize {
        let descriptors = self.chains().map(|chain| chain.token.descriptors);
        descriptors.map(usize::from).sum()
    }

    /// Takes all of them out, in their order.
    pub(super) fn take(&mut self) -> Vec<Chain> {
        let chains = std::mem::take(&mut self.chains);
        self.errors.kept.fetch_sub(chains.len(), Ordering::Relaxed);
        chains.into_iter().map(|(_, chain)| chain).collect()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        drop(self.take());
    }
}
