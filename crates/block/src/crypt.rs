//! Encryption of what guests store, between a format and its storage.
//!
//! ```text
//!   write   guest's memory ── copy ──▶ memory of ours ── encrypt in place ──▶ storage
//!   read    storage ──▶ memory of ours ── decrypt in place ── copy ──▶ guest's memory
//! ```
//!
//! The guest's memory never holds ciphertext, and no cipher works on it: other processors of the
//! guest may change it at any time, and what was encrypted would not be what was checked.

use std::io;
use std::sync::Arc;

use event::{IoBuf, WriteFlags};
use luks::{Header, LuksError, MasterKey, NewHeader, Passphrase, SectorCipher};
use nix::errno::Errno;
use zeroize::Zeroizing;

use crate::buffer::{self, Parts};
use crate::storage::Storage;
use crate::{DiskSpec, Transfer};

/// Bytes that are encrypted alone.
pub(crate) const SECTOR: u64 = luks::SECTOR as u64;
/// Bytes of a request that are worked on at once: what a request costs in memory.
const PIECE: usize = 1 << 20;
/// Pieces of so many bytes are encrypted on a helper thread: others on this one would wait.
const ELSEWHERE: usize = 128 << 10;
/// Most bytes of a key file.
const MAX_KEY_FILE: u64 = 64 << 10;

/// Why something encrypted cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CryptError {
    /// The header, or the passphrase.
    #[error(transparent)]
    Luks(#[from] LuksError),
    /// Nobody said the passphrase.
    #[error("it is encrypted: say key-file=FILE, with the passphrase in that file")]
    NoKey,
    /// The passphrase is wrong, and it may be the line's end.
    #[error(
        "{0}; the line's end at the end of the key file is part of it (`printf %s` writes none)"
    )]
    LineEnd(LuksError),
    /// The header is in a file of its own.
    #[error(
        "the encrypted sectors are not behind the LUKS header: detached headers are not supported"
    )]
    Detached,
    /// The host failed.
    #[error("cannot {what}")]
    Io {
        /// What was being done: a verb and what follows it.
        what: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

impl CryptError {
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

impl From<CryptError> for io::Error {
    fn from(error: CryptError) -> Self {
        match error {
            CryptError::Io { source, .. } => source,
            CryptError::NoKey => Errno::ENOKEY.into(),
            other => Self::other(other),
        }
    }
}

/// How an image is encrypted: what it says about itself without the passphrase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encryption {
    /// qcow2's own, which is not secure.
    Aes,
    /// LUKS1.
    Luks(Box<Header>),
}

/// How a new image is to be encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEncryption {
    /// The LUKS header.
    pub header: NewHeader,
    /// The passphrase of its first slot.
    pub passphrase: Passphrase,
}

/// The encryption of an open image.
pub(crate) struct Crypt {
    /// `None`: nobody said the passphrase, and only metadata can be used.
    cipher: Option<Arc<SectorCipher>>,
    /// IVs are the numbers of the guest's sectors, and not of the image's.
    by_guest: bool,
    /// What the image says.
    pub(crate) kind: Encryption,
}

impl Crypt {
    /// qcow2's own encryption.
    pub(crate) fn aes(passphrase: Option<&Passphrase>) -> Self {
        Self {
            cipher: passphrase.map(|secret| Arc::new(SectorCipher::legacy_aes(secret))),
            by_guest: true,
            kind: Encryption::Aes,
        }
    }

    /// LUKS, whose header begins at `at`.
    pub(crate) async fn luks<S: Storage>(
        storage: &S,
        at: u64,
        by_guest: bool,
        passphrase: Option<&Passphrase>,
    ) -> Result<Self, CryptError> {
        let header = read_header(storage, at).await?;
        let cipher = match passphrase {
            None => None,
            Some(passphrase) => {
                let (_, key) = unlock(storage, at, &header, passphrase).await?;
                Some(Arc::new(header.sectors(&key)?))
            }
        };
        Ok(Self {
            cipher,
            by_guest,
            kind: Encryption::Luks(Box::new(header)),
        })
    }

    /// Whether the passphrase is known.
    pub(crate) fn is_open(&self) -> bool {
        self.cipher.is_some()
    }

