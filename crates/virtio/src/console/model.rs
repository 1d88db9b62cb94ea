//! The device as the driver sees it: configuration space and the control messages of
//! VIRTIO 1.3 section 5.3.6.2. No queue, chardev, thread or lock.
//!
//! ```text
//!   driver                                device
//!     DEVICE_READY 1            ───▶
//!                               ◀───      DEVICE_ADD            for each port
//!     PORT_READY 1              ───▶
//!                               ◀───      CONSOLE_PORT or PORT_NAME, PORT_OPEN, RESIZE
//!     PORT_OPEN 1 or 0          ───▶      a program in the guest opens or closes the port
//!                               ◀───      PORT_OPEN 1 or 0: a client on the host comes or goes
//!                               ◀───      DEVICE_REMOVE
//! ```

use zerocopy::{FromBytes, Immutable, IntoBytes, little_endian as le};

use super::state::{PortState, State, Talk};

/// Feature bits (VIRTIO 1.3 section 5.3.3).
pub(super) mod feature {
    pub const SIZE: u64 = 1 << 0;
    pub const MULTIPORT: u64 = 1 << 1;
    pub const EMERG_WRITE: u64 = 1 << 2;
}

/// Events of control messages (VIRTIO 1.3 section 5.3.6.2).
pub(super) mod event {
    pub const DEVICE_READY: u16 = 0;
    pub const DEVICE_ADD: u16 = 1;
    pub const DEVICE_REMOVE: u16 = 2;
    pub const PORT_READY: u16 = 3;
    pub const CONSOLE_PORT: u16 = 4;
    pub const RESIZE: u16 = 5;
    pub const PORT_OPEN: u16 = 6;
    pub const PORT_NAME: u16 = 7;
}

/// Offset of `emerg_wr` in the configuration space.
pub(super) const EMERG_WR: u64 = 8;

/// struct virtio_console_config (VIRTIO 1.3 section 5.3.4).
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Config {
    cols: le::U16,
    rows: le::U16,
    max_nr_ports: le::U32,
    emerg_wr: le::U32,
}

/// struct virtio_console_control (VIRTIO 1.3 section 5.3.6.2).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Control {
    pub id: le::U32,
    pub event: le::U16,
    pub value: le::U16,
}

impl Control {
    pub fn new(id: u32, event: u16, value: u16) -> Self {
        Self {
            id: id.into(),
            event: event.into(),
            value: value.into(),
        }
    }
}

/// One thing that the device has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Notice {
    Remove,
    Add,
    Describe,
    Resize,
    Open(bool),
}

/// A place for a port.
#[derive(Debug, Default)]
struct Place {
    /// DEVICE_REMOVE is to be sent for the port that was here before.
    remove: bool,
    port: Option<Port>,
}

#[derive(Debug)]
struct Port {
    /// `None` for the console.
    name: Option<String>,
    /// A client on the host is there.
    host_open: bool,
    talk: Talk,
}

impl Place {
    fn notice(&self) -> Option<Notice> {
        if self.remove {
            return Some(Notice::Remove);
        }
        let Port {
            host_open, talk, ..
        } = self.port.as_ref()?;
        if talk.add {
            return Some(Notice::Add);
        }
        if !talk.ready {
            return None;
        }
        if talk.describe {
            return Some(Notice::Describe);
        }
        if talk.told_open && (talk.lapsed || !host_open) {
            return Some(Notice::Open(false));
        }
        if *host_open && !talk.told_open {
            return Some(Notice::Open(true));
        }
        talk.resize.then_some(Notice::Resize)
    }
}

/// What is wrong with a saved state.
pub(super) type Mismatch = String;

/// Ports, and what is to be told of them.
#[derive(Debug)]
pub(super) struct Model {
    cols: u16,
    rows: u16,
    /// The driver knows of ports. Without that there is only port 0.
    multiport: bool,
    driver_ready: bool,
    places: Vec<Place>,
}

impl Model {
    /// A device with `max_nr_ports` places for ports, of which the first is the console's.
    pub fn new(max_nr_ports: u16, cols: u16, rows: u16) -> Self {
        Self {
            cols,
            rows,
            multiport: false,
            driver_ready: false,
            places: (0..max_nr_ports).map(|_| Place::default()).collect(),
        }
    }

    pub fn features(&self) -> u64 {
        feature::SIZE | feature::MULTIPORT | feature::EMERG_WRITE
    }

    /// The driver agreed on `features`.
    pub fn negotiated(&mut self, features: u64) {
        self.multiport = features & feature::MULTIPORT != 0;
    }

