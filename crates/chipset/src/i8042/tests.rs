use bus::testing::RecordingSink;
use proptest::prelude::*;

use super::*;

struct Bench {
    i8042: Arc<I8042>,
    sink: Arc<RecordingSink>,
}

impl Bench {
    fn new() -> Self {
        let sink = Arc::new(RecordingSink::default());
        let line = |pin| IrqLine::new(sink.clone(), pin);
        let i8042 = I8042::new(line(1), line(12));
        Self { i8042, sink }
    }

    fn status(&self) -> u8 {
        self.i8042.read_port(COMMAND)
    }

    /// Reads all that waits; each byte with whether it is the mouse's.
    fn drain(&self) -> Vec<(bool, u8)> {
        let mut bytes = Vec::new();
        loop {
            let status = self.status();
            if status & 1 == 0 {
                return bytes;
            }
            bytes.push((status & 0x20 != 0, self.i8042.read_port(DATA)));
        }
    }

    fn keyboard(&self, bytes: &[u8]) -> Vec<u8> {
        for byte in bytes {
            assert_eq!(self.i8042.write_port(DATA, *byte), Action::None);
        }
        self.bytes(false)
    }

    fn mouse(&self, bytes: &[u8]) -> Vec<u8> {
        for byte in bytes {
            self.command(0xd4);
            assert_eq!(self.i8042.write_port(DATA, *byte), Action::None);
        }
        self.bytes(true)
    }

    fn bytes(&self, mouse: bool) -> Vec<u8> {
        let bytes = self.drain();
        assert!(bytes.iter().all(|b| b.0 == mouse));
        bytes.iter().map(|b| b.1).collect()
    }

    fn command(&self, command: u8) {
        assert_eq!(self.i8042.write_port(COMMAND, command), Action::None);
    }

    fn set_config(&self, config: u8) {
        self.command(0x60);
        _ = self.i8042.write_port(DATA, config);
    }
}

#[test]
fn the_controller_as_linux_probes_it() {
    let b = Bench::new();
    b.command(0x20);
    assert_eq!(b.drain(), [(false, 0x47)]);
    b.set_config(0x74);
    b.command(0x20);
    assert_eq!(b.drain(), [(false, 0x74)]);
    b.command(0xaa);
    assert_eq!(b.drain(), [(false, 0x55)]);
    // AUX loop.
    b.command(0xd3);
    _ = b.i8042.write_port(DATA, 0x5a);
    assert_eq!(b.drain(), [(true, 0x5a)]);
    b.command(0xa8);
    b.command(0x20);
    assert_eq!(b.drain(), [(false, 0x54)]);
    b.command(0xa9);
    b.command(0xab);
    assert_eq!(b.drain(), [(false, 0), (false, 0)]);
    b.command(0x65);
    assert_eq!(b.status() & 0x08, 0x08);
    _ = b.i8042.write_port(DATA, 0x99);
    assert_eq!(b.status() & 0x08, 0);
    b.command(0x25);
    assert_eq!(b.drain(), [(false, 0x99)]);
}

#[test]
fn every_way_to_reset_and_a20() {
    let b = Bench::new();
    assert_eq!(b.i8042.write_port(COMMAND, 0xfe), Action::Reset);
    assert_eq!(b.i8042.write_port(PORT_92, 0x01), Action::Reset);
    b.command(0xd1);
    assert_eq!(b.i8042.write_port(DATA, 0x02), Action::Reset);
    b.command(0xff);
    b.command(0xdd);
    assert_eq!(b.i8042.read_port(PORT_92), 0);
    b.command(0xd0);
    assert_eq!(b.drain(), [(false, 0xc1)]);
    assert_eq!(b.i8042.write_port(PORT_92, 0x02), Action::None);
    b.command(0xd0);
    assert_eq!(b.drain(), [(false, 0xc3)]);
}

