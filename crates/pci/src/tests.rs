//! What several modules' tests share: a device with every kind of BAR, and the proof that no
//! configuration write breaks a function.

use std::sync::{Arc, Mutex};

use bus::{Action, Bus, Space};
use proptest::prelude::*;
use state::{Payload, StateError, Stateful};

use crate::testing::Bench;
use crate::*;

/// A device that keeps the last byte written to each BAR and remembers where its BARs went.
pub(crate) struct Probe {
    pub pci: Endpoint,
    pub last: Mutex<[u8; 6]>,
    pub moves: Mutex<Vec<(usize, Option<u64>)>>,
    pub resets: Mutex<u32>,
}

/// Sizes of the probe's BARs: 0 is 32-bit memory with MSI-X, 1 ports, 2 and 3 64-bit memory.
pub(crate) const MEMORY32: u64 = 0x1000;
pub(crate) const IO: u64 = 0x20;
pub(crate) const MEMORY64: u64 = 0x1_0000_0000;

pub(crate) const PROBE: Identity = Identity {
    vendor: 0x1af4,
    device: 0x1041,
    revision: 1,
    class: 0x02_0000,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

pub(crate) fn probe() -> Arc<Probe> {
    let mut config = ConfigBuilder::endpoint(PROBE);
    config.interrupt_pin(IntxPin::A);
    let memory32 = BarKind::Memory32 {
        prefetchable: false,
    };
    let memory64 = BarKind::Memory64 { prefetchable: true };
    config.bar(0, memory32, MEMORY32).unwrap();
    config.bar(1, BarKind::Io, IO).unwrap();
    config.bar(2, memory64, MEMORY64).unwrap();
    config.power_management().unwrap();
    let (layout, _) = MsixLayout::own_bar(0, 3);
    config.msix(layout).unwrap();
    config
        .express(Express::Endpoint {
            function_level_reset: true,
        })
        .unwrap();
    config.serial_number(0x1122_3344_5566_7788).unwrap();
    config.aer().unwrap();
    Arc::new(Probe {
        pci: Endpoint::new(config.build()),
        last: Mutex::default(),
        moves: Mutex::default(),
        resets: Mutex::default(),
    })
}

impl Function for Probe {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.pci.config_read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Action {
        if self.pci.config_write(offset, data).function_reset {
            self.reset();
        }
        Action::None
    }

    fn attach(self: Arc<Self>, slot: SlotResources) {
        let handler: Arc<dyn BarHandler> = self.clone();
        self.pci.attach(slot, &handler);
    }

    fn detach(&self) {
        self.pci.detach();
    }

    fn as_bridge(&self) -> Option<&dyn Bridge> {
        None
    }
}

impl BarHandler for Probe {
    fn bar_read(&self, bar: usize, _offset: u64, data: &mut [u8]) {
        data.fill(self.last.lock().unwrap()[bar]);
    }

    fn bar_write(&self, bar: usize, _offset: u64, data: &[u8]) -> Action {
        self.last.lock().unwrap()[bar] = data[0];
        Action::None
    }

    fn bar_moved(&self, bar: usize, address: Option<u64>) {
        self.moves.lock().unwrap().push((bar, address));
    }
}

impl Stateful for Probe {
    fn save(&self) -> Result<Payload, StateError> {
        Payload::encode("probe", 1, &self.pci.save())
    }

    fn restore(&self, payload: Payload) -> Result<(), StateError> {
        self.pci.restore("probe", &payload.decode("probe", 1)?)
    }

    fn reset(&self) {
        *self.resets.lock().unwrap() += 1;
        self.pci.reset();
    }
}

pub(crate) fn read32(function: &dyn Function, offset: u16) -> u32 {
    let mut data = [0; 4];
    function.config_read(offset, &mut data);
    u32::from_le_bytes(data)
}

pub(crate) fn read16(function: &dyn Function, offset: u16) -> u16 {
    let mut data = [0; 2];
    function.config_read(offset, &mut data);
    u16::from_le_bytes(data)
}

pub(crate) fn write32(function: &dyn Function, offset: u16, value: u32) {
    let _ = function.config_write(offset, &value.to_le_bytes());
}

pub(crate) fn write16(function: &dyn Function, offset: u16, value: u16) {
    let _ = function.config_write(offset, &value.to_le_bytes());
}

/// Offset of a capability, found as software finds it.
pub(crate) fn capability(function: &dyn Function, id: u8) -> Option<u16> {
    let mut at = read16(function, regs::CAPABILITIES_POINTER) & 0xfc;
    for _ in 0..48 {
        if at == 0 {
            return None;
        }
        let header = read16(function, at);
        if header as u8 == id {
            return Some(at);
        }
        at = header >> 8 & 0xfc;
    }
    None
}

/// One access to a register: offset and data.
fn accesses() -> impl Strategy<Value = Vec<(u16, Vec<u8>)>> {
    let near = prop_oneof![0..0x140_u16, 0..0x1000_u16];
    let value = prop_oneof![
        Just(u32::MAX),
        Just(0),
        Just(0x7),
        Just(0xc000_0007),
        any::<u32>()
    ];
    let access = (near, prop_oneof![Just(1_usize), Just(2), Just(4)], value);
    prop::collection::vec(
        access.prop_map(|(offset, len, value)| {
            let offset = offset & !(len as u16 - 1);
            (offset, value.to_le_bytes()[..len].to_vec())
        }),
        1..60,
    )
}

/// Writes, and checks what must hold for every function whatever is written.
fn batter(function: &Arc<dyn Function>, other: &Arc<dyn Function>, writes: &[(u16, Vec<u8>)]) {
    let bench = Bench::new();
    Arc::clone(function).attach(bench.slot());
    let fixed = (read32(&**function, 0), read32(&**function, 8));
    for (offset, data) in writes {
        let _ = function.config_write(*offset, data);
        let mut read = data.clone();
        function.config_read(*offset, &mut read);
    }
    assert_eq!((read32(&**function, 0), read32(&**function, 8)), fixed);
    let ids = [regs::CAP_POWER_MANAGEMENT, regs::CAP_EXPRESS];
    let found = ids.map(|id| capability(&**function, id));
    assert_eq!(found, ids.map(|id| capability(&**other, id)));

    let payload = function.save().unwrap();
    let second = Bench::new();
    Arc::clone(other).attach(second.slot());
    other.restore(payload.clone()).unwrap();
    assert_eq!(other.save().unwrap(), payload);
    assert_eq!(bench.memory.ranges(), second.memory.ranges());
    assert_eq!(bench.ports.ranges(), second.ports.ranges());
    for pin in IntxPin::ALL {
        assert_eq!(bench.intx(pin), second.intx(pin));
    }

    function.reset();
    other.reset();
    assert_eq!(function.save().unwrap(), other.save().unwrap());
    function.detach();
    assert!(bench.memory.ranges().is_empty());
    assert!(bench.ports.ranges().is_empty());
    assert!(!IntxPin::ALL.iter().any(|pin| bench.intx(*pin)));
}

struct Nobody;

impl LpcHandler for Nobody {
    fn settings_changed(&self, _settings: &LpcSettings) {}
}

fn port() -> Arc<RootPort> {
    let config = RootPortConfig {
        port: 1,
        slot: 1,
        multifunction: false,
    };
    RootPort::new(config, None).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_write_breaks_an_endpoint(writes in accesses()) {
        batter(&(probe() as _), &(probe() as _), &writes);
    }

    #[test]
    fn no_write_breaks_a_host_bridge(writes in accesses()) {
        let ecam = Bench::new().root_complex().ecam();
        let bridge = || HostBridge::new(Arc::clone(&ecam), Some(ECAM_BASE), None);
        batter(&(bridge() as _), &(bridge() as _), &writes);
    }

    #[test]
    fn no_write_breaks_an_lpc_bridge(writes in accesses()) {
        let lpc = || Lpc::new(Some(0x600), Arc::new(Nobody));
        batter(&(lpc() as _), &(lpc() as _), &writes);
    }

    #[test]
    fn no_write_breaks_a_root_port(writes in accesses()) {
        batter(&(port() as _), &(port() as _), &writes);
    }

    #[test]
    fn decoded_bars_are_where_the_registers_say(writes in accesses()) {
        let bench = Bench::new();
        let device = probe();
        Arc::clone(&device).attach(bench.slot());
        for (offset, data) in &writes {
            let _ = device.config_write(*offset, data);
            let wanted = device.pci.with_config(|config| config.bar_ranges());
            for (bar, wanted) in wanted.into_iter().enumerate() {
                let Some((space, range)) = wanted else {
                    prop_assert_eq!(device.pci.bar_address(bar), None);
                    continue;
                };
                let at: &Bus = match space {
                    Space::Memory => &bench.memory,
                    Space::Port => &bench.ports,
                };
                let there = at.ranges().contains(&range);
                prop_assert_eq!(device.pci.bar_address(bar).is_some(), there);
                // The probe is alone, so only RAM or its own other BAR can be in the way.
                let in_ram = space == Space::Memory && range.base < Bench::RAM_END;
                let crowded = at.ranges().iter().any(|r| *r != range);
                prop_assert!(there || in_ram || crowded);
            }
        }
    }

    #[test]
    fn any_payload_is_refused_or_taken_without_panic(data: Vec<u8>) {
        for kind in ["pcie-root-port", "ich9-lpc", "q35-host-bridge"] {
            let payload = Payload { kind: kind.to_owned(), version: 1, data: data.clone() };
            let _ = port().restore(payload.clone());
            let _ = Lpc::new(None, Arc::new(Nobody)).restore(payload);
        }
    }
}

#[test]
fn addresses_read_and_print() {
    for (text, place) in [
        ("00:1f.0", (0, 0x1f, 0)),
        ("1f.2", (0, 0x1f, 2)),
        ("3", (0, 3, 0)),
        ("fe:00.7", (0xfe, 0, 7)),
    ] {
        let bdf: Bdf = text.parse().unwrap();
        assert_eq!((bdf.bus(), bdf.device(), bdf.function()), place);
        assert_eq!(bdf.to_string().parse(), Ok(bdf));
    }
    for text in ["", "20", "0.8", "+1", "1:", "100:0.0", "0:0.0.0", "g"] {
        assert!(text.parse::<Bdf>().is_err(), "{text}");
    }
    assert_eq!("00:1f.0".parse::<Bdf>().unwrap().to_string(), "00:1f.0");
}
