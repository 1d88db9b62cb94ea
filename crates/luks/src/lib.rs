//! LUKS1 and the ciphers of disk sectors: encryption at rest, without any I/O.
//!
//! ```text
//!   passphrase ─ PBKDF2 ─▶ slot key ─ decrypts ─▶ key material ─ merge ─▶ master key
//!                                                 (in [Header], 8 slots)      │ digest agrees
//!                                                                             ▼
//!   guest's bytes ◀──────────────── [SectorCipher] ────────────────▶ bytes on the disk
//!                        cipher, mode, IV from the number of the sector
//! ```
//!
//! Whoever has the bytes reads and writes them: a [`Header`] says where its slots' key material
//! is, and takes it and gives it. The format is "LUKS On-Disk Format Specification, version
//! 1.2.3"; which ciphers there are, and how they are called, follows QEMU and dm-crypt. For
//! images from before LUKS there is [`SectorCipher::legacy_aes`], the encryption of old qcow2
//! images.
//!
//! Headers come from whoever made the image: each number in them is bounded before it costs time
//! or memory. Keys and passphrases are wiped when they are dropped, and are never printed.

mod af;
mod error;
mod hash;
mod header;
mod secret;
mod sectors;
mod slots;

pub use error::LuksError;
pub use hash::Hash;
pub use header::{Header, SLOTS, Slot};
pub use secret::{MasterKey, Passphrase};
pub use sectors::{Algorithm, CipherSpec, Iv, Mode, SECTOR, SectorCipher};
pub use slots::{HeaderNames, NewHeader, Random};
