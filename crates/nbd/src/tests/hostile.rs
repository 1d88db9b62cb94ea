//! Peers that do not mean it well.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::*;
use crate::protocol::{
    Dialect, IHAVEOPT, NBDMAGIC, REPLY_MAGIC, Request, chunk, chunk_header, command, flag, info,
    option, reply, simple_reply,
};

fn words(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn an_option(number: u32, len: u32, data: &[u8]) -> Vec<u8> {
    words(&[
        &IHAVEOPT.to_be_bytes(),
        &number.to_be_bytes(),
        &len.to_be_bytes(),
        data,
    ])
}

fn request(command: u16, flags: u16, offset: u64, length: u64) -> Request {
    Request {
        flags,
        command,
        cookie: 7,
        offset,
        length,
    }
}

fn encoded(request: &Request) -> Vec<u8> {
    request.encode(Dialect::Simple)
}

/// What a client says up to its requests: the default export, with simple replies.
fn hello() -> Vec<u8> {
    words(&[&3u32.to_be_bytes(), &an_option(option::EXPORT_NAME, 0, &[])])
}

/// All that the server answers to a client that then ends the connection, or is cut off.
fn told(folder: &Folder, bytes: &[u8]) -> Vec<u8> {
    let mut socket = UnixStream::connect(folder.path("socket")).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    // The server may end it before everything is said.
    _ = socket.write_all(bytes);
    _ = socket.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    _ = socket.read_to_end(&mut answer);
    answer
}

fn victim(folder: &Folder) -> (Server, Memory) {
    let server = server();
    let (memory, node) = memory(1 << 20);
    server.add_export(writable("", node)).unwrap();
    server.listen(&folder.socket()).unwrap();
    (server, memory)
}

/// Behind greeting, size and flags.
fn replies(answer: &[u8]) -> &[u8] {
    &answer[18 + 10..]
}

#[test]
fn a_hostile_client_is_cut_off_and_nobody_else() {
    let folder = Folder::new();
    let (server, _) = victim(&folder);
    let good = open(ClientOptions::new(folder.socket())).unwrap();
    let flags = 3u32.to_be_bytes();
    let huge = an_option(option::GO, u32::MAX, &[0; 1000]);
    let long_name = words(&[&u32::MAX.to_be_bytes(), b"abc", &[0; 2]]);
    let many = words(&[&0u32.to_be_bytes(), &u32::MAX.to_be_bytes()]);
    let bad: Vec<Vec<u8>> = vec![
        vec![],
        vec![0; 3],
        u32::MAX.to_be_bytes().to_vec(),
        words(&[&flags, b"GET / HTTP/1.1\r\nHost: example\r\n\r\n"]),
        words(&[&flags, &huge]),
        words(&[&flags, &an_option(option::GO, 100, b"half")]),
        words(&[&flags, &an_option(option::GO, 9, &long_name)]),
        words(&[
            &flags,
            &an_option(option::STRUCTURED_REPLY, 0, &[]),
            &an_option(option::SET_META_CONTEXT, 8, &many),
        ]),
        words(&[&flags, &an_option(option::STARTTLS, 0, &[]), &[22; 500]]),
        words(&[&flags, &an_option(99, 70_000, &vec![1; 70_000])]),
        words(&[&flags, &an_option(option::EXPORT_NAME, 4, b"none")]),
        words(&[&hello(), &[0xff; 28]]),
        words(&[
            &hello(),
            &encoded(&request(command::WRITE, 0, 0, u64::from(u32::MAX))),
        ]),
        words(&[
            &hello(),
            &encoded(&request(command::WRITE, 0, 0, 1 << 20)),
            &[1; 100],
        ]),
        words(&[&hello(), &encoded(&request(command::READ, 0, 0, 512))[..20]]),
    ];
    for bytes in &bad {
        told(&folder, bytes);
        // And one that does not even end the connection.
        let mut socket = UnixStream::connect(folder.path("socket")).unwrap();
        _ = socket.write_all(bytes);
    }
    let disk = disk(good);
    block_on(move || async move {
        write(&*disk, 0, b"fine").await.unwrap();
        assert_eq!(read(&*disk, 0, 4).await.unwrap(), b"fine");
    });
    wait_for(|| server.clients() == 0);
}

#[test]
fn requests_that_make_no_sense_fail_one_by_one() {
    let folder = Folder::new();
    let (_server, _) = victim(&folder);
    let cases = [
        (request(command::READ, 0, 1 << 20, 1), libc::EINVAL),
        (request(command::READ, 0, u64::MAX, 2), libc::EINVAL),
        (
            request(command::READ, 0, 0, u64::from(u32::MAX)),
            libc::EOVERFLOW,
        ),
        (request(command::READ, flag::DF, 0, 512), libc::EINVAL),
        (request(command::READ, 1 << 9, 0, 512), libc::EINVAL),
        (request(command::TRIM, 0, u64::MAX - 5, 10), libc::EINVAL),
        (
            request(
                command::WRITE_ZEROES,
                flag::FAST_ZERO | flag::NO_HOLE,
                0,
                512,
            ),
            libc::EOPNOTSUPP,
        ),
        (request(command::BLOCK_STATUS, 0, 0, 512), libc::EINVAL),
        (request(command::FLUSH, 0, 5, 0), libc::EINVAL),
        (request(77, 0, 0, 0), libc::EINVAL),
    ];
    for (request, errno) in cases {
        let answer = told(&folder, &words(&[&hello(), &encoded(&request)]));
        let expected = simple_reply(7, errno as u32);
        assert_eq!(replies(&answer), expected, "{request:?}");
    }
    // A write beyond the end takes its payload along.
    let beyond = encoded(&request(command::WRITE, 0, 1 << 20, 512));
    let inside = encoded(&request(command::WRITE, flag::FUA, 512, 512));
    let bytes = words(&[&hello(), &beyond, &[1; 512], &inside, &[2; 512]]);
    let answer = told(&folder, &bytes);
    let mut both: Vec<&[u8]> = replies(&answer).chunks(16).collect();
    both.sort_unstable();
    let expected = [simple_reply(7, 0), simple_reply(7, libc::ENOSPC as u32)];
    assert_eq!(both, expected);
}

#[test]
fn a_read_only_export_stays_as_it_is() {
    let folder = Folder::new();
    let server = server();
    let (memory, node) = memory(1 << 20);
    server.add_export(Export::new("", node)).unwrap();
    server.listen(&folder.socket()).unwrap();
    for kind in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
        let bytes = encoded(&request(kind, 0, 0, 512));
        let answer = told(&folder, &words(&[&hello(), &bytes, &[1; 512]]));
        let expected = simple_reply(7, libc::EPERM as u32);
        assert_eq!(replies(&answer)[..16], expected, "{kind}");
    }
    assert!(memory.bytes().iter().all(|byte| *byte == 0));
}

