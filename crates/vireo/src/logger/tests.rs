use std::time::{Duration, Instant, UNIX_EPOCH};

use super::limiter::{BURST, PERIOD};
use super::*;

fn judge(limiter: &mut Limiter, level: Level, line: u32, text: &str, now: Instant) -> Verdict {
    let mut record = Record::builder();
    record.level(level).target("device").line(Some(line));
    limiter.judge(&record.args(format_args!("{text}")).build(), now)
}

#[test]
fn a_flood_from_one_place_is_folded_and_others_are_heard() {
    let (mut limiter, now) = (Limiter::default(), Instant::now());
    for _ in 0..BURST {
        assert_eq!(
            judge(&mut limiter, Level::Warn, 1, "bad queue", now),
            Verdict::Write
        );
    }
    for i in 0..1000 {
        assert_eq!(
            judge(&mut limiter, Level::Warn, 1, &format!("bad queue {i}"), now),
            Verdict::Fold
        );
    }
    assert_eq!(
        judge(&mut limiter, Level::Warn, 2, "something else", now),
        Verdict::Write
    );
    assert_eq!(limiter.settle(Some(now + PERIOD / 2)), []);

    let later = now + PERIOD;
    let folded = limiter.settle(Some(later));
    assert_eq!(folded.len(), 1);
    assert_eq!(
        (folded[0].count, folded[0].last.as_str()),
        (1000, "bad queue 999")
    );
    assert_eq!(
        judge(&mut limiter, Level::Warn, 1, "bad queue", later),
        Verdict::Write
    );
    assert_eq!(limiter.settle(None), [], "nothing was folded since");
}

#[test]
fn who_asks_for_debug_output_gets_all_of_it() {
    let (mut limiter, now) = (Limiter::default(), Instant::now());
    assert!((0..100).all(|_| judge(&mut limiter, Level::Debug, 1, "x", now) == Verdict::Write));
}

#[test]
fn times_are_those_of_the_calendar() {
    let at = |seconds: u64| timestamp(UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 7));
    assert_eq!(at(0), "1970-01-01T00:00:00.007Z");
    // From date -u -d @N: leap days of 2000 and 2024, ends of years.
    assert_eq!(at(951_782_399), "2000-02-28T23:59:59.007Z");
    assert_eq!(at(951_782_400), "2000-02-29T00:00:00.007Z");
    assert_eq!(at(1_709_251_200), "2024-03-01T00:00:00.007Z");
    assert_eq!(at(1_798_761_599), "2026-12-31T23:59:59.007Z");
    assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.007Z");
}

#[test]
fn a_file_gets_whole_lines_with_time_and_level() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let sink = Sink::File(file.reopen().unwrap());
    let state = State {
        sink,
        limiter: Limiter::default(),
    };
    let logger = Logger {
        level: LevelFilter::Info,
        state: Mutex::new(state),
    };
    let record = |level| {
        Record::builder()
            .level(level)
            .target("net")
            .args(format_args!("link up"))
            .line(Some(1))
            .build()
    };
    logger.log(&record(Level::Debug));
    for _ in 0..BURST + 3 {
        logger.log(&record(Level::Info));
    }
    logger.flush();
    let text = std::fs::read_to_string(file.path()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), BURST as usize + 1, "{text}");
    assert!(lines[0].ends_with("Z INFO  net: link up"), "{}", lines[0]);
    assert!(
        lines[BURST as usize].ends_with("net: 3 more lines like: link up"),
        "{text}"
    );
}