#[test]
fn keyboard_commands() {
    let b = Bench::new();
    b.set_config(0x05);
    assert_eq!(b.keyboard(&[0xff]), [0xfa, 0xaa]);
    assert_eq!(b.keyboard(&[0xf2]), [0xfa, 0xab, 0x83]);
    assert_eq!(b.keyboard(&[0xed, 0x05]), [0xfa, 0xfa]);
    assert_eq!(b.i8042.leds(), 5);
    assert_eq!(b.keyboard(&[0xf0, 0x00]), [0xfa, 0xfa, 2]);
    assert_eq!(b.keyboard(&[0xf0, 0x03]), [0xfa, 0xfe]);
    assert_eq!(b.keyboard(&[0xee]), [0xee]);
    assert_eq!(b.keyboard(&[0xfe]), [0xee]);
    assert_eq!(b.keyboard(&[0x00]), [0xfe]);
    assert_eq!(b.keyboard(&[0xf5]), [0xfa]);
    assert!(!b.i8042.key(0x1e, true));
    assert_eq!(b.keyboard(&[0xf4]), [0xfa]);
    assert!(b.i8042.key(0x1e, true));
    assert_eq!(b.drain(), [(false, 0x1c)]);
}

#[test]
fn keys_in_each_set_and_translated() {
    let b = Bench::new();
    // (key, down), translated set 1, plain set 2.
    let keys: [(u8, bool, &[u8], &[u8]); 6] = [
        (0x41, true, &[0x41], &[0x83]),
        (0x1e, true, &[0x1e], &[0x1c]),
        (0x1e, false, &[0x9e], &[0xf0, 0x1c]),
        (0xc8, true, &[0xe0, 0x48], &[0xe0, 0x75]),
        (0xc8, false, &[0xe0, 0xc8], &[0xe0, 0xf0, 0x75]),
        (
            0xc6,
            true,
            &[0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5],
            &[0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77],
        ),
    ];
    for (key, down, set_1, _) in keys {
        assert!(b.i8042.key(key, down));
        assert_eq!(b.bytes(false), set_1);
    }
    b.set_config(0x05);
    for (key, down, _, set_2) in keys {
        assert!(b.i8042.key(key, down));
        assert_eq!(b.bytes(false), set_2);
    }
    assert_eq!(b.keyboard(&[0xf0, 0x01]), [0xfa, 0xfa]);
    for (key, down, set_1, _) in keys {
        assert!(b.i8042.key(key, down));
        assert_eq!(b.bytes(false), set_1);
    }
    assert!(!b.i8042.key(0, true));
}

#[test]
fn each_byte_makes_an_edge() {
    let b = Bench::new();
    b.i8042.key(0xc8, true);
    assert_eq!(b.sink.edges(1), 1);
    assert_eq!(b.i8042.read_port(DATA), 0xe0);
    assert_eq!(b.sink.edges(1), 2);
    assert_eq!(b.i8042.read_port(DATA), 0x48);
    assert!(!b.sink.level(1));
    assert_eq!(b.i8042.read_port(DATA), 0x48);
    b.mouse(&[0xf4]);
    b.i8042.pointer(1, 0, 0, 0);
    assert!(b.sink.level(12) && !b.sink.level(1));
    b.drain();
    assert_eq!(b.sink.edges(12), 4);
    // Interface off: the byte waits.
    b.command(0xad);
    assert!(b.i8042.key(0x1e, true));
    assert_eq!(b.status() & 1, 0);
    b.command(0xae);
    assert_eq!(b.drain(), [(false, 0x1e)]);
}

#[test]
fn an_unread_keyboard_drops_whole_keys() {
    let b = Bench::new();
    let mut heard = 0;
    while b.i8042.key(0xc8, heard % 2 == 0) {
        heard += 1;
        assert!(heard < 100);
    }
    let bytes = b.bytes(false);
    assert_eq!(bytes.len(), 2 * heard);
    assert!(bytes.chunks(2).all(|c| c[0] == 0xe0));
    assert!(b.i8042.key(0x1e, true));
}

