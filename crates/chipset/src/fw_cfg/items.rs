use std::collections::BTreeMap;

use crate::ChipsetError;

/// Numeric keys (QEMU's fw_cfg interface, docs/specs/fw_cfg.rst).
pub mod key {
    /// The four letters of the signature.
    pub const SIGNATURE: u16 = 0x00;
    /// Interface version bits: 1 traditional, 2 DMA.
    pub const ID: u16 = 0x01;
    /// The machine's UUID, 16 bytes.
    pub const UUID: u16 = 0x02;
    /// Memory in bytes, 64 bits.
    pub const RAM_SIZE: u16 = 0x03;
    /// No display, 16 bits.
    pub const NOGRAPHIC: u16 = 0x04;
    /// Processors at start, 16 bits.
    pub const NB_CPUS: u16 = 0x05;
    /// Where the kernel is to be loaded, 32 bits.
    pub const KERNEL_ADDR: u16 = 0x07;
    /// Size of the kernel, 32 bits.
    pub const KERNEL_SIZE: u16 = 0x08;
    /// Where the initial RAM disk is to be loaded, 32 bits.
    pub const INITRD_ADDR: u16 = 0x0a;
    /// Size of the initial RAM disk, 32 bits.
    pub const INITRD_SIZE: u16 = 0x0b;
    /// NUMA nodes.
    pub const NUMA: u16 = 0x0d;
    /// Show the boot menu, 16 bits.
    pub const BOOT_MENU: u16 = 0x0e;
    /// Highest APIC ID plus 1, 16 bits.
    pub const MAX_CPUS: u16 = 0x0f;
    /// Entry point of the kernel, 32 bits.
    pub const KERNEL_ENTRY: u16 = 0x10;
    /// The kernel.
    pub const KERNEL_DATA: u16 = 0x11;
    /// The initial RAM disk.
    pub const INITRD_DATA: u16 = 0x12;
    /// Where the command line is to be loaded, 32 bits.
    pub const CMDLINE_ADDR: u16 = 0x13;
    /// Size of the command line with its final zero, 32 bits.
    pub const CMDLINE_SIZE: u16 = 0x14;
    /// The command line.
    pub const CMDLINE_DATA: u16 = 0x15;
    /// Where the kernel's set-up code is to be loaded, 32 bits.
    pub const SETUP_ADDR: u16 = 0x16;
    /// Size of the set-up code, 32 bits.
    pub const SETUP_SIZE: u16 = 0x17;
    /// The set-up code.
    pub const SETUP_DATA: u16 = 0x18;
    /// The directory of files.
    pub const FILE_DIR: u16 = 0x19;
    /// First file.
    pub const FILE_FIRST: u16 = 0x20;
    /// First key of the architecture's own; 0x20 of them.
    pub const ARCH_LOCAL: u16 = 0x8000;
}

/// Most files.
pub const MAX_FILES: usize = 256;

/// Bytes of a file's name in the directory, with its final zero.
const NAME_SIZE: usize = 56;

/// Called with a writable file's whole content after the guest has written.
pub type OnWrite = Box<dyn FnMut(&[u8]) + Send>;

struct File {
    name: String,
    data: Vec<u8>,
    /// Content at power-on and the callback, when the guest may write.
    writable: Option<(Vec<u8>, OnWrite)>,
}

/// All items by key. Files get ascending keys in the order of their addition.
#[derive(Default)]
pub struct Items {
    numeric: BTreeMap<u16, Vec<u8>>,
    files: Vec<File>,
    directory: Vec<u8>,
}

impl Items {
    /// Signature, version and an empty directory.
    #[must_use]
    pub fn new() -> Self {
        let mut items = Self::default();
        items.numeric.insert(key::SIGNATURE, b"QEMU".to_vec());
        items.numeric.insert(key::ID, 3u32.to_le_bytes().to_vec());
        items.rebuild_directory();
        items
    }

    /// Sets a numeric item.
    ///
    /// # Errors
    /// The key is reserved or the item too large.
    pub fn set(&mut self, key: u16, data: Vec<u8>) -> Result<(), ChipsetError> {
        let local = key.checked_sub(key::ARCH_LOCAL).is_some_and(|n| n < 0x20);
        let free = (key::UUID..key::FILE_FIRST).contains(&key) && key != key::FILE_DIR;
        if !local && !free {
            return Err(ChipsetError::Key(key));
        }
        check_size(&format!("{key:#x}"), &data)?;
        self.numeric.insert(key, data);
        Ok(())
    }

