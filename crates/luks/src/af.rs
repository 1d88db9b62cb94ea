//! The anti-forensic splitter (LUKS1 section 2.4): a key is blown up to stripes, all of which are
//! needed to get it back, so that destroying any part of them destroys the key.

use zeroize::Zeroizing;

use crate::{Hash, LuksError, Random};

/// Mixes all bits of each digest-sized part of `block`.
fn diffuse(hash: Hash, block: &mut [u8]) {
    for (number, part) in (0..).zip(block.chunks_mut(hash.size())) {
        hash.diffuse(number, part);
    }
}

fn xor(to: &mut [u8], with: &[u8]) {
    for (to, with) in to.iter_mut().zip(with) {
        *to ^= with;
    }
}

/// Splits `key` into `stripes` of its size, which are not 0.
pub(crate) fn split(
    hash: Hash,
    key: &[u8],
    stripes: usize,
    random: Random<'_>,
) -> Result<Zeroizing<Vec<u8>>, LuksError> {
    let mut material = Zeroizing::new(vec![0; key.len() * stripes]);
    let random_part = material.len().saturating_sub(key.len());
    let (first, last) = material.split_at_mut(random_part);
    random(first)?;
    let mut sum = Zeroizing::new(vec![0; key.len()]);
    for stripe in first.chunks(key.len().max(1)) {
        xor(&mut sum, stripe);
        diffuse(hash, &mut sum);
    }
    xor(&mut sum, key);
    last.copy_from_slice(&sum);
    Ok(material)
}

/// The key of `size` bytes whose stripes are `material`.
pub(crate) fn merge(hash: Hash, material: &[u8], size: usize) -> Zeroizing<Vec<u8>> {
    let mut sum = Zeroizing::new(vec![0; size]);
    let mut stripes = material.chunks_exact(size.max(1)).peekable();
    while let Some(stripe) = stripes.next() {
        xor(&mut sum, stripe);
        if stripes.peek().is_some() {
            diffuse(hash, &mut sum);
        }
    }
    sum
}

#[cfg(test)]
#[path = "af_tests.rs"]
mod tests;
