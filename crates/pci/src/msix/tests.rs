use super::*;
use bus::MsiError;
use bus::testing::{CountingInterrupt, RecordingHost};

const LAYOUT: MsixLayout = MsixLayout {
    vectors: 70,
    bar: 1,
    table: 0x1000,
    pba: 0x3000,
};

fn connected() -> (Arc<RecordingHost>, Arc<Msix>) {
    let host = Arc::new(RecordingHost::default());
    let msix = Msix::new(LAYOUT);
    msix.connect(Some(Arc::clone(&host) as Arc<dyn MsiHost>));
    (host, msix)
}

fn table(vector: u64) -> u64 {
    0x1000 + 16 * vector
}

fn program(msix: &Msix, vector: u64, data: u32, masked: bool) {
    assert!(msix.bar_write(1, table(vector), &0xfee0_1000_u64.to_le_bytes()));
    assert!(msix.bar_write(1, table(vector) + 8, &data.to_le_bytes()));
    assert!(msix.bar_write(1, table(vector) + 12, &u32::from(masked).to_le_bytes()));
}

fn data_of(host: &RecordingHost) -> Vec<u32> {
    host.take_sent().iter().map(|m| m.data).collect()
}

fn pending(msix: &Msix) -> [u64; 2] {
    [0x3000, 0x3008].map(|at| {
        let mut bits = [0; 8];
        assert!(msix.bar_read(1, at, &mut bits));
        u64::from_le_bytes(bits)
    })
}

#[test]
fn a_live_vector_sends_its_message() {
    let (host, msix) = connected();
    program(&msix, 3, 0x41, false);
    msix.set_control(true, false);
    assert!(msix.trigger(3));
    let message = MsiMessage {
        address: 0xfee0_1000,
        data: 0x41,
    };
    assert_eq!(host.take_sent(), [message]);
    assert!(!msix.trigger(70), "there is no such vector");
}

#[test]
fn a_masked_vector_waits_until_it_is_unmasked() {
    let (host, msix) = connected();
    program(&msix, 2, 0x42, true);
    program(&msix, 69, 0x69, false);
    msix.set_control(true, true);
    msix.trigger(2);
    msix.trigger(2);
    msix.trigger(69);
    assert_eq!(pending(&msix), [1 << 2, 1 << 5]);
    assert!(data_of(&host).is_empty());

    msix.set_control(true, false);
    assert_eq!(data_of(&host), [0x69]);
    assert_eq!(pending(&msix), [1 << 2, 0]);
    program(&msix, 2, 0x43, false);
    assert_eq!(data_of(&host), [0x43], "once, with the newest message");
    assert_eq!(pending(&msix), [0, 0]);
}

#[test]
fn masked_again_nothing_slips_through_the_route() {
    let (host, msix) = connected();
    program(&msix, 0, 0x40, false);
    msix.set_control(true, false);
    msix.trigger(0);
    program(&msix, 0, 0x50, true);
    let _ = host.take_sent();
    msix.trigger(0);
    assert!(data_of(&host).is_empty());
    program(&msix, 0, 0x50, false);
    assert_eq!(data_of(&host), [0x50]);
}

#[test]
fn without_msix_the_fallback_is_raised() {
    let (host, msix) = connected();
    let (counter, fallback) = CountingInterrupt::pair();
    let interrupt = msix.interrupt(1, Some(fallback.clone()));
    let no_vector = msix.interrupt(0xffff, Some(fallback));
    interrupt.trigger();
    no_vector.trigger();
    assert_eq!(counter.count(), 2);
    program(&msix, 1, 0x44, false);
    msix.set_control(true, false);
    interrupt.trigger();
    no_vector.trigger();
    assert_eq!(counter.count(), 2);
    assert_eq!(data_of(&host), [0x44]);
}

#[test]
fn the_table_takes_accesses_of_any_width() {
    let msix = Msix::new(LAYOUT);
    let bytes: [u8; 16] = std::array::from_fn(|i| 0x10 + i as u8);
    for (i, byte) in bytes.iter().enumerate() {
        assert!(msix.bar_write(1, table(5) + i as u64, &[*byte]));
    }
    let mut read = [0; 16];
    assert!(msix.bar_read(1, table(5), &mut read));
    // Address bits 1:0 are zero, of Vector Control only the mask bit is there.
    assert_eq!(read[..12], bytes[..12]);
    assert_eq!(read[12..], [0; 4]);
    let mut middle = [0; 4];
    assert!(msix.bar_read(1, table(5) + 6, &mut middle));
    assert_eq!(middle, [0x16, 0x17, 0x18, 0x19]);

    let mut end = [0xaa; 8];
    assert!(msix.bar_read(1, table(69) + 12, &mut end));
    assert_eq!(end, [1, 0, 0, 0, 0, 0, 0, 0], "past the table are zeros");
    assert!(!msix.bar_read(1, table(70), &mut end));
    assert!(!msix.bar_read(0, table(0), &mut end));
    assert!(!msix.bar_write(1, 0xfff, &[0]));
    assert!(msix.bar_write(1, 0x3000, &[0xff]));
    assert_eq!(pending(&msix), [0, 0]);
}

/// A host that has `routes` routes left and sends single messages all the same.
struct Scarce {
    routes: Mutex<u32>,
    rest: RecordingHost,
}

impl MsiHost for Scarce {
    fn send(&self, message: MsiMessage) -> Result<(), MsiError> {
        self.rest.send(message)
    }

    fn open_route(&self) -> Result<Arc<dyn MsiRoute>, MsiError> {
        let mut routes = self.routes.lock().unwrap();
        *routes = routes.checked_sub(1).ok_or(MsiError::NoRoutes(0))?;
        self.rest.open_route()
    }
}

#[test]
fn routes_are_opened_when_needed_and_done_without_when_there_is_none() {
    let host = Arc::new(Scarce {
        routes: Mutex::new(1),
        rest: RecordingHost::default(),
    });
    let msix = Msix::new(LAYOUT);
    msix.connect(Some(Arc::clone(&host) as Arc<dyn MsiHost>));
    program(&msix, 0, 0x40, true);
    msix.set_control(true, false);
    assert_eq!(*host.routes.lock().unwrap(), 1);
    program(&msix, 0, 0x40, false);
    assert_eq!(*host.routes.lock().unwrap(), 0);
    program(&msix, 1, 0x41, false);
    msix.trigger(1);
    msix.trigger(0);
    assert_eq!(data_of(&host.rest), [0x41, 0x40]);
}

#[test]
fn pending_vectors_are_sent_after_restore() {
    let (_, msix) = connected();
    program(&msix, 7, 0x47, true);
    msix.set_control(true, false);
    msix.trigger(7);
    let state = msix.save();

    let (host, other) = connected();
    other.restore("test", &state).unwrap();
    other.set_control(true, false);
    assert_eq!(other.save(), state);
    assert!(data_of(&host).is_empty());
    program(&other, 7, 0x47, false);
    assert_eq!(data_of(&host), [0x47]);

    let mut short = state;
    short.vectors.pop();
    assert!(other.restore("test", &short).is_err());
}

#[test]
fn a_disconnected_vector_goes_nowhere_and_comes_back() {
    let (host, msix) = connected();
    program(&msix, 0, 0x40, false);
    msix.set_control(true, false);
    msix.connect(None);
    msix.trigger(0);
    assert!(data_of(&host).is_empty());
    msix.connect(Some(Arc::clone(&host) as Arc<dyn MsiHost>));
    msix.trigger(0);
    assert_eq!(data_of(&host), [0x40]);
}
