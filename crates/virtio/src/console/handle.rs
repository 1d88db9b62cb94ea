//! The device as the control side sees it.

use std::sync::Arc;

use chardev::Front;

use super::{ConsoleError, PortBackend, Shared, lock};

/// A port as the control side sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortStatus {
    /// Its number.
    pub id: u32,
    /// Its name; the console has none.
    pub name: Option<String>,
    /// A client on the host is there; the console always counts as open.
    pub host_open: bool,
    /// A program in the guest has it open.
    pub guest_open: bool,
}

/// Told when a program in the guest opens or closes a named port. Called from I/O threads and
/// from the threads that reset the device.
pub type PortWatcher = Box<dyn Fn(&str, bool) + Send + Sync>;

/// A console and its ports as the control side sees them. Clones are the same device.
#[derive(Clone)]
pub struct ConsoleHandle(pub(super) Arc<Shared>);

impl ConsoleHandle {
    /// The console's terminal has another size now, in characters.
    pub fn resize(&self, cols: u16, rows: u16) {
        if self.0.model().resize(cols, rows) {
            self.0.messages.ring();
            if let Some(interrupt) = &*lock(&self.0.config_changed) {
                interrupt.trigger();
            }
        }
    }

    /// The ports that there are.
    #[must_use]
    pub fn ports(&self) -> Vec<PortStatus> {
        let model = self.0.model();
        let status = |(id, name): (u32, Option<&str>)| PortStatus {
            id,
            name: name.map(str::to_owned),
            host_open: model.host_open(id),
            guest_open: model.guest_open(id),
        };
        model.ports().map(status).collect()
    }

    /// Plugs a port in. The front is for [`chardev::Chardev::start`].
    ///
    /// # Errors
    /// The name is not possible or taken, or there is no place.
    pub fn plug(&self, backend: PortBackend) -> Result<Arc<dyn Front>, ConsoleError> {
        self.0.plug_named(backend)
    }

    /// Takes the port with this name away; its chardev is to be dropped afterwards. What is on
    /// its way is lost.
    ///
    /// # Errors
    /// There is no such port.
    pub fn unplug(&self, name: &str) -> Result<(), ConsoleError> {
        let mut model = self.0.model();
        let id = model
            .find(name)
            .ok_or_else(|| ConsoleError::NoPort(name.to_owned()))?;
        let open = model.guest_open(id);
        model.unplug(id);
        if let Some(port) = self.0.ports.get(id as usize) {
            port.detach();
        }
        drop(model);
        self.0.messages.ring();
        if open && let Some(watcher) = &*lock(&self.0.watcher) {
            watcher(name, false);
        }
        Ok(())
    }

    /// From now on `watcher` is told when the guest opens or closes a named port. It must not
    /// call [`ConsoleHandle::watch`].
    pub fn watch(&self, watcher: PortWatcher) {
        *lock(&self.0.watcher) = Some(watcher);
    }
}
