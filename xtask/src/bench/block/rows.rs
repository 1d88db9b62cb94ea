//! What is measured, each a row of the table.

/// A row.
pub struct Row {
    /// As `--rows` has it.
    pub name: &'static str,
    pub title: &'static str,
    pub job: Job,
}

/// What the programs do in a row.
#[derive(Clone, Copy)]
pub enum Job {
    Convert {
        /// A file that the benchmark makes.
        input: &'static str,
        from: &'static str,
        to: &'static str,
        /// How the new image is compressed.
        compress: Option<&'static str>,
    },
    Check {
        input: &'static str,
    },
    /// A disk of 16 TiB.
    Open,
    /// Requests of 4 KiB all over the disk.
    Requests {
        input: &'static str,
        /// To a new, empty image instead.
        output: bool,
        format: &'static str,
        write: bool,
        /// I/O threads, which is what qemu-img has one of.
        queues: u32,
        cache: &'static str,
    },
    /// The same of a client (qemu-img) to a server of a qcow2 image by NBD: `vireo export` and
    /// QEMU's storage daemon.
    Serve {
        input: &'static str,
        write: bool,
    },
}

impl Job {
    /// The file that has to be there, and in the page cache.
    pub fn input(self) -> Option<&'static str> {
        match self {
            Self::Convert { input, .. } | Self::Check { input } | Self::Serve { input, .. } => {
                Some(input)
            }
            Self::Requests { output: true, .. } => None,
            Self::Requests { input, .. } => Some(input),
            Self::Open => Some("huge.qcow2"),
        }
    }
}

const fn convert(
    name: &'static str,
    title: &'static str,
    input: &'static str,
    from: &'static str,
    to: &'static str,
    compress: Option<&'static str>,
) -> Row {
    Row {
        name,
        title,
        job: Job::Convert {
            input,
            from,
            to,
            compress,
        },
    }
}

const fn requests(
    name: &'static str,
    title: &'static str,
    input: &'static str,
    format: &'static str,
    write: bool,
    cache: &'static str,
) -> Row {
    Row {
        name,
        title,
        job: Job::Requests {
            input,
            output: false,
            format,
            write,
            queues: 1,
            cache,
        },
    }
}

const fn allocate(
    name: &'static str,
    title: &'static str,
    format: &'static str,
    queues: u32,
) -> Row {
    Row {
        name,
        title,
        job: Job::Requests {
            input: "",
            output: true,
            format,
            write: true,
            queues,
            cache: "writeback",
        },
    }
}

pub const ROWS: [Row; 24] = [
    convert(
        "to-qcow2",
        "raw to qcow2",
        "source.raw",
        "raw",
        "qcow2",
        None,
    ),
    convert(
        "to-raw",
        "qcow2 to raw",
        "source.qcow2",
        "qcow2",
        "raw",
        None,
    ),
    convert(
        "to-zlib",
        "to qcow2, zlib",
        "source.raw",
        "raw",
        "qcow2",
        Some("zlib"),
    ),
    convert(
        "to-zstd",
        "to qcow2, zstd",
        "source.raw",
        "raw",
        "qcow2",
        Some("zstd"),
    ),
    convert(
        "from-zlib",
        "from zlib to raw",
        "zlib.qcow2",
        "qcow2",
        "raw",
        None,
    ),
    convert(
        "from-zstd",
        "from zstd to raw",
        "zstd.qcow2",
        "qcow2",
        "raw",
        None,
    ),
    Row {
        name: "check",
        title: "check, many tables",
        job: Job::Check {
            input: "tables.qcow2",
        },
    },
    Row {
        name: "open",
        title: "open 16 TiB, one read",
        job: Job::Open,
    },
    requests(
        "read-raw",
        "4 KiB reads, raw",
        "full.raw",
        "raw",
        false,
        "writeback",
    ),
    requests(
        "read-qcow2",
        "4 KiB reads, qcow2",
        "full.qcow2",
        "qcow2",
        false,
        "writeback",
    ),
    requests(
        "write-raw",
        "4 KiB writes, raw",
        "full.raw",
        "raw",
        true,
        "writeback",
    ),
    requests(
        "write-qcow2",
        "4 KiB writes, qcow2",
        "full.qcow2",
        "qcow2",
        true,
        "writeback",
    ),
    requests(
        "read-raw-direct",
        "reads, raw, cache=none",
        "full.raw",
        "raw",
        false,
        "none",
    ),
    requests(
        "read-qcow2-direct",
        "reads, qcow2, cache=none",
        "full.qcow2",
        "qcow2",
        false,
        "none",
    ),
    requests(
        "write-raw-direct",
        "writes, raw, cache=none",
        "full.raw",
        "raw",
        true,
        "none",
    ),
    requests(
        "write-qcow2-direct",
        "writes, qcow2, cache=none",
        "full.qcow2",
        "qcow2",
        true,
        "none",
    ),
    allocate("allocate-1", "4 KiB writes, empty qcow2", "qcow2", 1),
    allocate("allocate-2", "the same, 2 queues", "qcow2", 2),
    allocate("allocate-4", "the same, 4 queues", "qcow2", 4),
    // What the host's file system allows: it writes to one file for one at a time.
    allocate("allocate-raw-1", "4 KiB writes, empty raw", "raw", 1),
    allocate("allocate-raw-2", "the same, 2 queues", "raw", 2),
    allocate("allocate-raw-4", "the same, 4 queues", "raw", 4),
    Row {
        name: "serve-read",
        title: "4 KiB reads, qcow2 by NBD",
        job: Job::Serve {
            input: "full.qcow2",
            write: false,
        },
    },
    Row {
        name: "serve-write",
        title: "4 KiB writes, qcow2 by NBD",
        job: Job::Serve {
            input: "full.qcow2",
            write: true,
        },
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        let mut names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ROWS.len());
    }
}
