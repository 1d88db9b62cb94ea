mod guest;
mod user;

use ::spec::Spec;
use event::{IoThread, IoThreadConfig};
use memory::VolatileSlice;
use proptest::prelude::*;

use super::*;
use crate::testing::pair;

fn thread() -> IoThread {
    IoThread::spawn(IoThreadConfig::new("net-test")).unwrap()
}

fn parse(text: &str) -> BackendSpec {
    BackendSpec::parse(text).unwrap()
}

fn refusal(text: &str) -> String {
    BackendSpec::parse(text).unwrap_err().to_string()
}

fn open_error(text: &str, queues: u16, mtu: Option<u16>) -> String {
    open(&parse(text), queues, mtu).unwrap_err().to_string()
}

#[test]
fn addresses_are_read_and_checked() {
    let mac: Mac = "52:54:00:aB:00:1".parse().unwrap();
    assert_eq!(mac.to_string(), "52:54:00:ab:00:01");
    let error = "53:54:00:00:00:01".parse::<Mac>().unwrap_err();
    assert!(error.contains("example 52"), "{error}");
    for wrong in [
        "",
        "52:54",
        "52:54:0:0:0:0:0",
        "52:54:00:12:34:567",
        "0:0:0:0:0:0",
        "5+:0:0:0:0:1",
    ] {
        assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
    }
    let network: Network = "192.168.10.0/24".parse().unwrap();
    assert_eq!(network.host(15).to_string(), "192.168.10.15");
    assert!(!network.has_host(network.host(0)) && !network.has_host(network.host(255)));
    let error = "192.168.10.7/24".parse::<Network>().unwrap_err();
    assert_eq!(error, "the network is 192.168.10.0/24");
    for wrong in ["10.0.0.0", "10.0.0.0/31", "10.0.0.0/4", "a/8"] {
        assert!(wrong.parse::<Network>().is_err(), "{wrong}");
    }
}

#[test]
fn forwards_are_read_and_written() {
    for text in ["tcp::2222-:22", "udp:127.0.0.1:53-10.0.2.20:5353"] {
        assert_eq!(text.parse::<HostForward>().unwrap().to_string(), text);
    }
    for wrong in [
        "2222-:22",
        "tcp::2222",
        "sctp::1-:1",
        "tcp::0-:22",
        "tcp::70000-:22",
        "tcp:h:1-:1",
    ] {
        assert!(wrong.parse::<HostForward>().is_err(), "{wrong}");
    }
}

#[test]
fn macs_of_different_seeds_differ() {
    let macs: std::collections::BTreeSet<[u8; 6]> =
        (0..1000).map(|seed| Mac::from_seed(seed).0).collect();
    assert_eq!(macs.len(), 1000);
    assert_eq!(Mac::from_seed(3), Mac::from_seed(3));
    assert!(Mac::from_seed(7).to_string().starts_with("52:54:00:"));
}

proptest! {
    #[test]
    fn address_parsers_never_panic(text in "[0-9a-fxtcpud.:/+-]{0,40}") {
        let _ = text.parse::<Mac>();
        let _ = text.parse::<Network>();
        if let Ok(forward) = text.parse::<HostForward>() {
            prop_assert_eq!(forward.to_string().parse(), Ok(forward));
        }
    }
}

#[test]
fn back_ends_share_one_description() {
    let BackendSpec::User(user) = parse("user,hostfwd=tcp::1-:1,hostfwd=udp::2-:2") else {
        panic!("user is a back end");
    };
    assert_eq!(user.hostfwd.len(), 2);
    assert_eq!(parse(""), parse("backend=user"));
    let tap = parse("tap,ifname=tap0,script=no,downscript=no");
    assert_eq!(BackendSpec::from_properties(tap.to_properties()), Ok(tap));
    assert!(refusal("tap,hostfwd=tcp::1-:1").contains("belongs to backend=user"));
    assert!(refusal("ifname=tap0").contains("belongs to backend=tap"));
    assert!(refusal("tap,ifnam=tap0").contains("did you mean \"ifname\"?"));
    assert!(refusal("tup").contains("did you mean"));
    assert!(refusal("tap,ifname=longer-than-fifteen").contains("15 bytes"));
    assert!(refusal("tap,ifname=t,fd=4").contains("give fd or ifname"));
}

#[test]
fn impossible_networks_are_refused() {
    let error = |text| open_error(text, 1, None);
    assert!(error("user,host=10.0.3.2").contains("not an address of a host in net=10.0.2.0/24"));
    assert!(error("user,dns=10.0.2.2").contains("different"));
    assert!(error("user,net=10.0.2.0/29").starts_with("dhcpstart="));
    assert!(error("user,hostfwd=tcp::9-1.2.3.4:9").contains("1.2.3.4 is not"));
    assert!(open_error("user", 2, None).contains("one pair"));
    assert!(open_error("user", 1, Some(67)).starts_with("mtu=67"));
    let long = format!("user,hostname={}", "h".repeat(33));
    assert!(error(&long).contains("at most 32"));
}

#[test]
fn descriptors_that_are_no_taps_are_refused() {
    assert_eq!(
        open_error("tap,fd=1", 1, None),
        "fd=1 cannot be used as a tap: Bad file descriptor (os error 9)"
    );
    let file = std::fs::File::open("/dev/null").unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&file);
    let error = open_error(&format!("tap,fd={number}"), 1, None);
    assert!(error.contains("not a tap"), "{error}");
    assert!(open_error("tap,fd=700,fd=701", 1, None).contains("2 descriptors"));
}

#[test]
fn frames_pass_in_pieces_with_back_pressure() {
    let capabilities = Capabilities {
        vnet_header: false,
        offloads: Offloads::default(),
        queue_pairs: 1,
        max_frame: 2000,
    };
    let (backend, peer) = pair(capabilities);
    let [port] = <[OpenPort; 1]>::try_from(backend.into_ports())
        .ok()
        .unwrap();
    peer.send(0, b"hello world");
    let thread = thread();
    let sent = thread.spawn_task(move || async move {
        let port = port().unwrap();
        let (mut a, mut b) = ([0; 4], [0; 40]);
        port.receivable().await.unwrap();
        let into = [
            VolatileSlice::from(&mut a[..]),
            VolatileSlice::from(&mut b[..]),
        ];
        assert_eq!(port.receive(&into).unwrap(), 11);
        let none = port.receive(&into).unwrap_err();
        assert_eq!(none.kind(), std::io::ErrorKind::WouldBlock);
        assert_eq!((&a[..], &b[..7]), (&b"hell"[..], &b"o world"[..]));
        let mut frame = [7; 1500];
        let pieces = [VolatileSlice::from(&mut frame[..])];
        let mut sent = 0;
        while port.send(&pieces).is_ok() {
            sent += 1;
        }
        port.sendable().await.unwrap();
        port.send(&pieces).unwrap();
        sent + 1
    });
    assert_eq!(peer.receive(0), [7; 1500]);
    let mut frames = 1;
    let mut drain = || {
        while peer
            .receive_within(0, std::time::Duration::from_millis(1))
            .is_some()
        {
            frames += 1;
        }
    };
    while !sent.is_finished() {
        drain();
    }
    drain();
    let sent = sent.join().unwrap();
    assert!(sent > 10 && frames == sent, "{frames} of {sent}");
}
