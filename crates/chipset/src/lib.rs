//! Placeholder for chipset.
