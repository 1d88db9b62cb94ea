//! Placeholder for block.
