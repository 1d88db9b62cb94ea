//! Edges and vertices: how users are tied to nodes, and how that changes under load.
//!
//! ```text
//!   device ──[Edge]──▶ [Vertex] ── observers: bitmaps, jobs
//!                         │
//!                         ▼
//!                      a format: raw, qcow2 ──[Edge]──▶ [Vertex]   its backing file
//! ```
//!
//! An [`Edge`] is what a user holds: requests enter it, and it can be closed, which waits until
//! none is on its way, led to another vertex, and opened again. A [`Vertex`] is a node with those
//! who watch its changes. Both are nodes themselves, so that whoever makes requests need not know.

mod edge;
mod gate;
#[cfg(test)]
mod tests;
mod vertex;

pub use edge::{Drained, Edge, drain};
pub use vertex::{Change, ChangeKind, DetectZeroes, Observer, Vertex};
