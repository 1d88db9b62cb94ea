//! Images that an NBD server has.

use block::storage::AnyStorage;
use block::{DiskSpec, Image, OpenOptions};
use nbd::{Client, ClientOptions, Uri};

use super::common;
use crate::failure::{Failure, Result};

/// Opens the image that `uri` names; `spec` says the rest.
pub(super) fn open(spec: DiskSpec, options: OpenOptions, uri: Uri) -> Result<Image> {
    let wanted = ClientOptions {
        read_only: spec.read_only,
        ..ClientOptions::of_uri(uri, None).map_err(|error| Failure::failed(&error))?
    };
    // The connection keeps it alive.
    let thread = common::thread("nbd")?;
    let client = Client::open(wanted, &thread)
        .join()
        .map_err(|gone| Failure::failed(&gone))?
        .map_err(|error| Failure::failed(&error))?;
    let name = spec.file.display().to_string();
    let layer = common::run(move || async move {
        block::open_layer(&spec, Some(AnyStorage::other(client)), None, &options).await
    })?;
    match layer.below {
        Some(below) if options.backing => Err(Failure::Failed(format!(
            "{name} lies on {}: of a server, only images without a backing file can be opened",
            below.file.display()
        ))),
        _ => Ok(layer.image),
    }
}
