//! Nodes, bitmaps, limits, exports, and what is told of them.

use super::*;

#[test]
fn nodes_are_added_named_and_deleted() {
    let bench = Bench::new();
    let path = bench.create("a.qcow2");
    bench.run(
        "blockdev-add",
        json!({"driver": "file", "node-name": "storage", "filename": path}),
    );
    bench.run(
        "blockdev-add",
        json!({"driver": "qcow2", "node-name": "format", "file": "storage", "discard": "unmap"}),
    );
    let nodes = bench.run("query-named-block-nodes", json!({"flat": true}));
    let names: Vec<_> = nodes
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n["node-name"].clone())
        .collect();
    assert_eq!(names, ["format", "storage"]);
    assert_eq!(nodes[0]["drv"], "qcow2");
    assert_eq!(nodes[0]["image"]["virtual-size"], SIZE);
    let in_use = bench.refused("blockdev-del", json!({"node-name": "storage"}));
    assert!(in_use.contains("file of node 'format'"), "{in_use}");
    let twice = json!({"driver": "qcow2", "node-name": "other", "file": "storage"});
    assert!(bench.refused("blockdev-add", twice).contains("busy"));
    bench.run("blockdev-del", json!({"node-name": "format"}));
    bench.run("blockdev-del", json!({"node-name": "storage"}));
    assert_eq!(bench.run("query-named-block-nodes", json!({})), json!([]));
    // And what was refused has left nothing open.
    for wrong in [
        json!({"driver": "qcow2", "node-name": "x", "file": {"driver": "file", "filename": "/none"}}),
        json!({"driver": "qcow2", "node-name": "#x", "file": {"driver": "file", "filename": path}}),
        json!({"driver": "qcow2", "file": {"driver": "file", "filename": path}}),
        json!({"driver": "raw", "node-name": "x", "size": 513, "file": {"driver": "file", "filename": path}}),
    ] {
        bench.refused("blockdev-add", wrong);
        assert_eq!(bench.run("query-named-block-nodes", json!({})), json!([]));
    }
}

#[test]
fn an_overlay_that_was_added_goes_on_top() {
    let bench = Bench::new();
    let base = bench.create("base.qcow2");
    bench.disk("disk0", "base.qcow2");
    let top = bench.text("top.qcow2");
    tool(&[
        "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &base, &top,
    ]);
    bench.add("top", "top.qcow2", json!({"backing": null}));
    bench.run(
        "blockdev-snapshot",
        json!({"node": "disk0-node", "overlay": "top"}),
    );
    assert_eq!(bench.chain("disk0"), ["top", "disk0-node"]);
    let again = bench.refused(
        "blockdev-snapshot",
        json!({"node": "disk0-node", "overlay": "top"}),
    );
    assert!(again.contains("in use"), "{again}");
    let disk = bench.run("query-block", json!({}));
    assert_eq!(disk[0]["inserted"]["node-name"], "top");
    assert_eq!(disk[0]["inserted"]["backing_file"], base);
    // What is below is not open for writing any more.
    let nodes = bench.run("query-named-block-nodes", json!({}));
    let of = |name: &str| {
        let all = nodes.as_array().unwrap();
        all.iter()
            .find(|node| node["node-name"] == name)
            .unwrap()
            .clone()
    };
    assert_eq!(
        (&of("disk0-node")["ro"], &of("top")["ro"]),
        (&json!(true), &json!(false))
    );
    bench.blockdev.close();
}

#[test]
fn a_node_is_opened_in_another_way() {
    let bench = Bench::new();
    bench.create("base.qcow2");
    bench.create("a.qcow2");
    let file = |name: &str| json!({"driver": "file", "filename": bench.text(name)});
    bench.add("base", "base.qcow2", json!({"read-only": true}));
    bench.add("a", "a.qcow2", json!({}));
    let options = |read_only: bool, backing: Value| {
        json!({"options": [{
            "driver": "qcow2", "node-name": "a", "file": file("a.qcow2"),
            "read-only": read_only, "backing": backing,
        }]})
    };
    bench.run("blockdev-reopen", options(true, json!("base")));
    assert_eq!(bench.chain("a"), ["a", "base"]);
    let nodes = bench.run("query-named-block-nodes", json!({"flat": true}));
    assert_eq!(
        (&nodes[2]["node-name"], &nodes[2]["ro"]),
        (&json!("a"), &json!(true))
    );
    bench.run("blockdev-reopen", options(false, Value::Null));
    assert_eq!(bench.chain("a"), ["a"]);
    let loop_ = json!({"options": [{
        "driver": "qcow2", "node-name": "a", "file": file("a.qcow2"), "backing": "a",
    }]});
    assert!(bench.refused("blockdev-reopen", loop_).contains("loop"));
    bench.blockdev.close();
}

