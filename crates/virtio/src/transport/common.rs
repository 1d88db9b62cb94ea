//! The common configuration structure (VIRTIO 1.3 section 4.1.4.3) and the rules for device
//! status and features (sections 2.1 and 2.2): a pure register model.

use bus::{read_le, write_le};
use serde::{Deserialize, Serialize};

use crate::features::{RING_PACKED, RING_RESET, VERSION_1};
use crate::queue::QueueConfig;

/// Bytes of the structure that mean something.
pub(super) const SIZE: usize = 0x40;

/// No MSI-X vector.
pub(super) const NO_VECTOR: u16 = 0xffff;

/// Bits of the device status register (section 2.1).
pub(super) mod status {
    pub(in crate::transport) const ACKNOWLEDGE: u8 = 0x01;
    pub(in crate::transport) const DRIVER: u8 = 0x02;
    pub(in crate::transport) const DRIVER_OK: u8 = 0x04;
    pub(in crate::transport) const FEATURES_OK: u8 = 0x08;
    pub(in crate::transport) const NEEDS_RESET: u8 = 0x40;
    pub(in crate::transport) const FAILED: u8 = 0x80;
}

const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: u64 = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIG_MSIX_VECTOR: u64 = 0x10;
const NUM_QUEUES: u64 = 0x12;
const DEVICE_STATUS: u64 = 0x14;
const CONFIG_GENERATION: u64 = 0x15;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_MSIX_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_NOTIFY_OFF: u64 = 0x1e;
const QUEUE_DESC: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;
const QUEUE_RESET: u64 = 0x3a;

/// What the shell has to do after a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Effect {
    Nothing,
    /// The driver reset the device.
    Reset,
    /// The driver is ready: the device and its enabled queues start.
    DriverOk,
    /// A queue was enabled while the device runs.
    StartQueue(u16),
    /// A queue was reset by itself.
    StopQueue(u16),
    /// A vector changed.
    Vectors,
}

/// What the driver says about one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRegisters {
    /// `queue_size`.
    pub size: u16,
    /// `queue_msix_vector`.
    pub vector: u16,
    /// `queue_enable`.
    pub enabled: bool,
    /// `queue_desc`.
    pub desc: u64,
    /// `queue_driver`.
    pub driver: u64,
    /// `queue_device`.
    pub device: u64,
}

/// The registers as plain data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommonState {
    /// `device_feature_select`.
    pub device_feature_select: u32,
    /// `driver_feature_select`.
    pub driver_feature_select: u32,
    /// The features that the driver has written.
    pub driver_features: u64,
    /// `config_msix_vector`.
    pub config_vector: u16,
    /// `device_status`, without NEEDS_RESET.
    pub status: u8,
    /// `queue_select`.
    pub queue_select: u16,
    /// The queues.
    pub queues: Vec<QueueRegisters>,
}

#[derive(Debug)]
pub(super) struct Common {
    offered: u64,
    /// Largest size of each queue.
    sizes: Vec<u16>,
    /// MSI-X vectors that the function has.
    vectors: u16,
    state: CommonState,
}

impl Common {
    pub(super) fn new(offered: u64, sizes: Vec<u16>, vectors: u16) -> Self {
        let state = CommonState {
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            status: 0,
            queue_select: 0,
            queues: sizes.iter().map(|size| fresh(*size)).collect(),
        };
        Self {
            offered,
            sizes,
            vectors,
            state,
        }
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new(self.offered, std::mem::take(&mut self.sizes), self.vectors);
    }

    pub(super) fn state(&self) -> &CommonState {
        &self.state
    }

