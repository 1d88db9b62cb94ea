//! The queues' doorbells: registers that only wake a worker.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::{Doorbell, DoorbellAddress, DoorbellHost, EventFd, Space};

use super::layout;

/// Doorbells that hang while the notification structure has an address and the driver runs: a
/// firmware that tries addresses for BARs costs nothing then.
pub(super) struct Doorbells {
    kicks: Vec<EventFd>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    host: Option<Arc<dyn DoorbellHost>>,
    /// Address of the notification structure in memory.
    memory: Option<u64>,
    /// First port of the one in ports.
    ports: Option<u64>,
    wanted: bool,
    hung: Vec<Doorbell>,
}

impl Doorbells {
    pub(super) fn new(queues: usize) -> std::io::Result<Self> {
        let flags = libc::EFD_NONBLOCK | libc::EFD_CLOEXEC;
        let kicks = (0..queues).map(|_| EventFd::new(flags));
        Ok(Self {
            kicks: kicks.collect::<Result<_, _>>()?,
            state: Mutex::default(),
        })
    }

    pub(super) fn kick(&self, queue: usize) {
        if let Some(kick) = self.kicks.get(queue) {
            // It fails only when the counter is full: the worker knows then.
            _ = kick.write(1);
        }
    }

    /// The eventfd of a queue, for its worker.
    pub(super) fn event(&self, queue: u16) -> std::io::Result<EventFd> {
        match self.kicks.get(usize::from(queue)) {
            Some(kick) => kick.try_clone(),
            None => Err(std::io::ErrorKind::NotFound.into()),
        }
    }

    pub(super) fn set_host(&self, host: Option<Arc<dyn DoorbellHost>>) {
        let mut state = self.state();
        state.hung.clear();
        state.host = host;
        self.hang(&mut state);
    }

    /// The notification structure in this space is now there, or nowhere.
    pub(super) fn set_base(&self, space: Space, base: Option<u64>) {
        let mut state = self.state();
        let place = match space {
            Space::Memory => &mut state.memory,
            Space::Port => &mut state.ports,
        };
        if std::mem::replace(place, base) != base {
            state.hung.clear();
            self.hang(&mut state);
        }
    }

    pub(super) fn set_wanted(&self, wanted: bool) {
        let mut state = self.state();
        if state.wanted != wanted {
            state.hung.clear();
            state.wanted = wanted;
            self.hang(&mut state);
        }
    }

    fn hang(&self, state: &mut State) {
        let (Some(host), true) = (&state.host, state.wanted) else {
            return;
        };
        let bases = [(Space::Memory, state.memory), (Space::Port, state.ports)];
        for (space, base) in bases
            .into_iter()
            .filter_map(|(space, base)| Some((space, base?)))
        {
            for (queue, kick) in self.kicks.iter().enumerate() {
                let address = DoorbellAddress {
                    space,
                    address: base + layout::notify_offset(queue),
                    length: 0,
                    value: None,
                };
                let doorbell = kick
                    .try_clone()
                    .map_err(|source| bus::DoorbellError::Host { address, source })
                    .and_then(|event| Doorbell::hang(Arc::clone(host), address, event));
                match doorbell {
                    Ok(doorbell) => state.hung.push(doorbell),
                    // Writes then come the long way, by the BAR.
                    Err(e) => log::debug!("{e}"),
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
