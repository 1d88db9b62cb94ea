//! Whose turn it is. Time is nanoseconds of a clock that the caller has.
//!
//! A member's requests of one direction go in their order. Members take turns, a request each,
//! and so do the directions where both wait for a bucket that they share.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use super::bucket::{Buckets, Direction, Rates};

/// A request that waits.
#[derive(Debug)]
struct Ticket {
    id: u64,
    bytes: u64,
}

#[derive(Debug, Default)]
struct Member {
    /// Reads, writes.
    waiting: [VecDeque<Ticket>; 2],
    /// How many want it not to wait.
    unthrottled: usize,
}

/// The requests and buckets of a group.
#[derive(Debug)]
pub(super) struct Schedule {
    buckets: Buckets,
    members: BTreeMap<u64, Member>,
    next_id: u64,
    /// The member whose request of a direction went last.
    last_member: [u64; 2],
    /// The direction that went last.
    last: Direction,
}

impl Schedule {
    pub(super) fn new(rates: &Rates, now: u64) -> Self {
        Self {
            buckets: Buckets::new(rates, now),
            members: BTreeMap::new(),
            next_id: 0,
            last_member: [0; 2],
            last: Direction::Write,
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(super) fn add_member(&mut self) -> u64 {
        let member = self.id();
        self.members.insert(member, Member::default());
        member
    }

    /// Removes a member and what it waits for.
    pub(super) fn remove_member(&mut self, member: u64) {
        self.members.remove(&member);
    }

    /// Other limits from now on, also for what waits. The buckets are empty again.
    pub(super) fn set_rates(&mut self, rates: &Rates, now: u64) {
        self.buckets = Buckets::new(rates, now);
    }

    /// Adds a request of a member behind its others; the number under which it will be granted.
    pub(super) fn push(&mut self, member: u64, direction: Direction, bytes: u64) -> u64 {
        let id = self.id();
        if let Some(member) = self.members.get_mut(&member) {
            member.waiting[direction as usize].push_back(Ticket { id, bytes });
        }
        id
    }

    /// A request is given up that was not granted.
    pub(super) fn cancel(&mut self, member: u64, direction: Direction, id: u64) {
        if let Some(member) = self.members.get_mut(&member) {
            member.waiting[direction as usize].retain(|ticket| ticket.id != id);
        }
    }

    /// A request is given up that was granted.
    pub(super) fn take_back(&mut self, direction: Direction, bytes: u64) {
        self.buckets.take_back(direction, bytes);
    }

    /// One more or less that wants a member not to wait.
    pub(super) fn unthrottle(&mut self, member: u64, wanted: bool) {
        if let Some(member) = self.members.get_mut(&member) {
            member.unthrottled = match wanted {
                true => member.unthrottled.saturating_add(1),
                false => member.unthrottled.saturating_sub(1),
            };
        }
    }

    /// Grants what may go now, in its order.
    pub(super) fn advance(&mut self, now: u64, granted: &mut Vec<u64>) {
        self.buckets.leak(now);
        for (id, member) in &mut self.members {
            if member.unthrottled == 0 {
                continue;
            }
            for direction in Direction::BOTH {
                for ticket in member.waiting[direction as usize].drain(..) {
                    self.buckets.account(direction, ticket.bytes);
                    self.last_member[direction as usize] = *id;
                    granted.push(ticket.id);
                }
            }
        }
        while let Some(id) = self.grant() {
            granted.push(id);
        }
    }

    fn grant(&mut self) -> Option<u64> {
        for direction in [self.last.other(), self.last] {
            let Some(member) = self.turn(direction) else {
                continue;
            };
            if self.buckets.wait(direction) != 0 {
                continue;
            }
            let waiting = &mut self.members.get_mut(&member)?.waiting;
            let ticket = waiting[direction as usize].pop_front()?;
            self.buckets.account(direction, ticket.bytes);
            self.last_member[direction as usize] = member;
            self.last = direction;
            return Some(ticket.id);
        }
        None
    }

    /// The member whose turn it is: the next one that waits.
    fn turn(&self, direction: Direction) -> Option<u64> {
        let last = self.last_member[direction as usize];
        let behind = self
            .members
            .range((Bound::Excluded(last), Bound::Unbounded));
        let mut round = behind.chain(self.members.range(..=last));
        let waits = |member: &Member| !member.waiting[direction as usize].is_empty();
        round.find(|(_, member)| waits(member)).map(|(id, _)| *id)
    }

    /// The request of a direction that goes next, and when, as things are.
    pub(super) fn next(&self, direction: Direction) -> Option<(u64, u64)> {
        let member = self.members.get(&self.turn(direction)?)?;
        let ticket = member.waiting[direction as usize].front()?;
        let wait = self.buckets.wait(direction);
        Some((ticket.id, self.buckets.now().saturating_add(wait)))
    }
}
