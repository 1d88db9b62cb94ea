//! Whole machines on an accelerator that follows a script instead of executing a guest.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use accel::testing::{FakeAccelerator, Script, Step};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);
/// A machine on a thread of its own, in a folder for its files.
struct Running {
    dir: TempDir,
    script: Arc<Script>,
    thread: Option<JoinHandle<Result<Outcome, MachineError>>>,
}

/// The guest writes to PM1a control: sleep enable, with the type of S5, which is 0.
fn power_off() -> Step {
    Step::PortWrite(0x604, vec![0x00, 0x20])
}

/// A 32-bit ELF with a Multiboot 1 header at the start of its one segment, at 1 MiB.
fn tiny_kernel(path: &Path) {
    let mut elf = vec![0u8; 0x1000];
    elf[..16].copy_from_slice(b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0");
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &2u16.to_le_bytes());
    put(18, &3u16.to_le_bytes());
    put(20, &1u32.to_le_bytes());
    put(24, &0x10_000cu32.to_le_bytes());
    put(28, &52u32.to_le_bytes());
    put(40, &52u16.to_le_bytes());
    put(42, &32u16.to_le_bytes());
    put(44, &1u16.to_le_bytes());
    let program: [u32; 8] = [1, 0x200, 0x10_0000, 0x10_0000, 0x100, 0x100, 5, 0x1000];
    for (i, word) in program.iter().enumerate() {
        put(52 + 4 * i, &word.to_le_bytes());
    }
    put(0x200, &0x1bad_b002u32.to_le_bytes());
    put(0x208, &0x1bad_b002u32.wrapping_neg().to_le_bytes());
    std::fs::write(path, elf).unwrap();
}

