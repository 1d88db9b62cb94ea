//! Images made by QEMU's tools, read and changed by us; and the other way round.

use super::*;

/// Creation options in the words of `qemu-img create -o`.
const SHAPES: [&str; 17] = [
    "compat=0.10",
    "compat=1.1",
    "cluster_size=512",
    "cluster_size=4096",
    "cluster_size=2M",
    "refcount_bits=1",
    "refcount_bits=2",
    "refcount_bits=8",
    "refcount_bits=64",
    "lazy_refcounts=on",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k",
    "compression_type=zstd",
    "preallocation=metadata",
    "preallocation=falloc",
    "preallocation=full,cluster_size=512",
    "extended_l2=on,preallocation=metadata",
];

const SIZE: usize = 5 << 20;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Writes through qemu-io and in the model.
fn qemu_writes(path: &Path, model: &mut [u8], writes: &[(&str, usize, usize)]) {
    let mut words = vec!["qemu-io", "-f", "qcow2"];
    let commands: Vec<String> = writes
        .iter()
        .enumerate()
        .map(|(i, (kind, at, len))| {
            let byte = i as u8 + 1;
            match *kind {
                "zero" => {
                    model[*at..at + len].fill(0);
                    format!("write -z {at} {len}")
                }
                "compressed" => {
                    model[*at..at + len].fill(byte);
                    format!("write -c -P {byte} {at} {len}")
                }
                _ => {
                    model[*at..at + len].fill(byte);
                    format!("write -P {byte} {at} {len}")
                }
            }
        })
        .collect();
    for command in &commands {
        words.extend(["-c", command]);
    }
    words.push(text(path));
    tool(&words);
}

#[test]
fn what_qemu_writes_is_read_and_changed() {
    for shape in SHAPES {
        let directory = directory();
        let path = in_directory(&directory, "disk.qcow2");
        qemu_create(&path, shape, "5M");
        let mut model = vec![0; SIZE];
        // It compresses only what is not allocated.
        let kind = match shape.contains("preallocation") {
            true => "write",
            false => "compressed",
        };
        qemu_writes(
            &path,
            &mut model,
            &[
                ("write", 1000, 3000),
                ("write", 70_000, 200_000),
                (kind, 2 << 20, 2 << 20),
                ("zero", 100_000, 80_000),
                ("write", SIZE - 5000, 5000),
            ],
        );
        same_everywhere(&path, &model);
        let image = path.clone();
        let model = run(move || async move {
            let disk = open(&image).await;
            for (at, len) in [
                (5, 10),
                (65_000, 2000),
                (2_500_000, 300_000),
                (4_500_000, 512),
            ] {
                let bytes = pattern(at as u8, len);
                model[at..at + len].copy_from_slice(&bytes);
                write(&*disk, at as u64, bytes).await;
            }
            disk.close().await.unwrap();
            model
        });
        same_everywhere(&path, &model);
    }
}

#[test]
fn what_we_make_is_written_by_qemu() {
    let mut shapes = vec![CreateOptions::new(SIZE as u64)];
    for bits in [9, 13, 21] {
        for order in [0, 3, 4, 6] {
            shapes.push(CreateOptions {
                cluster_size: 1 << bits,
                refcount_bits: 1 << order,
                ..CreateOptions::new(SIZE as u64)
            });
        }
    }
    for preallocation in [
        Preallocation::Metadata,
        Preallocation::Falloc,
        Preallocation::Full,
    ] {
        for (extended_l2, cluster_size) in [(false, 512), (true, 65536)] {
            shapes.push(CreateOptions {
                preallocation,
                extended_l2,
                cluster_size,
                ..CreateOptions::new(SIZE as u64)
            });
        }
    }
    shapes.push(CreateOptions {
        version: 2,
        ..CreateOptions::new(SIZE as u64)
    });
    for shape in shapes {
        let directory = directory();
        let path = in_directory(&directory, "disk.qcow2");
        let image = path.clone();
        let options = shape.clone();
        run(move || async move { make(&image, &options).await });
        let mut model = vec![0; SIZE];
        same_everywhere(&path, &model);
        qemu_writes(
            &path,
            &mut model,
            &[
                ("write", 1000, 3000),
                ("zero", 2000, 500_000),
                ("write", SIZE - 700, 700),
            ],
        );
        same_everywhere(&path, &model);
    }
}

