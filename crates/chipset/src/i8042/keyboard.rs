use super::scancodes::sequence;
use super::state::KeyboardState;

/// Bytes that a device may have waiting; further events are dropped.
pub(super) const QUEUE_LIMIT: usize = 64;
/// Bytes that events may take of it; the rest is for answers to commands.
const EVENT_LIMIT: usize = 48;

pub(super) const ACK: u8 = 0xfa;
pub(super) const RESEND: u8 = 0xfe;
pub(super) const SELF_TEST_PASSED: u8 = 0xaa;

/// Commands to the keyboard.
mod command {
    pub const SET_LEDS: u8 = 0xed;
    pub const ECHO: u8 = 0xee;
    pub const SCAN_SET: u8 = 0xf0;
    pub const IDENTIFY: u8 = 0xf2;
    pub const TYPEMATIC: u8 = 0xf3;
    pub const ENABLE: u8 = 0xf4;
    pub const DISABLE: u8 = 0xf5;
    pub const DEFAULTS: u8 = 0xf6;
    pub const RESEND: u8 = 0xfe;
    pub const RESET: u8 = 0xff;
}

impl KeyboardState {
    pub(super) fn new() -> Self {
        Self {
            enabled: true,
            scan_set: 2,
            leds: 0,
            typematic: 0x2b,
            pending: None,
            queue: Vec::new(),
            last_sent: 0,
        }
    }

    /// A key goes down or up; tells whether the guest will hear of it.
    pub(super) fn key(&mut self, key: u8, down: bool) -> bool {
        let Some(bytes) = sequence(self.scan_set, key, down).filter(|_| self.enabled) else {
            return false;
        };
        let fits = self.queue.len() + bytes.len() <= EVENT_LIMIT;
        if fits {
            self.queue.extend(bytes);
        }
        fits
    }

    /// A byte from the guest.
    pub(super) fn write(&mut self, value: u8) {
        if let Some(command) = self.pending.take() {
            match (command, value) {
                (command::SET_LEDS, 0..=7) => self.leds = value,
                (command::TYPEMATIC, 0..=0x7f) => self.typematic = value,
                (command::SCAN_SET, 0) => {
                    let set = self.scan_set;
                    return self.reply(&[ACK, set]);
                }
                (command::SCAN_SET, 1 | 2) => self.scan_set = value,
                _ => return self.reply(&[RESEND]),
            }
            return self.reply(&[ACK]);
        }
        match value {
            command::SET_LEDS | command::SCAN_SET | command::TYPEMATIC => {
                self.pending = Some(value);
                self.reply(&[ACK]);
            }
            command::ECHO => self.reply(&[command::ECHO]),
            command::IDENTIFY => self.reply(&[ACK, 0xab, 0x83]),
            command::ENABLE => {
                self.enabled = true;
                self.reply(&[ACK]);
            }
            command::DISABLE | command::DEFAULTS => {
                self.defaults();
                self.enabled = value == command::DEFAULTS;
                self.reply(&[ACK]);
            }
            command::RESEND => {
                let last = self.last_sent;
                self.reply(&[last]);
            }
            command::RESET => {
                self.defaults();
                self.leds = 0;
                self.enabled = true;
                self.reply(&[ACK, SELF_TEST_PASSED]);
            }
            _ => self.reply(&[RESEND]),
        }
    }

    fn defaults(&mut self) {
        self.queue.clear();
        self.scan_set = 2;
        self.typematic = 0x2b;
    }

    fn reply(&mut self, bytes: &[u8]) {
        if self.queue.len() + bytes.len() <= QUEUE_LIMIT {
            self.queue.extend(bytes);
        }
    }

    pub(super) fn take(&mut self) -> Option<u8> {
        take(&mut self.queue, &mut self.last_sent)
    }
}

pub(super) fn take(queue: &mut Vec<u8>, last_sent: &mut u8) -> Option<u8> {
    if queue.is_empty() {
        return None;
    }
    *last_sent = queue.remove(0);
    Some(*last_sent)
}