impl Running {
    fn start(options: &[(&str, &str)], steps: impl IntoIterator<Item = Step>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("kernel");
        tiny_kernel(&kernel);
        let mut description = Description::new();
        description.add("kernel", kernel.to_str().unwrap()).unwrap();
        description.add("memory", "64M").unwrap();
        for (name, text) in options {
            description
                .add(name, &text.replace("DIR", dir.path().to_str().unwrap()))
                .unwrap();
        }
        let script = Arc::new(Script::default());
        script.push(steps);
        let accelerator = FakeAccelerator::new(Arc::clone(&script));
        let thread = std::thread::spawn(move || run(Plan::new(description)?, &accelerator));
        Self {
            dir,
            script,
            thread: Some(thread),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn end(mut self) -> Result<Outcome, MachineError> {
        let thread = self.thread.take().expect("ends once");
        let begin = Instant::now();
        while !thread.is_finished() {
            assert!(begin.elapsed() < PATIENCE, "the machine does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
        thread.join().expect("the machine does not panic")
    }
}

/// A QMP client.
struct Client {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
    events: Vec<String>,
}

impl Client {
    fn connect(path: &Path) -> Self {
        let begin = Instant::now();
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(e) => assert!(begin.elapsed() < PATIENCE, "{e}"),
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap());
        let mut client = Self {
            stream,
            lines,
            events: Vec::new(),
        };
        assert!(
            client.next()["QMP"]["version"]["package"]
                .as_str()
                .unwrap()
                .starts_with("vireo")
        );
        client.call("qmp_capabilities");
        client
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn call(&mut self, command: &str) -> Value {
        self.execute(&json!({ "execute": command }))
    }

    fn execute(&mut self, request: &Value) -> Value {
        // In one piece: the machine may be gone before a line feed that comes later.
        self.stream
            .write_all(format!("{request}\n").as_bytes())
            .unwrap();
        loop {
            let mut message = self.next();
            match message.get("event").and_then(Value::as_str) {
                Some(event) => self.events.push(event.to_owned()),
                None if message.get("error").is_some() => return message["error"].take(),
                None => return message["return"].take(),
            }
        }
    }

    fn wait_event(&mut self, name: &str) {
        while !self.events.iter().any(|event| event == name) {
            let message = self.next();
            self.events
                .extend(message["event"].as_str().map(str::to_owned));
        }
    }
}

#[test]
fn a_guest_that_powers_off_ends_the_machine_with_status_0() {
    let outcome = Running::start(&[], [power_off()]).end().unwrap();
    assert_eq!((outcome.status(), outcome), (0, Outcome::GuestPowerOff));
}

#[test]
fn a_reset_begins_anew_and_can_be_made_an_end() {
    let steps = || [Step::PortWrite(0xcf9, vec![0x06]), power_off()];
    let machine = Running::start(&[], steps());
    let script = Arc::clone(&machine.script);
    assert_eq!(machine.end().unwrap(), Outcome::GuestPowerOff);
    let states = script.states();
    assert_eq!(states.len(), 2, "power-on and reset");
    assert_eq!(states[0], states[1]);
    assert_eq!(states[0].regs.rip, 0x10_000c);
    let machine = Running::start(&[("machine", "on-reset=exit")], steps());
    let script = Arc::clone(&machine.script);
    assert_eq!(machine.end().unwrap(), Outcome::GuestPowerOff);
    assert_eq!(script.states().len(), 1);
}

#[test]
fn what_ends_a_guest_badly_has_a_status_of_its_own() {
    let triple = Running::start(&[], [Step::TripleFault]).end().unwrap();
    assert_eq!((triple.status(), &triple), (4, &Outcome::TripleFault));
    let panic = Running::start(&[], [Step::PortWrite(0x505, vec![1])])
        .end()
        .unwrap();
    assert_eq!((panic.status(), &panic), (3, &Outcome::GuestPanic));
    let crash_kernel = [Step::PortWrite(0x505, vec![2]), power_off()];
    assert_eq!(
        Running::start(&[], crash_kernel).end().unwrap(),
        Outcome::GuestPowerOff
    );
    let exit = [Step::PortWrite(0xf4, vec![0x10, 0, 0, 0])];
    let exit = Running::start(&[("isa-debug-exit", "iobase=0xf4,iosize=4")], exit)
        .end()
        .unwrap();
    assert_eq!((exit.status(), &exit), (0x21, &Outcome::DebugExit(0x10)));
    let failed = Running::start(&[], [Step::Fail("out of order".into())])
        .end()
        .unwrap();
    assert_eq!(failed.status(), 1);
    assert!(failed.message().unwrap().contains("out of order"));
}

#[test]
fn the_board_answers_where_a_q35_does() {
    let config = |device: u32, register: u32| {
        let address = 0x8000_0000 | device << 11 | register;
        [
            Step::PortWrite(0xcf8, address.to_le_bytes().to_vec()),
            Step::PortRead(0xcfc, 4),
        ]
    };
    let mut steps: Vec<Step> = Vec::new();
    steps.extend(config(0, 0));
    steps.extend(config(31, 0));
    steps.extend(config(1, 0));
    steps.extend(config(2, 0));
    steps.push(Step::MemoryRead(0xb000_0000, 4));
    steps.push(Step::MemoryRead(0xfec0_0000, 4));
    steps.push(Step::PortRead(0x3fd, 1));
    steps.push(Step::PortRead(0x64, 1));
    steps.push(power_off());
    let machine = Running::start(&[("serial", "null"), ("rng", "")], steps);
    let script = Arc::clone(&machine.script);
    assert_eq!(machine.end().unwrap(), Outcome::GuestPowerOff);
    let reads: Vec<u32> = script
        .reads()
        .iter()
        .map(|bytes| {
            bytes
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u32::from(*byte))
        })
        .collect();
    assert_eq!(
        reads[..6],
        [
            0x29c0_8086,
            0x2918_8086,
            0x1044_1af4,
            0xffff_ffff,
            0x29c0_8086,
            0
        ]
    );
    assert_eq!(reads[6], 0x60, "the transmitter is empty");
    assert_ne!(reads[7], 0xff, "there is a keyboard controller");
}

#[test]
fn serial_output_is_in_the_file_when_the_machine_has_ended() {
    let text = b"hello\n".map(|byte| Step::PortWrite(0x3f8, vec![byte]));
    let mut machine = Running::start(
        &[("serial", "file:DIR/log")],
        text.into_iter().chain([power_off()]),
    );
    let thread = machine.thread.take().unwrap();
    assert_eq!(thread.join().unwrap().unwrap(), Outcome::GuestPowerOff);
    assert_eq!(std::fs::read(machine.path("log")).unwrap(), b"hello\n");
}

#[test]
fn qmp_drives_the_machine() {
    let options = [
        ("qmp", "DIR/qmp"),
        ("machine", "paused=on,name=web1"),
        ("balloon", ""),
        ("cpus", "2"),
    ];
    let machine = Running::start(&options, []);
    let mut client = Client::connect(&machine.path("qmp"));
    assert_eq!(
        client.call("query-status"),
        json!({ "running": false, "status": "prelaunch" })
    );
    assert_eq!(client.call("cont"), json!({}));
    client.wait_event("RESUME");
    assert_eq!(
        client.call("query-status"),
        json!({ "running": true, "status": "running" })
    );
    assert_eq!(client.call("query-name"), json!({ "name": "web1" }));
    let cpus = client.call("query-cpus-fast");
    assert_eq!(cpus.as_array().unwrap().len(), 2);
    for cpu in cpus.as_array().unwrap() {
        let tid = cpu["thread-id"].as_i64().unwrap();
        assert!(Path::new(&format!("/proc/self/task/{tid}")).exists());
    }
    let names = client.call("query-commands");
    let names: Vec<&str> = names
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect();
    for name in [
        "qmp_capabilities",
        "stop",
        "quit",
        "query-version",
        "system_powerdown",
    ] {
        assert!(names.contains(&name), "{name}");
    }
    assert_eq!(client.call("stop"), json!({}));
    assert_eq!(client.call("query-status")["status"], "paused");
    assert_eq!(client.events, ["RESUME", "STOP"]);
    assert_eq!(client.call("system_reset"), json!({}));
    client.wait_event("RESET");
    assert_eq!(client.call("system_powerdown"), json!({}));
    client.wait_event("POWERDOWN");
    assert_eq!(client.call("nonsense")["class"], "CommandNotFound");
    let bad =
        client.execute(&json!({ "execute": "balloon", "arguments": { "value": 1u64 << 60 } }));
    assert!(bad["desc"].as_str().unwrap().contains("67108864"), "{bad}");
    let states = client.call("x-query-device-states");
    let ids: Vec<&str> = states
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["id"].as_str().unwrap())
        .collect();
    for id in ["ioapic", "pic", "pit", "rtc", "acpi-pm", "lpc", "balloon0"] {
        assert!(ids.contains(&id), "{id} is not among {ids:?}");
    }
    assert_eq!(client.call("quit"), json!({}));
    client.wait_event("SHUTDOWN");
    assert_eq!(machine.end().unwrap(), Outcome::Quit);
}

#[test]
fn a_crashed_guest_can_be_kept_for_inspection() {
    let options = [("qmp", "DIR/qmp"), ("machine", "paused=on,on-crash=pause")];
    let machine = Running::start(&options, [Step::PortWrite(0x505, vec![1])]);
    let mut client = Client::connect(&machine.path("qmp"));
    client.call("cont");
    client.wait_event("GUEST_PANICKED");
    client.wait_event("STOP");
    assert_eq!(
        client.call("query-status"),
        json!({ "running": false, "status": "guest-panicked" })
    );
    assert_eq!(client.call("cont")["class"], "GenericError");
    client.call("system_reset");
    machine.script.push([power_off()]);
    client.call("cont");
    assert_eq!(machine.end().unwrap(), Outcome::GuestPowerOff);
}

#[test]
fn what_cannot_be_built_says_what_and_why() {
    let refused =
        |options: &[(&str, &str)]| chain(&Running::start(options, []).end().expect_err("refused"));
    let missing = refused(&[("disk", "/nowhere/disk.img")]);
    assert!(missing.contains("/nowhere/disk.img"), "{missing}");
    let thread = refused(&[
        ("iothread", "id=fast"),
        ("disk", "file=/dev/null,iothread=fsat"),
    ]);
    assert!(
        thread.contains("fast") || thread.contains("/dev/null"),
        "{thread}"
    );
    let port = refused(&[("rng", "bus=rp1")]);
    assert!(port.contains("--root-port id=rp1"), "{port}");
    let typo = refused(&[("rng", "max-byts=1")]);
    assert!(typo.contains("did you mean"), "{typo}");
    let twice = refused(&[("rng", "id=a"), ("balloon", "id=a")]);
    assert!(twice.contains("two devices are called \"a\""), "{twice}");
    let slot = refused(&[("rng", "addr=3"), ("balloon", "addr=3")]);
    assert!(slot.contains("addr=3"), "{slot}");
    let many = refused(&[("cpus", "count=300")]);
    assert!(
        many.contains("at most") || many.contains("x2apic"),
        "{many}"
    );
}

#[test]
fn devices_can_sit_behind_root_ports() {
    let options = [
        ("root-port", "id=rp1"),
        ("rng", "bus=rp1"),
        ("root-port", "id=rp2"),
        ("balloon", "bus=rp2,id=b"),
    ];
    assert_eq!(
        Running::start(&options, [power_off()]).end().unwrap(),
        Outcome::GuestPowerOff
    );
}

#[test]
fn devices_of_a_file_keep_their_order() {
    let mut description = Description::new();
    description
        .add_toml("[[rng]]\n[[disk]]\nfile = \"a\"\n[[balloon]]\n[[disk]]\nfile = \"b\"\n")
        .unwrap();
    let names: Vec<&str> = description.devices.iter().map(|d| d.device.name).collect();
    // TOML gathers the tables of one name where the first one is.
    let expected = [
        "virtio-rng-pci",
        "virtio-blk-pci",
        "virtio-blk-pci",
        "virtio-balloon-pci",
    ];
    assert_eq!(names, expected);
}
