//! Snapshots and merges, mirrors and backups, under a writer.

use super::*;

/// Files, and what they hold.
type Instants = Vec<(String, Vec<u8>)>;

/// Three snapshots on top of one another, and the chain of four.
fn three_snapshots(bench: &Bench) -> (Arc<Edge>, Writer, Instants) {
    bench.create("base.qcow2");
    let disk = bench.disk("disk0", "base.qcow2");
    let writer = Writer::start(&disk, vec![0; SIZE as usize], 7);
    let mut instants = vec![];
    let mut below = bench.text("base.qcow2");
    for name in ["s1", "s2", "s3"] {
        std::thread::sleep(Duration::from_millis(30));
        let file = bench.text(&format!("{name}.qcow2"));
        let ((), model) = writer.at_rest(|| {
            bench.run(
                "blockdev-snapshot-sync",
                json!({
                    "device": "disk0",
                    "snapshot-file": file,
                    "snapshot-node-name": name,
                }),
            );
        });
        instants.push((std::mem::replace(&mut below, file), model));
    }
    std::thread::sleep(Duration::from_millis(30));
    (disk, writer, instants)
}

#[test]
fn snapshots_hold_their_instants() {
    let bench = Bench::new();
    let (_disk, writer, instants) = three_snapshots(&bench);
    assert_eq!(bench.chain("disk0"), ["s3", "s2", "s1", "disk0-node"]);
    // What is below can be read by others now, while the machine goes on.
    for (path, model) in &instants {
        holds(path, model);
    }
    let model = writer.stop();
    bench.blockdev.close();
    holds(&bench.text("s3.qcow2"), &model);
}

#[test]
fn layers_in_the_middle_are_merged_down() {
    let bench = Bench::new();
    let (_disk, writer, instants) = three_snapshots(&bench);
    bench.run(
        "block-commit",
        json!({"job-id": "c", "device": "disk0", "top-node": "s2", "base-node": "disk0-node"}),
    );
    assert_eq!(bench.job_ended("c"), None);
    let model = writer.stop();
    assert_eq!(bench.chain("disk0"), ["s3", "disk0-node"]);
    holds(&bench.text("base.qcow2"), &instants[2].1);
    bench.blockdev.close();
    holds(&bench.text("s3.qcow2"), &model);
    let info = tool(&["qemu-img", "info", "--output=json", &bench.text("s3.qcow2")]);
    let info: Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["backing-filename"], bench.text("base.qcow2"));
}

#[test]
fn the_active_layer_is_merged_down_and_its_user_follows() {
    let bench = Bench::new();
    let (_disk, writer, _) = three_snapshots(&bench);
    bench.run("block-commit", json!({"job-id": "c", "device": "disk0"}));
    bench.wait_for("BLOCK_JOB_READY", |job| job["device"] == "c");
    bench.run("job-complete", json!({"id": "c"}));
    assert_eq!(bench.job_ended("c"), None);
    assert_eq!(bench.chain("disk0"), ["disk0-node"]);
    std::thread::sleep(Duration::from_millis(20));
    let model = writer.stop();
    bench.blockdev.close();
    holds(&bench.text("base.qcow2"), &model);
}

#[test]
fn a_merge_that_is_cancelled_leaves_its_base_read_only() {
    let bench = Bench::new();
    let (_disk, writer, instants) = three_snapshots(&bench);
    let merge = json!({"job-id": "c", "device": "disk0", "speed": 1 << 16});
    bench.run("block-commit", merge);
    bench.run("block-job-cancel", json!({"device": "c", "force": true}));
    assert_eq!(bench.job_ended("c").as_deref(), Some("cancelled"));
    let begun = Instant::now();
    let base = || bench.blockdev.graph().node("disk0-node").unwrap();
    while !base().vertex.is_read_only() {
        assert!(begun.elapsed() < Duration::from_secs(10), "still writable");
        std::thread::sleep(Duration::from_millis(2));
    }
    // And the layers above show what they did.
    holds(&instants[2].0, &instants[2].1);
    let model = writer.stop();
    bench.blockdev.close();
    holds(&bench.text("s3.qcow2"), &model);
}

#[test]
fn layers_are_merged_up() {
    for base in [None, Some("s1")] {
        let bench = Bench::new();
        let (_disk, writer, _) = three_snapshots(&bench);
        let mut arguments = json!({"job-id": "s", "device": "disk0"});
        if let Some(base) = base {
            arguments["base-node"] = base.into();
        }
        bench.run("block-stream", arguments);
        assert_eq!(bench.job_ended("s"), None);
        let expected: &[&str] = match base {
            None => &["s3"],
            Some(_) => &["s3", "s1", "disk0-node"],
        };
        assert_eq!(bench.chain("disk0"), expected);
        let model = writer.stop();
        bench.blockdev.close();
        holds(&bench.text("s3.qcow2"), &model);
    }
}

