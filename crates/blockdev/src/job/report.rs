//! What jobs tell the outside.

use std::sync::Arc;

use serde::Serialize;

use super::status::{ErrorAction, IoStatus, JobStatus, JobType, Operation};

/// Who is told of events: on any thread, with no lock of a job held.
pub type EventSink = Arc<dyn Fn(JobEvent) + Send + Sync>;

/// An event of QMP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobEvent {
    /// `JOB_STATUS_CHANGE`.
    StatusChange {
        /// The job.
        id: String,
        /// Its new status.
        status: JobStatus,
    },
    /// `BLOCK_JOB_READY`.
    Ready(BlockJobEvent),
    /// `BLOCK_JOB_COMPLETED`; with an error, it failed.
    Completed(BlockJobEvent),
    /// `BLOCK_JOB_CANCELLED`.
    Cancelled(BlockJobEvent),
    /// `BLOCK_JOB_PENDING`: it waits for `job-finalize`.
    Pending {
        /// What it does.
        kind: JobType,
        /// The job.
        id: String,
    },
    /// `BLOCK_JOB_ERROR`.
    Error {
        /// The job.
        device: String,
        /// What failed.
        operation: Operation,
        /// What is done about it.
        action: ErrorAction,
    },
}

impl JobEvent {
    /// Its name in QMP.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::StatusChange { .. } => "JOB_STATUS_CHANGE",
            Self::Ready(_) => "BLOCK_JOB_READY",
            Self::Completed(_) => "BLOCK_JOB_COMPLETED",
            Self::Cancelled(_) => "BLOCK_JOB_CANCELLED",
            Self::Pending { .. } => "BLOCK_JOB_PENDING",
            Self::Error { .. } => "BLOCK_JOB_ERROR",
        }
    }

    /// Its data in QMP.
    #[must_use]
    pub fn data(&self) -> serde_json::Value {
        match self {
            Self::StatusChange { id, status } => serde_json::json!({ "id": id, "status": status }),
            Self::Ready(job) | Self::Completed(job) | Self::Cancelled(job) => {
                serde_json::json!(job)
            }
            Self::Pending { kind, id } => serde_json::json!({ "type": kind, "id": id }),
            Self::Error {
                device,
                operation,
                action,
            } => serde_json::json!({ "device": device, "operation": operation, "action": action }),
        }
    }
}

/// What the events of block jobs have in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BlockJobEvent {
    /// What it does.
    #[serde(rename = "type")]
    pub kind: JobType,
    /// The job.
    pub device: String,
    /// Bytes to do.
    pub len: u64,
    /// Bytes done.
    pub offset: u64,
    /// Limit in bytes a second; 0: none.
    pub speed: u64,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What `query-jobs` tells of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct JobInfo {
    /// The job.
    pub id: String,
    /// What it does.
    #[serde(rename = "type")]
    pub kind: JobType,
    /// How far it is.
    pub status: JobStatus,
    /// What is done, in no unit.
    pub current_progress: u64,
    /// What will have been done at the end.
    pub total_progress: u64,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What `query-block-jobs` tells of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockJobInfo {
    /// What it does.
    #[serde(rename = "type")]
    pub kind: JobType,
    /// The job.
    pub device: String,
    /// Bytes to do.
    pub len: u64,
    /// Bytes done.
    pub offset: u64,
    /// It does not rest.
    pub busy: bool,
    /// It rests, or will as soon as it can.
    pub paused: bool,
    /// Limit in bytes a second; 0: none.
    pub speed: u64,
    /// What has become of its disks.
    pub io_status: IoStatus,
    /// It can complete.
    pub ready: bool,
    /// How far it is.
    pub status: JobStatus,
    /// It changes the graph without being told.
    pub auto_finalize: bool,
    /// It is forgotten when it is over.
    pub auto_dismiss: bool,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Of a mirror: whether every write of the guest is on the target when it completes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actively_synced: Option<bool>,
}
