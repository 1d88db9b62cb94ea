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

/// The virtio header and UDP payload of the next datagram from the kernel.
fn datagram(frame: &[u8]) -> Option<(&[u8], &[u8])> {
    let (header, rest) = frame.split_at(VNET_HEADER);
    let is_udp = rest[12..14] == [8, 0] && rest[23] == 17;
    is_udp.then(|| (header, &rest[34..]))
}

/// The sum over a UDP datagram and its pseudo header, which is 0xffff when the checksum is right.
fn udp_sum(source: [u8; 4], destination: [u8; 4], udp: &[u8]) -> u16 {
    let mut bytes = [&source[..], &destination, &[0, 17]].concat();
    bytes.extend((udp.len() as u16).to_be_bytes());
    bytes.extend(udp);
    if bytes.len() % 2 == 1 {
        bytes.push(0);
    }
    let words = bytes
        .chunks(2)
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn checksums_are_left_to_the_guest_only_when_it_wants() {
    own_network();
    let backend = tap("tap,ifname=vt3", 1).unwrap();
    ip("addr add 192.0.2.1/24 dev vt3");
    ip("neigh add 192.0.2.15 lladdr 52:54:00:01:02:03 dev vt3");
    let socket = std::net::UdpSocket::bind("192.0.2.1:5000").unwrap();
    let control = backend.control().clone();
    let all = backend.capabilities().offloads;
    let port = backend.into_ports().remove(0);
    let (frames, received) = std::sync::mpsc::channel();
    let thread = thread();
    let guest = thread.spawn_task(move || async move {
        let port = port().unwrap();
        let mut frame = [0; 2048];
        loop {
            match port.receive(&[VolatileSlice::from(&mut frame[..])]) {
                Ok(len) => {
                    let Some((header, udp)) = datagram(&frame[..len]) else {
                        continue;
                    };
                    frames.send((header.to_vec(), udp.to_vec())).unwrap();
                    // It goes back as it came, checksum and all, with the ends exchanged: sums
                    // do not mind the order.
                    let mut answer = frame[..len].to_vec();
                    answer[10..12].fill(0);
                    let ethernet = VNET_HEADER;
                    answer[ethernet..ethernet + 12].rotate_left(6);
                    answer[ethernet + 26..ethernet + 34].rotate_left(4);
                    answer[ethernet + 34..ethernet + 38].rotate_left(2);
                    port.send(&[VolatileSlice::from(&mut answer[..])]).unwrap();
                }
                Err(_) => port.receivable().await.unwrap(),
            }
        }
    });
    for offloads in [Offloads::default(), all, Offloads::default()] {
        control.set_offloads(offloads).unwrap();
        socket.send_to(b"some words", "192.0.2.15:6000").unwrap();
        let (header, udp) = received
            .recv_timeout(std::time::Duration::from_secs(10))
            .unwrap();
        assert_eq!(udp[8..], *b"some words");
        // VIRTIO_NET_HDR_F_NEEDS_CSUM.
        assert_eq!(header[0] & 1 != 0, offloads.csum);
        let sum = udp_sum([192, 0, 2, 1], [192, 0, 2, 15], &udp);
        assert_eq!(sum == 0xffff, !offloads.csum);
        let mut answer = [0; 100];
        socket
            .set_read_timeout(Some(std::time::Duration::from_secs(10)))
            .unwrap();
        let (len, from) = socket.recv_from(&mut answer).unwrap();
        assert_eq!(answer[..len], *b"some words");
        assert_eq!(from.to_string(), "192.0.2.15:6000");
    }
    guest.cancel();
}

#[test]
fn missing_permission_is_explained() {
    const CHILD: &str = "VIREO_TEST_WITHOUT_PERMISSION";
    if std::env::var_os(CHILD).is_some() {
        println!("{}", tap("tap,ifname=vt4", 2).unwrap_err());
        return;
    }
    own_network();
    let output = Command::new("setpriv")
        .args(["--bounding-set", "-net_admin"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "missing_permission_is_explained"])
        .env(CHILD, "1")
        .output()
        .expect("apt install util-linux");
    let said = String::from_utf8(output.stdout).unwrap();
    let command = "`ip tuntap add dev vt4 mode tap user $USER multi_queue`";
    assert!(said.contains("no permission to use tap vt4"), "{said}");
    assert!(
        said.contains(command) && said.contains("CAP_NET_ADMIN"),
        "{said}"
    );
}

#[test]
fn spare_queues_cost_nothing_and_work_later() {
    own_network();
    for io_uring in [true, false] {
        let backend = tap("tap,ifname=vt5", 2).unwrap();
        let control = backend.control().clone();
        let mut config = IoThreadConfig::new("tap-test");
        config.io_uring &= io_uring;
        let thread = IoThread::spawn(config).unwrap();
        let ports = backend.into_ports();
        let (opened, is_open) = event::oneshot();
        let (go, gone) = event::oneshot();
        let served = thread.spawn_task(move || async move {
            let ports: Vec<_> = ports.into_iter().map(|port| port().unwrap()).collect();
            opened.send(());
            gone.await.unwrap();
            // Whatever the queue's readiness was before.
            let mut frame = [0; 2048];
            let into = [VolatileSlice::from(&mut frame[..])];
            while ports[1].receive(&into).is_ok() {}
            ports[1]
                .send(&[VolatileSlice::from(&mut arp_request()[..])])
                .unwrap();
            loop {
                // The answer goes where the request came from, as the kernel steers flows, or to
                // the other queue.
                for port in &ports {
                    let mut frame = [0; 2048];
                    if let Ok(len) = port.receive(&[VolatileSlice::from(&mut frame[..])])
                        && frame[VNET_HEADER + 12..][..2] == [8, 6]
                    {
                        return len;
                    }
                }
                event::select2(ports[0].receivable(), ports[1].receivable()).await;
            }
        });
        is_open.wait().unwrap();
        let cpu_ticks = || {
            let path = format!("/proc/self/task/{}/schedstat", thread.tid());
            let text = std::fs::read_to_string(path).unwrap();
            text.split(' ').next().unwrap().parse::<u64>().unwrap()
        };
        std::thread::sleep(std::time::Duration::from_millis(100));
        let before = cpu_ticks();
        std::thread::sleep(std::time::Duration::from_millis(200));
        let nanoseconds = cpu_ticks() - before;
        assert!(nanoseconds < 20_000_000, "{} ms", nanoseconds / 1_000_000);
        ip("addr add 192.0.2.1/24 dev vt5");
        control.set_queue_pairs(2).unwrap();
        go.send(());
        assert_eq!(served.join().unwrap(), VNET_HEADER + 42);
        drop(control);
        thread.shutdown();
    }
}