    fn cipher(&self) -> io::Result<&Arc<SectorCipher>> {
        self.cipher.as_ref().ok_or_else(|| Errno::ENOKEY.into())
    }

    fn sector(&self, host: u64, guest: u64) -> u64 {
        (if self.by_guest { guest } else { host }) / SECTOR
    }

    /// Reads into all of `buf` from `host` on, where the guest's bytes from `guest` on are. Both
    /// are as far from the beginning of a sector.
    pub(crate) async fn read<S: Storage>(
        &self,
        storage: &S,
        buf: IoBuf,
        host: u64,
        guest: u64,
    ) -> Transfer {
        if buf.is_empty() {
            return (Ok(()), buf);
        }
        if buf.len() < PIECE {
            let result = self.read_piece(storage, &buf, host, guest).await;
            return (result, buf);
        }
        let parts = Parts::new(buf);
        let (mut done, mut result) = (0, Ok(()));
        while done < parts.len() && result.is_ok() {
            let (host, guest) = (host + done as u64, guest + done as u64);
            // All pieces but the first begin with a sector.
            let part = parts.part(done, PIECE - (host % SECTOR) as usize);
            result = self.read_piece(storage, &part, host, guest).await;
            done += part.len();
        }
        (result, parts.into_whole())
    }

    async fn read_piece<S: Storage>(
        &self,
        storage: &S,
        buf: &IoBuf,
        host: u64,
        guest: u64,
    ) -> io::Result<()> {
        let cipher = self.cipher()?;
        // Sectors are read whole.
        let skip = host % SECTOR;
        let len = (skip as usize + buf.len()).next_multiple_of(luks::SECTOR);
        let (result, bytes) = storage.read(buffer::zeroed(len)?, host - skip).await;
        result?;
        let first = self.sector(host, guest);
        let decrypt = move |cipher: &SectorCipher, bytes: &mut [u8]| cipher.decrypt(first, bytes);
        let bytes = apply(cipher, bytes, decrypt).await?;
        let bytes = bytes.bytes().and_then(|bytes| bytes.get(skip as usize..));
        let bytes = bytes.unwrap_or_default();
        buffer::scatter(buf, &bytes[..buf.len().min(bytes.len())]);
        Ok(())
    }

    /// Writes all of `buf`, which are whole sectors.
    pub(crate) async fn write<S: Storage>(
        &self,
        storage: &S,
        buf: IoBuf,
        host: u64,
        guest: u64,
        flags: WriteFlags,
    ) -> Transfer {
        if buf.is_empty() {
            return (Ok(()), buf);
        }
        if !host.is_multiple_of(SECTOR) || !buf.len().is_multiple_of(luks::SECTOR) {
            return (Err(Errno::EINVAL.into()), buf);
        }
        if buf.len() <= PIECE {
            let result = self.write_piece(storage, &buf, host, guest, flags).await;
            return (result, buf);
        }
        let parts = Parts::new(buf);
        let (mut done, mut result) = (0, Ok(()));
        while done < parts.len() && result.is_ok() {
            let (host, guest) = (host + done as u64, guest + done as u64);
            let part = parts.part(done, PIECE);
            result = self.write_piece(storage, &part, host, guest, flags).await;
            done += part.len();
        }
        (result, parts.into_whole())
    }

    async fn write_piece<S: Storage>(
        &self,
        storage: &S,
        buf: &IoBuf,
        host: u64,
        guest: u64,
        flags: WriteFlags,
    ) -> io::Result<()> {
        let cipher = self.cipher()?;
        let mut bytes = buffer::zeroed(buf.len())?;
        if let Some(bytes) = bytes.bytes_mut() {
            buffer::gather(buf, bytes);
        }
        let first = self.sector(host, guest);
        let encrypt = move |cipher: &SectorCipher, bytes: &mut [u8]| cipher.encrypt(first, bytes);
        let bytes = apply(cipher, bytes, encrypt).await?;
        storage.write(bytes, host, flags).await.0
    }
}

