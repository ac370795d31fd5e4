//! The library that lockstep preloads into programs. Rules of code in somebody else's process:
//!
//! 1. The program gets exactly what the kernel would give it: result, `errno`, signals, order.
//! 2. Our trouble is never its trouble. No panic, no invented error, no exit, no print. Where a record can't be made,
//!    that itself is noted (`operation::lose`), and the mirrors are compared.
//! 3. Hooks issue raw system calls only, never a function of libc that could be hooked.
//! 4. No heap, no lazy statics, no thread-local storage, no lock that the interrupted frame may hold, no descriptor
//!    kept beyond the call.
//! 5. Everything has a bound: record size, retries, time spent waiting.
//! 6. In a signal handler, after fork, in a child that borrows its parent's memory, before the constructor has run:
//!    each hook is right there too, or lets the call go by.
//!
//! `exports` lists what is hooked; the bodies are in `hooks/`, by family.
// Without the exports, which would hook the test itself, nobody calls the bodies.
#![cfg_attr(test, allow(dead_code))]

#[cfg(not(test))]
mod exports;

mod buffer;
mod descriptors;
mod directory;
mod elf;
mod exec;
mod hooks;
#[cfg(not(test))]
mod load;
mod mapped;
mod operation;
mod patch;
mod readable;
mod state;
mod stores;
mod sys;
mod thread;
mod tracking;
mod unwind;
