//! The private network, seen from a guest. Needs libslirp.so.0.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use super::guest::{Guest, Lease};
use super::*;

/// Runs a guest behind the network that `spec` describes.
fn with_guest<T, F>(spec: &str, run: impl FnOnce(Guest) -> F + Send + 'static) -> T
where
    T: Send + 'static,
    F: Future<Output = T> + 'static,
{
    let backend = open(&parse(spec), 1, None).expect("apt install libslirp0");
    assert_eq!(backend.capabilities().max_frame, 1514);
    let [port] = <[OpenPort; 1]>::try_from(backend.into_ports())
        .ok()
        .unwrap();
    let thread = thread();
    let result = thread.spawn_task(move || async move { run(Guest::new(port().unwrap())).await });
    let result = result.join().unwrap();
    thread.shutdown();
    result
}

#[test]
fn guest_gets_an_address() {
    let lease = with_guest("user", |mut guest| async move { guest.dhcp().await });
    let expected = Lease {
        address: "10.0.2.15/24".into(),
        router: "10.0.2.2".into(),
        dns: "10.0.2.3".into(),
    };
    assert_eq!(lease, expected);
    let lease = with_guest(
        "user,net=192.168.7.0/25,host=192.168.7.1,dns=192.168.7.9,dhcpstart=192.168.7.20,hostname=box,ipv6=on",
        |mut guest| async move { guest.dhcp().await },
    );
    let expected = Lease {
        address: "192.168.7.20/25".into(),
        router: "192.168.7.1".into(),
        dns: "192.168.7.9".into(),
    };
    assert_eq!(lease, expected);
}

/// Answers one connection with `len` bytes after it has read "GET".
fn server(len: usize) -> (u16, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 3];
        stream.read_exact(&mut request).unwrap();
        assert_eq!(&request, b"GET");
        let bytes: Vec<u8> = (0..len).map(|i| (i / 7) as u8).collect();
        stream.write_all(&bytes).unwrap();
    });
    (port, thread)
}

#[test]
fn guest_reaches_a_server_on_the_hosts_loopback() {
    let len = 300_000;
    let (port, server) = server(len);
    let answer = with_guest("user", move |mut guest| async move {
        guest.dhcp().await;
        guest.fetch([10, 0, 2, 2], port, b"GET").await
    });
    server.join().unwrap();
    assert_eq!(answer.len(), len);
    assert!(
        answer
            .iter()
            .enumerate()
            .all(|(i, byte)| *byte == (i / 7) as u8)
    );
}

#[test]
fn host_reaches_the_guest_by_a_forwarded_port() {
    let free = || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.local_addr().unwrap().port()
    };
    let port = free();
    let spec = format!("user,hostfwd=tcp:127.0.0.1:{port}-:7");
    let client = std::thread::spawn(move || {
        // The forward is there before the guest is: the connection waits.
        let mut stream = loop {
            match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
                Ok(stream) => break stream,
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(2)),
            }
        };
        stream.write_all(b"ping").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        answer
    });
    with_guest(&spec, |mut guest| async move {
        guest.dhcp().await;
        guest.echo(7).await;
    });
    assert_eq!(client.join().unwrap(), b"ping");
    // The port is free again when the network is gone.
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
}

#[test]
fn forward_of_a_port_in_use_names_it() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let error = open_error(&format!("user,hostfwd=tcp:127.0.0.1:{port}-:22"), 1, None);
    assert_eq!(
        error,
        format!("cannot forward hostfwd=tcp:127.0.0.1:{port}-:22: the port of the host is in use")
    );
}

#[test]
fn frames_that_nobody_takes_are_bounded() {
    let backend = open(&parse("user"), 1, None).unwrap();
    let [port] = <[OpenPort; 1]>::try_from(backend.into_ports())
        .ok()
        .unwrap();
    let thread = thread();
    let received = thread.spawn_task(move || async move {
        let port = port().unwrap();
        let ask = arp_request([10, 0, 2, 2]);
        for _ in 0..3000 {
            port.send(&[VolatileSlice::from(&mut ask.clone()[..])])
                .unwrap();
        }
        let mut frame = [0; 100];
        let mut received = 0;
        while port.receive(&[VolatileSlice::from(&mut frame[..])]).is_ok() {
            received += 1;
        }
        received
    });
    assert_eq!(received.join().unwrap(), 1024);
}

fn arp_request(target: [u8; 4]) -> Vec<u8> {
    let mac = [0x52, 0x54, 0, 1, 2, 3];
    let mut frame = [&[0xff; 6][..], &mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &mac].concat();
    frame.extend([10, 0, 2, 15, 0, 0, 0, 0, 0, 0]);
    frame.extend(target);
    frame
}

#[test]
fn idle_network_sleeps() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let free = listener.local_addr().unwrap().port();
    drop(listener);
    let backend = open(
        &parse(&format!("user,hostfwd=tcp:127.0.0.1:{free}-:22")),
        1,
        None,
    );
    let [port] = <[OpenPort; 1]>::try_from(backend.unwrap().into_ports())
        .ok()
        .unwrap();
    let thread = thread();
    let (sender, receiver) = event::oneshot();
    let _guest = thread.spawn_task(move || async move {
        let port = port().unwrap();
        Guest::new(std::rc::Rc::clone(&port)).dhcp().await;
        port.send(&[VolatileSlice::from(&mut arp_request([10, 0, 2, 2])[..])])
            .unwrap();
        // The network stays while nobody looks.
        sender.send(());
        std::future::pending::<()>().await;
        drop(port);
    });
    receiver.wait().unwrap();
    let sleeps = || {
        let path = format!("/proc/self/task/{}/status", thread.tid());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse::<u32>().unwrap()
    };
    std::thread::sleep(std::time::Duration::from_millis(50));
    let before = sleeps();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(sleeps(), before);
}
