use std::collections::BTreeMap;

use ::spec::Spec;
use memory::GuestAddressSpace;
use proptest::prelude::*;

use super::*;
use crate::features::{RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED, RING_RESET, VERSION_1};
use crate::testing::{Buffer, Guest, PciDriver};
use crate::{Identity, QueueError};

/// A device that answers each chain with its own bytes, when the test says so.
#[derive(Clone, Default)]
struct Echo(Arc<Mutex<EchoInner>>);

#[derive(Default)]
struct EchoInner {
    running: BTreeMap<u16, QueueResources>,
    activation: Option<Activation>,
    config: [u8; 8],
    resets: u32,
    refuse: bool,
}

const FEATURE: u64 = 1 << 3;

impl Echo {
    fn inner(&self) -> MutexGuard<'_, EchoInner> {
        self.0.lock().unwrap()
    }

    /// Serves a queue as a worker would; tells how many chains.
    fn serve(&self, index: u16) -> usize {
        let mut inner = self.inner();
        let Some(resources) = inner.running.get_mut(&index) else {
            return 0;
        };
        let mut served = 0;
        let mut run = || -> Result<(), QueueError> {
            let ram = resources.memory.memory();
            while let Some(chain) = resources.queue.pop(&ram)? {
                let mut bytes = vec![0; chain.readable_len() as usize];
                chain.reader(&ram).read_exact(&mut bytes)?;
                let written = chain.writer(&ram).write(&bytes)?;
                resources.queue.add_used(&ram, chain, written as u32)?;
                served += 1;
            }
            if resources.queue.needs_notification(&ram)? {
                resources.interrupt.trigger();
            }
            Ok(())
        };
        if let Err(e) = run() {
            resources.trouble.report("echo", &e);
        }
        served
    }

    fn kicks(&self, index: u16) -> u64 {
        let inner = self.inner();
        inner.running[&index].kick.read().unwrap_or(0)
    }
}

impl VirtioDevice for Echo {
    fn identity(&self) -> Identity {
        Identity {
            device_type: 42,
            pci_class: 0xff_00_00,
        }
    }

    fn features(&self) -> u64 {
        // A device cannot offer what is the rings'.
        FEATURE | RING_PACKED
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![64, 8]
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let inner = self.inner();
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = *inner.config.get(offset as usize + i).unwrap_or(&0);
        }
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        let mut inner = self.inner();
        for (i, byte) in data.iter().enumerate() {
            if let Some(register) = inner.config.get_mut(offset as usize + i) {
                *register = *byte;
            }
        }
    }

    fn activate(&mut self, activation: Activation) {
        let before = self.inner().activation.replace(activation);
        assert!(before.is_none(), "activated twice");
    }

    fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), StartError> {
        let mut inner = self.inner();
        assert!(inner.activation.is_some(), "started before activated");
        if inner.refuse {
            return Err(StartError {
                queue: index,
                why: String::from("not today"),
            });
        }
        let before = inner.running.insert(index, resources);
        assert!(before.is_none(), "started twice");
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let resources = self.inner().running.remove(&index)?;
        Some(resources.queue.save())
    }

    fn reset(&mut self) {
        let mut inner = self.inner();
        assert!(inner.running.is_empty(), "reset while running");
        inner.activation = None;
        inner.config = [0; 8];
        inner.resets += 1;
    }

    fn save(&self) -> Result<Payload, StateError> {
        let inner = self.inner();
        assert!(inner.running.is_empty(), "saved while running");
        Payload::encode("echo", 1, &inner.config)
    }

    fn restore(&mut self, payload: Payload) -> Result<(), StateError> {
        self.inner().config = payload.decode("echo", 1)?;
        Ok(())
    }
}

fn machine(guest: &Guest, options: &TransportOptions) -> (Echo, Arc<VirtioPci>) {
    let echo = Echo::default();
    let function = VirtioPci::new(Box::new(echo.clone()), guest.memory().clone(), options);
    (echo, function.unwrap())
}