#[test]
fn bitmaps_come_and_go_and_are_merged() {
    let bench = Bench::new();
    bench.create("a.qcow2");
    let disk = bench.disk("disk0", "a.qcow2");
    let bitmap = |name: &str| json!({"node": "disk0-node", "name": name});
    for (name, persistent) in [("kept", true), ("other", false)] {
        let mut arguments = bitmap(name);
        arguments["persistent"] = persistent.into();
        bench.run("block-dirty-bitmap-add", arguments);
    }
    assert!(
        bench
            .refused("block-dirty-bitmap-add", bitmap("kept"))
            .contains("exists")
    );
    let writer = Arc::clone(&disk);
    bench
        .control
        .spawn_task(move || async move {
            let buf = IoBuf::from_vec(vec![1; 4096]);
            writer
                .write_vectored(buf, 1 << 20, WriteFlags::default())
                .await
                .0
                .unwrap();
        })
        .join()
        .unwrap();
    let counts = || {
        let disks = bench.run("query-block", json!({}));
        let bitmaps = disks[0]["inserted"]["dirty-bitmaps"]
            .as_array()
            .unwrap()
            .clone();
        let tell = |b: &Value| {
            (
                b["name"].as_str().unwrap().to_owned(),
                b["count"].as_u64().unwrap(),
            )
        };
        bitmaps.iter().map(tell).collect::<Vec<_>>()
    };
    let both = |kept, other| vec![("kept".to_owned(), kept), ("other".to_owned(), other)];
    assert_eq!(counts(), both(65536, 65536));
    bench.run("block-dirty-bitmap-clear", bitmap("kept"));
    assert_eq!(counts(), both(0, 65536));
    // All or nothing.
    let failing = json!({"actions": [
        {"type": "block-dirty-bitmap-clear", "data": bitmap("other")},
        {"type": "block-dirty-bitmap-merge",
         "data": {"node": "disk0-node", "target": "kept", "bitmaps": ["missing"]}},
    ]});
    bench.refused("transaction", failing);
    assert_eq!(counts(), both(0, 65536));
    let merge = json!({"node": "disk0-node", "target": "kept", "bitmaps": ["other"]});
    bench.run("block-dirty-bitmap-merge", merge);
    assert_eq!(counts(), both(65536, 65536));
    bench.run("block-dirty-bitmap-remove", bitmap("other"));
    bench.blockdev.close();
    // It is there again.
    let bench = Bench {
        blockdev: Blockdev::new(Arc::new(|_| ())).unwrap(),
        ..bench
    };
    bench.disk("disk0", "a.qcow2");
    let disks = bench.run("query-block", json!({}));
    let bitmap = &disks[0]["inserted"]["dirty-bitmaps"][0];
    assert_eq!(
        (&bitmap["name"], &bitmap["count"]),
        (&json!("kept"), &json!(65536))
    );
    bench.blockdev.close();
}

