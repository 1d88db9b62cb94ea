//! `vireo image bench`.

use std::cell::Cell;
use std::io;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use block::{DiskSpec, IoBuf, Node, OpenOptions, WriteFlags};
use clap::builder::PossibleValuesParser;
use clap::{ArgMatches, Command, value_parser};
use serde_json::json;

use super::{common, encryption};
use crate::failure::{Failure, Result};
use crate::output;

pub(super) const NAME: &str = "bench";

/// Most I/O threads.
const QUEUES: u64 = 64;

pub(super) fn command() -> Command {
    let number = |name, short, default, help| {
        common::text(name, "NUMBER", help)
            .short(short)
            .default_value(default)
            .value_parser(value_parser!(u64).range(1..))
    };
    Command::new(NAME)
        .about("Reads or writes an image, on one I/O thread or several, and tells how long it took")
        .arg(common::format("Format of the image"))
        .arg(number("count", 'c', "75000", "Requests"))
        .arg(number(
            "depth",
            'd',
            "64",
            "Requests at a time of each I/O thread",
        ))
        .arg(
            number(
                "queues",
                'q',
                "1",
                "I/O threads, each with its share of the requests",
            )
            .value_parser(value_parser!(u64).range(1..=QUEUES)),
        )
        .arg(
            common::text("buffer-size", "SIZE", "Bytes of a request")
                .short('s')
                .default_value("4K"),
        )
        .arg(
            common::text("offset", "SIZE", "Where the first request goes")
                .short('o')
                .default_value("0"),
        )
        .arg(
            common::text(
                "step-size",
                "SIZE",
                "How far the next one is [default: behind the last]",
            )
            .short('S'),
        )
        .arg(common::flag(
            "random",
            "Anywhere on the disk, always in the same order",
        ))
        .arg(common::flag("write", "Write, which destroys what is there").short('w'))
        .arg(
            common::text("cache", "MODE", "How far a write gets")
                .short('t')
                .default_value("writeback")
                .value_parser(PossibleValuesParser::new([
                    "writeback",
                    "none",
                    "writethrough",
                    "directsync",
                    "unsafe",
                ])),
        )
        .arg(common::output())
        .arg(common::backing_files())
        .arg(encryption::key_file())
        .arg(common::file("file", "FILE", "The image"))
}

#[derive(Clone, Copy)]
struct Bench {
    count: u64,
    depth: u64,
    size: u64,
    offset: u64,
    step: u64,
    random: bool,
    write: bool,
}

pub(super) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    let number = |name: &str| matches.get_one::<u64>(name).copied().unwrap_or(1);
    let size = |name: &str| {
        let word = matches.get_one::<String>(name);
        word.map(|word| common::size(name, word)).transpose()
    };
    let buffer = size("buffer-size")?.unwrap_or(4096);
    let bench = Bench {
        count: number("count"),
        depth: number("depth"),
        size: buffer,
        offset: size("offset")?.unwrap_or(0),
        step: size("step-size")?.unwrap_or(buffer),
        random: matches.get_flag("random"),
        write: matches.get_flag("write"),
    };
    let cache = matches
        .get_one::<String>("cache")
        .map_or("writeback", String::as_str);
    let spec = DiskSpec {
        read_only: !bench.write,
        cache: common::parse("--cache", cache)?,
        ..common::spec(matches, "file", "format")?
    };
    let image = common::open(&spec, OpenOptions::default())?;
    let node = image.node();
    if buffer == 0 || buffer > node.size() {
        return Err(Failure::Usage(
            "a request is larger than the disk, or nothing".into(),
        ));
    }
    let queues = number("queues").min(bench.count);
    let mut threads = Vec::new();
    for queue in 0..queues {
        threads.push(common::thread(&format!("bench{queue}"))?);
    }
    let start = Instant::now();
    let tasks: Vec<_> = threads
        .iter()
        .zip(0..)
        .map(|(thread, queue)| {
            let (bench, node) = (bench.share(queue, queues), Arc::clone(&node));
            thread.spawn_task(move || Box::pin(run(bench, queue, node)))
        })
        .collect();
    let ended: Vec<_> = tasks.into_iter().map(event::Remote::join).collect();
    let taken = start.elapsed();
    common::close(&image)?;
    for end in ended {
        end.map_err(|error| Failure::failed(&error))?
            .map_err(|error| Failure::Failed(format!("a request failed: {error}")))?;
    }
    let seconds = taken.as_secs_f64();
    let rate = bench.count as f64 / seconds;
    if common::wants_json(matches) {
        return output::print_json(&json!({
            "requests": bench.count,
            "bytes": buffer,
            "depth": bench.depth,
            "queues": queues,
            "seconds": seconds,
            "requests-per-second": rate,
        }));
    }
    output::print(&format!(
        "{} {} of {buffer} bytes, {} at a time: {seconds:.3} seconds, {rate:.0} a second, {:.1} MiB/s\n",
        bench.count,
        if bench.write { "writes" } else { "reads" },
        bench.depth,
        rate * buffer as f64 / f64::from(1 << 20)
    ))
}

