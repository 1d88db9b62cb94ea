//! Random operations, against a plain array of bytes and QEMU's tools.

use proptest::prelude::*;

use super::*;

pub(super) const SIZE: u64 = 600 * 1024;

#[derive(Debug, Clone)]
pub(super) enum Step {
    Write(u64, u64, u8, bool),
    Compress(u64, u8),
    Zero(u64, u64, bool),
    Discard(u64, u64),
    Read(u64, u64),
    Resize(u64),
    Flush,
    Reopen,
    Snapshot(u8),
    Apply(u8),
    Delete(u8),
}

fn place() -> impl Strategy<Value = (u64, u64)> {
    (0..SIZE, 1..90_000u64, 0..4u8).prop_map(|(at, len, kind)| match kind {
        0 => (at, len % 700 + 1),
        1 => (at & !511, (len & !511).max(512)),
        2 => (at & !65535, (len & !4095).max(4096)),
        _ => (at, len),
    })
}

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (place(), any::<u8>(), any::<bool>())
            .prop_map(|((at, len), seed, fua)| Step::Write(at, len, seed, fua)),
        2 => (0..SIZE, any::<u8>()).prop_map(|(at, seed)| Step::Compress(at, seed)),
        3 => (place(), any::<bool>()).prop_map(|((at, len), unmap)| Step::Zero(at, len, unmap)),
        3 => place().prop_map(|(at, len)| Step::Discard(at, len)),
        4 => place().prop_map(|(at, len)| Step::Read(at, len)),
        1 => (1..2 * SIZE / 512).prop_map(|sectors| Step::Resize(sectors * 512)),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => (0..3u8).prop_map(Step::Snapshot),
        1 => (0..3u8).prop_map(Step::Apply),
        1 => (0..3u8).prop_map(Step::Delete),
    ];
    prop::collection::vec(step, 1..40)
}

#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub create: CreateOptions,
    pub backing: Option<u64>,
}

pub(super) fn shapes() -> impl Strategy<Value = Shape> {
    let bits =
        prop_oneof![2 => Just(9u32), 1 => Just(10), 2 => Just(12), 4 => Just(16), 1 => Just(21)];
    (
        bits,
        0..=6u32,
        any::<[bool; 4]>(),
        0..6u8,
        prop::option::of(0..=SIZE / 512),
    )
        .prop_map(
            |(bits, order, [lazy, extended, zstd, old], extra, backing)| {
                let mut create = CreateOptions::new(SIZE);
                create.cluster_size = 1 << bits;
                let mut backing = backing.map(|sectors| (sectors * 512).max(512));
                if old && extra == 0 {
                    create.version = 2;
                } else {
                    create.refcount_bits = 1 << order;
                    create.lazy_refcounts = lazy;
                    create.extended_l2 = extended && bits >= 14;
                    create.compression = if zstd {
                        Compression::Zstd
                    } else {
                        Compression::Zlib
                    };
                    if extra == 1 {
                        create.data_file = Some(b"disk.data".to_vec());
                        create.lazy_refcounts = false;
                    }
                    if extra == 2 {
                        create.preallocation = Preallocation::Metadata;
                        backing = None;
                    }
                }
                if backing.is_some() {
                    create.backing_file = Some(b"base.raw".to_vec());
                    create.backing_format = Some("raw".into());
                }
                Shape { create, backing }
            },
        )
}

