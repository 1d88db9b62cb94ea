use std::sync::Arc;
use std::time::{Duration, Instant};

use ::pci::testing::Bench;
use ::pci::{Function, IntxPin};
use bus::{DoorbellAddress, MsiMessage, Space, read_le};

use super::{DriverQueue, Guest};
use crate::VirtioPci;

/// How long a test waits for an interrupt before it fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the driver puts BARs; each gets 1 MiB.
const BARS: u64 = 0xe000_0000;
/// Where I/O BARs go.
const PORTS: u64 = 0xc000;

/// A structure that a capability points to.
#[derive(Debug, Clone, Copy, Default)]
struct Structure {
    bar: usize,
    offset: u64,
}

/// A driver that finds and runs a virtio function through configuration space and BARs, in the
/// order in which Linux does it. Panics where the function breaks the rules.
pub struct PciDriver {
    function: Arc<VirtioPci>,
    guest: Guest,
    bench: Bench,
    bars: [u64; 6],
    /// Which BARs are I/O ports.
    ports: [bool; 6],
    structures: [Structure; 5],
    notify_multiplier: u64,
    /// Offset of the PCI configuration access capability.
    access: u16,
    msix: Option<(u16, Structure)>,
    features: u64,
}

/// Offsets in the common configuration structure.
mod common {
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DEVICE_FEATURE: u64 = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const CONFIG_VECTOR: u64 = 0x10;
    pub const NUM_QUEUES: u64 = 0x12;
    pub const STATUS: u64 = 0x14;
    pub const GENERATION: u64 = 0x15;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub const QUEUE_DESC: u64 = 0x20;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DEVICE: u64 = 0x30;
    pub const QUEUE_RESET: u64 = 0x3a;
}

const COMMON: usize = 1;
const NOTIFY: usize = 2;
const ISR: usize = 3;
const DEVICE: usize = 4;

impl PciDriver {
    /// Puts `function` into a slot of its own, gives addresses to its BARs and reads its
    /// capabilities. MSI-X is switched on with every vector's data being its number.
    ///
    /// # Panics
    /// The function is no modern virtio function.
    #[must_use]
    pub fn probe(function: Arc<VirtioPci>, guest: &Guest) -> Self {
        let mut driver = Self::plug(function, guest);
        driver.assign_bars();
        driver.read_capabilities();
        driver.enable_msix();
        driver
    }

    fn plug(function: Arc<VirtioPci>, guest: &Guest) -> Self {
        let bench = Bench::new();
        Arc::clone(&function).attach(bench.slot());
        Self {
            function,
            guest: guest.clone(),
            bench,
            bars: [0; 6],
            ports: [false; 6],
            structures: [Structure::default(); 5],
            notify_multiplier: 0,
            access: 0,
            msix: None,
            features: 0,
        }
    }

    /// A driver of the same kind in another machine, onto which this one's was restored: it
    /// knows what this one knew.
    #[must_use]
    pub fn moved_to(self, function: Arc<VirtioPci>) -> Self {
        self.function.detach();
        let fresh = Self::plug(function, &self.guest);
        Self {
            bars: self.bars,
            ports: self.ports,
            structures: self.structures,
            notify_multiplier: self.notify_multiplier,
            access: self.access,
            msix: self.msix,
            features: self.features,
            ..fresh
        }
    }

    fn assign_bars(&mut self) {
        let mut bar = 0;
        while bar < 6 {
            let register = 0x10 + 4 * bar as u16;
            self.write_config(register, &u32::MAX.to_le_bytes());
            let low = self.read_config(register, 4) as u32;
            let wide = low & 0x7 == 4;
            if low != 0 {
                self.ports[bar] = low & 1 != 0;
                let address = match self.ports[bar] {
                    true => PORTS + ((bar as u64) << 8),
                    false => BARS + ((bar as u64) << 20),
                };
                self.bars[bar] = address;
                self.write_config(register, &(address as u32).to_le_bytes());
                if wide {
                    self.write_config(register + 4, &[0; 4]);
                }
            }
            bar += 1 + usize::from(wide);
        }
        self.write_config(::pci::regs::COMMAND, &[7, 0]);
    }

    fn read_capabilities(&mut self) {
        assert_eq!(self.read_config(::pci::regs::VENDOR_ID, 2), 0x1af4);
        let mut at = self.read_config(::pci::regs::CAPABILITIES_POINTER, 1) as u16;
        while at != 0 {
            let bar = self.read_config(at + 4, 1) as usize;
            let structure = Structure {
                bar,
                offset: self.read_config(at + 8, 4),
            };
            match self.read_config(at, 1) as u8 {
                ::pci::regs::CAP_VENDOR => match self.read_config(at + 3, 1) as usize {
                    // As Linux does it: the first one counts.
                    NOTIFY if self.notify_multiplier != 0 => {}
                    kind @ COMMON..=DEVICE => {
                        self.structures[kind] = structure;
                        if kind == NOTIFY {
                            self.notify_multiplier = self.read_config(at + 16, 4);
                        }
                    }
                    5 => self.access = at,
                    kind => panic!("a structure of type {kind}"),
                },
                ::pci::regs::CAP_MSIX => {
                    let table = self.read_config(at + 4, 4);
                    let structure = Structure {
                        bar: (table & 7) as usize,
                        offset: table & !7,
                    };
                    self.msix = Some((at, structure));
                }
                _ => {}
            }
            at = self.read_config(at + 1, 1) as u16;
        }
        assert!(self.access != 0);
    }

