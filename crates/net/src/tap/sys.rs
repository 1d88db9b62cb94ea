//! Requests to the tun driver and to network interfaces (Linux: if_tun.h, netdevice(7)).
#![allow(
    unsafe_code,
    reason = "ioctl takes structures by address, and descriptors come from outside by number"
)]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::Offloads;

/// Flags of an interface of the tun driver.
pub(super) mod flags {
    pub const TAP: i16 = libc::IFF_TAP as i16;
    pub const NO_PI: i16 = libc::IFF_NO_PI as i16;
    pub const VNET_HDR: i16 = libc::IFF_VNET_HDR as i16;
    pub const MULTI_QUEUE: i16 = libc::IFF_MULTI_QUEUE as i16;
}

const TUN_F_CSUM: u32 = 0x01;
const TUN_F_TSO4: u32 = 0x02;
const TUN_F_TSO6: u32 = 0x04;
const TUN_F_TSO_ECN: u32 = 0x08;
/// USO4 and USO6, which go together (Linux 6.2).
const TUN_F_USO: u32 = 0x60;

/// Calls ioctl with the address of `argument`.
///
/// # Safety
/// `request` reads and writes at most a `T` there, and any bytes make a `T`.
unsafe fn ioctl<T>(fd: &OwnedFd, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
    let argument: *mut T = argument;
    // SAFETY: the pointer is good for a `T`, which is enough as the caller says.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) } {
        result if result < 0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn empty_request() -> libc::ifreq {
    // SAFETY: a structure of integers, arrays and pointers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

fn request_for(ifname: &str) -> libc::ifreq {
    let mut request = empty_request();
    // The last byte stays zero.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(ifname.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn flags_of(request: &libc::ifreq) -> i16 {
    // SAFETY: the kernel, or zeroing, has filled the union, and any bytes make an integer.
    unsafe { request.ifr_ifru.ifru_flags }
}

fn name_of(request: &libc::ifreq) -> String {
    let bytes = request.ifr_name.iter().map(|c| *c as u8);
    let bytes: Vec<u8> = bytes.take_while(|c| *c != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) fn open_tun() -> io::Result<OwnedFd> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    Ok(file.into())
}

/// Makes `fd` a queue of the interface `ifname` (or of one that the kernel names) and returns
/// its name.
pub(super) fn attach(fd: &OwnedFd, ifname: &str, flags: i16) -> io::Result<String> {
    let mut request = request_for(ifname);
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: TUNSETIFF reads and writes a struct ifreq.
    unsafe { ioctl(fd, libc::TUNSETIFF, &mut request) }?;
    Ok(name_of(&request))
}

/// Name and flags of the interface that `fd` is a queue of.
pub(super) fn interface(fd: &OwnedFd) -> io::Result<(String, i16)> {
    let mut request = empty_request();
    // SAFETY: TUNGETIFF writes a struct ifreq.
    unsafe { ioctl(fd, libc::TUNGETIFF, &mut request) }?;
    Ok((name_of(&request), flags_of(&request)))
}

pub(super) fn set_vnet_header_size(fd: &OwnedFd, size: i32) -> io::Result<()> {
    let mut size: libc::c_int = size;
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    unsafe { ioctl(fd, libc::TUNSETVNETHDRSZ, &mut size) }
}

pub(super) fn set_offloads(fd: &OwnedFd, offloads: Offloads) -> io::Result<()> {
    let mut bits = 0;
    if offloads.csum {
        for (on, bit) in [
            (true, TUN_F_CSUM),
            (offloads.tso4, TUN_F_TSO4),
            (offloads.tso6, TUN_F_TSO6),
            // The kernel takes congestion notification only with segmentation.
            (
                offloads.ecn && (offloads.tso4 || offloads.tso6),
                TUN_F_TSO_ECN,
            ),
            (offloads.uso, TUN_F_USO),
        ] {
            if on {
                bits |= bit;
            }
        }
    }
    let bits = libc::c_ulong::from(bits);
    // SAFETY: TUNSETOFFLOAD takes its argument as a number.
    match unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, bits) } {
        result if result < 0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Has the interface use this queue, or not use it.
pub(super) fn set_queue(fd: &OwnedFd, attached: bool) -> io::Result<()> {
    let mut request = empty_request();
    request.ifr_ifru.ifru_flags = if attached {
        libc::IFF_ATTACH_QUEUE as i16
    } else {
        libc::IFF_DETACH_QUEUE as i16
    };
    // SAFETY: TUNSETQUEUE reads a struct ifreq.
    unsafe { ioctl(fd, libc::TUNSETQUEUE, &mut request) }
}

/// Sets an interface up if it is not.
pub(super) fn bring_up(ifname: &str) -> io::Result<()> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut request = request_for(ifname);
    // SAFETY: SIOCGIFFLAGS reads and writes a struct ifreq.
    unsafe { ioctl(&socket, libc::SIOCGIFFLAGS as libc::Ioctl, &mut request) }?;
    let flags = flags_of(&request);
    let up = flags | libc::IFF_UP as i16;
    if up == flags {
        return Ok(());
    }
    request.ifr_ifru.ifru_flags = up;
    // SAFETY: SIOCSIFFLAGS reads a struct ifreq.
    unsafe { ioctl(&socket, libc::SIOCSIFFLAGS as libc::Ioctl, &mut request) }
}

/// Takes over a descriptor that our parent has opened for us.
pub(super) fn take_fd(number: u32) -> io::Result<OwnedFd> {
    let number = RawFd::try_from(number)
        .ok()
        // Not the standard streams, which the rest of the process uses.
        .filter(|number| *number > 2)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: F_SETFD with an integer touches no memory. It also tells whether the number is open.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut request = empty_request();
    let pointer: *mut libc::ifreq = &mut request;
    // SAFETY: TUNGETIFF writes a struct ifreq. Other descriptors do not know the request.
    if unsafe { libc::ioctl(number, libc::TUNGETIFF, pointer) } < 0 {
        return Err(io::Error::other("it is open, but not a tap"));
    }
    // SAFETY: it is open, and it is a tap: nothing in this process opens one but `open_tun`, whose
    // descriptors the user cannot know, so that it was passed to us by our parent to be ours.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
