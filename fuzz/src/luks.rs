use luks::{Header, NewHeader, Passphrase, SLOTS};

use crate::Script;

/// More work than this is refused here, so that the fuzzer gets on: what a header may ask for is
/// bounded, and takes a minute.
const ITERATIONS: u32 = 2000;

/// A LUKS header of which any byte may be anything, and a user who tries a passphrase.
pub fn luks(data: &[u8]) {
    let mut script = Script::new(data);
    let bytes = match script.u8() & 1 {
        0 => script.rest().to_vec(),
        _ => {
            let mut bytes = good();
            while !script.is_over() {
                let at = usize::from(script.u16()) % bytes.len();
                bytes[at] = script.u8();
            }
            bytes
        }
    };
    let Ok(mut header) = Header::parse(&bytes) else {
        return;
    };
    assert_eq!(Header::parse(&header.encode()).as_ref(), Ok(&header));
    let places: Vec<_> = (0..SLOTS)
        .map(|slot| header.material(slot).expect("eight slots"))
        .collect();
    for (slot, place) in places.iter().enumerate() {
        assert!(place.start >= Header::LENGTH as u64 && place.end <= header.end());
        assert!(place.end - place.start <= 2 << 20);
        let others = places
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != slot);
        for (_, other) in others {
            assert!(place.end <= other.start || other.end <= place.start);
        }
    }
    let passphrase = Passphrase::new(b"fuzzed".to_vec());
    for slot in header.active().collect::<Vec<_>>() {
        let place = &places[slot];
        let iterations = header.slots[slot].iterations.max(header.digest_iterations);
        if iterations > ITERATIONS || place.end - place.start > 512 << 10 {
            continue;
        }
        let material = vec![0x5a; (place.end - place.start) as usize];
        let opened = header.open(slot, &passphrase, &material);
        assert!(
            opened.expect("a slot in use").is_none(),
            "a key out of nothing"
        );
        header.erase_slot(slot).expect("a slot");
    }
}

/// A header with one slot in use, and little work.
fn good() -> Vec<u8> {
    let options = NewHeader {
        iter_time: std::time::Duration::ZERO,
        key_bytes: 32,
        ..NewHeader::default()
    };
    let zeros = &mut |bytes: &mut [u8]| {
        bytes.fill(0);
        Ok(())
    };
    let (header, _) = options.create(zeros).expect("good options");
    let mut bytes = header.encode();
    // The first slot: in use, and its iterations.
    bytes[208..216].copy_from_slice(&[0x00, 0xac, 0x71, 0xf3, 0, 0, 0, 100]);
    bytes
}
