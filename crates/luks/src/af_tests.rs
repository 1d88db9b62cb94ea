use super::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// "Random" bytes that are always the same.
fn counted() -> impl FnMut(&mut [u8]) -> Result<(), LuksError> {
    let mut at = 0u32;
    move |bytes| {
        for byte in bytes {
            *byte = (at * 7 + 3) as u8;
            at += 1;
        }
        Ok(())
    }
}

/// Last stripes computed by another implementation (Python's hashlib).
const LAST: [(Hash, u8, usize, &str); 3] = [
    (
        Hash::Sha1,
        32,
        7,
        "586d5bff17d5a33a9c6256dd74a56a9816b97823e8036fb8702111aa2da53b3d",
    ),
    (
        Hash::Sha256,
        64,
        5,
        "709a3c4110b5a7bc2b190bb2f82c3fcb5f31feb872cc7010062fde4a15fdfdf7\
         5fba0f6371b8a130a0fcc58dd798b4645af04a65bbf1b9d901b8e23fbef2d56e",
    ),
    (
        Hash::Sha512,
        24,
        3,
        "816e4bd9c612f1f615107c93b2693458f7d4bf3dcdb57b43",
    ),
];

#[test]
fn splits_as_others_do_and_merges_again() {
    for (hash, size, stripes, last) in LAST {
        let key: Vec<u8> = (0..size).collect();
        let material = split(hash, &key, stripes, &mut counted()).unwrap();
        assert_eq!(material.len(), key.len() * stripes);
        assert_eq!(
            hex(&material[key.len() * (stripes - 1)..]),
            last,
            "{hash:?}"
        );
        assert_eq!(*merge(hash, &material, key.len()), key);
        let mut damaged = material.to_vec();
        damaged[0] ^= 1;
        assert_ne!(*merge(hash, &damaged, key.len()), key);
    }
}

#[test]
fn one_stripe_is_the_key() {
    let material = split(Hash::Sha256, &[1, 2, 3], 1, &mut counted()).unwrap();
    assert_eq!(*material, [1, 2, 3]);
}
