//! Placeholder for bus.
