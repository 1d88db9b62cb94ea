//! Network block devices: the NBD protocol, as a server of nodes and as a storage.

mod address;
mod client;
mod error;
mod protocol;
mod server;
mod stream;
#[cfg(test)]
mod tests;
mod tls;

pub use address::{Address, Uri};
pub use client::{Client, ClientOptions};
pub use error::NbdError;
pub use protocol::PORT;
pub use server::{BitmapSource, Export, ExportInfo, Removal, Server, ServerOptions};
pub use tls::{ClientCredentials, ServerCredentials};
