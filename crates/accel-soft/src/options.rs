//! What can be said about the accelerator.

/// What executes instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineKind {
    /// 64-bit code is translated, the rest is interpreted.
    #[default]
    Translate,
    /// Everything is interpreted: slow, and the reference.
    Interpret,
}

/// How to execute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// What executes instructions.
    pub engine: EngineKind,
    /// Bytes of translated code that each processor keeps.
    pub cache: u64,
    /// The flags are exact at every fault, also those that no correct program looks at.
    pub exact_flags: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            engine: EngineKind::default(),
            cache: 64 << 20,
            exact_flags: false,
        }
    }
}
