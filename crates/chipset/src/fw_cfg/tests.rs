use proptest::prelude::*;

use super::*;

struct Ram(Mutex<Vec<u8>>);

impl Ram {
    fn span(address: u64, length: usize) -> Result<std::ops::Range<usize>, ChipsetError> {
        let start = usize::try_from(address).ok().filter(|a| *a < 0x1_0000);
        let end = start
            .and_then(|s| s.checked_add(length))
            .filter(|e| *e <= 0x1_0000);
        match (start, end) {
            (Some(start), Some(end)) => Ok(start..end),
            _ => Err(ChipsetError::GuestAddress { address, length }),
        }
    }
}

impl GuestMemoryAccess for Ram {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), ChipsetError> {
        data.copy_from_slice(&lock(&self.0)[Self::span(address, data.len())?]);
        Ok(())
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), ChipsetError> {
        lock(&self.0)[Self::span(address, data.len())?].copy_from_slice(data);
        Ok(())
    }
}

struct Bench {
    fw: Arc<FwCfg>,
    ram: Arc<Ram>,
    written: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Bench {
    fn new() -> Self {
        let ram = Arc::new(Ram(Mutex::new(vec![0xcc; 0x1_0000])));
        let fw = FwCfg::new(ram.clone());
        let written = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&written);
        fw.set(key::NB_CPUS, 4u16.to_le_bytes()).unwrap();
        fw.add_file("etc/e820", vec![1, 2, 3]).unwrap();
        fw.add_writable_file(
            "etc/vmgenid_addr",
            vec![0; 8],
            Box::new(move |data| lock(&log).push(data.to_vec())),
        )
        .unwrap();
        Self { fw, ram, written }
    }

    fn read(&self, key: u16, count: usize) -> Vec<u8> {
        _ = self.fw.write(0, &key.to_le_bytes());
        let mut data = vec![0; count];
        for byte in &mut data {
            self.fw.read(1, std::slice::from_mut(byte));
        }
        data
    }

    /// Runs a DMA command and returns its final control word.
    fn dma(&self, control: u32, length: u32, buffer: u64) -> u32 {
        let mut command = control.to_be_bytes().to_vec();
        command.extend(length.to_be_bytes());
        command.extend(buffer.to_be_bytes());
        self.ram.write(0x100, &command).unwrap();
        _ = self.fw.write(4, &[0; 4]);
        _ = self.fw.write(8, &0x100u32.to_be_bytes());
        let mut result = [0; 4];
        self.ram.read(0x100, &mut result).unwrap();
        u32::from_be_bytes(result)
    }

    fn memory(&self, address: u64, count: usize) -> Vec<u8> {
        let mut data = vec![0; count];
        self.ram.read(address, &mut data).unwrap();
        data
    }
}

#[test]
fn signature_version_numbers_and_directory() {
    let b = Bench::new();
    assert_eq!(b.read(key::SIGNATURE, 5), b"QEMU\0");
    assert_eq!(b.read(key::ID, 4), [3, 0, 0, 0]);
    assert_eq!(b.read(key::NB_CPUS, 2), [4, 0]);
    assert_eq!(b.read(0x7777, 2), [0, 0]);
    let directory = b.read(key::FILE_DIR, 4 + 2 * 64);
    assert_eq!(directory[..4], [0, 0, 0, 2]);
    assert_eq!(directory[4..21], *b"\0\0\0\x03\0\x20\0\0etc/e820\0");
    assert_eq!(directory[68..76], [0, 0, 0, 8, 0, 0x21, 0, 0]);
    assert_eq!(b.read(0x20, 4), [1, 2, 3, 0]);
    b.fw.update_file("etc/e820", vec![9; 5]).unwrap();
    assert_eq!(b.read(key::FILE_DIR, 8)[4..], [0, 0, 0, 5]);
    let mut signature = [0; 8];
    b.fw.read(4, &mut signature);
    assert_eq!(&signature, b"QEMU CFG");
}

#[test]
fn dma_reads_selects_skips_and_pads() {
    let b = Bench::new();
    assert_eq!(b.dma(0x0020 << 16 | 0x0a, 2, 0x200), 0);
    assert_eq!(b.memory(0x200, 3), [1, 2, 0xcc]);
    assert_eq!(b.dma(0x02, 2, 0x200), 0);
    assert_eq!(b.memory(0x200, 2), [3, 0]);
    assert_eq!(b.dma(0x0020 << 16 | 0x0c, 2, 0), 0);
    let mut byte = [0];
    b.fw.read(1, &mut byte);
    assert_eq!(byte, [3]);
    assert_eq!(b.dma(0x0019 << 16 | 0x0a, 0x8000, 0x400), 0);
    assert_eq!(b.memory(0x400 + 132, 0x7000), vec![0; 0x7000]);
    assert_eq!(b.memory(0x403, 1), [2]);
    // Beyond memory, also when the address wraps around.
    assert_eq!(b.dma(0x0020 << 16 | 0x0a, 4, 0xfffe), 1);
    assert_eq!(b.dma(0x0020 << 16 | 0x0a, u32::MAX, 0x1000), 1);
    assert_eq!(b.dma(0x0020 << 16 | 0x0a, 8, u64::MAX), 1);
}

