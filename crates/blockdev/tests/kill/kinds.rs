//! What goes on when the end comes, and what has to be there afterwards.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::child::{self, Bench};
use crate::model::{self, Random};
use crate::{BLOCK, SIZE};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Snapshot,
    InternalSnapshot,
    Resize,
    CommitActive,
    CommitIntermediate,
    Stream,
    Mirror,
    Backup,
    Incremental,
}

pub const ALL: [Kind; 9] = [
    Kind::Snapshot,
    Kind::InternalSnapshot,
    Kind::Resize,
    Kind::CommitActive,
    Kind::CommitIntermediate,
    Kind::Stream,
    Kind::Mirror,
    Kind::Backup,
    Kind::Incremental,
];

/// Increments that are there to be written.
const INCREMENTS: usize = 6;

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::InternalSnapshot => "internal_snapshot",
            Self::Resize => "resize",
            Self::CommitActive => "commit_active",
            Self::CommitIntermediate => "commit_intermediate",
            Self::Stream => "stream",
            Self::Mirror => "mirror",
            Self::Backup => "backup",
            Self::Incremental => "incremental",
        }
    }

    pub fn by_name(name: &str) -> Self {
        let mut all = ALL.into_iter();
        all.find(|kind| kind.name() == name).unwrap()
    }

    /// The images of the disk, the lowest one first.
    fn chain(self) -> &'static [&'static str] {
        match self {
            Self::CommitIntermediate => &["base", "s1", "s2", "s3"],
            Self::CommitActive | Self::Stream => &["base", "s1", "s2"],
            Self::Mirror | Self::Backup => &["base", "s1"],
            _ => &["base"],
        }
    }

    /// Where the disk is when the job has completed, if it goes elsewhere.
    fn pivots_to(self) -> Option<&'static str> {
        match self {
            Self::CommitActive => Some("base"),
            Self::Mirror => Some("target"),
            _ => None,
        }
    }

    /// The job, in the child, while the disk is written.
    pub fn at_work(self, bench: &mut Bench) {
        match self {
            Self::Snapshot => {
                for number in 1..12 {
                    snapshot(bench, &format!("s{number}"));
                    child::tell(&format!("S {number}"));
                    bench.sleep(30);
                }
            }
            Self::InternalSnapshot => {
                for number in 1.. {
                    bench.run(
                        "blockdev-snapshot-internal-sync",
                        json!({ "device": "d", "name": number.to_string() }),
                    );
                    bench.sleep(10);
                    if number > 2 {
                        let name = (number - 2).to_string();
                        bench.run(
                            "blockdev-snapshot-delete-internal-sync",
                            json!({ "device": "d", "name": name }),
                        );
                    }
                    bench.sleep(10);
                }
            }
            Self::Resize => {
                for number in 1..4000_u64 {
                    let size = SIZE as u64 + number * (1 << 16);
                    bench.run("block_resize", json!({ "device": "d", "size": size }));
                    child::tell(&format!("Z {size}"));
                    bench.sleep(5);
                }
            }
            Self::Incremental => {
                let speed = bench.speed();
                for number in 1..=INCREMENTS {
                    increment(bench, &format!("inc{number}"), speed, number == 1);
                    child::tell(&format!("I {number}"));
                    bench.sleep(10);
                }
            }
            _ => {
                let speed = bench.speed();
                self.job(bench, speed);
            }
        }
    }

    /// The job with nothing else, to its end.
    pub fn finish(self, bench: &mut Bench) {
        match self {
            Self::Snapshot => snapshot(bench, "last"),
            Self::InternalSnapshot => {
                for snapshot in snapshots(bench) {
                    bench.run(
                        "blockdev-snapshot-delete-internal-sync",
                        json!({ "device": "d", "name": snapshot }),
                    );
                }
                bench.run(
                    "blockdev-snapshot-internal-sync",
                    json!({ "device": "d", "name": "last" }),
                );
            }
            Self::Resize => {
                bench.run(
                    "block_resize",
                    json!({ "device": "d", "size": 300_u64 << 20 }),
                );
            }
            Self::Incremental => {
                // A bitmap that was in use when the process was killed is not to be believed.
                if has_bitmap(bench) {
                    bench.run(
                        "block-dirty-bitmap-remove",
                        json!({ "node": "active", "name": "b" }),
                    );
                }
                increment(bench, "last-full", 0, true);
                increment(bench, "last", 0, false);
            }
            _ => self.job(bench, 0),
        }
    }

    fn job(self, bench: &mut Bench, speed: u64) {
        let mut arguments = json!({ "job-id": "j", "device": "d", "speed": speed });
        let mut more = |fields: Value| {
            for (name, value) in fields.as_object().into_iter().flatten() {
                arguments[name] = value.clone();
            }
        };
        let command = match self {
            Self::CommitActive => "block-commit",
            Self::CommitIntermediate => {
                more(json!({ "top": bench.text("s2"), "base": bench.text("base") }));
                "block-commit"
            }
            Self::Stream => "block-stream",
            Self::Mirror => {
                let mode = ["background", "write-blocking"][bench.random.below(2) as usize];
                bench.add("target", "target");
                more(json!({ "target": "target", "sync": "full", "copy-mode": mode }));
                "blockdev-mirror"
            }
            _ => {
                bench.add("target", "target");
                more(json!({ "target": "target", "sync": "full" }));
                "blockdev-backup"
            }
        };
        bench.run(command, arguments);
        if self.pivots_to().is_some() {
            bench.wait("BLOCK_JOB_READY");
            bench.sleep(20);
            child::tell("PIVOT");
            bench.run("job-complete", json!({ "id": "j" }));
        }
        bench.wait("BLOCK_JOB_COMPLETED");
        child::tell("DONE");
    }
}

