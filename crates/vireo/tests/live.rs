//! The commands for disks of a machine that runs, with a machine whose guest only halts.

use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// A 32-bit ELF file with a Multiboot 1 header (version 0.6.96, 3.1.2), whose program halts.
fn kernel() -> Vec<u8> {
    const BASE: u32 = 0x10_0000;
    const HEADERS: u32 = 52 + 32;
    let code = [0xfa, 0xf4, 0xeb, 0xfd];
    let (entry, size) = (BASE + HEADERS + 12, HEADERS + 12 + 4);
    let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let halves = |halves: &[u16]| {
        halves
            .iter()
            .flat_map(|h| h.to_le_bytes())
            .collect::<Vec<_>>()
    };
    let words = |words: &[u32]| {
        words
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect::<Vec<_>>()
    };
    file.extend(halves(&[2, 3]));
    file.extend(words(&[1, entry, 52, 0, 0]));
    file.extend(halves(&[52, 32, 1, 0, 0, 0]));
    file.extend(words(&[1, 0, BASE, BASE, size, size, 7, 4096]));
    file.extend(words(&[0x1bad_b002, 0, 0xe452_4ffe]));
    file.extend(code);
    file
}

/// A machine with three qcow2 disks: a has 8 MiB of data, b 1 MiB, and c is encrypted.
struct Vm {
    folder: TempDir,
    child: Child,
}

