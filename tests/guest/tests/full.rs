//! Disks whose host runs out of room: the guest waits for it and loses nothing.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use guest_tests::scenario::{Outcome, Scenario, Suite};
use guest_tests::{Host, Qmp, Vm};
use serde_json::json;

use crate::common::{BOOT, SOON, quoted, small_debian};

const MIB: u64 = 1 << 20;
/// What each disk is to take.
const DATA: u64 = 12;
/// Room for both, and for what a qcow2 image has beside its data.
const ROOM: u64 = 2 * DATA + 6;

/// A file system of a few MiB.
struct Small(PathBuf);

impl Small {
    fn new(folder: &Path, name: &str) -> anyhow::Result<Self> {
        let path = folder.join(name);
        std::fs::create_dir_all(&path)?;
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={ROOM}m"), "tmpfs"])
            .arg(&path)
            .status()
            .context("cannot run mount")?;
        ensure!(status.success(), "cannot mount a tmpfs, which needs root");
        Ok(Self(path))
    }

    /// Leaves only `free` MiB of the room of an empty one, less `used`.
    fn fill(&self, free: u64, used: u64) -> anyhow::Result<()> {
        let ballast = vec![0xaa; ((ROOM - used).saturating_sub(free) * MIB) as usize];
        let mut file = File::create(self.0.join("ballast"))?;
        file.write_all(&ballast)
            .context("cannot fill the file system")
    }

