//! Formats: where in the storage the guest's bytes are.

mod raw;

pub use raw::Raw;

use crate::spec::{DiskSpec, Format};
use crate::storage::FileStorage;
use crate::{BlockError, Node};

/// Formats that are recognised, to be refused when the user did not name one.
const MAGIC: [(&[u8], &str); 6] = [
    (b"QFI\xfb", "a qcow2 image"),
    (b"QED\0", "a QED image"),
    (b"KDMV", "a VMDK image"),
    (b"# Disk Descripto", "a VMDK descriptor"),
    (b"vhdxfile", "a VHDX image"),
    (b"conectix", "a VHD image"),
];

/// Opens the disk that `spec` describes.
///
/// # Errors
/// See [`BlockError`]: each names the path and says what to do.
pub fn open(spec: &DiskSpec) -> Result<std::sync::Arc<dyn Node>, BlockError> {
    let storage = FileStorage::open(spec)?;
    let format = match spec.format {
        Some(format) => format,
        None => {
            let first = storage.peek()?;
            match MAGIC.iter().find(|(magic, _)| first.starts_with(magic)) {
                None => Format::Raw,
                Some((_, looks_like)) => {
                    return Err(BlockError::Probe {
                        path: spec.file.clone(),
                        looks_like,
                    });
                }
            }
        }
    };
    let name = spec
        .node_name
        .clone()
        .unwrap_or_else(|| spec.file.display().to_string());
    match format {
        Format::Raw => Ok(std::sync::Arc::new(Raw::new(name, storage))),
    }
}
