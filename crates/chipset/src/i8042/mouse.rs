use super::keyboard::{ACK, QUEUE_LIMIT, RESEND, SELF_TEST_PASSED, take};
use super::state::MouseState;

/// Reports are made while the queue is shorter than this; movement adds up otherwise.
const REPORT_LIMIT: usize = 16;

/// Commands to the mouse.
mod command {
    pub const SCALING_1_1: u8 = 0xe6;
    pub const SCALING_2_1: u8 = 0xe7;
    pub const RESOLUTION: u8 = 0xe8;
    pub const STATUS: u8 = 0xe9;
    pub const STREAM: u8 = 0xea;
    pub const READ: u8 = 0xeb;
    pub const END_WRAP: u8 = 0xec;
    pub const WRAP: u8 = 0xee;
    pub const REMOTE: u8 = 0xf0;
    pub const IDENTIFY: u8 = 0xf2;
    pub const SAMPLE_RATE: u8 = 0xf3;
    pub const ENABLE: u8 = 0xf4;
    pub const DISABLE: u8 = 0xf5;
    pub const DEFAULTS: u8 = 0xf6;
    pub const RESEND: u8 = 0xfe;
    pub const RESET: u8 = 0xff;
}

impl MouseState {
    pub(super) fn new() -> Self {
        Self {
            enabled: false,
            remote: false,
            wrap: false,
            scaling_2_1: false,
            resolution: 2,
            sample_rate: 100,
            recent_rates: [0; 3],
            id: 0,
            pending: None,
            queue: Vec::new(),
            last_sent: 0,
            dx: 0,
            dy: 0,
            dz: 0,
            buttons: 0,
            buttons_changed: false,
        }
    }

    /// The mouse moves; `dx` right, `dy` up, `dz` towards the user, `buttons` as held now.
    /// Tells whether the guest will hear of it.
    pub(super) fn move_by(&mut self, dx: i32, dy: i32, dz: i32, buttons: u8) -> bool {
        if !self.enabled {
            return false;
        }
        self.dx = self.dx.saturating_add(dx);
        self.dy = self.dy.saturating_add(dy);
        self.dz = self.dz.saturating_add(dz);
        self.buttons_changed |= self.buttons != buttons & 0x1f;
        self.buttons = buttons & 0x1f;
        self.report();
        true
    }

    fn report(&mut self) {
        let news = |m: &Self| m.buttons_changed || m.dx != 0 || m.dy != 0 || m.wheel_news();
        while self.enabled && !self.remote && self.queue.len() < REPORT_LIMIT && news(self) {
            self.packet();
        }
    }

    fn wheel_news(&self) -> bool {
        self.id != 0 && self.dz != 0
    }

    fn packet(&mut self) {
        let part = |total: &mut i32, limit: i32| {
            let part = (*total).clamp(-limit, limit);
            *total -= part;
            part
        };
        let dx = part(&mut self.dx, 255);
        let dy = part(&mut self.dy, 255);
        let sign = |value: i32, bit: u8| if value < 0 { bit } else { 0 };
        self.queue
            .push(0x08 | self.buttons & 7 | sign(dx, 0x10) | sign(dy, 0x20));
        self.queue.extend([dx as u8, dy as u8]);
        let dz = part(&mut self.dz, 7);
        match self.id {
            3 => self.queue.push(dz as u8),
            4 => self
                .queue
                .push(dz as u8 & 0x0f | (self.buttons & 0x18) << 1),
            _ => (),
        }
        self.buttons_changed = false;
    }

    /// A byte from the guest.
    pub(super) fn write(&mut self, value: u8) {
        if self.wrap && !matches!(value, command::END_WRAP | command::RESET) {
            return self.reply(&[value]);
        }
        if let Some(command) = self.pending.take() {
            match (command, value) {
                (command::RESOLUTION, 0..=3) => self.resolution = value,
                (command::SAMPLE_RATE, _) => self.set_sample_rate(value),
                _ => return self.reply(&[RESEND]),
            }
            return self.reply(&[ACK]);
        }
        match value {
            command::SCALING_1_1 | command::SCALING_2_1 => {
                self.scaling_2_1 = value == command::SCALING_2_1;
            }
            command::RESOLUTION | command::SAMPLE_RATE => self.pending = Some(value),
            command::STATUS => {
                let status = u8::from(self.remote) << 6
                    | u8::from(self.enabled) << 5
                    | u8::from(self.scaling_2_1) << 4
                    | (self.buttons & 1) << 2
                    | (self.buttons & 4) >> 1
                    | (self.buttons & 2) >> 1;
                let bytes = [ACK, status, self.resolution, self.sample_rate];
                return self.reply(&bytes);
            }
            command::STREAM | command::REMOTE => self.remote = value == command::REMOTE,
            command::READ => {
                self.reply(&[ACK]);
                if self.queue.len() < REPORT_LIMIT {
                    self.packet();
                }
                return;
            }
            command::END_WRAP | command::WRAP => self.wrap = value == command::WRAP,
            command::IDENTIFY => {
                let id = self.id;
                return self.reply(&[ACK, id]);
            }
            command::ENABLE => self.enabled = true,
            command::DISABLE => self.enabled = false,
            command::DEFAULTS => self.defaults(),
            command::RESEND => {
                let last = self.last_sent;
                return self.reply(&[last]);
            }
            command::RESET => {
                self.defaults();
                self.id = 0;
                return self.reply(&[ACK, SELF_TEST_PASSED, 0]);
            }
            _ => return self.reply(&[RESEND]),
        }
        self.reply(&[ACK]);
    }

    fn set_sample_rate(&mut self, rate: u8) {
        self.sample_rate = rate;
        let [_, second, third] = self.recent_rates;
        self.recent_rates = [second, third, rate];
        match (self.recent_rates, self.id) {
            ([200, 100, 80], 0) => self.id = 3,
            ([200, 200, 80], 3) => self.id = 4,
            _ => (),
        }
    }

    fn defaults(&mut self) {
        let (id, last_sent) = (self.id, self.last_sent);
        *self = Self {
            id,
            last_sent,
            ..Self::new()
        };
    }

    fn reply(&mut self, bytes: &[u8]) {
        if self.queue.len() + bytes.len() <= QUEUE_LIMIT {
            self.queue.extend(bytes);
        }
    }

    pub(super) fn take(&mut self) -> Option<u8> {
        let byte = take(&mut self.queue, &mut self.last_sent);
        self.report();
        byte
    }
}
