use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::NewHeader;

fn header() -> Vec<u8> {
    let options = NewHeader {
        iter_time: Duration::ZERO,
        ..NewHeader::default()
    };
    let (header, _) = options
        .create(&mut |bytes| {
            bytes.fill(0x42);
            Ok(())
        })
        .unwrap();
    header.encode()
}

/// The header with a number in it changed.
fn with(at: usize, number: u32) -> Result<Header, LuksError> {
    let mut bytes = header();
    bytes[at..at + 4].copy_from_slice(&number.to_be_bytes());
    Header::parse(&bytes)
}

fn damaged(result: Result<Header, LuksError>, word: &str) {
    match result {
        Err(LuksError::Header(why)) => assert!(why.contains(word), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_number_is_bounded() {
    const SLOT_1: usize = 208 + 48;
    assert!(with(208, ENABLED).is_err(), "no iterations");
    damaged(with(164, 0), "iterations");
    damaged(with(164, u32::MAX), "iterations");
    damaged(with(SLOT_1, 1), "neither");
    damaged(with(SLOT_1 + 40, 0), "over the header");
    damaged(with(SLOT_1 + 40, 8), "overlap");
    damaged(with(SLOT_1 + 40, u32::MAX), "encrypted sectors");
    damaged(with(SLOT_1 + 44, 0), "stripes");
    damaged(with(SLOT_1 + 44, u32::MAX), "stripes");
    damaged(with(104, 100), "encrypted sectors");
    for bytes in [0, 1, 65, u32::MAX] {
        assert!(matches!(with(108, bytes), Err(LuksError::KeySize { .. })));
    }
    let mut active = header();
    active[208..212].copy_from_slice(&ENABLED.to_be_bytes());
    active[212..216].copy_from_slice(&u32::MAX.to_be_bytes());
    damaged(Header::parse(&active), "iterations");
}

#[test]
fn what_is_not_supported_is_named() {
    let change = |at: usize, text: &[u8]| {
        let mut bytes = header();
        bytes[at..at + 32].fill(0);
        bytes[at..at + text.len()].copy_from_slice(text);
        Header::parse(&bytes).unwrap_err()
    };
    assert_eq!(
        change(8, b"cast5"),
        LuksError::Cipher("cast5-xts-plain64".into())
    );
    assert_eq!(
        change(40, b"lrw-plain"),
        LuksError::Cipher("aes-lrw-plain".into())
    );
    assert_eq!(
        change(72, b"whirlpool"),
        LuksError::Hash("whirlpool".into())
    );
    assert!(matches!(change(8, b"a\x1b[1m"), LuksError::Header(_)));
    let mut bytes = header();
    bytes[7] = 2;
    assert_eq!(Header::parse(&bytes), Err(LuksError::Version(2)));
    assert_eq!(Header::parse(b"LUKS"), Err(LuksError::NotLuks));
    damaged(Header::parse(&header()[..591]), "cut off");
}

proptest! {
    /// Whatever comes, it is refused, or written again as it was.
    #[test]
    fn any_header_is_understood_or_refused(
        changes in proptest::collection::vec((0..Header::LENGTH, any::<u8>()), 0..6),
        len in 0..=Header::LENGTH,
        cut: bool,
    ) {
        let mut bytes = header();
        for (at, value) in changes {
            bytes[at] = value;
        }
        if cut {
            bytes.truncate(len);
        }
        if let Ok(header) = Header::parse(&bytes) {
            prop_assert!(header.end() <= header.payload() || header.payload_offset == 0);
            prop_assert_eq!(Header::parse(&header.encode()), Ok(header));
        }
    }
}
