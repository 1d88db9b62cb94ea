use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::{ArcSwap, ArcSwapOption};
use event::{IoBuf, WriteFlags};

use crate::buffer;
use crate::{
    BlockError, BlockStatus, Limits, Node, NodeFuture, SizeWatcher, SizeWatchers, Transfer,
    ZeroFlags,
};

/// What a request does to the content of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// Other bytes.
    Write,
    /// Zeroes.
    Zeroes,
    /// The content is of no more use.
    Discard,
}

/// A change to the content of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// What is done.
    pub kind: ChangeKind,
    /// First byte.
    pub offset: u64,
    /// Bytes; may be 0.
    pub len: u64,
}

/// Somebody who watches the changes of a node. Its methods are called on the I/O threads of the
/// requests, many at the same time.
pub trait Observer: Send + Sync {
    /// Before a change: the request waits for the future, and fails if that fails. The node still
    /// has the old content.
    fn before(&self, change: Change) -> Option<NodeFuture<'_, io::Result<()>>> {
        _ = change;
        None
    }

    /// After a change, whether it was made, failed, or was given up half-way.
    fn after(&self, change: Change) {
        _ = change;
    }

    /// After a change that was made: the request waits for the future before it completes, and
    /// fails if that fails.
    fn follow(&self, change: Change) -> Option<NodeFuture<'_, io::Result<()>>> {
        _ = change;
        None
    }

    /// The node has another size, in bytes.
    fn resized(&self, size: u64) {
        _ = size;
    }
}

type Observers = Vec<Arc<dyn Observer>>;

/// What becomes of a write of nothing but zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum DetectZeroes {
    /// It is a write: nobody looks.
    #[default]
    Off,
    /// It is a write of zeroes, which an image need not store.
    On,
    /// Likewise, and the space may be given back.
    Unmap,
}

/// A node, and those who watch it.
pub struct Vertex {
    name: String,
    driver: ArcSwap<Arc<dyn Node>>,
    watchers: Arc<SizeWatchers>,
    /// Carries the size of the present driver to the watchers.
    messenger: Mutex<Arc<SizeWatcher>>,
    /// A [`DetectZeroes`].
    detect_zeroes: AtomicU8,
    /// `None` when there are none, which is what most requests meet.
    observers: ArcSwapOption<Observers>,
    /// Held while the list is replaced.
    changing: Mutex<()>,
}

impl Vertex {
    /// `driver`, whom nobody watches yet.
    #[must_use]
    pub fn new(name: impl Into<String>, driver: Arc<dyn Node>) -> Arc<Self> {
        let watchers = Arc::<SizeWatchers>::default();
        let messenger = messenger(&watchers);
        driver.watch_size(Arc::downgrade(&messenger));
        Arc::new(Self {
            name: name.into(),
            driver: ArcSwap::from_pointee(driver),
            watchers,
            messenger: Mutex::new(messenger),
            detect_zeroes: AtomicU8::new(DetectZeroes::Off as u8),
            observers: ArcSwapOption::empty(),
            changing: Mutex::new(()),
        })
    }

    /// The node without those who watch: what is done to it this way is not seen by them.
    #[must_use]
    pub fn driver(&self) -> Arc<dyn Node> {
        Arc::clone(&self.driver.load())
    }

    /// Puts another driver in the place of the present one, which is returned: the same node,
    /// opened in another way. The caller has drained what leads here.
    pub fn replace(&self, driver: Arc<dyn Node>) -> Arc<dyn Node> {
        let messenger = messenger(&self.watchers);
        driver.watch_size(Arc::downgrade(&messenger));
        let before = self.size();
        // The old driver's news are none any more.
        *self
            .messenger
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = messenger;
        let old = self.driver.swap(Arc::new(driver));
        let size = self.size();
        if size != before {
            self.watchers.tell(size);
        }
        Arc::clone(&old)
    }

    /// Says what becomes of writes of zeros. A buffer that the guest changes while it is looked at
    /// is written as it was at one moment or the other, as with any write.
    pub fn set_detect_zeroes(&self, mode: DetectZeroes) {
        self.detect_zeroes.store(mode as u8, Ordering::Relaxed);
    }

    /// What becomes of writes of zeros.
    #[must_use]
    pub fn detect_zeroes(&self) -> DetectZeroes {
        match self.detect_zeroes.load(Ordering::Relaxed) {
            mode if mode == DetectZeroes::On as u8 => DetectZeroes::On,
            mode if mode == DetectZeroes::Unmap as u8 => DetectZeroes::Unmap,
            _ => DetectZeroes::Off,
        }
    }

