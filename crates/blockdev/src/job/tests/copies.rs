//! Each job gives what it should while guests write.

use super::*;

/// A mirror, from one kind of disk to another, and the pivot.
fn mirror_and_pivot(seed: u64, mode: CopyMode, to_qcow2: bool, from_qcow2: bool) {
    let lab = Lab::new();
    let jobs = lab.jobs.clone();
    lab.run(move || async move {
        let directory = TempDir::new().unwrap();
        let source = match from_qcow2 {
            true => qcow2(directory.path(), "source", SIZE, 4096, None).await.1,
            false => in_memory("source", SIZE).1,
        };
        let target = match to_qcow2 {
            true => qcow2(directory.path(), "target", SIZE, 65536, None).await.1,
            false => in_memory("target", SIZE).1,
        };
        scribble(&*source, seed, 60).await;
        let edge = Edge::new(Some(Arc::clone(&source)));
        let load = Load::begin(&edge, seed, read_all(&*source, SIZE).await);
        load.go_on(50).await;
        let mirror = Mirror::new(MirrorOptions {
            copy_mode: mode,
            granularity: if from_qcow2 { PIECE } else { 65536 },
            buffer: 256 << 10,
            parallel: 4,
            finish: Some(pivot(&edge, &target)),
            ..MirrorOptions::new(Arc::clone(&source), Arc::clone(&target))
        });
        let job = begin(&jobs, JobOptions::new("m"), mirror.unwrap(), &edge).await;
        until(|| job.status() == JobStatus::Ready).await;
        load.go_on(200).await;
        job.complete().unwrap();
        job.concluded().await.unwrap();
        assert_eq!(edge.target().unwrap().name(), "target");
        load.go_on(100).await;
        let model = load.end().await;
        same("the target", &read_all(&*edge, SIZE).await, &model);
    });
    let told = lab.told();
    let want = [
        "created",
        "running",
        "ready",
        "BLOCK_JOB_READY",
        "waiting",
        "pending",
        "BLOCK_JOB_COMPLETED",
        "concluded",
        "null",
    ];
    assert_eq!(told, want);
}

#[test]
fn a_mirror_in_the_background() {
    for seed in 1..4 {
        mirror_and_pivot(seed, CopyMode::Background, false, false);
    }
}

#[test]
fn a_mirror_that_blocks_writes() {
    for seed in 1..4 {
        mirror_and_pivot(seed, CopyMode::WriteBlocking, false, false);
    }
}

#[test]
fn mirrors_of_qcow2_images() {
    mirror_and_pivot(7, CopyMode::Background, true, true);
    mirror_and_pivot(8, CopyMode::WriteBlocking, true, true);
}

/// Once it is ready, a mirror that blocks writes never differs from its source while no write is
/// on its way.
#[test]
fn a_mirror_that_blocks_writes_does_not_diverge() {
    let lab = Lab::new();
    let jobs = lab.jobs.clone();
    lab.run(move || async move {
        let ((_, source), (_, target)) = (in_memory("s", SIZE), in_memory("t", SIZE));
        let edge = Edge::new(Some(Arc::clone(&source)));
        let load = Load::begin(&edge, 5, vec![0; SIZE as usize]);
        let mirror = Mirror::new(MirrorOptions {
            copy_mode: CopyMode::WriteBlocking,
            ..MirrorOptions::new(Arc::clone(&source), Arc::clone(&target))
        });
        let job = begin(&jobs, JobOptions::new("m"), mirror.unwrap(), &edge).await;
        until(|| job.status() == JobStatus::Ready).await;
        for _ in 0..5 {
            load.go_on(40).await;
            let drained = drain([Arc::clone(&edge)]).await;
            let (have, want) = (read_all(&*target, SIZE), read_all(&*source, SIZE));
            same("the target", &have.await, &want.await);
            drop(drained);
        }
        until(|| job.block_info().actively_synced == Some(true)).await;
        job.cancel(true).unwrap();
        assert_eq!(job.concluded().await.unwrap_err(), "Operation canceled");
        load.end().await;
    });
}