    /// Takes over saved registers; says what is wrong with them.
    pub(super) fn restore(&mut self, state: CommonState) -> Result<(), String> {
        if state.queues.len() != self.sizes.len() {
            return Err(format!(
                "it has {} queues, not {}",
                state.queues.len(),
                self.sizes.len()
            ));
        }
        for (queue, max) in state.queues.iter().zip(&self.sizes) {
            if queue.size == 0 || queue.size > *max {
                return Err(format!("a queue of size {}, not 1 to {max}", queue.size));
            }
        }
        let missing = state.driver_features & !self.offered;
        if state.status & status::FEATURES_OK != 0 && missing != 0 {
            return Err(format!(
                "the driver uses features {missing:#x}, which this device does not offer"
            ));
        }
        let known = |vector| vector == NO_VECTOR || vector < self.vectors;
        if !known(state.config_vector) || !state.queues.iter().all(|q| known(q.vector)) {
            return Err(format!("a vector beyond {}", self.vectors));
        }
        self.state = state;
        Ok(())
    }

    /// The negotiated features.
    pub(super) fn features(&self) -> u64 {
        self.state.driver_features & self.offered
    }

    /// Whether the driver has said DRIVER_OK.
    pub(super) fn driver_ok(&self) -> bool {
        self.state.status & status::DRIVER_OK != 0
    }

    /// How queue `index` is set up, if it is enabled.
    pub(super) fn queue_config(&self, index: u16) -> Option<QueueConfig> {
        let queue = self.state.queues.get(usize::from(index))?;
        queue.enabled.then(|| QueueConfig {
            size: queue.size,
            desc_addr: queue.desc,
            driver_addr: queue.driver,
            device_addr: queue.device,
            features: self.features(),
        })
    }

    /// The whole structure as it reads now.
    pub(super) fn image(&self, needs_reset: bool, generation: u8) -> [u8; SIZE] {
        let mut image = [0; SIZE];
        let mut put = |offset: u64, width: usize, value: u64| {
            write_le(&mut image[offset as usize..][..width], value);
        };
        let half = |features: u64, select: u32| match select {
            0 => features & 0xffff_ffff,
            1 => features >> 32,
            _ => 0,
        };
        let s = &self.state;
        put(DEVICE_FEATURE_SELECT, 4, s.device_feature_select.into());
        put(
            DEVICE_FEATURE,
            4,
            half(self.offered, s.device_feature_select),
        );
        put(DRIVER_FEATURE_SELECT, 4, s.driver_feature_select.into());
        put(
            DRIVER_FEATURE,
            4,
            half(s.driver_features, s.driver_feature_select),
        );
        put(CONFIG_MSIX_VECTOR, 2, s.config_vector.into());
        put(NUM_QUEUES, 2, self.sizes.len() as u64);
        let trouble = if needs_reset { status::NEEDS_RESET } else { 0 };
        put(DEVICE_STATUS, 1, (s.status | trouble).into());
        put(CONFIG_GENERATION, 1, generation.into());
        put(QUEUE_SELECT, 2, s.queue_select.into());
        // A queue that is not there has size 0 (section 4.1.5.1.3).
        if let Some(queue) = s.queues.get(usize::from(s.queue_select)) {
            put(QUEUE_SIZE, 2, queue.size.into());
            put(QUEUE_MSIX_VECTOR, 2, queue.vector.into());
            put(QUEUE_ENABLE, 2, queue.enabled.into());
            put(QUEUE_NOTIFY_OFF, 2, s.queue_select.into());
            put(QUEUE_DESC, 8, queue.desc);
            put(QUEUE_DRIVER, 8, queue.driver);
            put(QUEUE_DEVICE, 8, queue.device);
        }
        image
    }

