use std::ffi::CString;
use std::net::Ipv4Addr;

use crate::{HostForward, NetError, Network, UserSpec};

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// What libslirp takes as its MTU (RFC 791, and its own limit).
const MTU: std::ops::RangeInclusive<u16> = 68..=65521;

/// A network as libslirp is told, every address known and checked.
#[derive(Debug)]
pub(super) struct Config {
    pub network: Network,
    pub host: Ipv4Addr,
    pub dns: Ipv4Addr,
    pub dhcp_start: Ipv4Addr,
    pub restrict: bool,
    pub hostname: Option<CString>,
    pub ipv6: bool,
    pub forwards: Vec<HostForward>,
    pub mtu: u16,
}

impl Config {
    pub fn new(spec: &UserSpec, mtu: Option<u16>) -> Result<Self, NetError> {
        let network = spec.net;
        // In a network of four addresses there is no place for the defaults.
        let place = |given: Option<crate::Ip>, name, host| {
            let address = given.map_or_else(|| network.host(host), |ip| ip.0);
            if network.has_host(address) {
                return Ok(address);
            }
            Err(NetError::Bad {
                name,
                value: address.to_string(),
                why: format!("it is not an address of a host in net={network}"),
            })
        };
        let host = place(spec.host, "host", 2)?;
        let dns = place(spec.dns, "dns", 3)?;
        let dhcp_start = place(spec.dhcpstart, "dhcpstart", 15)?;
        if dns == host || dhcp_start == host || dhcp_start == dns {
            return Err(NetError::Bad {
                name: "host",
                value: host.to_string(),
                why: format!(
                    "host, dns={dns} and dhcpstart={dhcp_start} must be different addresses"
                ),
            });
        }
        for forward in &spec.hostfwd {
            if let Some(guest) = forward.guest
                && !network.has_host(guest)
            {
                return Err(NetError::Bad {
                    name: "hostfwd",
                    value: forward.to_string(),
                    why: format!("{guest} is not an address of a host in net={network}"),
                });
            }
        }
        // libslirp keeps 32 bytes of it.
        let hostname = spec.hostname.as_deref().map(|name| {
            let text = CString::new(name).ok();
            text.filter(|_| (1..=32).contains(&name.len()))
                .ok_or_else(|| NetError::Bad {
                    name: "hostname",
                    value: name.to_owned(),
                    why: "expected a name of at most 32 bytes".into(),
                })
        });
        let mtu = mtu.unwrap_or(1500);
        if !MTU.contains(&mtu) {
            return Err(NetError::Bad {
                name: "mtu",
                value: mtu.to_string(),
                why: "backend=user takes 68 to 65521 bytes".into(),
            });
        }
        Ok(Self {
            network,
            host,
            dns,
            dhcp_start,
            restrict: spec.restrict,
            hostname: hostname.transpose()?,
            ipv6: spec.ipv6,
            forwards: spec.hostfwd.clone(),
            mtu,
        })
    }

    /// Bytes of the largest frame from libslirp.
    pub fn max_frame(&self) -> usize {
        usize::from(self.mtu).max(1500) + ETHERNET
    }
}