fn snapshot(bench: &Bench, file: &str) {
    bench.run(
        "blockdev-snapshot-sync",
        json!({ "device": "d", "snapshot-file": bench.text(file) }),
    );
}

/// The names of the snapshots inside the image.
fn snapshots(bench: &Bench) -> Vec<String> {
    let disks = bench.run("query-block", json!({}));
    let snapshots = disks[0]["inserted"]["image"]["snapshots"]
        .as_array()
        .cloned();
    let name = |snapshot: &Value| snapshot["name"].as_str().unwrap().to_owned();
    snapshots.unwrap_or_default().iter().map(name).collect()
}

fn has_bitmap(bench: &Bench) -> bool {
    let disks = bench.run("query-block", json!({}));
    let bitmaps = disks[0]["inserted"]["dirty-bitmaps"].as_array().cloned();
    bitmaps.unwrap_or_default().iter().any(|b| b["name"] == "b")
}

/// A backup with the bitmap b, which begins with the first one.
fn increment(bench: &Bench, file: &str, speed: u64, is_first: bool) {
    bench.add(file, file);
    let mut backup = json!({
        "job-id": "j", "device": "d", "target": file, "speed": speed, "sync": "full",
    });
    let mut actions = Vec::new();
    if is_first {
        let bitmap = json!({ "node": "active", "name": "b", "persistent": true });
        actions.push(json!({ "type": "block-dirty-bitmap-add", "data": bitmap }));
    } else {
        backup["sync"] = "incremental".into();
        backup["bitmap"] = "b".into();
    }
    actions.push(json!({ "type": "blockdev-backup", "data": backup }));
    bench.run("transaction", json!({ "actions": actions }));
    bench.wait("BLOCK_JOB_COMPLETED");
    bench.run("blockdev-del", json!({ "node-name": file }));
}