impl Vm {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("kernel"), kernel()).unwrap();
        std::fs::write(folder.path().join("key"), "secret").unwrap();
        let encrypted = "create -q -f qcow2 -o encrypt.format=luks,encrypt.key-file=key,\
                         encrypt.iter-time=10 c.qcow2 4M";
        let mut create = Command::new(env!("CARGO_BIN_EXE_vireo"));
        create.arg("image").args(encrypted.split_whitespace());
        let created = create.current_dir(folder.path()).output().unwrap();
        assert!(created.status.success(), "{created:?}");
        for (name, data) in [("a", "8M"), ("b", "1M")] {
            run(
                &folder,
                &[
                    "qemu-img",
                    "create",
                    "-q",
                    "-f",
                    "qcow2",
                    &file(name),
                    "16M",
                ],
            );
            let write = format!("write -P 5 1M {data}");
            run(&folder, &["qemu-io", "-c", &write, &file(name)]);
        }
        let child = Command::new(env!("CARGO_BIN_EXE_vireo"))
            .current_dir(folder.path())
            .args([
                "run", "--accel", "soft", "--memory", "64M", "--kernel", "kernel",
            ])
            .args(["--qmp", "vm.sock"])
            .args(["--disk", "a.qcow2,format=qcow2,id=a"])
            .args(["--disk", "b.qcow2,format=qcow2,id=b"])
            .args(["--disk", "c.qcow2,format=qcow2,id=c,key-file=key"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let vm = Self { folder, child };
        let begun = Instant::now();
        while UnixStream::connect(vm.folder.path().join("vm.sock")).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "no machine");
            std::thread::sleep(Duration::from_millis(20));
        }
        vm
    }

    /// A command to the machine.
    fn command(&self, line: &str) -> Command {
        let (name, words) = line.split_once(' ').unwrap_or((line, ""));
        let mut command = Command::new(env!("CARGO_BIN_EXE_vireo"));
        command.args([name, "vm.sock"]);
        command.args(words.split_whitespace());
        command.current_dir(self.folder.path());
        command
    }

    fn output(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// What a command says.
    fn does(&self, line: &str) -> String {
        let output = self.output(line);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {text}{errors}");
        text
    }

    /// Why a command fails, and with which status.
    fn fails(&self, line: &str) -> (i32, String) {
        let output = self.output(line);
        let status = output.status.code().unwrap();
        assert_ne!(status, 0, "{line}");
        (status, String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn disks(&self) -> Value {
        serde_json::from_str(&self.does("disks --output json")).unwrap()
    }

    /// The files of a disk, the active one first.
    fn files(&self, disk: usize) -> Vec<String> {
        let disks = self.disks();
        let images = disks["disks"][disk]["images"].as_array().unwrap();
        let name = |image: &Value| {
            let path = image["file"].as_str().unwrap();
            path.rsplit('/').next().unwrap().to_owned()
        };
        images.iter().map(name).collect()
    }

    fn tool(&self, words: &[&str]) -> String {
        run(&self.folder, words)
    }

    fn has(&self, name: &str) -> bool {
        self.folder.path().join(name).exists()
    }

    /// Ends the machine, so that its images are closed.
    fn end(mut self) -> TempDir {
        self.does("qmp quit");
        assert!(self.child.wait().unwrap().success());
        std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap())
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It may have ended.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn file(name: &str) -> String {
    format!("{name}.qcow2")
}

fn run(folder: &TempDir, words: &[&str]) -> String {
    let output = Command::new(words[0])
        .args(&words[1..])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {text}{errors}");
    text
}

#[test]
fn snapshots_are_taken_and_merged_both_ways() {
    let vm = Vm::start();
    assert_eq!(vm.files(0), ["a.qcow2"]);
    let said = vm.does("snapshot a s1.qcow2 --node-name s1");
    assert!(
        said.contains("s1.qcow2") && said.contains("stays as it is"),
        "{said}"
    );
    vm.does("snapshot a s2.qcow2");
    vm.does("snapshot a s3.qcow2");
    assert_eq!(vm.files(0), ["s3.qcow2", "s2.qcow2", "s1.qcow2", "a.qcow2"]);
    let table = vm.does("disks");
    assert!(
        table.contains("s1 ") && table.contains("read-only"),
        "{table}"
    );
    // Nothing is overwritten.
    let (status, why) = vm.fails("snapshot a s1.qcow2");
    assert!(status == 1 && why.contains("exists already"), "{why}");
    assert_eq!(vm.fails("snapshot a s4.qcow2 --internal x").0, 2);
    let (status, why) = vm.fails("snapshot aa s4.qcow2");
    assert!(status == 1 && why.contains("did you mean \"a\""), "{why}");
    // The middle by its node and its file, then all that is left.
    vm.does("commit a --top s2.qcow2 --base s1 -q");
    assert_eq!(vm.files(0), ["s3.qcow2", "s1.qcow2", "a.qcow2"]);
    let said = vm.does("commit a --no-pivot");
    assert!(said.contains("3 images are 3 now"), "{said}");
    let said = vm.does("commit a");
    assert!(said.contains("3 images are 1 now"), "{said}");
    assert_eq!(vm.files(0), ["a.qcow2"]);
    vm.does("snapshot a t1.qcow2");
    vm.does("snapshot a t2.qcow2");
    vm.does("pull a --base a.qcow2");
    assert_eq!(vm.files(0), ["t2.qcow2", "a.qcow2"]);
    vm.does("pull a");
    assert_eq!(vm.files(0), ["t2.qcow2"]);
    let folder = vm.end();
    for image in ["a.qcow2", "t2.qcow2"] {
        run(&folder, &["qemu-img", "check", "-q", image]);
        run(&folder, &["qemu-io", "-c", "read -P 5 1M 8M", image]);
    }
}

#[test]
fn all_disks_are_kept_at_one_instant_and_snapshots_inside_images() {
    let vm = Vm::start();
    std::fs::create_dir(vm.folder.path().join("day")).unwrap();
    vm.does("snapshot --all-disks day");
    assert_eq!(vm.files(0), ["a.qcow2", "a.qcow2"]);
    assert_eq!(vm.files(1), ["b.qcow2", "b.qcow2"]);
    assert!(vm.has("day/a.qcow2") && vm.has("day/b.qcow2"));
    assert_eq!(vm.fails("snapshot --all-disks day").0, 1);
    assert_eq!(vm.fails("snapshot").0, 2);
    vm.does("snapshot a --internal before");
    let (_, why) = vm.fails("snapshot a --internal before");
    assert!(why.contains("already exists"), "{why}");
    assert!(vm.does("disks").contains("snapshot before"));
    vm.does("snapshot a --delete before");
    assert!(!vm.does("disks").contains("before"));
    vm.end();
}

#[test]
fn disks_move_and_leave_copies() {
    let vm = Vm::start();
    let said = vm.does("mirror a copy.raw --format raw --no-pivot --copy-mode write-blocking");
    assert!(said.contains("copy of a"), "{said}");
    vm.tool(&["qemu-img", "compare", "-U", "a.qcow2", "copy.raw"]);
    assert_eq!(vm.files(0), ["a.qcow2"]);
    vm.does("mirror a moved.qcow2");
    assert_eq!(vm.files(0), ["moved.qcow2"]);
    assert!(
        vm.fails("mirror a moved.qcow2")
            .1
            .contains("exists already")
    );
    assert!(
        vm.fails("mirror a none.qcow2 --existing")
            .1
            .contains("does not exist")
    );
    let folder = vm.end();
    run(&folder, &["qemu-img", "compare", "a.qcow2", "moved.qcow2"]);
}

#[test]
fn backups_are_whole_and_incremental() {
    let vm = Vm::start();
    let (_, why) = vm.fails("backup a inc.qcow2 --incremental nightly");
    assert!(
        why.contains("--bitmap nightly") && !vm.has("inc.qcow2"),
        "{why}"
    );
    vm.does("backup a full.qcow2 --bitmap nightly --compress");
    vm.does("backup a inc1.qcow2 --incremental nightly --backing full.qcow2");
    vm.does("backup a inc2.qcow2 --incremental nightly -b inc1.qcow2 -q");
    assert!(vm.does("disks").contains("bitmap nightly"));
    assert_eq!(vm.fails("backup a x.raw -f raw --compress").0, 2);
    let folder = vm.end();
    run(&folder, &["qemu-img", "check", "-q", "inc2.qcow2"]);
    run(&folder, &["qemu-img", "compare", "a.qcow2", "inc2.qcow2"]);
    run(&folder, &["qemu-img", "compare", "a.qcow2", "full.qcow2"]);
}

#[test]
fn what_is_encrypted_stays_so() {
    let vm = Vm::start();
    vm.does("snapshot c top.qcow2");
    let info = vm.tool(&["qemu-img", "info", "-U", "top.qcow2"]);
    assert!(info.contains("encrypted: yes"), "{info}");
    for line in ["mirror c plain.qcow2", "backup c plain.qcow2"] {
        let (status, why) = vm.fails(line);
        assert!(status == 1 && why.contains("--unencrypted"), "{why}");
        assert!(!vm.has("plain.qcow2"));
    }
    vm.does("backup c plain.qcow2 --unencrypted");
    vm.does("commit c");
    assert_eq!(vm.files(2), ["c.qcow2"]);
    vm.end();
}

#[test]
fn limits_are_set_and_shown() {
    let vm = Vm::start();
    assert!(vm.does("throttle a").contains("no limits"));
    let table = vm.does("throttle a iops-total=500 bps-write=20M");
    assert!(table.contains("iops-total  500"), "{table}");
    vm.does("throttle a iops-total-max=900");
    let limits: Value = serde_json::from_str(&vm.does("throttle a --output json")).unwrap();
    assert_eq!(
        (
            &limits["iops-total"],
            &limits["iops-total-max"],
            &limits["bps-write"]
        ),
        (&500.into(), &900.into(), &(20 << 20).into())
    );
    let (status, why) = vm.fails("throttle a iops-totl=4");
    assert!(status == 2 && why.contains("iops-total"), "{why}");
    assert!(vm.does("throttle a off").contains("no limits"));
    vm.end();
}

#[test]
fn jobs_are_paused_and_ctrl_c_leaves_the_disk_as_it_was() {
    let vm = Vm::start();
    assert_eq!(vm.does("jobs"), "no jobs\n");
    let mirror = vm
        .command("mirror a slow.qcow2 --speed 256K")
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let wait_for = |status: &str| {
        loop {
            let jobs: Value = serde_json::from_str(&vm.does("jobs --output json")).unwrap();
            if jobs[0]["status"] == status {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{jobs}");
        }
    };
    wait_for("running");
    assert!(vm.does("jobs").contains("mirror-a"));
    vm.does("jobs pause mirror-a");
    wait_for("paused");
    vm.does("jobs resume mirror-a");
    let (status, why) = vm.fails("jobs complete mirror-a");
    assert!(status == 1 && why.contains("mirror-a"), "{why}");
    assert_eq!(vm.fails("jobs complete").0, 2);
    let pid = mirror.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    let ended = mirror.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(130), "{said}");
    assert!(said.contains("cancelled; the disk is as it was"), "{said}");
    assert!(!vm.has("slow.qcow2"));
    assert_eq!(vm.files(0), ["a.qcow2"]);
    assert_eq!(vm.does("jobs"), "no jobs\n");
    vm.end();
}

#[test]
fn a_machine_that_is_not_there_is_told() {
    let output = Command::new(env!("CARGO_BIN_EXE_vireo"))
        .args(["disks", "/nonexistent/vm.sock"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        error.starts_with("vireo: /nonexistent/vm.sock: cannot connect"),
        "{error}"
    );
}
