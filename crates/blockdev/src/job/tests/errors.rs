//! Disks that fail, and jobs that are cancelled.

use nix::libc::{EIO, ENOSPC};

use super::*;

/// A mirror that finds its target, or its source, failing, and what it told of that.
fn mirror_with(policy: OnError, fail_source: bool, errno: i32, recovers: bool) -> Vec<String> {
    let lab = Lab::new();
    let jobs = lab.jobs.clone();
    lab.run(move || async move {
        let (from, source) = in_memory("source", SIZE);
        from.bytes().fill(5);
        let (to, target) = in_memory("target", SIZE);
        let edge = Edge::new(Some(Arc::clone(&source)));
        let mirror = Mirror::new(MirrorOptions {
            on_source_error: policy,
            on_target_error: policy,
            finish: Some(pivot(&edge, &target)),
            ..MirrorOptions::new(source, target)
        });
        let bad = if fail_source { from } else { to };
        bad.fail_with(errno);
        let job = begin(&jobs, JobOptions::new("m"), mirror.unwrap(), &edge).await;
        if !recovers {
            let error = job.concluded().await.unwrap_err();
            let want = match errno {
                ENOSPC => "No space left on device",
                _ => "Input/output error",
            };
            assert_eq!(error, want);
            assert_eq!(edge.target().unwrap().name(), "source");
            return;
        }
        if policy == OnError::Ignore {
            event::sleep(Duration::from_millis(50)).await;
            assert_eq!(job.status(), JobStatus::Running);
        } else {
            until(|| job.status() == JobStatus::Paused).await;
            let status = match errno {
                ENOSPC => IoStatus::Nospace,
                _ => IoStatus::Failed,
            };
            assert_eq!(job.block_info().io_status, status);
        }
        bad.fail_with(0);
        if policy != OnError::Ignore {
            job.resume().unwrap();
            assert_eq!(job.block_info().io_status, IoStatus::Ok);
        }
        until(|| job.status() == JobStatus::Ready).await;
        job.complete().unwrap();
        job.concluded().await.unwrap();
        same(
            "the target",
            &read_all(&*edge, SIZE).await,
            &vec![5; SIZE as usize],
        );
    });
    let mut told = lab.told();
    told.retain(|told| told.starts_with("read ") || told.starts_with("write "));
    told.dedup();
    told
}

#[test]
fn policies_for_errors() {
    use OnError as On;
    assert_eq!(mirror_with(On::Report, false, EIO, false), ["write report"]);
    assert_eq!(mirror_with(On::Report, true, EIO, false), ["read report"]);
    assert_eq!(mirror_with(On::Enospc, false, EIO, false), ["write report"]);
    assert_eq!(mirror_with(On::Enospc, false, ENOSPC, true), ["write stop"]);
    assert_eq!(mirror_with(On::Auto, false, ENOSPC, true), ["write stop"]);
    assert_eq!(mirror_with(On::Stop, true, EIO, true), ["read stop"]);
    assert_eq!(mirror_with(On::Stop, false, EIO, true), ["write stop"]);
    assert_eq!(mirror_with(On::Ignore, false, EIO, true), ["write ignore"]);
    assert_eq!(mirror_with(On::Ignore, true, EIO, true), ["read ignore"]);
}

/// A stream that ignores errors does the rest, and fails.
#[test]
fn a_stream_that_ignores_errors_fails_at_the_end() {
    let lab = Lab::new();
    let jobs = lab.jobs.clone();
    lab.run(move || async move {
        let directory = TempDir::new().unwrap();
        let path = directory.path();
        let (memory, below) = in_memory("base", SIZE);
        memory.bytes().fill(5);
        let base = Arc::new(faulty::Faulty {
            below,
            hangs: AtomicBool::new(false),
            bad: Mutex::new(Some(3 << 16..4 << 16)),
        });
        let base = Vertex::new("base", base);
        let (_, top) = qcow2(path, "top", SIZE, 65536, Some(&base)).await;
        let edge = Edge::new(Some(Arc::clone(&top)));
        let driver = Stream::new(StreamOptions {
            on_error: OnError::Ignore,
            buffer: 65536,
            ..StreamOptions::new(Arc::clone(&top), None)
        });
        let job = begin(&jobs, JobOptions::new("s"), driver.unwrap(), &edge).await;
        assert_eq!(job.concluded().await.unwrap_err(), "Input/output error");
        for cluster in 0..SIZE >> 16 {
            let status = top.block_status(cluster << 16, 512).await.unwrap();
            assert_eq!(status.depth, u32::from(cluster == 3), "cluster {cluster}");
        }
    });
}