#[test]
fn a_mirror_can_begin_to_block_writes() {
    let lab = Lab::new();
    let jobs = lab.jobs.clone();
    lab.run(move || async move {
        let ((_, source), (_, target)) = (in_memory("s", SIZE), in_memory("t", SIZE));
        let edge = Edge::new(Some(Arc::clone(&source)));
        let options = MirrorOptions::new(Arc::clone(&source), target);
        let mirror = Mirror::new(options).unwrap();
        let job = begin(&jobs, JobOptions::new("m"), mirror, &edge).await;
        until(|| job.status() == JobStatus::Ready).await;
        assert_eq!(job.block_info().actively_synced, Some(false));
        job.change(CopyMode::WriteBlocking).unwrap();
        until(|| job.block_info().actively_synced == Some(true)).await;
        let refused = job.change(CopyMode::Background);
        assert_eq!(refused, Err(JobError::CopyMode(CopyMode::Background)));
        job.cancel(true).unwrap();
        job.concluded().await.unwrap_err();
    });
}

/// Cancelled when it is ready, without force, a mirror leaves a copy of that instant.
#[test]
fn a_ready_mirror_that_is_cancelled_leaves_a_copy() {
    let lab = Lab::new();
    let jobs = lab.jobs.clone();
    lab.run(move || async move {
        let ((_, source), (_, target)) = (in_memory("s", SIZE), in_memory("t", SIZE));
        let edge = Edge::new(Some(Arc::clone(&source)));
        let load = Load::begin(&edge, 6, vec![0; SIZE as usize]);
        let instant = Arc::new(Mutex::new(Vec::new()));
        let (take, led, other) = (Arc::clone(&instant), Arc::clone(&edge), Arc::clone(&source));
        let finish: Finish = Box::new(move |ending, settler| {
            Box::pin(async move {
                assert_eq!(ending, Ending::Stay);
                let _drained = drain([led]).await;
                settler.settle().await?;
                *take.lock().unwrap() = read_all(&*other, SIZE).await;
                Ok(())
            })
        });
        let mirror = Mirror::new(MirrorOptions {
            copy_mode: CopyMode::WriteBlocking,
            finish: Some(finish),
            ..MirrorOptions::new(Arc::clone(&source), Arc::clone(&target))
        });
        let job = begin(&jobs, JobOptions::new("m"), mirror.unwrap(), &edge).await;
        until(|| job.status() == JobStatus::Ready).await;
        job.cancel(false).unwrap();
        job.concluded().await.unwrap();
        load.go_on(100).await;
        assert_eq!(edge.target().unwrap().name(), "s");
        let model = load.end().await;
        same("the source", &read_all(&*edge, SIZE).await, &model);
        let target = read_all(&*target, SIZE).await;
        same("the target", &target, &instant.lock().unwrap());
    });
    assert!(lab.has_told("BLOCK_JOB_COMPLETED"));
}

/// What is below the top layer is not copied.
#[test]
fn a_mirror_of_the_top_layer() {
    let lab = Lab::new();
    let jobs = lab.jobs.clone();
    lab.run(move || async move {
        let directory = TempDir::new().unwrap();
        let (_, base) = in_memory("base", SIZE);
        scribble(&*base, 1, 200).await;
        let path = directory.path();
        let (_, source) = qcow2(path, "source", SIZE, 65536, Some(&base)).await;
        write(&*source, 3 * 65536 + 512, vec![7; 512])
            .await
            .unwrap();
        let zeroed = source.write_zeroes(10 * 65536, 65536, ZeroFlags::default());
        zeroed.await.unwrap();
        // The target gets its backing file at the end.
        let (image, target) = qcow2(path, "target", SIZE, 65536, None).await;
        let edge = Edge::new(Some(Arc::clone(&source)));
        let mirror = Mirror::new(MirrorOptions {
            sync: Sync::Top,
            finish: Some(pivot(&edge, &target)),
            ..MirrorOptions::new(Arc::clone(&source), Arc::clone(&target))
        });
        let job = begin(&jobs, JobOptions::new("m"), mirror.unwrap(), &edge).await;
        until(|| job.status() == JobStatus::Ready).await;
        assert_eq!(job.block_info().len, 2 * 65536);
        write(&*edge, 20 * 65536, vec![9; 512]).await.unwrap();
        job.complete().unwrap();
        job.concluded().await.unwrap();
        let Image::Qcow2(image) = image else {
            panic!("a qcow2 image");
        };
        image.backing().lead(Some(base));
        let (have, want) = (read_all(&*edge, SIZE), read_all(&*source, SIZE));
        same("the target", &have.await, &want.await);
    });
}

