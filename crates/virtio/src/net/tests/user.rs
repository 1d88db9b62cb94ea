//! The card on a real network: user mode. Needs libslirp.so.0.

use super::*;

#[test]
fn guest_finds_its_router() {
    let spec = NetSpec::parse("user,restrict=on").unwrap();
    let backend = spec.open().expect("apt install libslirp0");
    let net = Net::new(&spec, backend, vec![thread(0)], Mac(MAC)).unwrap();
    let ring = RING_PACKED | RING_EVENT_IDX;
    let mut harness = DeviceHarness::new(net, &Guest::new(16 << 20), ring);
    let mut tx = harness.start(1);
    let mut rx = Receiver::new(harness.start(0), 8, 1600);
    let mut request = [&[0xff; 6][..], &MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &MAC].concat();
    request.extend([10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
    tx.driver.send(&[&header(0), &request], &[]);
    tx.kick();
    let (_, reply) = rx.frame();
    assert_eq!(reply[..6], MAC);
    assert_eq!(reply[20..22], [0, 2]);
    assert_eq!(reply[28..32], [10, 0, 2, 2]);
    // The network outlives the device's reset.
    harness.stop(tx);
    harness.stop(rx.queue);
    harness.device.reset();
    let mut harness = DeviceHarness::new(harness.device, &harness.guest, ring);
    let mut tx = harness.start(1);
    let mut rx = Receiver::new(harness.start(0), 8, 1600);
    tx.driver.send(&[&header(0), &request], &[]);
    tx.kick();
    assert_eq!(rx.frame().1, reply);
}
