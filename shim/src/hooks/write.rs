//! write(2) and its family: the bytes go into the record first and from there into the file.
#![allow(unsafe_code)]

use journal::Ring;
use journal::record::{DATA_BYTES_MAX, FileId, Kind};
use libc::iovec;

use crate::descriptors::{self, APPENDS, DIRECT, Verdict};
use crate::operation::{Draft, Operation, Pending};
use crate::readable;
use crate::state;
use crate::sys::{error, is_error, stat_descriptor, syscall, syscall3};

use super::blocking;
use super::identify;

/// Most bytes that one write transfers (`MAX_RW_COUNT` of Linux).
const TRANSFER_BYTES_MAX: usize = 0x7fff_f000;
/// Most parts of a scattered write (`UIO_MAXIOV`).
const PARTS_MAX: usize = 1024;
/// No program has memory up to here, on any machine that Linux runs on.
const ADDRESS_MAX: usize = 1 << 56;
const RWF_APPEND: i32 = 0x10;
const RWF_NOAPPEND: i32 = 0x20;

/// Where a write begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Offset {
    /// At the descriptor's position, which it moves.
    Current,
    /// At this place.
    At(i64),
}

/// write(2).
#[inline(always)]
pub fn write(fd: i32, buffer: *const u8, bytes: usize) -> isize {
    if let Some(ring) = state::ring() {
        match identify::descriptor(ring, fd) {
            Verdict::File(file, flags) if bytes > 0 && can_be_memory(buffer, bytes) => {
                return record_one(ring, Target { fd, file, flags }, buffer, bytes, -1);
            }
            Verdict::Outside(flags) => {
                // SAFETY: the program's own call, as it made it.
                return blocking::call(flags, move || unsafe {
                    syscall3(libc::SYS_write, fd as usize, buffer as usize, bytes)
                });
            }
            _ => {}
        }
    }
    // SAFETY: as above.
    unsafe { syscall!(libc::SYS_write, fd, buffer, bytes) }
}

/// pwrite(2).
#[inline(always)]
pub fn pwrite(fd: i32, buffer: *const u8, bytes: usize, offset: i64) -> isize {
    if let Some(ring) = state::ring()
        && let Verdict::File(file, flags) = identify::descriptor(ring, fd)
        && bytes > 0
        && offset >= 0
        && can_be_memory(buffer, bytes)
    {
        return record_one(ring, Target { fd, file, flags }, buffer, bytes, offset);
    }
    // SAFETY: the program's own call, as it made it.
    unsafe { syscall!(libc::SYS_pwrite64, fd, buffer, bytes, offset) }
}

/// A write from one buffer; offset -1 means the descriptor's position. Apart, so that calls on other descriptors don't
/// pay for its frame.
#[inline(never)]
fn record_one(ring: &Ring, target: Target, buffer: *const u8, bytes: usize, offset: i64) -> isize {
    let part = iovec { iov_base: buffer.cast_mut().cast(), iov_len: bytes };
    let offset = if offset < 0 { Offset::Current } else { Offset::At(offset) };
    record_write(ring, target, &[part], offset, 0)
}

/// writev(2).
pub fn writev(fd: i32, parts: *const iovec, count: i32) -> isize {
    scattered(fd, parts, count, Offset::Current, 0, |flags| {
        // SAFETY: the program's own call, as it made it.
        blocking::call(flags, || unsafe { syscall!(libc::SYS_writev, fd, parts, count) })
    })
}

/// pwritev(2).
pub fn pwritev(fd: i32, parts: *const iovec, count: i32, offset: i64) -> isize {
    scattered(fd, parts, count, Offset::At(offset), 0, |_| {
        // SAFETY: the program's own call. The offset goes in two halves, of which 64-bit kernels use the first.
        unsafe { syscall!(libc::SYS_pwritev, fd, parts, count, offset, 0) }
    })
}

/// pwritev2(2); offset -1 means the descriptor's position.
pub fn pwritev2(fd: i32, parts: *const iovec, count: i32, offset: i64, flags: i32) -> isize {
    let start = if offset == -1 { Offset::Current } else { Offset::At(offset) };
    scattered(fd, parts, count, start, flags, |verdict| {
        // SAFETY: as above.
        blocking::call(verdict, || unsafe { syscall!(libc::SYS_pwritev2, fd, parts, count, offset, 0, flags) })
    })
}