/// A chain of three, the top one being written: the upper two are merged into the lowest.
fn commit_active(seed: u64, sizes: [u64; 3]) {
    let lab = Lab::new();
    let jobs = lab.jobs.clone();
    lab.run(move || async move {
        let directory = TempDir::new().unwrap();
        let path = directory.path();
        let (_, base) = qcow2(path, "base", sizes[0], 65536, None).await;
        scribble(&*base, seed, 100).await;
        let (_, mid) = qcow2(path, "mid", sizes[1], 65536, Some(&base)).await;
        scribble(&*mid, seed + 1, 20).await;
        let (_, top) = qcow2(path, "top", sizes[2], 4096, Some(&mid)).await;
        let size = sizes[2];
        let edge = Edge::new(Some(Arc::clone(&top)));
        let load = Load::begin(&edge, seed, read_all(&*top, size).await);
        load.go_on(50).await;
        let driver = commit(CommitOptions {
            granularity: PIECE,
            parallel: 3,
            buffer: 128 << 10,
            finish: Some(pivot(&edge, &base)),
            ..CommitOptions::new(Arc::clone(&top), Arc::clone(&base), 2, true)
        });
        let job = begin(&jobs, JobOptions::new("c"), driver.unwrap(), &edge).await;
        until(|| job.status() == JobStatus::Ready).await;
        load.go_on(100).await;
        job.complete().unwrap();
        job.concluded().await.unwrap();
        assert_eq!((edge.name(), edge.size()), ("base".to_owned(), size));
        load.go_on(50).await;
        let model = load.end().await;
        same("the base", &read_all(&*edge, size).await, &model);
    });
}

#[test]
fn a_commit_of_the_active_layer() {
    commit_active(1, [SIZE, SIZE, SIZE]);
    commit_active(2, [SIZE / 2, SIZE, SIZE]);
    // What the base has beyond the end of the layer above it must not come to light.
    commit_active(3, [SIZE, SIZE / 2, SIZE]);
}

#[test]
fn a_commit_of_layers_that_nobody_writes_to() {
    let lab = Lab::new();
    let jobs = lab.jobs.clone();
    lab.run(move || async move {
        let directory = TempDir::new().unwrap();
        let path = directory.path();
        let (_, base) = qcow2(path, "base", SIZE / 2, 65536, None).await;
        scribble(&*base, 1, 100).await;
        let (_, mid) = qcow2(path, "mid", SIZE, 65536, Some(&base)).await;
        scribble(&*mid, 2, 30).await;
        let zeroed = mid.write_zeroes(65536, 3 * 65536, ZeroFlags::default());
        zeroed.await.unwrap();
        let (image, top) = qcow2(path, "top", SIZE, 4096, Some(&mid)).await;
        let edge = Edge::new(Some(Arc::clone(&top)));
        let load = Load::begin(&edge, 4, read_all(&*top, SIZE).await);
        load.go_on(20).await;
        let Image::Qcow2(image) = image else {
            panic!("a qcow2 image");
        };
        let (above, below) = (Arc::clone(image.backing()), Arc::clone(&base));
        let finish: Finish = Box::new(move |ending, settler| {
            Box::pin(async move {
                assert_eq!(ending, Ending::Pivot);
                settler.settle().await?;
                let _drained = drain([Arc::clone(&above)]).await;
                above.lead(Some(below));
                Ok(())
            })
        });
        let driver = commit(CommitOptions {
            finish: Some(finish),
            ..CommitOptions::new(mid, base, 1, false)
        });
        let job = begin(&jobs, JobOptions::new("c"), driver.unwrap(), &edge).await;
        job.concluded().await.unwrap();
        assert_eq!(image.backing().name(), "base");
        load.go_on(50).await;
        let model = load.end().await;
        same("the top", &read_all(&*top, SIZE).await, &model);
    });
    assert!(!lab.has_told("ready"));
}

