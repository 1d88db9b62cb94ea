//! The words of the interface (QEMU qapi/job.json, qapi/block-core.json), and which of them go
//! together.

use std::fmt;
use std::io;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// An enumeration whose values have the names of the interface.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $value:ident = $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name { $($(#[$doc])* #[serde(rename = $word)] $value,)* }

        impl $name {
            /// Its name in the interface.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$value => $word,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// What a job does (`JobType`).
    JobType {
        /// Merge toward the root.
        Commit = "commit",
        /// Merge toward the active layer.
        Stream = "stream",
        /// Keep another disk the same.
        Mirror = "mirror",
        /// Copy the disk of one instant.
        Backup = "backup",
        /// Make an image.
        Create = "create",
    }
}

words! {
    /// How far a job is (`JobStatus`).
    JobStatus {
        /// It is being made.
        Undefined = "undefined",
        /// It has not begun.
        Created = "created",
        /// It is at work.
        Running = "running",
        /// It rests, and may go on.
        Paused = "paused",
        /// It could complete, and goes on until it is told to.
        Ready = "ready",
        /// It could complete, and rests.
        Standby = "standby",
        /// It has done its work, and waits for the others of its transaction.
        Waiting = "waiting",
        /// All of its transaction have done their work; what changes the graph is to be done.
        Pending = "pending",
        /// It failed or was cancelled, and cleans up.
        Aborting = "aborting",
        /// It is over, and its result can be asked for.
        Concluded = "concluded",
        /// It is gone.
        Null = "null",
    }
}

words! {
    /// What can be asked of a job (`JobVerb`).
    JobVerb {
        /// Stop.
        Cancel = "cancel",
        /// Rest.
        Pause = "pause",
        /// Go on.
        Resume = "resume",
        /// Be faster or slower.
        SetSpeed = "set-speed",
        /// Complete, being ready.
        Complete = "complete",
        /// Be forgotten.
        Dismiss = "dismiss",
        /// Change the graph.
        Finalize = "finalize",
        /// Have other options.
        Change = "change",
    }
}

impl JobStatus {
    /// Whether a job in this state accepts a verb.
    pub(super) fn accepts(self, verb: JobVerb) -> bool {
        use JobStatus as S;
        let alive = matches!(
            self,
            S::Created | S::Running | S::Paused | S::Ready | S::Standby
        );
        match verb {
            JobVerb::Cancel => alive || matches!(self, S::Waiting | S::Pending),
            JobVerb::Pause | JobVerb::Resume | JobVerb::SetSpeed => alive,
            JobVerb::Complete => self == S::Ready,
            JobVerb::Finalize => self == S::Pending,
            JobVerb::Dismiss => self == S::Concluded,
            JobVerb::Change => alive && self != S::Created,
        }
    }
}

words! {
    /// What has become of a job's disks (`BlockDeviceIoStatus`).
    IoStatus {
        /// Nothing failed since the job went on last.
        Ok = "ok",
        /// Something failed, and the job rests.
        Failed = "failed",
        /// There was no space left, and the job rests.
        Nospace = "nospace",
    }
}

words! {
    /// What to do when a disk fails a job (`BlockdevOnError`).
    OnError {
        /// Fail.
        Report = "report",
        /// Go on; try again later where the job cannot do without.
        Ignore = "ignore",
        /// As `stop` when there is no space left, otherwise as `report`.
        Enospc = "enospc",
        /// Rest, and try again when the job is resumed.
        Stop = "stop",
        /// As `enospc`.
        Auto = "auto",
    }
}

words! {
    /// What is done when a disk fails a job (`BlockErrorAction`).
    ErrorAction {
        /// Go on.
        Ignore = "ignore",
        /// Fail.
        Report = "report",
        /// Rest.
        Stop = "stop",
    }
}

words! {
    /// What failed (`IoOperationType`).
    Operation {
        /// Reading the source.
        Read = "read",
        /// Writing the target.
        Write = "write",
    }
}

/// Whether there was no space left.
pub(super) fn is_no_space(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ENOSPC as i32) || error.kind() == io::ErrorKind::StorageFull
}

impl OnError {
    /// What to do about an error.
    pub(super) fn action(self, error: &io::Error) -> ErrorAction {
        match self {
            Self::Report => ErrorAction::Report,
            Self::Ignore => ErrorAction::Ignore,
            Self::Stop => ErrorAction::Stop,
            Self::Enospc | Self::Auto if is_no_space(error) => ErrorAction::Stop,
            Self::Enospc | Self::Auto => ErrorAction::Report,
        }
    }
}

words! {
    /// What is copied (`MirrorSyncMode`).
    Sync {
        /// What only the top layer has.
        Top = "top",
        /// All.
        Full = "full",
        /// Only what is changed from now on.
        None = "none",
        /// What a bitmap has, which is cleared on success.
        Incremental = "incremental",
        /// What a bitmap has.
        Bitmap = "bitmap",
    }
}

words! {
    /// How a mirror follows the guest's writes (`MirrorCopyMode`).
    CopyMode {
        /// They are copied later.
        Background = "background",
        /// They complete when they are copied.
        WriteBlocking = "write-blocking",
    }
}

words! {
    /// What becomes of a backup's bitmap (`BitmapSyncMode`).
    BitmapMode {
        /// It has what changed since the backup, if that succeeds; otherwise it is as before.
        OnSuccess = "on-success",
        /// It is as before, with what changed meanwhile.
        Never = "never",
        /// It loses what was copied, even if the backup fails.
        Always = "always",
    }
}

words! {
    /// What fails when old content cannot be copied before it is overwritten
    /// (`OnCbwError`).
    OnCbwError {
        /// The guest's write.
        BreakGuestWrite = "break-guest-write",
        /// The backup.
        BreakSnapshot = "break-snapshot",
    }
}