fn packed(packed: bool) -> TransportOptions {
    TransportOptions {
        packed,
        ..TransportOptions::default()
    }
}

#[test]
fn a_driver_finds_starts_and_uses_the_device() {
    for on in [false, true] {
        let guest = Guest::new(1 << 20);
        let (echo, function) = machine(&guest, &packed(on));
        let mut driver = PciDriver::probe(function, &guest);
        assert_eq!(driver.read_config(pci::regs::DEVICE_ID, 2), 0x1040 + 42);
        assert_eq!(driver.read_config(pci::regs::REVISION_ID, 1), 1);
        assert_eq!(driver.read_config(0x2c, 4), 0x1100_1af4);
        let offered = driver.offered();
        let always = FEATURE | VERSION_1 | RING_RESET | RING_EVENT_IDX | RING_INDIRECT_DESC;
        assert_eq!(offered, always | if on { RING_PACKED } else { 0 });
        assert!(driver.doorbells().is_empty(), "nothing runs yet");

        let mut queues = driver.start(u64::MAX);
        assert_eq!(queues.len(), 2);
        assert_eq!(driver.doorbells().len(), 4, "in memory and as ports");
        assert_eq!(driver.status(), 0xf);
        for (index, queue) in queues.iter_mut().enumerate() {
            let index = index as u16;
            echo.kicks(index);
            let (id, answer) = queue.send(&[b"hello"], &[5]);
            driver.kick(index);
            assert_eq!(echo.kicks(index), 1);
            assert_eq!(echo.serve(index), 1);
            assert_eq!(driver.take_vectors(), [u32::from(index) + 1]);
            assert_eq!(queue.collect(), Some((id, 5)));
            assert_eq!(guest.read(answer[0].address, 5), b"hello");
        }
        driver.set_status(0);
        assert_eq!(driver.status(), 0);
        assert!(echo.inner().running.is_empty() && driver.doorbells().is_empty());
        assert_eq!(driver.start(u64::MAX).len(), 2);
    }
}

#[test]
fn a_kick_without_a_doorbell_comes_by_the_bar() {
    for port_doorbells in [false, true] {
        let guest = Guest::new(1 << 20);
        let options = TransportOptions {
            port_doorbells,
            ..TransportOptions::default()
        };
        let (echo, function) = machine(&guest, &options);
        let mut driver = PciDriver::probe(Arc::clone(&function), &guest);
        driver.start(u64::MAX);
        echo.kicks(1);
        function.doorbells.set_host(None);
        driver.kick(1);
        assert_eq!(echo.kicks(1), 1);
        assert_eq!(echo.kicks(0), 1, "only the one from the start");
    }
}

#[test]
fn behind_a_root_port_there_are_no_port_doorbells() {
    let guest = Guest::new(1 << 20);
    let options = TransportOptions {
        express: Some(pci::Express::Endpoint {
            function_level_reset: false,
        }),
        ..TransportOptions::default()
    };
    let (_, function) = machine(&guest, &options);
    let mut driver = PciDriver::probe(function, &guest);
    assert_eq!(driver.read_config(0x10, 4), 0);
    driver.start(u64::MAX);
    assert_eq!(driver.doorbells().len(), 2);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let guest = Guest::new(1 << 20);
    let (_, function) = machine(&guest, &TransportOptions::default());
    let driver = PciDriver::probe(function, &guest);
    for (half, bits) in [(0, 0), (1, 0), (1, 2 | 1), (0, 1)] {
        driver.set_status(0);
        driver.set_status(3);
        driver.write_common(8, 4, half);
        driver.write_common(12, 4, bits);
        if half == 0 {
            driver.write_common(8, 4, 1);
            driver.write_common(12, 4, if bits == 0 { 0 } else { 1 });
        }
        driver.set_status(0xb);
        assert_eq!(driver.status(), 3, "{half} {bits}");
        driver.set_status(0xf);
        assert_eq!(driver.status(), 3, "no DRIVER_OK without FEATURES_OK");
    }
}

