//! Data that the kernel moves by itself: copy_file_range(2), sendfile(2), splice(2), clones.
//!
//! What it moved is read back from the file under its lock, so the record holds the bytes that are there, whatever
//! happens to the source.
#![allow(unsafe_code)]

use journal::locks::StripeIndex;
use journal::record::{DATA_BYTES_MAX, FileId, Kind};

use crate::descriptors::Verdict;
use crate::operation::{Draft, Operation, conclude};
use crate::readable;
use crate::state;
use crate::sys::{error, is_error, stat_descriptor, syscall};

use super::{blocking, identify};

/// Where the kernel takes an offset from.
#[derive(Clone, Copy)]
enum OffsetOf {
    Position(i32),
    Memory(*const i64),
}

impl OffsetOf {
    const fn new(fd: i32, memory: *const i64) -> Self {
        if memory.is_null() { Self::Position(fd) } else { Self::Memory(memory) }
    }

    /// The offset now; `None` when it can't be read, which the kernel will refuse.
    fn get(self) -> Option<i64> {
        match self {
            // SAFETY: lseek(2) by nothing changes nothing.
            Self::Position(fd) => Some(unsafe { syscall!(libc::SYS_lseek, fd, 0, libc::SEEK_CUR) as i64 }),
            // SAFETY: read only if readable; alignment is not assumed.
            Self::Memory(memory) => readable::is_readable(memory.cast(), 8).then(|| unsafe { memory.read_unaligned() }),
        }
    }
}

/// copy_file_range(2). A short count is always allowed here; programs go on until nothing is left.
pub fn copy_file_range(
    from: i32,
    from_offset: *mut i64,
    to: i32,
    to_offset: *mut i64,
    bytes: usize,
    flags: u32,
) -> isize {
    // SAFETY: the program's own call, but for the count; the kernel checks the addresses.
    let call =
        |bytes: usize| unsafe { syscall!(libc::SYS_copy_file_range, from, from_offset, to, to_offset, bytes, flags) };
    transfer(to, OffsetOf::new(to, to_offset), bytes, Origin::of(from, OffsetOf::new(from, from_offset)), call)
}

/// sendfile(2). Programs are used to its moving everything that is there, so the pieces are added up.
pub fn sendfile(to: i32, from: i32, from_offset: *mut i64, bytes: usize) -> isize {
    // SAFETY: as above.
    let call = |bytes: usize| unsafe { syscall!(libc::SYS_sendfile, to, from, from_offset, bytes) };
    let Some(ring) = state::ring() else { return call(bytes) };
    let Verdict::File(..) = identify::descriptor(ring, to) else { return call(bytes) };
    let mut done = 0;
    loop {
        let wanted = (bytes - done).min(DATA_BYTES_MAX);
        let origin = Origin::of(from, OffsetOf::new(from, from_offset));
        let result = transfer(to, OffsetOf::Position(to), wanted, origin, call);
        if is_error(result) {
            return if done > 0 { done as isize } else { result };
        }
        done += result as usize;
        if (result as usize) < wanted || done == bytes {
            return done as isize;
        }
    }
}

/// splice(2). Out of a pipe into a file it may have to wait, which must not happen under the file's lock.
pub fn splice(from: i32, from_offset: *mut i64, to: i32, to_offset: *mut i64, bytes: usize, flags: u32) -> isize {
    // SAFETY: as above, but for the count and that it doesn't wait.
    let call = |bytes: usize, add: u32| unsafe {
        syscall!(libc::SYS_splice, from, from_offset, to, to_offset, bytes, flags | add)
    };
    let Some(ring) = state::ring() else { return call(bytes, 0) };
    let Verdict::File(..) = identify::descriptor(ring, to) else {
        return blocking::call(crate::descriptors::BLOCKS, || call(bytes, 0));
    };
    let wanted = bytes.min(DATA_BYTES_MAX);
    loop {
        let result =
            transfer(to, OffsetOf::new(to, to_offset), wanted, None, |bytes| call(bytes, libc::SPLICE_F_NONBLOCK));
        if result != error(libc::EAGAIN) || flags & libc::SPLICE_F_NONBLOCK != 0 {
            return result;
        }
        let waited = blocking::call(crate::descriptors::BLOCKS, || {
            let mut poll = libc::pollfd { fd: from, events: libc::POLLIN, revents: 0 };
            // SAFETY: one entry, which lives in this frame; no time-out, the caller's signal mask.
            unsafe { syscall!(libc::SYS_ppoll, &raw mut poll, 1, 0, 0, 8) }
        });
        if is_error(waited) {
            return waited;
        }
    }
}

/// A regular file that data comes from.
#[derive(Clone, Copy)]
struct Origin {
    fd: i32,
    offset: i64,
    /// Bytes that it has from there on: how much room a record needs.
    bytes: usize,
    /// Size and time of change, to see that it is still what it was.
    version: (i64, i64, i64),
}

