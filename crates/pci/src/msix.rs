use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::{Interrupt, InterruptSource, MsiHost, MsiMessage, MsiRoute};
use serde::{Deserialize, Serialize};
use state::StateError;

use crate::MsixLayout;
use crate::access::pieces;

/// Vector Control: Mask Bit.
const VECTOR_MASKED: u32 = 1;

/// A function's MSI-X vectors: the table and the pending bits in its BAR, and the routes by
/// which they are sent (PCI Local Bus 3.0 section 6.8).
///
/// ```text
///   worker ─ trigger ─▶ vector ─┬ live ───────▶ MsiRoute ─▶ accelerator
///                               ├ masked ─────▶ pending bit, sent when unmasked
///                               └ MSI-X off ──▶ the fallback (INTx), if there is one
/// ```
///
/// Each vector has its own lock, which a trigger shares only with the guest's changes to that
/// vector. A route is opened when a vector first becomes live, so that unused vectors cost
/// nothing.
pub struct Msix {
    layout: MsixLayout,
    vectors: Vec<Mutex<Vector>>,
    host: Mutex<Option<Arc<dyn MsiHost>>>,
}

#[derive(Default)]
struct Vector {
    message: MsiMessage,
    control: u32,
    pending: bool,
    /// Copies of the function's MSI-X Enable and Function Mask.
    enabled: bool,
    function_masked: bool,
    route: Option<Arc<dyn MsiRoute>>,
    /// What `route` was last told to send.
    routed: Option<MsiMessage>,
}

/// The vectors of a [`Msix`], to be saved. MSI-X Enable and Function Mask are in configuration
/// space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    /// The vectors in the table's order.
    pub vectors: Vec<MsixVectorState>,
}

/// One vector of a [`MsixState`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixVectorState {
    /// Message Address with its upper half.
    pub address: u64,
    /// Message Data.
    pub data: u32,
    /// Vector Control.
    pub control: u32,
    /// The pending bit.
    pub pending: bool,
}

impl std::fmt::Debug for Msix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Msix")
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}

impl Msix {
    /// Vectors as after power-on: all masked, MSI-X off, not connected.
    #[must_use]
    pub fn new(layout: MsixLayout) -> Arc<Self> {
        let vector = || {
            Mutex::new(Vector {
                control: VECTOR_MASKED,
                ..Vector::default()
            })
        };
        Arc::new(Self {
            layout,
            vectors: (0..layout.vectors).map(|_| vector()).collect(),
            host: Mutex::new(None),
        })
    }

    /// Connects the vectors to what takes their messages, or disconnects them.
    pub fn connect(&self, host: Option<Arc<dyn MsiHost>>) {
        let mut current = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        *current = host;
        drop(current);
        for vector in &self.vectors {
            let mut vector = lock(vector);
            vector.route = None;
            vector.routed = None;
            self.refresh(&mut vector);
        }
    }

    /// Number of vectors.
    #[must_use]
    pub fn len(&self) -> u16 {
        self.layout.vectors
    }

    /// Whether there is no vector; there always is one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// Takes over MSI-X Enable and Function Mask. Pending vectors that become live are sent.
    pub fn set_control(&self, enabled: bool, function_masked: bool) {
        for vector in &self.vectors {
            let mut vector = lock(vector);
            if vector.enabled && !enabled {
                vector.pending = false;
            }
            vector.enabled = enabled;
            vector.function_masked = function_masked;
            self.refresh(&mut vector);
        }
    }

    /// Sends vector `vector`, or makes it pending while it is masked. Tells whether MSI-X took
    /// the interrupt: not when MSI-X is off or there is no such vector.
    pub fn trigger(&self, vector: u16) -> bool {
        let Some(vector) = self.vectors.get(usize::from(vector)) else {
            return false;
        };
        let mut vector = lock(vector);
        if !vector.enabled {
            return false;
        }
        if vector.live() {
            self.send(&vector);
        } else {
            vector.pending = true;
        }
        true
    }

