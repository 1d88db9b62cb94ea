//! The live block graph: nodes with names, jobs that copy between them, and the QMP commands that
//! change them under a running guest.

pub mod job;
