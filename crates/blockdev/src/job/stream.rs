//! Merging layers toward the active one: it gets what it shows of the layers below it.
//!
//! The node does the work itself ([`Node::copy_up`]), with its own locks, so that guests may write
//! to it meanwhile, and nobody needs to watch them.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use block::graph::Vertex;
use block::{BlockStatus, Node};

use super::copy::{Failure, is_zero, read_failed};
use super::handle::{Ending, Job};
use super::mirror::invalid;
use super::pump::{Pace, Pump, Work};
use super::ranges::RangeLocks;
use super::status::{JobType, OnError, Operation};
use super::{Driver, Finish, LocalFuture, Settle, Settler};
use crate::bitmap::Bits;

/// What is looked at together.
const GRANULARITY: u64 = 64 << 10;

/// What is merged.
pub struct StreamOptions {
    /// The layer that gets the others' content.
    pub top: Arc<Vertex>,
    /// How many layers below the top are merged into it, if any; `None`: all.
    pub layers: Option<u32>,
    /// Bytes of the smallest layer that is merged. What the top shows beyond it must hide what the
    /// base has there.
    pub shortest: u64,
    /// Bytes that are copied at once.
    pub buffer: u64,
    /// Copies at the same time.
    pub parallel: usize,
    /// What to do about errors. With `ignore` the job goes on, and fails at the end.
    pub on_error: OnError,
    /// The change of the graph.
    pub finish: Option<Finish>,
}

impl StreamOptions {
    /// A merge into `top`.
    #[must_use]
    pub fn new(top: Arc<Vertex>, layers: Option<u32>) -> Self {
        Self {
            top,
            layers,
            shortest: u64::MAX,
            buffer: 1 << 20,
            parallel: 16,
            on_error: OnError::Report,
            finish: None,
        }
    }
}

/// Makes a layer independent of those below it.
pub struct Stream {
    shared: Arc<Shared>,
    pace: Pace,
    finish: RefCell<Option<Finish>>,
}

struct Shared {
    top: Arc<Vertex>,
    layers: Option<u32>,
    shortest: u64,
    todo: Bits,
    locks: RangeLocks,
    on_error: OnError,
}

impl Stream {
    /// A merge toward the active layer.
    ///
    /// # Errors
    /// The top is read-only, or the options make no sense.
    pub fn new(options: StreamOptions) -> io::Result<Box<Self>> {
        if options.top.is_read_only() {
            return Err(invalid("the top is read-only"));
        }
        Ok(Box::new(Self {
            pace: Pace {
                parallel: options.parallel.max(1),
                chunk: options.buffer.max(GRANULARITY),
            },
            shared: Arc::new(Shared {
                todo: Bits::new(options.top.size(), GRANULARITY),
                top: options.top,
                layers: options.layers,
                shortest: options.shortest,
                locks: RangeLocks::default(),
                on_error: options.on_error,
            }),
            finish: RefCell::new(options.finish),
        }))
    }

    async fn work(&self, job: &Arc<Job>) -> io::Result<()> {
        let shared = &self.shared;
        let mut pump = Pump::new(job, shared, self.pace);
        pump.scan(&shared.top, async |status, _| Ok(shared.is_wanted(status)))
            .await?;
        pump.finish().await?;
        pump.retry(Operation::Write, async || shared.top.flush().await)
            .await
    }
}

impl Shared {
    /// Whether the top needs it before the layers go.
    fn is_wanted(&self, status: &BlockStatus) -> bool {
        match self.layers {
            // Below the top there is going to be nothing, which reads as zeros.
            None => status.depth > 0 && !is_zero(status.kind),
            // Zeros of a layer may hide what the base has.
            Some(layers) => (1..=layers).contains(&status.depth),
        }
    }

    async fn copy(&self, range: Range<u64>) -> Result<u64, Failure> {
        let (mut at, mut moved) = (range.start, 0);
        while at < range.end {
            let left = range.end - at;
            let status = self.top.block_status(at, left).await;
            let status = status.map_err(read_failed)?;
            let len = status.len.clamp(1, left);
            if self.is_wanted(&status) {
                self.top.copy_up(at, len).await.map_err(read_failed)?;
                if !is_zero(status.kind) {
                    moved += len;
                }
            }
            at += len;
        }
        self.todo.clear(range);
        Ok(moved)
    }
}

impl Settle for Shared {
    /// Beyond the end of a layer the top may give up zeros that it has, as nothing is below them;
    /// the base may have something there.
    fn settle(&self) -> LocalFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let size = self.top.size();
            if self.layers.is_some() && self.shortest < size {
                let done = self.copy(self.shortest..size).await;
                done.map_err(|failure| failure.error)?;
                self.top.flush().await?;
            }
            Ok(())
        })
    }
}

impl Work for Shared {
    fn bits(&self) -> &Bits {
        &self.todo
    }

    fn locks(&self) -> &RangeLocks {
        &self.locks
    }

    fn step(&self, range: Range<u64>) -> LocalFuture<'_, Result<u64, Failure>> {
        Box::pin(self.copy(range))
    }

    fn policy(&self, _operation: Operation) -> OnError {
        self.on_error
    }

    fn tries_again(&self) -> bool {
        false
    }
}

impl Driver for Stream {
    fn kind(&self) -> JobType {
        JobType::Stream
    }

    fn attach(&self) -> io::Result<()> {
        Ok(())
    }

    fn run<'a>(&'a self, job: &'a Arc<Job>) -> LocalFuture<'a, io::Result<()>> {
        Box::pin(self.work(job))
    }

    fn prepare<'a>(&'a self, _job: &'a Arc<Job>) -> LocalFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let finish = self.finish.take();
            let settler = Settler::new(Arc::<Shared>::clone(&self.shared));
            match finish {
                Some(finish) => finish(Ending::Pivot, settler).await,
                None => settler.settle().await,
            }
        })
    }

    fn clean(&self) {}
}
