//! libslirp's C interface (libslirp.h, versions 4.1 and later), as far as it is used here.
//!
//! The library is loaded when the first network of this kind is made, and then stays. Its
//! structures have the layout of configuration version 1, which every later version reads.
#![allow(
    unsafe_code,
    reason = "the only door to libslirp, a C library that is loaded at run time"
)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::RawFd;
use std::ptr::{self, NonNull};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use libc::{in_addr, in6_addr};
use libloading::Library;

use super::config::Config;
use crate::{HostForward, NetError};

const LIBRARY: &str = "libslirp.so.0";

/// Frames towards the guest that wait at most; more are dropped, as a network does.
const MAX_FRAMES: usize = 1024;

/// Events of a descriptor: SLIRP_POLL_*.
pub(super) mod event {
    pub const IN: u32 = 1;
    pub const OUT: u32 = 1 << 1;
    pub const PRI: u32 = 1 << 2;
    pub const ERR: u32 = 1 << 3;
    pub const HUP: u32 = 1 << 4;
}

/// struct Slirp, of which nothing is known.
#[repr(C)]
struct Opaque {
    _private: [u8; 0],
}

type TimerCb = unsafe extern "C" fn(*mut c_void);
type AddPollCb = unsafe extern "C" fn(c_int, c_int, *mut c_void) -> c_int;
type GetREventsCb = unsafe extern "C" fn(c_int, *mut c_void) -> c_int;

/// struct SlirpCb before configuration version 4.
#[repr(C)]
struct Callbacks {
    send_packet: unsafe extern "C" fn(*const c_void, usize, *mut c_void) -> isize,
    guest_error: unsafe extern "C" fn(*const c_char, *mut c_void),
    clock_get_ns: unsafe extern "C" fn(*mut c_void) -> i64,
    timer_new: unsafe extern "C" fn(TimerCb, *mut c_void, *mut c_void) -> *mut c_void,
    timer_free: unsafe extern "C" fn(*mut c_void, *mut c_void),
    timer_mod: unsafe extern "C" fn(*mut c_void, i64, *mut c_void),
    register_poll_fd: unsafe extern "C" fn(c_int, *mut c_void),
    unregister_poll_fd: unsafe extern "C" fn(c_int, *mut c_void),
    notify: unsafe extern "C" fn(*mut c_void),
}

static CALLBACKS: Callbacks = Callbacks {
    send_packet,
    guest_error,
    clock_get_ns,
    timer_new,
    timer_free,
    timer_mod,
    register_poll_fd,
    unregister_poll_fd,
    notify,
};

/// struct SlirpConfig, version 1.
#[repr(C)]
struct RawConfig {
    version: u32,
    restricted: c_int,
    in_enabled: bool,
    vnetwork: in_addr,
    vnetmask: in_addr,
    vhost: in_addr,
    in6_enabled: bool,
    vprefix_addr6: in6_addr,
    vprefix_len: u8,
    vhost6: in6_addr,
    vhostname: *const c_char,
    tftp_server_name: *const c_char,
    tftp_path: *const c_char,
    bootfile: *const c_char,
    vdhcp_start: in_addr,
    vnameserver: in_addr,
    vnameserver6: in6_addr,
    vdnssearch: *const *const c_char,
    vdomainname: *const c_char,
    if_mtu: usize,
    if_mru: usize,
    disable_host_loopback: bool,
    enable_emu: bool,
}

/// The functions of the library.
struct Api {
    new: unsafe extern "C" fn(*const RawConfig, *const Callbacks, *mut c_void) -> *mut Opaque,
    cleanup: unsafe extern "C" fn(*mut Opaque),
    pollfds_fill: unsafe extern "C" fn(*mut Opaque, *mut u32, AddPollCb, *mut c_void),
    pollfds_poll: unsafe extern "C" fn(*mut Opaque, c_int, GetREventsCb, *mut c_void),
    input: unsafe extern "C" fn(*mut Opaque, *const u8, c_int),
    add_hostfwd: unsafe extern "C" fn(*mut Opaque, c_int, in_addr, c_int, in_addr, c_int) -> c_int,
    version_string: unsafe extern "C" fn() -> *const c_char,
    /// Keeps the functions there.
    _library: Library,
}

