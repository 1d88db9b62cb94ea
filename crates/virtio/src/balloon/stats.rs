use std::time::SystemTime;

/// Bytes of one statistic: a tag of 16 bits and a value of 64, packed.
pub(super) const ENTRY: usize = 10;

/// What the guest can tell, in the order of the tags (VIRTIO 1.3 section 5.5.6.3), with the
/// names that QMP's `guest-stats` has for it.
pub const NAMES: [&str; 16] = [
    "stat-swap-in",
    "stat-swap-out",
    "stat-major-faults",
    "stat-minor-faults",
    "stat-free-memory",
    "stat-total-memory",
    "stat-available-memory",
    "stat-disk-caches",
    "stat-htlb-pgalloc",
    "stat-htlb-pgfail",
    "stat-oom-kills",
    "stat-alloc-stalls",
    "stat-scan-async",
    "stat-scan-direct",
    "stat-reclaim-async",
    "stat-reclaim-direct",
];

/// The guest's memory statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    values: [Option<u64>; NAMES.len()],
    /// When the guest told them; `None` when it never did.
    pub last_update: Option<SystemTime>,
}

impl Stats {
    /// What the guest told, by the names of [`NAMES`]: bytes, or a count since it started.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let values = NAMES.iter().zip(self.values);
        values.filter_map(|(name, value)| Some((*name, value?)))
    }

    /// Takes a packed entry; tags that are not known are left out.
    pub(super) fn set(&mut self, entry: [u8; ENTRY]) {
        let [t0, t1, value @ ..] = entry;
        let tag = usize::from(u16::from_le_bytes([t0, t1]));
        if let Some(slot) = self.values.get_mut(tag) {
            *slot = Some(u64::from_le_bytes(value));
        }
    }
}