#[test]
fn a_client_that_takes_no_replies_holds_little_memory() {
    let folder = Folder::new();
    let (server, _) = victim(&folder);
    let mut socket = UnixStream::connect(folder.path("socket")).unwrap();
    socket.write_all(&hello()).unwrap();
    let read = encoded(&request(command::READ, 0, 0, 1 << 20));
    socket
        .set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    // 2 GiB are asked for; the server stops to listen long before.
    for _ in 0..2048 {
        if socket.write_all(&read).is_err() {
            break;
        }
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    let resident: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(resident < 400 << 10, "{resident} KiB");
    drop(socket);
    wait_for(|| server.clients() == 0);
}

#[test]
fn a_client_that_takes_no_replies_is_cut_off_all_the_same() {
    let folder = Folder::new();
    let (server, _) = victim(&folder);
    let mut socket = UnixStream::connect(folder.path("socket")).unwrap();
    socket.write_all(&hello()).unwrap();
    let read = encoded(&request(command::READ, 0, 0, 1 << 20));
    for _ in 0..200 {
        socket.write_all(&read).unwrap();
    }
    std::thread::sleep(Duration::from_millis(200));
    let start = Instant::now();
    let gone = server.remove_export("", crate::Removal::Hard).unwrap();
    gone.wait().unwrap();
    assert!(start.elapsed() < Duration::from_secs(5));
    server.stop().wait().unwrap();
    drop(socket);
}

/// A server that says `bytes` to our client, whatever it hears, and `replies` to its first request.
fn client_hears(bytes: Vec<u8>, replies: Vec<u8>) -> Result<std::io::Result<Vec<u8>>, NbdError> {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let address = Address::Unix("/nowhere".into());
    let server = std::thread::spawn(move || {
        _ = theirs.write_all(&bytes);
        let magic = &request(0, 0, 0, 0).encode(Dialect::Simple)[..4];
        let (mut heard, mut piece) = (Vec::new(), [0; 512]);
        while !replies.is_empty() && !heard.windows(4).any(|window| window == magic) {
            match theirs.read(&mut piece) {
                Ok(0) | Err(_) => return,
                Ok(count) => heard.extend_from_slice(&piece[..count]),
            }
        }
        _ = theirs.write_all(&replies);
        _ = theirs.shutdown(std::net::Shutdown::Write);
        _ = std::io::copy(&mut theirs, &mut std::io::sink());
    });
    let thread = thread();
    let client = Client::with_socket(ours.into(), ClientOptions::new(address), &thread);
    let done = client.join().unwrap().map(|client| {
        let disk = disk(client);
        block_on(move || async move { read(&*disk, 0, 4096).await })
    });
    server.join().unwrap();
    done
}

fn an_answer(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    words(&[
        &REPLY_MAGIC.to_be_bytes(),
        &option.to_be_bytes(),
        &kind.to_be_bytes(),
        &u32::try_from(data.len()).unwrap().to_be_bytes(),
        data,
    ])
}

/// A negotiation that succeeds, with structured replies.
fn agreement(size: u64) -> Vec<u8> {
    let export = words(&[
        &info::EXPORT.to_be_bytes(),
        &size.to_be_bytes(),
        &1u16.to_be_bytes(),
    ]);
    words(&[
        &NBDMAGIC.to_be_bytes(),
        &IHAVEOPT.to_be_bytes(),
        &3u16.to_be_bytes(),
        &an_answer(option::EXTENDED_HEADERS, reply::ERR_UNSUP, &[]),
        &an_answer(option::STRUCTURED_REPLY, reply::ACK, &[]),
        &an_answer(option::SET_META_CONTEXT, reply::ERR_UNSUP, &[]),
        &an_answer(option::GO, reply::INFO, &export),
        &an_answer(option::GO, reply::ACK, &[]),
    ])
}

#[test]
fn a_hostile_server_is_not_believed() {
    let good = agreement(1 << 20);
    // In the negotiation.
    for cut in 0..good.len() {
        assert!(client_hears(good[..cut].to_vec(), vec![]).is_err(), "{cut}");
    }
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 0xff;
        // Whatever it is, it ends.
        _ = client_hears(bytes, vec![]);
    }
    assert!(client_hears(agreement(u64::MAX), vec![]).is_err());
    // In the replies. The first request has the cookie 1.
    let mut request = request(command::READ, 0, 0, 4096);
    request.cookie = 1;
    let chunk = |kind, done, length: u32, payload: &[u8]| {
        words(&[
            &chunk_header(Dialect::Structured, &request, kind, done, length),
            payload,
        ])
    };
    let at = |offset: u64| offset.to_be_bytes();
    let cases = [
        vec![0xff; 64],
        simple_reply(1, 0),
        simple_reply(2, 0),
        chunk(chunk::NONE, true, 0, &[]),
        chunk(chunk::NONE, true, 5, &[0; 5]),
        chunk(chunk::OFFSET_DATA, true, 7, &[0; 7]),
        chunk(chunk::OFFSET_DATA, true, u32::MAX, &at(0)),
        chunk(
            chunk::OFFSET_DATA,
            true,
            8 + 4097,
            &words(&[&at(0), &[1; 4097]]),
        ),
        chunk(
            chunk::OFFSET_DATA,
            true,
            8 + 4096,
            &words(&[&at(u64::MAX), &[1; 4096]]),
        ),
        chunk(
            chunk::OFFSET_DATA,
            true,
            8 + 100,
            &words(&[&at(0), &[1; 100]]),
        ),
        chunk(
            chunk::OFFSET_HOLE,
            true,
            12,
            &words(&[&at(4000), &u32::MAX.to_be_bytes()]),
        ),
        chunk(chunk::BLOCK_STATUS, true, 12, &[1; 12]),
        chunk(chunk::ERROR, true, 2, &[0; 2]),
        chunk(
            chunk::ERROR,
            true,
            6,
            &words(&[&5u32.to_be_bytes(), &9u16.to_be_bytes()]),
        ),
        chunk(77, true, 0, &[]),
    ];
    for bytes in cases {
        let done = client_hears(good.clone(), bytes.clone()).unwrap();
        let error = done.expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{bytes:x?}");
    }
    let fine = chunk(
        chunk::OFFSET_DATA,
        true,
        8 + 4096,
        &words(&[&at(0), &[1; 4096]]),
    );
    let done = client_hears(good.clone(), fine.clone()).unwrap();
    assert_eq!(done.unwrap(), [1; 4096]);
    let said = chunk(
        chunk::ERROR,
        true,
        6,
        &words(&[&12u32.to_be_bytes(), &[0; 2]]),
    );
    let done = client_hears(good.clone(), said.clone()).unwrap();
    assert_eq!(done.unwrap_err().raw_os_error(), Some(libc::ENOMEM));
}