#[test]
fn the_mouse_and_its_wheel() {
    let b = Bench::new();
    assert_eq!(b.mouse(&[0xff]), [0xfa, 0xaa, 0x00]);
    assert!(!b.i8042.pointer(1, 1, 0, 0));
    assert_eq!(b.mouse(&[0xf4]), [0xfa]);
    assert!(b.i8042.pointer(3, -2, 0, 1));
    assert_eq!(b.bytes(true), [0x29, 3, 0xfe]);
    b.mouse(&[0xf3, 200, 0xf3, 100, 0xf3, 80]);
    assert_eq!(b.mouse(&[0xf2]), [0xfa, 3]);
    b.i8042.pointer(0, 0, -1, 1);
    assert_eq!(b.bytes(true), [0x09, 0, 0, 0xff]);
    b.mouse(&[0xf3, 200, 0xf3, 200, 0xf3, 80]);
    assert_eq!(b.mouse(&[0xf2]), [0xfa, 4]);
    b.i8042.pointer(300, 0, 0, 0x10);
    assert_eq!(b.bytes(true), [0x08, 255, 0, 0x20, 0x08, 45, 0, 0x20]);
    assert_eq!(b.mouse(&[0xe9]), [0xfa, 0x20, 2, 80]);
    assert_eq!(b.mouse(&[0xe8, 3, 0xe7]), [0xfa; 3]);
    assert_eq!(b.mouse(&[0xe9]), [0xfa, 0x30, 3, 80]);
    assert_eq!(b.mouse(&[0xee]), [0xfa]);
    assert_eq!(b.mouse(&[0x12]), [0x12]);
    assert_eq!(b.mouse(&[0xec, 0xf0]), [0xfa; 2]);
    b.i8042.pointer(5, 5, 0, 0);
    assert!(b.drain().is_empty());
    assert_eq!(b.mouse(&[0xeb]), [0xfa, 0x08, 5, 5, 0]);
}

#[test]
fn impossible_states_are_refused() {
    let b = Bench::new();
    for spoil in [
        (|s| s.cells.clear()) as fn(&mut State),
        |s| s.keyboard.queue = vec![0; 65],
        |s| s.keyboard.scan_set = 3,
        |s| s.mouse.id = 1,
    ] {
        let mut state = Model::new().state().clone();
        spoil(&mut state);
        let payload = Payload::encode(KIND, VERSION, &state).unwrap();
        assert!(b.i8042.restore(payload).is_err());
    }
}

proptest! {
    #[test]
    fn random_accesses_leave_a_state_that_round_trips(
        ops in prop::collection::vec((0u8..8, any::<u8>(), any::<i32>()), 0..300),
    ) {
        let b = Bench::new();
        for (op, value, distance) in ops {
            match op {
                0 => _ = b.i8042.read_port(DATA),
                1 => _ = b.i8042.write_port(DATA, value),
                2 => _ = b.i8042.write_port(COMMAND, value),
                3 => {
                    b.command(0xd4);
                    _ = b.i8042.write_port(DATA, value);
                }
                4 => _ = b.i8042.key(value, distance > 0),
                5 => _ = b.i8042.pointer(distance, -(distance >> 1), distance >> 24, value),
                6 => _ = b.i8042.write_port(PORT_92, value),
                _ => _ = b.status(),
            }
            prop_assert!(lock(&b.i8042.model).state().check().is_ok());
        }
        let saved = b.i8042.save().unwrap();
        let other = Bench::new();
        other.i8042.restore(saved.clone()).unwrap();
        prop_assert_eq!(other.i8042.save().unwrap(), saved);
        for pin in [1, 12] {
            prop_assert_eq!(other.sink.level(pin), b.sink.level(pin));
        }
    }
}
