//! The process that is killed.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use block::graph::Edge;
use block::{DiskSpec, Format, IoBuf, Node, WriteFlags, ZeroFlags};
use blockdev::Blockdev;
use event::{IoThread, IoThreadConfig};
use qmp::Event;
use serde_json::{Value, json};

use crate::BLOCK;
use crate::kinds::Kind;
use crate::model::{Random, Writes};

/// Writes from one flush to the next.
pub const EVERY: usize = 8;

/// Tells the test, which may kill us while we do.
pub fn tell(line: &str) {
    let line = format!("{line}\n");
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes()).unwrap();
    out.flush().unwrap();
}

/// A machine's disk `d`, without the machine.
pub struct Bench {
    folder: PathBuf,
    blockdev: Arc<Blockdev>,
    control: IoThread,
    events: Arc<Mutex<Vec<Event>>>,
    pub random: Random,
}

impl Bench {
    pub fn text(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    pub fn run(&self, name: &str, arguments: Value) -> Value {
        let Value::Object(arguments) = arguments else {
            panic!("arguments are an object");
        };
        let (blockdev, name) = (Arc::clone(&self.blockdev), name.to_owned());
        let answer = self.control.spawn_task(move || async move {
            let table = Blockdev::commands();
            table.begin(&blockdev, &name, arguments)?.await
        });
        answer.join().unwrap().unwrap()
    }

    /// Adds an image and its file.
    pub fn add(&self, name: &str, file: &str) {
        let file = json!({ "driver": "file", "filename": self.text(file) });
        self.run(
            "blockdev-add",
            json!({ "driver": "qcow2", "node-name": name, "file": file }),
        );
    }

    /// Waits for an event of the job `j`, and takes it.
    pub fn wait(&self, name: &str) {
        let begun = Instant::now();
        loop {
            let mut events = self.events.lock().unwrap();
            let of_job = |e: &Event, name: &str| e.name == name && e.data["device"] == "j";
            if let Some(place) = events.iter().position(|e| of_job(e, name)) {
                let event = events.remove(place);
                assert_eq!(event.data.get("error"), None, "{}", event.data);
                return;
            }
            let failed = events.iter().find(|e| of_job(e, "BLOCK_JOB_COMPLETED"));
            assert!(failed.is_none(), "{failed:?}");
            drop(events);
            assert!(begun.elapsed() < Duration::from_secs(60), "no {name}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Bytes a second for a job: as fast as possible, or so that the killer meets it at work.
    pub fn speed(&mut self) -> u64 {
        [0, 32 << 20, 128 << 20][self.random.below(3) as usize]
    }

    pub fn sleep(&mut self, milliseconds: u64) {
        let time = self.random.below(milliseconds);
        std::thread::sleep(Duration::from_millis(time));
    }
}

fn open(blockdev: &Arc<Blockdev>, file: &Path) -> Arc<Edge> {
    let spec = DiskSpec {
        format: Some(Format::Qcow2),
        node_name: Some("active".to_owned()),
        ..DiskSpec::new(file.to_owned())
    };
    blockdev.open_disk("d", &spec).unwrap()
}

/// Writes all the time, and tells after each flush what is flushed.
async fn write(disk: Arc<Edge>, seed: u64) {
    for (index, (block, value)) in Writes::new(seed).enumerate() {
        let at = (block * BLOCK) as u64;
        let written = match value {
            0 => {
                let flags = ZeroFlags::default();
                disk.write_zeroes(at, BLOCK as u64, flags).await
            }
            value => {
                let bytes = value.to_le_bytes().repeat(BLOCK / 8);
                let buf = IoBuf::from_vec(bytes);
                disk.write_vectored(buf, at, WriteFlags::default()).await.0
            }
        };
        written.unwrap();
        if (index + 1) % EVERY == 0 {
            disk.flush().await.unwrap();
            tell(&format!("F {}", index + 1));
        }
        event::yield_now().await;
    }
}

/// Does what the order says: with a writer, until the end comes; or only the job, to its end.
pub fn run(order: &Value) {
    let text = |name: &str| order[name].as_str().unwrap().to_owned();
    let kind = Kind::by_name(&text("kind"));
    let seed = order["seed"].as_u64().unwrap();
    let events = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&events);
    let sink: blockdev::EventSink = Arc::new(move |event| heard.lock().unwrap().push(event));
    let mut bench = Bench {
        folder: text("folder").into(),
        blockdev: Blockdev::new(sink).unwrap(),
        control: IoThread::spawn(IoThreadConfig::new("control")).unwrap(),
        events,
        random: Random::new(seed ^ 0xc41d),
    };
    let disk = open(&bench.blockdev, &bench.folder.join(text("active")));
    if order["finish"] == true {
        kind.finish(&mut bench);
        drop(disk);
        bench.blockdev.close();
        tell("END");
        return;
    }
    let writer = IoThread::spawn(IoThreadConfig::new("writer")).unwrap();
    let writes = writer.spawn_task(move || write(disk, seed));
    bench.sleep(20);
    tell("GO");
    kind.at_work(&mut bench);
    // Until the end comes, which is not long.
    writes.join().unwrap();
}
