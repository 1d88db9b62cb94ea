//! Where servers are: addresses, and the URIs of the NetworkBlockDevice project's doc/uri.md.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use crate::NbdError;
use crate::protocol::PORT;

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A socket in the file system.
    Unix(PathBuf),
    /// A host and a port.
    Tcp {
        /// Its name or its number.
        host: String,
        /// The port; 0, to listen on: any that is free.
        port: u16,
    },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
        }
    }
}

fn wrong(given: &str, why: impl Into<String>) -> NbdError {
    NbdError::Address {
        given: given.to_owned(),
        why: why.into(),
    }
}

/// `HOST:PORT`, `[HOST]:PORT`, or either without a port.
fn host_and_port(text: &str) -> Result<(String, u16), String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or("a ] is missing")?;
            (host, rest.strip_prefix(':'))
        }
        None => match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = match port {
        None | Some("") => PORT,
        Some(port) => port
            .parse()
            .map_err(|_| format!("{port:?} is no port (0 to 65535)"))?,
    };
    Ok((host.to_owned(), port))
}

impl FromStr for Address {
    type Err = NbdError;

    /// `unix:PATH` or `tcp:HOST:PORT`; without a port, 10809.
    fn from_str(text: &str) -> Result<Self, NbdError> {
        match text.split_once(':') {
            Some(("unix", "")) => Err(wrong(text, "the path of the socket is missing")),
            Some(("unix", path)) => Ok(Self::Unix(path.into())),
            Some(("tcp", rest)) => {
                let (host, port) = host_and_port(rest).map_err(|why| wrong(text, why))?;
                Ok(Self::Tcp { host, port })
            }
            _ => Err(wrong(text, "say unix:PATH or tcp:HOST:PORT")),
        }
    }
}

impl Address {
    /// Whether it is on the network.
    #[must_use]
    pub fn is_tcp(&self) -> bool {
        matches!(self, Self::Tcp { .. })
    }

    /// Connects; it may take `within`. Blocks.
    pub(crate) fn connect(&self, within: Duration) -> io::Result<OwnedFd> {
        match self {
            Self::Unix(path) => Ok(UnixStream::connect(path)?.into()),
            Self::Tcp { host, port } => {
                let mut last = io::ErrorKind::AddrNotAvailable.into();
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, within) {
                        Ok(stream) => {
                            tune(&stream);
                            return Ok(stream.into());
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }

    /// Listens; the address with the port that it has got. Blocks while a name is looked up.
    pub(crate) fn listen(&self) -> io::Result<(Listener, Self)> {
        match self {
            Self::Unix(path) => {
                remove_stale(path);
                let listener = UnixListener::bind(path)?;
                Ok((Listener::Unix(listener), self.clone()))
            }
            Self::Tcp { host, port } => {
                // Nothing before the colon is every address.
                let all = if host.is_empty() { "::" } else { host };
                let listener = TcpListener::bind((all, *port))?;
                let port = listener.local_addr()?.port();
                let host = host.clone();
                Ok((Listener::Tcp(listener), Self::Tcp { host, port }))
            }
        }
    }
}

/// A socket on which a server listens.
pub(crate) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// Another descriptor of the socket.
    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Unix(listener) => listener.try_clone().map(OwnedFd::from),
            Self::Tcp(listener) => listener.try_clone().map(OwnedFd::from),
        }
    }

    /// Accepts a client, if there is one.
    pub(crate) fn accept(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Unix(listener) => Ok(listener.accept()?.0.into()),
            Self::Tcp(listener) => {
                let (client, _) = listener.accept()?;
                tune(&client);
                Ok(client.into())
            }
        }
    }
}

/// Removes a socket on which nobody listens any more.
fn remove_stale(path: &Path) {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if is_socket && UnixStream::connect(path).is_err_and(|error| refused(&error)) {
        // Where it cannot be removed, binding says so.
        _ = std::fs::remove_file(path);
    }
}

/// Replies go out at once, and a host that has vanished is noticed.
fn tune(stream: &impl std::os::fd::AsFd) {
    // What a socket does not have it does not need.
    _ = setsockopt(stream, sockopt::TcpNoDelay, &true);
    _ = setsockopt(stream, sockopt::KeepAlive, &true);
    // Seconds: of silence, then between questions; and how many of these go unanswered.
    _ = setsockopt(stream, sockopt::TcpKeepIdle, &30);
    _ = setsockopt(stream, sockopt::TcpKeepInterval, &10);
    _ = setsockopt(stream, sockopt::TcpKeepCount, &6);
}

/// What an NBD URI names: `nbd://HOST:PORT/EXPORT` or `nbd+unix:///EXPORT?socket=PATH`; `nbds` in
/// place of `nbd` demands TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri {
    /// The server.
    pub address: Address,
    /// The export.
    pub export: String,
    /// TLS is demanded.
    pub tls: bool,
    /// The name in the server's certificate, when it is not the host's.
    pub tls_hostname: Option<String>,
    /// Whether the server's certificate is verified.
    pub tls_verify_peer: bool,
    /// Directory of the client's credentials. Libnbd's word; the standard has none for it.
    pub tls_certificates: Option<PathBuf>,
}

