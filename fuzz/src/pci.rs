use std::sync::Arc;

use bus::{Action, Range};
use pci::testing::Bench;
use pci::{
    BarHandler, BarKind, Bdf, ConfigBuilder, Endpoint, Express, Function, HostBridge, Identity,
    IntxPin, Lpc, LpcHandler, LpcSettings, MsixLayout, PciError, RootComplex, RootPort,
    RootPortConfig, SlotResources,
};
use state::{Payload, StateError, Stateful};

use crate::{Script, assert_same};

/// An endpoint with every kind of BAR and no registers behind them.
struct Thing(Endpoint, Arc<Bars>);

struct Bars;

impl BarHandler for Bars {
    fn bar_read(&self, _bar: usize, _offset: u64, data: &mut [u8]) {
        bus::fill_ones(data);
    }

    fn bar_write(&self, _bar: usize, _offset: u64, _data: &[u8]) -> Action {
        Action::None
    }

    fn bar_moved(&self, _bar: usize, _address: Option<u64>) {}
}

impl LpcHandler for Bars {
    fn settings_changed(&self, _settings: &LpcSettings) {}
}

impl Thing {
    fn new(express: Express) -> Result<Arc<Self>, PciError> {
        let mut config = ConfigBuilder::endpoint(Identity {
            vendor: 0x1af4,
            device: 0x1044,
            revision: 1,
            class: 0xff_0000,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        });
        config.interrupt_pin(IntxPin::A);
        let (msix, size) = MsixLayout::own_bar(1, 3);
        config.bar(0, BarKind::Io, 0x20)?;
        config.bar(
            1,
            BarKind::Memory32 {
                prefetchable: false,
            },
            size,
        )?;
        config.bar(2, BarKind::Memory32 { prefetchable: true }, 0x1_0000)?;
        config.bar(4, BarKind::Memory64 { prefetchable: true }, 0x4000)?;
        config.msix(msix)?;
        config.express(express)?;
        config.power_management()?;
        config.aer()?;
        Ok(Arc::new(Self(
            Endpoint::new(config.build()),
            Arc::new(Bars),
        )))
    }
}

impl Stateful for Thing {
    fn save(&self) -> Result<Payload, StateError> {
        Payload::encode("thing", 1, &self.0.save())
    }

    fn restore(&self, payload: Payload) -> Result<(), StateError> {
        self.0.restore("thing", &payload.decode("thing", 1)?)
    }

    fn reset(&self) {
        self.0.reset();
    }
}

impl Function for Thing {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.0.config_read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Action {
        _ = self.0.config_write(offset, data);
        Action::None
    }

    fn attach(self: Arc<Self>, slot: SlotResources) {
        let bars = Arc::clone(&self.1) as Arc<dyn BarHandler>;
        self.0.attach(slot, &bars);
    }

    fn detach(&self) {
        self.0.detach();
    }

    fn as_bridge(&self) -> Option<&dyn pci::Bridge> {
        None
    }
}

struct Board {
    bench: Bench,
    root: Arc<RootComplex>,
    port: Arc<RootPort>,
    thing: Arc<Thing>,
}

impl Board {
    fn new() -> Result<Self, PciError> {
        let bench = Bench::new();
        let root = bench.root_complex();
        let config = RootPortConfig {
            port: 1,
            slot: 1,
            multifunction: false,
        };
        let port = RootPort::new(config, None)?;
        let thing = Thing::new(Express::IntegratedEndpoint {
            function_level_reset: true,
        })?;
        port.insert(Thing::new(Express::Endpoint {
            function_level_reset: true,
        })?)?;
        let ports = Range::new(pci::CONFIG_PORTS, 8);
        bench
            .ports
            .insert(ports, root.config_ports())
            .expect("free ports");
        let bridge = HostBridge::new(root.ecam(), Some(pci::ECAM_BASE), None);
        for (device, function) in [
            (0, bridge as Arc<dyn Function>),
            (1, thing.clone()),
            (2, port.clone()),
            (31, Lpc::new(Some(0x600), Arc::new(Bars))),
        ] {
            root.add(Bdf::from_devfn(0, device << 3), function)?;
        }
        Ok(Self {
            bench,
            root,
            port,
            thing,
        })
    }

    fn saved(&self) -> Vec<Payload> {
        let functions = self.root.functions();
        let saved = functions.iter().map(|(_, function)| function.save());
        saved.collect::<Result<_, _>>().expect("a state")
    }
}