/// What cannot be copied before it is overwritten fails the guest's write, or the backup.
#[test]
fn old_content_that_cannot_be_copied() {
    for policy in [OnCbwError::BreakGuestWrite, OnCbwError::BreakSnapshot] {
        let lab = Lab::new();
        let jobs = lab.jobs.clone();
        lab.run(move || async move {
            let (from, source) = in_memory("source", SIZE);
            from.bytes().fill(5);
            let (to, target) = in_memory("target", SIZE);
            let edge = Edge::new(Some(Arc::clone(&source)));
            let driver = Backup::new(BackupOptions {
                sync: Sync::None,
                on_cbw_error: policy,
                ..BackupOptions::new(source, Arc::clone(&target))
            });
            let job = begin(&jobs, JobOptions::new("b"), driver.unwrap(), &edge).await;
            to.fail_with(ENOSPC);
            let written = write(&*edge, 4096, vec![6; 512]).await;
            to.fail_with(0);
            if policy == OnCbwError::BreakSnapshot {
                written.unwrap();
                let error = job.concluded().await.unwrap_err();
                assert_eq!(error, "No space left on device");
                return;
            }
            assert_eq!(written.unwrap_err().raw_os_error(), Some(ENOSPC));
            assert_eq!(read_all(&*edge, SIZE).await[4096], 5);
            write(&*edge, 4096, vec![6; 512]).await.unwrap();
            assert_eq!(job.status(), JobStatus::Running);
            assert_eq!(read_all(&*target, SIZE).await[4096], 5);
            job.cancel(true).unwrap();
            job.concluded().await.unwrap_err();
        });
    }
}

/// A target that fails does not fail the guest's writes; the job sees to it.
#[test]
fn a_mirror_that_blocks_writes_keeps_its_errors_from_the_guest() {
    let lab = Lab::new();
    let jobs = lab.jobs.clone();
    lab.run(move || async move {
        let (_, source) = in_memory("source", SIZE);
        let (to, target) = in_memory("target", SIZE);
        let edge = Edge::new(Some(Arc::clone(&source)));
        let mirror = Mirror::new(MirrorOptions {
            copy_mode: CopyMode::WriteBlocking,
            on_target_error: OnError::Stop,
            finish: Some(pivot(&edge, &target)),
            ..MirrorOptions::new(source, target)
        });
        let job = begin(&jobs, JobOptions::new("m"), mirror.unwrap(), &edge).await;
        until(|| job.status() == JobStatus::Ready).await;
        to.fail_with(ENOSPC);
        write(&*edge, 0, vec![9; 512]).await.unwrap();
        until(|| job.status() == JobStatus::Standby).await;
        assert_eq!(job.block_info().io_status, IoStatus::Nospace);
        to.fail_with(0);
        job.resume().unwrap();
        until(|| job.status() == JobStatus::Ready).await;
        job.complete().unwrap();
        job.concluded().await.unwrap();
        assert_eq!(read_all(&*edge, SIZE).await[..512], [9; 512]);
    });
}

/// The last copies, while the guest is stopped, fail: the source stays in place.
#[test]
fn a_settlement_that_fails_leaves_the_source_in_place() {
    let lab = Lab::new();
    let jobs = lab.jobs.clone();
    lab.run(move || async move {
        let (_, source) = in_memory("source", SIZE);
        let (to, target) = in_memory("target", SIZE);
        let edge = Edge::new(Some(Arc::clone(&source)));
        let (led, other) = (Arc::clone(&edge), Arc::clone(&target));
        let finish: Finish = Box::new(move |_, settler| {
            Box::pin(async move {
                let _drained = drain([Arc::clone(&led)]).await;
                to.fail_with(EIO);
                settler.settle().await?;
                led.lead(Some(other));
                Ok(())
            })
        });
        let mirror = Mirror::new(MirrorOptions {
            finish: Some(finish),
            ..MirrorOptions::new(source, target)
        });
        let job = begin(&jobs, JobOptions::new("m"), mirror.unwrap(), &edge).await;
        until(|| job.status() == JobStatus::Ready).await;
        job.complete().unwrap();
        assert_eq!(job.concluded().await.unwrap_err(), "Input/output error");
        assert_eq!(edge.target().unwrap().name(), "source");
        write(&*edge, 0, vec![1; 512]).await.unwrap();
    });
}

