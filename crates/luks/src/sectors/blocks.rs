use aes::cipher::array::Array;
use aes::cipher::consts::U16;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit};
use aes::{Aes128, Aes192, Aes256};
use serpent::Serpent;
use twofish::Twofish;

use super::Algorithm;

pub(super) type Block = Array<u8, U16>;

/// A block cipher with its key, for many blocks at once: calling it through a table costs nothing
/// then.
pub(super) trait Blocks: Send + Sync {
    fn encrypt(&self, blocks: &mut [Block]);
    fn decrypt(&self, blocks: &mut [Block]);
}

impl<T> Blocks for T
where
    T: BlockSizeUser<BlockSize = U16> + BlockCipherEncrypt + BlockCipherDecrypt + Send + Sync,
{
    fn encrypt(&self, blocks: &mut [Block]) {
        self.encrypt_blocks(blocks);
    }

    fn decrypt(&self, blocks: &mut [Block]) {
        self.decrypt_blocks(blocks);
    }
}

/// The cipher with a key, whose size was checked.
pub(super) fn blocks(algorithm: Algorithm, key: &[u8]) -> Option<Box<dyn Blocks>> {
    fn make<T: KeyInit + Blocks + 'static>(key: &[u8]) -> Option<Box<dyn Blocks>> {
        Some(Box::new(T::new_from_slice(key).ok()?))
    }
    match (algorithm, key.len()) {
        (Algorithm::Aes, 16) => make::<Aes128>(key),
        (Algorithm::Aes, 24) => make::<Aes192>(key),
        (Algorithm::Aes, _) => make::<Aes256>(key),
        (Algorithm::Serpent, _) => make::<Serpent>(key),
        (Algorithm::Twofish, _) => make::<Twofish>(key),
    }
}
