//! Placeholder for x86.
