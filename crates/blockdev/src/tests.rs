//! The graph under its commands, with a writer at work, and QEMU's tools as the oracle.

mod chain;
mod commands;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use block::graph::Edge;
use block::{DiskSpec, Format, IoBuf, Node, WriteFlags};
use event::{IoThread, IoThreadConfig};
use qmp::{Event, QmpError};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::Blockdev;

pub(super) const SIZE: u64 = 16 << 20;
/// Bytes of a write.
const BLOCK: usize = 4096;

/// Runs one of QEMU's tools; its output.
pub(super) fn tool(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {text}{errors}");
    text
}

/// A machine's disks, without the machine.
pub(super) struct Bench {
    pub directory: TempDir,
    pub blockdev: Arc<Blockdev>,
    pub events: Arc<Mutex<Vec<Event>>>,
    control: IoThread,
}

impl Bench {
    pub(super) fn new() -> Self {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tmp");
        std::fs::create_dir_all(&target).unwrap();
        let events = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&events);
        let sink: crate::EventSink = Arc::new(move |event| heard.lock().unwrap().push(event));
        Self {
            directory: tempfile::tempdir_in(target).unwrap(),
            blockdev: Blockdev::new(sink).unwrap(),
            events,
            control: IoThread::spawn(IoThreadConfig::new("control")).unwrap(),
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Makes a qcow2 image.
    pub(super) fn create(&self, name: &str) -> String {
        let path = self.text(name);
        let size = SIZE.to_string();
        tool(&["qemu-img", "create", "-q", "-f", "qcow2", &path, &size]);
        path
    }

    /// The disk of a device.
    pub(super) fn disk(&self, id: &str, name: &str) -> Arc<Edge> {
        let spec = DiskSpec {
            format: Some(Format::Qcow2),
            node_name: Some(format!("{id}-node")),
            ..DiskSpec::new(self.path(name))
        };
        self.blockdev.open_disk(id, &spec).unwrap()
    }

    /// A command's answer.
    pub(super) fn try_run(&self, name: &str, arguments: Value) -> Result<Value, QmpError> {
        let Value::Object(arguments) = arguments else {
            panic!("arguments are an object");
        };
        let (blockdev, name) = (Arc::clone(&self.blockdev), name.to_owned());
        self.control
            .spawn_task(move || async move {
                let table = Blockdev::commands();
                table.begin(&blockdev, &name, arguments)?.await
            })
            .join()
            .unwrap()
    }

    pub(super) fn run(&self, name: &str, arguments: Value) -> Value {
        self.try_run(name, arguments.clone())
            .unwrap_or_else(|error| panic!("{name} {arguments}: {error}"))
    }

    /// Why a command is refused.
    pub(super) fn refused(&self, name: &str, arguments: Value) -> String {
        match self.try_run(name, arguments.clone()) {
            Ok(answer) => panic!("{name} {arguments}: {answer}"),
            Err(error) => error.desc,
        }
    }

    /// Adds an image and its file.
    pub(super) fn add(&self, name: &str, file: &str, more: Value) {
        let mut options = json!({
            "driver": "qcow2",
            "node-name": name,
            "file": { "driver": "file", "filename": self.text(file) },
        });
        for (key, value) in more.as_object().unwrap() {
            options[key] = value.clone();
        }
        self.run("blockdev-add", options);
    }

    /// Waits until an event was told of.
    pub(super) fn wait_for(&self, name: &str, matches: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let found = {
                let events = self.events.lock().unwrap();
                let mut events = events.iter();
                let found = events.find(|event| event.name == name && matches(&event.data));
                found.map(|event| event.data.clone())
            };
            if let Some(found) = found {
                return found;
            }
            let waited = begun.elapsed();
            let events = self.events.lock().unwrap();
            assert!(waited < Duration::from_secs(30), "no {name}: {events:#?}");
            drop(events);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for a job's end; its error.
    pub(super) fn job_ended(&self, id: &str) -> Option<String> {
        let mine = |data: &Value| data["device"] == id;
        let begun = Instant::now();
        loop {
            let events = self.events.lock().unwrap();
            let ended = events.iter().find(|event| {
                matches!(event.name, "BLOCK_JOB_COMPLETED" | "BLOCK_JOB_CANCELLED")
                    && mine(&event.data)
            });
            if let Some(ended) = ended {
                return match ended.name {
                    "BLOCK_JOB_CANCELLED" => Some("cancelled".to_owned()),
                    _ => ended.data["error"].as_str().map(str::to_owned),
                };
            }
            drop(events);
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "job {id} goes on"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The names of the nodes of a device's backing chain, from the top.
    pub(super) fn chain(&self, device: &str) -> Vec<String> {
        let graph = self.blockdev.graph();
        let top = graph.device_or_node(device).unwrap();
        let chain = graph.chain(&top);
        chain.iter().map(|node| node.name.clone()).collect()
    }
}

/// The bytes of an image as QEMU sees them.
pub(super) fn qemu_bytes(path: &str) -> Vec<u8> {
    let raw = format!("{path}.raw");
    tool(&[
        "qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, &raw,
    ]);
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(raw).unwrap();
    bytes
}

/// It checks clean, and holds these bytes.
pub(super) fn holds(path: &str, model: &[u8]) {
    tool(&["qemu-img", "check", "-q", "-f", "qcow2", path]);
    let bytes = qemu_bytes(path);
    let differ = bytes.iter().zip(model).position(|(a, b)| a != b);
    assert_eq!(differ, None, "{path} holds something else");
    assert_eq!(bytes.len(), model.len());
}

/// Writes all the time, as a guest does, and knows what has to be there.
pub(super) struct Writer {
    thread: IoThread,
    stop: Arc<AtomicBool>,
    task: event::Remote<(Vec<u8>, u64)>,
    /// What it holds back for a moment.
    hold: Arc<AtomicBool>,
    held: Arc<AtomicBool>,
    model: Arc<Mutex<Vec<u8>>>,
}

impl Writer {
    pub(super) fn start(disk: &Arc<Edge>, model: Vec<u8>, seed: u64) -> Self {
        let thread = IoThread::spawn(IoThreadConfig::new("writer")).unwrap();
        let flags = || Arc::new(AtomicBool::new(false));
        let (stop, hold, held) = (flags(), flags(), flags());
        let model = Arc::new(Mutex::new(model));
        let own = (
            Arc::clone(disk),
            Arc::clone(&stop),
            Arc::clone(&hold),
            Arc::clone(&held),
            Arc::clone(&model),
        );
        let task = thread.spawn_task(move || async move {
            let (disk, stop, hold, held, model) = own;
            let mut random = seed | 1;
            let mut writes = 0;
            while !stop.load(Ordering::SeqCst) {
                if hold.load(Ordering::SeqCst) {
                    held.store(true, Ordering::SeqCst);
                    event::sleep(Duration::from_millis(1)).await;
                    continue;
                }
                held.store(false, Ordering::SeqCst);
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let at = (random % (SIZE / BLOCK as u64)) as usize * BLOCK;
                let zero = random >> 60 == 0;
                let byte = if zero { 0 } else { (random >> 32) as u8 | 1 };
                let buf = IoBuf::from_vec(vec![byte; BLOCK]);
                let flags = WriteFlags::default();
                let written = match zero {
                    true => {
                        let flags = block::ZeroFlags::default();
                        disk.write_zeroes(at as u64, BLOCK as u64, flags).await
                    }
                    false => disk.write_vectored(buf, at as u64, flags).await.0,
                };
                written.unwrap();
                model.lock().unwrap()[at..at + BLOCK].fill(byte);
                writes += 1;
                event::yield_now().await;
            }
            let model = model.lock().unwrap().clone();
            (model, writes)
        });
        Self {
            thread,
            stop,
            task,
            hold,
            held,
            model,
        }
    }

    /// What is there at an instant at which `act` is done.
    pub(super) fn at_rest<T>(&self, act: impl FnOnce() -> T) -> (T, Vec<u8>) {
        self.hold.store(true, Ordering::SeqCst);
        while !self.held.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let done = act();
        let model = self.model.lock().unwrap().clone();
        self.hold.store(false, Ordering::SeqCst);
        (done, model)
    }

    /// What has been written in the end.
    pub(super) fn stop(self) -> Vec<u8> {
        self.stop.store(true, Ordering::SeqCst);
        let (model, writes) = self.task.join().unwrap();
        assert!(writes > 10, "only {writes} writes");
        drop(self.thread);
        model
    }
}