    fn enable_msix(&mut self) {
        let Some((capability, table)) = self.msix else {
            return;
        };
        let vectors = self.read_config(capability + 2, 2) + 1;
        for vector in 0..vectors {
            let at = self.bars[table.bar] + table.offset + 16 * vector;
            for (i, value) in [0xfee0_0000, 0, vector as u32, 0].into_iter().enumerate() {
                _ = self
                    .bench
                    .memory
                    .write(at + 4 * i as u64, &u32::to_le_bytes(value));
            }
        }
        self.write_config(capability + 2, &0x8000u16.to_le_bytes());
    }

    /// Switches MSI-X off: the function falls back on INTx.
    pub fn disable_msix(&mut self) {
        if let Some((capability, _)) = self.msix {
            self.write_config(capability + 2, &[0, 0]);
        }
    }

    /// Resets the device and agrees on those of its features that are in `wanted`, up to
    /// FEATURES_OK. Returns what was agreed.
    ///
    /// # Panics
    /// The device does not take what it offered.
    pub fn negotiate(&mut self, wanted: u64) -> u64 {
        self.set_status(0);
        assert_eq!(self.status(), 0);
        self.set_status(1);
        self.set_status(3);
        let features = self.offered() & wanted;
        for half in 0..2u64 {
            self.write_common(common::DRIVER_FEATURE_SELECT, 4, half);
            self.write_common(common::DRIVER_FEATURE, 4, features >> (32 * half));
        }
        self.set_status(0xb);
        assert_eq!(self.status(), 0xb, "FEATURES_OK");
        self.features = features;
        features
    }

    /// The features that the device offers.
    #[must_use]
    pub fn offered(&self) -> u64 {
        let half = |select: u64| {
            self.write_common(common::DEVICE_FEATURE_SELECT, 4, select);
            self.read_common(common::DEVICE_FEATURE, 4)
        };
        half(0) | half(1) << 32
    }

    /// The number of queues.
    #[must_use]
    pub fn queues(&self) -> u16 {
        self.read_common(common::NUM_QUEUES, 2) as u16
    }

    /// Sets up queue `index` with at most `size` descriptors and vector `index + 1`, and
    /// enables it.
    ///
    /// # Panics
    /// The device does not take it.
    pub fn setup_queue(&mut self, index: u16, size: u16) -> DriverQueue {
        self.write_common(common::QUEUE_SELECT, 2, index.into());
        let max = self.read_common(common::QUEUE_SIZE, 2) as u16;
        assert!(max != 0, "queue {index} is not there");
        assert_eq!(self.read_common(common::QUEUE_ENABLE, 2), 0);
        let queue = DriverQueue::new(&self.guest, size.min(max), self.features);
        let config = queue.config();
        self.write_common(common::QUEUE_SIZE, 2, config.size.into());
        self.write_common(common::QUEUE_VECTOR, 2, u64::from(index) + 1);
        for (register, address) in [
            (common::QUEUE_DESC, config.desc_addr),
            (common::QUEUE_DRIVER, config.driver_addr),
            (common::QUEUE_DEVICE, config.device_addr),
        ] {
            self.write_common(register, 4, address & 0xffff_ffff);
            self.write_common(register + 4, 4, address >> 32);
        }
        self.write_common(common::QUEUE_ENABLE, 2, 1);
        assert_eq!(self.read_common(common::QUEUE_ENABLE, 2), 1);
        queue
    }

    /// Resets one queue (RING_RESET).
    ///
    /// # Panics
    /// The queue does not stop.
    pub fn reset_queue(&mut self, index: u16) {
        self.write_common(common::QUEUE_SELECT, 2, index.into());
        self.write_common(common::QUEUE_RESET, 2, 1);
        assert_eq!(self.read_common(common::QUEUE_RESET, 2), 0);
        assert_eq!(self.read_common(common::QUEUE_ENABLE, 2), 0);
    }

    /// Gives vector 0 to configuration changes and says DRIVER_OK.
    pub fn driver_ok(&mut self) {
        self.write_common(common::CONFIG_VECTOR, 2, 0);
        self.set_status(0xf);
    }

