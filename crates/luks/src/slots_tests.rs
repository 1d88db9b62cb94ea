use super::*;
use crate::{Algorithm, Iv, Mode};

/// Numbers of a sequence that is always the same (Marsaglia's xorshift).
fn sequence() -> impl FnMut(&mut [u8]) -> Result<(), LuksError> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    move |bytes| {
        for byte in bytes {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state as u8;
        }
        Ok(())
    }
}

const QUICK: Duration = Duration::from_micros(1);

fn quick() -> NewHeader {
    NewHeader {
        iter_time: QUICK,
        ..NewHeader::default()
    }
}

fn passphrase(text: &str) -> Passphrase {
    Passphrase::new(text.as_bytes().to_vec())
}

#[test]
fn a_new_header_has_room_for_eight_slots() {
    let (header, _) = quick().create(&mut sequence()).unwrap();
    assert_eq!(header.material(0).unwrap(), 4096..4096 + 256_000);
    assert_eq!(header.payload(), 2 << 20);
    assert!(header.end() <= header.payload());
    assert_eq!(header.active().count(), 0);
    assert_eq!(header.uuid.len(), 36);
    assert_eq!(&header.uuid[14..15], "4");
    assert_eq!(Header::parse(&header.encode()).unwrap(), header);
}

#[test]
fn each_slots_passphrase_gives_the_key() {
    let random = &mut sequence();
    let (mut header, key) = quick().create(random).unwrap();
    let first = header
        .set_slot(0, &key, &passphrase("one"), QUICK, random)
        .unwrap();
    assert_eq!(header.free_slot(), Ok(1));
    let last = header
        .set_slot(7, &key, &passphrase("two"), QUICK, random)
        .unwrap();
    let header = Header::parse(&header.encode()).unwrap();
    assert_eq!(header.active().collect::<Vec<_>>(), [0, 7]);
    assert_eq!(header.slots[7].iterations, 1000);
    for (slot, word, material) in [(0, "one", &first), (7, "two", &last)] {
        let opened = header.open(slot, &passphrase(word), material).unwrap();
        assert_eq!(opened.unwrap().bytes(), key.bytes());
    }
    let wrong = header.open(0, &passphrase("two"), &first).unwrap();
    assert!(wrong.is_none());
    let not_used = header.open(3, &passphrase("one"), &first);
    assert!(matches!(not_used, Err(LuksError::Slot { slot: 3, .. })));
    let short = header.open(0, &passphrase("one"), &first[..512]);
    assert!(matches!(short, Err(LuksError::Slot { slot: 0, .. })));
}

#[test]
fn an_erased_slot_is_free_again() {
    let random = &mut sequence();
    let (mut header, key) = quick().create(random).unwrap();
    for slot in 0..SLOTS {
        assert_eq!(header.free_slot(), Ok(slot));
        header
            .set_slot(slot, &key, &passphrase("word"), QUICK, random)
            .unwrap();
    }
    assert_eq!(header.free_slot(), Err(LuksError::NoFreeSlot));
    header.erase_slot(5).unwrap();
    assert_eq!(header.free_slot(), Ok(5));
    assert_eq!(Header::parse(&header.encode()).unwrap(), header);
    assert!(header.erase_slot(8).is_err());
}

#[test]
fn other_ciphers_have_other_keys() {
    let cipher = CipherSpec {
        algorithm: Algorithm::Twofish,
        mode: Mode::Cbc,
        iv: Iv::EssivSha256,
    };
    let options = NewHeader {
        cipher,
        key_bytes: 16,
        hash: Hash::Sha1,
        ..quick()
    };
    let random = &mut sequence();
    let (mut header, key) = options.create(random).unwrap();
    let material = header
        .set_slot(2, &key, &passphrase(""), QUICK, random)
        .unwrap();
    let header = Header::parse(&header.encode()).unwrap();
    assert_eq!(header.cipher, cipher);
    let opened = header.open(2, &passphrase(""), &material).unwrap();
    let (a, b) = (header.sectors(&opened.unwrap()), header.sectors(&key));
    let mut sector = vec![1; SECTOR];
    a.unwrap().encrypt(8, &mut sector).unwrap();
    b.unwrap().decrypt(8, &mut sector).unwrap();
    assert_eq!(sector, [1; SECTOR]);
    let none = NewHeader {
        key_bytes: 20,
        ..options
    };
    assert!(matches!(
        none.create(&mut sequence()),
        Err(LuksError::KeySize { bits: 160, .. })
    ));
}

#[test]
fn more_time_means_more_iterations() {
    let count = iterations(Hash::Sha256, 64, Duration::from_millis(40));
    // A thousand take less than a millisecond on any host with this test's optimisation.
    assert!(count > 4000, "{count}");
}
