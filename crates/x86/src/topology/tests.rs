use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

fn ids(t: Topology) -> Vec<u32> {
    (0..t.count()).map(|n| t.apic_id(n)).collect()
}

#[test]
fn apic_ids_leave_holes_for_counts_that_are_no_powers_of_two() {
    // As QEMU 7.2 numbers them.
    let t = Topology::new(2, 1, 3, 2).unwrap();
    assert_eq!(ids(t), [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
    let t = Topology::new(1, 2, 3, 2).unwrap();
    assert_eq!(ids(t), [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
    let t = Topology::new(3, 3, 5, 2).unwrap();
    assert_eq!(ids(t)[..12], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17]);
    assert_eq!(t.apic_id(30), 64);
}

#[test]
fn a_flat_topology_numbers_without_holes() {
    let t = Topology::flat(255).unwrap();
    assert_eq!(ids(t), (0..255).collect::<Vec<_>>());
    assert_eq!(t.max_apic_id(), 254);
    assert_eq!((t.core_shift(), t.die_shift(), t.socket_shift()), (0, 8, 8));
}

#[test]
fn places_follow_the_order_of_the_ids() {
    let t = Topology::new(2, 2, 3, 2).unwrap();
    let place = |n| {
        let p = t.place(n);
        (p.socket, p.die, p.core, p.thread)
    };
    assert_eq!(place(0), (0, 0, 0, 0));
    assert_eq!(place(1), (0, 0, 0, 1));
    assert_eq!(place(5), (0, 0, 2, 1));
    assert_eq!(place(6), (0, 1, 0, 0));
    assert_eq!(place(12), (1, 0, 0, 0));
    assert_eq!(place(23), (1, 1, 2, 1));
}

#[test]
fn counts_not_given_are_worked_out() {
    let resolve = |cpus, s, d, c, t| {
        Topology::resolve(cpus, s, d, c, t).map(|t| (t.sockets(), t.dies(), t.cores(), t.threads()))
    };
    assert_eq!(resolve(Some(6), None, None, None, None), Ok((1, 1, 6, 1)));
    assert_eq!(
        resolve(Some(8), Some(2), None, None, Some(2)),
        Ok((2, 1, 2, 2))
    );
    assert_eq!(
        resolve(Some(8), None, None, Some(2), None),
        Ok((4, 1, 2, 1))
    );
    assert_eq!(
        resolve(Some(8), Some(1), None, Some(4), None),
        Ok((1, 1, 4, 2))
    );
    assert_eq!(
        resolve(None, Some(2), Some(2), Some(3), Some(1)),
        Ok((2, 2, 3, 1))
    );
    assert_eq!(resolve(None, None, None, None, None), Ok((1, 1, 1, 1)));
}

#[test]
fn counts_that_do_not_fit_are_an_error_with_the_numbers_in_it() {
    let error = Topology::resolve(Some(6), Some(4), None, None, None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "CPU topology: 6 CPUs cannot be 4 sockets x any dies x any cores x any threads"
    );
    let error = Topology::resolve(Some(4), Some(2), Some(1), Some(1), Some(1)).unwrap_err();
    assert!(
        error.to_string().contains("4 CPUs cannot be 2 sockets"),
        "{error}"
    );
    let error = Topology::resolve(Some(0), None, None, None, None).unwrap_err();
    assert!(error.to_string().contains("0 CPUs"), "{error}");
    let error = Topology::new(1, 1, 0, 1).unwrap_err();
    assert_eq!(error.to_string(), "CPU topology: cores must be at least 1");
    let error = Topology::new(u32::MAX, 2, 2, 2).unwrap_err();
    assert!(
        error.to_string().contains("more than 65536 CPUs"),
        "{error}"
    );
}

#[test]
fn a_saved_topology_is_checked_like_a_new_one() {
    let t = Topology::new(2, 1, 3, 2).unwrap();
    let text = serde_json::to_string(&t).unwrap();
    assert_eq!(serde_json::from_str::<Topology>(&text).unwrap(), t);
    let zero = r#"{"sockets":1,"dies":1,"cores":0,"threads":1}"#;
    assert!(serde_json::from_str::<Topology>(zero).is_err());
}

proptest! {
    #[test]
    fn every_cpu_is_found_again_by_its_apic_id(s in 1..9u32, d in 1..4u32, c in 1..20u32, t in 1..5u32) {
        let topology = Topology::new(s, d, c, t).unwrap();
        let mut seen = HashSet::new();
        for n in 0..topology.count() {
            let id = topology.apic_id(n);
            prop_assert!(id <= topology.max_apic_id());
            prop_assert!(seen.insert(id));
            prop_assert_eq!(topology.vcpu(id), Some(n));
        }
        // IDs that nobody has belong to nobody.
        let strangers = (0..=topology.max_apic_id() + 300).filter(|id| !seen.contains(id));
        for id in strangers {
            prop_assert_eq!(topology.vcpu(id), None);
        }
    }

    #[test]
    fn any_counts_are_accepted_or_refused_and_never_panic(
        s: u32, d in 0..70_000u32, c: u32, t in 0..70_000u32, n: Option<u32>,
    ) {
        if let Ok(topology) = Topology::new(s, d, c, t) {
            prop_assert!(topology.max_apic_id() < 1 << 20);
        }
        let some = |v: u32| (!v.is_multiple_of(3)).then_some(v);
        if let (Ok(topology), Some(n)) = (Topology::resolve(n, some(s), some(d), some(c), some(t)), n) {
            prop_assert_eq!(topology.count(), n);
        }
    }

    #[test]
    fn no_apic_id_panics(id: u32) {
        let topology = Topology::new(3, 2, 5, 2).unwrap();
        if let Some(n) = topology.vcpu(id) {
            prop_assert_eq!(topology.apic_id(n), id);
        }
    }
}
