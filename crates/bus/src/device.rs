use crate::Action;

/// Anything with registers, on a port or memory-mapped.
///
/// `offset` counts from the start of the range under which the device was inserted. `data` has
/// the length of the access (1, 2, 4 or 8 bytes from a processor; others are possible from
/// emulated string instructions) and little-endian order. Accesses that the device does not
/// define read as all ones and are ignored when written, as on a PC.
pub trait Device: Send + Sync {
    /// Reads registers into `data`.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Writes registers and returns what that did to the machine.
    fn write(&self, offset: u64, data: &[u8]) -> Action;
}

/// What an access to nothing reads as.
pub fn fill_ones(data: &mut [u8]) {
    data.fill(0xff);
}

/// The little-endian number in `data`, of which only the first 8 bytes count.
#[must_use]
pub fn read_le(data: &[u8]) -> u64 {
    data.iter()
        .take(8)
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Stores `value` little-endian into `data`; bytes beyond the eighth become zero.
pub fn write_le(data: &mut [u8], value: u64) {
    for (i, byte) in data.iter_mut().enumerate() {
        *byte = value
            .checked_shr(8 * u32::try_from(i).unwrap_or(8))
            .unwrap_or(0) as u8;
    }
}