    pub fn config_read(&self, offset: u64, data: &mut [u8]) {
        let config = Config {
            cols: self.cols.into(),
            rows: self.rows.into(),
            max_nr_ports: (self.places.len() as u32).into(),
            emerg_wr: 0.into(),
        };
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| config.as_bytes().get(offset..))
            .unwrap_or_default();
        data.fill(0);
        for (to, from) in data.iter_mut().zip(rest) {
            *to = *from;
        }
    }

    fn port(&self, id: u32) -> Option<&Port> {
        self.places.get(id as usize)?.port.as_ref()
    }

    fn port_mut(&mut self, id: u32) -> Option<&mut Port> {
        self.places.get_mut(id as usize)?.port.as_mut()
    }

    /// The ports that there are: number and name.
    pub fn ports(&self) -> impl Iterator<Item = (u32, Option<&str>)> {
        (0..).zip(&self.places).filter_map(|(id, place)| {
            let port = place.port.as_ref()?;
            Some((id, port.name.as_deref()))
        })
    }

    /// The number of the port with this name.
    pub fn find(&self, name: &str) -> Option<u32> {
        self.ports()
            .find(|(_, other)| *other == Some(name))
            .map(|(id, _)| id)
    }

    /// The first place for a named port. Place 0 is the console's also when there is none: a
    /// driver without ports takes what is there for its console.
    pub fn free_place(&self) -> Option<u32> {
        let free = self
            .places
            .iter()
            .skip(1)
            .position(|place| place.port.is_none())?;
        Some(free as u32 + 1)
    }

    /// Puts a port in a free place; one without a name is a console.
    pub fn plug(&mut self, id: u32, name: Option<String>) {
        let (console, sized) = (name.is_none(), self.cols != 0);
        if let Some(place) = self.places.get_mut(id as usize) {
            place.port = Some(Port {
                name,
                // A console is never blocked by a host that is not there.
                host_open: console,
                talk: Talk {
                    add: true,
                    resize: console && sized,
                    ..Talk::default()
                },
            });
        }
    }

    /// Takes a port away. Its place is free at once: the driver hears of the removal before it
    /// hears of a new port there.
    pub fn unplug(&mut self, id: u32) {
        let driver_ready = self.driver_ready;
        if let Some(place) = self.places.get_mut(id as usize)
            && let Some(port) = place.port.take()
        {
            // A driver that does not know of the port yet need not know that it went.
            place.remove |= driver_ready && (port.talk.ready || !port.talk.add);
        }
    }

    /// The console has another size now; `false` when it is the same.
    pub fn resize(&mut self, cols: u16, rows: u16) -> bool {
        if (self.cols, self.rows) == (cols, rows) {
            return false;
        }
        (self.cols, self.rows) = (cols, rows);
        for place in &mut self.places {
            if let Some(port) = &mut place.port {
                port.talk.resize = port.name.is_none();
            }
        }
        true
    }

    /// A client on the host came or went. A console is always open: what is written to it goes
    /// where the chardev sends it.
    pub fn set_host_open(&mut self, id: u32, open: bool) {
        if let Some(port) = self.port_mut(id)
            && port.name.is_some()
        {
            port.host_open = open;
            port.talk.lapsed |= !open && port.talk.told_open;
        }
    }

    /// Whether a client on the host is there.
    pub fn host_open(&self, id: u32) -> bool {
        self.port(id).is_some_and(|port| port.host_open)
    }

    /// Whether a program in the guest has the port open.
    pub fn guest_open(&self, id: u32) -> bool {
        self.port(id).is_some_and(|port| port.talk.guest_open)
    }

    /// Whether the guest wants input of this port.
    pub fn wants_input(&self, id: u32) -> bool {
        if self.multiport {
            self.guest_open(id)
        } else {
            id == 0 && self.port(0).is_some()
        }
    }

    /// A message of the driver. When with it the guest opens or closes a port, which one.
    pub fn received(&mut self, message: &Control) -> Option<(u32, bool)> {
        if !self.multiport {
            return None;
        }
        let (id, on) = (message.id.get(), message.value.get() != 0);
        match message.event.get() {
            event::DEVICE_READY => {
                self.driver_ready = on;
                for place in &mut self.places {
                    if let Some(port) = &mut place.port {
                        port.talk.add = on;
                    }
                }
                None
            }
            event::PORT_READY => {
                let sized = self.cols != 0;
                let port = self.port_mut(id)?;
                let console = port.name.is_none();
                let talk = &mut port.talk;
                talk.ready = on;
                talk.describe = on;
                talk.resize = on && console && sized;
                // The driver's view of a new port is that it is closed.
                talk.told_open = false;
                talk.lapsed = false;
                None
            }
            event::PORT_OPEN => {
                let talk = &mut self.port_mut(id)?.talk;
                let was = std::mem::replace(&mut talk.guest_open, on);
                (was != on).then_some((id, on))
            }
            // The others are the device's to send.
            _ => None,
        }
    }

    fn notice(&self) -> Option<(u32, Notice)> {
        if !self.multiport || !self.driver_ready {
            return None;
        }
        (0..)
            .zip(&self.places)
            .find_map(|(id, place)| Some((id, place.notice()?)))
    }

    /// Whether there is something to tell the driver.
    pub fn has_message(&self) -> bool {
        self.notice().is_some()
    }

    /// The next message to the driver, which counts as sent.
    pub fn next_message(&mut self) -> Option<Vec<u8>> {
        let (id, notice) = self.notice()?;
        let (cols, rows) = (self.cols, self.rows);
        let place = self.places.get_mut(id as usize)?;
        let message = |event, value| Control::new(id, event, value).as_bytes().to_vec();
        if notice == Notice::Remove {
            place.remove = false;
            return Some(message(event::DEVICE_REMOVE, 1));
        }
        let port = place.port.as_mut()?;
        let talk = &mut port.talk;
        Some(match notice {
            Notice::Remove | Notice::Add => {
                talk.add = false;
                message(event::DEVICE_ADD, 1)
            }
            Notice::Describe => {
                talk.describe = false;
                match &port.name {
                    None => message(event::CONSOLE_PORT, 1),
                    Some(name) => {
                        let mut bytes = message(event::PORT_NAME, 1);
                        bytes.extend(name.as_bytes());
                        bytes
                    }
                }
            }
            Notice::Open(open) => {
                talk.told_open = open;
                talk.lapsed = false;
                message(event::PORT_OPEN, open.into())
            }
            Notice::Resize => {
                talk.resize = false;
                let mut bytes = message(event::RESIZE, 0);
                // Linux had the two fields the other way round until 2025; what its stable
                // branches (and so Debian) read now is what the specification says.
                bytes.extend(cols.to_le_bytes());
                bytes.extend(rows.to_le_bytes());
                bytes
            }
        })
    }

    /// The driver, and what it was told, are gone. Returns the ports that the guest had open.
    pub fn reset(&mut self) -> Vec<u32> {
        self.multiport = false;
        self.driver_ready = false;
        let sized = self.cols != 0;
        let mut closed = Vec::new();
        for (id, place) in (0..).zip(&mut self.places) {
            place.remove = false;
            if let Some(port) = &mut place.port {
                if port.talk.guest_open {
                    closed.push(id);
                }
                port.talk = Talk {
                    add: true,
                    resize: sized && port.name.is_none(),
                    ..Talk::default()
                };
            }
        }
        closed
    }

    /// The state, with no bytes on their way.
    pub fn save(&self) -> State {
        let places = || (0..).zip(&self.places);
        State {
            cols: self.cols,
            rows: self.rows,
            max_nr_ports: self.places.len() as u32,
            driver_ready: self.driver_ready,
            removals: places()
                .filter(|(_, place)| place.remove)
                .map(|(id, _)| id)
                .collect(),
            ports: places()
                .filter_map(|(id, place)| {
                    let port = place.port.as_ref()?;
                    Some(PortState {
                        id,
                        name: port.name.clone(),
                        talk: port.talk.clone(),
                        input: Vec::new(),
                        output: Vec::new(),
                    })
                })
                .collect(),
        }
    }

    /// Takes over what was saved of a device with the same ports. On an error nothing changes.
    pub fn restore(&mut self, state: &State) -> Result<(), Mismatch> {
        if state.max_nr_ports as usize != self.places.len() {
            let here = self.places.len();
            return Err(format!(
                "it has room for {} ports, this one for {here}",
                state.max_nr_ports
            ));
        }
        if let Some(id) = state
            .removals
            .iter()
            .find(|id| **id as usize >= self.places.len())
        {
            return Err(format!("there is no place {id}"));
        }
        let show = |ports: &[(u32, Option<&str>)]| {
            let show = |(id, name): &(u32, Option<&str>)| {
                format!("{id} ({})", name.unwrap_or("the console"))
            };
            ports.iter().map(show).collect::<Vec<_>>().join(", ")
        };
        let saved: Vec<_> = state
            .ports
            .iter()
            .map(|port| (port.id, port.name.as_deref()))
            .collect();
        let here: Vec<_> = self.ports().collect();
        if saved != here {
            return Err(format!(
                "it has the ports {}, this one {}",
                show(&saved),
                show(&here)
            ));
        }
        (self.cols, self.rows) = (state.cols, state.rows);
        self.driver_ready = state.driver_ready;
        for (id, place) in (0..).zip(&mut self.places) {
            place.remove = state.removals.contains(&id);
        }
        for saved in &state.ports {
            if let Some(port) = self.port_mut(saved.id) {
                port.talk = saved.talk.clone();
            }
        }
        Ok(())
    }
}
