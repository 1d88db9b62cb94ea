use serde::{Deserialize, Serialize};
use state::StateError;

use super::keyboard::QUEUE_LIMIT;

/// Kind of the payload.
pub const KIND: &str = "i8042";
/// Version of the payload.
pub const VERSION: u32 = 1;

/// Whose byte is in the output buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// The controller or the keyboard.
    Keyboard,
    /// The auxiliary device: the mouse.
    Aux,
}

/// The controller, its two devices and port 0x92.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Command byte, cell 0 of the controller's memory.
    pub config: u8,
    /// The other 31 cells.
    pub cells: Vec<u8>,
    /// Command that waits for its byte at port 0x60.
    pub pending: Option<u8>,
    /// The last write was a command.
    pub last_was_command: bool,
    /// Address line 20 is enabled.
    pub a20: bool,
    /// Output buffer.
    pub output: Option<(Source, u8)>,
    /// What was read last; reads of the empty buffer repeat it.
    pub last_read: u8,
    /// Bytes of the controller that wait for the output buffer.
    pub replies: Vec<(Source, u8)>,
    /// The scan code being translated was preceded by the break prefix.
    pub translating_break: bool,
    /// The keyboard.
    pub keyboard: KeyboardState,
    /// The mouse.
    pub mouse: MouseState,
}

/// A PS/2 keyboard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyboardState {
    /// Keys are reported.
    pub enabled: bool,
    /// Scan code set, 1 or 2.
    pub scan_set: u8,
    /// Scroll, num and caps lock lights, from bit 0.
    pub leds: u8,
    /// Typematic rate and delay as written; the host repeats keys.
    pub typematic: u8,
    /// Command that waits for its byte.
    pub pending: Option<u8>,
    /// Bytes to send.
    pub queue: Vec<u8>,
    /// Last byte sent, for the resend command.
    pub last_sent: u8,
}

/// A PS/2 mouse with a wheel (IntelliMouse) and up to five buttons.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MouseState {
    /// Movements are reported in stream mode.
    pub enabled: bool,
    /// Reports only on demand.
    pub remote: bool,
    /// Echoes what it gets.
    pub wrap: bool,
    /// Reports movements 2:1.
    pub scaling_2_1: bool,
    /// Resolution, 0 to 3: 1, 2, 4 or 8 counts per millimetre.
    pub resolution: u8,
    /// Samples per second.
    pub sample_rate: u8,
    /// The last three sample rates, which unlock wheel and buttons.
    pub recent_rates: [u8; 3],
    /// 0 plain, 3 with a wheel, 4 with five buttons.
    pub id: u8,
    /// Command that waits for its byte.
    pub pending: Option<u8>,
    /// Bytes to send.
    pub queue: Vec<u8>,
    /// Last byte sent.
    pub last_sent: u8,
    /// Movement to the right not reported yet.
    pub dx: i32,
    /// Movement upwards not reported yet.
    pub dy: i32,
    /// Wheel movement towards the user not reported yet.
    pub dz: i32,
    /// Left, right, middle, fourth and fifth button, from bit 0.
    pub buttons: u8,
    /// The buttons changed and no report has told so.
    pub buttons_changed: bool,
}

impl State {
    /// Checks what no controller could hold.
    ///
    /// # Errors
    /// [`StateError::Invalid`] names the value.
    pub fn check(&self) -> Result<(), StateError> {
        let invalid = |why| Err(StateError::Invalid { kind: KIND, why });
        if self.cells.len() != 31 {
            return invalid(format!("{} cells of 31", self.cells.len()));
        }
        for (name, len) in [
            ("controller", self.replies.len()),
            ("keyboard", self.keyboard.queue.len()),
            ("mouse", self.mouse.queue.len()),
        ] {
            if len > QUEUE_LIMIT {
                return invalid(format!("{len} bytes in the {name} queue"));
            }
        }
        if !(1..=2).contains(&self.keyboard.scan_set) {
            return invalid(format!("scan code set {}", self.keyboard.scan_set));
        }
        if ![0, 3, 4].contains(&self.mouse.id) {
            return invalid(format!("mouse id {}", self.mouse.id));
        }
        Ok(())
    }
}
