//! Calls that change the address space: what was known to be readable is forgotten.
#![allow(unsafe_code)]

use crate::readable;
use crate::sys::syscall;

/// munmap(2).
pub fn munmap(address: usize, bytes: usize) -> isize {
    // SAFETY: the program's own call.
    let result = unsafe { syscall!(libc::SYS_munmap, address, bytes) };
    readable::forget();
    result
}

/// mprotect(2).
pub fn mprotect(address: usize, bytes: usize, protection: i32) -> isize {
    // SAFETY: the program's own call.
    let result = unsafe { syscall!(libc::SYS_mprotect, address, bytes, protection) };
    if protection & libc::PROT_READ == 0 {
        readable::forget();
    }
    result
}

/// mremap(2).
pub fn mremap(old: usize, old_bytes: usize, new_bytes: usize, flags: i32, new: usize) -> isize {
    // SAFETY: the program's own call.
    let result = unsafe { syscall!(libc::SYS_mremap, old, old_bytes, new_bytes, flags, new) };
    readable::forget();
    result
}

/// mmap(2).
pub fn mmap(address: usize, bytes: usize, protection: i32, flags: i32, fd: i32, offset: i64) -> isize {
    // SAFETY: the program's own call.
    let result = unsafe { syscall!(libc::SYS_mmap, address, bytes, protection, flags, fd, offset) };
    if flags & libc::MAP_FIXED != 0 {
        readable::forget();
    }
    result
}
