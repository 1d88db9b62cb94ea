/// How a machine's life ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered off.
    GuestPowerOff,
    /// The user ended it (quit, Ctrl-]).
    Quit,
    /// The guest panicked.
    GuestPanic,
    /// A processor shut down by a triple fault.
    TripleFault,
    /// The guest wrote this value to isa-debug-exit.
    DebugExit(u32),
    /// A signal ended it without the guest's consent.
    Killed,
    /// The machine could not start or could not go on.
    Failed(String),
}

impl Outcome {
    /// The exit status of the process.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::GuestPowerOff | Self::Quit => 0,
            Self::Failed(_) => 1,
            Self::GuestPanic => 3,
            Self::TripleFault => 4,
            // isa-debug-exit's own rule, so that a kernel can never report 0 by accident.
            Self::DebugExit(value) => (value << 1 | 1) as u8,
            Self::Killed => 143,
        }
    }

    /// What to tell the user, when there is something to tell.
    #[must_use]
    pub fn message(&self) -> Option<String> {
        match self {
            Self::GuestPowerOff | Self::Quit | Self::DebugExit(_) => None,
            Self::GuestPanic => Some("the guest panicked; its console has the reason".into()),
            Self::TripleFault => {
                Some("a processor of the guest shut down by a triple fault".into())
            }
            Self::Killed => Some("ended by a signal before the guest powered off".into()),
            Self::Failed(why) => Some(why.clone()),
        }
    }
}