#[test]
fn chains_are_read_through() {
    let directory = directory();
    let [base, middle, top] =
        ["base.qcow2", "middle.qcow2", "top.qcow2"].map(|name| in_directory(&directory, name));
    let mut model = vec![0; 8 << 20];
    qemu_create(&base, "", "3M");
    qemu_writes(&base, &mut model, &[("write", 0, 3 << 20)]);
    for (above, below, size) in [(&middle, &base, "8M"), (&top, &middle, "8M")] {
        tool(&[
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            text(below),
            text(above),
            size,
        ]);
    }
    qemu_writes(
        &middle,
        &mut model,
        &[("write", 100_000, 1000), ("zero", 1 << 20, 65536)],
    );
    qemu_writes(
        &top,
        &mut model,
        &[("write", 7 << 20, 1000), ("write", 100_500, 100)],
    );
    same_everywhere(&top, &model);
}

#[test]
fn the_gate_keeps_files_of_others_shut() {
    let directory = directory();
    let inside = in_directory(&directory, "inside");
    std::fs::create_dir(&inside).unwrap();
    let secret = in_directory(&directory, "secret.raw");
    std::fs::write(&secret, vec![1; 4096]).unwrap();
    let image = inside.join("a.qcow2");
    tool(&[
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "-b",
        text(&secret),
        text(&image),
    ]);
    let refused = |backing_files: crate::BackingFiles, image: &Path| {
        let spec = DiskSpec {
            backing_files,
            ..spec(image)
        };
        crate::open(&spec).err().map(|error| error.to_string())
    };
    use crate::BackingFiles as Files;
    assert!(
        refused(Files::SameDirectory, &image)
            .unwrap()
            .contains("backing-files=any")
    );
    assert!(refused(Files::None, &image).unwrap().contains("none"));
    assert_eq!(refused(Files::Any, &image), None);
    // A link does not help.
    std::os::unix::fs::symlink(&secret, inside.join("link")).unwrap();
    tool(&[
        "qemu-img",
        "rebase",
        "-u",
        "-F",
        "raw",
        "-b",
        "link",
        text(&image),
    ]);
    assert!(refused(Files::SameDirectory, &image).is_some());
    tool(&[
        "qemu-img",
        "rebase",
        "-u",
        "-F",
        "raw",
        "-b",
        "nbd://localhost/x",
        text(&image),
    ]);
    assert!(refused(Files::Any, &image).unwrap().contains("only files"));
    tool(&[
        "qemu-img",
        "rebase",
        "-u",
        "-F",
        "qcow2",
        "-b",
        "a.qcow2",
        text(&image),
    ]);
    let chain = |image: &Path| crate::open(&spec(image)).err().unwrap().to_string();
    assert!(
        chain(&image).contains("back to itself"),
        "{}",
        chain(&image)
    );
}

#[test]
fn a_format_is_recognised_only_where_the_name_agrees() {
    let directory = directory();
    let named = in_directory(&directory, "disk.qcow2");
    qemu_create(&named, "", "1M");
    assert_eq!(crate::open(&DiskSpec::new(&named)).unwrap().size(), 1 << 20);
    let other = in_directory(&directory, "disk.img");
    std::fs::rename(&named, &other).unwrap();
    let error = crate::open(&DiskSpec::new(&other)).err().unwrap();
    assert!(error.to_string().contains("format=qcow2"), "{error}");
    std::fs::write(&named, vec![0; 4096]).unwrap();
    let error = crate::open(&DiskSpec::new(&named)).err().unwrap();
    assert!(error.to_string().contains("format=raw"), "{error}");
}