fn scattered(
    fd: i32,
    parts: *const iovec,
    count: i32,
    offset: Offset,
    rwf: i32,
    plain: impl Fn(u64) -> isize,
) -> isize {
    let Some(ring) = state::ring() else { return plain(0) };
    let (file, flags) = match identify::descriptor(ring, fd) {
        Verdict::File(file, flags) => (file, flags),
        Verdict::Outside(flags) => return plain(flags),
        Verdict::Unknown => return plain(0),
    };
    let count = count as usize;
    let valid_offset = !matches!(offset, Offset::At(at) if at < 0);
    if count == 0
        || count > PARTS_MAX
        || !valid_offset
        || !readable::is_readable(parts.cast(), count * size_of::<iovec>())
    {
        return plain(0);
    }
    // SAFETY: found readable just now; the kernel reads the same array in the same call.
    let parts = unsafe { core::slice::from_raw_parts(parts, count) };
    let mut total = 0usize;
    for part in parts {
        match total.checked_add(part.iov_len) {
            Some(sum) if sum <= isize::MAX as usize && can_be_memory(part.iov_base.cast(), part.iov_len) => total = sum,
            _ => return plain(0),
        }
    }
    if total == 0 {
        return plain(0);
    }
    record_write(ring, Target { fd, file, flags }, parts, offset, rwf)
}

/// False for a buffer that the kernel refuses as a whole, before it shortens what is asked to what it transfers at once.
fn can_be_memory(address: *const u8, bytes: usize) -> bool {
    address.addr().checked_add(bytes).is_some_and(|end| end <= ADDRESS_MAX)
}

/// The descriptor that is written to.
#[derive(Clone, Copy)]
struct Target {
    fd: i32,
    file: FileId,
    flags: u64,
}

impl Target {
    const fn record_flags(self) -> u8 {
        crate::descriptors::record_flags(self.flags)
    }
}

/// A place in the program's scattered buffer.
#[derive(Clone, Copy)]
struct Source<'a> {
    parts: &'a [iovec],
    /// Bytes of the first part that are done.
    skip: usize,
}

impl<'a> Source<'a> {
    /// Copies up to `room` bytes to `to`; how many, or `None` when some of it can't be read.
    fn copy(&self, to: *mut u8, room: usize) -> Option<usize> {
        let mut done = 0;
        let mut skip = self.skip;
        for part in self.parts {
            let bytes = (part.iov_len - skip).min(room - done);
            let from = part.iov_base.cast::<u8>().wrapping_add(skip);
            skip = 0;
            if bytes == 0 {
                continue;
            }
            if !readable::is_readable(from, bytes) {
                return None;
            }
            // SAFETY: `from` was found readable for `bytes`; `to` has room; the ring is not the program's buffer.
            unsafe { core::ptr::copy_nonoverlapping(from, to.add(done), bytes) };
            done += bytes;
            if done == room {
                break;
            }
        }
        Some(done)
    }

    /// What is left after `bytes` more are done.
    fn after(&self, bytes: usize) -> Source<'a> {
        let mut left = bytes + self.skip;
        let mut parts = self.parts;
        while let Some((first, rest)) = parts.split_first() {
            if left < first.iov_len {
                break;
            }
            left -= first.iov_len;
            parts = rest;
        }
        Source { parts, skip: left }
    }
}

/// Writes and records, in pieces of at most [`DATA_BYTES_MAX`].
///
/// The pieces are written under one lock, so they are one write for all wrapped programs. A piece that comes out short
/// ends it, as the kernel's own write ends there.
fn record_write(ring: &Ring, target: Target, parts: &[iovec], offset: Offset, rwf: i32) -> isize {
    let total = parts.iter().fold(0usize, |sum, part| sum.saturating_add(part.iov_len)).min(TRANSFER_BYTES_MAX);
    blocking::cancellation_point();
    let Some(mut operation) = Operation::on_contents(ring) else {
        return write_pieces(target.fd, parts, offset, rwf);
    };
    operation.lock_file(target.file, target.record_flags());
    let meaning = descriptors::meaning(target.fd);
    let appends = (target.flags & APPENDS != 0 || rwf & RWF_APPEND != 0) && rwf & RWF_NOAPPEND == 0;
    let mut source = Source { parts, skip: 0 };
    let mut done = 0;
    let result = loop {
        let wanted = (total - done).min(DATA_BYTES_MAX);
        let piece_offset = match offset {
            Offset::Current => Offset::Current,
            Offset::At(at) => Offset::At(at.saturating_add(done as i64)),
        };
        let written = record_piece(&operation, target, source, wanted, piece_offset, appends, rwf);
        if is_error(written) {
            break if done > 0 { done as isize } else { written };
        }
        done += written as usize;
        if (written as usize) < wanted || done >= total || is_at_size_limit(target.fd, offset, done) {
            break done as isize;
        }
        source = source.after(written as usize);
    };
    // overlayfs appends all the same, and answers as if it had not.
    let may_have_appended = rwf & RWF_NOAPPEND != 0 && target.flags & APPENDS != 0;
    if may_have_appended {
        operation.reread(target.file, 0, u64::MAX, target.record_flags());
    }
    let is_changing = descriptors::is_changing(target.fd);
    if is_changing || descriptors::meaning(target.fd) != meaning || is_other(ring, target) {
        reread_both(&operation, target);
    }
    result
}

