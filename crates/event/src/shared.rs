//! What other threads see of an I/O thread: its inbox, and the way to wake it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_task::Runnable;
use vmm_sys_util::eventfd::EventFd;

use crate::reactor::Completion;

pub(crate) enum Message {
    /// A task that was woken elsewhere.
    Run(Runnable),
    /// Something to do on the thread.
    Call(Box<dyn FnOnce() + Send>),
    /// A helper thread has done an operation.
    Completed(Completion),
}

pub(crate) struct Shared {
    pub(crate) name: String,
    /// Written to when the thread must stop waiting. Never read: both reactors watch for edges.
    pub(crate) wake: EventFd,
    pub(crate) without_io_uring: bool,
    inbox: Mutex<Inbox>,
    /// Whether the inbox may have something. Set after, and taken before, the inbox is used.
    pending: AtomicBool,
    /// Whether the thread waits in the kernel or is about to. Whoever takes it writes to `wake`.
    sleeping: AtomicBool,
    quit: AtomicBool,
}

#[derive(Default)]
struct Inbox {
    messages: Vec<Message>,
    closed: bool,
}

impl Shared {
    pub(crate) fn new(name: String, without_io_uring: bool) -> io::Result<Self> {
        Ok(Self {
            name,
            wake: EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)?,
            without_io_uring,
            inbox: Mutex::default(),
            pending: AtomicBool::new(false),
            sleeping: AtomicBool::new(false),
            quit: AtomicBool::new(false),
        })
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the thread a message; hands it back when the thread has ended.
    pub(crate) fn post(&self, message: Message) -> Result<(), Message> {
        let mut inbox = self.inbox();
        if inbox.closed {
            return Err(message);
        }
        inbox.messages.push(message);
        drop(inbox);
        self.nudge();
        Ok(())
    }

    /// Makes the thread look at its inbox. A system call only if it sleeps: either it sees
    /// `pending` after it has set `sleeping`, or we see `sleeping` after we have set `pending`
    /// (both are sequentially consistent).
    fn nudge(&self) {
        self.pending.store(true, Ordering::SeqCst);
        if self.sleeping.swap(false, Ordering::SeqCst) {
            // It fails only when the counter is at its maximum, and then the thread has been woken.
            let _ = self.wake.write(1);
        }
    }

    /// Asks the thread to end.
    pub(crate) fn ask_to_quit(&self) {
        self.quit.store(true, Ordering::SeqCst);
        self.nudge();
    }

    pub(crate) fn quits(&self) -> bool {
        self.quit.load(Ordering::Relaxed)
    }

    pub(crate) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::SeqCst)
    }

    /// Moves what is in the inbox to `messages`, which must be empty.
    pub(crate) fn take(&self, messages: &mut Vec<Message>) {
        if self.pending.swap(false, Ordering::SeqCst) {
            std::mem::swap(&mut self.inbox().messages, messages);
        }
    }

    /// Announces that the thread is about to sleep; false when it must not, as there is a message.
    pub(crate) fn prepare_sleep(&self) -> bool {
        self.sleeping.store(true, Ordering::SeqCst);
        if self.pending.load(Ordering::SeqCst) {
            self.sleeping.store(false, Ordering::SeqCst);
            return false;
        }
        true
    }

    pub(crate) fn end_sleep(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
    }

    /// Refuses messages from now on; returns what is left.
    pub(crate) fn close(&self) -> Vec<Message> {
        let mut inbox = self.inbox();
        inbox.closed = true;
        std::mem::take(&mut inbox.messages)
    }
}
