//! The table of operations that the kernel has not completed, or whose result nobody has taken.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

use crate::IoBuf;
use crate::reactor::{Completion, OpId};
use crate::sync::WaitList;

/// Keeps the descriptor of an operation open.
pub(crate) type KeepFile = Arc<dyn Any + Send + Sync>;

#[derive(Default)]
pub(crate) struct Ops {
    table: Slab<Entry>,
    generation: u32,
}

struct Entry {
    generation: u32,
    kind: Kind,
}

enum Kind {
    Once(Once),
    Watch(Rc<Watch>),
}

/// An operation with one completion, and what it uses until then.
struct Once {
    state: State,
    buf: Option<IoBuf>,
    _file: Option<KeepFile>,
}

enum State {
    Waiting(Option<Waker>),
    Done(i32),
    /// The future is gone; the memory stays until the completion.
    Abandoned,
}

/// A descriptor whose readiness is reported until nobody wants it any more.
pub(crate) struct Watch {
    pub(crate) fd: OwnedFd,
    /// POLLIN and so on.
    pub(crate) events: u32,
    pub(crate) id: Cell<Option<OpId>>,
    /// Events reported and not yet used up.
    pub(crate) ready: Cell<u32>,
    /// Why watching has ended, an errno.
    pub(crate) error: Cell<Option<i32>>,
    /// Nobody wants it any more.
    pub(crate) closed: Cell<bool>,
    pub(crate) readers: WaitList,
    pub(crate) writers: WaitList,
}

/// What a completion asks for. To be done when the table is not borrowed: it may run any code.
pub(crate) enum Then {
    Nothing,
    Wake(Waker),
    /// Drop what the operation used.
    Free(Unused),
    /// Tell those who wait, and begin again if no more follows.
    Watched(Rc<Watch>, Completion),
}

/// Resources of an abandoned operation.
pub(crate) struct Unused {
    _buf: Option<IoBuf>,
    _file: Option<KeepFile>,
}

impl Ops {
    fn insert(&mut self, kind: Kind) -> OpId {
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let index = self.table.insert(Entry { generation, kind });
        OpId {
            // Memory ends long before.
            index: index as u32,
            generation,
        }
    }

    pub(crate) fn insert_once(&mut self, buf: Option<IoBuf>, file: Option<KeepFile>) -> OpId {
        self.insert(Kind::Once(Once {
            state: State::Waiting(None),
            buf,
            _file: file,
        }))
    }

    pub(crate) fn insert_watch(&mut self, watch: Rc<Watch>) -> OpId {
        self.insert(Kind::Watch(watch))
    }

    fn once(&mut self, id: OpId) -> Option<&mut Once> {
        match self.table.get_mut(id.index as usize) {
            Some(Entry {
                generation,
                kind: Kind::Once(once),
            }) if *generation == id.generation => Some(once),
            _ => None,
        }
    }

    /// The memory of an operation.
    pub(crate) fn buf(&self, id: OpId) -> Option<&IoBuf> {
        match &self.table.get(id.index as usize)?.kind {
            Kind::Once(once) => once.buf.as_ref(),
            Kind::Watch(_) => None,
        }
    }

    /// The result and the memory, if the operation is complete. Returns also the waker that this
    /// one replaces, to be dropped outside.
    pub(crate) fn poll(
        &mut self,
        id: OpId,
        cx: &Context<'_>,
    ) -> (Poll<(i32, Option<IoBuf>)>, Option<Waker>) {
        let Some(once) = self.once(id) else {
            return (Poll::Ready((-libc::ECANCELED, None)), None);
        };
        match &mut once.state {
            State::Done(result) => {
                let result = *result;
                let buf = once.buf.take();
                self.table.remove(id.index as usize);
                (Poll::Ready((result, buf)), None)
            }
            State::Waiting(waker) => (Poll::Pending, waker.replace(cx.waker().clone())),
            State::Abandoned => (Poll::Pending, None),
        }
    }

    /// The future is gone. True when the kernel is still at it and should be asked to stop.
    pub(crate) fn abandon(&mut self, id: OpId) -> (bool, Then) {
        let Some(once) = self.once(id) else {
            return (false, Then::Nothing);
        };
        match std::mem::replace(&mut once.state, State::Abandoned) {
            State::Waiting(Some(waker)) => (true, Then::Wake(waker)),
            State::Waiting(None) => (true, Then::Nothing),
            State::Done(_) => (false, self.free(id)),
            State::Abandoned => (false, Then::Nothing),
        }
    }

    fn free(&mut self, id: OpId) -> Then {
        match self.table.try_remove(id.index as usize).map(|e| e.kind) {
            Some(Kind::Once(once)) => Then::Free(Unused {
                _buf: once.buf,
                _file: once._file,
            }),
            _ => Then::Nothing,
        }
    }

    pub(crate) fn complete(&mut self, completion: Completion) -> Then {
        let id = completion.id;
        let index = id.index as usize;
        let Some(entry) = self.table.get_mut(index) else {
            return Then::Nothing;
        };
        if entry.generation != id.generation {
            return Then::Nothing;
        }
        match &mut entry.kind {
            Kind::Watch(watch) => {
                let watch = Rc::clone(watch);
                if !completion.more {
                    self.table.remove(index);
                }
                Then::Watched(watch, completion)
            }
            Kind::Once(once) => match &mut once.state {
                State::Waiting(waker) => {
                    let waker = waker.take();
                    once.state = State::Done(completion.result);
                    waker.map_or(Then::Nothing, Then::Wake)
                }
                State::Abandoned => self.free(id),
                State::Done(_) => Then::Nothing,
            },
        }
    }

    /// Operations that the kernel has not completed.
    pub(crate) fn unfinished(&self) -> Vec<OpId> {
        let unfinished = |entry: &Entry| match &entry.kind {
            Kind::Once(once) => !matches!(once.state, State::Done(_)),
            Kind::Watch(_) => true,
        };
        self.table
            .iter()
            .filter(|(_, entry)| unfinished(entry))
            .map(|(index, entry)| OpId {
                index: index as u32,
                generation: entry.generation,
            })
            .collect()
    }
}

impl Drop for Ops {
    fn drop(&mut self) {
        // Only after a failure of the executor itself: better lost memory than memory that the
        // kernel writes to when it belongs to somebody else.
        if !self.unfinished().is_empty() {
            std::mem::forget(std::mem::take(&mut self.table));
        }
    }
}

/// Wakers of tasks by the task's place in this table.
pub(crate) type Active = RefCell<Slab<Option<Waker>>>;
