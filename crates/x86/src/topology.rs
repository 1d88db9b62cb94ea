//! Sockets, dies, cores and threads, and the APIC IDs that follow from them.
//!
//! An APIC ID is a bit field for each (SDM vol. 3A 10.9.1), thread lowest. A count that is no
//! power of two leaves IDs unused:
//!
//! ```text
//!            +--------+-----+------+--------+       1 socket, 1 die, 3 cores, 2 threads:
//!   APIC ID  | socket | die | core | thread |       vCPU     0 1 2 3 4 5
//!            +--------+-----+------+--------+       APIC ID  0 1 2 3 4 5   (6, 7 unused)
//! ```

use serde::{Deserialize, Serialize};

use crate::CpuError;

#[cfg(test)]
mod tests;

/// How many of each there are: dies in a socket, cores in a die, threads in a core.
///
/// Built by [`Topology::new`] or [`Topology::resolve`], which see to it that none is zero and that
/// every APIC ID fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Counts", into = "Counts")]
pub struct Topology {
    sockets: u32,
    dies: u32,
    cores: u32,
    threads: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counts {
    sockets: u32,
    dies: u32,
    cores: u32,
    threads: u32,
}

/// Where one processor sits: numbers from zero, each within the next larger unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuPlace {
    /// Socket.
    pub socket: u32,
    /// Die in the socket.
    pub die: u32,
    /// Core in the die.
    pub core: u32,
    /// Thread in the core.
    pub thread: u32,
}

/// More processors than this are refused.
const MAX_CPUS: u32 = 1 << 16;

impl Topology {
    /// This many of each.
    ///
    /// # Errors
    /// [`CpuError::Topology`] when a count is zero or the product exceeds 65,536.
    pub fn new(sockets: u32, dies: u32, cores: u32, threads: u32) -> Result<Self, CpuError> {
        let mut product: u32 = 1;
        for (what, count) in [
            ("sockets", sockets),
            ("dies", dies),
            ("cores", cores),
            ("threads", threads),
        ] {
            if count == 0 {
                return Err(CpuError::Topology(format!("{what} must be at least 1")));
            }
            product = product
                .checked_mul(count)
                .filter(|&p| p <= MAX_CPUS)
                .ok_or_else(|| {
                    CpuError::Topology(format!(
                        "{sockets} sockets x {dies} dies x {cores} cores x {threads} threads are \
                         more than {MAX_CPUS} CPUs"
                    ))
                })?;
        }
        Ok(Topology {
            sockets,
            dies,
            cores,
            threads,
        })
    }

    /// One socket with this many cores.
    ///
    /// # Errors
    /// As [`Topology::new`].
    pub fn flat(cpus: u32) -> Result<Self, CpuError> {
        Self::new(1, 1, cpus, 1)
    }

    /// Fills in what was not said: counts not given are 1, except that the cores (or, if those are
    /// given, the sockets, or else the threads) make up the number of CPUs.
    ///
    /// # Errors
    /// [`CpuError::Topology`] when the counts do not multiply to `cpus`, and as
    /// [`Topology::new`].
    pub fn resolve(
        cpus: Option<u32>,
        sockets: Option<u32>,
        dies: Option<u32>,
        cores: Option<u32>,
        threads: Option<u32>,
    ) -> Result<Self, CpuError> {
        let one = |count: Option<u32>| count.unwrap_or(1);
        let Some(cpus) = cpus else {
            return Self::new(one(sockets), one(dies), one(cores), one(threads));
        };
        // Validates what was given, so that the divisions below are by non-zero numbers.
        let given = Self::new(one(sockets), one(dies), one(cores), one(threads))?;
        let missing = cpus / given.count();
        let whole = match (cores, sockets, threads) {
            (None, _, _) => Self::new(given.sockets, given.dies, missing.max(1), given.threads)?,
            (_, None, _) => Self::new(missing.max(1), given.dies, given.cores, given.threads)?,
            (_, _, None) => Self::new(given.sockets, given.dies, given.cores, missing.max(1))?,
            _ => given,
        };
        if whole.count() == cpus {
            Ok(whole)
        } else {
            Err(CpuError::Topology(format!(
                "{cpus} CPUs cannot be {} sockets x {} dies x {} cores x {} threads",
                part(sockets),
                part(dies),
                part(cores),
                part(threads),
            )))
        }
    }

