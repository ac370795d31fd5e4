//! The command `lockstep`: wraps programs, replays their changes to mirrors, and tells how it goes.

fn main() {}
