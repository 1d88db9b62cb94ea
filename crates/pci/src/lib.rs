//! Placeholder for pci.
