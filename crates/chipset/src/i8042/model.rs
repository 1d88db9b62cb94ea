use bus::Action;

use super::keyboard::QUEUE_LIMIT;
use super::scancodes::{BREAK, translate};
use super::state::{KeyboardState, MouseState, Source, State};

/// Data port.
pub const DATA: u16 = 0x60;
/// Status when read, command when written.
pub const COMMAND: u16 = 0x64;
/// System control port A: fast A20 and INIT (ICH9 datasheet 13.7.3).
pub const PORT_92: u16 = 0x92;

mod status {
    pub const OUTPUT_FULL: u8 = 0x01;
    pub const SYSTEM: u8 = 0x04;
    pub const COMMAND: u8 = 0x08;
    pub const UNLOCKED: u8 = 0x10;
    pub const AUX: u8 = 0x20;
}

mod config {
    pub const KEYBOARD_INTERRUPT: u8 = 0x01;
    pub const AUX_INTERRUPT: u8 = 0x02;
    pub const SYSTEM: u8 = 0x04;
    pub const KEYBOARD_OFF: u8 = 0x10;
    pub const AUX_OFF: u8 = 0x20;
    pub const TRANSLATE: u8 = 0x40;
}

mod command {
    pub const WRITE_CELLS: u8 = 0x60;
    pub const WRITE_OUTPUT_PORT: u8 = 0xd1;
    pub const WRITE_KEYBOARD_OUTPUT: u8 = 0xd2;
    pub const WRITE_AUX_OUTPUT: u8 = 0xd3;
    pub const WRITE_AUX: u8 = 0xd4;
}

mod output_port {
    pub const NOT_RESET: u8 = 0x01;
    pub const A20: u8 = 0x02;
    pub const KEYBOARD_FULL: u8 = 0x10;
    pub const AUX_FULL: u8 = 0x20;
}

/// The 8042 keyboard controller with a keyboard and a mouse (IBM PS/2 Hardware Interface
/// Technical Reference).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model(State);

impl Default for Model {
    fn default() -> Self {
        Self::new()
    }
}

impl Model {
    /// As firmware leaves it, for kernels that boot without firmware: tested, with interrupts
    /// and translation on. Address line 20 is on.
    #[must_use]
    pub fn new() -> Self {
        Self(State {
            config: config::KEYBOARD_INTERRUPT
                | config::AUX_INTERRUPT
                | config::SYSTEM
                | config::TRANSLATE,
            cells: vec![0; 31],
            pending: None,
            last_was_command: false,
            a20: true,
            output: None,
            last_read: 0,
            replies: Vec::new(),
            translating_break: false,
            keyboard: KeyboardState::new(),
            mouse: MouseState::new(),
        })
    }

    /// A controller in `state`, which [`State::check`] has passed.
    #[must_use]
    pub fn from_state(state: State) -> Self {
        Self(state)
    }

