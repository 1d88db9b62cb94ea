//! Our server and clients of others.

use std::io;

use super::*;
use crate::{BitmapSource, Removal};

/// Every second piece of so many bytes is dirty.
struct Stripes(&'static str, u64);

impl BitmapSource for Stripes {
    fn name(&self) -> &str {
        self.0
    }

    fn extents(&self, offset: u64, len: u64, most: usize) -> io::Result<Vec<(u64, bool)>> {
        let mut extents = Vec::new();
        let mut at = offset;
        while at < offset + len && extents.len() < most {
            let next = (at / self.1 + 1) * self.1;
            extents.push((next - at, at / self.1 % 2 == 1));
            at = next;
        }
        Ok(extents)
    }
}

#[test]
fn exports_are_listed_and_described() {
    let folder = Folder::new();
    let server = server();
    let (_, first) = memory(1 << 20);
    let (_, second) = memory(3 << 20);
    server
        .add_export(Export {
            description: "the first one".into(),
            ..Export::new("first", first)
        })
        .unwrap();
    server.add_export(writable("second disk", second)).unwrap();
    server.listen(&folder.socket()).unwrap();
    let list = folder.run(&format!("nbdinfo --list {}", folder.uri("")));
    for word in [
        "export=\"first\"",
        "the first one",
        "export=\"second disk\"",
        "export-size: 3145728",
    ] {
        assert!(list.contains(word), "{word}: {list}");
    }
    let about = folder.run(&format!("nbdinfo {}", folder.uri("first")));
    for word in [
        "newstyle-fixed without TLS, using structured packets",
        "is_read_only: true",
        "can_multi_conn: true",
        "can_trim: false",
        "base:allocation",
        "block_size_minimum: 1",
    ] {
        assert!(about.contains(word), "{word}: {about}");
    }
    let about = folder.run(&format!("nbdinfo {}", folder.uri("second%20disk")));
    for word in [
        "can_fua: true",
        "can_zero: true",
        "can_fast_zero: true",
        "can_trim: true",
    ] {
        assert!(about.contains(word), "{word}: {about}");
    }
    let error = folder.fails(&format!("nbdinfo {}", folder.uri("third")));
    assert!(error.contains("third"), "{error}");
    folder.run(&format!("qemu-img info {}", folder.uri("first")));
}

#[test]
fn allocation_and_bitmaps_are_shown() {
    let folder = Folder::new();
    folder.run("qemu-img create -f qcow2 base.qcow2 8M");
    folder.run("qemu-io -c write~-P~1~1M~64k base.qcow2");
    folder.run("qemu-img create -f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
    folder.run("qemu-io -c write~-P~2~0~64k -c write~-z~4M~64k top.qcow2");
    let image = image(&folder.path("top.qcow2"), Format::Qcow2, true);
    let server = server();
    let export = Export {
        bitmaps: vec![
            Arc::new(Stripes("halves", 4 << 20)),
            Arc::new(Stripes("small", 512)),
        ],
        allocation_depth: true,
        ..Export::new("disk", image.node())
    };
    server.add_export(export).unwrap();
    server.listen(&folder.socket()).unwrap();
    let map = |context: &str| -> Vec<String> {
        let text = folder.run(&format!("nbdinfo --map={context} {}", folder.uri("disk")));
        let line = |line: &str| {
            line.split_whitespace()
                .take(3)
                .collect::<Vec<_>>()
                .join(" ")
        };
        text.lines().map(line).collect()
    };
    assert_eq!(
        map("base:allocation"),
        [
            "0 65536 0",
            "65536 983040 3",
            "1048576 65536 0",
            "1114112 7274496 3"
        ]
    );
    assert_eq!(
        map("qemu:allocation-depth"),
        [
            "0 65536 1",
            "65536 983040 0",
            "1048576 65536 2",
            "1114112 3080192 0",
            "4194304 65536 1",
            "4259840 4128768 0"
        ]
    );
    assert_eq!(
        map("qemu:dirty-bitmap:halves"),
        ["0 4194304 0", "4194304 4194304 1"]
    );
    // More than one answer has room for.
    let small = map("qemu:dirty-bitmap:small");
    assert_eq!(small.len(), (8 << 20) / 512);
    assert_eq!(small[9001], "4608512 512 1");
    let contexts = folder.run(&format!("nbdinfo {}", folder.uri("disk")));
    assert!(contexts.contains("qemu:dirty-bitmap:halves"), "{contexts}");
    // As qemu-img sees it too.
    let theirs = folder.run(&format!(
        "qemu-img map --output=json {}",
        folder.uri("disk")
    ));
    assert!(
        theirs.contains("\"start\": 65536, \"length\": 983040"),
        "{theirs}"
    );
}

#[test]
fn copies_are_the_same_both_ways() {
    let folder = Folder::new();
    let mut bytes = pattern(6 << 20, 1);
    bytes[1 << 20..3 << 20].fill(0);
    std::fs::write(folder.path("source.raw"), &bytes).unwrap();
    let server = server();
    let source = image(&folder.path("source.raw"), Format::Raw, true);
    server
        .add_export(Export::new("source", source.node()))
        .unwrap();
    folder.run("qemu-img create -f qcow2 target.qcow2 6M");
    let target = image(&folder.path("target.qcow2"), Format::Qcow2, false);
    server
        .add_export(writable("target", target.node()))
        .unwrap();
    server.listen(&folder.socket()).unwrap();
    let (from, to) = (folder.uri("source"), folder.uri("target"));
    folder.run(&format!("nbdcopy {from} copy.raw"));
    folder.run("cmp source.raw copy.raw");
    folder.run(&format!(
        "qemu-img convert -f raw -O qcow2 {from} copy.qcow2"
    ));
    folder.run("qemu-img compare -f raw -F qcow2 source.raw copy.qcow2");
    folder.run(&format!("nbdcopy --flush --connections=4 source.raw {to}"));
    folder.run(&format!("qemu-img compare -f raw -F raw source.raw {to}"));
    folder.run(&format!("nbdcopy {from} {to}"));
    folder.run(&format!("nbdcopy {to} copy.raw"));
    folder.run("cmp source.raw copy.raw");
    // Zeros over what is there, and then again.
    folder.run(&format!(
        "qemu-io -f raw -c discard~0~6M -c write~-z~-u~0~6M -c flush {to}"
    ));
    folder.run(&format!(
        "qemu-img convert -n -f raw -O raw source.raw {to}"
    ));
    folder.run(&format!("qemu-img compare -f raw -F raw {from} {to}"));
    server.stop().wait().unwrap();
    server.remove_export("target", Removal::Soft).unwrap();
    block_on(move || async move { target.node().close().await }).unwrap();
    folder.run("qemu-img check target.qcow2");
    folder.run("qemu-img compare -f raw -F qcow2 source.raw target.qcow2");
}

#[test]
fn many_writes_at_once_arrive_where_they_belong() {
    let folder = Folder::new();
    let (bytes, node) = memory(8 << 20);
    let server = server();
    server.add_export(writable("", node)).unwrap();
    let address = server.listen(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
    let Address::Tcp { port, .. } = address else {
        panic!("{address}");
    };
    let uri = format!("nbd://127.0.0.1:{port}");
    let mut line = "qemu-io -t writeback -f raw".to_owned();
    for at in 0..64 {
        line += &format!(" -c aio_write~-P~{}~{}k~100k", at + 1, at * 128);
    }
    folder.run(&format!(
        "{line} -c aio_flush -c write~-f~-P~99~8060k~1k {uri}"
    ));
    for at in 0..64usize {
        let bytes = bytes.bytes();
        let piece = &bytes[at << 17..][..128 << 10];
        assert!(
            piece[..100 << 10].iter().all(|byte| *byte == at as u8 + 1),
            "{at}"
        );
    }
    assert!(bytes.flushes() > 0, "no flush");
    assert_eq!(bytes.stable_writes(), 1);
    // Misaligned, and read back.
    folder.run(&format!(
        "qemu-io -f raw -c write~-P~7~1000~3001 -c read~-P~7~1000~3001 {uri}"
    ));
    let text = folder.output(&format!("qemu-io -f raw -c read~-P~8~1000~3001 {uri}"));
    assert!(!text.status.success());
    let bench = format!("qemu-img bench -w -c 2000 -d 32 -s 4k -f raw {uri}");
    folder.run(&bench);
}

#[test]
fn errors_of_the_host_reach_the_client() {
    let folder = Folder::new();
    let (bytes, node) = memory(1 << 20);
    let server = server();
    server.add_export(writable("disk", node)).unwrap();
    server.listen(&folder.socket()).unwrap();
    let uri = folder.uri("disk");
    let attempt = |command: &str| folder.fails(&format!("qemu-io -f raw -c {command} {uri}"));
    bytes.fail_with(libc::ENOSPC);
    let error = attempt("write~0~4k");
    assert!(error.contains("No space left"), "{error}");
    bytes.fail_with(libc::EIO);
    let error = attempt("read~0~4k");
    assert!(error.contains("Input/output error"), "{error}");
}

#[test]
fn an_export_is_removed_softly_or_not() {
    let folder = Folder::new();
    let server = server();
    let (_, node) = memory(1 << 20);
    server
        .add_export(writable("disk", Arc::clone(&node)))
        .unwrap();
    assert!(matches!(
        server.add_export(writable("disk", node)),
        Err(NbdError::Exists(_))
    ));
    server.listen(&folder.socket()).unwrap();
    let client = open(ClientOptions {
        export: "disk".into(),
        ..ClientOptions::new(folder.socket())
    });
    let disk = disk(client.unwrap());
    assert!(matches!(
        server.remove_export("disk", Removal::Soft),
        Err(NbdError::InUse { clients: 1, .. })
    ));
    let before = Arc::clone(&disk);
    block_on(move || async move { write(&*before, 0, b"x").await }).unwrap();
    server
        .remove_export("disk", Removal::Hard)
        .unwrap()
        .wait()
        .unwrap();
    assert!(server.exports().is_empty());
    let error = block_on(move || async move { write(&*disk, 0, b"x").await }).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert!(matches!(
        server.remove_export("disk", Removal::Hard),
        Err(NbdError::NoExport(_))
    ));
    server.stop().wait().unwrap();
    assert!(!folder.path("socket").exists());
}

#[test]
fn clients_beyond_the_limit_wait() {
    let folder = Folder::new();
    let server = Server::new(ServerOptions {
        max_connections: 1,
        ..ServerOptions::new(vec![thread()])
    });
    let (_, node) = memory(1 << 20);
    server.add_export(writable("", node)).unwrap();
    server.listen(&folder.socket()).unwrap();
    let first = open(ClientOptions::new(folder.socket())).unwrap();
    let gone = server.last_client_gone();
    let options = ClientOptions::new(folder.socket());
    let second = std::thread::spawn(move || open(options));
    std::thread::sleep(Duration::from_millis(100));
    assert!(!second.is_finished() && server.clients() == 1);
    drop(first);
    gone.wait().unwrap();
    assert!(second.join().unwrap().is_ok());
}
