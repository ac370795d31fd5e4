//! truncate(2), ftruncate(2), fallocate(2), posix_fallocate(3).
#![allow(unsafe_code)]

use core::ffi::c_char;

use journal::record::Kind;

use crate::descriptors::Verdict;
use crate::operation::{Draft, Operation, conclude};
use crate::state;
use crate::sys::{error, is_error, stat_descriptor, syscall};

use super::identify;
use super::target::{Follow, Target};

/// ftruncate(2).
pub fn ftruncate(fd: i32, size: i64) -> isize {
    // SAFETY: no pointers.
    let call = || unsafe { syscall!(libc::SYS_ftruncate, fd, size) };
    let Some(ring) = state::ring() else { return call() };
    let Verdict::File(file, flags) = identify::descriptor(ring, fd) else { return call() };
    let Some(mut operation) = Operation::on_contents(ring) else { return call() };
    let maybe = crate::descriptors::record_flags(flags);
    operation.lock_file(file, maybe);
    let pending = operation.intend(&Draft { file, a: size as u64, flags: maybe, ..Draft::new(Kind::Truncate) }, 0);
    let result = call();
    conclude(&operation, pending, !is_error(result), |_| {});
    result
}

/// truncate(2).
pub fn truncate(address: *const c_char, size: i64) -> isize {
    // SAFETY: the program's own call; the kernel checks the address.
    let call = || unsafe { syscall!(libc::SYS_truncate, address, size) };
    super::target::on_path(crate::sys::HERE, address, Follow::Yes, call, |operation, target| {
        let Target { file, path, .. } = *target;
        let bind = operation.intend(&Draft { file, path1: path, ..Draft::new(Kind::Bind) }, 0);
        let pending = operation.intend(&Draft { file, a: size as u64, ..Draft::new(Kind::Truncate) }, 0);
        let result = call();
        conclude(operation, bind, !is_error(result), |_| {});
        conclude(operation, pending, !is_error(result), |_| {});
        result
    })
}

/// fallocate(2), in all its modes.
pub fn fallocate(fd: i32, mode: i32, offset: i64, bytes: i64) -> isize {
    // SAFETY: no pointers.
    let call = || unsafe { syscall!(libc::SYS_fallocate, fd, mode, offset, bytes) };
    let Some(ring) = state::ring() else { return call() };
    let Verdict::File(file, flags) = identify::descriptor(ring, fd) else { return call() };
    let Some(mut operation) = Operation::on_contents(ring) else { return call() };
    let maybe = crate::descriptors::record_flags(flags);
    operation.lock_file(file, maybe);
    let draft = Draft {
        file,
        a: offset as u64,
        b: bytes as u64,
        c: mode as u64,
        data: &[0; 8],
        flags: maybe,
        ..Draft::new(Kind::Allocate)
    };
    let pending = operation.intend(&draft, 0);
    let result = call();
    if !is_error(result)
        && let Some(pending) = &pending
        && let Ok(stat) = stat_descriptor(fd)
    {
        let (data, room) = operation.data(pending);
        let size = (stat.st_size as u64).to_le_bytes();
        if room >= size.len() {
            // SAFETY: the claim has room for it, and the record is still ours.
            unsafe { core::ptr::copy_nonoverlapping(size.as_ptr(), data, size.len()) };
        }
    }
    conclude(&operation, pending, !is_error(result), |_| {});
    if is_error(result) {
        operation.failed(file, maybe);
    }
    result
}

/// posix_fallocate(3): the error number itself, 0 for success. Where the file system can't, each block is touched, as
/// glibc does it.
pub fn posix_fallocate(fd: i32, offset: i64, bytes: i64) -> i32 {
    if offset < 0 || bytes < 0 {
        return libc::EINVAL;
    }
    let result = fallocate(fd, 0, offset, bytes);
    if result != error(libc::EOPNOTSUPP) {
        return if is_error(result) { -result as i32 } else { 0 };
    }
    let stat = match stat_descriptor(fd) {
        Ok(stat) => stat,
        Err(error) => return -error as i32,
    };
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => {}
        libc::S_IFIFO => return libc::ESPIPE,
        _ => return libc::ENODEV,
    }
    let Some(end) = offset.checked_add(bytes) else { return libc::EFBIG };
    let step = stat.st_blksize.clamp(512, 4096);
    let mut at = offset;
    if bytes == 0 {
        return if end > stat.st_size && is_error(ftruncate(fd, end)) { libc::EINVAL } else { 0 };
    }
    while at < end {
        let last = (at - at % step + step - 1).min(end - 1);
        let mut byte = 0u8;
        let got = if last < stat.st_size {
            // SAFETY: reads one byte into this frame.
            unsafe { syscall!(libc::SYS_pread64, fd, &raw mut byte, 1, last) }
        } else {
            0
        };
        if is_error(got) {
            return -got as i32;
        }
        // A byte that is read as something else than zero is allocated already.
        if got == 0 || byte == 0 {
            let wrote = super::write::pwrite(fd, &raw const byte, 1, last);
            if is_error(wrote) {
                return -wrote as i32;
            }
        }
        at = last + 1;
    }
    0
}