/// True when the next piece would begin at the largest size that the process may write (RLIMIT_FSIZE): the kernel would
/// send SIGXFSZ for it, and doesn't for a whole write that is only cut short there.
fn is_at_size_limit(fd: i32, offset: Offset, done: usize) -> bool {
    let mut limit = [0u64; 2];
    // SAFETY: the kernel writes two words.
    unsafe { syscall!(libc::SYS_prlimit64, 0, libc::RLIMIT_FSIZE, 0, limit.as_mut_ptr()) };
    let next = match offset {
        Offset::Current => position(fd),
        Offset::At(at) => at.saturating_add(done as i64),
    };
    next as u64 >= limit[0]
}

/// True when the descriptor is known to be another file than the one that the write began with.
fn is_other(ring: &Ring, target: Target) -> bool {
    match identify::known(ring, target.fd) {
        Verdict::File(file, _) => file != target.file,
        Verdict::Outside(_) => true,
        Verdict::Unknown => false,
    }
}

/// Another thread has given the descriptor a new meaning during the write (dup2(2)): either file may have been written.
#[cold]
fn reread_both(operation: &Operation<'_>, target: Target) {
    operation.reread(target.file, 0, u64::MAX, target.record_flags());
    if let Verdict::File(file, flags) = identify::descriptor(operation.ring, target.fd) {
        operation.reread(file, 0, u64::MAX, crate::descriptors::record_flags(flags));
    }
}

fn record_piece(
    operation: &Operation<'_>,
    target: Target,
    source: Source<'_>,
    wanted: usize,
    offset: Offset,
    appends: bool,
    rwf: i32,
) -> isize {
    let fd = target.fd;
    // Two positions that don't fit tell that somebody who shares the descriptor has moved it during the call.
    let before = match offset {
        Offset::Current if !appends => position(fd),
        Offset::Current => 0,
        Offset::At(at) => at,
    };
    let draft = Draft {
        file: target.file,
        // Where an append will land is not known before the call.
        a: if appends { u64::MAX } else { before as u64 },
        b: wanted as u64,
        flags: target.record_flags(),
        ..Draft::new(Kind::Write)
    };
    let Some(pending) = operation.prepare(&draft, wanted) else {
        return write_part(fd, source, wanted, offset, rwf);
    };
    let (data, _) = operation.data(&pending);
    let copied = source.copy(data, wanted);
    operation.declare(&pending);
    let result = match copied {
        Some(bytes) if target.flags & DIRECT == 0 => {
            let whole = [iovec { iov_base: data.cast(), iov_len: bytes }];
            let result = write_part(fd, Source { parts: &whole, skip: 0 }, bytes, offset, rwf);
            // Direct transfers want the program's alignment, not the ring's. EINVAL: nothing was written.
            if result == error(libc::EINVAL) { write_part(fd, source, wanted, offset, rwf) } else { result }
        }
        _ => write_part(fd, source, wanted, offset, rwf),
    };
    if is_error(result) || result == 0 {
        operation.abort(&pending);
        operation.failed(target.file, target.record_flags());
        return result;
    }
    if copied.is_none() {
        // The kernel has read as much as could be read; so can we.
        source.copy(data, result as usize);
    }
    conclude_write(operation, pending, target, offset, before, appends, result);
    result
}