#[test]
fn only_writable_files_are_written_and_only_within_their_size() {
    let b = Bench::new();
    b.ram.write(0x200, &[7; 8]).unwrap();
    assert_eq!(b.dma(0x0020 << 16 | 0x18, 1, 0x200), 1);
    assert_eq!(b.dma(0x0021 << 16 | 0x18, 9, 0x200), 1);
    assert_eq!(b.dma(0x0021 << 16 | 0x18, u32::MAX, 0x200), 1);
    assert_eq!(b.dma(0x0005 << 16 | 0x18, 1, 0x200), 1);
    assert!(lock(&b.written).is_empty());
    assert_eq!(b.dma(0x0021 << 16 | 0x18, 4, 0x200), 0);
    assert_eq!(lock(&b.written)[0], [7, 7, 7, 7, 0, 0, 0, 0]);
    // Through the data register nothing is written.
    _ = b.fw.write(0, &[0x20, 0]);
    _ = b.fw.write(1, &[0x55]);
    assert_eq!(b.read(0x20, 3), [1, 2, 3]);

    let saved = b.fw.save().unwrap();
    let other = Bench::new();
    other.fw.restore(saved.clone()).unwrap();
    assert_eq!(lock(&other.written).len(), 1);
    assert_eq!(other.fw.save().unwrap(), saved);
    other.fw.reset();
    assert_eq!(other.read(0x21, 8), [0; 8]);
    let bare = FwCfg::new(b.ram.clone());
    assert!(bare.restore(saved).is_err());
}

#[test]
fn bad_names_and_keys_are_refused() {
    let b = Bench::new();
    let long = "x".repeat(56);
    for name in ["", "a\0b", &long] {
        assert!(matches!(
            b.fw.add_file(name, vec![]),
            Err(ChipsetError::FileName(_))
        ));
    }
    assert!(matches!(
        b.fw.add_file("etc/e820", vec![]),
        Err(ChipsetError::FileExists(_))
    ));
    assert!(matches!(
        b.fw.update_file("etc/none", vec![]),
        Err(ChipsetError::NoFile(_))
    ));
    b.fw.add_file(&"y".repeat(55), vec![]).unwrap();
    for key in [0, 1, 0x19, 0x20, 0x7fff, 0x8020] {
        assert!(b.fw.set(key, vec![]).is_err(), "{key:#x}");
    }
    for key in [2, 0x18, 0x1a, 0x1f, 0x8000, 0x801f] {
        b.fw.set(key, vec![1]).unwrap();
        assert_eq!(b.read(key, 2), [1, 0]);
    }
}

#[test]
fn the_directory_has_a_limit() {
    let mut items = Items::new();
    for n in 0..MAX_FILES {
        let key = items.add(&n.to_string(), vec![], None).unwrap();
        assert_eq!(usize::from(key), 0x20 + n);
    }
    assert!(matches!(
        items.add("more", vec![], None),
        Err(ChipsetError::TooManyFiles { .. })
    ));
    assert_eq!(items.get(key::FILE_DIR).len(), 4 + 64 * MAX_FILES);
}

proptest! {
    #[test]
    fn random_accesses_leave_a_state_that_round_trips(
        ops in prop::collection::vec(
            (0u8..4, 0u64..14, any::<u64>(), 0usize..9, 0u32..0x40, 0u32..32), 0..100),
    ) {
        let b = Bench::new();
        for (op, offset, value, width, key, control) in ops {
            match op {
                0 => b.fw.read(offset, &mut vec![0; width]),
                1 => _ = b.fw.write(offset, &value.to_le_bytes()[..width]),
                2 => _ = b.fw.write(0, &(key as u16).to_le_bytes()),
                _ => _ = b.dma(key << 16 | control, value as u32 & 0x1f_ffff, value >> 47),
            }
        }
        let saved = b.fw.save().unwrap();
        let other = Bench::new();
        other.fw.restore(saved.clone()).unwrap();
        prop_assert_eq!(other.fw.save().unwrap(), saved);
    }
}
