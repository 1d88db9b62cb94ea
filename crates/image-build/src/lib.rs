//! Builds bootable Debian disk images.
//!
//! The packages come from the machine's own Debian apt sources through mmdebstrap, the file system
//! from `mke2fs -d`, and the kernel and its initramfs out of the finished tree, so that a virtual
//! machine boots them directly. Nothing here needs a loop device or a mount: as root it runs as it
//! is, otherwise mmdebstrap unshares a user namespace and fakeroot keeps the ownership of files.
//!
//! ```text
//!  DebianGuest ──> Recipe ──> Tree::bootstrap ──┬──> Tree::write_ext4   NAME.img      root file system
//!   what a user     packages,  apt sources       ├──> Kernel::copy      NAME.vmlinuz  bzImage
//!   asks for        files,     mmdebstrap        │                      NAME.initrd   initramfs
//!                   script     package cache     ├──> vmlinux::extract  NAME.vmlinux  ELF, boots by PVH
//!                                                └──> config            NAME.toml     a machine that boots it
//! ```
//!
//! Layout:
//! - [`guest`]: the Debian guest that `vireo image build debian` offers, as a recipe.
//! - [`recipe`]: packages, files and a script: what any image consists of.
//! - [`sources`]: which of the machine's apt sources are Debian's.
//! - [`tree`]: runs mmdebstrap, holds the unpacked system and writes file systems from it.
//! - [`vmlinux`]: the uncompressed kernel inside a bzImage.
//! - [`progress`]: what the build reports while it runs, and a bar that draws it.
//! - `log`: reads progress out of mmdebstrap's messages.
//! - `program`: finds and runs other programs.
//!
//! ```no_run
//! use image_build::{DebianGuest, Options, progress::Bar};
//!
//! let guest = DebianGuest { hostname: "demo".into(), ..DebianGuest::default() };
//! let built = image_build::build(&guest, "debian.img".as_ref(), &Options::default(), &mut Bar::new())?;
//! println!("boot it with {}", built.config.display());
//! # Ok::<(), image_build::Error>(())
//! ```

mod build;
mod config;
mod error;
pub mod guest;
mod log;
mod program;
pub mod progress;
pub mod recipe;
pub mod sources;
pub mod tree;
pub mod vmlinux;

pub use build::{Built, Options, Outputs, build};
pub use error::Error;
pub use guest::DebianGuest;
pub use recipe::{File, Recipe};
pub use tree::{Ext4, Kernel, Tree};
