//! Copying up, while writers are at work, and leading the backing edge elsewhere.

use super::*;

const BASE: usize = 3 << 20;
const TOP: usize = 5 << 20;

/// A top over a base that is shorter, has holes, and ends in the middle of a cluster.
fn chain(directory: &TempDir, options: &CreateOptions) -> (PathBuf, Vec<u8>) {
    let [base, top] = ["base.qcow2", "top.qcow2"].map(|name| in_directory(directory, name));
    let mut model = vec![0; TOP];
    let made = (base, top.clone(), options.clone());
    let bytes = pattern(3, BASE);
    for (at, len) in [
        (0, 1 << 20),
        (1_300_000, 200_000),
        (BASE - 300_000, 299_520),
    ] {
        let at = at / 512 * 512;
        model[at..at + len].copy_from_slice(&bytes[at..at + len]);
    }
    let below = model.clone();
    run(move || async move {
        let (base, top, options) = made;
        let size = (BASE - 512) as u64;
        make(&base, &CreateOptions::new(size)).await;
        let disk = open(&base).await;
        for (at, piece) in below.chunks(4096).enumerate() {
            if piece.iter().any(|byte| *byte != 0) && at * 4096 < size as usize {
                let len = piece.len().min(size as usize - at * 4096);
                write(&*disk, at as u64 * 4096, piece[..len].to_vec()).await;
            }
        }
        disk.close().await.unwrap();
        drop(disk);
        let options = CreateOptions {
            backing_file: Some(b"base.qcow2".to_vec()),
            backing_format: Some("qcow2".to_owned()),
            ..options
        };
        make(&top, &options).await;
    });
    model[BASE - 512..BASE].fill(0);
    (top, model)
}

#[test]
fn an_image_that_copied_up_needs_nothing_below() {
    let shapes = [
        CreateOptions::new(TOP as u64),
        CreateOptions {
            cluster_size: 512,
            ..CreateOptions::new(TOP as u64)
        },
        CreateOptions {
            extended_l2: true,
            ..CreateOptions::new(TOP as u64)
        },
    ];
    for options in shapes {
        let directory = directory();
        let (path, mut model) = chain(&directory, &options);
        let written = pattern(77, 512 * 1024);
        let places: Vec<usize> = (0..64).map(|n| n * 37 * 512 * 3 % (TOP - 8192)).collect();
        for (n, at) in places.iter().enumerate() {
            let at = at / 512 * 512;
            model[at..at + 8192].copy_from_slice(&written[n * 8192..(n + 1) * 8192]);
        }
        let top = path.clone();
        run(move || async move {
            let disk = open(&top).await;
            let writer = Arc::clone(&disk);
            let writing = event::spawn_local(async move {
                for (n, at) in places.iter().enumerate() {
                    let bytes = written[n * 8192..(n + 1) * 8192].to_vec();
                    write(&*writer, *at as u64 / 512 * 512, bytes).await;
                    event::yield_now().await;
                }
            });
            // From an offset that is no cluster's, in pieces that are none.
            let mut at = 0;
            while at < TOP as u64 {
                let len = 700_001.min(TOP as u64 - at);
                disk.copy_up(at, len).await.unwrap();
                at += 700_001;
            }
            writing.await;
            disk.backing().lead(None);
            disk.set_backing(None, None).await.unwrap();
            let status = disk.block_status(0, 512).await.unwrap();
            assert_eq!(status.depth, 0);
            disk.close().await.unwrap();
        });
        same_everywhere(&path, &model);
    }
}
