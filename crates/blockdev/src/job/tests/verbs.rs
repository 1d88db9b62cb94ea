//! What can be asked of jobs.
