//! Disks that fail, and jobs that are cancelled.
