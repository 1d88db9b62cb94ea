//! Placeholder for image-build.