#[test]
fn nodes_are_exported_and_used_from_afar() {
    let bench = Bench::new();
    bench.create("a.qcow2");
    let disk = bench.disk("disk0", "a.qcow2");
    let writer = Arc::clone(&disk);
    bench
        .control
        .spawn_task(move || async move {
            let buf = IoBuf::from_vec(vec![7; 1 << 20]);
            writer
                .write_vectored(buf, 0, WriteFlags::default())
                .await
                .0
                .unwrap();
        })
        .join()
        .unwrap();
    let socket = bench.text("nbd.sock");
    let address = json!({"type": "unix", "data": {"path": socket}});
    bench.run("nbd-server-start", json!({"addr": address}));
    assert!(
        bench
            .refused("nbd-server-start", json!({"addr": address}))
            .contains("already")
    );
    let export = json!({"type": "nbd", "id": "e", "node-name": "disk0-node", "name": "x"});
    bench.run("block-export-add", export.clone());
    assert!(bench.refused("block-export-add", export).contains("in use"));
    let exports = bench.run("query-block-exports", json!({}));
    assert_eq!(exports[0]["id"], "e");
    let raw = bench.text("copy.raw");
    let uri = format!("nbd+unix:///x?socket={socket}");
    tool(&["qemu-img", "convert", "-f", "raw", "-O", "raw", &uri, &raw]);
    let bytes = std::fs::read(&raw).unwrap();
    assert!(bytes.len() as u64 == SIZE && bytes[..1 << 20].iter().all(|byte| *byte == 7));
    assert!(bytes[1 << 20..].iter().all(|byte| *byte == 0));
    // Our own client, on the same server.
    bench.run(
        "blockdev-add",
        json!({"driver": "nbd", "node-name": "far", "export": "x", "read-only": true,
               "server": {"type": "unix", "path": socket}}),
    );
    let nodes = bench.run("query-named-block-nodes", json!({}));
    let far = nodes
        .as_array()
        .unwrap()
        .iter()
        .find(|n| n["node-name"] == "far")
        .unwrap();
    assert_eq!(far["image"]["virtual-size"], SIZE);
    bench.run("blockdev-del", json!({"node-name": "far"}));
    // And as the disk of a device, by its URI.
    let spec = DiskSpec {
        format: Some(Format::Raw),
        read_only: true,
        ..DiskSpec::new(&uri)
    };
    let far = bench.blockdev.open_disk("disk1", &spec).unwrap();
    assert_eq!(far.size(), SIZE);
    let read = bench.control.spawn_task(move || async move {
        let (result, buf) = far.read_vectored(IoBuf::from_vec(vec![0; 512]), 0).await;
        result.unwrap();
        buf.into_vec().unwrap()
    });
    assert_eq!(read.join().unwrap(), vec![7; 512]);
    bench.run("block-export-del", json!({"id": "e", "mode": "hard"}));
    bench.wait_for("BLOCK_EXPORT_DELETED", |data| data["id"] == "e");
    bench.run("nbd-server-stop", json!({}));
    assert!(
        bench
            .refused("nbd-server-stop", json!({}))
            .contains("not running")
    );
    bench.blockdev.close();
}

#[test]
fn groups_limit_the_nodes_in_them() {
    let bench = Bench::new();
    bench.create("a.qcow2");
    bench.run(
        "object-add",
        json!({"qom-type": "throttle-group", "id": "g", "limits": {"iops-total": 100}}),
    );
    bench.run(
        "blockdev-add",
        json!({"driver": "throttle", "node-name": "t", "throttle-group": "g",
               "file": {"driver": "qcow2", "file": {"driver": "file", "filename": bench.text("a.qcow2")}}}),
    );
    assert!(
        bench
            .refused("object-del", json!({"id": "g"}))
            .contains("in use")
    );
    let wrong =
        json!({"path": "g", "property": "limits", "value": {"iops-total": 1, "iops-read": 1}});
    bench.refused("qom-set", wrong);
    let limits =
        json!({"path": "/objects/g", "property": "limits", "value": {"bps-total": 1 << 20}});
    bench.run("qom-set", limits);
    let got = bench.run("qom-get", json!({"path": "g", "property": "limits"}));
    assert_eq!(got["bps-total"], 1 << 20);
    bench.run("blockdev-del", json!({"node-name": "t"}));
    bench.run("object-del", json!({"id": "g"}));
    assert_eq!(bench.run("query-named-block-nodes", json!({})), json!([]));
}