#[test]
fn a_reply_that_comes_while_others_are_sent_gives_the_buffer_back() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        theirs.write_all(&agreement(64 << 20)).unwrap();
        let magic = &request(0, 0, 0, 0).encode(Dialect::Simple)[..4];
        let mut heard = Vec::new();
        let mut piece = [0; 512];
        while !heard.windows(4).any(|window| window == magic) {
            let count = theirs.read(&mut piece).unwrap();
            heard.extend_from_slice(&piece[..count]);
        }
        // The first one fails while the second one is still being sent.
        theirs.write_all(&simple_reply(1, 28)).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        theirs.write_all(&simple_reply(2, 0)).unwrap();
        _ = std::io::copy(&mut theirs, &mut std::io::sink());
    });
    let options = ClientOptions::new(Address::Unix("/nowhere".into()));
    let thread = thread();
    let client = Client::with_socket(ours.into(), options, &thread);
    let disk = disk(client.join().unwrap().unwrap());
    block_on(move || async move {
        let send = |len: usize, at| {
            let buf = IoBuf::from_vec(vec![7; len]);
            disk.write_vectored(buf, at, WriteFlags::default())
        };
        let done = event::join_all([send(512, 0), send(16 << 20, 4096)]).await;
        let errors: Vec<_> = done.iter().map(|(result, _)| result.is_err()).collect();
        assert_eq!(errors, [true, false]);
        for (buf, len) in done.into_iter().map(|(_, buf)| buf).zip([512, 16 << 20]) {
            assert_eq!(buf.len(), len);
            assert!(buf.into_vec().is_some_and(|bytes| bytes == vec![7; len]));
        }
    });
    server.join().unwrap();
}
