//! Copied instructions that fault on the host: the handler of SIGSEGV turns the fault into an
//! exit of the block.
//!
//! The only ones that can are those with operands of 16 bytes and more that have to be aligned:
//! the soft TLB has answered for the page.

#![allow(
    unsafe_code,
    reason = "a signal handler, which edits the interrupted thread's registers"
)]

use std::cell::Cell;
use std::sync::OnceLock;
use std::{io, mem, ptr};

use crate::TranslatorError;

/// What the handler needs to know about the engine that this thread runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Faults {
    /// Address of the code.
    pub(crate) origin: u64,
    /// Its length in bytes.
    pub(crate) len: u64,
    /// Address of the thunk that returns to Rust.
    pub(crate) exit: u64,
    /// Offsets of instructions that may fault, ascending, and the exits to take.
    pub(crate) sites: *const (u32, u32),
    /// How many.
    pub(crate) count: usize,
}

thread_local! {
    static FAULTS: Cell<*const Faults> = const { Cell::new(ptr::null()) };
}

static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Runs translated code with the handler in place for it.
pub(crate) fn with<R>(faults: &Faults, run: impl FnOnce() -> R) -> R {
    FAULTS.set(faults);
    let result = run();
    FAULTS.set(ptr::null());
    result
}

/// Installs the handler, once for the process.
///
/// # Errors
/// The system refuses it.
pub(crate) fn install() -> Result<(), TranslatorError> {
    let mut failed = None;
    PREVIOUS.get_or_init(|| {
        // SAFETY: all zeros is a valid sigaction; both calls get pointers to initialized ones,
        // and the handler has the signature that SA_SIGINFO asks for.
        unsafe {
            let mut previous: libc::sigaction = mem::zeroed();
            libc::sigaction(libc::SIGSEGV, ptr::null(), &raw mut previous);
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = handle as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
            if libc::sigaction(libc::SIGSEGV, &raw const action, ptr::null_mut()) != 0 {
                failed = Some(io::Error::last_os_error());
            }
            previous
        }
    });
    match failed {
        Some(error) => Err(TranslatorError::Memory("install a signal handler", error)),
        None => Ok(()),
    }
}

/// The exit to take for a fault at this address.
///
/// # Safety
/// The pointers in the thread's [`Faults`] are valid, which [`with`] sees to: they are set only
/// while its caller's reference lives.
unsafe fn exit_of(address: u64) -> Option<(u32, u64)> {
    let faults = FAULTS.get();
    if faults.is_null() {
        return None;
    }
    // SAFETY: by this function's contract.
    let faults = unsafe { &*faults };
    let offset = address.checked_sub(faults.origin)?;
    if offset >= faults.len {
        return None;
    }
    // SAFETY: `sites` and `count` describe a vector that nobody touches while code runs.
    let sites = unsafe { std::slice::from_raw_parts(faults.sites, faults.count) };
    let at = sites
        .binary_search_by_key(&(offset as u32), |site| site.0)
        .ok()?;
    Some((sites[at].1, faults.exit))
}

extern "C" fn handle(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let registers = context.cast::<libc::ucontext_t>();
    // SAFETY: the system passes a ucontext_t to handlers with SA_SIGINFO. The thread was
    // interrupted in translated code if `exit_of` knows the address; there RCX is scratch, and
    // the exit thunk may be entered with any register values.
    unsafe {
        let gregs = &mut (*registers).uc_mcontext.gregs;
        if let Some((exit, thunk)) = exit_of(gregs[libc::REG_RIP as usize] as u64) {
            gregs[libc::REG_RCX as usize] = i64::from(exit);
            gregs[libc::REG_RIP as usize] = thunk as i64;
            return;
        }
    }
    let Some(previous) = PREVIOUS.get() else {
        return;
    };
    match previous.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: puts back what was there; the instruction faults again, to its effect.
            unsafe { libc::sigaction(libc::SIGSEGV, previous, ptr::null_mut()) };
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: the address is a handler of this signature, as its flag says.
            let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: the address is a plain handler, as no flag says otherwise.
            let handler: extern "C" fn(i32) = unsafe { mem::transmute(handler) };
            handler(signal);
        }
    }
}
