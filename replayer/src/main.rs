//! The command `lockstep`: wraps programs, replays their changes to mirrors, and tells how it goes.

mod apply;
mod backlog;
mod bindings;
mod cli;
mod client;
mod content;
mod control;
mod coverage;
mod cursor;
mod error;
mod exit;
mod held;
mod intent;
mod ledger;
mod library;
mod limits;
mod mappings;
mod mirror;
mod names;
mod pagemap;
mod paths;
mod repair;
mod replay;
mod resync;
mod ring_file;
mod sequencer;
mod set;
mod settle;
mod site;
mod status;
mod tree;
mod verify;
mod worker;
mod xattrs;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main(std::env::args_os().collect()).into()
}