impl Api {
    fn load() -> Result<Self, libloading::Error> {
        macro_rules! functions {
            ($library:ident, $($name:ident = $symbol:literal,)*) => {
                Self {
                    // SAFETY: the library's header declares each function with this type, for
                    // all versions with the library's version number 0.
                    $($name: *unsafe { $library.get($symbol) }?,)*
                    _library: $library,
                }
            };
        }
        // SAFETY: the library, and glib on which it depends, have initialisers without conditions.
        let library = unsafe { Library::new(LIBRARY) }?;
        Ok(functions! {
            library,
            new = b"slirp_new\0",
            cleanup = b"slirp_cleanup\0",
            pollfds_fill = b"slirp_pollfds_fill\0",
            pollfds_poll = b"slirp_pollfds_poll\0",
            input = b"slirp_input\0",
            add_hostfwd = b"slirp_add_hostfwd\0",
            version_string = b"slirp_version_string\0",
        })
    }
}

fn api() -> Result<&'static Api, NetError> {
    static API: OnceLock<Api> = OnceLock::new();
    match API.get() {
        Some(api) => Ok(api),
        None => {
            let loaded = Api::load().map_err(NetError::NoLibrary)?;
            Ok(API.get_or_init(|| loaded))
        }
    }
}

/// The library has variables that all its networks share (its clock, the name server that it read
/// last), so they take turns. Callbacks never call the library.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone, Copy)]
struct Timer {
    callback: TimerCb,
    argument: *mut c_void,
    /// Milliseconds of the library's clock.
    deadline: Option<i64>,
}

/// Our side of the library's callbacks.
struct Host {
    epoch: Instant,
    frames: RefCell<VecDeque<Vec<u8>>>,
    /// Buffers to be used again.
    spare: RefCell<Vec<Vec<u8>>>,
    dropped: Cell<u64>,
    /// The library knows a timer by its place here plus 1.
    timers: RefCell<Vec<Option<Timer>>>,
    /// Descriptors that the library is about to close.
    closing: RefCell<Vec<RawFd>>,
}

impl Host {
    fn now_ms(&self) -> i64 {
        i64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(i64::MAX)
    }
}

/// One network of the library.
pub(super) struct Slirp {
    api: &'static Api,
    raw: NonNull<Opaque>,
    /// From `Box::into_raw`, freed on drop.
    host: NonNull<Host>,
}

// SAFETY: the library has no state of a thread and needs no particular one; what networks share is
// guarded by `turn`. Everything else belongs to this value alone, which is not `Sync`.
unsafe impl Send for Slirp {}

fn c_address(address: Ipv4Addr) -> in_addr {
    in_addr {
        s_addr: u32::from_ne_bytes(address.octets()),
    }
}

/// Address `host` of fec0::/64.
fn c_address6(host: u8) -> in6_addr {
    let mut s6_addr = [0; 16];
    (s6_addr[0], s6_addr[1], s6_addr[15]) = (0xfe, 0xc0, host);
    in6_addr { s6_addr }
}

impl Slirp {
    pub fn new(config: &Config) -> Result<Self, NetError> {
        let api = api()?;
        let host = Box::new(Host {
            epoch: Instant::now(),
            frames: RefCell::default(),
            spare: RefCell::default(),
            dropped: Cell::new(0),
            timers: RefCell::default(),
            closing: RefCell::default(),
        });
        // SAFETY: a box is not null.
        let host = unsafe { NonNull::new_unchecked(Box::into_raw(host)) };
        let hostname = config.hostname.as_ref();
        let raw_config = RawConfig {
            version: 1,
            restricted: config.restrict.into(),
            in_enabled: true,
            vnetwork: c_address(config.network.address),
            vnetmask: c_address(config.network.mask()),
            vhost: c_address(config.host),
            in6_enabled: config.ipv6,
            vprefix_addr6: c_address6(0),
            vprefix_len: 64,
            vhost6: c_address6(2),
            vhostname: hostname.map_or(ptr::null(), |name| name.as_ptr()),
            tftp_server_name: ptr::null(),
            tftp_path: ptr::null(),
            bootfile: ptr::null(),
            vdhcp_start: c_address(config.dhcp_start),
            vnameserver: c_address(config.dns),
            vnameserver6: c_address6(3),
            vdnssearch: ptr::null(),
            vdomainname: ptr::null(),
            if_mtu: config.mtu.into(),
            if_mru: config.mtu.into(),
            disable_host_loopback: false,
            enable_emu: false,
        };
        let raw = {
            let _turn = turn();
            // SAFETY: the configuration has the layout of its version, and the library copies what
            // it needs of it; the callbacks are static; `host` lives until after `cleanup`.
            unsafe { (api.new)(&raw_config, &CALLBACKS, host.as_ptr().cast()) }
        };
        match NonNull::new(raw) {
            Some(raw) => Ok(Self { api, raw, host }),
            None => {
                // SAFETY: made above, and the library has not kept it.
                drop(unsafe { Box::from_raw(host.as_ptr()) });
                // SAFETY: the library returns a static string.
                let version = unsafe { CStr::from_ptr((api.version_string)()) };
                Err(NetError::Refused(version.to_string_lossy().into_owned()))
            }
        }
    }