impl Uri {
    /// Whether a text is meant as such a URI.
    #[must_use]
    pub fn is_uri(text: &str) -> bool {
        let scheme = text.split_once(':').map(|(scheme, _)| scheme);
        matches!(scheme, Some("nbd" | "nbds" | "nbd+unix" | "nbds+unix"))
    }
}

impl FromStr for Uri {
    type Err = NbdError;

    fn from_str(text: &str) -> Result<Self, NbdError> {
        let fail = |why: String| wrong(text, why);
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(wrong(text, "say nbd://HOST:PORT/EXPORT"));
        };
        let (tls, unix) = match scheme {
            "nbd" => (false, false),
            "nbds" => (true, false),
            "nbd+unix" => (false, true),
            "nbds+unix" => (true, true),
            _ => {
                return Err(wrong(
                    text,
                    "the scheme is nbd, nbds, nbd+unix or nbds+unix",
                ));
            }
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let mut socket = None;
        let (mut tls_hostname, mut tls_verify_peer, mut tls_certificates) = (None, true, None);
        let path_of = |value| PathBuf::from(OsString::from_vec(value));
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value).map_err(fail)?;
            match key {
                "socket" if unix => socket = Some(path_of(value)),
                "tls-certificates" => tls_certificates = Some(path_of(value)),
                "tls-hostname" => tls_hostname = Some(text_of(value).map_err(fail)?),
                "tls-verify-peer" => tls_verify_peer = value != b"0",
                "tls-type" if value == b"x509" => (),
                "tls-type" => return Err(fail("of TLS, only x509 certificates are there".into())),
                _ => return Err(fail(format!("{key:?} is not known"))),
            }
        }
        let address = if unix {
            let missing = || fail("the query ?socket=PATH is missing".into());
            Address::Unix(socket.ok_or_else(missing)?)
        } else {
            let after_user = authority
                .rsplit_once('@')
                .map_or(authority, |(_, host)| host);
            let (host, port) = host_and_port(after_user).map_err(fail)?;
            if host.is_empty() {
                return Err(fail("the host is missing".into()));
            }
            Address::Tcp { host, port }
        };
        Ok(Self {
            address,
            export: decode(path).and_then(text_of).map_err(fail)?,
            tls,
            tls_hostname,
            tls_verify_peer,
            tls_certificates,
        })
    }
}

/// Undoes the percent encoding (RFC 3986 section 2.1).
fn decode(text: &str) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        match (digit(), digit()) {
            (Some(high), Some(low)) => out.push((high * 16 + low) as u8),
            _ => return Err("a % is not followed by two hexadecimal digits".into()),
        }
    }
    Ok(out)
}

fn text_of(bytes: Vec<u8>) -> Result<String, String> {
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp {
            host: host.into(),
            port,
        }
    }

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for (text, address) in [
            ("unix:/run/a b", Address::Unix("/run/a b".into())),
            ("tcp:localhost:10", tcp("localhost", 10)),
            ("tcp:[::1]:0", tcp("::1", 0)),
        ] {
            assert_eq!(text.parse::<Address>().unwrap(), address);
            assert_eq!(address.to_string(), text);
        }
        assert_eq!("tcp:h".parse::<Address>().unwrap(), tcp("h", PORT));
        for bad in ["", "unix:", "/run/x", "tcp:h:x", "tcp:[::1", "tcp:h:70000"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn uris_are_those_of_the_standard() {
        let uri = |text: &str| text.parse::<Uri>().unwrap();
        let disk = uri("nbd://example.com/disk");
        assert_eq!(disk.address, tcp("example.com", PORT));
        assert_eq!(disk.export, "disk");
        assert!(!disk.tls && disk.tls_verify_peer);
        assert_eq!(uri("nbd://example.com").export, "");
        assert_eq!(uri("nbd://example.com//disk").export, "/disk");
        assert_eq!(uri("nbds://[::1]:1/hello%20world").export, "hello world");
        let unix = uri("nbds+unix:///e?socket=%2ftmp%2fx&tls-hostname=h&tls-certificates=/c");
        assert_eq!(unix.tls_certificates, Some("/c".into()));
        assert_eq!(unix.address, Address::Unix("/tmp/x".into()));
        assert_eq!(unix.tls_hostname.as_deref(), Some("h"));
        assert!(unix.tls);
        for bad in [
            "nbd:///x",
            "nbd+unix:///x",
            "nbd://h/%f",
            "nbd://h/?x=1",
            "http://h/",
            "nbd://h/%ff",
        ] {
            assert!(bad.parse::<Uri>().is_err(), "{bad}");
        }
        assert!(Uri::is_uri("nbd+unix:///?socket=x") && !Uri::is_uri("nbd.img"));
    }
}
