//! Jobs: work on disks that takes its time.
