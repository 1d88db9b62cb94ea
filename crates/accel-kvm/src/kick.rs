//! Getting a processor out of KVM_RUN from another thread.
//!
//! The kicker sends the processor's thread a signal. Its handler, which runs on that thread,
//! sets `immediate_exit` in the processor's own run page, so that a signal that comes just
//! before KVM_RUN is not lost.
#![allow(
    unsafe_code,
    reason = "a signal handler that writes to the thread's own run page"
)]

use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Once};

use accel::Kick;
use kvm_bindings::kvm_run;

thread_local! {
    /// The run page of the processor that this thread is running now, or null.
    static RUN_PAGE: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
    /// The kernel's number of this thread: asking takes a system call, and each entry needs it.
    // SAFETY: no arguments, cannot fail.
    static THREAD: libc::pid_t = unsafe { libc::gettid() };
}

/// The signal, above those that libc keeps for itself and those that users send.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

extern "C" fn handler(_: libc::c_int) {
    let page = RUN_PAGE.with(Cell::get);
    if !page.is_null() {
        // SAFETY: the pointer is set only by `Running`, whose owner has the page mapped for as
        // long as it is set; this thread is the one that runs the processor. The kernel reads
        // the field whenever it likes, hence the volatile write.
        unsafe { ptr::write_volatile(&raw mut (*page).immediate_exit, 1) };
    }
}

/// Installs the handler once a process.
fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let handler: extern "C" fn(libc::c_int) = handler;
        // SAFETY: the action is fully initialized; the handler only touches a thread-local
        // without a destructor and memory, which is allowed in a handler.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as usize;
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaction(signal(), &raw const action, ptr::null_mut());
        }
    });
}

/// Kicks one processor.
#[derive(Debug, Default)]
pub(crate) struct Kicker {
    /// Asked for and not yet answered.
    pending: AtomicBool,
    /// The thread in KVM_RUN, or 0.
    thread: AtomicI32,
}

impl Kicker {
    pub(crate) fn new() -> Arc<Self> {
        install();
        Arc::new(Self::default())
    }

    /// Whether a kick came since the last call.
    pub(crate) fn take(&self) -> bool {
        self.pending.swap(false, Ordering::SeqCst)
    }

    /// Marks this thread as the one that runs the processor with this run page.
    pub(crate) fn enter(&self, page: *mut kvm_run) -> Running<'_> {
        RUN_PAGE.with(|cell| cell.set(page));
        THREAD.with(|thread| self.thread.store(*thread, Ordering::SeqCst));
        Running { kicker: self }
    }
}

impl Kick for Kicker {
    fn kick(&self) {
        self.pending.store(true, Ordering::SeqCst);
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != 0 {
            // SAFETY: signals a thread of this very process; if it has just ended, the call
            // fails, and if the number was reused, a handler finds no run page.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
        }
    }
}

/// While it lives, a kick reaches the thread.
pub(crate) struct Running<'a> {
    kicker: &'a Kicker,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.kicker.thread.store(0, Ordering::SeqCst);
        RUN_PAGE.with(|cell| cell.set(ptr::null_mut()));
    }
}