impl Bench {
    /// What one of several I/O threads does.
    fn share(self, queue: u64, queues: u64) -> Self {
        Self {
            count: self.count / queues + u64::from(queue < self.count % queues),
            offset: self.offset.saturating_add(self.step.saturating_mul(queue)),
            step: self.step.saturating_mul(queues),
            ..self
        }
    }
}

/// What the requests of a run share.
struct State {
    bench: Bench,
    node: Arc<dyn Node>,
    begun: Cell<u64>,
    place: Cell<u64>,
}

impl State {
    /// Where the next request goes; `None`: all have begun.
    fn next(&self) -> Option<u64> {
        let Bench {
            count,
            size,
            step,
            random,
            ..
        } = self.bench;
        if self.begun.get() >= count {
            return None;
        }
        self.begun.set(self.begun.get() + 1);
        let last = self.node.size() - size;
        let place = self.place.get();
        if random {
            // Marsaglia's xorshift.
            let mut next = place;
            next ^= next << 13;
            next ^= next >> 7;
            next ^= next << 17;
            self.place.set(next);
            return Some(next % (last / size + 1) * size);
        }
        // Around the disk, and not back to its beginning: a large step comes everywhere.
        let at = match place % self.node.size() {
            at if at > last => 0,
            at => at,
        };
        self.place.set(at.saturating_add(step));
        Some(at)
    }
}

/// Makes the requests of one I/O thread. The host's flush comes when the image is closed, and does
/// not count.
async fn run(bench: Bench, queue: u64, node: Arc<dyn Node>) -> io::Result<()> {
    let state = Rc::new(State {
        bench,
        node,
        begun: Cell::new(0),
        place: Cell::new(match bench.random {
            true => 0x9e37_79b9_7f4a_7c15 ^ queue,
            false => bench.offset,
        }),
    });
    let workers: Vec<_> = (0..bench.depth.min(bench.count))
        .map(|_| event::spawn_local(requests(Rc::clone(&state))))
        .collect();
    for worker in workers {
        worker.await?;
    }
    Ok(())
}

async fn requests(state: Rc<State>) -> io::Result<()> {
    let len = usize::try_from(state.bench.size).unwrap_or(usize::MAX);
    let mut buf = IoBuf::zeroed_aligned(len, 4096).ok_or(io::ErrorKind::OutOfMemory)?;
    if let Some(bytes) = buf.bytes_mut()
        && state.bench.write
    {
        bytes.fill(0xa5);
    }
    while let Some(at) = state.next() {
        let (result, back) = match state.bench.write {
            true => {
                let flags = WriteFlags::default();
                state.node.write_vectored(buf, at, flags).await
            }
            false => state.node.read_vectored(buf, at).await,
        };
        result?;
        buf = back;
        if !buf.rewind(len) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
    }
    Ok(())
}
