//! The commands, as in QEMU's schema (qapi/block-core.json, block-export.json, job.json,
//! transaction.json).

pub mod block;
pub mod export;
pub mod job;
pub mod query;
