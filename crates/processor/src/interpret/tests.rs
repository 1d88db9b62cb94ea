//! The interpreter against the host's own processor, against the manual, and with programs.

mod compiled;
mod families;
mod guest;
mod host;
mod programs;
mod random;
mod strings;
