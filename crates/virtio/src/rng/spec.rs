use std::path::PathBuf;

use spec::Size;

spec::spec! {
    /// A source of entropy.
    pub struct RngSpec("virtio-rng-pci") {
        /// File or device to read, such as /dev/hwrng; the host kernel's generator when not given.
        filename: Option<PathBuf>,
        /// Bytes that the guest may have in each period; no limit when not given.
        max_bytes: Option<Size>,
        /// Length of a period in milliseconds.
        period: u32 = 1000,
        /// Name of the I/O thread that serves the device.
        iothread: Option<String>,
    }
}
