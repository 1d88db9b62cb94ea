//! Placeholder for net.
