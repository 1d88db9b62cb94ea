//! Our client and servers of others.

use block::qcow2::{Opened, Qcow2, Qcow2Options};
use block::storage::Storage;
use block::{StatusKind, ZeroFlags};

use super::*;

/// Writes and reads in all the ways there are, beside a model.
async fn exercise(node: &dyn Node, model: &mut [u8]) -> std::io::Result<()> {
    let size = model.len();
    for (at, len, seed) in [
        (0, 512, 1),
        (4096, 65536, 2),
        (1000, 3001, 3),
        (size - 700, 700, 4),
        (300_000, 200_000, 5),
    ] {
        let bytes = pattern(len, seed);
        write(node, at as u64, &bytes).await?;
        model[at..at + len].copy_from_slice(&bytes);
    }
    for (at, len, may_unmap) in [(8192, 4096, false), (310_001, 70_000, true)] {
        let flags = ZeroFlags {
            may_unmap,
            fua: true,
        };
        node.write_zeroes(at as u64, len as u64, flags).await?;
        model[at..at + len].fill(0);
    }
    node.flush().await?;
    for (at, len) in [(0, size), (999, 5000), (size - 1, 1), (4096, 4096)] {
        let bytes = read(node, at as u64, len).await?;
        assert!(bytes == model[at..at + len], "at {at}");
    }
    node.discard(0, 4096).await?;
    let beyond = write(node, size as u64, &[0; 512]).await.unwrap_err();
    assert_eq!(beyond.raw_os_error(), Some(libc::EINVAL));
    Ok(())
}

fn works(folder: &Folder, options: ClientOptions) {
    let client = open(options).unwrap_or_else(|error| panic!("{error:?}"));
    let size = usize::try_from(Storage::size(&client)).unwrap();
    let disk = disk(client);
    block_on(move || async move {
        let mut model = vec![0; size];
        exercise(&*disk, &mut model).await.unwrap();
    });
    _ = folder;
}

#[test]
fn nbdkit_serves_us_in_all_its_ways() {
    for filters in [
        "memory 1M",
        "--no-sr memory 1M",
        "--filter=blocksize-policy memory 1M blocksize-minimum=4096 blocksize-maximum=64k blocksize-error-policy=error",
        "--filter=nozero memory 1M",
        "--filter=fua memory 1M fuamode=emulate",
        "--mask-handshake=0 memory 1M",
        "--filter=delay memory 1M rdelay=5ms wdelay=5ms",
    ] {
        let folder = Folder::new();
        let _peer = folder.spawn(&format!("nbdkit -f -U socket {filters}"));
        works(&folder, ClientOptions::new(folder.socket()));
    }
}

#[test]
fn qemu_nbd_serves_us() {
    let folder = Folder::new();
    folder.run("qemu-img create -f qcow2 a.qcow2 1M");
    folder.run("qemu-img bitmap --add -g 64k a.qcow2 since");
    let peer = folder.spawn("qemu-nbd -k SOCKET -t -e 4 -x disk -f qcow2 a.qcow2");
    let options = ClientOptions {
        export: "disk".into(),
        ..ClientOptions::new(folder.socket())
    };
    works(&folder, options.clone());
    peer.signal(nix::sys::signal::Signal::SIGTERM);
    wait_for(|| !folder.path("socket").exists());
    folder.run("qemu-img check a.qcow2");
    let _peer = folder.spawn("qemu-nbd -k SOCKET -t -r -e 4 -x disk -f qcow2 -B since a.qcow2");
    let error = open(options.clone()).err().unwrap();
    assert!(error.to_string().contains("read-only"), "{error}");
    let client = open(ClientOptions {
        read_only: true,
        dirty_bitmap: Some("since".into()),
        ..options.clone()
    });
    let client = client.unwrap();
    block_on(move || async move {
        // 0 to 69632 was written, rounded to the granularity.
        assert_eq!(client.dirty(0, 1 << 20).await.unwrap(), (true, 131_072));
        assert_eq!(client.dirty(200_000, 100).await.unwrap(), (false, 100));
        assert!(!client.dirty(140_000, 1 << 19).await.unwrap().0);
        let extent = Storage::extent(&client, 0, 1 << 20).await.unwrap();
        assert!(extent.0 && extent.1 >= 65536);
    });
    let error = open(ClientOptions {
        export: "another".into(),
        read_only: true,
        ..options.clone()
    });
    let error = error.err().unwrap().to_string();
    assert!(
        error.contains("another") && error.contains("no such export"),
        "{error}"
    );
    let error = open(ClientOptions {
        dirty_bitmap: Some("none".into()),
        read_only: true,
        ..options
    });
    assert!(error.err().unwrap().to_string().contains("bitmap"));
}

