//! What executes instructions.

use processor::{CpuBox, Platform, Stop};

use crate::options::{EngineKind, Options};

/// Instructions of the interpreter between two looks at the engine's caller.
const BUDGET: u32 = 1 << 16;

/// One processor's engine.
pub(crate) enum Engine {
    Interpret,
    Translate(Box<translator::Engine>),
}

impl Engine {
    /// The engine that was asked for; the interpreter where the host does not let programs make
    /// code.
    pub(crate) fn new(options: &Options) -> Self {
        if options.engine == EngineKind::Interpret {
            return Self::Interpret;
        }
        let options = translator::Options {
            cache_size: usize::try_from(options.cache).unwrap_or(usize::MAX),
            exact_flags: options.exact_flags,
            host_tsc: true,
            ..translator::Options::default()
        };
        match translator::Engine::new(options) {
            Ok(engine) => Self::Translate(Box::new(engine)),
            Err(e) => {
                let why = std::error::Error::source(&e).map_or(String::new(), |s| format!(": {s}"));
                log::warn!("nothing is translated, which is very slow: {e}{why}");
                Self::Interpret
            }
        }
    }

    /// Executes until something stops it: never [`Stop::Exception`].
    pub(crate) fn run(&mut self, cpu: &mut CpuBox, p: &mut dyn Platform) -> Stop {
        match self {
            Self::Interpret => cpu.advance(p, BUDGET),
            Self::Translate(engine) => engine.run(cpu, p),
        }
    }

    /// Bytes of a code page changed.
    pub(crate) fn code_written(&mut self, physical: u64, len: u64) {
        match self {
            Self::Interpret => (),
            Self::Translate(engine) => _ = engine.code_written(physical, len),
        }
    }

    /// All of memory is another.
    pub(crate) fn flush(&mut self) {
        match self {
            Self::Interpret => (),
            Self::Translate(engine) => engine.flush(),
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Interpret => f.write_str("Interpret"),
            Self::Translate(engine) => write!(f, "Translate({:?})", engine.statistics()),
        }
    }
}
