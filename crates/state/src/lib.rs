//! Placeholder for state.
