//! Where the structures are in BARs and configuration space (VIRTIO 1.3 section 4.1.4), laid
//! out as QEMU does it: MSI-X in BAR 1, the rest in BAR 4, 4 KiB each.
//!
//! Doorbells are there twice: in BAR 4, and as I/O ports in BAR 0. A write to a port leaves the
//! guest with everything known; for one to memory, a processor without hints (AMD's, and every
//! emulated one) makes the hypervisor fetch and decode the instruction. Drivers take the first
//! notification structure that they can use, which is the one with ports.

use pci::{BarKind, ConfigBuilder, ConfigSpace, Express, IntxPin, MsixLayout, PciError};

use crate::Identity;

pub(super) const PORT_BAR: usize = 0;
pub(super) const MSIX_BAR: usize = 1;
pub(super) const BAR: usize = 4;
pub(super) const BAR_SIZE: u64 = 0x4000;

/// Size of each structure's window.
const WINDOW: u64 = 0x1000;
pub(super) const COMMON: u64 = 0;
pub(super) const ISR: u64 = WINDOW;
pub(super) const DEVICE: u64 = 2 * WINDOW;
pub(super) const NOTIFY: u64 = 3 * WINDOW;

/// Bytes between two queues' doorbells.
const NOTIFY_MULTIPLIER: u32 = 4;
/// Queues whose doorbells fit into the window.
pub(super) const MAX_QUEUES: usize = (WINDOW / NOTIFY_MULTIPLIER as u64) as usize;

/// Types of the structures, `cfg_type`.
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;
const CAP_PCI: u8 = 5;

const VENDOR: u16 = 0x1af4;
const SUBSYSTEM: u16 = 0x1100;
const DEVICE_BASE: u16 = 0x1040;

/// A structure's window in the BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Window {
    Common,
    Isr,
    Device,
    Notify,
}

/// The structure at `offset` of the BAR, and the offset within it.
pub(super) fn window(offset: u64) -> Option<(Window, u64)> {
    let window = match offset & !(WINDOW - 1) {
        COMMON => Window::Common,
        ISR => Window::Isr,
        DEVICE => Window::Device,
        NOTIFY => Window::Notify,
        _ => return None,
    };
    Some((window, offset % WINDOW))
}

/// Offset of a queue's doorbell in the notification structure.
pub(super) fn notify_offset(queue: usize) -> u64 {
    queue as u64 * u64::from(NOTIFY_MULTIPLIER)
}

/// The queue whose doorbell is at this offset of the notification structure.
pub(super) fn notify_queue(offset: u64) -> usize {
    (offset / u64::from(NOTIFY_MULTIPLIER)) as usize
}

/// The configuration space of a device, and where in it the PCI configuration access
/// capability is. `port_doorbells` is the number of queues whose doorbells are ports too.
pub(super) fn config_space(
    identity: Identity,
    vectors: u16,
    port_doorbells: Option<usize>,
    express: Option<Express>,
) -> Result<(ConfigSpace, u16), PciError> {
    let mut builder = ConfigBuilder::endpoint(pci::Identity {
        vendor: VENDOR,
        device: DEVICE_BASE.saturating_add(identity.device_type),
        revision: 1,
        class: identity.pci_class,
        subsystem_vendor: VENDOR,
        subsystem: SUBSYSTEM,
    });
    builder.interrupt_pin(IntxPin::A);
    builder.bar(BAR, BarKind::Memory64 { prefetchable: true }, BAR_SIZE)?;
    if vectors != 0 {
        let (layout, size) = MsixLayout::own_bar(MSIX_BAR, vectors);
        let kind = BarKind::Memory32 {
            prefetchable: false,
        };
        builder.bar(MSIX_BAR, kind, size)?;
        builder.msix(layout)?;
    }
    let length = WINDOW as u32;
    let structure = |kind, offset: u64| capability(kind, BAR as u8, offset as u32, length);
    builder.vendor_capability(&structure(CAP_COMMON, COMMON), &[])?;
    builder.vendor_capability(&structure(CAP_ISR, ISR), &[])?;
    builder.vendor_capability(&structure(CAP_DEVICE, DEVICE), &[])?;
    if let Some(queues) = port_doorbells {
        let size = notify_offset(queues.max(1)).next_power_of_two();
        builder.bar(PORT_BAR, BarKind::Io, size)?;
        let mut notify = capability(CAP_NOTIFY, PORT_BAR as u8, 0, size as u32).to_vec();
        notify.extend(NOTIFY_MULTIPLIER.to_le_bytes());
        builder.vendor_capability(&notify, &[])?;
    }
    let mut notify = structure(CAP_NOTIFY, NOTIFY).to_vec();
    notify.extend(NOTIFY_MULTIPLIER.to_le_bytes());
    builder.vendor_capability(&notify, &[])?;
    // The driver writes BAR, offset and length of the window, then uses the data behind them.
    let mut access = capability(CAP_PCI, 0, 0, 0).to_vec();
    access.extend([0; 4]);
    let writable = capability(0, 0xff, u32::MAX, u32::MAX);
    let access = builder.vendor_capability(&access, &writable)?;
    if let Some(express) = express {
        builder.power_management()?;
        builder.express(express)?;
    }
    Ok((builder.build(), access))
}

/// `struct virtio_pci_cap` from `cfg_type` on.
fn capability(kind: u8, bar: u8, offset: u32, length: u32) -> [u8; 13] {
    let mut body = [0; 13];
    body[0] = kind;
    body[1] = bar;
    body[5..9].copy_from_slice(&offset.to_le_bytes());
    body[9..13].copy_from_slice(&length.to_le_bytes());
    body
}

/// The window that the driver opened through configuration space (section 4.1.4.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) bar: usize,
    pub(super) offset: u64,
    pub(super) length: usize,
}

/// Offset of `pci_cfg_data` in the capability.
pub(super) const ACCESS_DATA: u16 = 16;

impl Access {
    /// The window, if it makes sense: 1, 2 or 4 bytes, aligned.
    pub(super) fn new(config: &ConfigSpace, capability: u16) -> Option<Self> {
        let offset = config.u32(capability + 8);
        let length = config.u32(capability + 12);
        let sound = matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length);
        sound.then_some(Self {
            bar: usize::from(config.u8(capability + 4)),
            offset: u64::from(offset),
            length: length as usize,
        })
    }
}
