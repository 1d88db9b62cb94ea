use serde::{Deserialize, Serialize};
use spec::{Field, Properties, Property, Size, Spec, SpecError};

use super::bucket::{Rate, Rates};

/// The largest rate, and the most that a burst may have in all (QEMU's THROTTLE_VALUE_MAX).
const LARGEST: u64 = 1_000_000_000_000_000;

/// Why limits are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ThrottleError {
    /// A total and its parts at once.
    #[error(
        "{unit}-total cannot be combined with {unit}-read or {unit}-write: limit the total, or \
         reads and writes"
    )]
    TotalAndParts {
        /// `iops` or `bps`.
        unit: &'static str,
    },
    /// iops-size without anything that it could have an effect on.
    #[error("iops-size needs iops-total, iops-read or iops-write")]
    SizeAlone,
    /// A number beyond all disks.
    #[error("{name}={value} is too large: at most 10^15")]
    TooLarge {
        /// Property.
        name: &'static str,
        /// Its value.
        value: u64,
    },
    /// A burst of no length.
    #[error("{name}-max-length is at least 1 second")]
    NoLength {
        /// Property.
        name: &'static str,
    },
    /// The length of a burst that there is not.
    #[error("{name}-max-length needs {name}-max, the rate of the burst")]
    LengthAlone {
        /// Property.
        name: &'static str,
    },
    /// A burst that never ends.
    #[error("{name}-max-length={length} is too long: it times {name}-max is at most 10^15")]
    TooLong {
        /// Property.
        name: &'static str,
        /// Seconds.
        length: u64,
    },
    /// A burst without the rate that it exceeds.
    #[error("{name}-max needs {name}, the rate that it may exceed")]
    MaxAlone {
        /// Property.
        name: &'static str,
    },
    /// A burst slower than the rate that it exceeds.
    #[error("{name}-max={max} is less than {name}={average}")]
    MaxBelowAverage {
        /// Property.
        name: &'static str,
        /// The burst's rate.
        max: u64,
        /// The rate.
        average: u64,
    },
}

/// A type that a limit has for the user.
trait Limit: Field {
    fn number(self) -> u64;
    fn of(number: u64) -> Self;
}

impl Limit for u64 {
    fn number(self) -> u64 {
        self
    }

    fn of(number: u64) -> Self {
        number
    }
}

impl Limit for Size {
    fn number(self) -> u64 {
        self.0
    }

    fn of(number: u64) -> Self {
        Self(number)
    }
}

fn property<T: Field>(name: String, help: &[&str]) -> Property {
    let lines: Vec<&str> = help.iter().map(|line| line.trim()).collect();
    Property {
        name,
        kind: T::kind(),
        default: None,
        required: false,
        help: lines.join(" "),
    }
}

fn taken<T: Field>(given: &mut Properties, name: &str) -> Result<Option<T>, SpecError> {
    let Some(value) = given.remove(name) else {
        return Ok(None);
    };
    T::from_value(&value)
        .map(Some)
        .map_err(|why| SpecError::Bad {
            spec: ThrottleLimits::NAME,
            name: name.to_owned(),
            value: value.to_string(),
            why,
        })
}

