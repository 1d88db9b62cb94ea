use bus::testing::RecordingSink;
use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Line {
    out: Vec<u8>,
    room: usize,
    spaces: u32,
}

struct End(Arc<Mutex<Line>>);

impl SerialOutput for End {
    fn write(&mut self, bytes: &[u8]) -> usize {
        let mut line = lock(&self.0);
        let count = bytes.len().min(line.room);
        line.room -= count;
        line.out.extend(&bytes[..count]);
        count
    }

    fn space(&mut self) {
        lock(&self.0).spaces += 1;
    }
}

struct Bench {
    uart: Arc<Uart>,
    line: Arc<Mutex<Line>>,
    sink: Arc<RecordingSink>,
}

impl Bench {
    fn new(room: usize) -> Self {
        let line = Arc::new(Mutex::new(Line {
            room,
            ..Line::default()
        }));
        let sink = Arc::new(RecordingSink::default());
        let irq = IrqLine::new(sink.clone(), 4);
        let uart = Uart::new(COM_PORTS[0], irq, Box::new(End(line.clone())));
        Self { uart, line, sink }
    }

    fn read(&self, offset: u16) -> u8 {
        self.uart.read_port(COM_PORTS[0] + offset)
    }

    fn write(&self, offset: u16, value: u8) {
        assert_eq!(
            self.uart.write_port(COM_PORTS[0] + offset, value),
            Action::None
        );
    }

    fn irq(&self) -> bool {
        self.sink.level(4)
    }
}

#[test]
fn bytes_go_out_and_the_empty_transmitter_interrupts() {
    let b = Bench::new(100);
    b.write(1, 0x02);
    assert!(b.irq());
    assert_eq!(b.read(2), 0x02);
    assert!(!b.irq());
    assert_eq!(b.read(2), 0x01);
    b.write(0, b'A');
    assert_eq!(lock(&b.line).out, b"A");
    assert!(b.irq());
    assert_eq!(b.read(5), 0x60);
}

#[test]
fn a_slow_other_side_keeps_the_transmitter_busy_and_loses_nothing() {
    let b = Bench::new(3);
    b.write(2, 0x01);
    b.write(1, 0x02);
    b.read(2);
    for byte in 0..10 {
        b.write(0, byte);
    }
    assert_eq!(b.read(5) & 0x60, 0);
    assert!(!b.irq());
    lock(&b.line).room = 100;
    // A FIFO reset does not lose what is on its way.
    b.write(2, 0x07);
    b.uart.resume_output();
    assert_eq!(lock(&b.line).out, (0..10).collect::<Vec<u8>>());
    assert_eq!(b.read(5) & 0x60, 0x60);
    assert!(b.irq());
}

#[test]
fn received_bytes_interrupt_at_the_trigger_or_by_timeout() {
    let b = Bench::new(0);
    b.write(2, 0x81);
    b.write(1, 0x01);
    assert_eq!(b.uart.receive(&[1, 2, 3]), 3);
    assert_eq!(b.read(2), 0xcc);
    assert_eq!(b.uart.receive(&[4, 5, 6, 7, 8]), 5);
    assert_eq!(b.read(2), 0xc4);
    assert_eq!(b.read(5) & 1, 1);
    for expected in 1..=8 {
        assert!(b.irq());
        assert_eq!(b.read(0), expected);
    }
    assert!(!b.irq());
    assert_eq!(b.read(5) & 1, 0);
    assert_eq!(b.read(2), 0xc1);
}

#[test]
fn the_receiver_tells_when_it_has_room_again() {
    let b = Bench::new(0);
    assert_eq!(b.uart.receive(b"xy"), 1);
    assert_eq!(lock(&b.line).spaces, 0);
    b.read(0);
    assert_eq!(lock(&b.line).spaces, 1);
    b.write(2, 1);
    assert_eq!(b.uart.receive(&[7; 20]), 16);
    b.read(0);
    b.read(0);
    assert_eq!(lock(&b.line).spaces, 2);
    // What fits needs no word.
    assert_eq!(b.uart.receive(&[1, 2]), 2);
    b.read(0);
    assert_eq!(lock(&b.line).spaces, 2);
    assert_eq!(b.uart.receive(&[1, 2]), 1);
    b.write(2, 3);
    assert_eq!(lock(&b.line).spaces, 3);
}

#[test]
fn loopback_as_drivers_probe_it() {
    let b = Bench::new(100);
    b.write(4, 0x1f);
    assert_eq!(b.read(6) & 0xf0, 0xf0);
    b.write(4, 0x1a);
    assert_eq!(b.read(6), 0x90 | 0x04 | 0x02);
    b.write(0, 0xae);
    assert_eq!(b.read(0), 0xae);
    assert_eq!(b.uart.receive(b"x"), 0);
    assert!(lock(&b.line).out.is_empty());
    b.write(0, 1);
    b.write(0, 2);
    assert_eq!(b.read(5) & 0x02, 0x02);
    assert_eq!(b.read(5) & 0x02, 0);
    b.write(4, 0x0b);
    assert_eq!(b.read(6) & 0xf0, 0xb0);
}

#[test]
fn scratch_divisor_and_out2() {
    let b = Bench::new(1);
    b.write(7, 0x5a);
    assert_eq!(b.read(7), 0x5a);
    b.write(3, 0x83);
    b.write(0, 0x34);
    b.write(1, 0x12);
    assert_eq!((b.read(0), b.read(1)), (0x34, 0x12));
    b.write(3, 0x03);
    b.write(4, 0x00);
    b.write(1, 0x02);
    assert!(!b.irq());
    b.write(4, 0x08);
    assert!(b.irq());
    b.write(1, 0xff);
    assert_eq!(b.read(1), 0x0f);
}

#[test]
fn a_break_is_a_line_error() {
    let b = Bench::new(0);
    b.write(1, 0x05);
    b.uart.receive_break();
    assert_eq!(b.read(2), 0x06);
    assert_eq!(b.read(5) & 0x11, 0x11);
    assert_eq!(b.read(2), 0x04);
    assert_eq!(b.read(0), 0);
}

#[test]
fn an_overfull_state_is_refused() {
    let b = Bench::new(0);
    let state = State {
        rx: vec![0; 17],
        ..State::default()
    };
    let payload = Payload::encode(KIND, VERSION, &state).unwrap();
    assert!(b.uart.restore(payload).is_err());
}

proptest! {
    #[test]
    fn random_accesses_leave_a_state_that_round_trips(
        ops in prop::collection::vec((0u8..4, 0u16..8, any::<u8>()), 0..200),
    ) {
        let b = Bench::new(0);
        for (op, offset, value) in ops {
            match op {
                0 => _ = b.read(offset),
                1 => b.write(offset, value),
                2 => _ = b.uart.receive(&vec![value; usize::from(value & 31)]),
                _ => {
                    lock(&b.line).room = usize::from(offset);
                    b.uart.resume_output();
                }
            }
            prop_assert!(lock(&b.uart.inner).model.state().check().is_ok());
        }
        let saved = b.uart.save().unwrap();
        let other = Bench::new(0);
        other.uart.restore(saved.clone()).unwrap();
        prop_assert_eq!(other.uart.save().unwrap(), saved);
        prop_assert_eq!(other.irq(), b.irq());
        for offset in 0..8 {
            prop_assert_eq!(other.read(offset), b.read(offset));
        }
    }
}