    fn make_room(&self) -> anyhow::Result<()> {
        std::fs::remove_file(self.0.join("ballast")).context("cannot make room")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Open files keep it until they are closed.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

struct Guest {
    vm: Vm,
    qmp: Qmp,
    small: Small,
}

pub fn add(suite: &mut Suite) {
    suite.single("full_host_without_control", without_control);
    Scenario::new("full_host", || {
        let host = Host::get()?;
        let small = Small::new(&host.scratch, "small")?;
        let raw = small.0.join("disk.img");
        File::create(&raw)?.set_len(64 * MIB)?;
        let qcow2 = small.0.join("disk.qcow2");
        let made = Command::new(&host.vireo)
            .args(["image", "create", "-f", "qcow2"])
            .arg(&qcow2)
            .arg("64M")
            .output()?;
        ensure!(made.status.success(), "vireo image create: {made:?}");
        let config = format!(
            "{}[memory]\nsize = \"384M\"\n[[disk]]\nid = \"raw\"\nfile = {}\n\
             throttle-iops-read = 100\n\
             [[disk]]\nid = \"qcow2\"\nfile = {}\n",
            small_debian()?,
            quoted(raw),
            quoted(qcow2),
        );
        let mut vm = Vm::start(&config)?;
        vm.wait_shell(BOOT)?;
        vm.run(&format!("head -c {DATA}M /dev/urandom > /tmp/data"))?;
        let qmp = vm.qmp()?;
        Ok((Guest { vm, qmp, small }, String::new()))
    })
    .check("raw", |guest| {
        guest.small.fill(DATA / 2, 0)?;
        write(guest, "raw", "/dev/vdb")
    })
    .check("qcow2", |guest| {
        guest.small.fill(DATA / 2, DATA + 1)?;
        write(guest, "qcow2", "/dev/vdc")
    })
    .check("the_guest_saw_nothing", |guest| {
        let text = guest
            .vm
            .run("dmesg --level=emerg,alert,crit,err | grep -i 'error'; true")?;
        ensure!(text.is_empty(), "{text}");
        for disk in ["/dev/vdb", "/dev/vdc"] {
            guest.vm.run(&format!(
                "blockdev --flushbufs {disk} && head -c {DATA}M {disk} | cmp - /tmp/data"
            ))?;
        }
        Ok(String::new())
    })
    .check("reads_are_throttled", |guest| {
        let begin = Instant::now();
        guest
            .vm
            .run("dd if=/dev/vdb of=/dev/null bs=4k count=60 iflag=direct")?;
        let time = begin.elapsed();
        // Eleven at once, and then one each 10 ms.
        ensure!(time >= Duration::from_millis(490), "60 reads in {time:?}");
        Ok(format!("60 in {:.2} s at 100 a second", time.as_secs_f64()))
    })
    .check("a_stop_does_not_wait_for_limits", |guest| {
        let limit = |iops: u64| json!({
            "id": "raw", "iops": iops, "iops_rd": 0, "iops_wr": 0, "bps": 0, "bps_rd": 0, "bps_wr": 0,
        });
        guest.qmp.execute("block_set_io_throttle", limit(1))?;
        // Many requests at once, each of which would take a second.
        guest.vm.console.send("dd if=/dev/vdb of=/dev/null bs=12M count=1 iflag=direct 2> /dev/null; echo \"@@RE\"\"AD $? @@\"\n")?;
        guest.vm.console.expect("@@READ", Duration::from_millis(700)).err().context("it is not throttled")?;
        let begin = Instant::now();
        guest.qmp.execute("stop", json!({}))?;
        let time = begin.elapsed();
        ensure!(time < Duration::from_secs(5), "it took {time:?}");
        guest.qmp.execute("block_set_io_throttle", limit(0))?;
        guest.qmp.execute("cont", json!({}))?;
        guest.vm.console.expect("@@READ 0 @@", SOON)?;
        Ok(format!("{:.2} s", time.as_secs_f64()))
    })
    .check("the_image_is_sound", |guest| {
        guest.qmp.execute("quit", json!({}))?;
        let status = guest.vm.wait_exit(SOON)?;
        ensure!(status == 0, "status {status}: {}", guest.vm.errors());
        let image = guest.small.0.join("disk.qcow2");
        let host = Host::get()?;
        let check = Command::new(&host.vireo)
            .args(["image", "check"])
            .arg(image)
            .output()?;
        ensure!(check.status.success(), "vireo image check: {check:?}");
        Ok(String::new())
    })
    .add_to(suite);
}

/// Nobody can say `cont`: the guest tries by itself.
fn without_control() -> Outcome {
    let small = Small::new(&Host::get()?.scratch, "small-alone")?;
    let raw = small.0.join("disk.img");
    File::create(&raw)?.set_len(64 * MIB)?;
    small.fill(2, 0)?;
    let config = format!("{}[[disk]]\nfile = {}\n", small_debian()?, quoted(raw));
    let mut vm = Vm::start_alone(&config, &[])?;
    vm.wait_shell(BOOT)?;
    vm.console.send(
        "dd if=/dev/zero of=/dev/vdb bs=1M count=8 oflag=direct 2> /dev/null; echo \"@@WRO\"\"TE $? @@\"\n",
    )?;
    let deadline = Instant::now() + SOON;
    while !vm.errors().contains("the guest is stopped") {
        ensure!(Instant::now() < deadline, "it says {:?}", vm.errors());
        std::thread::sleep(Duration::from_millis(50));
    }
    small.make_room()?;
    vm.console.expect("@@WROTE 0 @@", SOON)?;
    Ok(vm.errors().trim().to_owned())
}

/// Writes more than there is room for, makes room when the guest is stopped, and looks at what
/// the disk has then.
fn write(guest: &mut Guest, id: &str, disk: &str) -> Outcome {
    let Guest { vm, qmp, small } = guest;
    vm.console.send(&format!(
        "dd if=/tmp/data of={disk} bs=64k oflag=direct conv=fsync 2> /dev/null; echo \"@@WRO\"\"TE $? @@\"\n"
    ))?;
    let event = qmp.wait_event("BLOCK_IO_ERROR", SOON)?;
    let data = &event["data"];
    let expected = json!({
        "device": id, "qom-path": format!("/machine/peripheral/{id}/virtio-backend"), "operation": "write",
        "action": "stop", "nospace": true, "node-name": data["node-name"], "reason": data["reason"],
    });
    ensure!(*data == expected, "{event}");
    let reason = data["reason"].as_str().context("no reason")?;
    ensure!(reason == "No space left on device", "{event}");
    qmp.wait_event("STOP", SOON)?;
    let status = qmp.execute("query-status", json!({}))?;
    ensure!(
        status == json!({ "running": false, "status": "io-error" }),
        "{status}"
    );
    // There is still no room.
    qmp.execute("cont", json!({}))?;
    qmp.wait_event("RESUME", SOON)?;
    qmp.wait_event("STOP", SOON)?;
    small.make_room()?;
    qmp.execute("cont", json!({}))?;
    qmp.wait_event("RESUME", SOON)?;
    vm.console.expect("@@WROTE ", SOON)?;
    let status = vm.console.expect(" @@", SOON)?;
    ensure!(status == "0", "the guest's dd ends with {status}");
    let status = qmp.execute("query-status", json!({}))?;
    ensure!(status["status"] == "running", "{status}");
    vm.run(&format!(
        "dd if={disk} bs=1M count={DATA} iflag=direct 2> /dev/null | cmp - /tmp/data"
    ))?;
    Ok(reason.to_owned())
}