#[test]
fn what_was_agreed_does_not_change() {
    let guest = Guest::new(1 << 20);
    let (echo, function) = machine(&guest, &TransportOptions::default());
    let mut driver = PciDriver::probe(function, &guest);
    let agreed = driver.negotiate(VERSION_1 | FEATURE);
    driver.write_common(8, 4, 0);
    driver.write_common(12, 4, 0);
    let queue = driver.setup_queue(0, 16);
    for (offset, len, value) in [(0x18, 2, 8), (0x20, 4, 0), (0x20, 8, 0), (0x1c, 2, 0)] {
        driver.write_common(offset, len, value);
    }
    driver.driver_ok();
    let inner = echo.inner();
    assert_eq!(inner.activation.as_ref().unwrap().features, agreed);
    assert_eq!(inner.running[&0].queue.config(), &queue.config());
    assert!(!inner.running.contains_key(&1), "it was not enabled");
}

#[test]
fn sizes_and_vectors_that_are_not_there_are_ignored() {
    let guest = Guest::new(1 << 20);
    let (_, function) = machine(&guest, &TransportOptions::default());
    let mut driver = PciDriver::probe(function, &guest);
    driver.negotiate(u64::MAX);
    for size in [0, 3, 65, 128, 0xffff] {
        driver.write_common(0x16, 2, 0);
        driver.write_common(0x18, 2, size);
        assert_eq!(driver.read_common(0x18, 2), 64);
    }
    for offset in [0x10, 0x1a] {
        driver.write_common(offset, 2, 2);
        assert_eq!(driver.read_common(offset, 2), 2);
        for vector in [3, 0xfffe, 0xffff] {
            driver.write_common(offset, 2, vector);
            assert_eq!(driver.read_common(offset, 2), 0xffff);
        }
    }
    driver.write_common(0x16, 2, 2);
    assert_eq!(driver.read_common(0x18, 2), 0, "there is no third queue");
    driver.write_common(0x1c, 2, 1);
    assert_eq!(driver.read_common(0x1c, 2), 0);
}

#[test]
fn without_msix_the_wire_follows_the_isr() {
    let guest = Guest::new(1 << 20);
    for vectors in [None, Some(0)] {
        let options = TransportOptions {
            vectors,
            ..TransportOptions::default()
        };
        let (echo, function) = machine(&guest, &options);
        let mut driver = PciDriver::probe(function, &guest);
        driver.disable_msix();
        let mut queues = driver.start(u64::MAX);
        assert!(!driver.intx());
        queues[0].send(&[b"x"], &[1]);
        echo.serve(0);
        assert!(driver.intx());
        let changed = echo.inner().activation.clone().unwrap().config_changed;
        changed.trigger();
        assert_eq!(driver.generation(), 1);
        assert_eq!(driver.isr(), 3);
        assert!(!driver.intx());
        assert_eq!(driver.isr(), 0);
        changed.trigger();
        assert_eq!((driver.isr(), driver.generation()), (2, 2));
        changed.trigger();
        driver.set_status(0);
        assert!(!driver.intx(), "a reset lets the wire fall");
        assert!(driver.take_vectors().is_empty());
    }
}

#[test]
fn an_interrupt_without_vector_is_not_delivered() {
    let guest = Guest::new(1 << 20);
    let (echo, function) = machine(&guest, &TransportOptions::default());
    let mut driver = PciDriver::probe(function, &guest);
    let mut queues = driver.start(u64::MAX);
    driver.write_common(0x16, 2, 0);
    driver.write_common(0x1a, 2, 0xffff);
    queues[0].send(&[b"x"], &[1]);
    echo.serve(0);
    assert!(driver.take_vectors().is_empty() && !driver.intx());
    // The vector may change while the queue runs.
    driver.write_common(0x1a, 2, 2);
    queues[0].enable_interrupts();
    queues[0].collect();
    queues[0].enable_interrupts();
    queues[0].send(&[b"x"], &[1]);
    echo.serve(0);
    assert_eq!(driver.take_vectors(), [2]);
}

