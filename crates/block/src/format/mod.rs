//! Formats: where in the storage the guest's bytes are.

mod chain;
mod make;
pub mod qcow2;
mod raw;

pub use chain::{
    Image, Layer, OpenOptions, create_file, open, open_image, open_layer, open_layer_with_key,
    open_storage,
};
pub use make::{create_image, create_luks, image_size};
pub use raw::Raw;
