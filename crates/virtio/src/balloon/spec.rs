spec::spec! {
    /// A balloon: memory that the guest gives back to the host.
    pub struct BalloonSpec("virtio-balloon-pci") {
        /// Let the guest take memory out of the balloon rather than kill processes.
        deflate_on_oom: bool = false,
        /// Let the guest report memory that it does not use, which the host then takes back.
        free_page_reporting: bool = true,
        /// Ask the guest for memory statistics every so many seconds; 0 never.
        guest_stats_polling_interval: u32 = 0,
        /// Name of the I/O thread that serves the device.
        iothread: Option<String>,
    }
}
