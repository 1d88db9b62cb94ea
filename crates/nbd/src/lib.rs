//! Network block devices: the NBD protocol, as a server of disks and as a disk that a server has.
//!
//! ```text
//!   clients: qemu-img, nbdcopy,                        formats: raw, qcow2
//!   the kernel, another Vireo                                 │
//!            │                                                ▼
//!            ▼                                             [Client]  a block::storage::Storage
//!         [Server] ── [Export]: a node,                       │ requests wait, and are sent
//!            │         its bitmaps, what clients may          │ again, when the server is lost
//!            ▼                                                ▼
//!       block::Node                                     somebody's server
//! ```
//!
//! Both speak fixed newstyle negotiation, TLS with X.509 certificates, simple and structured
//! replies and extended headers, with any number of requests under way. The server offers the
//! metadata contexts `base:allocation`, `qemu:allocation-depth` and `qemu:dirty-bitmap:NAME`; the
//! client asks for the first one, and for one more if it is told to. Everything is as the
//! NetworkBlockDevice project's doc/proto.md and doc/uri.md say.
//!
//! Connections are tasks on I/O threads (crate `event`); nothing blocks but looking up a name.
//!
//! | file          | what                                                             |
//! |---------------|------------------------------------------------------------------|
//! | `protocol.rs` | numbers and headers                                               |
//! | `address.rs`  | where servers are; URIs                                           |
//! | `stream.rs`   | a connection's bytes, plain or by TLS                             |
//! | `tls.rs`      | certificates in a directory, as QEMU lays them out                |
//! | `server`      | [`Server`]: negotiation as a model, connections, requests         |
//! | `client`      | [`Client`]: negotiation, the connection, the storage over it      |
//!
//! ```no_run
//! # fn example(thread: event::IoThread, node: std::sync::Arc<dyn block::Node>)
//! # -> Result<(), Box<dyn std::error::Error>> {
//! use nbd::{Export, Server, ServerOptions};
//!
//! let server = Server::new(ServerOptions::new(vec![thread]));
//! server.add_export(Export::new("disk", node))?;
//! server.listen(&"unix:/run/disk.nbd".parse()?)?;
//! // ...
//! server.stop().wait()?;
//! # Ok(()) }
//! ```

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
