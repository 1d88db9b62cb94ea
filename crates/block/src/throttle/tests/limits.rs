use proptest::prelude::*;
use spec::Spec;

use crate::throttle::{BlockIoThrottle, ThrottleLimits};

fn parsed(text: &str) -> ThrottleLimits {
    ThrottleLimits::parse(text).unwrap()
}

fn refused(text: &str) -> String {
    parsed(text).check().unwrap_err().to_string()
}

#[test]
fn contradictions_are_refused_and_named() {
    for (text, words) in [
        ("iops-total=1,iops-read=1", "iops-total cannot be combined"),
        ("bps-total=1,bps-write=1", "bps-total cannot be combined"),
        (
            "iops-total=1,iops-write=1,iops-write-max=2",
            "iops-total cannot",
        ),
        ("iops-read=1,iops-total-max=3", "iops-total cannot"),
        ("bps-total=1M,iops-size=4K", "iops-size needs"),
        (
            "iops-read=10,iops-read-max=9",
            "iops-read-max=9 is less than iops-read=10",
        ),
        ("iops-read-max=9", "iops-read-max needs iops-read,"),
        ("bps-write=1,bps-write-max-length=2", "needs bps-write-max,"),
        (
            "bps-write-max-length=0",
            "bps-write-max-length is at least 1",
        ),
        (
            "bps-total=1000000000000001",
            "bps-total=1000000000000001 is too large",
        ),
        (
            "bps-total=1,bps-total-max=1T,bps-total-max-length=1000",
            "=1000 is too long",
        ),
    ] {
        let error = refused(text);
        assert!(error.contains(words), "{text}: {error}");
    }
    for text in [
        "",
        "iops-total=0,iops-read=5",
        "bps-total=10M,iops-read=5,iops-write=7,iops-size=4K",
        "bps-read=1,bps-read-max=1,bps-read-max-length=60",
        // A length of 1 is what there is without one.
        "iops-total-max-length=1",
    ] {
        assert_eq!(parsed(text).check(), Ok(()), "{text}");
    }
}

#[test]
fn names_are_those_of_qmp() {
    let text = "iops-total=10,bps-total=1M,bps-total-max=2M,bps-total-max-length=3,iops-size=4K";
    let limits = parsed(text);
    let json = serde_json::to_value(limits).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "iops-total": 10, "bps-total": 1 << 20, "bps-total-max": 2 << 20,
            "bps-total-max-length": 3, "iops-size": 4096,
        })
    );
    assert_eq!(
        serde_json::from_value::<ThrottleLimits>(json).unwrap(),
        limits
    );
    let unknown = serde_json::json!({ "iops-totl": 1 });
    assert!(serde_json::from_value::<ThrottleLimits>(unknown).is_err());
    let negative = serde_json::json!({ "iops-total": -1 });
    assert!(serde_json::from_value::<ThrottleLimits>(negative).is_err());
    assert_eq!(
        ThrottleLimits::from_properties(limits.to_properties()).unwrap(),
        limits
    );
    let near = ThrottleLimits::parse("iops-reed=1")
        .unwrap_err()
        .to_string();
    assert!(near.contains("did you mean \"iops-read\"?"), "{near}");
    assert_eq!(ThrottleLimits::properties().len(), 19);
}

#[test]
fn block_set_io_throttle_says_the_same() {
    let given: BlockIoThrottle = serde_json::from_value(serde_json::json!({
        "id": "disk0", "bps": 0, "bps_rd": 100, "bps_wr": 200, "iops": 30, "iops_rd": 0,
        "iops_wr": 0, "bps_rd_max": 1000, "bps_wr_max_length": 1, "iops_max": 300,
        "iops_max_length": 5, "iops_size": 8192, "group": "g",
    }))
    .unwrap();
    let limits = ThrottleLimits::from(&given);
    let same = "bps-read=100,bps-read-max=1000,bps-write=200,bps-write-max-length=1,\
                iops-total=30,iops-total-max=300,iops-total-max-length=5,iops-size=8K";
    assert_eq!(limits, parsed(same));
    assert_eq!(limits.check(), Ok(()));
    let named = BlockIoThrottle {
        id: None,
        group: None,
        ..given
    };
    assert_eq!(BlockIoThrottle::from(&limits), named);
    // QEMU wants these six.
    let less = serde_json::json!({ "bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0 });
    assert!(serde_json::from_value::<BlockIoThrottle>(less).is_err());
}

fn number() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![
        3 => Just(None),
        1 => Just(Some(0)),
        4 => (1..2000u64).prop_map(Some),
        1 => any::<u64>().prop_map(Some),
    ]
}

proptest! {
    /// Against the rules as QEMU's documentation has them, bucket by bucket.
    #[test]
    fn what_is_accepted_obeys_the_rules(
        v in prop::collection::vec(number(), 18),
        iops_size in number(),
    ) {
        let limits = ThrottleLimits {
            iops_total: v[0], iops_total_max: v[1], iops_total_max_length: v[2],
            iops_read: v[3], iops_read_max: v[4], iops_read_max_length: v[5],
            iops_write: v[6], iops_write_max: v[7], iops_write_max_length: v[8],
            bps_total: v[9], bps_total_max: v[10], bps_total_max_length: v[11],
            bps_read: v[12], bps_read_max: v[13], bps_read_max_length: v[14],
            bps_write: v[15], bps_write_max: v[16], bps_write_max_length: v[17],
            iops_size,
        };
        let set = |i: usize| v[i].unwrap_or(0) != 0;
        let one_sound = |i: usize| {
            let (average, max) = (v[i].unwrap_or(0), v[i + 1].unwrap_or(0));
            let length = v[i + 2].unwrap_or(1);
            let product = u128::from(max) * u128::from(length);
            average.max(max) <= 1_000_000_000_000_000
                && length != 0
                && (max == 0 || average != 0 && max >= average && product <= 1_000_000_000_000_000)
                && (length == 1 || max != 0)
        };
        let apart = |i: usize| {
            let total = set(i) || set(i + 1);
            let parts = set(i + 3) || set(i + 4) || set(i + 6) || set(i + 7);
            !(total && parts)
        };
        let sound = [0, 3, 6, 9, 12, 15].into_iter().all(one_sound)
            && apart(0)
            && apart(9)
            && (iops_size.unwrap_or(0) == 0 || set(0) || set(3) || set(6));
        prop_assert_eq!(limits.check().is_ok(), sound, "{:?}", limits.check());
        // And what is accepted survives every way of writing it.
        let json = serde_json::to_string(&limits).unwrap();
        prop_assert_eq!(serde_json::from_str::<ThrottleLimits>(&json).unwrap(), limits);
        prop_assert_eq!(ThrottleLimits::from_properties(limits.to_properties()).unwrap(), limits);
    }
}
