//! The process's own terminal in raw mode, and back, on every way out.

use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;

use nix::sys::termios::{LocalFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// How the terminal was before; `None` while it is not in raw mode.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal in raw mode, until dropped.
///
/// Also a panic puts the terminal back (the hook is installed with the first raw mode), and
/// [`restore_terminal`] does for a process that ends otherwise.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Sets the terminal at standard input to raw mode; `None` when standard input is none.
    ///
    /// # Errors
    /// The terminal refuses.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !io::IsTerminal::is_terminal(&stdin) {
            return Ok(None);
        }
        let mut before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
        let termios = tcgetattr(&stdin)?;
        let mut raw = termios.clone();
        cfmakeraw(&mut raw);
        // Output keeps its post-processing: our own messages end in plain line feeds.
        raw.output_flags = termios.output_flags;
        raw.local_flags.remove(LocalFlags::ISIG);
        tcsetattr(&stdin, SetArg::TCSANOW, &raw)?;
        if before.is_none() {
            *before = Some(termios);
            install_panic_hook();
        }
        Ok(Some(Self(())))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore_terminal();
    }
}

/// Puts the terminal back as it was before [`RawTerminal::enter`]; harmless at any time.
pub fn restore_terminal() {
    let mut before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(termios) = before.take() {
        // There is nobody left to tell.
        _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &termios);
    }
}

fn install_panic_hook() {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if let Ok(mut before) = BEFORE.try_lock()
            && let Some(termios) = before.take()
        {
            _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &termios);
        }
        previous(info);
    }));
}