#[test]
fn images_are_made_by_jobs() {
    let bench = Bench::new();
    let path = bench.text("new.qcow2");
    let make = |id: &str, options: Value| {
        bench.run("blockdev-create", json!({"job-id": id, "options": options}));
        let begun = Instant::now();
        loop {
            let jobs = bench.run("query-jobs", json!({}));
            let job = jobs
                .as_array()
                .unwrap()
                .iter()
                .find(|job| job["id"] == id)
                .cloned();
            let job = job.unwrap();
            if job["status"] == "concluded" {
                assert_eq!(job.get("error"), None, "{job}");
                bench.run("job-dismiss", json!({"id": id}));
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "{job}");
        }
    };
    make(
        "file",
        json!({"driver": "file", "filename": path, "size": 0}),
    );
    bench.run(
        "blockdev-add",
        json!({"driver": "file", "node-name": "f", "filename": path}),
    );
    make(
        "image",
        json!({"driver": "qcow2", "file": "f", "size": SIZE, "cluster-size": 131072}),
    );
    bench.run(
        "blockdev-add",
        json!({"driver": "qcow2", "node-name": "q", "file": "f"}),
    );
    bench.blockdev.close();
    holds(&path, &vec![0; SIZE as usize]);
}

/// Writes a block of a disk.
fn write(bench: &Bench, disk: &Arc<Edge>, offset: u64) -> std::io::Result<()> {
    let disk = Arc::clone(disk);
    bench
        .control
        .spawn_task(move || async move {
            let buf = IoBuf::from_vec(vec![7; 4096]);
            disk.write_vectored(buf, offset, WriteFlags::default())
                .await
                .0
        })
        .join()
        .unwrap()
}

#[test]
fn a_write_beyond_the_threshold_is_told_once() {
    let bench = Bench::new();
    bench.create("a.qcow2");
    let disk = bench.disk("disk0", "a.qcow2");
    for threshold in [1 << 20, 4096] {
        bench.run(
            "block-set-write-threshold",
            json!({"node-name": "disk0-node", "write-threshold": threshold}),
        );
    }
    write(&bench, &disk, 0).unwrap();
    assert!(bench.events.lock().unwrap().is_empty());
    write(&bench, &disk, 8192).unwrap();
    write(&bench, &disk, 2 << 20).unwrap();
    let told = bench.wait_for("BLOCK_WRITE_THRESHOLD", |_| true);
    assert_eq!(told["amount-exceeded"], 8192);
    assert_eq!(bench.events.lock().unwrap().len(), 1);
    bench.blockdev.close();
}

#[test]
fn a_corrupt_image_is_told_of() {
    let bench = Bench::new();
    let path = bench.create("a.qcow2");
    tool(&["qemu-io", "-f", "qcow2", "-c", "write 0 64k", &path]);
    // The data is where the refcount table is.
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let l2 = 0x4_0000;
    let entry = 0x8000_0000_0001_0000_u64.to_be_bytes();
    std::os::unix::fs::FileExt::write_all_at(&file, &entry, l2).unwrap();
    let disk = bench.disk("disk0", "a.qcow2");
    write(&bench, &disk, 0).unwrap_err();
    let told = bench.wait_for("BLOCK_IMAGE_CORRUPTED", |_| true);
    assert_eq!(
        (&told["node-name"], &told["fatal"]),
        (&json!("disk0-node"), &json!(true))
    );
    bench.blockdev.close();
}

#[test]
fn zeros_are_found_in_nodes_that_say_so() {
    let bench = Bench::new();
    bench.create("a.qcow2");
    let node = |detect: &str, discard: &str| {
        json!({
            "driver": "qcow2", "node-name": "n", "detect-zeroes": detect, "discard": discard,
            "file": {"driver": "file", "filename": bench.text("a.qcow2")},
        })
    };
    let refused = bench.refused("blockdev-add", node("unmap", "ignore"));
    assert!(refused.contains("detect-zeroes"), "{refused}");
    bench.run("blockdev-add", node("unmap", "unmap"));
    let nodes = bench.run("query-named-block-nodes", json!({"flat": true}));
    let all = nodes.as_array().unwrap();
    let found = all.iter().find(|node| node["node-name"] == "n").unwrap();
    assert_eq!(found["detect_zeroes"], "unmap");
    bench.blockdev.close();
}

#[test]
fn drives_without_media_to_change_say_so() {
    let bench = Bench::new();
    bench.create("a.qcow2");
    bench.disk("disk0", "a.qcow2");
    let change = |id: &str| json!({"id": id, "filename": "x.iso"});
    let fixed = bench.refused("blockdev-change-medium", change("disk0"));
    assert_eq!(fixed, "Device 'disk0' is not removable");
    assert!(
        bench
            .refused("blockdev-change-medium", change("none"))
            .contains("Cannot find")
    );
    bench.blockdev.close();
}