/// Runs one of QEMU's tools; its exit status and output. The kernel may keep the locks of a
/// process a moment longer than the process: its io_uring is taken down afterwards.
fn tool(words: &[&str]) -> (Option<i32>, String) {
    let begun = Instant::now();
    loop {
        let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let is_locked = !output.status.success() && errors.contains("Failed to get");
        if !is_locked || begun.elapsed() > Duration::from_secs(10) {
            return (output.status.code(), text + &errors);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

struct Round {
    kind: Kind,
    folder: TempDir,
}

impl Round {
    fn text(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn must(&self, words: &[&str]) -> Result<String, String> {
        match tool(words) {
            (Some(0), text) => Ok(text),
            (_, text) => Err(format!("{words:?}: {text}")),
        }
    }

    fn create(&self, name: &str, below: Option<&str>) -> Result<(), String> {
        let (file, size) = (self.text(name), SIZE.to_string());
        let mut words = vec!["qemu-img", "create", "-q", "-f", "qcow2"];
        let below = below.map(|below| self.text(below));
        if let Some(below) = &below {
            words.extend(["-F", "qcow2", "-b", below]);
        }
        words.extend([file.as_str(), size.as_str()]);
        self.must(&words).map(|_| ())
    }

    /// The images before the first child.
    fn prepare(&self) -> Result<(), String> {
        let chain = self.kind.chain();
        for (depth, name) in chain.iter().enumerate() {
            let below = depth.checked_sub(1).map(|below| chain[below]);
            self.create(name, below)?;
            // Parts of each are in no other.
            let (byte, at) = (depth + 1, depth);
            let write = format!("write -q -P {byte} {at}M 3M");
            self.must(&["qemu-io", "-f", "qcow2", "-c", &write, &self.text(name)])?;
        }
        match self.kind {
            Kind::Mirror | Kind::Backup => self.create("target", None),
            Kind::Incremental => {
                let mut below = None;
                for number in 1..=INCREMENTS {
                    let name = format!("inc{number}");
                    self.create(&name, below.as_deref())?;
                    below = Some(name);
                }
                self.create("last-full", None)?;
                self.create("last", Some("last-full"))
            }
            _ => Ok(()),
        }
    }

    fn child(&self, active: &str, seed: u64, finish: bool) -> Command {
        let order = json!({
            "kind": self.kind.name(),
            "folder": self.folder.path(),
            "active": active,
            "seed": seed,
            "finish": finish,
        });
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env("VIREO_KILL_CHILD", order.to_string());
        command.stdout(Stdio::piped());
        command
    }

    /// The first bytes of an image, as QEMU reads it with all that is below.
    fn bytes(&self, name: &str) -> Result<Vec<u8>, String> {
        let (file, raw) = (self.text(name), self.text("raw"));
        self.must(&[
            "qemu-img", "convert", "-f", "qcow2", "-O", "raw", &file, &raw,
        ])?;
        let mut bytes = Vec::with_capacity(SIZE);
        let file = std::fs::File::open(&raw).map_err(|error| error.to_string())?;
        let read = file.take(SIZE as u64).read_to_end(&mut bytes);
        read.map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    /// Nothing is corrupt; leaks are allowed.
    fn check_all(&self) -> Result<(), String> {
        let files = std::fs::read_dir(self.folder.path()).map_err(|e| e.to_string())?;
        for file in files {
            let path = file.map_err(|e| e.to_string())?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name == "raw" || !is_whole(&path) {
                continue;
            }
            let path = path.display().to_string();
            let (status, said) = tool(&["qemu-img", "check", "-f", "qcow2", &path]);
            match status {
                Some(0 | 3) => (),
                Some(2) if are_leaks(&said) => {
                    self.must(&["qemu-img", "check", "-f", "qcow2", "-r", "all", &path])?;
                    self.must(&["qemu-img", "check", "-f", "qcow2", &path])?;
                }
                _ => return Err(format!("{name}: {said}")),
            }
        }
        Ok(())
    }
}

/// Whether all errors that qemu-img found come from leaks. Refcounts and the copied flags of
/// entries cannot change in one write: killed in between, a snapshot that is in no table has
/// raised the counts of clusters whose flags are still set, or a deleted one has lowered the
/// counts of clusters whose flags are not set again. Neither has an effect but that a cluster is
/// copied once more, or lost until a repair.
fn are_leaks(said: &str) -> bool {
    let number = |line: &str, name: &str, radix: u32| {
        let digits = line.split_once(name)?.1;
        let end = digits.find(|c: char| !c.is_ascii_hexdigit());
        u64::from_str_radix(&digits[..end.unwrap_or(digits.len())], radix).ok()
    };
    let leaked: Vec<(u64, u64)> = said
        .lines()
        .filter(|line| line.contains("Leaked cluster") && line.ends_with("reference=1"))
        .filter_map(|line| {
            let cluster = number(line, "Leaked cluster ", 10)?;
            Some((cluster, number(line, "refcount=", 10)?))
        })
        .collect();
    let mut errors = said.lines().filter(|line| line.contains("ERROR"));
    errors.all(|line| {
        let entry = number(line, "l1_entry=", 16).or_else(|| number(line, "l2_entry=", 16));
        let (Some(entry), Some(count)) = (entry, number(line, " refcount=", 10)) else {
            return false;
        };
        let cluster = (entry & 0x00ff_ffff_ffff_fe00) >> 16;
        let is_set = entry >> 63 == 1;
        line.contains("OFLAG_COPIED")
            && match is_set {
                true => leaked.contains(&(cluster, count)),
                false => count == 1,
            }
    })
}

/// Whether an image that was made meanwhile has its header already.
fn is_whole(path: &Path) -> bool {
    let path = path.display().to_string();
    tool(&["qemu-img", "info", "-f", "qcow2", &path]).0 == Some(0)
}

/// What a child told before its end.
#[derive(Default)]
struct Told {
    flushed: usize,
    /// The last number of each other word.
    last: BTreeMap<String, u64>,
}

impl Told {
    fn line(&mut self, line: &str) {
        let (word, number) = line.split_once(' ').unwrap_or((line, "0"));
        let number: u64 = number.parse().unwrap_or(0);
        match word {
            "F" => self.flushed = number as usize,
            word => {
                self.last.insert(word.to_owned(), number);
            }
        }
    }

    fn has(&self, word: &str) -> bool {
        self.last.contains_key(word)
    }
}

/// Starts a child, kills it some time after its job began, and listens to what it had to say.
fn kill(mut command: Command, random: &mut Random) -> Result<Told, String> {
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut told = Told::default();
    for line in lines.by_ref().map_while(Result::ok) {
        told.line(&line);
        if line == "GO" {
            break;
        }
    }
    let pid = child.id();
    let time = Duration::from_millis(random.below(250));
    let listener = std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            told.line(&line);
        }
        told
    });
    std::thread::sleep(time);
    let failed = child.try_wait().ok().flatten();
    _ = child.kill();
    _ = child.wait();
    let told = listener
        .join()
        .map_err(|_| "the listener is gone".to_owned())?;
    match failed {
        Some(status) => Err(format!("the child {pid} ended by itself: {status}")),
        None => Ok(told),
    }
}

/// Images, kills, and the job once more.
pub fn round(kind: Kind, seed: u64) -> Result<(), String> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tmp");
    std::fs::create_dir_all(&target).map_err(|error| error.to_string())?;
    let round = Round {
        kind,
        folder: tempfile::tempdir_in(target).map_err(|error| error.to_string())?,
    };
    let mut random = Random::new(seed);
    round.prepare()?;
    let mut active = (*kind.chain().last().unwrap()).to_owned();
    let mut before = round.bytes(&active)?;
    let told = kill(round.child(&active, seed, false), &mut random)?;
    round.check_all()?;

    // Where the disk is now.
    let mut may_be = vec![active.clone()];
    if let Some(to) = kind.pivots_to() {
        if told.has("DONE") {
            may_be = vec![to.to_owned()];
        } else if told.has("PIVOT") {
            // Between the command and its event, nobody outside knows.
            may_be.push(to.to_owned());
        }
    }
    if kind == Kind::Snapshot {
        let number = told.last.get("S").copied().unwrap_or(0);
        if number > 0 {
            active = format!("s{number}");
        }
        // One more may have been made, and is the disk as soon as its header is there.
        let next = format!("s{}", number + 1);
        if is_whole(&round.folder.path().join(&next)) {
            active = next;
        }
        may_be = vec![active];
    }
    let mut why = String::new();
    let mut found = None;
    for name in may_be {
        let now = round.bytes(&name)?;
        match model::check(&now, &before, seed, told.flushed) {
            Ok(()) => found = Some((name, now)),
            Err(error) => why.push_str(&format!("{name}: {error}; ")),
        }
    }
    let Some((active, now)) = found else {
        return Err(why);
    };
    before = now;
    let info = round.must(&["qemu-img", "info", "--output=json", &round.text(&active)])?;
    let info: Value = serde_json::from_str(&info).map_err(|error| error.to_string())?;
    if let Some(size) = told.last.get("Z") {
        let there = info["virtual-size"].as_u64().unwrap_or(0);
        if there < *size {
            return Err(format!("{there} bytes, and {size} were told of"));
        }
    }
    if Some(active.as_str()) == kind.pivots_to() {
        return Ok(());
    }
    // What was merged need not be merged again.
    if kind == Kind::CommitIntermediate && info["backing-filename"] == round.text("base").as_str() {
        return Ok(());
    }
    if matches!(kind, Kind::Mirror | Kind::Backup) {
        round.create("target", None)?;
    }
    again(&round, &active, &before, seed)
}

/// The job is done again, to its end, and the disk holds what it held.
fn again(round: &Round, active: &str, before: &[u8], seed: u64) -> Result<(), String> {
    let output = round
        .child(active, seed, true)
        .output()
        .map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() || !said.ends_with("END\n") {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("the job cannot be done again: {said}{errors}"));
    }
    round.check_all()?;
    let holds = match round.kind {
        Kind::Snapshot | Kind::Incremental => "last",
        Kind::Backup => "target",
        kind => kind.pivots_to().unwrap_or(active),
    };
    for name in [holds, round.kind.pivots_to().unwrap_or(active)] {
        let now = round.bytes(name)?;
        let differs = now.iter().zip(before).position(|(a, b)| a != b);
        if let Some(at) = differs.or((now.len() != before.len()).then_some(0)) {
            let block = at / BLOCK;
            return Err(format!("{name} holds something else in block {block:#x}"));
        }
    }
    Ok(())
}
