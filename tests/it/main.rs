//! Tests of lockstep from outside: real programs, the real command, real directories.
//!
//! Each program runs bare and under `lockstep run`, with equal output and exit status; then both mirrors must equal the
//! primary. What a machine lacks is skipped with the reason, and fails instead where `CI` is set. `LOCKSTEP_FULL=1`
//! runs every workload and program on every file system and as every user.

mod audit;
mod bad_input;
mod binary;
mod chaos;
mod command_line;
mod compare;
mod cost;
mod harness;
mod mutants;
mod place;
mod process;
mod programs;
mod stores;
mod unfollowed;
mod workloads;