    /// Adds an observer. Changes that are on their way do not tell it: close the edges that lead
    /// here first, where that matters.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        self.change_observers(|list| list.push(observer));
    }

    /// Removes an observer. Changes that are on their way still tell it.
    pub fn ignore(&self, observer: &Arc<dyn Observer>) {
        self.change_observers(|list| list.retain(|other| !Arc::ptr_eq(other, observer)));
    }

    fn change_observers(&self, change: impl FnOnce(&mut Observers)) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut list = self
            .observers
            .load_full()
            .map_or_else(Vec::new, |list| (*list).clone());
        change(&mut list);
        let list = (!list.is_empty()).then(|| Arc::new(list));
        self.observers.store(list);
    }

    pub(super) async fn read(&self, buf: IoBuf, offset: u64) -> Transfer {
        self.driver().read_vectored(buf, offset).await
    }

    pub(super) async fn write(&self, buf: IoBuf, offset: u64, flags: WriteFlags) -> Transfer {
        let detect = self.detect_zeroes();
        if detect != DetectZeroes::Off && buffer::is_zero(&buf) {
            let flags = ZeroFlags {
                may_unmap: detect == DetectZeroes::Unmap,
                fua: flags.fua,
            };
            let result = self.zero(offset, buf.len() as u64, flags).await;
            return (result, buf);
        }
        let Some(observers) = self.observers.load_full() else {
            return self.driver().write_vectored(buf, offset, flags).await;
        };
        let len = buf.len() as u64;
        let watched = match Watched::begin(observers, ChangeKind::Write, offset, len).await {
            Ok(watched) => watched,
            Err(error) => return (Err(error), buf),
        };
        let (result, buf) = self.driver().write_vectored(buf, offset, flags).await;
        (watched.end(result).await, buf)
    }

    pub(super) async fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> io::Result<()> {
        let Some(observers) = self.observers.load_full() else {
            return self.driver().write_zeroes(offset, len, flags).await;
        };
        let watched = Watched::begin(observers, ChangeKind::Zeroes, offset, len).await?;
        let result = self.driver().write_zeroes(offset, len, flags).await;
        watched.end(result).await
    }

    pub(super) async fn give_up(&self, offset: u64, len: u64) -> io::Result<()> {
        let Some(observers) = self.observers.load_full() else {
            return self.driver().discard(offset, len).await;
        };
        let watched = Watched::begin(observers, ChangeKind::Discard, offset, len).await?;
        let result = self.driver().discard(offset, len).await;
        watched.end(result).await
    }

    pub(super) async fn change_size(&self, size: u64) -> Result<(), BlockError> {
        self.driver().resize(size).await?;
        if let Some(observers) = self.observers.load_full() {
            let size = self.size();
            observers.iter().for_each(|observer| observer.resized(size));
        }
        Ok(())
    }
}

fn messenger(watchers: &Arc<SizeWatchers>) -> Arc<SizeWatcher> {
    let watchers = Arc::clone(watchers);
    Arc::new(move |size| watchers.tell(size))
}

/// A change on its way. However it ends, the observers are told.
struct Watched {
    observers: Arc<Observers>,
    change: Change,
}

impl Watched {
    async fn begin(
        observers: Arc<Observers>,
        kind: ChangeKind,
        offset: u64,
        len: u64,
    ) -> io::Result<Self> {
        let change = Change { kind, offset, len };
        for observer in observers.iter() {
            if let Some(ready) = observer.before(change) {
                ready.await?;
            }
        }
        Ok(Self { observers, change })
    }

    async fn end(self, result: io::Result<()>) -> io::Result<()> {
        let (observers, change) = (Arc::clone(&self.observers), self.change);
        drop(self);
        result?;
        for observer in observers.iter() {
            if let Some(followed) = observer.follow(change) {
                followed.await?;
            }
        }
        Ok(())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        for observer in self.observers.iter() {
            observer.after(self.change);
        }
    }
}

impl Node for Vertex {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn size(&self) -> u64 {
        self.driver.load().size()
    }

    fn limits(&self) -> Limits {
        self.driver.load().limits()
    }

    fn is_read_only(&self) -> bool {
        self.driver.load().is_read_only()
    }

    fn read_vectored(&self, buf: IoBuf, offset: u64) -> NodeFuture<'_, Transfer> {
        Box::pin(self.read(buf, offset))
    }

    fn write_vectored(
        &self,
        buf: IoBuf,
        offset: u64,
        flags: WriteFlags,
    ) -> NodeFuture<'_, Transfer> {
        Box::pin(self.write(buf, offset, flags))
    }

    fn flush(&self) -> NodeFuture<'_, io::Result<()>> {
        Box::pin(async move { self.driver().flush().await })
    }

    fn discard(&self, offset: u64, len: u64) -> NodeFuture<'_, io::Result<()>> {
        Box::pin(self.give_up(offset, len))
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> NodeFuture<'_, io::Result<()>> {
        Box::pin(self.zero(offset, len, flags))
    }

    fn block_status(&self, offset: u64, len: u64) -> NodeFuture<'_, io::Result<BlockStatus>> {
        Box::pin(async move { self.driver().block_status(offset, len).await })
    }

    fn copy_up(&self, offset: u64, len: u64) -> NodeFuture<'_, io::Result<()>> {
        Box::pin(async move { self.driver().copy_up(offset, len).await })
    }

    fn close(&self) -> NodeFuture<'_, io::Result<()>> {
        Box::pin(async move { self.driver().close().await })
    }

    fn resize(&self, size: u64) -> NodeFuture<'_, Result<(), BlockError>> {
        Box::pin(self.change_size(size))
    }

    fn watch_size(&self, watcher: Weak<SizeWatcher>) {
        self.watchers.add(watcher);
    }
}