    fn host(&self) -> &Host {
        // SAFETY: it lives as long as `self`, and only shared references are ever made.
        unsafe { self.host.as_ref() }
    }

    /// Listens on a port of the host.
    pub fn add_forward(&self, forward: &HostForward, guest: Ipv4Addr) -> io::Result<()> {
        let _turn = turn();
        // SAFETY: the network is alive; the other arguments are numbers.
        let result = unsafe {
            (self.api.add_hostfwd)(
                self.raw.as_ptr(),
                forward.udp.into(),
                c_address(forward.host),
                forward.host_port.into(),
                c_address(forward.guest.unwrap_or(guest)),
                forward.guest_port.into(),
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Gives the network a frame of the guest.
    pub fn input(&self, frame: &[u8]) {
        let Ok(len) = c_int::try_from(frame.len()) else {
            return;
        };
        let _turn = turn();
        // SAFETY: the network is alive, and the library copies the frame.
        unsafe { (self.api.input)(self.raw.as_ptr(), frame.as_ptr(), len) }
    }

    /// Which descriptors to wait for, with [`event`]s, and for how long.
    pub fn fill(&self, wanted: &mut Vec<(RawFd, u32)>) -> Option<Duration> {
        wanted.clear();
        let mut timeout = u32::MAX;
        let pointer: *mut Vec<(RawFd, u32)> = wanted;
        {
            let _turn = turn();
            // SAFETY: the network is alive; `add_poll` gets the vector that it expects, which
            // nobody else uses meanwhile.
            unsafe {
                (self.api.pollfds_fill)(
                    self.raw.as_ptr(),
                    &mut timeout,
                    add_poll,
                    pointer.cast::<c_void>(),
                );
            }
        }
        let sockets = (timeout != u32::MAX).then(|| Duration::from_millis(timeout.into()));
        let timers = self.host().timers.borrow();
        let next = timers.iter().flatten().filter_map(|t| t.deadline).min();
        let timer = next.map(|deadline| {
            let wait = deadline.saturating_sub(self.host().now_ms());
            Duration::from_millis(u64::try_from(wait).unwrap_or(0))
        });
        sockets.into_iter().chain(timer).min()
    }

    /// Tells of the events of the descriptors, in the order of the last [`Slirp::fill`], and runs
    /// the timers whose time has come.
    pub fn poll(&self, events: &[u32]) {
        let _turn = turn();
        let pointer: *const &[u32] = &events;
        // SAFETY: the network is alive; `get_revents` gets the slice that it expects and only
        // reads it.
        unsafe {
            (self.api.pollfds_poll)(
                self.raw.as_ptr(),
                0,
                get_revents,
                pointer.cast_mut().cast::<c_void>(),
            );
        }
        let now = self.host().now_ms();
        let mut place = 0;
        while let Some(slot) = {
            let mut timers = self.host().timers.borrow_mut();
            timers.get_mut(place).map(|slot| {
                let timer = slot.as_mut()?;
                let due = timer.deadline.is_some_and(|deadline| deadline <= now);
                due.then(|| {
                    timer.deadline = None;
                    *timer
                })
            })
        } {
            if let Some(timer) = slot {
                // SAFETY: the library gave both for this call and has not freed the timer.
                unsafe { (timer.callback)(timer.argument) }
            }
            place += 1;
        }
    }

    /// Descriptors that the library has closed since the last call.
    pub fn take_closed(&self) -> Vec<RawFd> {
        self.host().closing.take()
    }

    /// How many frames wait for the guest.
    pub fn frames(&self) -> usize {
        self.host().frames.borrow().len()
    }

    /// Takes a frame for the guest, for as long as `take` looks at it.
    pub fn with_frame<R>(&self, take: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let host = self.host();
        let mut frame = host.frames.borrow_mut().pop_front()?;
        let result = take(&frame);
        let mut spare = host.spare.borrow_mut();
        if spare.len() < 64 {
            frame.clear();
            spare.push(frame);
        }
        Some(result)
    }
}

impl Drop for Slirp {
    fn drop(&mut self) {
        {
            let _turn = turn();
            // SAFETY: the network is alive and not used again.
            unsafe { (self.api.cleanup)(self.raw.as_ptr()) }
        }
        let dropped = self.host().dropped.get();
        if dropped != 0 {
            log::debug!("user-mode network: {dropped} frames came faster than the guest took them");
        }
        // SAFETY: made by `Box::into_raw`; the library is done with it.
        drop(unsafe { Box::from_raw(self.host.as_ptr()) });
    }
}

/// The host behind a callback's argument.
///
/// # Safety
/// `opaque` is what `slirp_new` was given, and the network is alive.
unsafe fn host<'a>(opaque: *mut c_void) -> &'a Host {
    // SAFETY: it is a `Host`, which outlives the network.
    unsafe { &*opaque.cast::<Host>() }
}

unsafe extern "C" fn send_packet(frame: *const c_void, len: usize, opaque: *mut c_void) -> isize {
    // SAFETY: called by a living network.
    let host = unsafe { host(opaque) };
    let mut frames = host.frames.borrow_mut();
    if frames.len() >= MAX_FRAMES {
        host.dropped.set(host.dropped.get().saturating_add(1));
    } else {
        let mut copy = host.spare.borrow_mut().pop().unwrap_or_default();
        // SAFETY: the library gives `len` initialised bytes for the time of the call.
        copy.extend_from_slice(unsafe { std::slice::from_raw_parts(frame.cast::<u8>(), len) });
        frames.push_back(copy);
    }
    isize::try_from(len).unwrap_or(isize::MAX)
}

unsafe extern "C" fn guest_error(message: *const c_char, _opaque: *mut c_void) {
    // SAFETY: the library gives a string for the time of the call.
    let message = unsafe { CStr::from_ptr(message) };
    // A guest can cause any number of them.
    log::debug!("user-mode network: {}", message.to_string_lossy());
}

unsafe extern "C" fn clock_get_ns(opaque: *mut c_void) -> i64 {
    // SAFETY: called by a living network.
    let host = unsafe { host(opaque) };
    i64::try_from(host.epoch.elapsed().as_nanos()).unwrap_or(i64::MAX)
}

unsafe extern "C" fn timer_new(
    callback: TimerCb,
    argument: *mut c_void,
    opaque: *mut c_void,
) -> *mut c_void {
    // SAFETY: called by a living network.
    let mut timers = unsafe { host(opaque) }.timers.borrow_mut();
    timers.push(Some(Timer {
        callback,
        argument,
        deadline: None,
    }));
    ptr::without_provenance_mut(timers.len())
}

/// Calls `change` on the place of a timer.
///
/// # Safety
/// As [`host`].
unsafe fn with_timer(
    timer: *mut c_void,
    opaque: *mut c_void,
    change: impl FnOnce(&mut Option<Timer>),
) {
    // SAFETY: as the caller says.
    let mut timers = unsafe { host(opaque) }.timers.borrow_mut();
    if let Some(slot) = timer.addr().checked_sub(1).and_then(|i| timers.get_mut(i)) {
        change(slot);
    }
}

unsafe extern "C" fn timer_free(timer: *mut c_void, opaque: *mut c_void) {
    // SAFETY: called by a living network.
    unsafe { with_timer(timer, opaque, |slot| *slot = None) }
}

unsafe extern "C" fn timer_mod(timer: *mut c_void, expire_time: i64, opaque: *mut c_void) {
    // SAFETY: called by a living network.
    unsafe {
        with_timer(timer, opaque, |slot| {
            if let Some(timer) = slot {
                timer.deadline = Some(expire_time);
            }
        });
    }
}

unsafe extern "C" fn register_poll_fd(_fd: c_int, _opaque: *mut c_void) {}

unsafe extern "C" fn unregister_poll_fd(fd: c_int, opaque: *mut c_void) {
    // SAFETY: called by a living network.
    unsafe { host(opaque) }.closing.borrow_mut().push(fd);
}

/// The pump always looks at the network after it was called, so there is nobody to wake.
unsafe extern "C" fn notify(_opaque: *mut c_void) {}

unsafe extern "C" fn add_poll(fd: c_int, events: c_int, opaque: *mut c_void) -> c_int {
    // SAFETY: `fill` gives a vector that nobody else uses.
    let wanted = unsafe { &mut *opaque.cast::<Vec<(RawFd, u32)>>() };
    wanted.push((fd, events as u32));
    c_int::try_from(wanted.len() - 1).unwrap_or(-1)
}

unsafe extern "C" fn get_revents(index: c_int, opaque: *mut c_void) -> c_int {
    // SAFETY: `poll` gives a slice that lives as long as the call.
    let events = unsafe { *opaque.cast::<&[u32]>() };
    let events = usize::try_from(index).ok().and_then(|i| events.get(i));
    events.map_or(0, |events| *events as c_int)
}
