//! What can be asked of jobs.

use super::*;
use crate::bitmap::DirtyBitmap;

/// A mirror of a disk in memory that is full of something, and its edge.
fn slow_mirror(speed: u64) -> (JobOptions, Box<dyn Driver>, Arc<Edge>) {
    let (memory, source) = in_memory("source", SIZE);
    memory.bytes().fill(7);
    let (_, target) = in_memory("target", SIZE);
    let edge = Edge::new(Some(Arc::clone(&source)));
    let mirror = Mirror::new(MirrorOptions {
        finish: Some(pivot(&edge, &target)),
        ..MirrorOptions::new(source, target)
    });
    let options = JobOptions {
        speed,
        ..JobOptions::new("job0")
    };
    (options, mirror.unwrap(), edge)
}

fn text<T: std::fmt::Debug>(result: Result<T, JobError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn verbs_that_do_not_fit_are_refused() {
    let lab = Lab::new();
    let jobs = lab.jobs.clone();
    lab.run(move || async move {
        let (options, mirror, edge) = slow_mirror(100_000);
        let job = begin(&jobs, options, mirror, &edge).await;
        until(|| job.status() == JobStatus::Running).await;
        let refused = |verb: &str| {
            format!("Job 'job0' in state 'running' cannot accept command verb '{verb}'")
        };
        assert_eq!(text(job.complete()), refused("complete"));
        assert_eq!(text(job.finalize()), refused("finalize"));
        assert_eq!(text(job.dismiss()), refused("dismiss"));
        assert_eq!(text(job.resume()), "Can't resume a job that was not paused");
        job.pause().unwrap();
        assert_eq!(text(job.pause()), "Job is already paused");
        until(|| job.status() == JobStatus::Paused).await;
        assert_eq!(
            text(job.block_cancel(false)),
            "The block job for device 'job0' is currently paused"
        );
        // Cancelling resumes it.
        job.cancel(true).unwrap();
        assert_eq!(job.concluded().await.unwrap_err(), "Operation canceled");
        assert_eq!(text(jobs.find("job0").map(|_| ())), "Job not found");
        assert_eq!(edge.target().unwrap().name(), "source");
    });
    let want = [
        "created",
        "running",
        "paused",
        "running",
        "aborting",
        "BLOCK_JOB_CANCELLED",
        "concluded",
        "null",
    ];
    assert_eq!(lab.told(), want);
}

#[test]
fn names_of_jobs() {
    let lab = Lab::new();
    let jobs = lab.jobs.clone();
    lab.run(move || async move {
        for bad in ["", "0job", "a b", "#block1", "ä"] {
            let (_, mirror, _) = slow_mirror(0);
            let created = jobs.create(JobOptions::new(bad), mirror);
            let error = created.err().unwrap().to_string();
            assert_eq!(error, format!("Invalid job ID '{bad}'"));
        }
        let (options, mirror, _edge) = slow_mirror(0);
        let first = jobs.create(options, mirror).unwrap();
        let (options, mirror, _edge) = slow_mirror(0);
        let error = jobs.create(options, mirror).err().unwrap().to_string();
        assert_eq!(error, "Job ID 'job0' already in use");
        assert_eq!(jobs.query()[0].status, JobStatus::Created);
        drop(first);
        assert_eq!(jobs.query(), []);
    });
}

#[test]
fn a_job_rests_goes_on_and_heeds_its_speed() {
    let lab = Lab::new();
    let jobs = lab.jobs.clone();
    lab.run(move || async move {
        let speed = 1 << 20;
        let (options, mirror, edge) = slow_mirror(speed);
        let job = begin(&jobs, options, mirror, &edge).await;
        event::sleep(Duration::from_millis(300)).await;
        let info = job.block_info();
        assert!(info.offset > 0 && info.offset < speed * 3 / 5, "{info:?}");
        assert_eq!((info.len, info.speed, info.busy), (SIZE, speed, true));
        job.pause().unwrap();
        until(|| job.status() == JobStatus::Paused).await;
        let before = job.block_info();
        assert!(before.paused && !before.busy);
        event::sleep(Duration::from_millis(100)).await;
        assert_eq!(job.block_info().offset, before.offset);
        job.resume().unwrap();
        until(|| job.block_info().offset > before.offset).await;
        // As fast as it can, at once.
        job.set_speed(1).unwrap();
        event::sleep(Duration::from_millis(20)).await;
        job.set_speed(0).unwrap();
        until(|| job.status() == JobStatus::Ready).await;
        job.pause().unwrap();
        until(|| job.status() == JobStatus::Standby).await;
        job.resume().unwrap();
        until(|| job.status() == JobStatus::Ready).await;
        job.complete().unwrap();
        job.concluded().await.unwrap();
        assert_eq!(edge.target().unwrap().name(), "target");
    });
}

#[test]
fn a_job_waits_to_be_finalized_and_dismissed() {
    let lab = Lab::new();
    let jobs = lab.jobs.clone();
    lab.run(move || async move {
        let (options, mirror, edge) = slow_mirror(0);
        let options = JobOptions {
            auto_finalize: false,
            auto_dismiss: false,
            ..options
        };
        let job = begin(&jobs, options, mirror, &edge).await;
        until(|| job.status() == JobStatus::Ready).await;
        job.complete().unwrap();
        until(|| job.status() == JobStatus::Pending).await;
        // Until then guests write to the source.
        let model = read_all(&*edge, SIZE).await;
        let load = Load::begin(&edge, 1, model);
        load.go_on(50).await;
        assert_eq!(edge.target().unwrap().name(), "source");
        job.finalize().unwrap();
        job.concluded().await.unwrap();
        assert_eq!(edge.target().unwrap().name(), "target");
        load.go_on(50).await;
        let model = load.end().await;
        same("the target", &read_all(&*edge, SIZE).await, &model);
        assert_eq!(jobs.query()[0].status, JobStatus::Concluded);
        job.dismiss().unwrap();
        assert_eq!(jobs.query(), []);
    });
    assert!(lab.has_told("BLOCK_JOB_PENDING"));
}

/// When the graph cannot be changed, nothing has changed.
#[test]
fn a_pivot_that_fails_leaves_the_source_in_place() {
    let lab = Lab::new();
    let jobs = lab.jobs.clone();
    lab.run(move || async move {
        let ((_, source), (_, target)) = (in_memory("s", SIZE), in_memory("t", SIZE));
        let edge = Edge::new(Some(Arc::clone(&source)));
        let led = Arc::clone(&edge);
        let finish: Finish = Box::new(move |_, settler| {
            Box::pin(async move {
                let _drained = drain([led]).await;
                settler.settle().await?;
                Err(std::io::Error::from_raw_os_error(nix::libc::EBUSY))
            })
        });
        let load = Load::begin(&edge, 1, vec![0; SIZE as usize]);
        let mirror = Mirror::new(MirrorOptions {
            finish: Some(finish),
            ..MirrorOptions::new(source, target)
        });
        let job = begin(&jobs, JobOptions::new("m"), mirror.unwrap(), &edge).await;
        until(|| job.status() == JobStatus::Ready).await;
        job.complete().unwrap();
        let error = job.concluded().await.unwrap_err();
        assert_eq!(error, "Device or resource busy");
        load.go_on(50).await;
        let model = load.end().await;
        same("the source", &read_all(&*edge, SIZE).await, &model);
    });
    assert!(lab.has_told("BLOCK_JOB_COMPLETED"));
}

/// A disk, a bitmap of it, and a backup of what the bitmap has.
fn tracked(name: &str) -> (Arc<Edge>, Arc<DirtyBitmap>, Memory, Box<dyn Driver>) {
    let (bytes, source) = in_memory(name, SIZE);
    bytes.bytes().fill(3);
    let (memory, target) = in_memory("target", SIZE);
    let bitmap = DirtyBitmap::new("bitmap0", SIZE, 65536).unwrap();
    source.observe(Arc::<DirtyBitmap>::clone(&bitmap));
    bitmap.mark(0..SIZE);
    let edge = Edge::new(Some(Arc::clone(&source)));
    let driver = Backup::new(BackupOptions {
        sync: Sync::Incremental,
        bitmap: Some(Arc::clone(&bitmap)),
        ..BackupOptions::new(source, target)
    });
    (edge, bitmap, memory, driver.unwrap())
}

#[test]
fn jobs_of_a_transaction_complete_together() {
    let lab = Lab::new();
    let jobs = lab.jobs.clone();
    lab.run(move || async move {
        let transaction = Arc::new(Transaction::default());
        let options = |id: &str, speed| JobOptions {
            speed,
            transaction: Some(Arc::clone(&transaction)),
            ..JobOptions::new(id)
        };
        let ((edge_a, a, ..), (edge_b, b, ..)) = {
            let one = tracked("a");
            let other = tracked("b");
            let created = [
                jobs.create(options("a", 0), one.3).unwrap(),
                jobs.create(options("b", 1 << 20), other.3).unwrap(),
            ];
            let _drained = drain([Arc::clone(&one.0), Arc::clone(&other.0)]).await;
            created.iter().for_each(|job| job.attach().unwrap());
            for job in created {
                job.start();
            }
            ((one.0, one.1), (other.0, other.1))
        };
        let fast = jobs.find("a").unwrap();
        let slow = jobs.find("b").unwrap();
        until(|| fast.status() == JobStatus::Waiting).await;
        assert_eq!(slow.status(), JobStatus::Running);
        assert!(a.is_busy());
        write(&*edge_a, 0, vec![1; 512]).await.unwrap();
        slow.set_speed(0).unwrap();
        fast.concluded().await.unwrap();
        slow.concluded().await.unwrap();
        assert_eq!((a.count(), b.count()), (65536, 0));
        drop(edge_b);
    });
}

#[test]
fn jobs_of_a_transaction_fail_together() {
    let lab = Lab::new();
    let jobs = lab.jobs.clone();
    lab.run(move || async move {
        let transaction = Arc::new(Transaction::default());
        let options = |id: &str| JobOptions {
            speed: 256 << 10,
            transaction: Some(Arc::clone(&transaction)),
            ..JobOptions::new(id)
        };
        let (edge_a, a, _, driver_a) = tracked("a");
        let (edge_b, b, target, driver_b) = tracked("b");
        let one = begin(&jobs, options("a"), driver_a, &edge_a).await;
        let other = begin(&jobs, options("b"), driver_b, &edge_b).await;
        target.fail_with(nix::libc::EIO);
        assert_eq!(other.concluded().await.unwrap_err(), "Input/output error");
        assert_eq!(one.concluded().await.unwrap_err(), "Operation canceled");
        assert_eq!((a.count(), b.count()), (SIZE, SIZE));
    });
    assert!(lab.has_told("BLOCK_JOB_CANCELLED") && lab.has_told("BLOCK_JOB_COMPLETED"));
}

#[test]
fn events_and_answers_have_the_names_of_the_interface() {
    let lab = Lab::new();
    let jobs = lab.jobs.clone();
    lab.run(move || async move {
        let (options, mirror, edge) = slow_mirror(0);
        let job = begin(&jobs, options, mirror, &edge).await;
        until(|| job.status() == JobStatus::Ready).await;
        let info = serde_json::json!(jobs.query_block());
        let want = serde_json::json!([{
            "type": "mirror", "device": "job0", "len": SIZE, "offset": SIZE, "busy": true,
            "paused": false, "speed": 0, "io-status": "ok", "ready": true, "status": "ready",
            "auto-finalize": true, "auto-dismiss": true, "actively-synced": false,
        }]);
        assert_eq!(info, want);
        let info = serde_json::json!(jobs.query());
        let want = serde_json::json!([{
            "id": "job0", "type": "mirror", "status": "ready",
            "current-progress": SIZE, "total-progress": SIZE,
        }]);
        assert_eq!(info, want);
        job.cancel(true).unwrap();
        job.concluded().await.unwrap_err();
    });
    let events = lab.events.lock().unwrap();
    let (first, ready) = (&events[0], &events[3]);
    assert_eq!(first.name(), "JOB_STATUS_CHANGE");
    let want = serde_json::json!({ "id": "job0", "status": "created" });
    assert_eq!(first.data(), want);
    assert_eq!(ready.name(), "BLOCK_JOB_READY");
    let want = serde_json::json!({
        "type": "mirror", "device": "job0", "len": SIZE, "offset": SIZE, "speed": 0,
    });
    assert_eq!(ready.data(), want);
}
