//! Thread cancellation around raw system calls, as glibc's own wrappers have it.
//!
//! glibc makes a thread cancellable asynchronously while it sits in a blocking call. A raw call without that would
//! never end for a cancelled thread. Only programs with several threads pay for it.
#![allow(unsafe_code)]

use crate::descriptors::BLOCKS;

unsafe extern "C" {
    /// glibc 2.32: not 0 while the process has one thread.
    static __libc_single_threaded: core::ffi::c_char;
    fn pthread_setcanceltype(kind: i32, old: *mut i32) -> i32;
    fn pthread_testcancel();
}

/// `PTHREAD_CANCEL_ASYNCHRONOUS` of glibc.
const ASYNCHRONOUS: i32 = 1;

/// True while the process has, or has ever had, more than one thread.
#[inline(always)]
pub fn is_threaded() -> bool {
    // SAFETY: a byte that glibc exports for reading.
    unsafe { core::ptr::read_volatile(&raw const __libc_single_threaded) == 0 }
}

/// Issues `call`, which may block if `flags` of the descriptor say so, as a cancellation point.
#[inline(always)]
pub fn call(flags: u64, call: impl Fn() -> isize) -> isize {
    if flags & BLOCKS == 0 || !is_threaded() { call() } else { cancellable(call) }
}

#[cold]
#[inline(never)]
fn cancellable(call: impl Fn() -> isize) -> isize {
    let mut before = 0;
    // SAFETY: plain glibc calls. While the type is asynchronous this frame holds nothing that would have to be given
    // back, and the library is built to abort rather than unwind, so that frames are skipped whole.
    unsafe { pthread_setcanceltype(ASYNCHRONOUS, &raw mut before) };
    let result = call();
    // SAFETY: as above.
    unsafe { pthread_setcanceltype(before, core::ptr::null_mut()) };
    result
}

/// Acts on a pending cancellation, before anything is held.
#[inline(always)]
pub fn cancellation_point() {
    if is_threaded() {
        // SAFETY: nothing is held by the frames above.
        unsafe { pthread_testcancel() };
    }
}
