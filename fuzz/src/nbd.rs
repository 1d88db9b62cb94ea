use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use block::storage::Storage;
use block::storage::memory::Memory;
use block::{IoBuf, Node, Raw, WriteFlags};
use event::{IoThread, IoThreadConfig};
use nbd::{Address, Client, ClientOptions, Export, Server, ServerOptions};

use crate::Script;

const SIZE: usize = 64 << 10;
const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

fn thread() -> IoThread {
    static THREAD: OnceLock<IoThread> = OnceLock::new();
    let start = || IoThread::spawn(IoThreadConfig::new("nbd")).expect("a thread");
    THREAD.get_or_init(start).clone()
}

/// Whether the thread has survived what was done on it.
fn check_thread() {
    thread().spawn_task(|| async {}).join().expect("no panic");
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut out = IHAVEOPT.to_be_bytes().to_vec();
    out.extend_from_slice(&number.to_be_bytes());
    out.extend_from_slice(&(data.len() as u32).to_be_bytes());
    out.extend_from_slice(data);
    out
}

/// A client that knows how it is done, up to some point.
fn opening(kind: u8) -> Vec<u8> {
    let flags = 3_u32.to_be_bytes().to_vec();
    let go = option(7, &[0; 6]);
    let contexts = [
        &[0; 4][..],
        &1_u32.to_be_bytes(),
        &15_u32.to_be_bytes(),
        b"base:allocation",
    ]
    .concat();
    match kind % 5 {
        0 => Vec::new(),
        1 => flags,
        2 => [flags, option(1, &[])].concat(),
        3 => [flags, option(8, &[]), option(10, &contexts), go].concat(),
        _ => [flags, option(11, &[]), option(10, &contexts), go].concat(),
    }
}

/// A client says anything to a server.
pub fn nbd_server(data: &[u8]) {
    static SERVER: OnceLock<Server> = OnceLock::new();
    let server = SERVER.get_or_init(|| {
        let server = Server::new(ServerOptions::new(vec![thread()]));
        let node = Arc::new(Raw::new("memory".into(), Memory::new(SIZE, false)));
        let export = Export {
            writable: true,
            allocation_depth: true,
            ..Export::new("", node)
        };
        server.add_export(export).expect("a good name");
        server
    });
    let mut script = Script::new(data);
    let opening = opening(script.u8());
    let (mut client, socket) = UnixStream::pair().expect("sockets");
    server.serve(socket.into());
    // The server may end it at any time.
    _ = client.write_all(&opening);
    _ = client.write_all(script.rest());
    _ = client.shutdown(Shutdown::Write);
    _ = client.read_to_end(&mut Vec::new());
    check_thread();
}

fn answer(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = REPLY_MAGIC.to_be_bytes().to_vec();
    for number in [option, kind, data.len() as u32] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    out.extend_from_slice(data);
    out
}

/// A server that knows how it is done, up to some point.
fn greeting(kind: u8) -> Vec<u8> {
    const ERR_UNSUP: u32 = (1 << 31) + 1;
    let hello = [&b"NBDMAGICIHAVEOPT"[..], &3_u16.to_be_bytes()].concat();
    let context = [&1_u32.to_be_bytes()[..], b"base:allocation"].concat();
    let flags: u16 = if kind & 4 == 0 { 0x7d } else { 0x01 };
    let export = [
        &[0; 2][..],
        &(SIZE as u64).to_be_bytes(),
        &flags.to_be_bytes(),
    ]
    .concat();
    let mut out = hello.clone();
    match kind % 4 {
        0 => return Vec::new(),
        1 => return hello,
        2 => {
            out.extend(answer(11, ERR_UNSUP, &[]));
            out.extend(answer(8, 1, &[]));
        }
        _ => out.extend(answer(11, 1, &[])),
    }
    out.extend(answer(10, 4, &context));
    out.extend(answer(10, 1, &[]));
    out.extend(answer(7, 3, &export));
    out.extend(answer(7, 1, &[]));
    out
}

/// Hears what a client says up to its first request, or its end.
fn listen(peer: &mut UnixStream) {
    const REQUESTS: [[u8; 4]; 2] = [[0x25, 0x60, 0x95, 0x13], [0x21, 0xe4, 0x1c, 0x71]];
    let mut heard = Vec::new();
    let mut piece = [0; 4096];
    for _ in 0..200 {
        match peer.read(&mut piece) {
            Ok(0) => return,
            Ok(count) => heard.extend_from_slice(&piece[..count]),
            Err(_) => (),
        }
        if heard
            .windows(4)
            .any(|window| REQUESTS.iter().any(|magic| magic == window))
        {
            return;
        }
    }
}

/// A server says anything to a client.
pub fn nbd_client(data: &[u8]) {
    let mut script = Script::new(data);
    let kind = script.u8();
    let greeting = greeting(kind);
    let mut replies = Vec::new();
    for _ in 0..4 {
        let len = script.u8();
        replies.push(script.bytes(len.into()).to_vec());
    }
    replies.push(script.rest().to_vec());
    let (socket, mut peer) = UnixStream::pair().expect("sockets");
    let agrees = !matches!(kind % 4, 0 | 1);
    let server = std::thread::spawn(move || {
        // A client that waits for the rest of something gets what comes next.
        _ = peer.set_read_timeout(Some(Duration::from_millis(5)));
        _ = peer.write_all(&greeting);
        if agrees {
            // What is said before the first request answers nothing.
            listen(&mut peer);
        }
        for reply in replies {
            _ = peer.write_all(&reply);
            if agrees && matches!(peer.read(&mut [0; 8192]), Ok(0)) {
                break;
            }
        }
        _ = peer.shutdown(Shutdown::Write);
        _ = peer.set_read_timeout(None);
        _ = std::io::copy(&mut peer, &mut std::io::sink());
    });
    let options = ClientOptions::new(Address::Unix("/nowhere/socket".into()));
    let client = Client::with_socket(socket.into(), options, &thread());
    if let Ok(client) = client.join().expect("no panic") {
        let size = client.size();
        thread()
            .spawn_task(move || Box::pin(requests(client, size)))
            .join()
            .expect("no panic");
    }
    server.join().expect("no panic");
    check_thread();
}

async fn requests(client: Client, size: u64) {
    let len = size.min(4096);
    let disk = Raw::new("remote".into(), client);
    let buf = || IoBuf::from_vec(vec![0; len as usize]);
    let (read, buf_back) = disk.read_vectored(buf(), 0).await;
    assert_eq!(
        buf_back.into_vec().map(|bytes| bytes.len() as u64),
        Some(len)
    );
    let written = disk
        .write_vectored(buf(), 0, WriteFlags { fua: true })
        .await
        .0;
    if let Ok(status) = disk.block_status(0, len.max(1)).await {
        assert!((1..=len.max(1)).contains(&status.len));
    }
    let flushed = disk.flush().await;
    for error in [read.err(), written.err(), flushed.err()]
        .into_iter()
        .flatten()
    {
        assert!(error.raw_os_error().is_some(), "{error}");
    }
}