    /// Adds a file.
    ///
    /// # Errors
    /// The name is bad or taken, or there is no room.
    pub fn add(
        &mut self,
        name: &str,
        data: Vec<u8>,
        on_write: Option<OnWrite>,
    ) -> Result<u16, ChipsetError> {
        if name.is_empty() || name.len() >= NAME_SIZE || name.contains('\0') {
            return Err(ChipsetError::FileName(name.to_owned()));
        }
        if self.files.iter().any(|f| f.name == name) {
            return Err(ChipsetError::FileExists(name.to_owned()));
        }
        if self.files.len() >= MAX_FILES {
            return Err(ChipsetError::TooManyFiles {
                name: name.to_owned(),
                limit: MAX_FILES,
            });
        }
        check_size(name, &data)?;
        self.files.push(File {
            name: name.to_owned(),
            writable: on_write.map(|f| (data.clone(), f)),
            data,
        });
        self.rebuild_directory();
        Ok(key::FILE_FIRST + (self.files.len() - 1) as u16)
    }

    /// Replaces a file's content, at power-on too.
    ///
    /// # Errors
    /// No such file, or the content is too large.
    pub fn update(&mut self, name: &str, data: Vec<u8>) -> Result<(), ChipsetError> {
        check_size(name, &data)?;
        let file = self.files.iter_mut().find(|f| f.name == name);
        let file = file.ok_or_else(|| ChipsetError::NoFile(name.to_owned()))?;
        if let Some((initial, _)) = &mut file.writable {
            initial.clone_from(&data);
        }
        file.data = data;
        self.rebuild_directory();
        Ok(())
    }

    /// The item with this key; empty when there is none.
    #[must_use]
    pub fn get(&self, key: u16) -> &[u8] {
        if key == key::FILE_DIR {
            return &self.directory;
        }
        let file = key.checked_sub(key::FILE_FIRST).map(usize::from);
        match file.and_then(|n| self.files.get(n)) {
            Some(file) => &file.data,
            None => self.numeric.get(&key).map_or(&[], Vec::as_slice),
        }
    }

    /// `length` bytes at `offset` of the writable item with this key.
    pub fn writable(&mut self, key: u16, offset: usize, length: usize) -> Option<&mut [u8]> {
        let n = usize::from(key.checked_sub(key::FILE_FIRST)?);
        let file = self.files.get_mut(n).filter(|f| f.writable.is_some())?;
        file.data.get_mut(offset..offset.checked_add(length)?)
    }

    /// Tells a writable item's owner that it was written.
    pub fn written(&mut self, key: u16) {
        let n = key.checked_sub(key::FILE_FIRST).map(usize::from);
        if let Some(file) = n.and_then(|n| self.files.get_mut(n))
            && let Some((_, on_write)) = &mut file.writable
        {
            on_write(&file.data);
        }
    }

    /// Name and content of all writable files.
    #[must_use]
    pub fn all_writable(&self) -> Vec<(String, Vec<u8>)> {
        self.files
            .iter()
            .filter(|f| f.writable.is_some())
            .map(|f| (f.name.clone(), f.data.clone()))
            .collect()
    }

    /// Puts back what the guest had written; tells their owners when all fit.
    ///
    /// # Errors
    /// The reason, when one is no writable file of that size.
    pub fn restore_writable(&mut self, written: &[(String, Vec<u8>)]) -> Result<(), String> {
        for (name, data) in written {
            let known = self.files.iter().find(|f| f.name == *name);
            let known = known.filter(|f| f.writable.is_some());
            match known.map(|f| f.data.len()) {
                None => return Err(format!("no writable file {name:?}")),
                Some(size) if size != data.len() => {
                    return Err(format!("file {name:?} of {} bytes, not {size}", data.len()));
                }
                Some(_) => (),
            }
        }
        for (name, data) in written {
            for file in self.files.iter_mut().filter(|f| f.name == *name) {
                let news = file.data != *data;
                file.data.clone_from(data);
                if let Some((_, on_write)) = file.writable.as_mut().filter(|_| news) {
                    on_write(&file.data);
                }
            }
        }
        Ok(())
    }

    /// Forgets what the guest has written.
    pub fn reset_writable(&mut self) {
        for file in &mut self.files {
            if let Some((initial, _)) = &file.writable {
                file.data.clone_from(initial);
            }
        }
    }

    fn rebuild_directory(&mut self) {
        let mut directory = (self.files.len() as u32).to_be_bytes().to_vec();
        for (file, key) in self.files.iter().zip(key::FILE_FIRST..) {
            directory.extend((file.data.len() as u32).to_be_bytes());
            directory.extend(key.to_be_bytes());
            directory.extend([0; 2]);
            let mut name = [0; NAME_SIZE];
            for (to, from) in name.iter_mut().zip(file.name.bytes()) {
                *to = from;
            }
            directory.extend(name);
        }
        self.directory = directory;
    }
}

fn check_size(name: &str, data: &[u8]) -> Result<(), ChipsetError> {
    if u32::try_from(data.len()).is_err() {
        return Err(ChipsetError::ItemTooLarge {
            name: name.to_owned(),
            size: data.len(),
            limit: u32::MAX as usize,
        });
    }
    Ok(())
}
