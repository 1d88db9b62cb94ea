//! User-mode networking: a private network whose host, libslirp, turns the guest's connections
//! into plain sockets of this process.
//!
//! ```text
//!   card ── send ──▶ [ffi::Slirp] ── sockets ──▶ the world
//!        ◀─ frames ─┘     ▲ fill, poll
//!                         └─ [pump] a task: waits for sockets (one epoll set) and timers
//! ```

mod config;
mod epoll;
mod ffi;
mod pump;

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use crate::{Backend, Capabilities, Control, NetError, Offloads, OpenPort, Port, UserSpec};
use config::Config;
use ffi::Slirp;
use pump::UserPort;

pub(crate) fn open(spec: &UserSpec, queues: u16, mtu: Option<u16>) -> Result<Backend, NetError> {
    if queues != 1 {
        return Err(NetError::Bad {
            name: "queues",
            value: queues.to_string(),
            why: "backend=user has one pair of queues".into(),
        });
    }
    let config = Config::new(spec, mtu)?;
    let slirp = Slirp::new(&config)?;
    for forward in &config.forwards {
        slirp
            .add_forward(forward, config.dhcp_start)
            .map_err(|source| NetError::Forward {
                forward: *forward,
                hint: match source.kind() {
                    io::ErrorKind::AddrInUse => "the port of the host is in use",
                    io::ErrorKind::PermissionDenied => {
                        "ports below 1024 need CAP_NET_BIND_SERVICE; choose a higher one"
                    }
                    io::ErrorKind::AddrNotAvailable => "the host does not have this address",
                    _ => "the host refuses",
                },
                source,
            })?;
    }
    let port: OpenPort =
        Box::new(move || UserPort::new(slirp).map(|port| Rc::new(port) as Rc<dyn Port>));
    Ok(Backend::new(
        Capabilities {
            vnet_header: false,
            offloads: Offloads::default(),
            queue_pairs: 1,
            max_frame: config.max_frame(),
        },
        Arc::new(NoControl),
        vec![port],
    ))
}

/// There are no offloads and no other queues.
struct NoControl;

impl Control for NoControl {
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        if offloads == Offloads::default() {
            Ok(())
        } else {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    fn set_queue_pairs(&self, pairs: u16) -> io::Result<()> {
        if pairs == 1 {
            Ok(())
        } else {
            Err(io::ErrorKind::Unsupported.into())
        }
    }
}