fn conclude_write(
    operation: &Operation<'_>,
    pending: Pending,
    target: Target,
    offset: Offset,
    before: i64,
    appends: bool,
    result: isize,
) {
    let start = if appends {
        // Under the file's lock nobody else appends, so it has become the end. The position would be cheaper to ask for,
        // but whoever shares the descriptor may move it.
        stat_descriptor(target.fd).ok().map(|stat| stat.st_size - result as i64)
    } else {
        match offset {
            Offset::Current => Some(before).filter(|before| before + result as i64 == position(target.fd)),
            Offset::At(at) => Some(at),
        }
    };
    match start {
        Some(start) if start >= 0 => operation.commit(pending, |header| {
            header.a = start as u64;
            header.b = result as u64;
            header.data_bytes = result as u32;
        }),
        _ => {
            operation.abort(&pending);
            operation.reread(target.file, 0, u64::MAX, target.record_flags());
        }
    }
}

fn position(fd: i32) -> i64 {
    // SAFETY: lseek(2) with offset 0 from the current position changes nothing.
    unsafe { syscall!(libc::SYS_lseek, fd, 0, libc::SEEK_CUR) as i64 }
}

/// The system call itself, for at most `bytes` bytes of `source`.
fn write_part(fd: i32, source: Source<'_>, bytes: usize, offset: Offset, rwf: i32) -> isize {
    let first = source.parts.first().map_or((core::ptr::null_mut(), 0), |part| {
        (part.iov_base.cast::<u8>().wrapping_add(source.skip), part.iov_len - source.skip)
    });
    if first.1 >= bytes && rwf == 0 {
        return match offset {
            // SAFETY: the kernel checks the address and reads at most `bytes`.
            Offset::Current => unsafe { syscall!(libc::SYS_write, fd, first.0, bytes) },
            // SAFETY: as above.
            Offset::At(at) => unsafe { syscall!(libc::SYS_pwrite64, fd, first.0, bytes, at) },
        };
    }
    write_pieces_limited(fd, source, bytes, offset, rwf)
}

fn write_pieces(fd: i32, parts: &[iovec], offset: Offset, rwf: i32) -> isize {
    write_pieces_limited(fd, Source { parts, skip: 0 }, TRANSFER_BYTES_MAX, offset, rwf)
}

fn write_pieces_limited(fd: i32, source: Source<'_>, bytes: usize, offset: Offset, rwf: i32) -> isize {
    // A bounded number of parts at a time: a caller on a small stack must not pay for the largest array.
    const AT_ONCE: usize = 32;
    let mut rest = source;
    let mut done = 0;
    loop {
        let mut parts = [iovec { iov_base: core::ptr::null_mut(), iov_len: 0 }; AT_ONCE];
        let mut count = 0;
        let mut taken = 0;
        let mut skip = rest.skip;
        for (to, part) in parts.iter_mut().zip(rest.parts) {
            to.iov_base = part.iov_base.cast::<u8>().wrapping_add(skip).cast();
            to.iov_len = (part.iov_len - skip).min(bytes - done - taken);
            taken += to.iov_len;
            skip = 0;
            count += 1;
        }
        let at = match offset {
            Offset::Current => -1,
            Offset::At(at) => at.saturating_add(done as i64),
        };
        // SAFETY: the array is ours; the kernel checks the addresses in it. Offset -1 means the current position.
        let result = unsafe { syscall!(libc::SYS_pwritev2, fd, parts.as_ptr(), count, at, 0, rwf) };
        if is_error(result) {
            return if done > 0 { done as isize } else { result };
        }
        done += result as usize;
        rest = rest.after(result as usize);
        if (result as usize) < taken || taken == 0 || done >= bytes || rest.parts.is_empty() {
            return done as isize;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(bytes: &[u8]) -> iovec {
        iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
    }

    #[test]
    fn a_scattered_buffer_is_taken_piece_by_piece() {
        let parts = [part(b"abc"), part(b""), part(b"defgh"), part(b"i")];
        let mut source = Source { parts: &parts, skip: 0 };
        let mut taken = Vec::new();
        for room in [2, 1, 4, 9] {
            let mut piece = [0u8; 9];
            let bytes = source.copy(piece.as_mut_ptr(), room).expect("readable");
            taken.extend_from_slice(&piece[..bytes]);
            source = source.after(bytes);
        }
        assert_eq!(taken, b"abcdefghi");
        assert!(source.parts.is_empty());
    }
}
