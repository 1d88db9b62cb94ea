//! The schedule in simulated time: exact, and quick.

use std::collections::{HashMap, VecDeque};

use proptest::prelude::*;
use spec::Spec;

use crate::throttle::ThrottleLimits;
use crate::throttle::bucket::Direction::{self, Read, Write};
use crate::throttle::schedule::Schedule;

const SECOND: u64 = 1_000_000_000;

/// Somebody who has so many requests waiting at all times.
#[derive(Debug, Clone, Copy)]
struct Load {
    member: u64,
    direction: Direction,
    bytes: u64,
}

/// A group whose members are never idle.
struct Simulation {
    schedule: Schedule,
    now: u64,
    loads: Vec<Load>,
    /// Whose a request is.
    owners: HashMap<u64, usize>,
    /// Requests by load, in the order in which they were made.
    orders: Vec<VecDeque<u64>>,
    /// Requests that went, by load.
    done: Vec<u64>,
    granted: Vec<u64>,
}

impl Simulation {
    fn new(limits: &str) -> Self {
        let rates = ThrottleLimits::parse(limits).unwrap().rates().unwrap();
        Self {
            schedule: Schedule::new(&rates, 0),
            now: 0,
            loads: Vec::new(),
            owners: HashMap::new(),
            orders: Vec::new(),
            done: Vec::new(),
            granted: Vec::new(),
        }
    }

    fn add(&mut self, direction: Direction, bytes: u64, depth: usize) -> usize {
        let member = self.schedule.add_member();
        self.add_to(member, direction, bytes, depth)
    }

    fn add_to(&mut self, member: u64, direction: Direction, bytes: u64, depth: usize) -> usize {
        let load = self.loads.len();
        self.loads.push(Load {
            member,
            direction,
            bytes,
        });
        self.done.push(0);
        self.orders.push(VecDeque::new());
        (0..depth).for_each(|_| self.send(load));
        load
    }

    fn send(&mut self, load: usize) {
        let Load {
            member,
            direction,
            bytes,
        } = self.loads[load];
        let id = self.schedule.push(member, direction, bytes);
        self.owners.insert(id, load);
        self.orders[load].push_back(id);
    }

    /// Lets so many nanoseconds pass.
    fn run(&mut self, time: u64) {
        let end = self.now + time;
        loop {
            let mut granted = std::mem::take(&mut self.granted);
            self.schedule.advance(self.now, &mut granted);
            let idle = granted.is_empty();
            for id in granted.drain(..) {
                let load = self.owners.remove(&id).expect("granted once");
                assert_eq!(self.orders[load].pop_front(), Some(id), "out of order");
                self.done[load] += 1;
                self.send(load);
            }
            self.granted = granted;
            let next = Direction::BOTH
                .into_iter()
                .filter_map(|d| self.schedule.next(d));
            let Some(next) = next.map(|(_, at)| at).min() else {
                break;
            };
            // What may go goes at once: nobody is told to wait until now.
            assert!(next > self.now || !idle);
            if next > end {
                break;
            }
            self.now = next;
        }
        self.now = end;
    }
}

fn near(found: u64, wanted: u64) {
    let error = found.abs_diff(wanted) as f64 / wanted as f64;
    assert!(error <= 0.01, "{found}, not {wanted}");
}

#[test]
fn every_bucket_keeps_its_rate() {
    const TIME: u64 = 20;
    for (limit, reads, writes) in [
        ("iops-total=200", 100, 100),
        ("iops-read=200", 200, 0),
        ("iops-write=200", 0, 200),
        ("bps-total=800K", 100, 100),
        ("bps-read=800K", 200, 0),
        ("bps-write=800K", 0, 200),
        // Two limits at once: the lower one.
        (
            "bps-read=800K,iops-read=50,iops-write=1000,bps-write=400K",
            50,
            100,
        ),
        // A request of 4 KiB is four of 1 KiB.
        ("iops-total=800,iops-size=1K", 100, 100),
        // Slower than a request a second, and faster than a clock's tick.
        ("bps-total=4K", 0, 1),
        ("iops-write=20000", 0, 20_000),
    ] {
        let time = if writes > 1000 { 1 } else { TIME };
        let mut s = Simulation::new(limit);
        let read = (reads != 0).then(|| s.add(Read, 4096, 3));
        let write = (writes != 0).then(|| s.add(Write, 4096, 3));
        // What the bucket holds is over.
        s.run(SECOND);
        s.done.fill(0);
        s.run(time * SECOND);
        for (load, rate) in [(read, reads), (write, writes)] {
            if let Some(load) = load {
                near(s.done[load], rate * time);
            }
        }
    }
}

