//! The gate that every virtual processor passes between two runs: where control stops it, looks
//! at it, and lets it go on.
//!
//! ```text
//!   control: pause ──▶ attention ─ kick ─▶ processor leaves its run, reaches the gate, parks
//!            call  ──▶ closure runs on the processor's own thread, at the gate
//!            resume / quit ──▶ the gate opens / the thread ends
//! ```

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};

use accel::{Kick, Vcpu};

type Call = Box<dyn FnOnce(&mut dyn Vcpu) + Send>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Run,
    Pause,
    Quit,
}

struct State {
    wanted: Wanted,
    /// The processor's own thread asked to be held (it saw the guest power off, say).
    held: bool,
    parked: bool,
    gone: bool,
    calls: VecDeque<Call>,
}

/// One processor's gate.
pub(crate) struct Gate {
    attention: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
    kicker: Arc<dyn Kick>,
}

impl Gate {
    /// A closed gate: the processor parks at once.
    pub(crate) fn new(kicker: Arc<dyn Kick>) -> Arc<Self> {
        let state = State {
            wanted: Wanted::Pause,
            held: false,
            parked: false,
            gone: false,
            calls: VecDeque::new(),
        };
        Arc::new(Self {
            attention: AtomicBool::new(true),
            state: Mutex::new(state),
            changed: Condvar::new(),
            kicker,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The processor's side: waits until it may run; `false` when its thread is to end.
    pub(crate) fn pass(&self, vcpu: &mut dyn Vcpu) -> bool {
        if !self.attention.load(Ordering::Acquire) {
            return true;
        }
        let mut state = self.lock();
        let mut complete = false;
        loop {
            if state.wanted == Wanted::Quit {
                return false;
            }
            let open = state.wanted == Wanted::Run && !state.held && state.calls.is_empty();
            if open {
                state.parked = false;
                self.attention.store(false, Ordering::Release);
                return true;
            }
            if !complete {
                // A read that was answered reaches its register before anyone looks at it.
                complete = true;
                drop(state);
                if let Err(e) = vcpu.finish_exit() {
                    log::warn!("{e}");
                }
                state = self.lock();
                continue;
            }
            if let Some(call) = state.calls.pop_front() {
                drop(state);
                call(vcpu);
                state = self.lock();
                continue;
            }
            if !state.parked {
                state.parked = true;
                self.changed.notify_all();
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The processor's side: does not run again before [`Gate::release`].
    pub(crate) fn hold(&self) {
        self.lock().held = true;
        self.attention.store(true, Ordering::Release);
    }

    /// The processor's side: its thread ends.
    pub(crate) fn leave(&self) {
        let mut state = self.lock();
        state.gone = true;
        state.parked = true;
        state.calls.clear();
        self.changed.notify_all();
    }

    fn want(&self, wanted: Wanted) {
        let mut state = self.lock();
        if state.wanted != Wanted::Quit {
            state.wanted = wanted;
        }
        self.attention.store(true, Ordering::Release);
        self.changed.notify_all();
        drop(state);
        if wanted != Wanted::Run {
            self.kicker.kick();
        }
    }

    /// Asks the processor to park; [`Gate::wait_parked`] waits for it.
    pub(crate) fn pause(&self) {
        self.want(Wanted::Pause);
    }

    /// Waits until the processor is parked or gone.
    pub(crate) fn wait_parked(&self) {
        let state = self.lock();
        let parked = self.changed.wait_while(state, |s| !s.parked && !s.gone);
        drop(parked.unwrap_or_else(PoisonError::into_inner));
    }

    /// Opens the gate.
    pub(crate) fn resume(&self) {
        self.want(Wanted::Run);
    }

    /// Ends a [`Gate::hold`].
    pub(crate) fn release(&self) {
        self.lock().held = false;
        self.changed.notify_all();
    }

    /// Ends the processor's thread.
    pub(crate) fn quit(&self) {
        self.want(Wanted::Quit);
    }

    /// What makes the processor come by the gate, without stopping it.
    pub(crate) fn kicker(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.kicker)
    }

    /// Runs `body` with the processor, on its thread, and returns what it returned; `None` when
    /// the thread has ended.
    pub(crate) fn call<T: Send + 'static>(
        &self,
        body: impl FnOnce(&mut dyn Vcpu) -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, receiver) = mpsc::sync_channel(1);
        {
            let mut state = self.lock();
            if state.gone || state.wanted == Wanted::Quit {
                return None;
            }
            state.calls.push_back(Box::new(move |vcpu| {
                // The receiver waits below; it cannot have gone.
                _ = sender.send(body(vcpu));
            }));
            self.attention.store(true, Ordering::Release);
            self.changed.notify_all();
        }
        self.kicker.kick();
        receiver.recv().ok()
    }
}
