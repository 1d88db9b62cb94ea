use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::*;

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(digit).collect()
}

fn cipher(name: &str, mode: &str, key: &[u8]) -> SectorCipher {
    SectorCipher::new(CipherSpec::parse(name, mode).unwrap(), key).unwrap()
}

fn counting() -> Vec<u8> {
    (0..SECTOR).map(|at| at as u8).collect()
}

/// IEEE Std 1619-2007 annex B, vectors 4 and 10: data units of 512 bytes.
#[test]
fn xts_agrees_with_the_standard() {
    let key = "27182818284590452353602874713526\
               31415926535897932384626433832795";
    let aes128 = cipher("aes", "xts-plain64", &bytes(key));
    let mut sector = counting();
    aes128.encrypt(0, &mut sector).unwrap();
    let first = "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c";
    assert_eq!(sector[..32], bytes(first));

    let key = "2718281828459045235360287471352662497757247093699959574966967627\
               3141592653589793238462643383279502884197169399375105820974944592";
    let aes256 = cipher("aes", "xts-plain64", &bytes(key));
    let mut sector = counting();
    aes256.encrypt(0xff, &mut sector).unwrap();
    let first = "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b";
    let last = "92fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151";
    assert_eq!(sector[..32], bytes(first));
    assert_eq!(sector[SECTOR - 24..], bytes(&last[1..]));
    aes256.decrypt(0xff, &mut sector).unwrap();
    assert_eq!(sector, counting());
}

/// Made with `openssl enc`.
#[test]
fn cbc_agrees_with_openssl() {
    let mut sector = vec![0; SECTOR];
    let plain64 = cipher(
        "aes",
        "cbc-plain64",
        &bytes("000102030405060708090a0b0c0d0e0f"),
    );
    plain64.encrypt(5, &mut sector).unwrap();
    assert_eq!(sector[..16], bytes("789dc76ccb52ce1c3db90ecb357af60e"));
    assert_eq!(sector[496..], bytes("179785700bbb5b8c6b334e7718949454"));

    let key: Vec<u8> = (0..32).collect();
    let essiv = cipher("aes", "cbc-essiv:sha256", &key);
    let mut sector = counting();
    essiv.encrypt(1 << 32 | 7, &mut sector).unwrap();
    let digest = "dfbc49f745e7ce444a445e59c1d0dd9c71d57bb2ff7e288265f9ed1425df6883";
    assert_eq!(Sha256::digest(&sector)[..], bytes(digest));
}

#[test]
fn legacy_passphrases_are_cut_and_padded() {
    let of = |passphrase: &[u8]| {
        let mut sector = counting();
        let cipher = SectorCipher::legacy_aes(&Passphrase::new(passphrase.to_vec()));
        cipher.encrypt(3, &mut sector).unwrap();
        sector
    };
    assert_eq!(of(b"short"), of(b"short\0\0\0"));
    assert_eq!(of(b"0123456789abcdefgh"), of(b"0123456789abcdef"));
    assert_ne!(of(b"0123456789abcde"), of(b"0123456789abcdef"));
    let mut sector = counting();
    cipher("aes", "cbc-plain64", b"0123456789abcdef")
        .encrypt(3, &mut sector)
        .unwrap();
    assert_eq!(sector, of(b"0123456789abcdef"));
}

#[test]
fn plain_ivs_have_32_bits() {
    let key = [9; 32];
    let sector_of = |mode, number| {
        let mut sector = counting();
        cipher("aes", mode, &key)
            .encrypt(number, &mut sector)
            .unwrap();
        sector
    };
    assert_eq!(
        sector_of("cbc-plain", 1 << 32 | 1),
        sector_of("cbc-plain", 1)
    );
    assert_eq!(sector_of("cbc-plain", 1), sector_of("cbc-plain64", 1));
    assert_ne!(
        sector_of("cbc-plain64", 1 << 32 | 1),
        sector_of("cbc-plain64", 1)
    );
}

#[test]
fn only_whole_sectors_are_taken() {
    let cipher = cipher("aes", "xts-plain64", &[1; 32]);
    let mut bytes = vec![0; 513];
    assert_eq!(
        cipher.encrypt(0, &mut bytes),
        Err(LuksError::NotSectors(513))
    );
    assert_eq!(bytes, vec![0; 513]);
}

#[test]
fn keys_have_the_ciphers_sizes_and_are_not_printed() {
    let spec = CipherSpec::AES_XTS;
    for size in [0, 16, 31, 48, 65, usize::MAX / 16] {
        assert!(matches!(
            spec.check_key(size),
            Err(LuksError::KeySize { .. })
        ));
    }
    let cipher = SectorCipher::new(spec, &[0xab; 64]).unwrap();
    assert_eq!(format!("{cipher:?}"), "SectorCipher(aes-xts-plain64)");
    assert_eq!(spec.algorithm_name(64), "aes-256");
    let passphrase = Passphrase::new(b"secret".to_vec());
    assert_eq!(format!("{passphrase:?}"), "Passphrase(..)");
}

const ALL: [(&str, &str, usize); 12] = [
    ("aes", "xts-plain64", 32),
    ("aes", "xts-plain", 64),
    ("aes", "cbc-plain64", 16),
    ("aes", "cbc-plain64", 24),
    ("aes", "cbc-plain", 32),
    ("aes", "cbc-essiv:sha256", 16),
    ("aes", "ecb", 32),
    ("serpent", "xts-plain64", 32),
    ("serpent", "cbc-essiv:sha256", 32),
    ("twofish", "xts-plain64", 64),
    ("twofish", "cbc-plain64", 24),
    ("twofish", "cbc-essiv:sha256", 16),
];

proptest! {
    /// Whatever is done at once gives what is done sector by sector.
    #[test]
    fn batches_are_sectors_and_decryption_undoes(
        which in 0..ALL.len(),
        first: u64,
        data in proptest::collection::vec(any::<u8>(), 0..40).prop_map(|seed| {
            let seed: Vec<u8> = seed.into_iter().chain([1]).collect();
            seed.iter().cycle().take(seed.len() * SECTOR).copied().collect::<Vec<u8>>()
        }),
    ) {
        let (name, mode, size) = ALL[which];
        let key: Vec<u8> = (0..size).map(|at| at as u8 ^ 0x5a).collect();
        let cipher = cipher(name, mode, &key);
        let mut at_once = data.clone();
        cipher.encrypt(first, &mut at_once).unwrap();
        let mut alone = data.clone();
        for (sector, at) in alone.chunks_mut(SECTOR).zip(0..) {
            cipher.encrypt(first.wrapping_add(at), sector).unwrap();
        }
        prop_assert_eq!(&at_once, &alone);
        prop_assert_ne!(&at_once, &data);
        cipher.decrypt(first, &mut at_once).unwrap();
        prop_assert_eq!(at_once, data);
    }
}