impl Drop for Board {
    /// As long as BARs are on the bus, bus and functions keep each other.
    fn drop(&mut self) {
        self.port.eject();
        for (bdf, _) in self.root.functions() {
            self.root.remove(bdf);
        }
    }
}

/// A root complex with bridges and endpoints under any configuration and BAR accesses, also
/// where the guest has moved the BARs over each other.
pub fn pci_config(data: &[u8]) {
    let mut script = Script::new(data);
    let board = Board::new().expect("a board");
    while !script.is_over() {
        step(&mut script, &board);
    }
    // A second board goes on from the first one's state.
    let other = Board::new().expect("a board");
    if board.port.occupant().is_none() {
        other.port.eject();
    }
    for (bdf, function) in board.root.functions() {
        let twin = other.root.function(bdf).expect("the same functions");
        twin.restore(function.save().expect("a state"))
            .expect("its own state");
    }
    for (first, second) in board.saved().iter().zip(&other.saved()) {
        assert_same(first, second);
    }
    for (_, function) in board.root.functions() {
        function.reset();
    }
    for range in [&board.bench.memory, &board.bench.ports]
        .iter()
        .flat_map(|bus| bus.ranges())
    {
        assert!(range.last().is_some());
    }
}

fn step(script: &mut Script, board: &Board) {
    match script.u8() % 16 {
        0..=4 => {
            let (function, offset, data) =
                (script.u8(), script.u16() % 4096, script.u32().to_le_bytes());
            let (start, len) = register_part(offset, script.u8());
            _ = board.root.config_write(bdf(function), start, &data[..len]);
        }
        5..=6 => {
            let (function, offset) = (script.u8(), script.u16() % 4096);
            let (start, len) = register_part(offset, script.u8());
            board
                .root
                .config_read(bdf(function), start, &mut [0; 4][..len]);
        }
        7 => {
            let (port, len) = (0xcf8 + u64::from(script.u8() % 10), script.access());
            _ = board.bench.ports.write(port, script.bytes(len));
        }
        8 => board.bench.ports.read(
            0xcf8 + u64::from(script.u8() % 10),
            &mut vec![0; script.access()],
        ),
        9 => {
            let address = pci::ECAM_BASE + u64::from(script.u32() % pci::ECAM_SIZE as u32);
            let len = script.access();
            _ = board.bench.memory.write(address, script.bytes(len));
        }
        10 => {
            let address = pci::ECAM_BASE + u64::from(script.u32() % pci::ECAM_SIZE as u32);
            board
                .bench
                .memory
                .read(address, &mut vec![0; script.access()]);
        }
        // Some place on one of the buses, BARs and MSI-X tables among them.
        11 | 12 => {
            let bus = if script.flag() {
                &board.bench.memory
            } else {
                &board.bench.ports
            };
            let ranges = bus.ranges();
            if let Some(range) = ranges.get(usize::from(script.u8()) % ranges.len().max(1)) {
                let address = range.base + u64::from(script.u16()) % range.size;
                let len = script.access();
                match script.flag() {
                    true => _ = bus.write(address, script.bytes(len)),
                    false => bus.read(address, &mut vec![0; len]),
                }
            }
        }
        13 => {
            if let Some(msix) = board.thing.0.msix() {
                msix.interrupt(script.u8().into(), None).trigger();
            }
        }
        14 => match script.u8() % 4 {
            0 => _ = board.port.request_unplug(),
            1 => _ = board.port.eject(),
            2 => {
                let express = Express::Endpoint {
                    function_level_reset: true,
                };
                _ = Thing::new(express).and_then(|thing| board.port.plug(thing));
            }
            _ => board.thing.0.set_intx(script.flag()),
        },
        _ => match script.u8() % 8 {
            0 => board.thing.reset(),
            1 => board.port.reset(),
            _ => {}
        },
    }
}

fn bdf(function: u8) -> Bdf {
    // Mostly functions that are there, behind the bridge's likely bus numbers too.
    let device = [0, 1, 2, 31][usize::from(function & 3)];
    let bus = function >> 6;
    let device = if bus == 0 { device } else { 0 };
    let function = if function & 0x20 != 0 {
        function >> 2 & 7
    } else {
        0
    };
    Bdf::from_devfn(bus, device << 3 | function)
}

/// 1 to 4 bytes within one 32-bit register.
fn register_part(offset: u16, len: u8) -> (u16, usize) {
    let room = 4 - offset % 4;
    (offset, usize::from(room.min(1 << (len % 3))))
}
