//! Translated code against the interpreter: the same guest twice, and all of its state compared.

mod faults;
mod guest;
mod likely;
mod programs;
mod random;
#[cfg(feature = "speed")]
mod speed;
mod switches;