/// The top becomes independent of all, or of some, of the layers below it.
fn stream(seed: u64, layers: Option<u32>, sizes: [u64; 3]) {
    let lab = Lab::new();
    let jobs = lab.jobs.clone();
    lab.run(move || async move {
        let directory = TempDir::new().unwrap();
        let path = directory.path();
        let (_, base) = in_memory("base", sizes[0]);
        scribble(&*base, seed, 100).await;
        let (_, mid) = qcow2(path, "mid", sizes[1], 65536, Some(&base)).await;
        scribble(&*mid, seed + 1, 30).await;
        let (image, top) = qcow2(path, "top", SIZE, 4096, Some(&mid)).await;
        let edge = Edge::new(Some(Arc::clone(&top)));
        let load = Load::begin(&edge, seed, read_all(&*top, SIZE).await);
        load.go_on(20).await;
        let Image::Qcow2(image) = image else {
            panic!("a qcow2 image");
        };
        let above = Arc::clone(image.backing());
        let below = layers.map(|_| Arc::clone(&base));
        let root = Arc::clone(&edge);
        let finish: Finish = Box::new(move |_, settler| {
            Box::pin(async move {
                let _still = drain([root]).await;
                settler.settle().await?;
                let _drained = drain([Arc::clone(&above)]).await;
                above.lead(below);
                Ok(())
            })
        });
        let driver = Stream::new(StreamOptions {
            parallel: 4,
            buffer: 128 << 10,
            shortest: sizes[1],
            finish: Some(finish),
            ..StreamOptions::new(Arc::clone(&top), layers)
        });
        let job = begin(&jobs, JobOptions::new("s"), driver.unwrap(), &edge).await;
        job.concluded().await.unwrap();
        load.go_on(50).await;
        let model = load.end().await;
        same("the top", &read_all(&*top, SIZE).await, &model);
    });
}

#[test]
fn a_stream_of_all_layers() {
    stream(1, None, [SIZE, SIZE, SIZE]);
    stream(2, None, [SIZE / 2, SIZE, SIZE]);
}

#[test]
fn a_stream_of_some_layers() {
    stream(3, Some(1), [SIZE, SIZE, SIZE]);
    stream(4, Some(1), [SIZE, SIZE / 2, SIZE]);
}

/// A backup has the content of the instant at which it began.
fn backup(seed: u64, cluster: u64, compressed: bool) {
    let lab = Lab::new();
    let jobs = lab.jobs.clone();
    lab.run(move || async move {
        let directory = TempDir::new().unwrap();
        let path = directory.path();
        let (_, source) = qcow2(path, "source", SIZE, 4096, None).await;
        scribble(&*source, seed, 200).await;
        let (image, target) = qcow2(path, "target", SIZE, cluster, None).await;
        let Image::Qcow2(image) = image else {
            panic!("a qcow2 image");
        };
        let edge = Edge::new(Some(Arc::clone(&source)));
        let load = Load::begin(&edge, seed, read_all(&*source, SIZE).await);
        load.go_on(50).await;
        let driver = Backup::new(BackupOptions {
            parallel: 2,
            buffer: 128 << 10,
            cluster_size: cluster,
            compress: compressed.then_some(image as Arc<dyn CompressedSink>),
            ..BackupOptions::new(Arc::clone(&source), Arc::clone(&target))
        });
        // Slow enough for the guest to be faster here and there.
        let options = JobOptions {
            speed: 8 << 20,
            ..JobOptions::new("b")
        };
        let created = jobs.create(options, driver.unwrap()).unwrap();
        let drained = drain([Arc::clone(&edge)]).await;
        let instant = read_all(&*source, SIZE).await;
        created.attach().unwrap();
        drop(drained);
        let job = created.start();
        job.concluded().await.unwrap();
        same("the target", &read_all(&*target, SIZE).await, &instant);
        let model = load.end().await;
        same("the source", &read_all(&*source, SIZE).await, &model);
    });
}

