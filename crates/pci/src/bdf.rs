use std::fmt;
use std::str::FromStr;

use crate::PciError;

/// Bus, device and function number: a function's address in configuration space
/// (PCI Local Bus 3.0 section 3.2.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bdf {
    bus: u8,
    devfn: u8,
}

impl Bdf {
    /// The address of `function` (0..8) of `device` (0..32) on `bus`.
    #[must_use]
    pub const fn new(bus: u8, device: u8, function: u8) -> Option<Self> {
        if device < 32 && function < 8 {
            Some(Self::from_devfn(bus, device << 3 | function))
        } else {
            None
        }
    }

    /// The address from a bus number and the 8 bits that say device and function.
    #[must_use]
    pub const fn from_devfn(bus: u8, devfn: u8) -> Self {
        Self { bus, devfn }
    }

    /// Bus number.
    #[must_use]
    pub const fn bus(self) -> u8 {
        self.bus
    }

    /// Device number, 0..32.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.devfn >> 3
    }

    /// Function number, 0..8.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.devfn & 7
    }

    /// Device number in the upper 5 bits, function number in the lower 3.
    #[must_use]
    pub const fn devfn(self) -> u8 {
        self.devfn
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:02x}:{:02x}.{}",
            self.bus,
            self.device(),
            self.function()
        )
    }
}

impl FromStr for Bdf {
    type Err = PciError;

    /// Reads `bus:device.function`; the bus and the function may be left out and are then 0.
    fn from_str(text: &str) -> Result<Self, PciError> {
        let bad = || PciError::BadAddress(text.to_owned());
        let number = |digits: &str| {
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            u8::from_str_radix(digits, 16).map_err(|_| bad())
        };
        let (bus, rest) = match text.split_once(':') {
            Some((bus, rest)) => (number(bus)?, rest),
            None => (0, text),
        };
        let (device, function) = match rest.split_once('.') {
            Some((device, function)) => (number(device)?, number(function)?),
            None => (number(rest)?, 0),
        };
        Self::new(bus, device, function).ok_or_else(bad)
    }
}