    /// Vector `vector` as an interrupt for a worker. While MSI-X is off, `fallback` is raised
    /// instead, if there is one; with MSI-X on and no such vector nothing happens, as virtio
    /// has it for its NO_VECTOR.
    #[must_use]
    pub fn interrupt(self: &Arc<Self>, vector: u16, fallback: Option<Interrupt>) -> Interrupt {
        Interrupt::new(Arc::new(VectorInterrupt {
            msix: Arc::clone(self),
            vector,
            fallback,
        }))
    }

    /// Whether MSI-X is enabled.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.vectors.first().is_some_and(|v| lock(v).enabled)
    }

    /// Reads at `offset` of BAR `bar` if the table or the pending bits are there; tells whether
    /// they are.
    pub fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]) -> bool {
        if let Some(at) = self.within(bar, offset, self.layout.table, self.layout.table_size()) {
            for piece in pieces(at, data.len()) {
                let bytes = self.table_dword(piece.register).to_le_bytes();
                let part = &mut data[piece.data.clone()];
                part.copy_from_slice(&bytes[piece.shift..][..part.len()]);
            }
            return true;
        }
        if let Some(at) = self.within(bar, offset, self.layout.pba, self.layout.pba_size()) {
            for (i, byte) in data.iter_mut().enumerate() {
                *byte = self.pending_byte(at + i as u64);
            }
            return true;
        }
        false
    }

    /// Writes at `offset` of BAR `bar` if the table or the pending bits (which ignore it) are
    /// there; tells whether they are.
    pub fn bar_write(&self, bar: usize, offset: u64, data: &[u8]) -> bool {
        if let Some(at) = self.within(bar, offset, self.layout.table, self.layout.table_size()) {
            for piece in pieces(at, data.len()) {
                let mut bytes = self.table_dword(piece.register).to_le_bytes();
                let part = &data[piece.data.clone()];
                bytes[piece.shift..][..part.len()].copy_from_slice(part);
                self.set_table_dword(piece.register, u32::from_le_bytes(bytes));
            }
            return true;
        }
        self.within(bar, offset, self.layout.pba, self.layout.pba_size())
            .is_some()
    }

    /// The vectors as plain data.
    #[must_use]
    pub fn save(&self) -> MsixState {
        let vectors = self.vectors.iter().map(|vector| {
            let vector = lock(vector);
            MsixVectorState {
                address: vector.message.address,
                data: vector.message.data,
                control: vector.control,
                pending: vector.pending,
            }
        });
        MsixState {
            vectors: vectors.collect(),
        }
    }

    /// Takes over saved vectors; MSI-X Enable and Function Mask stay until
    /// [`Msix::set_control`]. On an error nothing changes.
    ///
    /// # Errors
    /// The number of vectors differs. `kind` names the model in the error.
    pub fn restore(&self, kind: &'static str, state: &MsixState) -> Result<(), StateError> {
        if state.vectors.len() != self.vectors.len() {
            return Err(StateError::Invalid {
                kind,
                why: format!(
                    "it has {} MSI-X vectors, not {}",
                    state.vectors.len(),
                    self.vectors.len()
                ),
            });
        }
        for (vector, saved) in self.vectors.iter().zip(&state.vectors) {
            let mut vector = lock(vector);
            vector.message = MsiMessage {
                address: saved.address,
                data: saved.data,
            };
            vector.control = saved.control & VECTOR_MASKED;
            vector.pending = saved.pending;
            self.refresh(&mut vector);
        }
        Ok(())
    }

    /// Back to the state after power-on.
    pub fn reset(&self) {
        for vector in &self.vectors {
            let mut vector = lock(vector);
            vector.message = MsiMessage::default();
            vector.control = VECTOR_MASKED;
            vector.pending = false;
            vector.enabled = false;
            vector.function_masked = false;
            self.refresh(&mut vector);
        }
    }

    /// Brings the route in line with the vector, and sends what was pending.
    fn refresh(&self, vector: &mut Vector) {
        if !vector.live() {
            // The lock keeps triggers away from a masked vector; the route may keep its message,
            // which saves the accelerator two changes each time a guest masks and unmasks.
            return;
        }
        if vector.route.is_none() {
            let host = self.host.lock().unwrap_or_else(PoisonError::into_inner);
            vector.route = host.as_ref().and_then(|host| match host.open_route() {
                Ok(route) => Some(route),
                Err(e) => {
                    log::debug!("an MSI-X vector is sent without a route: {e}");
                    None
                }
            });
            vector.routed = None;
        }
        if let Some(route) = &vector.route
            && vector.routed != Some(vector.message)
        {
            match route.set(Some(vector.message)) {
                Ok(()) => vector.routed = Some(vector.message),
                Err(e) => {
                    log::debug!("an MSI-X message was refused: {e}");
                    vector.routed = None;
                }
            }
        }
        if std::mem::take(&mut vector.pending) {
            self.send(vector);
        }
    }

    fn send(&self, vector: &Vector) {
        match &vector.route {
            Some(route) if vector.routed.is_some() => route.trigger(),
            _ => {
                let host = self.host.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(host) = host.as_ref()
                    && let Err(e) = host.send(vector.message)
                {
                    log::debug!("an MSI-X message was lost: {e}");
                }
            }
        }
    }

    /// `offset` from the start of the structure at `start`, if it is in there.
    fn within(&self, bar: usize, offset: u64, start: u32, size: u64) -> Option<u64> {
        let at = offset.checked_sub(u64::from(start))?;
        (bar == self.layout.bar && at < size).then_some(at)
    }

    fn table_dword(&self, at: u64) -> u32 {
        let Some(vector) = self.vectors.get((at / 16) as usize) else {
            return 0;
        };
        let vector = lock(vector);
        match at % 16 / 4 {
            0 => vector.message.address as u32,
            1 => (vector.message.address >> 32) as u32,
            2 => vector.message.data,
            _ => vector.control,
        }
    }

    fn set_table_dword(&self, at: u64, value: u32) {
        let Some(vector) = self.vectors.get((at / 16) as usize) else {
            return;
        };
        let mut vector = lock(vector);
        let message = &mut vector.message;
        match at % 16 / 4 {
            // The lowest two bits are reserved as zero.
            0 => message.address = message.address >> 32 << 32 | u64::from(value & !3),
            1 => message.address = message.address & 0xffff_ffff | u64::from(value) << 32,
            2 => message.data = value,
            _ => vector.control = value & VECTOR_MASKED,
        }
        self.refresh(&mut vector);
    }

    fn pending_byte(&self, at: u64) -> u8 {
        let first = (at as usize).saturating_mul(8);
        let vectors = self.vectors.get(first..).unwrap_or_default();
        vectors
            .iter()
            .take(8)
            .enumerate()
            .fold(0, |byte, (i, v)| byte | u8::from(lock(v).pending) << i)
    }
}

impl Vector {
    fn live(&self) -> bool {
        self.enabled && !self.function_masked && self.control & VECTOR_MASKED == 0
    }
}

fn lock(vector: &Mutex<Vector>) -> MutexGuard<'_, Vector> {
    vector.lock().unwrap_or_else(PoisonError::into_inner)
}

struct VectorInterrupt {
    msix: Arc<Msix>,
    vector: u16,
    fallback: Option<Interrupt>,
}

impl InterruptSource for VectorInterrupt {
    fn trigger(&self) {
        if self.msix.trigger(self.vector) {
            return;
        }
        if let Some(fallback) = &self.fallback
            && !self.msix.enabled()
        {
            fallback.trigger();
        }
    }
}

#[cfg(test)]
mod tests;
