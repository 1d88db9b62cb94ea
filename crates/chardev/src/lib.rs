//! Placeholder for chardev.