#[test]
fn a_disk_moves_to_another_file() {
    for mode in ["background", "write-blocking"] {
        let bench = Bench::new();
        let (_disk, writer, _) = three_snapshots(&bench);
        bench.create("target.qcow2");
        bench.add("target", "target.qcow2", json!({}));
        let arguments = json!({
            "job-id": "m", "device": "disk0", "target": "target", "sync": "full",
            "copy-mode": mode,
        });
        bench.run("blockdev-mirror", arguments);
        bench.wait_for("BLOCK_JOB_READY", |job| job["device"] == "m");
        std::thread::sleep(Duration::from_millis(20));
        bench.run("job-complete", json!({"id": "m"}));
        assert_eq!(bench.job_ended("m"), None);
        assert_eq!(bench.chain("disk0"), ["target"]);
        std::thread::sleep(Duration::from_millis(20));
        let model = writer.stop();
        bench.blockdev.close();
        holds(&bench.text("target.qcow2"), &model);
    }
}

#[test]
fn a_mirror_that_is_cancelled_leaves_the_disk_where_it_is() {
    let bench = Bench::new();
    let (_disk, writer, _) = three_snapshots(&bench);
    bench.create("target.qcow2");
    bench.add("target", "target.qcow2", json!({}));
    let arguments = json!({
        "job-id": "m", "device": "disk0", "target": "target", "sync": "full", "speed": 1 << 20,
    });
    bench.run("blockdev-mirror", arguments);
    assert!(
        bench
            .refused("blockdev-del", json!({"node-name": "target"}))
            .contains("busy")
    );
    assert!(
        bench
            .refused(
                "blockdev-snapshot-sync",
                json!({"device": "disk0", "snapshot-file": bench.text("no.qcow2")})
            )
            .contains("busy")
    );
    bench.run("block-job-cancel", json!({"device": "m", "force": true}));
    assert_eq!(bench.job_ended("m").as_deref(), Some("cancelled"));
    bench.run("blockdev-del", json!({"node-name": "target"}));
    let model = writer.stop();
    bench.blockdev.close();
    holds(&bench.text("s3.qcow2"), &model);
}

#[test]
fn backups_hold_their_instants() {
    let bench = Bench::new();
    bench.create("base.qcow2");
    let disk = bench.disk("disk0", "base.qcow2");
    let writer = Writer::start(&disk, vec![0; SIZE as usize], 99);
    std::thread::sleep(Duration::from_millis(50));
    bench.create("full.qcow2");
    bench.add("full", "full.qcow2", json!({}));
    // The bitmap begins at the instant of the full backup.
    let ((), first) = writer.at_rest(|| {
        bench.run(
            "transaction",
            json!({"actions": [
                {"type": "block-dirty-bitmap-add",
                 "data": {"node": "disk0-node", "name": "b", "persistent": true}},
                {"type": "blockdev-backup",
                 "data": {"job-id": "full", "device": "disk0", "target": "full", "sync": "full"}},
            ]}),
        );
    });
    assert_eq!(bench.job_ended("full"), None);
    bench.run("blockdev-del", json!({"node-name": "full"}));
    holds(&bench.text("full.qcow2"), &first);
    // Two increments on top.
    let mut below = bench.text("full.qcow2");
    for n in 1..=2 {
        std::thread::sleep(Duration::from_millis(20));
        let name = format!("inc{n}");
        let file = bench.text(&format!("{name}.qcow2"));
        tool(&[
            "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &below, &file,
        ]);
        bench.add(&name, &format!("{name}.qcow2"), json!({}));
        let ((), model) = writer.at_rest(|| {
            bench.run(
                "blockdev-backup",
                json!({
                    "job-id": name, "device": "disk0", "target": name, "sync": "incremental",
                    "bitmap": "b",
                }),
            );
        });
        assert_eq!(bench.job_ended(&name), None);
        bench.run("blockdev-del", json!({"node-name": name}));
        holds(&file, &model);
        below = file;
    }
    let model = writer.stop();
    bench.blockdev.close();
    holds(&bench.text("base.qcow2"), &model);
    // The bitmap is in the image, and is to be believed.
    let info = tool(&[
        "qemu-img",
        "info",
        "--output=json",
        &bench.text("base.qcow2"),
    ]);
    let info: Value = serde_json::from_str(&info).unwrap();
    let bitmap = &info["format-specific"]["data"]["bitmaps"][0];
    assert_eq!(
        (&bitmap["name"], &bitmap["flags"]),
        (&json!("b"), &json!(["auto"]))
    );
}

