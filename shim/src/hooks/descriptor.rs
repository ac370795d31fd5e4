//! Calls that give descriptor numbers a new meaning, or the process another directory; and ioctl(2), fsync(2).
#![allow(unsafe_code)]

use core::ffi::c_char;
use core::sync::atomic::Ordering;

use journal::record::FileId;

use crate::buffer::Buffer;
use crate::descriptors::{self, Verdict};
use crate::readable;
use crate::state;
use crate::sys::{HERE, error, is_error, syscall};

use super::{aio, attributes, blocking, copy, identify, mapping};

/// close(2).
#[inline(always)]
pub fn close(fd: i32) -> isize {
    aio::before_close(fd);
    // Before, so that nobody believes the old meaning of the number once it is free; after, in case that somebody
    // looked in between.
    descriptors::reset(fd);
    // SAFETY: the program's own call.
    let result = unsafe { syscall!(libc::SYS_close, fd) };
    descriptors::reset(fd);
    result
}

/// close_range(2).
pub fn close_range(first: u32, last: u32, flags: u32) -> isize {
    if flags & libc::CLOSE_RANGE_CLOEXEC == 0 && first <= last {
        // As for close(2): before and after.
        descriptors::reset_range(first, last);
    }
    // SAFETY: the program's own call.
    let result = unsafe { syscall!(libc::SYS_close_range, first, last, flags) };
    if !is_error(result) && flags & libc::CLOSE_RANGE_UNSHARE != 0 && blocking::is_threaded() {
        descriptors::stop_remembering();
    }
    if !is_error(result) && flags & libc::CLOSE_RANGE_CLOEXEC == 0 && first <= last {
        descriptors::reset_range(first, last);
    }
    result
}

/// closefrom(3).
pub fn closefrom(first: i32) {
    let first = first.max(0) as u32;
    if !is_error(close_range(first, u32::MAX, 0)) {
        return;
    }
    // Before Linux 5.9: one by one, up to the limit.
    let mut limit = [0u64; 2];
    // SAFETY: the kernel writes two words.
    unsafe { syscall!(libc::SYS_prlimit64, 0, libc::RLIMIT_NOFILE, 0, limit.as_mut_ptr()) };
    for fd in first..u32::try_from(limit[0]).unwrap_or(u32::MAX).min(1 << 20) {
        close(fd as i32);
    }
}

fn duplicated(from: i32, result: isize) -> isize {
    if !is_error(result) && result as i32 != from {
        descriptors::copy(from, result as i32);
    }
    result
}

/// dup(2).
pub fn dup(fd: i32) -> isize {
    // SAFETY: the program's own call.
    duplicated(fd, unsafe { syscall!(libc::SYS_dup, fd) })
}

/// dup2(2).
pub fn dup2(from: i32, to: i32) -> isize {
    if from == to {
        // Nothing changes; the kernel says whether `from` is open. fcntl(2) F_GETFD does on all architectures.
        // SAFETY: no pointers.
        let result = unsafe { syscall!(libc::SYS_fcntl, from, libc::F_GETFD, 0) };
        return if is_error(result) { result } else { to as isize };
    }
    dup3(from, to, 0)
}

/// dup3(2).
pub fn dup3(from: i32, to: i32, flags: i32) -> isize {
    if from != to {
        descriptors::begin_change(to);
    }
    // SAFETY: the program's own call.
    let result = unsafe { syscall!(libc::SYS_dup3, from, to, flags) };
    if is_error(result) && from != to {
        descriptors::reset(to);
    }
    duplicated(from, result)
}

/// fcntl(2).
#[inline(always)]
pub fn fcntl(fd: i32, command: i32, argument: usize) -> isize {
    // SAFETY: the program's own call; the kernel checks what it takes for an address.
    let call = || unsafe { syscall!(libc::SYS_fcntl, fd, command, argument) };
    match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => duplicated(fd, call()),
        libc::F_SETFL => {
            let result = call();
            if !is_error(result) {
                descriptors::set_status(fd, argument as i32);
            }
            result
        }
        libc::F_SETLKW | libc::F_OFD_SETLKW => blocking::call(descriptors::BLOCKS, call),
        _ => call(),
    }
}

const FICLONE: u64 = 0x4004_9409;
const FICLONERANGE: u64 = 0x4020_940d;
const FS_IOC_SETFLAGS: u64 = 0x4008_6602;
const FS_IOC_FSSETXATTR: u64 = 0x401c_5820;
/// XFS's forerunners of fallocate(2), which Linux answers for all file systems.
const RESERVATIONS: [u64; 5] = [0x4030_5828, 0x4030_5829, 0x4030_582a, 0x4030_582b, 0x4030_5839];