macro_rules! limits {
    ($($(#[doc = $help:literal])* $field:ident: $kind:ident,)*) => {
        /// The limits of a disk or group; 0 is no limit, as none given. QMP's ThrottleLimits
        /// (qapi/block-core.json), whose names serde uses; the [`Spec`] has the same names.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields)]
        pub struct ThrottleLimits {
            $(
                $(#[doc = $help])*
                #[serde(default, skip_serializing_if = "Option::is_none")]
                pub $field: Option<u64>,
            )*
        }

        impl Spec for ThrottleLimits {
            const NAME: &'static str = "throttle";
            const HELP: &'static str = "How many requests and bytes a second.";

            fn properties() -> Vec<Property> {
                vec![$(property::<$kind>(stringify!($field).replace('_', "-"), &[$($help),*])),*]
            }

            fn from_properties(mut given: Properties) -> Result<Self, SpecError> {
                given.only(Self::NAME, &Self::properties())?;
                Ok(Self {
                    $($field: taken::<$kind>(&mut given, &stringify!($field).replace('_', "-"))?
                        .map(Limit::number),)*
                })
            }

            fn to_properties(&self) -> Properties {
                let mut properties = Properties::new();
                $(
                    if let Some(value) = self.$field.map(<$kind>::of).as_ref().and_then(Field::to_value) {
                        properties.set(&stringify!($field).replace('_', "-"), value);
                    }
                )*
                properties
            }
        }
    };
}

limits! {
    /// Most requests a second, reads and writes together.
    iops_total: u64,
    /// Most requests a second in a burst.
    iops_total_max: u64,
    /// How many seconds such a burst may last; 1 when not given.
    iops_total_max_length: u64,
    /// Most reads a second.
    iops_read: u64,
    /// Most reads a second in a burst.
    iops_read_max: u64,
    /// How many seconds such a burst may last; 1 when not given.
    iops_read_max_length: u64,
    /// Most writes a second; discards and writes of zeroes are writes.
    iops_write: u64,
    /// Most writes a second in a burst.
    iops_write_max: u64,
    /// How many seconds such a burst may last; 1 when not given.
    iops_write_max_length: u64,
    /// Most bytes a second, reads and writes together.
    bps_total: Size,
    /// Most bytes a second in a burst.
    bps_total_max: Size,
    /// How many seconds such a burst may last; 1 when not given.
    bps_total_max_length: u64,
    /// Most bytes a second that are read.
    bps_read: Size,
    /// Most bytes a second that are read in a burst.
    bps_read_max: Size,
    /// How many seconds such a burst may last; 1 when not given.
    bps_read_max_length: u64,
    /// Most bytes a second that are written, discarded or zeroed.
    bps_write: Size,
    /// Most bytes a second that are written in a burst.
    bps_write_max: Size,
    /// How many seconds such a burst may last; 1 when not given.
    bps_write_max_length: u64,
    /// Bytes that count as one request: a larger one counts as several. Any request counts as
    /// one when not given.
    iops_size: Size,
}

impl ThrottleLimits {
    /// Whether they make sense.
    ///
    /// # Errors
    /// They contradict one another.
    pub fn check(&self) -> Result<(), ThrottleError> {
        self.rates().map(|_| ())
    }

    /// The rates of the buckets.
    pub(super) fn rates(&self) -> Result<Rates, ThrottleError> {
        let rate = |average: Option<u64>, max: Option<u64>, length: Option<u64>| Rate {
            average: average.unwrap_or(0),
            max: max.unwrap_or(0),
            length: length.unwrap_or(1),
        };
        let named = [
            (
                "bps-total",
                rate(
                    self.bps_total,
                    self.bps_total_max,
                    self.bps_total_max_length,
                ),
            ),
            (
                "bps-read",
                rate(self.bps_read, self.bps_read_max, self.bps_read_max_length),
            ),
            (
                "bps-write",
                rate(
                    self.bps_write,
                    self.bps_write_max,
                    self.bps_write_max_length,
                ),
            ),
            (
                "iops-total",
                rate(
                    self.iops_total,
                    self.iops_total_max,
                    self.iops_total_max_length,
                ),
            ),
            (
                "iops-read",
                rate(
                    self.iops_read,
                    self.iops_read_max,
                    self.iops_read_max_length,
                ),
            ),
            (
                "iops-write",
                rate(
                    self.iops_write,
                    self.iops_write_max,
                    self.iops_write_max_length,
                ),
            ),
        ];
        let rates = named.map(|(_, rate)| rate);
        let iops_size = self.iops_size.unwrap_or(0);
        for (unit, first) in [("bps", 0), ("iops", 3)] {
            let [total, read, write] =
                [first, first + 1, first + 2].map(|i: usize| rates[i].is_set());
            if total && (read || write) {
                return Err(ThrottleError::TotalAndParts { unit });
            }
        }
        if iops_size != 0 && rates[3..].iter().all(|rate| rate.average == 0) {
            return Err(ThrottleError::SizeAlone);
        }
        for (name, rate) in named {
            rate.check(name)?;
        }
        Ok(Rates {
            buckets: rates,
            iops_size,
        })
    }
}

impl Rate {
    fn is_set(&self) -> bool {
        self.average != 0 || self.max != 0
    }

    fn check(&self, name: &'static str) -> Result<(), ThrottleError> {
        let Self {
            average,
            max,
            length,
        } = *self;
        if let Some(value) = [average, max].into_iter().find(|value| *value > LARGEST) {
            return Err(ThrottleError::TooLarge { name, value });
        }
        if length == 0 {
            return Err(ThrottleError::NoLength { name });
        }
        if length > 1 && max == 0 {
            return Err(ThrottleError::LengthAlone { name });
        }
        if max != 0 && length > LARGEST / max {
            return Err(ThrottleError::TooLong { name, length });
        }
        if max != 0 && average == 0 {
            return Err(ThrottleError::MaxAlone { name });
        }
        if max != 0 && max < average {
            return Err(ThrottleError::MaxBelowAverage { name, max, average });
        }
        Ok(())
    }
}
