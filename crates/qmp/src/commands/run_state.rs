//! qapi/run-state.json and what starts and stops the machine.

use serde::Serialize;

use crate::Empty;

/// What the machine is doing (RunState).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// The processors run.
    Running,
    /// The processors were stopped by `stop`.
    Paused,
    /// The processors have never run: the machine was made with `paused=on`.
    Prelaunch,
    /// The guest powered off and the process is told to stay.
    Shutdown,
    /// The guest panicked.
    GuestPanicked,
    /// A processor could not go on.
    InternalError,
    /// The processors were stopped because a disk failed, until `cont`.
    IoError,
}

/// Return of `query-status` (StatusInfo).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StatusInfo {
    /// Whether the processors run.
    pub running: bool,
    /// In one word.
    pub status: RunState,
}

command! {
    /// Asks what the machine is doing.
    QueryStatus = "query-status" -> StatusInfo
}
command! {
    /// Stops the processors.
    Stop = "stop" -> Empty
}
command! {
    /// Lets the processors run.
    Cont = "cont" -> Empty
}
command! {
    /// Presses the power button.
    SystemPowerdown = "system_powerdown" -> Empty
}
command! {
    /// Presses the reset button.
    SystemReset = "system_reset" -> Empty
}
command! {
    /// Ends the process.
    Quit = "quit" -> Empty
}
command! {
    /// Raises a non-maskable interrupt on every processor.
    InjectNmi = "inject-nmi" -> Empty
}