/// The dirty ranges of a bitmap as QEMU tells them to an NBD client.
fn qemu_dirty(path: &Path, name: &str) -> Vec<(u64, u64)> {
    let socket = path.with_extension("socket");
    let mut server = Command::new("qemu-nbd")
        .args([
            "-r",
            "-f",
            "qcow2",
            "-B",
            name,
            "-k",
            text(&socket),
            text(path),
        ])
        .spawn()
        .unwrap();
    while !socket.exists() {
        assert!(server.try_wait().unwrap().is_none(), "qemu-nbd has ended");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let options = format!(
        "driver=nbd,server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:{name}",
        text(&socket)
    );
    let map = tool(&["qemu-img", "map", "--output=json", "--image-opts", &options]);
    let _ = server.wait();
    // A dirty range is one without data there.
    let mut ranges = Vec::new();
    for part in map
        .split('{')
        .filter(|part| part.contains("\"data\": false"))
    {
        let number = |key: &str| -> u64 {
            let at = part.find(key).unwrap() + key.len();
            let digits = part[at..].trim_start_matches([' ', ':', '"']);
            let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap();
            digits[..end].parse().unwrap()
        };
        ranges.push((number("\"start\""), number("\"length\"")));
    }
    ranges
}

#[test]
fn bitmaps_record_what_qemu_finds() {
    const K: u64 = 1 << 10;
    let directory = directory();
    let path = in_directory(&directory, "disk.qcow2");
    qemu_create(&path, "", "64M");
    for words in [
        &["--add", "-g", "64k", text(&path), "kept"][..],
        &["--add", "-g", "4k", text(&path), "fine"],
        &["--add", "--disable", text(&path), "asleep"],
    ] {
        tool(&[&["qemu-img", "bitmap"], words].concat());
    }
    tool(&["qemu-io", "-f", "qcow2", "-c", "write 1M 4k", text(&path)]);
    let image = path.clone();
    run(move || async move {
        let disk = open(&image).await;
        write(&*disk, 2 * K * K + 100, pattern(1, 5000)).await;
        let flags = ZeroFlags::default();
        disk.write_zeroes(4 * K * K, 128 * K, flags).await.unwrap();
        disk.clear_bitmap("fine").unwrap();
        disk.discard(10 * K * K, 64 * K).await.unwrap();
        disk.add_bitmap("new", 512).unwrap();
        write(&*disk, 20 * K * K, vec![1; 512]).await;
        assert!(disk.resize(80 * K * K).await.is_err(), "asleep is asleep");
        disk.close().await.unwrap();
        // While it is open they are in use, and nobody else believes them.
        drop(disk);
        let disk = open(&image).await;
        drop(disk);
    });
    qemu_check(&path);
    let info = tool(&["qemu-img", "info", text(&path)]);
    assert_eq!(info.matches("in-use").count(), 3, "{info}");
    let image = path.clone();
    run(move || async move {
        let disk = open(&image).await;
        for name in ["kept", "fine", "new"] {
            assert!(disk.clear_bitmap(name).is_err());
            disk.remove_bitmap(name).unwrap();
        }
        disk.close().await.unwrap();
    });
    qemu_check(&path);
}

#[test]
fn bitmaps_survive_closing() {
    const M: u64 = 1 << 20;
    let directory = directory();
    let path = in_directory(&directory, "disk.qcow2");
    qemu_create(&path, "cluster_size=512", "64M");
    tool(&[
        "qemu-img",
        "bitmap",
        "--add",
        "-g",
        "64k",
        text(&path),
        "kept",
    ]);
    tool(&[
        "qemu-img",
        "bitmap",
        "--add",
        "--disable",
        text(&path),
        "asleep",
    ]);
    tool(&["qemu-io", "-f", "qcow2", "-c", "write 1M 4k", text(&path)]);
    let image = path.clone();
    run(move || async move {
        for round in 0..3 {
            let disk = open(&image).await;
            if round == 0 {
                write(&*disk, 2 * M + 100, pattern(1, 5000)).await;
                disk.discard(10 * M, 65536).await.unwrap();
                disk.add_bitmap("new", 512).unwrap();
                write(&*disk, 20 * M, vec![1; 512]).await;
                disk.merge_bitmap("asleep", "new").await.unwrap();
            }
            disk.close().await.unwrap();
        }
    });
    qemu_check(&path);
    let kept = [(M, 65536), (2 * M, 65536), (10 * M, 65536), (20 * M, 65536)];
    assert_eq!(qemu_dirty(&path, "kept"), kept);
    assert_eq!(qemu_dirty(&path, "new"), [(20 * M, 512)]);
    assert_eq!(qemu_dirty(&path, "asleep"), [(20 * M, 4096)]);
    let model = qemu_bytes(&path);
    same_everywhere(&path, &model);
}
