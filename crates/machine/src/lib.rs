//! Placeholder for machine.
