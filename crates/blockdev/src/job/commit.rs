//! Merging layers toward the root: what they have is copied into a layer below them.
//!
//! ```text
//!   base ◀─ mid ◀─ top        what mid and top have ─▶ base; then whoever was above top, or used
//!    ▲               │        it, is led to base
//!    └───────────────┘
//! ```
//!
//! The copy of an active layer is a mirror into the base: guests go on writing to the top, until
//! they are led to the base. Otherwise nobody writes to the top, and the job completes by itself.

use std::io;
use std::sync::Arc;

use block::Node;
use block::graph::Vertex;

use super::Finish;
use super::mirror::{Mirror, MirrorOptions, Role, invalid};
use super::status::OnError;

/// What is merged.
pub struct CommitOptions {
    /// The topmost layer that is merged.
    pub top: Arc<Vertex>,
    /// Into what. It is open for writing, and grows to the size of the top.
    pub base: Arc<Vertex>,
    /// How many backing files the base is below the top: 1 if it is the top's backing file.
    pub layers: u32,
    /// Guests write to the top.
    pub active: bool,
    /// Bytes that are copied when a guest changes one of them, a power of two.
    pub granularity: u64,
    /// Bytes that are copied at once.
    pub buffer: u64,
    /// Copies at the same time.
    pub parallel: usize,
    /// What to do about errors.
    pub on_error: OnError,
    /// The change of the graph.
    pub finish: Option<Finish>,
}

impl CommitOptions {
    /// A merge of an active layer, or of layers that nobody writes to.
    #[must_use]
    pub fn new(top: Arc<Vertex>, base: Arc<Vertex>, layers: u32, active: bool) -> Self {
        Self {
            top,
            base,
            layers,
            active,
            granularity: 64 << 10,
            buffer: 1 << 20,
            parallel: 16,
            on_error: OnError::Report,
            finish: None,
        }
    }
}

/// A job that merges layers.
///
/// # Errors
/// The base is read-only, or the options make no sense.
pub fn commit(options: CommitOptions) -> io::Result<Box<Mirror>> {
    if options.layers == 0 {
        return Err(invalid("the base is not below the top"));
    }
    if options.base.is_read_only() {
        return Err(invalid("the base is read-only"));
    }
    let role = match options.active {
        true => Role::CommitActive(options.layers),
        false => Role::Commit(options.layers),
    };
    let mirror = MirrorOptions {
        granularity: options.granularity,
        buffer: options.buffer,
        parallel: options.parallel,
        on_source_error: options.on_error,
        on_target_error: options.on_error,
        finish: options.finish,
        ..MirrorOptions::new(options.top, options.base)
    };
    Mirror::with_role(mirror, role)
}
