//! Placeholder for accel.