    /// The state.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.0
    }

    /// The levels of IRQ 1 and IRQ 12.
    #[must_use]
    pub fn irqs(&self) -> (bool, bool) {
        let on = |bit| self.0.config & bit != 0;
        match self.0.output {
            Some((Source::Keyboard, _)) => (on(config::KEYBOARD_INTERRUPT), false),
            Some((Source::Aux, _)) => (false, on(config::AUX_INTERRUPT)),
            None => (false, false),
        }
    }

    /// Puts the next byte that waits into the output buffer, if that is empty. The owner looks at
    /// [`Model::irqs`] before and after, so that each byte makes an edge.
    pub fn load(&mut self) {
        if self.0.output.is_some() {
            return;
        }
        if !self.0.replies.is_empty() {
            self.0.output = Some(self.0.replies.remove(0));
            return;
        }
        if self.0.config & config::KEYBOARD_OFF == 0 {
            while let Some(byte) = self.0.keyboard.take() {
                if let Some(byte) = self.translated(byte) {
                    self.0.output = Some((Source::Keyboard, byte));
                    return;
                }
            }
        }
        if self.0.config & config::AUX_OFF == 0
            && let Some(byte) = self.0.mouse.take()
        {
            self.0.output = Some((Source::Aux, byte));
        }
    }

    /// A key goes down or up: its set 1 code, bit 7 for an extended key. Tells whether the guest
    /// will hear of it.
    pub fn key(&mut self, key: u8, down: bool) -> bool {
        self.0.keyboard.key(key, down)
    }

    /// The mouse moves right, up and its wheel towards the user, with `buttons` held (left,
    /// right, middle, fourth, fifth from bit 0). Tells whether the guest will hear of it.
    pub fn pointer(&mut self, dx: i32, dy: i32, dz: i32, buttons: u8) -> bool {
        self.0.mouse.move_by(dx, dy, dz, buttons)
    }

    /// Reads a port.
    pub fn read(&mut self, port: u16) -> u8 {
        match port {
            DATA => {
                if let Some((_, byte)) = self.0.output.take() {
                    self.0.last_read = byte;
                }
                self.0.last_read
            }
            COMMAND => self.status(),
            PORT_92 => u8::from(self.0.a20) << 1,
            _ => 0xff,
        }
    }

    /// Writes a port.
    pub fn write(&mut self, port: u16, value: u8) -> Action {
        match port {
            DATA => {
                self.0.last_was_command = false;
                self.data(value)
            }
            COMMAND => {
                self.0.last_was_command = true;
                self.0.pending = None;
                self.command(value)
            }
            PORT_92 => {
                self.0.a20 = value & 2 != 0;
                if value & 1 != 0 {
                    Action::Reset
                } else {
                    Action::None
                }
            }
            _ => Action::None,
        }
    }

    fn status(&self) -> u8 {
        let s = &self.0;
        let mut value = status::UNLOCKED;
        if s.config & config::SYSTEM != 0 {
            value |= status::SYSTEM;
        }
        if s.last_was_command {
            value |= status::COMMAND;
        }
        match s.output {
            Some((Source::Keyboard, _)) => value | status::OUTPUT_FULL,
            Some((Source::Aux, _)) => value | status::OUTPUT_FULL | status::AUX,
            None => value,
        }
    }

    fn reply(&mut self, source: Source, byte: u8) {
        if self.0.replies.len() < QUEUE_LIMIT {
            self.0.replies.push((source, byte));
        }
    }

    fn command(&mut self, value: u8) -> Action {
        let keyboard = Source::Keyboard;
        match value {
            0x20..=0x3f => {
                let byte = match usize::from(value & 0x1f).checked_sub(1) {
                    None => self.0.config,
                    Some(cell) => self.0.cells.get(cell).copied().unwrap_or(0),
                };
                self.reply(keyboard, byte);
            }
            0x60..=0x7f
            | command::WRITE_OUTPUT_PORT
            | command::WRITE_KEYBOARD_OUTPUT
            | command::WRITE_AUX_OUTPUT
            | command::WRITE_AUX => self.0.pending = Some(value),
            0xa7 => self.0.config |= config::AUX_OFF,
            0xa8 => self.0.config &= !config::AUX_OFF,
            // Interface tests: no error.
            0xa9 | 0xab => self.reply(keyboard, 0x00),
            0xaa => {
                self.0.config |= config::SYSTEM;
                self.reply(keyboard, 0x55);
            }
            0xad => self.0.config |= config::KEYBOARD_OFF,
            0xae => self.0.config &= !config::KEYBOARD_OFF,
            // Input port: not in manufacturing mode, keyboard unlocked.
            0xc0 => self.reply(keyboard, 0xa0),
            0xd0 => {
                let port = self.output_port();
                self.reply(keyboard, port);
            }
            0xdd => self.0.a20 = false,
            0xdf => self.0.a20 = true,
            // Pulse output lines low: line 0 is the processor's reset.
            0xf0..=0xff if value & output_port::NOT_RESET == 0 => return Action::Reset,
            _ => (),
        }
        Action::None
    }

    fn data(&mut self, value: u8) -> Action {
        match self.0.pending.take() {
            None => {
                // Talking to the keyboard switches it on.
                self.0.config &= !config::KEYBOARD_OFF;
                self.0.keyboard.write(value);
            }
            Some(command::WRITE_CELLS) => self.0.config = value,
            Some(cell @ 0x61..=0x7f) => {
                if let Some(cell) = self.0.cells.get_mut(usize::from(cell - 0x61)) {
                    *cell = value;
                }
            }
            Some(command::WRITE_OUTPUT_PORT) => {
                self.0.a20 = value & output_port::A20 != 0;
                if value & output_port::NOT_RESET == 0 {
                    return Action::Reset;
                }
            }
            Some(command::WRITE_KEYBOARD_OUTPUT) => self.reply(Source::Keyboard, value),
            Some(command::WRITE_AUX_OUTPUT) => self.reply(Source::Aux, value),
            Some(_) => {
                self.0.config &= !config::AUX_OFF;
                self.0.mouse.write(value);
            }
        }
        Action::None
    }

    fn output_port(&self) -> u8 {
        let full = match self.0.output {
            Some((Source::Keyboard, _)) => output_port::KEYBOARD_FULL,
            Some((Source::Aux, _)) => output_port::AUX_FULL,
            None => 0,
        };
        let a20 = if self.0.a20 { output_port::A20 } else { 0 };
        0xc0 | output_port::NOT_RESET | a20 | full
    }

    /// A byte of the keyboard as the guest gets it; the break prefix becomes part of the next.
    fn translated(&mut self, byte: u8) -> Option<u8> {
        if self.0.config & config::TRANSLATE == 0 {
            self.0.translating_break = false;
            return Some(byte);
        }
        if byte == BREAK {
            self.0.translating_break = true;
            return None;
        }
        let released = std::mem::take(&mut self.0.translating_break);
        Some(translate(byte) | if released { 0x80 } else { 0 })
    }
}
