//! Taps of the real kernel, each test in a network namespace of its own. Needs root (feature
//! `net-tests`).

use std::process::Command;

use event::{IoThread, IoThreadConfig};
use memory::VolatileSlice;
use net::{Backend, BackendSpec, NetError, Offloads, VNET_HEADER, open};
use nix::sched::{CloneFlags, unshare};
use spec::Spec;

/// Moves this test's thread, and what it starts, into a network of its own.
fn own_network() {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: run these tests as root");
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(
        status.expect("apt install iproute2").success(),
        "ip {arguments}"
    );
}

fn tap(properties: &str, queues: u16) -> Result<Backend, NetError> {
    open(&BackendSpec::parse(properties).unwrap(), queues, None)
}

fn thread() -> IoThread {
    IoThread::spawn(IoThreadConfig::new("tap-test")).unwrap()
}

/// A broadcast for 192.0.2.1, with an empty virtio header.
fn arp_request() -> Vec<u8> {
    let mac = [0x52, 0x54, 0, 1, 2, 3];
    let mut frame = vec![0; VNET_HEADER];
    frame.extend([0xff; 6]);
    frame.extend(mac);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend([192, 0, 2, 15, 0, 0, 0, 0, 0, 0, 192, 0, 2, 1]);
    frame
}

#[test]
fn kernel_answers() {
    own_network();
    let backend = tap("tap,ifname=vt0", 2).unwrap();
    let capabilities = backend.capabilities();
    assert!(capabilities.vnet_header && capabilities.offloads.tso6);
    assert_eq!(capabilities.queue_pairs, 2);
    ip("addr add 192.0.2.1/24 dev vt0");
    let control = backend.control().clone();
    control.set_offloads(capabilities.offloads).unwrap();
    control.set_offloads(Offloads::default()).unwrap();
    for pairs in [2, 2, 1, 2, 1] {
        control.set_queue_pairs(pairs).unwrap();
    }
    let port = backend.into_ports().remove(0);
    let thread = thread();
    let reply = thread.spawn_task(move || async move {
        let port = port().unwrap();
        port.send(&[VolatileSlice::from(&mut arp_request()[..])])
            .unwrap();
        let mut frame = [0; 2048];
        loop {
            // The kernel has things to say of its own (IPv6).
            match port.receive(&[VolatileSlice::from(&mut frame[..])]) {
                Ok(len) if frame[VNET_HEADER + 12..][..2] == [8, 6] => {
                    return frame[VNET_HEADER..len].to_vec();
                }
                Ok(_) => {}
                Err(_) => port.receivable().await.unwrap(),
            }
        }
    });
    let reply = reply.join().unwrap();
    assert_eq!(reply[..6], [0x52, 0x54, 0, 1, 2, 3]);
    assert_eq!(reply[20..22], [0, 2]);
    assert_eq!(reply[28..32], [192, 0, 2, 1]);
}

#[test]
fn taps_that_cannot_be_had_are_explained() {
    own_network();
    let first = tap("tap,ifname=vt0", 1).unwrap();
    let busy = tap("tap,ifname=vt0", 1).unwrap_err();
    assert!(matches!(busy, NetError::TapBusy { .. }), "{busy}");
    drop(first);
    ip("tuntap add dev vt1 mode tap");
    let single = tap("tap,ifname=vt1", 2).unwrap_err().to_string();
    assert!(single.contains("multi_queue"), "{single}");
    let wrong = tap("tap,ifname=lo", 1).unwrap_err().to_string();
    assert!(wrong.starts_with("lo cannot be used as a tap"), "{wrong}");
}

#[test]
fn persistent_multi_queue_tap_serves_one_queue() {
    own_network();
    ip("tuntap add dev vt2 mode tap multi_queue");
    let backend = tap("tap,ifname=vt2", 1).unwrap();
    assert_eq!(backend.capabilities().queue_pairs, 1);
    let shown = Command::new("ip")
        .args(["link", "show", "vt2"])
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("UP"), "{shown}");
}

#[test]
fn kernel_chooses_a_name() {
    own_network();
    let backend = tap("tap", 1).unwrap();
    ip("link show tap0");
    drop(backend);
}