    /// A write by the driver. What has another width than the field, or does not fit the
    /// device's state, is ignored.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let value = read_le(data);
        let s = &mut self.state;
        match (offset, data.len()) {
            (DEVICE_FEATURE_SELECT, 4) => s.device_feature_select = value as u32,
            (DRIVER_FEATURE_SELECT, 4) => s.driver_feature_select = value as u32,
            (DRIVER_FEATURE, 4) if s.status & status::FEATURES_OK == 0 => {
                match s.driver_feature_select {
                    0 => s.driver_features = s.driver_features >> 32 << 32 | value,
                    1 => s.driver_features = s.driver_features & 0xffff_ffff | value << 32,
                    _ => {}
                }
            }
            (CONFIG_MSIX_VECTOR, 2) => {
                s.config_vector = known_vector(value as u16, self.vectors);
                return Effect::Vectors;
            }
            (DEVICE_STATUS, 1) => return self.write_status(value as u8),
            (QUEUE_SELECT, 2) => s.queue_select = value as u16,
            (QUEUE_SIZE | QUEUE_MSIX_VECTOR | QUEUE_ENABLE | QUEUE_RESET, 2)
            | (QUEUE_DESC..QUEUE_RESET, 4 | 8) => {
                return self.write_queue(offset, data.len(), value);
            }
            _ => {}
        }
        Effect::Nothing
    }

    fn write_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        let s = &mut self.state;
        // The driver only ever adds bits (section 2.1.1).
        let mut new = s.status
            | value
                & (status::ACKNOWLEDGE
                    | status::DRIVER
                    | status::FEATURES_OK
                    | status::DRIVER_OK
                    | status::FAILED);
        if new & !s.status & status::FEATURES_OK != 0 {
            let unknown = s.driver_features & !self.offered != 0;
            if unknown || s.driver_features & VERSION_1 == 0 {
                new &= !status::FEATURES_OK;
            }
        }
        if new & status::FEATURES_OK == 0 {
            new &= !status::DRIVER_OK;
        }
        let started = new & !s.status & status::DRIVER_OK != 0;
        s.status = new;
        if started {
            Effect::DriverOk
        } else {
            Effect::Nothing
        }
    }

    fn write_queue(&mut self, offset: u64, width: usize, value: u64) -> Effect {
        let features = self.features();
        let running = self.driver_ok();
        let index = self.state.queue_select;
        let Some(queue) = self.state.queues.get_mut(usize::from(index)) else {
            return Effect::Nothing;
        };
        let max = self.sizes.get(usize::from(index)).copied().unwrap_or(0);
        match offset {
            QUEUE_MSIX_VECTOR => {
                queue.vector = known_vector(value as u16, self.vectors);
                return Effect::Vectors;
            }
            QUEUE_RESET if value == 1 && features & RING_RESET != 0 && queue.enabled => {
                *queue = fresh(max);
                return Effect::StopQueue(index);
            }
            // What is below must not change while the queue is enabled (section 4.1.4.3.2).
            _ if queue.enabled => {}
            QUEUE_SIZE => {
                let size = value as u16;
                let odd = features & RING_PACKED == 0 && !size.is_power_of_two();
                if size != 0 && size <= max && !odd {
                    queue.size = size;
                }
            }
            QUEUE_ENABLE if value == 1 => {
                queue.enabled = true;
                if running {
                    return Effect::StartQueue(index);
                }
            }
            _ => {
                let register = match offset & !7 {
                    QUEUE_DESC => &mut queue.desc,
                    QUEUE_DRIVER => &mut queue.driver,
                    QUEUE_DEVICE => &mut queue.device,
                    _ => return Effect::Nothing,
                };
                match (offset & 7, width) {
                    (0, 8) => *register = value,
                    (0, 4) => *register = *register >> 32 << 32 | value,
                    (4, 4) => *register = *register & 0xffff_ffff | value << 32,
                    _ => {}
                }
            }
        }
        Effect::Nothing
    }
}

/// A queue after reset: of its largest size, at no address.
fn fresh(size: u16) -> QueueRegisters {
    QueueRegisters {
        size,
        vector: NO_VECTOR,
        enabled: false,
        desc: 0,
        driver: 0,
        device: 0,
    }
}

/// A vector that the function has not reads back as none (section 4.1.5.1.2).
fn known_vector(vector: u16, vectors: u16) -> u16 {
    if vector < vectors { vector } else { NO_VECTOR }
}