#[test]
fn what_has_no_limit_does_not_wait() {
    let mut schedule = Simulation::new("iops-read=1").schedule;
    let member = schedule.add_member();
    let mut granted = Vec::new();
    let ids: Vec<u64> = (0..1000)
        .map(|_| schedule.push(member, Write, 1 << 30))
        .collect();
    schedule.advance(0, &mut granted);
    assert_eq!(granted, ids);
}

#[test]
fn a_tenth_of_a_second_may_go_at_once() {
    let mut s = Simulation::new("iops-total=1000");
    let load = s.add(Read, 4096, 8);
    s.run(0);
    // One more: a bucket may be full, and only then is there no room.
    assert_eq!(s.done[load], 101);
    s.run(SECOND);
    assert_eq!(s.done[load], 1101);
}

#[test]
fn a_burst_of_a_second_is_as_fast_as_can_be() {
    let mut s = Simulation::new("iops-total=100,iops-total-max=1000");
    let load = s.add(Write, 4096, 4);
    s.run(0);
    assert_eq!(s.done[load], 1001);
    s.run(10 * SECOND);
    assert_eq!(s.done[load], 2001);
}

#[test]
fn a_long_burst_has_its_rate_and_its_length() {
    // As an example of QEMU's docs/throttle.txt has it, ten times slower.
    let mut s = Simulation::new("iops-total=10,iops-total-max=200,iops-total-max-length=60");
    let load = s.add(Read, 4096, 4);
    s.run(60 * SECOND);
    near(s.done[load], 200 * 60);
    // The bucket leaked 10 a second meanwhile, so the burst goes on for a little.
    s.run(10 * SECOND);
    s.done.fill(0);
    s.run(100 * SECOND);
    near(s.done[load], 10 * 100);
    // An idle disk may have a burst again: the bucket empties at 10 a second.
    for order in &mut s.orders {
        for id in order.drain(..) {
            s.schedule.cancel(s.loads[load].member, Read, id);
        }
    }
    s.run(1200 * SECOND);
    s.done.fill(0);
    (0..4).for_each(|_| s.send(load));
    s.run(30 * SECOND);
    near(s.done[load], 200 * 30);
}

#[test]
fn members_take_turns() {
    for (limits, expected) in [("iops-total=1000", 250), ("bps-write=4M", 256)] {
        let mut s = Simulation::new(limits);
        // Depth gives no advantage.
        let loads = [1, 4, 32, 256].map(|depth| s.add(Write, 4096, depth));
        s.run(SECOND);
        s.done.fill(0);
        s.run(20 * SECOND);
        for load in loads {
            let (found, wanted) = (s.done[load], expected * 20);
            assert!(
                found.abs_diff(wanted) * 10 <= wanted,
                "{limits}: {:?}",
                s.done
            );
        }
    }
}

#[test]
fn reads_and_writes_share_a_total() {
    let mut s = Simulation::new("iops-total=1000");
    let member = s.schedule.add_member();
    let reads = s.add_to(member, Read, 512, 64);
    let writes = s.add_to(member, Write, 512, 1);
    s.run(SECOND);
    s.done.fill(0);
    s.run(10 * SECOND);
    assert!(s.done[reads].abs_diff(s.done[writes]) <= 1, "{:?}", s.done);
}

