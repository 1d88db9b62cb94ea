//! Placeholder for accel-kvm.
