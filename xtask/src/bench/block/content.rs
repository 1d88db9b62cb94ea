//! A disk as disks are: text, records, noise, zeros that were written, and holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Runs of one kind have from one to so many pages of 4 KiB.
const LONGEST: u64 = 1024;
const PAGE: usize = 4096;

/// Marsaglia's xorshift: the same disk every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end.max(1)
    }
}

/// Makes a raw disk of `size` bytes: of 20 parts, 7 are text, 3 records, 3 noise, 2 zeros and 5
/// holes.
pub fn write(file: &Path, size: u64) -> io::Result<()> {
    let file = File::create(file)?;
    file.set_len(size)?;
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut at = 0;
    while at < size {
        let most = 1 << random.below(LONGEST.ilog2().into());
        let pages = (1 + most + random.below(most)).min((size - at).div_ceil(PAGE as u64));
        let len = (pages * PAGE as u64).min(size - at);
        let bytes = match random.below(20) {
            0..7 => text(&mut random, len),
            7..10 => records(&mut random, len),
            10..13 => noise(&mut random, len),
            13..15 => vec![0; len as usize],
            _ => Vec::new(),
        };
        file.write_all_at(&bytes, at)?;
        at += len;
    }
    Ok(())
}

fn text(random: &mut Random, len: u64) -> Vec<u8> {
    const SYLLABLES: [&str; 16] = [
        "ka", "ter", "in", "mo", "les", "ar", "vi", "on", "su", "pre", "ti", "ble", "co", "de",
        "ur", "ex",
    ];
    let mut bytes = Vec::with_capacity(len as usize + 64);
    while bytes.len() < len as usize {
        // Some words are much more frequent than others.
        let bits = 2 + random.below(14);
        let word = random.below(1 << bits);
        let mut rest = word + 1;
        while rest > 0 {
            bytes.extend_from_slice(SYLLABLES[(rest % 16) as usize].as_bytes());
            rest /= 16;
        }
        bytes.push(if word % 11 == 3 { b'\n' } else { b' ' });
    }
    bytes.truncate(len as usize);
    bytes
}

/// Numbers that grow, small numbers, and flags, as programs keep them.
fn records(random: &mut Random, len: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len as usize + 32);
    let mut time = random.next() >> 24;
    while bytes.len() < len as usize {
        time += random.below(5000);
        bytes.extend_from_slice(&time.to_le_bytes());
        let bits = random.below(20);
        bytes.extend_from_slice(&(random.below(1 << bits) as u32).to_le_bytes());
        bytes.extend_from_slice(&[0, 1, 0, (random.below(4) * 16) as u8]);
    }
    bytes.truncate(len as usize);
    bytes
}

fn noise(random: &mut Random, len: u64) -> Vec<u8> {
    let words = (0..len.div_ceil(8)).flat_map(|_| random.next().to_le_bytes());
    let mut bytes: Vec<u8> = words.collect();
    bytes.truncate(len as usize);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_all_sorts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        write(&path, (8 << 20) + 512).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), (8 << 20) + 512);
        let pages = bytes.chunks(PAGE);
        let zeros = pages.filter(|page| page.iter().all(|b| *b == 0)).count();
        assert!((100..1900).contains(&zeros), "{zeros}");
        write(&path, 8 << 20).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes[..8 << 20]);
    }
}
