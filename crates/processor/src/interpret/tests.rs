//! The interpreter against the host's own processor, against the manual, and with programs.

mod families;
mod guest;
mod host;
mod random;
mod strings;
