//! A web server on the loopback that gives one file to whoever asks.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::thread;

/// Serves `body` at every path of a free port of 127.0.0.1, which is returned, until the process
/// ends.
///
/// # Errors
/// No socket is to be had.
pub fn serve(body: Vec<u8>) -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let body = body.clone();
            thread::spawn(move || {
                let Ok(reader) = stream.try_clone() else {
                    return;
                };
                // The request ends in an empty line (RFC 9112 section 2.1).
                let _ = BufReader::new(reader)
                    .lines()
                    .map_while(Result::ok)
                    .find(String::is_empty);
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream
                    .write_all(head.as_bytes())
                    .and_then(|()| stream.write_all(&body));
            });
        }
    });
    Ok(port)
}

/// `length` bytes that look random and are always the same.
#[must_use]
pub fn noise(length: usize) -> Vec<u8> {
    // xorshift64: any full-period generator does.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn the_file_comes_whole() {
        let body = noise(100_000);
        let port = serve(body.clone()).unwrap();
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        write!(stream, "GET /x HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200 "));
        assert!(answer.ends_with(&body));
    }
}
