//! Events: what the machine says unasked.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Value, json};

/// Why the machine shut down or was reset (qapi/run-state.json, ShutdownCause).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShutdownCause {
    /// Asked by a QMP quit.
    HostQmpQuit,
    /// Asked by a QMP system_reset.
    HostQmpSystemReset,
    /// The process got a signal.
    HostSignal,
    /// The guest powered off.
    GuestShutdown,
    /// The guest asked for a reset.
    GuestReset,
    /// The guest panicked.
    GuestPanic,
    /// A processor could not go on.
    HostError,
}

impl ShutdownCause {
    /// Whether the guest is the one who asked.
    #[must_use]
    pub fn by_guest(self) -> bool {
        matches!(
            self,
            Self::GuestShutdown | Self::GuestReset | Self::GuestPanic
        )
    }
}

/// A disk's request that the host failed (qapi/block-core.json, BLOCK_IO_ERROR).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockIoError {
    /// The device's name.
    pub device: String,
    /// The device's path.
    pub qom_path: String,
    /// The name of its node.
    pub node_name: String,
    /// `read` or `write`.
    pub operation: &'static str,
    /// `ignore`, `report` or `stop`.
    pub action: &'static str,
    /// The host has no room.
    pub nospace: bool,
    /// The host's words.
    pub reason: String,
}

/// Something that happened, with the time at which it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Name, such as `"SHUTDOWN"`.
    pub name: &'static str,
    /// What belongs to it; null when nothing does.
    pub data: Value,
    /// Seconds and microseconds since 1970.
    pub timestamp: (u64, u32),
}

impl Event {
    /// An event that happens now.
    #[must_use]
    pub fn now(name: &'static str, data: Value) -> Self {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            name,
            data,
            timestamp: (since.as_secs(), since.subsec_micros()),
        }
    }

    /// The machine was asked to power down by its power button.
    #[must_use]
    pub fn powerdown() -> Self {
        Self::now("POWERDOWN", Value::Null)
    }

    /// The machine was reset.
    #[must_use]
    pub fn reset(cause: ShutdownCause) -> Self {
        Self::now(
            "RESET",
            json!({ "guest": cause.by_guest(), "reason": cause }),
        )
    }

    /// The machine shut down.
    #[must_use]
    pub fn shutdown(cause: ShutdownCause) -> Self {
        Self::now(
            "SHUTDOWN",
            json!({ "guest": cause.by_guest(), "reason": cause }),
        )
    }

    /// The processors stopped.
    #[must_use]
    pub fn stop() -> Self {
        Self::now("STOP", Value::Null)
    }

    /// The processors run again.
    #[must_use]
    pub fn resume() -> Self {
        Self::now("RESUME", Value::Null)
    }

    /// The guest panicked; `action` is what follows: pause, poweroff or run.
    #[must_use]
    pub fn guest_panicked(action: &str) -> Self {
        Self::now("GUEST_PANICKED", json!({ "action": action }))
    }

    /// The host failed a disk's request.
    #[must_use]
    pub fn block_io_error(error: &BlockIoError) -> Self {
        Self::now("BLOCK_IO_ERROR", json!(error))
    }

    /// The balloon reached another size.
    #[must_use]
    pub fn balloon_change(actual: u64) -> Self {
        Self::now("BALLOON_CHANGE", json!({ "actual": actual }))
    }

    /// The event as it goes over the wire.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let (seconds, microseconds) = self.timestamp;
        let mut event = json!({
            "timestamp": { "seconds": seconds, "microseconds": microseconds },
            "event": self.name,
        });
        if !self.data.is_null() {
            event["data"] = self.data.clone();
        }
        event
    }
}
