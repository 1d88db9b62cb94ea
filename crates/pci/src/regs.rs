//! Offsets and bits of configuration space, named as the PCI specifications name them
//! (PCI Local Bus 3.0 chapter 6, PCI-to-PCI Bridge 1.2 chapter 3, PCI Express Base 4.0
//! chapter 7).

/// Vendor ID (16 bits).
pub const VENDOR_ID: u16 = 0x00;
/// Device ID (16 bits).
pub const DEVICE_ID: u16 = 0x02;
/// Command (16 bits).
pub const COMMAND: u16 = 0x04;
/// Status (16 bits).
pub const STATUS: u16 = 0x06;
/// Revision ID (8 bits), followed by the class code (24 bits).
pub const REVISION_ID: u16 = 0x08;
/// Cache Line Size (8 bits).
pub const CACHE_LINE_SIZE: u16 = 0x0c;
/// Latency Timer (8 bits).
pub const LATENCY_TIMER: u16 = 0x0d;
/// Header Type (8 bits).
pub const HEADER_TYPE: u16 = 0x0e;
/// First base address register (32 bits).
pub const BAR0: u16 = 0x10;
/// Subsystem Vendor ID and Subsystem ID (16 bits each), type 0 only.
pub const SUBSYSTEM_VENDOR_ID: u16 = 0x2c;
/// Capabilities Pointer (8 bits).
pub const CAPABILITIES_POINTER: u16 = 0x34;
/// Interrupt Line (8 bits).
pub const INTERRUPT_LINE: u16 = 0x3c;
/// Interrupt Pin (8 bits).
pub const INTERRUPT_PIN: u16 = 0x3d;

/// Primary, secondary and subordinate bus number (8 bits each), type 1 only.
pub const PRIMARY_BUS: u16 = 0x18;
/// I/O Base and I/O Limit (8 bits each), type 1 only.
pub const IO_BASE: u16 = 0x1c;
/// Secondary Status (16 bits), type 1 only.
pub const SECONDARY_STATUS: u16 = 0x1e;
/// Memory Base and Memory Limit (16 bits each), type 1 only.
pub const MEMORY_BASE: u16 = 0x20;
/// Prefetchable Memory Base and Limit (16 bits each), type 1 only.
pub const PREFETCHABLE_BASE: u16 = 0x24;
/// Upper halves of the prefetchable base and limit (32 bits each), type 1 only.
pub const PREFETCHABLE_BASE_UPPER: u16 = 0x28;
/// Upper halves of the I/O base and limit (16 bits each), type 1 only.
pub const IO_BASE_UPPER: u16 = 0x30;
/// Bridge Control (16 bits), type 1 only.
pub const BRIDGE_CONTROL: u16 = 0x3e;

/// Command: I/O Space Enable.
pub const COMMAND_IO: u16 = 1 << 0;
/// Command: Memory Space Enable.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: Bus Master Enable.
pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Command: Parity Error Response.
pub const COMMAND_PARITY: u16 = 1 << 6;
/// Command: SERR# Enable.
pub const COMMAND_SERR: u16 = 1 << 8;
/// Command: Interrupt Disable.
pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;

/// Status: Interrupt Status.
pub const STATUS_INTERRUPT: u16 = 1 << 3;
/// Status: Capabilities List.
pub const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Status: the error bits, which software clears by writing 1.
pub const STATUS_ERRORS: u16 = 0xf900;

/// Header Type: the device has more than one function.
pub const HEADER_MULTIFUNCTION: u8 = 1 << 7;

/// Bridge Control: Secondary Bus Reset.
pub const BRIDGE_CONTROL_RESET: u16 = 1 << 6;

/// Capability ID: PCI Power Management.
pub const CAP_POWER_MANAGEMENT: u8 = 0x01;
/// Capability ID: Message Signalled Interrupts.
pub const CAP_MSI: u8 = 0x05;
/// Capability ID: vendor-specific.
pub const CAP_VENDOR: u8 = 0x09;
/// Capability ID: bridge subsystem vendor and subsystem ID.
pub const CAP_SUBSYSTEM: u8 = 0x0d;
/// Capability ID: PCI Express.
pub const CAP_EXPRESS: u8 = 0x10;
/// Capability ID: MSI-X.
pub const CAP_MSIX: u8 = 0x11;

/// Extended capability ID: Advanced Error Reporting.
pub const EXT_CAP_AER: u16 = 0x0001;
/// Extended capability ID: Device Serial Number.
pub const EXT_CAP_SERIAL_NUMBER: u16 = 0x0003;
/// Extended capability ID: Access Control Services.
pub const EXT_CAP_ACS: u16 = 0x000d;

/// MSI-X Message Control: Function Mask.
pub const MSIX_FUNCTION_MASK: u16 = 1 << 14;
/// MSI-X Message Control: MSI-X Enable.
pub const MSIX_ENABLE: u16 = 1 << 15;