/// Encrypts or decrypts memory of ours.
async fn apply(
    cipher: &Arc<SectorCipher>,
    mut buf: IoBuf,
    work: impl FnOnce(&SectorCipher, &mut [u8]) -> Result<(), LuksError> + Send + 'static,
) -> io::Result<IoBuf> {
    let len = buf.bytes().map_or(0, <[u8]>::len);
    let cipher = Arc::clone(cipher);
    let call = move || {
        let bytes = buf.bytes_mut().unwrap_or_default();
        work(&cipher, bytes).map_err(io::Error::other)?;
        Ok(buf)
    };
    match len < ELSEWHERE {
        true => call(),
        false => event::unblock(call).await.map_err(io::Error::other)?,
    }
}

/// Random bytes of the host.
pub(crate) fn random(bytes: &mut [u8]) -> Result<(), LuksError> {
    getrandom::fill(bytes).map_err(|error| LuksError::Random(error.to_string()))
}

/// Reads the LUKS header at `at`.
pub(crate) async fn read_header<S: Storage>(storage: &S, at: u64) -> Result<Header, CryptError> {
    let bytes = read(storage, at, Header::LENGTH as u64).await?;
    Ok(Header::parse(&bytes)?)
}

async fn read<S: Storage>(storage: &S, at: u64, len: u64) -> Result<Vec<u8>, CryptError> {
    let fail = || CryptError::io("read the LUKS header");
    let buf = buffer::zeroed(len as usize).map_err(fail())?;
    let (result, buf) = storage.read(buf, at).await;
    result.map_err(fail())?;
    Ok(buf.bytes().map(<[u8]>::to_vec).unwrap_or_default())
}

/// Writes a part of the header and makes it stable.
pub(crate) async fn write<S: Storage>(
    storage: &S,
    at: u64,
    bytes: &[u8],
) -> Result<(), CryptError> {
    let fail = || CryptError::io("write the LUKS header");
    let buf = buffer::aligned(bytes).map_err(fail())?;
    let flags = WriteFlags::default();
    storage.write(buf, at, flags).await.0.map_err(fail())?;
    storage.flush().await.map_err(fail())
}

/// On a helper thread: passphrases take seconds on purpose.
async fn elsewhere<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, LuksError> + Send + 'static,
) -> Result<T, CryptError> {
    let done = event::unblock(call).await;
    let done = done.map_err(|gone| CryptError::io("compute a key")(io::Error::other(gone)))?;
    Ok(done?)
}

/// The first slot that a passphrase opens, and the master key.
pub(crate) async fn unlock<S: Storage>(
    storage: &S,
    at: u64,
    header: &Header,
    passphrase: &Passphrase,
) -> Result<(usize, MasterKey), CryptError> {
    for slot in header.active() {
        let place = header.material(slot).unwrap_or(0..0);
        let offset = at.saturating_add(place.start);
        let material = Zeroizing::new(read(storage, offset, place.end - place.start).await?);
        let (header, secret) = (header.clone(), passphrase.clone());
        let key = elsewhere(move || header.open(slot, &secret, &material)).await?;
        if let Some(key) = key {
            return Ok((slot, key));
        }
    }
    Err(match passphrase.bytes().last() {
        Some(b'\n') => CryptError::LineEnd(LuksError::Passphrase),
        _ => LuksError::Passphrase.into(),
    })
}

/// Bytes of a new LUKS header with one passphrase, up to where the encrypted sectors begin.
pub(crate) async fn new_header(new: &NewEncryption) -> Result<Vec<u8>, CryptError> {
    let NewEncryption { header, passphrase } = new.clone();
    elsewhere(move || {
        let time = header.iter_time;
        let (mut header, key) = header.create(&mut random)?;
        let material = header.set_slot(0, &key, &passphrase, time, &mut random)?;
        let mut bytes = vec![0; header.payload() as usize];
        let place = header.material(0).unwrap_or(0..0);
        let parts = [(0, header.encode()), (place.start as usize, material)];
        for (start, part) in parts {
            if let Some(to) = bytes.get_mut(start..start + part.len()) {
                to.copy_from_slice(&part);
            }
        }
        Ok(bytes)
    })
    .await
}