    /// Sockets.
    pub fn sockets(&self) -> u32 {
        self.sockets
    }

    /// Dies in a socket.
    pub fn dies(&self) -> u32 {
        self.dies
    }

    /// Cores in a die.
    pub fn cores(&self) -> u32 {
        self.cores
    }

    /// Threads in a core.
    pub fn threads(&self) -> u32 {
        self.threads
    }

    /// All processors.
    pub fn count(&self) -> u32 {
        self.sockets * self.dies * self.cores * self.threads
    }

    /// Processors in a socket.
    pub fn per_socket(&self) -> u32 {
        self.dies * self.cores * self.threads
    }

    /// Lowest bit of the core number in an APIC ID.
    pub fn core_shift(&self) -> u32 {
        width(self.threads)
    }

    /// Lowest bit of the die number in an APIC ID.
    pub fn die_shift(&self) -> u32 {
        self.core_shift() + width(self.cores)
    }

    /// Lowest bit of the socket number in an APIC ID.
    pub fn socket_shift(&self) -> u32 {
        self.die_shift() + width(self.dies)
    }

    /// Where the processor with this number sits. Numbers beyond the last go on in further
    /// sockets.
    pub fn place(&self, vcpu: u32) -> CpuPlace {
        let per_die = self.cores * self.threads;
        CpuPlace {
            socket: vcpu / self.per_socket(),
            die: vcpu / per_die % self.dies,
            core: vcpu / self.threads % self.cores,
            thread: vcpu % self.threads,
        }
    }

    /// APIC ID of the processor with this number, which is below [`Topology::count`].
    pub fn apic_id(&self, vcpu: u32) -> u32 {
        let place = self.place(vcpu);
        // All four fields together have at most 19 bits: the counts multiply to at most 2^16, and
        // rounding up to a power of two costs each field less than one bit.
        place.socket << self.socket_shift()
            | place.die << self.die_shift()
            | place.core << self.core_shift()
            | place.thread
    }

    /// The processor with this APIC ID; None for those that the bit fields leave unused.
    pub fn vcpu(&self, apic_id: u32) -> Option<u32> {
        let field = |from: u32, to: u32| apic_id >> from & ((1 << (to - from)) - 1);
        let thread = field(0, self.core_shift());
        let core = field(self.core_shift(), self.die_shift());
        let die = field(self.die_shift(), self.socket_shift());
        let socket = apic_id >> self.socket_shift();
        (thread < self.threads && core < self.cores && die < self.dies && socket < self.sockets)
            .then(|| ((socket * self.dies + die) * self.cores + core) * self.threads + thread)
    }

    /// The highest APIC ID in use.
    pub fn max_apic_id(&self) -> u32 {
        self.apic_id(self.count() - 1)
    }
}

impl TryFrom<Counts> for Topology {
    type Error = CpuError;

    fn try_from(c: Counts) -> Result<Self, CpuError> {
        Topology::new(c.sockets, c.dies, c.cores, c.threads)
    }
}

impl From<Topology> for Counts {
    fn from(t: Topology) -> Counts {
        Counts {
            sockets: t.sockets,
            dies: t.dies,
            cores: t.cores,
            threads: t.threads,
        }
    }
}

/// Bits that number `count` things.
fn width(count: u32) -> u32 {
    u32::BITS - count.saturating_sub(1).leading_zeros()
}

fn part(count: Option<u32>) -> String {
    count.map_or_else(|| "any".to_owned(), |c| c.to_string())
}