/// ioctl(2). Requests that change files of the primary are recorded; others go by.
#[inline(always)]
pub fn ioctl(fd: i32, request: u64, argument: usize) -> isize {
    // SAFETY: the program's own call; the kernel checks what it takes for an address.
    let call = || unsafe { syscall!(libc::SYS_ioctl, fd, request, argument) };
    // The kernel looks at 32 bits only; programs may have sign-extended them.
    match request & 0xffff_ffff {
        FICLONE | FICLONERANGE => copy::change_by_ioctl(fd, 0, u64::MAX, call),
        request if RESERVATIONS.contains(&request) => copy::change_by_ioctl(fd, 0, u64::MAX, call),
        FS_IOC_SETFLAGS | FS_IOC_FSSETXATTR => set_flags(fd, request, argument, call),
        _ => call(),
    }
}

fn set_flags(fd: i32, request: u64, argument: usize, call: impl Fn() -> isize) -> isize {
    let address = argument as *const u32;
    if state::ring().is_none() {
        return call();
    }
    if request != FS_IOC_SETFLAGS {
        return set_extended_flags(fd, call);
    }
    if !readable::is_readable(address.cast(), 4) {
        return call();
    }
    // SAFETY: found readable; alignment is not assumed.
    let flags = unsafe { address.read_unaligned() };
    attributes::set_inode_flags(fd, flags, call)
}

/// FS_IOC_FSSETXATTR: recorded as the flags that are there afterwards.
fn set_extended_flags(fd: i32, call: impl Fn() -> isize) -> isize {
    const FS_IOC_GETFLAGS: u64 = 0x8008_6601;
    let result = call();
    let mut flags = 0u64;
    // SAFETY: the kernel writes one word.
    if !is_error(result) && !is_error(unsafe { syscall!(libc::SYS_ioctl, fd, FS_IOC_GETFLAGS, &raw mut flags) }) {
        attributes::set_inode_flags(fd, flags as u32, || 0);
    }
    result
}

/// fsync(2), fdatasync(2).
pub fn fsync(fd: i32, number: i64) -> isize {
    if let Some(ring) = state::ring()
        && let Verdict::File(file, _) = identify::known(ring, fd)
    {
        mapping::record_file(file);
    }
    // SAFETY: the program's own call.
    let result = blocking::call(descriptors::BLOCKS, || unsafe { syscall!(number, fd) });
    if let Some(ring) = state::ring()
        && !is_error(result)
        && let Verdict::File(file, _) = identify::known(ring, fd)
    {
        copy::synced(file);
    }
    result
}

/// sync(2), syncfs(2): `call` does it.
pub fn sync_all(call: impl Fn() -> isize) -> isize {
    mapping::record_all();
    let result = call();
    if !is_error(result) {
        copy::synced(FileId::NONE);
    }
    result
}

/// chdir(2), fchdir(2): `call` does it.
pub fn change_directory(call: impl Fn() -> isize) -> isize {
    // Counted before and after: an answer that was found in between is not remembered for the new directory.
    state::DIRECTORY_CHANGES.fetch_add(1, Ordering::SeqCst);
    let result = call();
    state::DIRECTORY_CHANGES.fetch_add(1, Ordering::SeqCst);
    result
}

/// chroot(2). Paths as this process sees them are prefixed from now on.
pub fn chroot(address: *const c_char) -> isize {
    // SAFETY: the program's own call; the kernel checks the address.
    let call = || unsafe { syscall!(libc::SYS_chroot, address) };
    let mut absolute = Buffer::new();
    let known = identify::follow(HERE, address, &mut absolute).is_ok();
    let result = change_directory(call);
    if !is_error(result) && known && !state::is_borrowed_memory() {
        let mut root = Buffer::new();
        let old = state::ROOT.get().to_bytes();
        if root.push(old) && root.push(absolute.bytes()) {
            state::ROOT.set(root.bytes().strip_suffix(b"/").unwrap_or(root.bytes()));
            if let Some(ring) = state::ring() {
                // Absolute spellings lead elsewhere now.
                ring.void_paths();
            }
        }
    }
    result
}

/// unshare(2): with CLONE_FS, each thread has a working directory of its own; with CLONE_FILES, descriptors of its own.
pub fn unshare(flags: i32) -> isize {
    // SAFETY: the program's own call.
    let result = unsafe { syscall!(libc::SYS_unshare, flags) };
    if !is_error(result) && flags & (libc::CLONE_FS | libc::CLONE_NEWNS | libc::CLONE_NEWUSER) != 0 {
        state::DIRECTORIES_DIFFER.store(true, Ordering::SeqCst);
    }
    if !is_error(result) && flags & libc::CLONE_FILES != 0 && blocking::is_threaded() {
        descriptors::stop_remembering();
    }
    result
}

/// A call whose changes can't be recorded: if it succeeds, the mirrors are compared.
pub fn compared_after(call: impl Fn() -> isize) -> isize {
    let result = call();
    if let Some(ring) = state::ring()
        && !is_error(result)
    {
        crate::operation::lose(ring);
    }
    result
}

/// io_uring_setup(2) and liburing's ways to it: answered as on a kernel without it; programs fall back.
pub const fn no_io_uring() -> isize {
    error(libc::ENOSYS)
}