    /// All of the above: agrees on the features in `wanted`, sets up every queue, and goes.
    ///
    /// # Panics
    /// The device does not take it.
    pub fn start(&mut self, wanted: u64) -> Vec<DriverQueue> {
        self.negotiate(wanted);
        let queues = (0..self.queues())
            .map(|index| self.setup_queue(index, 256))
            .collect();
        self.driver_ok();
        queues
    }

    /// Kicks queue `index`, whether it wants to be or not.
    pub fn kick(&self, index: u16) {
        self.write_common(common::QUEUE_SELECT, 2, index.into());
        let offset = self.read_common(common::QUEUE_NOTIFY_OFF, 2) * self.notify_multiplier;
        let address = self.address(NOTIFY) + offset;
        let (space, bus) = match self.ports[self.structures[NOTIFY].bar] {
            true => (Space::Port, &self.bench.ports),
            false => (Space::Memory, &self.bench.memory),
        };
        let doorbell = DoorbellAddress {
            space,
            address,
            length: 0,
            value: None,
        };
        if !self.bench.host.ring(&doorbell) {
            _ = bus.write(address, &index.to_le_bytes());
        }
    }

    /// The doorbells that hang now.
    #[must_use]
    pub fn doorbells(&self) -> Vec<DoorbellAddress> {
        self.bench.host.doorbells()
    }

    /// The device status register.
    #[must_use]
    pub fn status(&self) -> u8 {
        self.read_common(common::STATUS, 1) as u8
    }

    /// Writes the device status register.
    pub fn set_status(&self, status: u8) {
        self.write_common(common::STATUS, 1, status.into());
    }

    /// The configuration generation.
    #[must_use]
    pub fn generation(&self) -> u8 {
        self.read_common(common::GENERATION, 1) as u8
    }

    /// Reads the device's configuration space.
    #[must_use]
    pub fn device_config(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.bench
            .memory
            .read(self.address(DEVICE) + offset, &mut data);
        data
    }

    /// Writes the device's configuration space.
    pub fn write_device_config(&self, offset: u64, data: &[u8]) {
        _ = self.bench.memory.write(self.address(DEVICE) + offset, data);
    }

    /// Reads the ISR status register, which clears it.
    #[must_use]
    pub fn isr(&self) -> u8 {
        let mut data = [0];
        self.bench.memory.read(self.address(ISR), &mut data);
        data[0]
    }

    /// The level of the function's INTA#.
    #[must_use]
    pub fn intx(&self) -> bool {
        self.bench.intx(IntxPin::A)
    }

    /// Takes the vectors that were sent so far.
    #[must_use]
    pub fn take_vectors(&self) -> Vec<u32> {
        let number = |message: MsiMessage| message.data;
        self.bench
            .host
            .take_sent()
            .into_iter()
            .map(number)
            .collect()
    }

    /// Waits until vector `vector` is sent; other vectors are dropped.
    ///
    /// # Panics
    /// It is not sent within 10 seconds.
    pub fn wait_vector(&self, vector: u32) {
        let end = Instant::now() + PATIENCE;
        while !self.take_vectors().contains(&vector) {
            assert!(Instant::now() < end, "vector {vector} does not come");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Reads a register through the PCI configuration access capability.
    #[must_use]
    pub fn read_by_config(&self, bar: u8, offset: u32, len: u32) -> u32 {
        self.open_window(bar, offset, len);
        self.read_config(self.access + 16, len as usize) as u32
    }

    /// Writes a register through the PCI configuration access capability.
    pub fn write_by_config(&self, bar: u8, offset: u32, data: &[u8]) {
        self.open_window(bar, offset, data.len() as u32);
        self.write_config(self.access + 16, data);
    }

    fn open_window(&self, bar: u8, offset: u32, len: u32) {
        self.write_config(self.access + 4, &[bar]);
        self.write_config(self.access + 8, &offset.to_le_bytes());
        self.write_config(self.access + 12, &len.to_le_bytes());
    }

    /// Reads configuration space.
    #[must_use]
    pub fn read_config(&self, offset: u16, len: usize) -> u64 {
        let mut data = vec![0; len];
        self.function.config_read(offset, &mut data);
        read_le(&data)
    }

    /// Writes configuration space.
    pub fn write_config(&self, offset: u16, data: &[u8]) {
        _ = self.function.config_write(offset, data);
    }

    /// Reads the common configuration structure.
    #[must_use]
    pub fn read_common(&self, offset: u64, len: usize) -> u64 {
        let mut data = vec![0; len];
        self.bench
            .memory
            .read(self.address(COMMON) + offset, &mut data);
        read_le(&data)
    }

    /// Writes the common configuration structure.
    pub fn write_common(&self, offset: u64, len: usize, value: u64) {
        let bytes = value.to_le_bytes();
        _ = self
            .bench
            .memory
            .write(self.address(COMMON) + offset, &bytes[..len]);
    }

    fn address(&self, structure: usize) -> u64 {
        let Structure { bar, offset } = self.structures[structure];
        self.bars[bar] + offset
    }
}