/// Gives a slot, or the first free one, another passphrase; which one.
pub(crate) async fn add_key<S: Storage>(
    storage: &S,
    at: u64,
    known: &Passphrase,
    new: &Passphrase,
    slot: Option<usize>,
    iter_time: std::time::Duration,
) -> Result<usize, CryptError> {
    let header = read_header(storage, at).await?;
    let slot = slot.map_or_else(|| header.free_slot(), Ok)?;
    if header.slots.get(slot).is_some_and(|slot| slot.active) {
        let why = "is in use: erase it first";
        return Err(LuksError::Slot { slot, why }.into());
    }
    let (_, key) = unlock(storage, at, &header, known).await?;
    let new = new.clone();
    let (header, material) = elsewhere(move || {
        let mut header = header;
        let material = header.set_slot(slot, &key, &new, iter_time, &mut random)?;
        Ok((header, material))
    })
    .await?;
    let place = header.material(slot).unwrap_or(0..0);
    write(storage, at.saturating_add(place.start), &material).await?;
    write(storage, at, &header.encode()).await?;
    Ok(slot)
}

/// Erases one slot, or all that a passphrase opens; which ones. The last one that is in use is
/// not erased unless `force`: nobody could read the disk again.
pub(crate) async fn erase_key<S: Storage>(
    storage: &S,
    at: u64,
    which: EraseKey<'_>,
    force: bool,
) -> Result<Vec<usize>, CryptError> {
    let mut header = read_header(storage, at).await?;
    let slots = match which {
        EraseKey::Slot(slot) => vec![slot],
        EraseKey::Passphrase(passphrase) => {
            let mut rest = header.clone();
            let mut slots = Vec::new();
            loop {
                match unlock(storage, at, &rest, passphrase).await {
                    Ok((slot, _)) => {
                        rest.erase_slot(slot)?;
                        slots.push(slot);
                    }
                    Err(error) if slots.is_empty() => return Err(error),
                    Err(CryptError::Luks(_) | CryptError::LineEnd(_)) => break,
                    Err(error) => return Err(error),
                }
            }
            slots
        }
    };
    let left = header.active().filter(|slot| !slots.contains(slot)).count();
    for slot in &slots {
        let slot = *slot;
        if !header.slots.get(slot).is_some_and(|slot| slot.active) {
            let why = "is not in use";
            return Err(LuksError::Slot { slot, why }.into());
        }
        if left == 0 && !force {
            let why = "is the last one: without it, all data would be lost (--force does it)";
            return Err(LuksError::Slot { slot, why }.into());
        }
    }
    for slot in &slots {
        let place = header.material(*slot).unwrap_or(0..0);
        let mut noise = vec![0; (place.end - place.start) as usize];
        random(&mut noise)?;
        // First what is secret: a header that is not written after it opens nothing any more.
        write(storage, at.saturating_add(place.start), &noise).await?;
        header.erase_slot(*slot)?;
        write(storage, at, &header.encode()).await?;
    }
    Ok(slots)
}

/// Whose slots are erased.
#[derive(Debug, Clone, Copy)]
pub enum EraseKey<'a> {
    /// This one.
    Slot(usize),
    /// All that the passphrase opens.
    Passphrase(&'a Passphrase),
}

/// The passphrase in a file: all of its bytes, as QEMU's secrets have it.
///
/// # Errors
/// The host does not give the file, or it is empty or larger than 64 KiB.
pub fn read_key_file(path: &std::path::Path) -> io::Result<Passphrase> {
    use std::io::Read;
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_KEY_FILE as usize + 1));
    let file = std::fs::File::open(path)?;
    file.take(MAX_KEY_FILE + 1).read_to_end(&mut bytes)?;
    let wrong = |why: &'static str| Err(io::Error::new(io::ErrorKind::InvalidData, why));
    match bytes.len() as u64 {
        0 => wrong("it is empty"),
        1..=MAX_KEY_FILE => Ok(Passphrase::new(std::mem::take(&mut *bytes))),
        _ => wrong("it is larger than 64 KiB"),
    }
}

/// The passphrase of a disk, if its description names a file.
pub(crate) fn key_of(spec: &DiskSpec) -> Result<Option<Passphrase>, crate::BlockError> {
    let Some(path) = &spec.key_file else {
        return Ok(None);
    };
    let key = read_key_file(path).map_err(|source| crate::BlockError::Host {
        what: "read the key file",
        path: path.clone(),
        source,
    })?;
    Ok(Some(key))
}
