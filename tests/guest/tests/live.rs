//! Disks of a guest that writes all the while: snapshots, merges, a move and backups.
//!
//! In the first half of its disk the guest writes blocks of noise, each at once read back and
//! compared, and takes the time; in the second half fio writes at random, several requests at a
//! time, and verifies what it wrote. At an instant the guest holds its breath and tells the SHA-256
//! of its disk; what is kept of that instant has to have the same.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use guest_tests::scenario::{Outcome, Scenario, Suite};
use guest_tests::{Host, Qmp, Vm};
use serde_json::{Value, json};

use crate::common::{BOOT, SOON, quoted, small_debian};

/// MiB of the disk: 16 for the writer, 16 for fio.
const DISK: u64 = 32;

/// Writes 128 KiB somewhere and reads it back, until /tmp/stop is there; /tmp/hold stops it for a
/// while. /tmp/longest has the longest time of one round, in hundredths of a second.
const WRITER: &str = r#"cat > /tmp/writer << 'END'
i=0; longest=0
while [ ! -e /tmp/stop ]; do
    if [ -e /tmp/hold ]; then
        : > /tmp/held-writer
        while [ -e /tmp/hold ]; do sleep 0.05; done
        rm /tmp/held-writer
    fi
    read -r begin rest < /proc/uptime
    from=$((i * 7 % 61)); to=$((i * 29 % 128))
    dd if=/tmp/noise of=/dev/vdb bs=128k count=1 skip=$from seek=$to oflag=direct conv=notrunc,fdatasync 2> /dev/null || echo write $i >> /tmp/bad
    dd if=/tmp/noise bs=128k count=1 skip=$from 2> /dev/null > /tmp/expected
    dd if=/dev/vdb bs=128k count=1 skip=$to iflag=direct 2> /dev/null | cmp -s - /tmp/expected || echo read $i >> /tmp/bad
    read -r end rest < /proc/uptime
    time=$(( (${end%.*} * 100 + 1${end#*.}) - (${begin%.*} * 100 + 1${begin#*.}) ))
    [ $time -le $longest ] || longest=$time
    i=$((i + 1)); echo $i $longest > /tmp/rounds.new; mv /tmp/rounds.new /tmp/rounds
done
: > /tmp/stopped-writer
END
head -c 8M /dev/urandom > /tmp/noise
sh /tmp/writer > /tmp/writer.log 2>&1 &"#;

/// fio, a piece of work at a time: it writes 512 KiB at random, four requests at a time, then reads
/// them and compares their checksums. Between two pieces it can be held, as the writer can.
const FIO: &str = r#"cat > /tmp/fio-loop << 'END'
cd /tmp; i=0
while [ ! -e /tmp/stop ]; do
    if [ -e /tmp/hold ]; then
        : > /tmp/held-fio
        while [ -e /tmp/hold ]; do sleep 0.05; done
        rm /tmp/held-fio
    fi
    fio --name=verify --filename=/dev/vdb --offset=16M --size=16M --io_size=512k --rw=randwrite \
        --bs=4k --ioengine=libaio --direct=1 --iodepth=4 --thread --randseed=$((i + 1)) \
        --verify=crc32c --verify_fatal=1 --output-format=terse > /tmp/fio.log 2>&1 ||
        { echo fio $i; cat /tmp/fio.log; } >> /tmp/bad
    i=$((i + 1)); echo $i > /tmp/fio-rounds.new; mv /tmp/fio-rounds.new /tmp/fio-rounds
done
: > /tmp/stopped-fio
END
sh /tmp/fio-loop > /tmp/fio-loop.log 2>&1 &"#;

/// Both of them.
const WAIT_HELD: &str =
    "until [ -e /tmp/held-writer ] && [ -e /tmp/held-fio ]; do sleep 0.05; done";

struct Guest {
    vm: Vm,
    qmp: Qmp,
    folder: PathBuf,
    /// What the writer has done.
    rounds: u64,
}

pub fn add(suite: &mut Suite) {
    Scenario::new("live_disk", boot)
        .check("three_snapshots", snapshots)
        .check("merges_each_way", merges)
        .check("a_move_to_another_file", moves)
        .check("backups_and_increments", backups)
        .check("the_guest_saw_nothing", saw_nothing)
        .add_to(suite);
}

fn boot() -> anyhow::Result<(Guest, String)> {
    let host = Host::get()?;
    let folder = host.scratch.join("live");
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    create(&folder.join("base"), None)?;
    let config = format!(
        "{}[memory]\nsize = \"384M\"\n[[disk]]\nid = \"live\"\nfile = {}\nformat = \"qcow2\"\n\
         node-name = \"base\"\n",
        small_debian()?,
        quoted(folder.join("base")),
    );
    let mut vm = Vm::start(&config)?;
    vm.wait_shell(BOOT)?;
    vm.run(WRITER)?;
    vm.run(FIO)?;
    let qmp = vm.qmp()?;
    let mut guest = Guest {
        vm,
        qmp,
        folder,
        rounds: 0,
    };
    guest.writes()?;
    Ok((guest, String::new()))
}

/// Makes a qcow2 image.
fn create(path: &Path, below: Option<&Path>) -> anyhow::Result<()> {
    let mut command = Command::new(&Host::get()?.vireo);
    command.args(["image", "create", "-q", "-f", "qcow2"]);
    if let Some(below) = below {
        command.args(["-F", "qcow2", "-b"]).arg(below);
    }
    let made = command.arg(path).arg(format!("{DISK}M")).output()?;
    ensure!(made.status.success(), "vireo image create: {made:?}");
    Ok(())
}

/// One of QEMU's tools.
fn tool(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

impl Guest {
    /// Waits until the writer has made a few rounds more.
    fn writes(&mut self) -> anyhow::Result<()> {
        let before = self.rounds;
        for _ in 0..300 {
            let text = self.vm.run("cat /tmp/rounds 2> /dev/null; true")?;
            let rounds = text.split(' ').next().unwrap_or_default();
            self.rounds = rounds.parse().unwrap_or(0);
            if self.rounds >= before + 6 {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let log = self
            .vm
            .run("cat /tmp/writer.log /tmp/fio-loop.log /tmp/bad; ps ax")?;
        anyhow::bail!("the guest's writer does not go on: {log}")
    }

    /// Does something while the guest holds its breath; the hash of its disk.
    fn instant(
        &mut self,
        act: impl FnOnce(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<String> {
        self.vm.run(&format!(": > /tmp/hold; {WAIT_HELD}"))?;
        let hash = self.hash()?;
        act(self)?;
        self.vm.run("rm /tmp/hold")?;
        Ok(hash)
    }

    /// The hash of the disk as the guest sees it.
    fn hash(&mut self) -> anyhow::Result<String> {
        let said = self
            .vm
            .run("dd if=/dev/vdb bs=1M iflag=direct 2> /dev/null | sha256sum")?;
        Ok(first_word(&said))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// An image holds a disk of that hash, and is sound.
    fn holds(&self, name: &str, hash: &str) -> anyhow::Result<()> {
        let (file, raw) = (self.file(name), self.file("raw"));
        tool(
            Command::new("qemu-img")
                .args(["check", "-q", "-f", "qcow2"])
                .arg(&file),
        )?;
        tool(
            Command::new("qemu-img")
                .args(["convert", "-f", "qcow2", "-O", "raw"])
                .args([&file, &raw]),
        )?;
        let found = first_word(&tool(Command::new("sha256sum").arg(&raw))?);
        ensure!(
            found == hash,
            "{name} has {found}, and the guest had {hash}"
        );
        Ok(())
    }

    fn add_node(&mut self, name: &str) -> anyhow::Result<()> {
        let file = json!({ "driver": "file", "filename": self.file(name) });
        let node = json!({ "driver": "qcow2", "node-name": name, "file": file });
        self.qmp.execute("blockdev-add", node)?;
        Ok(())
    }

    fn snapshot(&mut self, name: &str) -> anyhow::Result<()> {
        let file = self.file(name);
        let snapshot = json!({
            "device": "live", "snapshot-file": file, "snapshot-node-name": name,
        });
        self.qmp.execute("blockdev-snapshot-sync", snapshot)?;
        Ok(())
    }

    /// Begins a job, completes it where it has to be told, and waits for its end.
    fn job(&mut self, command: &str, mut arguments: Value, pivots: bool) -> anyhow::Result<()> {
        arguments["job-id"] = "job".into();
        arguments["device"] = "live".into();
        self.qmp.execute(command, arguments)?;
        if pivots {
            self.qmp.wait_event("BLOCK_JOB_READY", SOON)?;
            self.writes()?;
            self.qmp.execute("job-complete", json!({ "id": "job" }))?;
        }
        self.completed()
    }

    fn completed(&mut self) -> anyhow::Result<()> {
        let ended = self.qmp.wait_event("BLOCK_JOB_COMPLETED", SOON)?;
        let error = &ended["data"]["error"];
        ensure!(error.is_null(), "the job failed: {error}");
        Ok(())
    }

    /// The image that is written, and how many are below it.
    fn active(&mut self) -> anyhow::Result<(String, u64)> {
        let disks = self.qmp.execute("query-block", json!({}))?;
        let disks = disks.as_array().context("no disks")?;
        let disk = disks.iter().find(|disk| disk["device"] == "live");
        let inserted = &disk.context("no disk")?["inserted"];
        let node = inserted["node-name"].as_str().unwrap_or_default();
        let depth = inserted["backing_file_depth"].as_u64().unwrap_or(99);
        Ok((node.to_owned(), depth))
    }

    fn is_active(&mut self, node: &str, depth: u64) -> anyhow::Result<()> {
        let active = self.active()?;
        ensure!(active == (node.to_owned(), depth), "the disk is {active:?}");
        Ok(())
    }
}

fn first_word(text: &str) -> String {
    text.split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned()
}

fn snapshots(guest: &mut Guest) -> Outcome {
    let mut below = "base";
    let mut instants = Vec::new();
    for name in ["s1", "s2", "s3"] {
        let hash = guest.instant(|guest| guest.snapshot(name))?;
        instants.push((below, hash));
        below = name;
        guest.writes()?;
    }
    guest.is_active("s3", 3)?;
    for (name, hash) in &instants {
        guest.holds(name, hash)?;
    }
    ensure!(
        instants[0].1 != instants[1].1,
        "the guest has written nothing"
    );
    Ok("the images below hold what the guest had".into())
}

fn merges(guest: &mut Guest) -> Outcome {
    // What s2 shows is what base is to hold.
    let before = first_word(&tool(
        Command::new("sh")
            .args([
                "-c",
                "qemu-img convert -f qcow2 -O raw s2 s2.raw && sha256sum s2.raw",
            ])
            .current_dir(&guest.folder),
    )?);
    guest.job(
        "block-commit",
        json!({ "top-node": "s2", "base-node": "base" }),
        false,
    )?;
    guest.is_active("s3", 1)?;
    guest.holds("base", &before)?;
    let hash = guest.instant(|guest| guest.snapshot("s4"))?;
    guest.writes()?;
    guest.holds("s3", &hash)?;
    guest.job("block-stream", json!({ "base-node": "base" }), false)?;
    guest.is_active("s4", 1)?;
    guest.job("block-commit", json!({}), true)?;
    guest.is_active("base", 0)?;
    guest.writes()?;
    Ok("the middle down, the middle up, the active one down".into())
}

fn moves(guest: &mut Guest) -> Outcome {
    for (name, mode) in [("m1", "background"), ("m2", "write-blocking")] {
        create(&guest.file(name), None)?;
        guest.add_node(name)?;
        let arguments = json!({ "target": name, "sync": "full", "copy-mode": mode });
        guest.job("blockdev-mirror", arguments, true)?;
        guest.is_active(name, 0)?;
        guest.writes()?;
    }
    Ok("background and write-blocking".into())
}

fn backups(guest: &mut Guest) -> Outcome {
    let mut below: Option<&str> = None;
    let mut instants = Vec::new();
    for name in ["full", "inc1", "inc2"] {
        let under = below.map(|below| guest.file(below));
        create(&guest.file(name), under.as_deref())?;
        guest.add_node(name)?;
        let backup = |sync: &str| {
            json!({
                "job-id": "job", "device": "live", "target": name, "sync": sync, "speed": 16 << 20,
            })
        };
        let actions = match below {
            None => json!([
                { "type": "block-dirty-bitmap-add",
                  "data": { "node": "m2", "name": "b", "persistent": true } },
                { "type": "blockdev-backup", "data": backup("full") },
            ]),
            Some(_) => {
                let mut backup = backup("incremental");
                backup["bitmap"] = "b".into();
                json!([{ "type": "blockdev-backup", "data": backup }])
            }
        };
        // It begins at the instant, and copies while the guest writes.
        let hash = guest.instant(|guest| {
            let actions = json!({ "actions": actions });
            guest.qmp.execute("transaction", actions).map(|_| ())
        })?;
        guest.completed()?;
        guest
            .qmp
            .execute("blockdev-del", json!({ "node-name": name }))?;
        instants.push((name, hash));
        below = Some(name);
        guest.writes()?;
    }
    for (name, hash) in &instants {
        guest.holds(name, hash)?;
    }
    let size = |name: &str| Ok::<_, anyhow::Error>(std::fs::metadata(guest.file(name))?.len());
    let sizes: Vec<u64> = ["full", "inc1", "inc2"]
        .into_iter()
        .map(size)
        .collect::<Result<_, _>>()?;
    Ok(format!(
        "{} KiB, then {} and {} KiB",
        sizes[0] >> 10,
        sizes[1] >> 10,
        sizes[2] >> 10
    ))
}

fn saw_nothing(guest: &mut Guest) -> Outcome {
    guest.writes()?;
    guest
        .vm
        .run(": > /tmp/stop; until [ -e /tmp/stopped-writer ] && [ -e /tmp/stopped-fio ]; do sleep 0.05; done")?;
    let bad = guest.vm.run("cat /tmp/bad 2> /dev/null; true")?;
    ensure!(bad.is_empty(), "what was written was not there: {bad}");
    let errors = guest
        .vm
        .run("dmesg --level=emerg,alert,crit,err | grep -iE 'error|blk|vdb'; true")?;
    ensure!(errors.is_empty(), "{errors}");
    let rounds = guest.vm.run("cat /tmp/rounds")?;
    let (rounds, longest) = rounds.split_once(' ').context("no rounds")?;
    let verified: u64 = guest.vm.run("cat /tmp/fio-rounds")?.trim().parse()?;
    // The instants alone let it go on six times.
    ensure!(verified >= 6, "fio has verified {verified} times only");
    let hash = guest.hash()?;
    guest.is_active("m2", 0)?;
    guest.qmp.execute("quit", json!({}))?;
    guest.vm.wait_exit(SOON)?;
    guest.holds("m2", &hash)?;
    Ok(format!(
        "{rounds} writes, the longest took {longest}0 ms; fio verified {verified} times 512 KiB"
    ))
}
