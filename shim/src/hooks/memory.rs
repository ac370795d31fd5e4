//! Calls that change the address space: what was known to be readable is forgotten, and what was stored through shared
//! mappings is recorded (`mapping.rs`).
#![allow(unsafe_code)]

use crate::readable;
use crate::sys::syscall;

use super::mapping;

/// munmap(2).
pub fn munmap(address: usize, bytes: usize) -> isize {
    let result = mapping::munmap(address, bytes);
    readable::forget();
    result
}

/// mprotect(2), pkey_mprotect(2) without its key: `call` does it.
fn protect(address: usize, bytes: usize, protection: i32, call: impl Fn() -> isize) -> isize {
    let result = if protection & libc::PROT_WRITE != 0 { mapping::allow_stores(address, bytes, call) } else { call() };
    if protection & libc::PROT_READ == 0 {
        readable::forget();
    }
    result
}

/// mprotect(2).
pub fn mprotect(address: usize, bytes: usize, protection: i32) -> isize {
    // SAFETY: the program's own call.
    protect(address, bytes, protection, || unsafe { syscall!(libc::SYS_mprotect, address, bytes, protection) })
}

/// pkey_mprotect(2).
pub fn pkey_mprotect(address: usize, bytes: usize, protection: i32, key: i32) -> isize {
    // SAFETY: the program's own call.
    let call = || unsafe { syscall!(libc::SYS_pkey_mprotect, address, bytes, protection, key) };
    protect(address, bytes, protection, call)
}

/// mremap(2).
pub fn mremap(old: usize, old_bytes: usize, new_bytes: usize, flags: i32, new: usize) -> isize {
    let result = mapping::mremap(old, old_bytes, new_bytes, flags, new);
    readable::forget();
    result
}

/// mmap(2).
pub fn mmap(address: usize, bytes: usize, protection: i32, flags: i32, fd: i32, offset: i64) -> isize {
    let result = if mapping::concerns(flags, fd) {
        mapping::mmap(address, bytes, protection, flags, fd, offset)
    } else {
        // SAFETY: the program's own call.
        unsafe { syscall!(libc::SYS_mmap, address, bytes, protection, flags, fd, offset) }
    };
    if flags & libc::MAP_FIXED != 0 {
        readable::forget();
    }
    result
}

/// madvise(2).
pub fn madvise(address: usize, bytes: usize, advice: i32) -> isize {
    // SAFETY: the program's own call.
    let call = || unsafe { syscall!(libc::SYS_madvise, address, bytes, advice) };
    let drops = [libc::MADV_DONTNEED, libc::MADV_REMOVE, libc::MADV_PAGEOUT, libc::MADV_DONTNEED_LOCKED];
    if drops.contains(&advice) { mapping::advise(address, bytes, advice, call) } else { call() }
}