#[test]
fn nonsense_in_a_queue_asks_for_a_reset_and_a_reset_helps() {
    let guest = Guest::new(1 << 20);
    let (echo, function) = machine(&guest, &TransportOptions::default());
    let mut driver = PciDriver::probe(function, &guest);
    let mut queues = driver.start(u64::MAX);
    queues[0].offer(&[Buffer::readable(1 << 40, 1)]);
    echo.serve(0);
    assert_eq!(driver.status(), 0x4f);
    assert_eq!(driver.take_vectors(), [0], "by the configuration interrupt");
    echo.serve(0);
    assert!(driver.take_vectors().is_empty(), "only once");
    driver.start(u64::MAX);
    assert_eq!(driver.status(), 0xf);
}

#[test]
fn a_queue_that_cannot_start_asks_for_a_reset() {
    let guest = Guest::new(1 << 20);
    let (echo, function) = machine(&guest, &TransportOptions::default());
    let mut driver = PciDriver::probe(function, &guest);
    echo.inner().refuse = true;
    driver.start(u64::MAX);
    assert_eq!(driver.status(), 0x4f);
    echo.inner().refuse = false;
    driver.negotiate(u64::MAX);
    driver.setup_queue(0, 8);
    driver.write_common(0x16, 2, 1);
    driver.write_common(0x20, 4, 0x1008);
    driver.write_common(0x1c, 2, 1);
    driver.driver_ok();
    assert_eq!(driver.status(), 0x4f, "an unaligned ring");
    assert!(echo.inner().running.contains_key(&0));
}

#[test]
fn one_queue_is_reset_while_the_other_runs() {
    for on in [false, true] {
        let guest = Guest::new(1 << 20);
        let (echo, function) = machine(&guest, &packed(on));
        let mut driver = PciDriver::probe(function, &guest);
        let mut queues = driver.start(u64::MAX);
        queues[0].send(&[b"lost"], &[4]);
        driver.reset_queue(0);
        assert_eq!(echo.serve(0), 0);
        queues[1].send(&[b"x"], &[1]);
        assert_eq!(echo.serve(1), 1);
        let mut again = driver.setup_queue(0, 32);
        let (id, _) = again.send(&[b"abc"], &[3]);
        assert_eq!(echo.serve(0), 1);
        assert_eq!(again.collect(), Some((id, 3)));
        assert_eq!(driver.take_vectors(), [2, 1]);
    }
}

#[test]
fn registers_can_be_reached_through_configuration_space() {
    let guest = Guest::new(1 << 20);
    let (echo, function) = machine(&guest, &TransportOptions::default());
    let mut driver = PciDriver::probe(function, &guest);
    assert_eq!(driver.read_by_config(4, 0x12, 2), 2, "num_queues");
    driver.write_by_config(4, 0x2004, &[1, 2, 3, 4]);
    assert_eq!(driver.device_config(4, 4), [1, 2, 3, 4]);
    assert_eq!(driver.read_by_config(4, 0x2006, 2), 0x0403);
    driver.write_by_config(1, 0x1c, &[1, 0, 0, 0]);
    assert_eq!(driver.read_by_config(1, 0x1c, 4), 1, "the MSI-X table");
    for (bar, offset, len) in [
        (0, 0, 4),
        (4, 0x4000, 4),
        (255, 0, 1),
        (4, u32::MAX, 1),
        (4, 1, 2),
        (4, 0, 3),
        (4, 0, u32::MAX),
    ] {
        driver.write_by_config(bar, offset, &vec![0; len.min(4) as usize]);
        assert_eq!(driver.read_by_config(bar, offset, len.min(4)), 0);
    }
    driver.start(u64::MAX);
    echo.kicks(1);
    driver.write_by_config(4, 0x3004, &[1, 0]);
    assert_eq!(echo.kicks(1), 1);
}

