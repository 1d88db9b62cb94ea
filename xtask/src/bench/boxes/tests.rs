use std::collections::BTreeMap;
use std::collections::VecDeque;

use anyhow::bail;

use super::super::vmm::{Kind, Vmm};
use super::super::{Job, memory, results::Record};
use super::*;

const LIMIT: Duration = Duration::from_secs(1000);

fn turn(round: u32, vmm: &str) -> Turn {
    Turn {
        round,
        vmm: vmm.to_owned(),
    }
}

fn record(vmm: &str, value: f64) -> Message {
    Message::Record(Record {
        case: "boot".into(),
        vmm: vmm.into(),
        values: BTreeMap::from([("s".to_owned(), value)]),
    })
}

fn text(text: &str) -> Message {
    Message::Text(text.to_owned())
}

fn lines(messages: &[Message]) -> Vec<u8> {
    let lines = messages.iter().map(|m| serde_json::to_string(m).unwrap());
    lines.flat_map(|line| (line + "\n").into_bytes()).collect()
}

fn ended(end: End) -> anyhow::Result<Outcome> {
    Ok(Outcome {
        end,
        started: None,
        ended: Duration::ZERO,
    })
}

/// Two rounds of "ours" and "theirs" in boxes that say and end so.
fn carry_out_in(
    boxes: Vec<(Vec<Message>, anyhow::Result<Outcome>)>,
) -> (Gathered, anyhow::Result<Outcome>, Vec<Vec<Turn>>) {
    let names = ["ours", "theirs"];
    let plan = Plan {
        rounds: 2,
        vmms: names
            .map(|name| Vmm::new(name, Kind::Vireo, Path::new("vireo")))
            .into(),
        done: BTreeSet::new(),
        kernel: "k".into(),
        initramfs: "i".into(),
        script: "s".into(),
        job: Job::Memory(memory::Plan::default()),
    };
    let gathered = Gathered::new(names.map(str::to_owned).into());
    let mut boxes = VecDeque::from(boxes);
    let mut missing = Vec::new();
    let (gathered, ending) = carry_out(plan, gathered, LIMIT, BOXES, |plan, time, said| {
        assert!(time <= LIMIT);
        let all = (0..=plan.rounds).flat_map(|round| {
            let turns = plan.vmms.iter().map(move |vmm| turn(round, &vmm.name));
            turns.collect::<Vec<_>>()
        });
        let left = all.filter(|turn| !turn.is_done(&plan.done, plan.rounds));
        missing.push(left.collect());
        let Some((messages, outcome)) = boxes.pop_front() else {
            bail!("a box too many");
        };
        *said = lines(&messages);
        // The last words of a box that dies are cut off.
        if outcome.is_err() {
            said.extend_from_slice(b"{\"Record\":{\"ca");
        }
        Ok(outcome)
    })
    .unwrap();
    assert!(boxes.is_empty());
    (gathered, ending, missing)
}

fn values(gathered: &Gathered, vmm: &str) -> Vec<f64> {
    let summary = gathered.results.summary("boot", vmm, "s");
    summary.map_or(Vec::new(), |summary| summary.values)
}

/// A first box that dies in the second round.
fn first() -> (Vec<Message>, anyhow::Result<Outcome>) {
    let messages = vec![
        text("ours: 1 KiB"),
        Message::Done(turn(0, "ours")),
        Message::Done(turn(0, "theirs")),
        record("ours", 1.0),
        Message::Done(turn(1, "ours")),
        record("theirs", 10.0),
        Message::Done(turn(1, "theirs")),
        record("ours", 2.0),
        Message::Done(turn(2, "ours")),
        record("theirs", 99.0),
    ];
    (messages, Err(anyhow!("it hangs")))
}

#[test]
fn another_box_does_what_is_missing_and_no_turn_counts_twice() {
    let second = vec![
        text("theirs: again"),
        Message::Done(turn(0, "theirs")),
        record("theirs", 20.0),
        Message::Done(turn(2, "theirs")),
    ];
    let (gathered, ending, missing) = carry_out_in(vec![first(), (second, ended(End::Exited(0)))]);
    assert_eq!(ending.unwrap().end, End::Exited(0));
    // The fresh box warms up before it measures.
    assert_eq!(missing[1], [turn(0, "theirs"), turn(2, "theirs")]);
    assert_eq!(values(&gathered, "ours"), [1.0, 2.0]);
    assert_eq!(values(&gathered, "theirs"), [10.0, 20.0]);
    assert_eq!(
        (gathered.boxes, gathered.texts.join(" ").as_str()),
        (2, "ours: 1 KiB")
    );
}

#[test]
fn boxes_that_bring_nothing_are_given_up_and_what_there_is_stays() {
    let dead = || (Vec::new(), Err(anyhow!("it hangs")));
    let begun = vec![record("theirs", 30.0)];
    let (gathered, ending, _) =
        carry_out_in(vec![first(), dead(), (begun, ended(End::Exited(139)))]);
    let error = format!("{:#}", ending.unwrap_err());
    assert!(error.contains("box 3") && error.contains("139"), "{error}");
    assert_eq!(values(&gathered, "ours"), [1.0, 2.0]);
    // Part of a turn is better than nothing where nothing else will come.
    assert_eq!(values(&gathered, "theirs"), [10.0, 30.0]);
    assert_eq!(gathered.complete_rounds(2), 1);
}

#[test]
fn a_time_limit_and_a_failure_of_the_benchmark_are_final() {
    for end in [End::TimedOut, End::Interrupted, End::Exited(1)] {
        let (messages, _) = first();
        let (gathered, ending, _) = carry_out_in(vec![(messages, ended(end))]);
        assert_eq!(ending.unwrap().end, end);
        assert_eq!(values(&gathered, "theirs"), [10.0, 99.0]);
    }
}

#[test]
fn what_failed_once_is_measured_again_and_what_failed_twice_never() {
    let messages = vec![
        Message::Done(turn(0, "ours")),
        record("theirs", 5.0),
        Message::Again(turn(0, "theirs")),
        Message::Failed(turn(0, "theirs")),
        record("ours", 1.0),
        Message::Again(turn(1, "ours")),
        record("ours", 2.0),
        Message::Done(turn(1, "ours")),
    ];
    let second = vec![
        Message::Done(turn(0, "ours")),
        record("ours", 3.0),
        Message::Done(turn(2, "ours")),
    ];
    let (gathered, ending, missing) = carry_out_in(vec![
        (messages, Err(anyhow!("it hangs"))),
        (second, ended(End::Exited(0))),
    ]);
    ending.unwrap();
    assert_eq!(missing[1], [turn(0, "ours"), turn(2, "ours")]);
    assert_eq!(values(&gathered, "ours"), [2.0, 3.0]);
    assert_eq!(values(&gathered, "theirs"), [0.0; 0]);
    assert_eq!(gathered.complete_rounds(2), 2);
}