#[test]
fn what_waits_follows_new_limits() {
    let mut s = Simulation::new("iops-total=1");
    let load = s.add(Read, 4096, 4);
    s.run(10 * SECOND);
    assert_eq!(s.done[load], 11);
    let rates = |limits| ThrottleLimits::parse(limits).unwrap().rates().unwrap();
    s.done.fill(0);
    s.schedule.set_rates(&rates("iops-total=1000"), s.now);
    s.run(10 * SECOND);
    near(s.done[load], 10_000 + 100);
    // Without limits everything goes.
    s.schedule.set_rates(&rates("iops-total=1"), s.now);
    s.schedule.advance(s.now, &mut Vec::new());
    s.schedule.set_rates(&rates(""), s.now);
    let mut granted = Vec::new();
    s.schedule.advance(s.now, &mut granted);
    assert_eq!(granted.len(), s.orders[load].len() - 1);
}

#[test]
fn an_unthrottled_member_does_not_wait_and_counts_all_the_same() {
    let mut schedule = Simulation::new("iops-total=10").schedule;
    let [free, other] = [0; 2].map(|_| schedule.add_member());
    let mut granted = Vec::new();
    let mine: Vec<u64> = (0..20).map(|_| schedule.push(free, Read, 512)).collect();
    let theirs = schedule.push(other, Read, 512);
    schedule.unthrottle(free, true);
    schedule.advance(0, &mut granted);
    assert_eq!(granted, mine);
    // Twenty requests at ten a second, less the one that fits.
    assert_eq!(schedule.next(Read), Some((theirs, 19 * SECOND / 10)));
    schedule.unthrottle(free, false);
    let late = schedule.push(free, Read, 512);
    granted.clear();
    schedule.advance(19 * SECOND / 10, &mut granted);
    assert_eq!(granted, [theirs]);
    assert_eq!(schedule.next(Read), Some((late, 2 * SECOND)));
}

#[test]
fn what_is_given_up_leaves_nothing_behind() {
    let mut schedule = Simulation::new("bps-total=1000").schedule;
    let [one, two] = [0; 2].map(|_| schedule.add_member());
    let mut granted = Vec::new();
    let first = schedule.push(one, Write, 10_000);
    schedule.advance(0, &mut granted);
    assert_eq!(granted, [first]);
    let waits = schedule.push(one, Write, 5000);
    let next = schedule.push(two, Write, 1);
    // Before it was granted, and after.
    schedule.cancel(one, Write, waits);
    schedule.take_back(Write, 10_000);
    schedule.advance(0, &mut granted);
    assert_eq!(granted, [first, next]);
    assert_eq!(schedule.next(Write), None);
    schedule.push(one, Read, 1);
    schedule.remove_member(one);
    assert_eq!(schedule.next(Read), None);
}

#[test]
fn the_largest_numbers_do_no_harm() {
    let mut schedule = Simulation::new(
        "bps-total=1000000000000000,iops-total=1,iops-total-max=1000000000000000,iops-size=1",
    )
    .schedule;
    let member = schedule.add_member();
    let mut granted = Vec::new();
    for now in [0, 1, u64::MAX / 2, u64::MAX] {
        schedule.push(member, Write, u64::MAX);
        schedule.push(member, Write, 0);
        schedule.advance(now, &mut granted);
    }
    // A clock that goes back.
    schedule.advance(0, &mut granted);
    assert!(granted.contains(&2));
    assert!(schedule.next(Write).is_some_and(|(_, at)| at == u64::MAX));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Never more in any time than the limit says, whatever the sizes.
    #[test]
    fn limits_hold_over_any_time(
        sizes in prop::collection::vec(1..300u64, 1..4),
        bps in 1000..100_000u64,
        pauses in prop::collection::vec(0..2000u64, 1..10),
    ) {
        let mut s = Simulation::new(&format!("bps-total={bps}"));
        for (i, size) in sizes.iter().enumerate() {
            s.add([Read, Write][i % 2], *size, 2);
        }
        let mut time = 0;
        for pause in pauses {
            s.run(pause * SECOND / 1000);
            time += pause;
            let bytes: u64 = s.done.iter().zip(&sizes).map(|(done, size)| done * size).sum();
            // A tenth of a second at once, and the last request may overflow.
            let most = bps * time / 1000 + bps / 10 + 300;
            prop_assert!(bytes <= most, "{bytes} of {most} bytes in {time} ms");
            prop_assert!(bytes + 300 >= bps * time / 1000, "{bytes} bytes in {time} ms");
        }
    }
}
