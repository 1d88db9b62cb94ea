//! Placeholder for qmp.
