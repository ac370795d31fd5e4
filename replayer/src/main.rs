//! The command `lockstep`: wraps programs, replays their changes to mirrors, and tells how it goes.

mod client;
mod exit;
mod library;
mod ring_file;
mod set;

fn main() {}
