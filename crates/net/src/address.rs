//! Addresses as the user writes them.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use spec::{Field, Value};

/// A network card's address: `52:54:00:12:34:56`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// An address that follows from `seed`, in the range 52:54:00:xx:xx:xx that virtual machines
    /// use. Seeds that differ in their low 24 bits give different addresses.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        // Multiplication by an odd number permutes the 24-bit numbers.
        let mixed = (seed as u32).wrapping_mul(0x9e_3779) ^ (seed >> 24) as u32;
        let [_, a, b, c] = mixed.to_be_bytes();
        Self([0x52, 0x54, 0, a, b, c])
    }

    /// Whether it is a group of cards rather than one.
    #[must_use]
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "expected an address such as 52:54:00:12:34:56".to_owned();
        let mut mac = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut mac {
            let part = parts.next().ok_or_else(wrong)?;
            if part.is_empty() || part.len() > 2 || part.starts_with('+') {
                return Err(wrong());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        let mac = Self(mac);
        if mac.is_multicast() {
            let first = mac.0[0] & !1;
            return Err(format!(
                "it is a multicast address; the first byte must be even, for example {first:02x}"
            ));
        }
        if mac.0 == [0; 6] {
            return Err("a card cannot have the address 0".to_owned());
        }
        Ok(mac)
    }
}

/// An IPv4 address: `10.0.2.2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip(pub Ipv4Addr);

impl fmt::Display for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Ip {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse()
            .map(Self)
            .map_err(|_| "expected an IPv4 address such as 10.0.2.2".into())
    }
}

/// An IPv4 network: `10.0.2.0/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// Its address: bits behind the prefix are zero.
    pub address: Ipv4Addr,
    /// Bits of the prefix, 8 to 30.
    pub prefix: u8,
}

impl Network {
    /// The mask of the prefix.
    #[must_use]
    pub fn mask(self) -> Ipv4Addr {
        let host_bits = 32u32.saturating_sub(self.prefix.into());
        Ipv4Addr::from_bits(u32::MAX.checked_shl(host_bits).unwrap_or(0))
    }

    /// The address of host number `host`; the prefix of the network stays.
    #[must_use]
    pub fn host(self, host: u32) -> Ipv4Addr {
        let mask = self.mask().to_bits();
        Ipv4Addr::from_bits(self.address.to_bits() & mask | host & !mask)
    }

    /// Whether `address` is a host of the network: neither its own address nor its broadcast.
    #[must_use]
    pub fn has_host(self, address: Ipv4Addr) -> bool {
        let mask = self.mask().to_bits();
        let host = address.to_bits() & !mask;
        address.to_bits() & mask == self.address.to_bits() && host != 0 && host != !mask
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "expected an IPv4 network such as 10.0.2.0/24".to_owned();
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let prefix = prefix.parse().map_err(|_| wrong())?;
        if !(8..=30).contains(&prefix) {
            return Err("the prefix must have 8 to 30 bits".to_owned());
        }
        let network = Self { address, prefix };
        let start = network.host(0);
        if start != address {
            return Err(format!("the network is {start}/{prefix}"));
        }
        Ok(network)
    }
}

/// A port of the host that leads to one of the guest: `tcp:127.0.0.1:2222-:22`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostForward {
    /// UDP rather than TCP.
    pub udp: bool,
    /// Address on the host; 0.0.0.0 is all of them.
    pub host: Ipv4Addr,
    /// Port on the host.
    pub host_port: u16,
    /// Address of the guest; the first that DHCP gives when absent.
    pub guest: Option<Ipv4Addr>,
    /// Port of the guest.
    pub guest_port: u16,
}

impl fmt::Display for HostForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.udp { "udp:" } else { "tcp:" })?;
        if !self.host.is_unspecified() {
            write!(f, "{}", self.host)?;
        }
        write!(f, ":{}-", self.host_port)?;
        if let Some(guest) = self.guest {
            write!(f, "{guest}")?;
        }
        write!(f, ":{}", self.guest_port)
    }
}

impl FromStr for HostForward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            "expected tcp|udp:[hostaddr]:hostport-[guestaddr]:guestport, for example \
             tcp:127.0.0.1:2222-:22"
                .to_owned()
        };
        let end = |text: &str| -> Result<(Option<Ipv4Addr>, u16), String> {
            let (address, port) = text.rsplit_once(':').ok_or_else(wrong)?;
            let address = match address {
                "" => None,
                address => Some(address.parse().map_err(|_| wrong())?),
            };
            match port.parse() {
                Ok(0) | Err(_) => Err(wrong()),
                Ok(port) => Ok((address, port)),
            }
        };
        let (protocol, rest) = text.split_once(':').ok_or_else(wrong)?;
        let udp = match protocol {
            "tcp" | "" => false,
            "udp" => true,
            _ => return Err(wrong()),
        };
        let (host, guest) = rest.split_once('-').ok_or_else(wrong)?;
        let (host, host_port) = end(host)?;
        let (guest, guest_port) = end(guest)?;
        Ok(Self {
            udp,
            host: host.unwrap_or(Ipv4Addr::UNSPECIFIED),
            host_port,
            guest: guest.filter(|guest| !guest.is_unspecified()),
            guest_port,
        })
    }
}

macro_rules! text_field {
    ($($type:ty = $kind:literal,)*) => {$(
        impl Field for $type {
            fn kind() -> String {
                $kind.into()
            }

            fn from_value(value: &Value) -> Result<Self, String> {
                value.to_string().parse()
            }

            fn to_value(&self) -> Option<Value> {
                Some(Value::Text(self.to_string()))
            }
        }
    )*};
}
text_field! {
    Mac = "MAC address",
    Ip = "IPv4 address",
    Network = "IPv4 network",
    HostForward = "tcp|udp:[hostaddr]:hostport-[guestaddr]:guestport",
}