/// However far a job is, cancelling it leaves the source right, and takes a moment only.
#[test]
fn jobs_are_cancelled_at_any_moment() {
    let lab = Lab::new();
    let jobs = lab.jobs.clone();
    lab.run(move || async move {
        let directory = TempDir::new().unwrap();
        let path = directory.path();
        let (_, base) = qcow2(path, "base", SIZE, 65536, None).await;
        scribble(&*base, 1, 200).await;
        let (_, top) = qcow2(path, "top", SIZE, 65536, Some(&base)).await;
        scribble(&*top, 2, 50).await;
        let edge = Edge::new(Some(Arc::clone(&top)));
        let load = Load::begin(&edge, 3, read_all(&*top, SIZE).await);
        let mut random = Random(77);
        for round in 0..20 {
            let (_, target) = in_memory("target", SIZE);
            let (from, to) = (Arc::clone(&top), Arc::clone(&target));
            let driver: Box<dyn Driver> = match round % 5 {
                0 => Mirror::new(MirrorOptions::new(from, to)).unwrap(),
                1 => Mirror::new(MirrorOptions {
                    copy_mode: CopyMode::WriteBlocking,
                    ..MirrorOptions::new(from, to)
                })
                .unwrap(),
                2 => Backup::new(BackupOptions::new(from, to)).unwrap(),
                3 => commit(CommitOptions::new(from, Arc::clone(&base), 1, true)).unwrap(),
                _ => Stream::new(StreamOptions::new(from, None)).unwrap(),
            };
            let options = JobOptions {
                speed: 4 << 20,
                auto_finalize: false,
                ..JobOptions::new("job")
            };
            let job = begin(&jobs, options, driver, &edge).await;
            event::sleep(Duration::from_micros(random.below(40_000))).await;
            let begun = std::time::Instant::now();
            job.cancel(true).unwrap();
            job.concluded().await.unwrap_err();
            assert!(begun.elapsed() < Duration::from_secs(2));
        }
        load.go_on(20).await;
        let model = load.end().await;
        same("the source", &read_all(&*edge, SIZE).await, &model);
    });
}

/// A disk whose writes can be made to hang, and whose reads to fail.
mod faulty {
    use std::io;
    use std::sync::Weak;

    use block::{BlockError, BlockStatus, Limits, NodeFuture, SizeWatcher, Transfer};

    use super::*;

    pub(super) struct Faulty {
        pub(super) below: Arc<Vertex>,
        pub(super) hangs: AtomicBool,
        pub(super) bad: Mutex<Option<std::ops::Range<u64>>>,
    }

    impl Faulty {
        async fn begin(&self) {
            if self.hangs.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
        }
    }

