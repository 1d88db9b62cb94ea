use std::io;

use crate::HostForward;

/// Why a back end could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The host has no tap devices, or keeps them from us.
    #[error(
        "cannot open /dev/net/tun, which taps come from: load the kernel's tun module \
         (`modprobe tun`), let this user read and write the device, and in a container pass it in"
    )]
    NoTun(#[source] io::Error),
    /// The tap belongs to somebody else, or does not exist and may not be made.
    #[error(
        "no permission to use tap {ifname}: have an administrator create it for this user \
         (`ip tuntap add dev {ifname} mode tap user $USER{multi_queue}`), or give the process \
         CAP_NET_ADMIN"
    )]
    TapPermission {
        /// Name of the interface.
        ifname: String,
        /// What the command says more for several queues.
        multi_queue: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Another process holds the tap.
    #[error(
        "tap {ifname} is in use: another virtual machine, or another network card of this one, \
         has it open"
    )]
    TapBusy {
        /// Name of the interface.
        ifname: String,
    },
    /// The interface is of another kind.
    #[error(
        "{ifname} cannot be used as a tap with queues={queues}: it is not a tap, or was not \
         created with multi_queue; `ip -d link show {ifname}` tells"
    )]
    TapKind {
        /// Name of the interface.
        ifname: String,
        /// Queue pairs asked for.
        queues: u16,
    },
    /// The kernel does not do something with the tap.
    #[error("cannot {what} of tap {ifname}")]
    Tap {
        /// What was being done.
        what: &'static str,
        /// Name of the interface, or the descriptor.
        ifname: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A descriptor that was given by its number is not open, or not a tap.
    #[error("fd={fd} cannot be used as a tap: {why}")]
    TapFd {
        /// The number.
        fd: u32,
        /// What is wrong with it.
        why: String,
    },
    /// A property's value does not make sense, by itself or with another.
    #[error("{name}={value}: {why}")]
    Bad {
        /// Which property.
        name: &'static str,
        /// What it says.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// libslirp is not there.
    #[error(
        "user-mode networking needs libslirp.so.0, which could not be loaded: install it \
         (`apt install libslirp0`; elsewhere the package may be called libslirp)"
    )]
    NoLibrary(#[source] libloading::Error),
    /// libslirp refuses the network.
    #[error("libslirp {0} refuses this network")]
    Refused(String),
    /// A port of the host cannot be forwarded.
    #[error("cannot forward hostfwd={forward}: {hint}")]
    Forward {
        /// What the user asked for.
        forward: HostForward,
        /// The likely cause.
        hint: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A system call that should not fail did.
    #[error("cannot {what}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}