#[test]
fn a_moved_bar_takes_its_doorbells_along() {
    let guest = Guest::new(1 << 20);
    let (_, function) = machine(&guest, &TransportOptions::default());
    let mut driver = PciDriver::probe(Arc::clone(&function), &guest);
    driver.start(u64::MAX);
    let base = |driver: &PciDriver| driver.doorbells().first().map(|d| d.address);
    assert_eq!(base(&driver), Some(0xe040_3000));
    driver.write_config(0x20, &0xf000_0000u32.to_le_bytes());
    assert_eq!(base(&driver), Some(0xf000_3000));
    driver.write_config(pci::regs::COMMAND, &[0, 0]);
    assert_eq!(base(&driver), None);
    driver.write_config(pci::regs::COMMAND, &[7, 0]);
    assert_eq!(driver.doorbells().len(), 4);
    driver.write_config(0x10, &0xd000u32.to_le_bytes());
    assert!(
        driver
            .doorbells()
            .iter()
            .any(|d| d.space == bus::Space::Port && d.address == 0xd000)
    );
    function.detach();
    assert_eq!(base(&driver), None);
}

#[test]
fn a_function_level_reset_is_a_reset() {
    let guest = Guest::new(1 << 20);
    let options = TransportOptions {
        express: Some(Express::Endpoint {
            function_level_reset: true,
        }),
        ..TransportOptions::default()
    };
    let (echo, function) = machine(&guest, &options);
    let mut driver = PciDriver::probe(function, &guest);
    driver.start(u64::MAX);
    let mut at = driver.read_config(0x34, 1) as u16;
    while driver.read_config(at, 1) != 0x10 {
        at = driver.read_config(at + 1, 1) as u16;
    }
    driver.write_config(at + 8, &0x8000u16.to_le_bytes());
    assert!(echo.inner().running.is_empty());
    assert_eq!(echo.inner().resets, 2, "one by the driver before");
    assert_eq!(driver.read_config(pci::regs::COMMAND, 2), 0);
}

#[test]
fn a_saved_function_goes_on_elsewhere() {
    for on in [false, true] {
        let guest = Guest::new(1 << 20);
        let (echo, function) = machine(&guest, &packed(on));
        let mut driver = PciDriver::probe(Arc::clone(&function), &guest);
        let mut queues = driver.start(u64::MAX);
        driver.write_device_config(0, b"settings");
        for round in 0..70u8 {
            queues[0].send(&[&[round]], &[1]);
            echo.serve(0);
            queues[0].collect().unwrap();
        }
        // Two that were served and not collected, two that were not served.
        let ids: Vec<_> = (0..4u8)
            .map(|i| {
                let (id, answer) = queues[0].send(&[&[i]], &[1]);
                if i == 1 {
                    echo.serve(0);
                }
                (id, answer[0])
            })
            .collect();
        let saved = function.save().unwrap();
        assert!(echo.inner().running.len() == 2, "saving does not stop it");
        function.quiesce();
        assert!(echo.inner().running.is_empty());
        assert_eq!(function.save().unwrap(), saved);
        function.quiesce();
        drop(echo);

        let (echo, function) = machine(&guest, &packed(on));
        driver = driver.moved_to(Arc::clone(&function));
        function.restore(saved.clone()).unwrap();
        assert!(echo.inner().running.is_empty() && driver.doorbells().is_empty());
        assert_eq!(function.save().unwrap(), saved);
        function.resume();
        assert_eq!(driver.doorbells().len(), 4);
        assert_eq!(driver.status(), 0xf);
        assert_eq!(driver.device_config(0, 8), b"settings");
        assert_eq!(echo.kicks(0), 1, "the worker looks for what came before");
        assert_eq!(echo.serve(0), 2);
        assert_eq!(driver.take_vectors(), [1]);
        for (i, (id, answer)) in ids.into_iter().enumerate() {
            assert_eq!(queues[0].collect(), Some((id, 1)));
            assert_eq!(guest.read(answer.address, 1), [i as u8]);
        }
        assert!(queues[0].collect().is_none());
    }
}

