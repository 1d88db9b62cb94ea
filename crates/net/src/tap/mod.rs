//! Taps: network interfaces of the host whose other end is a descriptor.
//!
//! Every frame has a struct virtio_net_hdr in front (Linux: tun with IFF_VNET_HDR), so checksums
//! and segmentation are left to whoever needs them, at the end of the path at the latest.

mod sys;

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;

use crate::fd::FdPort;
use crate::{Backend, Capabilities, Control, NetError, Offloads, OpenPort, Port, TapSpec};
use sys::flags;

/// The largest IPv4 or IPv6 packet, an Ethernet header with two VLAN tags, and the virtio header.
const MAX_FRAME: usize = 65535 + 14 + 8 + crate::VNET_HEADER;

pub(crate) fn open(spec: &TapSpec, queues: u16) -> Result<Backend, NetError> {
    let (fds, ifname) = if spec.fd.is_empty() {
        open_by_name(spec.ifname.as_deref().unwrap_or(""), queues)?
    } else {
        take_fds(&spec.fd, queues)?
    };
    let first = &fds[0];
    let fail = |what| {
        let ifname = ifname.clone();
        move |source| NetError::Tap {
            what,
            ifname,
            source,
        }
    };
    let current = sys::interface(first).map_err(fail("ask for the flags"))?.1;
    let vnet_header = current & flags::VNET_HDR != 0;
    if vnet_header {
        for fd in &fds {
            let size = crate::VNET_HEADER as i32;
            sys::set_vnet_header_size(fd, size).map_err(fail("set the header size"))?;
        }
    }
    let offloads = if vnet_header {
        offloads(first)
    } else {
        Offloads::default()
    };
    match sys::bring_up(&ifname) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            log::warn!(
                "tap {ifname} is down and we may not change that: `ip link set {ifname} up`"
            );
        }
        Err(error) => return Err(fail("bring up the interface")(error)),
    }
    let controls = fds.iter().map(OwnedFd::try_clone);
    let control = TapControl {
        fds: controls
            .collect::<io::Result<_>>()
            .map_err(fail("duplicate the descriptor"))?,
        attached: Mutex::new(fds.len()),
        // Interfaces that somebody else has opened for us may be set up as somebody else likes.
        vnet_header,
    };
    control
        .set_offloads(Offloads::default())
        .map_err(fail("set the offloads"))?;
    control
        .set_queue_pairs(1)
        .map_err(fail("detach the spare queues"))?;
    let ports = fds.into_iter().map(|fd| -> OpenPort {
        Box::new(move || FdPort::new(fd).map(|port| Rc::new(port) as Rc<dyn Port>))
    });
    let ports: Vec<OpenPort> = ports.collect();
    Ok(Backend::new(
        Capabilities {
            vnet_header,
            offloads,
            queue_pairs: queues,
            max_frame: MAX_FRAME,
        },
        Arc::new(control),
        ports,
    ))
}

fn open_by_name(ifname: &str, queues: u16) -> Result<(Vec<OwnedFd>, String), NetError> {
    let multi_queue = if queues > 1 { flags::MULTI_QUEUE } else { 0 };
    let wanted = flags::TAP | flags::NO_PI | flags::VNET_HDR;
    let mut name = ifname.to_owned();
    let mut fds = Vec::new();
    for _ in 0..queues {
        let fd = sys::open_tun().map_err(NetError::NoTun)?;
        let attached = match sys::attach(&fd, &name, wanted | multi_queue) {
            // The interface exists and was created with multi_queue.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && queues == 1 => {
                sys::attach(&fd, &name, wanted | flags::MULTI_QUEUE)
            }
            attached => attached,
        };
        name = attached.map_err(|source| attach_error(&name, queues, source))?;
        fds.push(fd);
    }
    Ok((fds, name))
}

fn attach_error(ifname: &str, queues: u16, source: io::Error) -> NetError {
    let ifname = if ifname.is_empty() { "tap0" } else { ifname }.to_owned();
    let multi_queue = if queues > 1 { " multi_queue" } else { "" };
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM | Errno::EACCES) => NetError::TapPermission {
            ifname,
            multi_queue,
            source,
        },
        Some(Errno::EBUSY) => NetError::TapBusy { ifname },
        Some(Errno::EINVAL | Errno::E2BIG) => NetError::TapKind { ifname, queues },
        _ => NetError::Tap {
            what: "attach to a queue",
            ifname,
            source,
        },
    }
}

fn take_fds(numbers: &[u32], queues: u16) -> Result<(Vec<OwnedFd>, String), NetError> {
    if numbers.len() != usize::from(queues) {
        return Err(NetError::Bad {
            name: "queues",
            value: queues.to_string(),
            why: format!("{} descriptors were given", numbers.len()),
        });
    }
    let mut fds = Vec::new();
    let mut name = String::new();
    for (place, &number) in numbers.iter().enumerate() {
        let bad = |why: String| NetError::TapFd { fd: number, why };
        if numbers[..place].contains(&number) {
            return Err(bad("it was given twice".into()));
        }
        let fd = sys::take_fd(number).map_err(|error| bad(error.to_string()))?;
        let (ifname, found) = sys::interface(&fd).map_err(|error| bad(error.to_string()))?;
        if found & flags::TAP == 0 || found & flags::NO_PI == 0 {
            return Err(bad(format!(
                "{ifname} must be opened with IFF_TAP and IFF_NO_PI"
            )));
        }
        if place != 0 && ifname != name {
            return Err(bad(format!("it is of {ifname}, not of {name}")));
        }
        name = ifname;
        fds.push(fd);
    }
    Ok((fds, name))
}

/// What the kernel takes over for the guest: everything, but for what is newer than the kernel.
fn offloads(fd: &OwnedFd) -> Offloads {
    let all = Offloads {
        csum: true,
        tso4: true,
        tso6: true,
        ecn: true,
        uso: true,
    };
    let without_uso = Offloads { uso: false, ..all };
    let works = |offloads: &Offloads| sys::set_offloads(fd, *offloads).is_ok();
    [all, without_uso]
        .into_iter()
        .find(works)
        .unwrap_or_default()
}

struct TapControl {
    fds: Vec<OwnedFd>,
    /// The first so many queues are attached.
    attached: Mutex<usize>,
    vnet_header: bool,
}

impl Control for TapControl {
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        match self.fds.first() {
            Some(fd) if self.vnet_header => sys::set_offloads(fd, offloads),
            _ => Ok(()),
        }
    }

    fn set_queue_pairs(&self, pairs: u16) -> io::Result<()> {
        let wanted = usize::from(pairs).min(self.fds.len());
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        while *attached != wanted {
            if *attached < wanted {
                sys::set_queue(&self.fds[*attached], true)?;
                *attached += 1;
            } else {
                sys::set_queue(&self.fds[*attached - 1], false)?;
                *attached -= 1;
            }
        }
        Ok(())
    }
}
