//! What the host gives: its time stamp counter, sleep and wake-up by futex, and a timer whose
//! signal reaches a processor's thread wherever it is.
#![allow(
    unsafe_code,
    reason = "system calls without a safe wrapper, RDTSC, and a signal handler"
)]

use std::io;
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};

/// The time stamp counter.
#[inline]
pub(crate) fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux lets processes use it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// CPUID of the host.
pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> std::arch::x86_64::CpuidResult {
    std::arch::x86_64::__cpuid_count(leaf, subleaf)
}

/// Sleeps until somebody wakes the sleepers at this word, unless it is not zero. A signal wakes,
/// too.
pub(crate) fn wait_while_zero(word: &AtomicU32) {
    // SAFETY: the word lives as long as the borrow; without a time limit the other arguments are
    // not looked at.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            0,
            ptr::null::<libc::timespec>(),
        );
    }
}

/// Wakes the sleepers at this word.
pub(crate) fn wake(word: &AtomicU32) {
    // SAFETY: as above.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
            i32::MAX,
        );
    }
}

/// The kernel's number of this thread.
pub(crate) fn thread_id() -> libc::pid_t {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::gettid() }
}

/// Bit of the attention word that the timer's signal sets.
pub(crate) const TIMER: u32 = 1 << 2;

/// The signal, above those that libc keeps for itself and the one with which KVM's processors
/// are kicked.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 2
}

extern "C" fn handler(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid structure, and only timers of `ThreadTimer` send the
    // signal with a value that is not null: the address of a word that lives forever.
    let word = unsafe {
        match (*info).si_code {
            libc::SI_TIMER => (*info).si_value().sival_ptr.cast::<AtomicU32>().as_ref(),
            _ => None,
        }
    };
    if let Some(word) = word {
        word.fetch_or(TIMER, Ordering::SeqCst);
    }
}

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = handler;
        // SAFETY: the action is fully initialized; the handler only touches an atomic, which is
        // allowed in a handler. It runs on the alternate stack, as the stack pointer may point at
        // a processor's state.
        unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaction(signal(), &raw const action, ptr::null_mut());
        }
    });
}

/// A timer of the thread that made it.
#[derive(Debug)]
pub(crate) struct ThreadTimer {
    id: libc::timer_t,
    thread: libc::pid_t,
}

// SAFETY: the ID is a number that the kernel knows, whatever its type; every thread of the
// process may use it.
unsafe impl Send for ThreadTimer {}

impl ThreadTimer {
    /// A timer that sets [`TIMER`] in this word. The word is never freed: a signal may be on its
    /// way when the timer goes.
    pub(crate) fn new(word: &Arc<AtomicU32>) -> io::Result<Self> {
        install();
        let thread = thread_id();
        let mut id: libc::timer_t = ptr::null_mut();
        // SAFETY: the event is fully initialized, and the kernel writes one timer ID.
        let outcome = unsafe {
            let mut event: libc::sigevent = mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signal();
            event.sigev_notify_thread_id = thread;
            event.sigev_value.sival_ptr = Arc::into_raw(Arc::clone(word)).cast_mut().cast();
            libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut id)
        };
        match outcome {
            0 => Ok(Self { id, thread }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Whether its signals come to this thread.
    pub(crate) fn is_mine(&self) -> bool {
        self.thread == thread_id()
    }

    /// Sends the signal in so many nanoseconds, or not at all.
    pub(crate) fn set(&self, nanoseconds: Option<u64>) {
        // Zero would disarm it.
        let ns = nanoseconds.map_or(0, |ns| ns.max(1));
        let value = libc::itimerspec {
            it_interval: libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: libc::timespec {
                tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
                tv_nsec: (ns % 1_000_000_000) as i64,
            },
        };
        // SAFETY: the timer is this value's own, and the kernel only reads the time.
        unsafe { libc::timer_settime(self.id, 0, &raw const value, ptr::null_mut()) };
    }
}

impl Drop for ThreadTimer {
    fn drop(&mut self) {
        // SAFETY: the timer is this value's own, and nobody uses it after this.
        unsafe { libc::timer_delete(self.id) };
    }
}