impl Origin {
    /// `None` for anything but a regular file.
    fn of(fd: i32, offset: OffsetOf) -> Option<Self> {
        let stat = stat_descriptor(fd).ok().filter(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFREG)?;
        let offset = offset.get()?;
        let bytes = usize::try_from(stat.st_size.saturating_sub(offset)).unwrap_or(0);
        Some(Self { fd, offset, bytes, version: (stat.st_size, stat.st_ctime, stat.st_ctime_nsec) })
    }

    /// Copies what was moved from here into a record; false when it is not sure to be that.
    fn read_into(&self, to: *mut u8, bytes: usize) -> bool {
        let read = read_into(self.fd, to, bytes, self.offset);
        let unchanged =
            stat_descriptor(self.fd).is_ok_and(|now| (now.st_size, now.st_ctime, now.st_ctime_nsec) == self.version);
        read && unchanged
    }
}

fn transfer(
    to: i32,
    to_offset: OffsetOf,
    bytes: usize,
    origin: Option<Origin>,
    call: impl Fn(usize) -> isize,
) -> isize {
    let Some(ring) = state::ring() else { return call(bytes) };
    let (file, flags) = match identify::descriptor(ring, to) {
        Verdict::File(file, flags) if bytes > 0 => (file, flags),
        _ => return call(bytes),
    };
    let Some(mut operation) = Operation::on_contents(ring) else { return call(bytes) };
    // A source in the primary is kept from changing, too.
    let source = origin.and_then(|origin| match identify::known(ring, origin.fd) {
        Verdict::File(source, _) => Some(source),
        _ => None,
    });
    operation.lock(&mut [StripeIndex::of_file(file), StripeIndex::of_file(source.unwrap_or(file))]);
    let room = bytes.min(origin.map_or(DATA_BYTES_MAX, |origin| origin.bytes)).clamp(1, DATA_BYTES_MAX);
    let flags = crate::descriptors::record_flags(flags);
    let Some(start) = to_offset.get() else { return call(bytes) };
    let draft = Draft { file, a: start as u64, b: room as u64, flags, ..Draft::new(Kind::Write) };
    let Some(pending) = operation.prepare(&draft, room) else { return call(bytes) };
    operation.declare(&pending);
    let result = call(room);
    if is_error(result) || result == 0 {
        operation.abort(&pending);
        operation.failed(file, flags);
        return result;
    }
    let moved = result as usize;
    let end_fits = to_offset.get() == Some(start + result as i64);
    let (data, _) = operation.data(&pending);
    // A descriptor for writing only can't say what it has written; the source can.
    let has_data = read_into(to, data, moved.min(room), start)
        || origin.is_some_and(|origin| origin.read_into(data, moved.min(room)));
    if end_fits && has_data {
        operation.commit(pending, |header| {
            header.b = moved as u64;
            header.data_bytes = moved as u32;
        });
    } else {
        operation.abort(&pending);
        operation.reread(
            file,
            if end_fits { start as u64 } else { 0 },
            if end_fits { moved as u64 } else { u64::MAX },
            flags,
        );
    }
    result
}

/// Reads `bytes` bytes of a file into a record; false when it doesn't have them or can't be read through this descriptor.
///
/// It is not opened once more: closing any descriptor of a file drops the process's locks on it (fcntl(2)).
fn read_into(fd: i32, to: *mut u8, bytes: usize, offset: i64) -> bool {
    // SAFETY: the caller's record has room for `bytes`.
    let result = unsafe { syscall!(libc::SYS_pread64, fd, to, bytes, offset) };
    result == bytes as isize
}

/// ioctl(2) FICLONE and its like, which change a whole range at once: it is re-read.
pub fn change_by_ioctl(fd: i32, offset: u64, bytes: u64, call: impl Fn() -> isize) -> isize {
    let Some(ring) = state::ring() else { return call() };
    let Verdict::File(file, flags) = identify::descriptor(ring, fd) else { return call() };
    let Some(mut operation) = Operation::on_contents(ring) else { return call() };
    let flags = crate::descriptors::record_flags(flags);
    operation.lock_file(file, flags);
    let pending = operation.intend(&Draft { file, a: offset, b: bytes, flags, ..Draft::new(Kind::Reread) }, 0);
    let result = call();
    conclude(&operation, pending, !is_error(result), |_| {});
    result
}

/// fsync(2) and its like: a mark behind all that came before it.
pub fn synced(file: FileId) {
    if let Some(ring) = state::ring()
        && let Some(operation) = Operation::on_contents(ring)
        && let Some(pending) = operation.intend(&Draft { file, ..Draft::new(Kind::Sync) }, 0)
    {
        operation.commit(pending, |_| {});
    }
}
