//! dlmopen: another namespace may bring a libc of its own, whose functions need our jumps too.
#![allow(unsafe_code)]

use core::ffi::{c_char, c_int, c_long, c_void};

use crate::patch::{Patch, install_in, libc_function};

/// dlmopen(3): loads by libc's own function, then patches every libc in that namespace that isn't yet.
///
/// What constructors in the new namespace write before dlmopen returns is not seen. A name without a slash is looked
/// up along our run path instead of the caller's, because the loader takes us for the caller.
///
/// # Safety
/// The arguments are the program's. `table` is one for [`install_in`].
pub unsafe fn dlmopen(namespace: c_long, name: *const c_char, mode: c_int, table: &[Patch]) -> *mut c_void {
    let Some(real) = libc_function(c"dlmopen") else { return core::ptr::null_mut() };
    // SAFETY: the address of libc's function, which has this signature (dlfcn.h).
    let real: unsafe extern "C" fn(c_long, *const c_char, c_int) -> *mut c_void = unsafe { core::mem::transmute(real) };
    // SAFETY: the program's own arguments.
    let handle = unsafe { real(namespace, name, mode) };
    if !handle.is_null() {
        // SAFETY: a handle that was just given out. The table is the caller's promise.
        unsafe { install_in(handle, table) };
    }
    handle
}