/// Carries out the steps; the disk must hold the model's bytes throughout.
pub(super) async fn follow(
    path: &Path,
    shape: &Shape,
    steps: Vec<Step>,
    mut model: Vec<u8>,
) -> Vec<u8> {
    let mut disk = open(path).await;
    let mut snapshots = std::collections::BTreeMap::<u8, Vec<u8>>::new();
    let narrow = shape.create.refcount_bits <= 4;
    let cluster = shape.create.cluster_size;
    let clip = |at: u64, len: u64, size: usize| {
        let at = at.min(size as u64 - 1);
        (at, len.min(size as u64 - at))
    };
    for (number, step) in steps.into_iter().enumerate() {
        match step {
            Step::Write(at, len, seed, fua) => {
                let (at, len) = clip(at, len, model.len());
                let bytes = pattern(seed, len as usize);
                model[at as usize..(at + len) as usize].copy_from_slice(&bytes);
                let buf = IoBuf::from_vec(bytes);
                let done = disk.write_vectored(buf, at, WriteFlags { fua }).await;
                done.0.unwrap();
            }
            Step::Compress(at, seed) => {
                let at = at.min(model.len() as u64 - 1) / cluster * cluster;
                let (at, len) = clip(at, cluster, model.len());
                let bytes = pattern(seed, len as usize);
                if shape.create.data_file.is_none() && shape.create.encryption.is_none() {
                    model[at as usize..(at + len) as usize].copy_from_slice(&bytes);
                    disk.write_compressed(bytes, at).await.unwrap();
                }
            }
            Step::Zero(at, len, may_unmap) => {
                let (at, len) = clip(at, len, model.len());
                model[at as usize..(at + len) as usize].fill(0);
                let fua = false;
                let flags = ZeroFlags { may_unmap, fua };
                disk.write_zeroes(at, len, flags).await.unwrap();
            }
            Step::Discard(at, len) => {
                let (at, len) = clip(at, len, model.len());
                disk.discard(at, len).await.unwrap();
                // What is discarded reads as zeros or as before.
                let now = read(&*disk, at, len as usize).await;
                let unit = cluster as usize;
                for (i, byte) in now.iter().enumerate() {
                    let old = &mut model[at as usize + i];
                    assert!(*byte == 0 || byte == old, "step {number}");
                    *old = *byte;
                }
                let whole = (at as usize).next_multiple_of(unit)..(at + len) as usize / unit * unit;
                if shape.backing.is_none() && !whole.is_empty() {
                    assert!(model[whole].iter().all(|byte| *byte == 0), "step {number}");
                }
            }
            Step::Read(at, len) => {
                let (at, len) = clip(at, len, model.len());
                let bytes = read(&*disk, at, len as usize).await;
                let same = bytes == model[at as usize..(at + len) as usize];
                assert!(same, "step {number}: read {at}+{len}");
            }
            Step::Resize(_) if shape.create.version == 2 && !snapshots.is_empty() => (),
            Step::Resize(size) => {
                disk.resize(size).await.unwrap();
                model.resize(size as usize, 0);
            }
            Step::Snapshot(name) => {
                let request = SnapshotRequest {
                    name: format!("s{name}"),
                    ..SnapshotRequest::default()
                };
                let made = disk.create_snapshot(&request).await;
                let can = shape.create.data_file.is_none() && !snapshots.contains_key(&name);
                match made {
                    Ok(_) if can => drop(snapshots.insert(name, model.clone())),
                    Ok(_) => panic!("step {number}: there is one already"),
                    Err(error) => assert!(!can || narrow, "step {number}: {error}"),
                }
            }
            Step::Apply(name) => {
                let applied = disk.apply_snapshot(&format!("s{name}")).await;
                match snapshots.get(&name) {
                    // Narrow refcounts may be full.
                    Some(_) if narrow && applied.is_err() => (),
                    Some(bytes) => {
                        applied.unwrap();
                        model.clone_from(bytes);
                    }
                    None => drop(applied.unwrap_err()),
                }
            }
            Step::Delete(name) => {
                let deleted = disk.delete_snapshot(&format!("s{name}")).await;
                assert_eq!(deleted.is_ok(), snapshots.remove(&name).is_some());
            }
            Step::Flush => disk.flush().await.unwrap(),
            Step::Reopen => {
                disk.close().await.unwrap();
                drop(disk);
                disk = open(path).await;
            }
        }
    }
    disk.close().await.unwrap();
    model
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn an_image_behaves_like_an_array_of_bytes(shape in shapes(), steps in steps()) {
        let directory = directory();
        let path = in_directory(&directory, "disk.qcow2");
        let model = made_and_followed(&path, shape, steps);
        same_everywhere(&path, &model);
    }
}

/// The bytes of an image of this shape after all steps.
pub(super) fn made_and_followed(path: &Path, mut shape: Shape, steps: Vec<Step>) -> Vec<u8> {
    let mut model = vec![0; SIZE as usize];
    if let Some(name) = &mut shape.create.data_file {
        // QEMU does not look beside the image.
        *name = path.with_extension("data").to_str().unwrap().into();
    }
    if let Some(len) = shape.backing {
        let base = pattern(3, len as usize);
        std::fs::write(path.with_file_name("base.raw"), &base).unwrap();
        model[..len as usize].copy_from_slice(&base);
    }
    let image = path.to_owned();
    run(move || async move {
        make(&image, &shape.create).await;
        follow(&image, &shape, steps, model).await
    })
}
