//! QEMU's firmware configuration device, ports 0x510 to 0x51b: how the machine tells firmware
//! and kernels about itself.
//!
//! ```text
//!   selector 0x510 ─▶ item ─▶ data 0x511, a byte at a time
//!   DMA 0x514 ─▶ command in guest memory ─▶ copy [GuestMemoryAccess]
//!   keys: 0x00 "QEMU", 0x01 version, numbers, 0x19 directory, 0x20… files
//! ```

mod items;
mod model;
mod state;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use ::state::{Payload, StateError, Stateful};
use bus::{Action, Device, Range};

use crate::ports::PortMap;
use crate::{ChipsetError, lock};

pub use items::{Items, MAX_FILES, OnWrite, key};
pub use model::{BASE, GuestMemoryAccess, Model, PORTS};
pub use state::{KIND, State, VERSION};

/// The firmware configuration device.
pub struct FwCfg {
    model: Mutex<Model>,
    memory: Arc<dyn GuestMemoryAccess>,
}

impl FwCfg {
    /// A device without files whose DMA goes to `memory`.
    #[must_use]
    pub fn new(memory: Arc<dyn GuestMemoryAccess>) -> Arc<Self> {
        Arc::new(Self {
            model: Mutex::new(Model::new(Items::new())),
            memory,
        })
    }

    /// The port ranges of the device.
    #[must_use]
    pub fn ports(self: &Arc<Self>) -> PortMap {
        let device: Arc<dyn Device> = self.clone();
        vec![(Range::new(u64::from(BASE), u64::from(PORTS)), device)]
    }

    /// Sets a numeric item; see [`key`]. Numbers are little-endian.
    ///
    /// # Errors
    /// The key is reserved or the item too large.
    pub fn set(&self, key: u16, data: impl Into<Vec<u8>>) -> Result<(), ChipsetError> {
        lock(&self.model).items().set(key, data.into())
    }

    /// Adds a file that the guest reads by name; returns its key.
    ///
    /// # Errors
    /// The name is bad or taken, or there is no room.
    pub fn add_file(&self, name: &str, data: impl Into<Vec<u8>>) -> Result<u16, ChipsetError> {
        lock(&self.model).items().add(name, data.into(), None)
    }

    /// Adds a file that the guest may write within its size. `on_write` gets the whole content
    /// after each write, with the device locked.
    ///
    /// # Errors
    /// The name is bad or taken, or there is no room.
    pub fn add_writable_file(
        &self,
        name: &str,
        data: impl Into<Vec<u8>>,
        on_write: OnWrite,
    ) -> Result<u16, ChipsetError> {
        lock(&self.model)
            .items()
            .add(name, data.into(), Some(on_write))
    }

    /// Replaces a file's content.
    ///
    /// # Errors
    /// No such file, or the content is too large.
    pub fn update_file(&self, name: &str, data: impl Into<Vec<u8>>) -> Result<(), ChipsetError> {
        lock(&self.model).items().update(name, data.into())
    }
}

impl Device for FwCfg {
    fn read(&self, offset: u64, data: &mut [u8]) {
        lock(&self.model).read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        lock(&self.model).write(offset, data, &*self.memory);
        Action::None
    }
}

impl Stateful for FwCfg {
    fn save(&self) -> Result<Payload, StateError> {
        Payload::encode(KIND, VERSION, &lock(&self.model).state())
    }

    fn restore(&self, payload: Payload) -> Result<(), StateError> {
        self.reset();
        let state: State = payload.decode(KIND, VERSION)?;
        lock(&self.model)
            .set_state(state)
            .map_err(|why| StateError::Invalid { kind: KIND, why })
    }

    fn reset(&self) {
        lock(&self.model).reset();
    }
}
