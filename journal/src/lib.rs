//! The contract between the programs that lockstep wraps and its replayer, on one page.
//!
//! - Both sides map one file ([`layout`]): a header, a slot for each thread, two tables of locks, tables of
//!   processes and mappings, cursors, and a ring of cells with a control word each.
//! - A thread that is about to change the primary enters an operation and takes the locks of what it will touch
//!   ([`locks`]), **claims** space ([`claims`]), writes the **intent**, lets the system call happen, **commits** with
//!   the outcome or aborts, and leaves. Claims come before calls, so the order of the ring agrees with real time, with
//!   the order in which conflicting calls took effect, and with what other programs may have read.
//! - The replayer reads records in order ([`record`]), gives them sequence numbers, applies them and releases the space.
//! - A thread that dies anywhere leaves nothing behind but its slot, which says so ([`slots`]); whoever stumbles over
//!   it settles its records first and frees its locks after.
//!
//! This crate knows nothing of files or mirrors. It never allocates, never panics on what it finds in the shared
//! memory, and makes no system call but futex(2), gettid(2), getpid(2) and nanosleep(2).
#![cfg_attr(not(any(test, loom)), no_std)]

pub mod claims;
pub mod layout;
#[cfg(not(loom))]
pub mod locks;
#[cfg(not(loom))]
pub mod mappings;
#[cfg(not(loom))]
pub mod processes;
pub mod record;
#[cfg(not(loom))]
pub mod ring;
#[cfg(not(loom))]
pub mod slots;
pub mod sync;
pub mod sys;

#[cfg(not(loom))]
pub use ring::Ring;