#[test]
fn several_disks_are_caught_at_one_instant_or_not_at_all() {
    let bench = Bench::new();
    for id in ["a", "b"] {
        bench.create(&format!("{id}.qcow2"));
        bench.disk(id, &format!("{id}.qcow2"));
    }
    let snapshot = |id: &str| {
        json!({"type": "blockdev-snapshot-sync", "data": {
            "device": id,
            "snapshot-file": bench.text(&format!("{id}-top.qcow2")),
            "snapshot-node-name": format!("{id}-top"),
        }})
    };
    let failing = json!({"actions": [snapshot("a"), snapshot("b"), {"type": "abort", "data": {}}]});
    assert!(bench.refused("transaction", failing).contains("aborted"));
    assert_eq!(bench.chain("a"), ["a-node"]);
    assert!(!bench.path("a-top.qcow2").exists() && !bench.path("b-top.qcow2").exists());
    bench.run(
        "transaction",
        json!({"actions": [snapshot("a"), snapshot("b")]}),
    );
    assert_eq!(bench.chain("a"), ["a-top", "a-node"]);
    assert_eq!(bench.chain("b"), ["b-top", "b-node"]);
    bench.blockdev.close();
}

#[test]
fn a_chain_may_be_long_and_has_an_end() {
    let bench = Bench::new();
    let spec = |number: usize| DiskSpec {
        format: Some(Format::Qcow2),
        ..DiskSpec::new(bench.path(&format!("{number}.qcow2")))
    };
    for number in 1..=199 {
        let spec = spec(number);
        let mut options = block::qcow2::CreateOptions::new(SIZE);
        if number > 1 {
            options.backing_file = Some(format!("{}.qcow2", number - 1).into_bytes());
            options.backing_format = Some("qcow2".to_owned());
        }
        let made = bench
            .control
            .spawn_task(move || async move { block::create_image(&spec, &options).await });
        made.join().unwrap().unwrap();
    }
    let disk = bench.blockdev.open_disk("disk0", &spec(199)).unwrap();
    let snapshot = |name: &str| json!({"device": "disk0", "snapshot-file": bench.text(name)});
    bench.run("blockdev-snapshot-sync", snapshot("200.qcow2"));
    let refused = bench.refused("blockdev-snapshot-sync", snapshot("201.qcow2"));
    assert!(refused.contains("merge some"), "{refused}");
    assert!(!bench.path("201.qcow2").exists());
    assert_eq!(bench.chain("disk0").len(), 200);
    // A device's thread goes all the way down: to read, and to copy what a small write leaves.
    let thread = IoThread::spawn(IoThreadConfig::new("device")).unwrap();
    let read = thread.spawn_task(move || async move {
        let buf = IoBuf::from_vec(vec![7; 512]);
        let written = disk.write_vectored(buf, 4096, WriteFlags::default()).await;
        written.0.unwrap();
        let (read, buf) = disk.read_vectored(IoBuf::from_vec(vec![1; 8192]), 0).await;
        read.unwrap();
        buf.bytes().unwrap().to_vec()
    });
    let bytes = read.join().unwrap();
    assert!(bytes[..4096].iter().all(|byte| *byte == 0) && bytes[4096..4608] == [7; 512]);
    bench.blockdev.close();
}

#[test]
fn a_bitmap_below_a_snapshot_records_what_is_merged_into_it() {
    let bench = Bench::new();
    bench.create("base.qcow2");
    let disk = bench.disk("disk0", "base.qcow2");
    let writer = Writer::start(&disk, vec![0; SIZE as usize], 41);
    std::thread::sleep(Duration::from_millis(30));
    bench.create("full.qcow2");
    bench.add("full", "full.qcow2", json!({}));
    let ((), first) = writer.at_rest(|| {
        bench.run(
            "transaction",
            json!({"actions": [
                {"type": "block-dirty-bitmap-add",
                 "data": {"node": "disk0-node", "name": "b", "persistent": true}},
                {"type": "blockdev-backup",
                 "data": {"job-id": "full", "device": "disk0", "target": "full", "sync": "full"}},
            ]}),
        );
    });
    assert_eq!(bench.job_ended("full"), None);
    bench.run("blockdev-del", json!({"node-name": "full"}));
    std::thread::sleep(Duration::from_millis(20));
    let file = bench.text("top.qcow2");
    let snapshot = json!({"device": "disk0", "snapshot-file": file});
    bench.run("blockdev-snapshot-sync", snapshot);
    std::thread::sleep(Duration::from_millis(30));
    bench.run("block-commit", json!({"job-id": "c", "device": "disk0"}));
    bench.wait_for("BLOCK_JOB_READY", |job| job["device"] == "c");
    bench.run("job-complete", json!({"id": "c"}));
    assert_eq!(bench.job_ended("c"), None);
    assert_eq!(bench.chain("disk0"), ["disk0-node"]);
    std::thread::sleep(Duration::from_millis(20));
    let increment = bench.text("inc.qcow2");
    let full = bench.text("full.qcow2");
    tool(&[
        "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &full, &increment,
    ]);
    bench.add("inc", "inc.qcow2", json!({}));
    let ((), second) = writer.at_rest(|| {
        bench.run(
            "blockdev-backup",
            json!({"job-id": "inc", "device": "disk0", "target": "inc", "sync": "incremental",
                   "bitmap": "b"}),
        );
    });
    assert_eq!(bench.job_ended("inc"), None);
    writer.stop();
    bench.blockdev.close();
    holds(&full, &first);
    holds(&increment, &second);
}
