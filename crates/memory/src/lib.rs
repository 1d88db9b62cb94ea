//! Placeholder for memory.