#[test]
fn a_backup_is_of_one_instant() {
    for seed in 1..3 {
        backup(seed, 65536, false);
    }
    backup(3, 256 << 10, false);
}

#[test]
fn a_compressed_backup_is_of_one_instant() {
    backup(4, 65536, true);
    backup(5, 4096, true);
}

/// Without a copy in the background, what is overwritten is copied, and nothing else: a target on
/// top of the source shows the instant.
#[test]
fn a_backup_of_what_is_overwritten() {
    let lab = Lab::new();
    let jobs = lab.jobs.clone();
    lab.run(move || async move {
        let directory = TempDir::new().unwrap();
        let (_, source) = in_memory("source", SIZE);
        scribble(&*source, 1, 200).await;
        let path = directory.path();
        let (_, target) = qcow2(path, "target", SIZE, 65536, Some(&source)).await;
        let instant = read_all(&*source, SIZE).await;
        let edge = Edge::new(Some(Arc::clone(&source)));
        let driver = Backup::new(BackupOptions {
            sync: Sync::None,
            ..BackupOptions::new(Arc::clone(&source), Arc::clone(&target))
        });
        let job = begin(&jobs, JobOptions::new("b"), driver.unwrap(), &edge).await;
        let load = Load::begin(&edge, 1, instant.clone());
        for _ in 0..3 {
            load.go_on(60).await;
            same("the target", &read_all(&*target, SIZE).await, &instant);
        }
        assert_eq!(job.status(), JobStatus::Running);
        job.cancel(false).unwrap();
        job.concluded().await.unwrap_err();
        load.end().await;
    });
}

/// Two backups by a bitmap on top of a full one give the disk of each instant.
#[test]
fn incremental_backups() {
    let lab = Lab::new();
    let jobs = lab.jobs.clone();
    lab.run(move || async move {
        let (_, source) = in_memory("source", SIZE);
        scribble(&*source, 1, 200).await;
        let (_, target) = in_memory("target", SIZE);
        let bitmap = crate::bitmap::DirtyBitmap::new("b0", SIZE, 4096).unwrap();
        source.observe(Arc::<crate::bitmap::DirtyBitmap>::clone(&bitmap));
        bitmap.mark(0..SIZE);
        let edge = Edge::new(Some(Arc::clone(&source)));
        let load = Load::begin(&edge, 9, read_all(&*source, SIZE).await);
        for round in 0..4 {
            load.go_on(20).await;
            let driver = Backup::new(BackupOptions {
                sync: Sync::Incremental,
                bitmap: Some(Arc::clone(&bitmap)),
                ..BackupOptions::new(Arc::clone(&source), Arc::clone(&target))
            });
            let created = jobs.create(JobOptions::new("b"), driver.unwrap()).unwrap();
            let drained = drain([Arc::clone(&edge)]).await;
            let instant = read_all(&*source, SIZE).await;
            created.attach().unwrap();
            assert!(bitmap.is_busy());
            drop(drained);
            let job = created.start();
            if round == 1 {
                // One that fails loses nothing.
                job.cancel(true).unwrap();
                job.concluded().await.unwrap_err();
            } else {
                job.concluded().await.unwrap();
                same("the target", &read_all(&*target, SIZE).await, &instant);
            }
            assert!(!bitmap.is_busy());
        }
        load.end().await;
    });
}

