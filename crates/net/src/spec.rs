use std::net::Ipv4Addr;

use spec::{Field, Properties, Property, Spec, SpecError, Value, choice};

use crate::{HostForward, Ip, Network};

choice! {
    /// Which network a card is connected to.
    pub enum Kind {
        /// A private network behind address translation.
        User = "user",
        /// A network interface of the host.
        Tap = "tap",
    }
}

choice! {
    /// The script that sets a tap up: there is none.
    pub enum Script {
        /// No script.
        No = "no",
    }
}

spec::spec! {
    /// Which back end there is.
    pub struct KindSpec("net") {
        /// The network on the host: a private one behind address translation (user), or an
        /// interface (tap).
        backend: Kind = Kind::User,
    }
}

spec::spec! {
    /// A network interface of the host.
    pub struct TapSpec("tap") {
        /// tap: name of the interface; it is made if it does not exist and we may. The kernel
        /// chooses one when not given.
        ifname: Option<String>,
        /// tap: number of an open descriptor of the interface, one for each queue pair.
        fd: Vec<u32>,
        /// tap: no script is ever run to set the interface up; accepted for habit's sake.
        script: Option<Script>,
        /// tap: no script is ever run when the interface is closed.
        downscript: Option<Script>,
    }
}

spec::spec! {
    /// A private network behind address translation.
    pub struct UserSpec("user") {
        /// user: the guest's network.
        net: Network = Network { address: Ipv4Addr::new(10, 0, 2, 0), prefix: 24 },
        /// user: the host's address in it; the network's second when not given.
        host: Option<Ip>,
        /// user: the name server's address in it; the network's third when not given.
        dns: Option<Ip>,
        /// user: the first address that DHCP gives to a guest; the network's fifteenth when not
        /// given.
        dhcpstart: Option<Ip>,
        /// user: a port of the host that leads to one of the guest.
        hostfwd: Vec<HostForward>,
        /// user: keep the guest from everything but forwarded ports.
        restrict: bool = false,
        /// user: the guest's name, by DHCP.
        hostname: Option<String>,
        /// user: IPv6 as well: the prefix fec0::/64, the host fec0::2, the name server fec0::3.
        ipv6: bool = false,
    }
}

/// Which network a card is connected to.
#[derive(Debug, Clone, PartialEq)]
pub enum BackendSpec {
    /// A private network behind address translation.
    User(UserSpec),
    /// A network interface of the host.
    Tap(TapSpec),
}

impl BackendSpec {
    fn kind(&self) -> Kind {
        match self {
            BackendSpec::User(_) => Kind::User,
            BackendSpec::Tap(_) => Kind::Tap,
        }
    }
}

/// `backend` comes first, so that `user` and `tap,ifname=tap0` may leave out its name; then the
/// properties of every back end.
impl Spec for BackendSpec {
    const NAME: &'static str = "net";
    const HELP: &'static str = "The network that a card is connected to.";

    fn properties() -> Vec<Property> {
        let mut properties = KindSpec::properties();
        properties.extend(UserSpec::properties());
        properties.extend(TapSpec::properties());
        properties
    }

    fn from_properties(mut given: Properties) -> Result<Self, SpecError> {
        given.only(Self::NAME, &Self::properties())?;
        let mut kind = Properties::new();
        if let Some(value) = given.remove("backend") {
            kind.set("backend", value);
        }
        let kind = KindSpec::from_properties(kind)?.backend;
        let (others, other) = match kind {
            Kind::User => (TapSpec::properties(), Kind::Tap),
            Kind::Tap => (UserSpec::properties(), Kind::User),
        };
        for property in others {
            if let Some(value) = given.get(&property.name) {
                let (kind, other) = (kind.word(), other.word());
                return Err(SpecError::Bad {
                    spec: Self::NAME,
                    value: value.to_string(),
                    why: format!("it belongs to backend={other}, and this is backend={kind}"),
                    name: property.name,
                });
            }
        }
        match kind {
            Kind::User => UserSpec::from_properties(given).map(BackendSpec::User),
            Kind::Tap => {
                let tap = TapSpec::from_properties(given)?;
                tap.check()?;
                Ok(BackendSpec::Tap(tap))
            }
        }
    }

    fn to_properties(&self) -> Properties {
        let mut properties = match self {
            BackendSpec::User(spec) => spec.to_properties(),
            BackendSpec::Tap(spec) => spec.to_properties(),
        };
        let kind = self.kind().to_value();
        properties.set("backend", kind.unwrap_or(Value::Text(String::new())));
        properties
    }
}

impl TapSpec {
    fn check(&self) -> Result<(), SpecError> {
        let bad = |name: &str, value: String, why: &str| SpecError::Bad {
            spec: Self::NAME,
            name: name.to_owned(),
            value,
            why: why.to_owned(),
        };
        if let Some(ifname) = &self.ifname {
            // The kernel's dev_valid_name(), and no pattern.
            let wrong = |c: char| c.is_whitespace() || matches!(c, '/' | ':' | '%' | '\0');
            if ifname.is_empty() || ifname.len() > 15 || ifname.contains(wrong) {
                let why = "expected the name of an interface, at most 15 bytes";
                return Err(bad("ifname", ifname.clone(), why));
            }
            if let Some(fd) = self.fd.first() {
                let why = "an open descriptor has its name already: give fd or ifname";
                return Err(bad("fd", fd.to_string(), why));
            }
        }
        Ok(())
    }
}
