mod control;
mod frames;
mod user;

use std::time::Duration;

use ::net::testing::{Peer, pair};
use ::net::{Capabilities, Mac, Offloads, VNET_HEADER};
use ::spec::Spec;
use event::{IoThread, IoThreadConfig};
use proptest::prelude::*;

use super::filter::{Filter, Mode, Table};
use super::model::{Effect, feature};
use super::*;
use crate::features::{RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED, VERSION_1};
use crate::testing::{Buffer, DeviceHarness, Guest, HarnessQueue};

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const ALL: Offloads = Offloads {
    csum: true,
    tso4: true,
    tso6: true,
    ecn: true,
    uso: true,
};
/// Rings to try everything on.
const RINGS: [u64; 4] = [
    0,
    RING_EVENT_IDX | RING_INDIRECT_DESC,
    RING_PACKED,
    RING_PACKED | RING_EVENT_IDX | RING_INDIRECT_DESC,
];

fn thread(poll: u64) -> IoThread {
    let mut config = IoThreadConfig::new("net-test");
    config.poll_max = Duration::from_micros(poll);
    IoThread::spawn(config).unwrap()
}

fn tap_like(queue_pairs: u16) -> Capabilities {
    Capabilities {
        vnet_header: true,
        offloads: ALL,
        queue_pairs,
        max_frame: VNET_HEADER + 65_557,
    }
}

fn plain() -> Capabilities {
    Capabilities {
        vnet_header: false,
        offloads: Offloads::default(),
        queue_pairs: 1,
        max_frame: 1514,
    }
}

fn card(properties: &str, capabilities: Capabilities, threads: Vec<IoThread>) -> (Net, Peer) {
    let (backend, peer) = pair(capabilities);
    let spec = NetSpec::parse(&format!("user{properties}")).unwrap();
    let net = Net::new(&spec, backend, threads, Mac(MAC)).unwrap();
    (net, peer)
}

fn activated(
    properties: &str,
    capabilities: Capabilities,
    ring: u64,
) -> (DeviceHarness<Net>, Peer) {
    let (net, peer) = card(properties, capabilities, vec![thread(0)]);
    (DeviceHarness::new(net, &Guest::new(32 << 20), ring), peer)
}

/// A frame to `to` of `len` bytes, which all depend on `seed`.
fn frame(to: [u8; 6], len: usize, seed: usize) -> Vec<u8> {
    let rest = (12..len).map(|i| (i * 7 + seed * 13 + i / 251) as u8);
    let mut frame = [to, [2, 0, 0, 0, 0, 9]].concat();
    frame.extend(rest);
    // Not a VLAN.
    frame[12..14].copy_from_slice(&[8, 0]);
    frame
}

/// A virtio header as a host gives it; `num_buffers` is not its business.
fn header(first: u8) -> Vec<u8> {
    let mut header = vec![first; 10];
    header.extend([0xee; 2]);
    header
}

/// A receive queue with so many buffers of `len` bytes.
struct Receiver {
    queue: HarnessQueue,
    buffers: std::collections::BTreeMap<u16, Buffer>,
    len: u32,
}

impl Receiver {
    fn new(queue: HarnessQueue, count: usize, len: u32) -> Self {
        let mut receiver = Self {
            queue,
            buffers: Default::default(),
            len,
        };
        receiver.fill(count);
        receiver
    }

    fn fill(&mut self, count: usize) {
        for _ in 0..count {
            let (id, buffers) = self.queue.driver.send(&[], &[self.len]);
            self.buffers.insert(id, buffers[0]);
        }
        self.queue.kick();
    }

    /// Waits for a frame: its header and the rest.
    fn frame(&mut self) -> (Vec<u8>, Vec<u8>) {
        let (mut bytes, mut buffers) = (Vec::new(), 1);
        while buffers != 0 {
            let (id, written) = self.queue.wait();
            let buffer = self.buffers.remove(&id).expect("a buffer of ours");
            assert!(written != 0 && written <= self.len);
            bytes.extend(
                self.queue
                    .driver
                    .guest()
                    .read(buffer.address, written as usize),
            );
            if bytes.len() == written as usize {
                buffers = usize::from(u16::from_le_bytes([bytes[10], bytes[11]]));
                assert_ne!(buffers, 0);
            }
            buffers -= 1;
        }
        let frame = bytes.split_off(VNET_HEADER);
        (bytes, frame)
    }

    /// Nothing comes for a moment.
    fn nothing(&mut self) {
        std::thread::sleep(Duration::from_millis(20));
        assert!(!self.queue.driver.used_available());
    }
}

fn wait_for_trouble(harness: &DeviceHarness<Net>) {
    for _ in 0..10_000 {
        if harness.trouble.is_set() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("the device has no trouble");
}

#[test]
fn features_follow_the_back_end() {
    let features = |properties, capabilities| {
        let (net, _peer) = card(properties, capabilities, vec![thread(0)]);
        net.features()
    };
    let offloads = feature::CSUM | feature::HOST_USO | feature::GUEST_OFFLOADS;
    let plain = features("", plain());
    assert_eq!(plain & (offloads | feature::MQ | feature::MTU), 0);
    assert_ne!(plain & feature::MRG_RXBUF, 0);
    let full = features(",mtu=9000,speed=10000", tap_like(2));
    let more = offloads | feature::MQ | feature::MTU | feature::SPEED_DUPLEX;
    assert_eq!(full & more, more);
    let mut no_uso = tap_like(1);
    no_uso.offloads.uso = false;
    assert_eq!(
        features("", no_uso) & (feature::HOST_USO | feature::GUEST_USO4),
        0
    );
}

#[test]
fn configuration_space_is_laid_out_as_specified() {
    let (net, _peer) = card(
        ",mtu=9000,speed=40000,queues=4",
        tap_like(4),
        vec![thread(0)],
    );
    let mut config = [0xff; 20];
    net.config_read(0, &mut config);
    assert_eq!(config[..6], MAC);
    assert_eq!(config[6..12], [1, 0, 4, 0, 0x28, 0x23]);
    assert_eq!(config[12..], [0x40, 0x9c, 0, 0, 1, 0, 0, 0]);
    let mut two = [0xff; 2];
    net.config_read(8, &mut two);
    assert_eq!(two, [4, 0]);
    net.config_read(u64::MAX, &mut two);
    assert_eq!(two, [0, 0]);
    assert_eq!(net.queue_sizes(), [[256; 8].as_slice(), &[64]].concat());
}

#[test]
fn description_is_of_both_parts() {
    let spec = NetSpec::parse("tap,ifname=t0,mac=52:54:00:00:00:07,queues=2,iothread=a").unwrap();
    assert_eq!(spec.device.mac, Some(Mac([0x52, 0x54, 0, 0, 0, 7])));
    assert_eq!(NetSpec::from_properties(spec.to_properties()), Ok(spec));
    let error = |text| NetSpec::parse(text).unwrap_err().to_string();
    assert!(error("user,hostfw=tcp::1-:1").contains("did you mean \"hostfwd\"?"));
    assert!(error("tap,queue-size=100").contains("power of two"));
    assert!(error("tap,queues=0").contains("1 to 256"));
    assert!(error("tap,mac=53:54:00:00:00:07").contains("multicast"));
    assert!(error("user,mtu=10").contains("at least 68"));
}

#[test]
fn card_needs_a_thread() {
    let (backend, _peer) = pair(plain());
    let spec = NetSpec::parse("user").unwrap();
    let error = Net::new(&spec, backend, Vec::new(), Mac(MAC)).err();
    assert_eq!(error, Some(NetError::NoThread));
}