#[test]
fn a_qcow2_image_lies_on_a_server() {
    let folder = Folder::new();
    folder.run("qemu-img create -f qcow2 a.qcow2 4M");
    folder.run("qemu-io -c write~-P~5~1M~64k a.qcow2");
    // The file has room to grow: an export cannot.
    folder.run("truncate -s 8M a.qcow2");
    {
        let _peer = folder.spawn("nbdkit -f -U socket file a.qcow2");
        let client = open(ClientOptions::new(folder.socket())).unwrap();
        block_on(move || async move {
            let files = Opened {
                image: client,
                data: None,
                backing: None,
            };
            let image = Qcow2::open("a".into(), files, Qcow2Options::default())
                .await
                .unwrap();
            assert_eq!(read(&image, (1 << 20) + 5, 10).await.unwrap(), [5; 10]);
            write(&image, 2 << 20, &[9; 70_000]).await.unwrap();
            image.close().await.unwrap();
        });
    }
    folder.run("qemu-img check a.qcow2");
    folder.run("qemu-io -f qcow2 -c read~-P~9~2M~70000 -c read~-P~5~1M~64k a.qcow2");
}

#[test]
fn holes_are_seen_through_the_network() {
    let folder = Folder::new();
    let file = std::fs::File::create(folder.path("a.raw")).unwrap();
    file.set_len(4 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[1; 65536], 1 << 20).unwrap();
    let _peer = folder.spawn("nbdkit -f -U socket file a.raw");
    let disk = disk(open(ClientOptions::new(folder.socket())).unwrap());
    block_on(move || async move {
        let status = disk.block_status(0, 4 << 20).await.unwrap();
        assert_eq!((status.kind, status.len), (StatusKind::Zero, 1 << 20));
        let status = disk.block_status(1 << 20, 3 << 20).await.unwrap();
        assert_eq!((status.kind, status.len), (StatusKind::Data, 65536));
    });
}

#[test]
fn errors_of_the_server_reach_us() {
    let folder = Folder::new();
    let peer =
        "nbdkit -f -U socket --filter=error memory 1M error-pwrite=ENOSPC error-pwrite-rate=100%";
    let _peer = folder.spawn(peer);
    let disk = disk(open(ClientOptions::new(folder.socket())).unwrap());
    block_on(move || async move {
        let error = write(&*disk, 0, &[1; 512]).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(read(&*disk, 0, 2).await.unwrap(), [0, 0]);
    });
}

#[test]
fn we_serve_ourselves() {
    // With extended headers, which only we have here.
    let folder = Folder::new();
    let server = server();
    let (_, node) = memory(1 << 20);
    server.add_export(writable("x", node)).unwrap();
    server.listen(&folder.socket()).unwrap();
    works(
        &folder,
        ClientOptions {
            export: "x".into(),
            ..ClientOptions::new(folder.socket())
        },
    );
    let disk = disk(
        open(ClientOptions {
            export: "x".into(),
            ..ClientOptions::new(folder.socket())
        })
        .unwrap(),
    );
    block_on(move || async move {
        // Many at once, from several tasks.
        let writes = (0..200u64).map(|at| {
            let disk = &disk;
            async move { write(&**disk, at * 5000, &[at as u8; 5000]).await }
        });
        for done in event::join_all(writes).await {
            done.unwrap();
        }
        for at in 0..200u64 {
            let bytes = read(&*disk, at * 5000, 5000).await.unwrap();
            assert!(bytes.iter().all(|byte| *byte == at as u8), "{at}");
        }
        let status = disk.block_status(0, 1 << 20).await.unwrap();
        assert_eq!(status.kind, StatusKind::Data);
    });
}

#[test]
fn the_last_sector_need_not_be_whole() {
    let folder = Folder::new();
    let _peer = folder.spawn("nbdkit -f -U SOCKET memory 1000001");
    let disk = disk(open(ClientOptions::new(folder.socket())).unwrap());
    block_on(move || async move {
        assert_eq!(disk.size(), 1_000_448);
        let last = disk.size() - 512;
        let mut sector = pattern(512, 1);
        let full = write(&*disk, last, &sector).await.unwrap_err();
        assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
        sector[65..].fill(0);
        write(&*disk, last, &sector).await.unwrap();
        assert_eq!(read(&*disk, last, 512).await.unwrap(), sector);
        let status = disk.block_status(0, disk.size()).await.unwrap();
        assert!(status.len > 0);
        disk.write_zeroes(0, disk.size(), ZeroFlags::default())
            .await
            .unwrap();
        assert_eq!(read(&*disk, last, 512).await.unwrap(), [0; 512]);
        disk.discard(0, disk.size()).await.unwrap();
    });
}