/// A full backup whose bitmap then has what changed since it began.
#[test]
fn a_full_backup_with_a_bitmap() {
    let lab = Lab::new();
    let jobs = lab.jobs.clone();
    lab.run(move || async move {
        let ((_, source), (_, target)) = (in_memory("s", SIZE), in_memory("t", SIZE));
        let bitmap = crate::bitmap::DirtyBitmap::new("b0", SIZE, 65536).unwrap();
        source.observe(Arc::<crate::bitmap::DirtyBitmap>::clone(&bitmap));
        let edge = Edge::new(Some(Arc::clone(&source)));
        let counts = [
            (BitmapMode::OnSuccess, 65536),
            (BitmapMode::Never, 2 * 65536),
            (BitmapMode::Always, 65536),
        ];
        for (mode, count) in counts {
            bitmap.clear();
            write(&*edge, 0, vec![1; 512]).await.unwrap();
            let driver = Backup::new(BackupOptions {
                bitmap: Some(Arc::clone(&bitmap)),
                bitmap_mode: mode,
                ..BackupOptions::new(Arc::clone(&source), Arc::clone(&target))
            });
            let job = begin(&jobs, JobOptions::new("b"), driver.unwrap(), &edge).await;
            write(&*edge, 70000, vec![2; 512]).await.unwrap();
            job.concluded().await.unwrap();
            assert_eq!(bitmap.count(), count, "{mode}");
        }
    });
}

/// Only clusters of which the top layer has something are copied.
#[test]
fn a_backup_of_the_top_layer() {
    let lab = Lab::new();
    let jobs = lab.jobs.clone();
    lab.run(move || async move {
        let directory = TempDir::new().unwrap();
        let path = directory.path();
        let (_, base) = in_memory("base", SIZE);
        scribble(&*base, 1, 300).await;
        let (_, source) = qcow2(path, "source", SIZE, 4096, Some(&base)).await;
        write(&*source, 3 * 65536 + 8192, vec![7; 512])
            .await
            .unwrap();
        write(&*source, SIZE - 512, vec![8; 512]).await.unwrap();
        let zeroed = source.write_zeroes(10 * 65536, 65536, ZeroFlags::default());
        zeroed.await.unwrap();
        let instant = read_all(&*source, SIZE).await;
        let (image, target) = qcow2(path, "target", SIZE, 65536, None).await;
        let Image::Qcow2(image) = image else {
            panic!("a qcow2 image");
        };
        let edge = Edge::new(Some(Arc::clone(&source)));
        let driver = Backup::new(BackupOptions {
            sync: Sync::Top,
            ..BackupOptions::new(Arc::clone(&source), Arc::clone(&target))
        });
        let job = begin(&jobs, JobOptions::new("b"), driver.unwrap(), &edge).await;
        write(&*edge, 5 * 65536, vec![9; 65536]).await.unwrap();
        job.concluded().await.unwrap();
        let first = target.block_status(0, 3 * 65536).await.unwrap();
        assert_eq!(first.kind, block::StatusKind::Unallocated);
        assert_eq!(first.len, 3 * 65536);
        image.backing().lead(Some(base));
        same("the target", &read_all(&*target, SIZE).await, &instant);
    });
}

/// Holes of the source are holes of the target.
#[test]
fn sparse_disks_stay_sparse() {
    let lab = Lab::new();
    let jobs = lab.jobs.clone();
    lab.run(move || async move {
        let directory = TempDir::new().unwrap();
        let path = directory.path();
        let size = 1 << 40;
        let (_, source) = qcow2(path, "source", size, 65536, None).await;
        write(&*source, 1 << 39, vec![1; 4096]).await.unwrap();
        for name in ["mirror", "backup"] {
            let (_, target) = qcow2(path, name, size, 65536, None).await;
            let edge = Edge::new(Some(Arc::clone(&source)));
            let driver: Box<dyn Driver> = match name {
                "mirror" => {
                    Mirror::new(MirrorOptions::new(Arc::clone(&source), Arc::clone(&target)))
                        .unwrap()
                }
                _ => Backup::new(BackupOptions::new(Arc::clone(&source), Arc::clone(&target)))
                    .unwrap(),
            };
            let job = begin(&jobs, JobOptions::new(name), driver, &edge).await;
            if name == "mirror" {
                until(|| job.status() == JobStatus::Ready).await;
                job.complete().unwrap();
            }
            job.concluded().await.unwrap();
            let file = std::fs::metadata(path.join(name)).unwrap();
            assert!(file.len() < 1 << 20, "{name}: {} bytes", file.len());
            let buf = IoBuf::from_vec(vec![0; 4096]);
            let (_, buf) = target.read_vectored(buf, 1 << 39).await;
            assert_eq!(buf.into_vec().unwrap(), [1; 4096]);
        }
    });
}