#[test]
fn states_that_do_not_fit_are_refused_and_leave_a_fresh_function() {
    let guest = Guest::new(1 << 20);
    let (_, function) = machine(&guest, &TransportOptions::default());
    let mut driver = PciDriver::probe(Arc::clone(&function), &guest);
    driver.start(u64::MAX);
    let good: State = function.save().unwrap().decode(KIND, VERSION).unwrap();
    let spoilt: [fn(&mut State); 8] = [
        |s| _ = s.queues.pop(),
        |s| _ = s.common.queues.pop(),
        |s| s.common.queues[0].size = 0,
        |s| s.common.queues[0].size = 65,
        |s| s.common.queues[0].enabled = false,
        |s| s.common.driver_features |= 1,
        |s| s.common.config_vector = 3,
        |s| s.device.kind = String::from("other"),
    ];
    for (i, spoil) in spoilt.into_iter().enumerate() {
        let (echo, fresh) = machine(&guest, &TransportOptions::default());
        let clean = fresh.save().unwrap();
        let mut state = good.clone();
        spoil(&mut state);
        let payload = Payload::encode(KIND, VERSION, &state).unwrap();
        assert!(fresh.restore(payload).is_err(), "{i}");
        assert_eq!(fresh.save().unwrap(), clean, "{i}");
        fresh.resume();
        assert!(echo.inner().running.is_empty());
    }
}

#[test]
fn one_line_describes_device_and_transport() {
    ::spec::spec! {
        /// A device.
        pub struct ThingSpec("thing") {
            /// How much.
            amount: u32 = 1,
        }
    }
    let spec = PciSpec::<ThingSpec>::parse("amount=3,packed=on,vectors=4").unwrap();
    assert_eq!(spec.device.amount, 3);
    assert_eq!(
        PciSpec::from_properties(spec.to_properties()).unwrap(),
        spec
    );
    let options = spec.transport.options("thing0", None);
    assert!(options.packed && options.event_idx && options.vectors == Some(4));
    let wrong = PciSpec::<ThingSpec>::parse("paked=on").unwrap_err();
    assert!(
        wrong.to_string().contains("did you mean \"packed\""),
        "{wrong}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is written where, with whatever width: no panic, and a reset helps.
    #[test]
    fn random_accesses_are_survived(
        accesses in proptest::collection::vec(
            (0..4u8, prop_oneof![0..0x40u64, 0x1000..0x1004u64, 0x2000..0x2010u64, 0x3000..0x3010u64, 0..0x5000u64],
             prop_oneof![Just(1usize), Just(2), Just(4), Just(8), 0..10usize],
             prop_oneof![0..16u64, any::<u64>()]),
            1..200,
        ),
    ) {
        let guest = Guest::new(1 << 20);
        let (echo, function) = machine(&guest, &packed(true));
        let mut driver = PciDriver::probe(Arc::clone(&function), &guest);
        driver.negotiate(u64::MAX);
        for (how, offset, len, value) in accesses {
            let mut data = [value.to_le_bytes(), value.to_le_bytes()].concat();
            data.truncate(len);
            match how {
                0 => _ = function.bar_write(4, offset, &data),
                1 => function.bar_read(4, offset, &mut data),
                2 => driver.write_config(0x40 + (offset % 0xc0) as u16, &data),
                _ => {
                    echo.serve((value % 3) as u16);
                }
            }
        }
        let saved = function.save().unwrap();
        let (_, other) = machine(&guest, &packed(true));
        prop_assert!(other.restore(saved).is_ok());
        function.reset();
        let mut driver = PciDriver::probe(Arc::clone(&function), &guest);
        let mut queues = driver.start(u64::MAX);
        queues[0].send(&[b"x"], &[1]);
        prop_assert_eq!(echo.serve(0), 1);
    }
}
