//! Placeholder for spec.
