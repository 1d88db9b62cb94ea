use super::blocks::{Block, Blocks};
use super::{BLOCK, SECTOR};

/// Sectors that are worked on at once: their tweaks fit into the processor's first cache with
/// them, and the ciphers have enough blocks that do not depend on one another.
pub(super) const BATCH: usize = 16;

/// Blocks of a sector.
const PER_SECTOR: usize = SECTOR / BLOCK;

fn xor(to: &mut [Block], with: &[Block]) {
    for (to, with) in to.iter_mut().zip(with) {
        let sum = u128::from_ne_bytes((*to).into()) ^ u128::from_ne_bytes((*with).into());
        *to = sum.to_ne_bytes().into();
    }
}

/// XTS (IEEE Std 1619-2018) of whole sectors: no ciphertext stealing. `tweaks` are the encrypted
/// numbers of the sectors.
pub(super) fn xts(cipher: &dyn Blocks, tweaks: &[Block], data: &mut [Block], encrypt: bool) {
    let mut all = [Block::default(); BATCH * PER_SECTOR];
    for (tweak, all) in tweaks.iter().zip(all.chunks_exact_mut(PER_SECTOR)) {
        let mut tweak = u128::from_le_bytes((*tweak).into());
        for place in all {
            *place = tweak.to_le_bytes().into();
            // Times x in GF(2^128).
            let carry = (tweak as i128 >> 127) as u128 & 0x87;
            tweak = tweak << 1 ^ carry;
        }
    }
    xor(data, &all);
    match encrypt {
        true => cipher.encrypt(data),
        false => cipher.decrypt(data),
    }
    xor(data, &all);
}

/// CBC (NIST SP 800-38A section 6.2). A block needs the one before it, so the sectors go side by
/// side.
pub(super) fn cbc_encrypt(cipher: &dyn Blocks, ivs: &mut [Block], data: &mut [Block]) {
    let last = ivs;
    for at in 0..PER_SECTOR {
        let sectors = data.chunks_exact(PER_SECTOR).zip(last.iter_mut());
        for (sector, last) in sectors {
            let block = sector.get(at..=at).unwrap_or_default();
            xor(std::slice::from_mut(last), block);
        }
        cipher.encrypt(last);
        let sectors = data.chunks_exact_mut(PER_SECTOR).zip(last.iter());
        for (sector, last) in sectors {
            if let Some(block) = sector.get_mut(at) {
                *block = *last;
            }
        }
    }
}

/// CBC backwards: all blocks at once.
pub(super) fn cbc_decrypt(cipher: &dyn Blocks, ivs: &[Block], data: &mut [Block]) {
    let mut before = [Block::default(); BATCH * PER_SECTOR];
    let sectors = data.chunks_exact(PER_SECTOR).zip(ivs);
    for ((sector, iv), before) in sectors.zip(before.chunks_exact_mut(PER_SECTOR)) {
        if let Some((first, rest)) = before.split_first_mut() {
            *first = *iv;
            for (to, from) in rest.iter_mut().zip(sector) {
                *to = *from;
            }
        }
    }
    cipher.decrypt(data);
    xor(data, &before);
}
