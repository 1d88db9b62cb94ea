//! Placeholder for virtio.
