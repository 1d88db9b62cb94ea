//! Placeholder for event.
