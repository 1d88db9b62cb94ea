//! Repairs: whatever happened to the counting, the data is there.

use proptest::prelude::*;

use super::*;

const SIZE: u64 = 2 << 20;

#[derive(Debug, Clone)]
enum Damage {
    /// A refcount, by index, gets a value.
    Refcount(u16, u8),
    /// A flag of an L2 entry is turned.
    Copied(u16),
    /// The refcount table leads elsewhere, or nowhere.
    Block(u64),
    /// The image was not closed.
    Dirty,
}

fn damages() -> impl Strategy<Value = Vec<Damage>> {
    let damage = prop_oneof![
        4 => (0..700u16, 0..4u8).prop_map(|(at, value)| Damage::Refcount(at, value)),
        2 => (0..512u16).prop_map(Damage::Copied),
        1 => (0..600u64).prop_map(|cluster| Damage::Block(cluster * 4096)),
        1 => any::<u64>().prop_map(Damage::Block),
        1 => Just(Damage::Dirty),
    ];
    prop::collection::vec(damage, 1..12)
}

fn damage(bytes: &mut [u8], damages: &[Damage]) {
    let u64_at =
        |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let table = u64_at(bytes, 48) as usize;
    let block = u64_at(bytes, table) as usize;
    let l2 = (u64_at(bytes, u64_at(bytes, 40) as usize) & !(1 << 63)) as usize;
    for damage in damages {
        match damage {
            Damage::Refcount(at, value) => bytes[block + 2 * usize::from(*at) + 1] = *value,
            // Where there is an entry; else it would be another damage.
            Damage::Copied(at) if u64_at(bytes, l2 + 8 * usize::from(*at)) != 0 => {
                bytes[l2 + 8 * usize::from(*at)] ^= 0x80;
            }
            Damage::Copied(_) => (),
            Damage::Block(offset) => bytes[table..table + 8].copy_from_slice(&offset.to_be_bytes()),
            Damage::Dirty => bytes[79] |= 1,
        }
    }
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn data_survives_wrong_refcounts(damages in damages(), snapshot in any::<bool>()) {
        let directory = directory();
        let path = in_directory(&directory, "disk.qcow2");
        let image = path.clone();
        let model = run(move || async move {
            let options = CreateOptions {
                cluster_size: 4096,
                ..CreateOptions::new(SIZE)
            };
            make(&image, &options).await;
            let disk = open(&image).await;
            let mut model = vec![0; SIZE as usize];
            for (at, len) in [(0, 300_000), (700_000, 50_000), (1_500_000, 10_000)] {
                let bytes = pattern(at as u8 + 1, len);
                model[at..at + len].copy_from_slice(&bytes);
                write(&*disk, at as u64, bytes).await;
            }
            disk.write_compressed(vec![9; 4096], 1 << 20).await.unwrap();
            model[1 << 20..(1 << 20) + 4096].fill(9);
            if snapshot {
                let request = SnapshotRequest {
                    name: "s".into(),
                    ..SnapshotRequest::default()
                };
                disk.create_snapshot(&request).await.unwrap();
                write(&*disk, 4096, vec![5; 20_000]).await;
                model[4096..24_096].fill(5);
            }
            disk.close().await.unwrap();
            drop(disk);
            let mut bytes = std::fs::read(&image).unwrap();
            damage(&mut bytes, &damages);
            std::fs::write(&image, bytes).unwrap();
            let options = OpenOptions {
                ignore_marks: true,
                ..OpenOptions::default()
            };
            let disk = try_open_with(spec(&image), options).await.unwrap();
            let report = disk.check(Some(Repair::All)).await.unwrap();
            assert_eq!(
                (report.corruptions, report.leaks, report.check_errors),
                (0, 0, 0),
                "{:?}",
                report.messages
            );
            assert!(!disk.info().dirty && !disk.info().corrupt);
            disk.close().await.unwrap();
            drop(disk);
            // It can be written again.
            let disk = open(&image).await;
            write(&*disk, 1_900_000, vec![6; 50_000]).await;
            model[1_900_000..1_950_000].fill(6);
            disk.close().await.unwrap();
            model
        });
        same_everywhere(&path, &model);
    }
}

#[test]
fn wrong_flags_and_far_leaks_are_counted() {
    let directory = directory();
    let path = in_directory(&directory, "disk.qcow2");
    let image = path.clone();
    run(move || async move {
        make(&image, &CreateOptions::new(SIZE)).await;
        let disk = open(&image).await;
        write(&*disk, 0, pattern(1, 300_000)).await;
        disk.write_compressed(vec![9; 65536], 1 << 20)
            .await
            .unwrap();
        disk.close().await.unwrap();
        drop(disk);
        let mut bytes = std::fs::read(&image).unwrap();
        // Two entries, one that is compressed, and that of L1 itself; refcounts where nothing is
        // used.
        let u64_at = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
        let l1 = u64_at(40) as usize;
        let l2 = (u64_at(l1) & !(1 << 63)) as usize;
        let block = u64_at(u64_at(48) as usize) as usize;
        for at in [l1, l2, l2 + 8 * 3, l2 + 8 * 16] {
            bytes[at] ^= 0x80;
        }
        for cluster in [500, 4095, 4096, 20_000, 32_767] {
            bytes[block + 2 * cluster + 1] = 1;
        }
        std::fs::write(&image, bytes).unwrap();
        let read_only = DiskSpec {
            read_only: true,
            ..spec(&image)
        };
        let options = OpenOptions {
            ignore_marks: true,
            ..OpenOptions::default()
        };
        let disk = try_open_with(read_only, options).await.unwrap();
        let report = disk.check(None).await.unwrap();
        assert_eq!(
            (report.corruptions, report.leaks),
            (4, 5),
            "{:?}",
            report.messages
        );
        assert_eq!((report.check_errors, report.allocated_clusters), (0, 6));
    });
    let said = std::process::Command::new("qemu-img")
        .args(["check", "--output", "json", "-f", "qcow2"])
        .arg(&path)
        .output()
        .unwrap();
    let said: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    // QEMU does not look at refcounts beyond the end of the file.
    assert_eq!(said["corruptions"].as_u64(), Some(4));
}
