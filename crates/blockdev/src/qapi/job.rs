//! qapi/job.json and the older commands of block-core.json for jobs.

use qmp::{Empty, command};

use crate::job::{BlockJobInfo, CopyMode, JobInfo, OnError};

pub(crate) fn yes() -> bool {
    true
}

pub(crate) fn report() -> OnError {
    OnError::Report
}

pub(crate) fn background() -> CopyMode {
    CopyMode::Background
}

command! {
    /// Asks for all jobs.
    QueryJobs = "query-jobs" -> Vec<JobInfo>
}
command! {
    /// Asks for the jobs on disks.
    QueryBlockJobs = "query-block-jobs" -> Vec<BlockJobInfo>
}

macro_rules! verbs {
    ($($(#[$doc:meta])* $job:ident = $job_text:literal, $block:ident = $block_text:literal;)*) => {$(
        command! {
            $(#[$doc])*
            $job = $job_text -> Empty {
                /// The job's name.
                id: String,
            }
        }
        command! {
            $(#[$doc])*
            $block = $block_text -> Empty {
                /// The job's name.
                #[serde(alias = "id")]
                device: String,
            }
        }
    )*};
}

verbs! {
    /// Pauses a job.
    JobPause = "job-pause", BlockJobPause = "block-job-pause";
    /// Lets a job go on.
    JobResume = "job-resume", BlockJobResume = "block-job-resume";
    /// Lets a job that is ready end with what it is for.
    JobComplete = "job-complete", BlockJobComplete = "block-job-complete";
    /// Lets a job that is pending finish.
    JobFinalize = "job-finalize", BlockJobFinalize = "block-job-finalize";
    /// Forgets a job that has ended.
    JobDismiss = "job-dismiss", BlockJobDismiss = "block-job-dismiss";
}

command! {
    /// Ends a job without what it is for.
    JobCancel = "job-cancel" -> Empty {
        /// The job's name.
        id: String,
    }
}
command! {
    /// Ends a job; a mirror that is ready ends with a copy of this instant.
    BlockJobCancel = "block-job-cancel" -> Empty {
        /// The job's name.
        device: String,
        /// Without the copy.
        #[serde(default)]
        force: bool,
    }
}
command! {
    /// Limits a job.
    BlockJobSetSpeed = "block-job-set-speed" -> Empty {
        /// The job's name.
        device: String,
        /// Bytes a second; 0: as fast as possible.
        speed: u64,
    }
}
command! {
    /// Changes how a job works.
    BlockJobChange = "block-job-change" -> Empty {
        /// The job's name.
        id: String,
        /// What it does.
        #[serde(rename = "type")]
        kind: String,
        /// When a mirror copies what the guest writes.
        #[serde(default)]
        copy_mode: Option<CopyMode>,
    }
}
