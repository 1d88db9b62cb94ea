use super::*;
use proptest::prelude::*;

#[derive(Debug, PartialEq, Serialize, Deserialize, Clone)]
struct Example {
    level: bool,
    count: u64,
    fifo: Vec<u8>,
}

proptest! {
    #[test]
    fn what_is_saved_comes_back(level: bool, count: u64, fifo: Vec<u8>) {
        let state = Example { level, count, fifo };
        let payload = Payload::encode("example", 1, &state).unwrap();
        prop_assert_eq!(payload.decode::<Example>("example", 1).unwrap(), state);
    }

    #[test]
    fn any_bytes_decode_or_fail_without_panic(data: Vec<u8>) {
        let payload = Payload { kind: "example".into(), version: 1, data };
        let _ = payload.to_text();
        let _ = payload.decode::<Example>("example", 1);
    }
}

#[test]
fn foreign_newer_and_overlong_payloads_are_named() {
    let payload = Payload::encode("example", 2, &7u32).unwrap();
    let kind = payload.clone().decode::<u32>("other", 9).unwrap_err();
    assert_eq!(
        kind.to_string(),
        r#"expected state of kind "other", got "example""#
    );
    let version = payload.clone().decode::<u32>("example", 1).unwrap_err();
    assert!(version.to_string().contains("has version 2"), "{version}");
    let mut long = payload;
    long.data.push(0);
    assert!(matches!(
        long.decode::<u32>("example", 2),
        Err(StateError::Malformed { .. })
    ));
}

#[test]
fn no_state_round_trips() {
    restore_no_state("rng", no_state("rng")).unwrap();
    assert!(restore_no_state("rng", no_state("balloon")).is_err());
}