    impl Node for Faulty {
        fn name(&self) -> String {
            self.below.name()
        }
        fn size(&self) -> u64 {
            self.below.size()
        }
        fn limits(&self) -> Limits {
            self.below.limits()
        }
        fn is_read_only(&self) -> bool {
            false
        }
        fn read_vectored(&self, buf: IoBuf, offset: u64) -> NodeFuture<'_, Transfer> {
            let end = offset + buf.len() as u64;
            let bad = self.bad.lock().unwrap().clone();
            if bad.is_some_and(|bad| offset < bad.end && bad.start < end) {
                return Box::pin(std::future::ready((
                    Err(io::Error::from_raw_os_error(EIO)),
                    buf,
                )));
            }
            self.below.read_vectored(buf, offset)
        }
        fn write_vectored(
            &self,
            buf: IoBuf,
            offset: u64,
            flags: WriteFlags,
        ) -> NodeFuture<'_, Transfer> {
            Box::pin(async move {
                self.begin().await;
                self.below.write_vectored(buf, offset, flags).await
            })
        }
        fn flush(&self) -> NodeFuture<'_, io::Result<()>> {
            self.below.flush()
        }
        fn discard(&self, offset: u64, len: u64) -> NodeFuture<'_, io::Result<()>> {
            self.below.discard(offset, len)
        }
        fn write_zeroes(
            &self,
            offset: u64,
            len: u64,
            flags: ZeroFlags,
        ) -> NodeFuture<'_, io::Result<()>> {
            self.below.write_zeroes(offset, len, flags)
        }
        fn block_status(&self, offset: u64, len: u64) -> NodeFuture<'_, io::Result<BlockStatus>> {
            self.below.block_status(offset, len)
        }
        fn close(&self) -> NodeFuture<'_, io::Result<()>> {
            self.below.close()
        }
        fn resize(&self, size: u64) -> NodeFuture<'_, Result<(), BlockError>> {
            self.below.resize(size)
        }
        fn watch_size(&self, watcher: Weak<SizeWatcher>) {
            self.below.watch_size(watcher);
        }
    }
}

/// Neither a job nor a guest waits for ever for a target that does not answer.
#[test]
fn a_target_that_does_not_answer() {
    for backup in [false, true] {
        let lab = Lab::new();
        let jobs = lab.jobs.clone();
        lab.run(move || async move {
            let (from, source) = in_memory("source", SIZE);
            let hanging = Arc::new(faulty::Faulty {
                below: in_memory("target", SIZE).1,
                hangs: AtomicBool::new(false),
                bad: Mutex::default(),
            });
            let target = Vertex::new("target", Arc::<faulty::Faulty>::clone(&hanging));
            let edge = Edge::new(Some(Arc::clone(&source)));
            let driver: Box<dyn Driver> = match backup {
                true => {
                    from.bytes().fill(1);
                    hanging.hangs.store(true, Ordering::SeqCst);
                    Backup::new(BackupOptions::new(source, target)).unwrap()
                }
                false => Mirror::new(MirrorOptions {
                    copy_mode: CopyMode::WriteBlocking,
                    ..MirrorOptions::new(source, target)
                })
                .unwrap(),
            };
            let job = begin(&jobs, JobOptions::new("j"), driver, &edge).await;
            if !backup {
                until(|| job.status() == JobStatus::Ready).await;
                hanging.hangs.store(true, Ordering::SeqCst);
            }
            let writer = Arc::clone(&edge);
            let written = event::spawn_local(async move { write(&*writer, 0, vec![2; 512]).await });
            event::sleep(Duration::from_millis(30)).await;
            assert!(!written.is_finished());
            job.cancel(true).unwrap();
            written.await.unwrap();
            job.concluded().await.unwrap_err();
            assert_eq!(read_all(&*edge, SIZE).await[..512], [2; 512]);
        });
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let (_, small) = in_memory("small", SIZE / 2);
    let (_, large) = in_memory("large", SIZE);
    let (from, to) = (|| Arc::clone(&large), || Arc::clone(&small));
    let why = |error: std::io::Error| error.to_string();
    let mirror = Mirror::new(MirrorOptions::new(from(), to())).err();
    assert_eq!(
        mirror.map(why).unwrap(),
        "the target is smaller than the source"
    );
    let backup = Backup::new(BackupOptions::new(from(), to())).err();
    assert_eq!(
        backup.map(why).unwrap(),
        "the target is smaller than the source"
    );
    let mirror = Mirror::new(MirrorOptions::new(from(), from())).err();
    assert_eq!(mirror.map(why).unwrap(), "the target is the source");
    let mirror = Mirror::new(MirrorOptions {
        granularity: 3000,
        ..MirrorOptions::new(to(), from())
    });
    assert!(mirror.is_err());
    let backup = Backup::new(BackupOptions {
        sync: Sync::Bitmap,
        ..BackupOptions::new(to(), from())
    });
    assert!(backup.is_err());
    assert!(commit(CommitOptions::new(from(), to(), 0, true)).is_err());
    // A larger target is fine.
    assert!(Mirror::new(MirrorOptions::new(to(), from())).is_ok());
}
