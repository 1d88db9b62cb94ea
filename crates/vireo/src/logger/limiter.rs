//! How many lines may come from one place.

use std::time::{Duration, Instant};

use log::{Level, Record};

/// Lines that one place in the program may write in each [`PERIOD`].
pub(super) const BURST: u32 = 10;

/// The period in which lines are counted.
pub(super) const PERIOD: Duration = Duration::from_secs(1);

/// What becomes of a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is written.
    Write,
    /// It is counted.
    Fold,
}

/// Lines that were not written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Folded {
    pub(super) level: Level,
    pub(super) target: String,
    pub(super) count: u32,
    /// The last one's text.
    pub(super) last: String,
}

/// A place in the program and what came from it in the present period.
struct Place {
    target: String,
    file: Option<&'static str>,
    line: Option<u32>,
    since: Instant,
    count: u32,
    folded: Option<Folded>,
}

/// Counts lines by the place in the program that they come from. There are as many places as the
/// program has log statements, and those that fall silent are forgotten.
#[derive(Default)]
pub(super) struct Limiter {
    places: Vec<Place>,
}

impl Limiter {
    /// Whether a line is written. Who asks for debug output wants all of it.
    pub(super) fn judge(&mut self, record: &Record<'_>, now: Instant) -> Verdict {
        if record.level() >= Level::Debug {
            return Verdict::Write;
        }
        let here = |p: &&mut Place| {
            p.line == record.line() && p.file == record.file_static() && p.target == record.target()
        };
        let Some(place) = self.places.iter_mut().find(here) else {
            self.places.push(Place {
                target: record.target().to_owned(),
                file: record.file_static(),
                line: record.line(),
                since: now,
                count: 1,
                folded: None,
            });
            return Verdict::Write;
        };
        place.count = place.count.saturating_add(1);
        if place.count <= BURST {
            return Verdict::Write;
        }
        place.folded = Some(Folded {
            level: record.level(),
            target: record.target().to_owned(),
            count: place.count - BURST,
            last: record.args().to_string(),
        });
        Verdict::Fold
    }

    /// Ends the periods that are over at `now`, or all; what was folded in them.
    pub(super) fn settle(&mut self, now: Option<Instant>) -> Vec<Folded> {
        let over = |p: &mut Place| now.is_none_or(|now| now.duration_since(p.since) >= PERIOD);
        self.places
            .extract_if(.., over)
            .filter_map(|place| place.folded)
            .collect()
    }
}
