//! Linux's asynchronous I/O: io_submit(2) and what tells the end of writes.
//!
//! A write takes effect at some time between its submission and the moment that its end is seen. It is marked in
//! the ring's table before, and what the file holds afterwards is recorded when its end is told. The replayer reads
//! again what stays marked: ends may be seen in memory, without a call.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicUsize, Ordering};

use journal::Ring;
use journal::locks::StripeIndex;
use journal::mappings::{MarkView, Write};
use journal::record::{DATA_BYTES_MAX, Kind};
use journal::sys::process_id;

use crate::descriptors::{APPENDS, BLOCKS, DIRECT, Verdict};
use crate::operation::{Draft, Operation, lose};
use crate::readable::is_readable;
use crate::state;
use crate::sys::{is_error, stat_descriptor, syscall};

use super::{blocking, identify};

/// `struct iocb`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Block {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    count: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_fd: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Event {
    data: u64,
    block: u64,
    result: i64,
    result2: i64,
}

/// io_pgetevents(2).
#[cfg(target_arch = "x86_64")]
pub const SYS_IO_PGETEVENTS: i64 = 333;
/// io_pgetevents(2).
#[cfg(target_arch = "aarch64")]
pub const SYS_IO_PGETEVENTS: i64 = 292;

const PWRITE: u16 = 1;
const PWRITEV: u16 = 8;
const RWF_APPEND: u32 = 0x10;
/// Most parts of a scattered write (`UIO_MAXIOV`).
const PARTS_MAX: u64 = 1024;
/// Blocks that are marked and submitted at a time.
const AT_ONCE: usize = 64;
/// Writes with one control block that can be in flight by any sane use of it, and more.
const SAME_BLOCK_MAX: usize = 4;

/// Marks that this process has made and not taken out; or its parent, before it was forked.
static MARKED: AtomicUsize = AtomicUsize::new(0);

/// io_submit(2).
pub fn io_submit(context: u64, number: isize, blocks: *const *const u8) -> isize {
    // SAFETY: the program's own call, for some of its blocks.
    let call =
        |blocks: *const *const u8, number: isize| unsafe { syscall!(libc::SYS_io_submit, context, number, blocks) };
    let Some(ring) = state::ring().filter(|_| number > 0) else { return call(blocks, number) };
    let number = number as usize;
    let mut done = 0;
    while done < number {
        let batch = (number - done).min(AT_ONCE);
        let rest = blocks.wrapping_add(done);
        let mut marks = [None::<(u16, u32)>; AT_ONCE];
        let mut unmarked = false;
        for (at, mark) in marks.iter_mut().enumerate().take(batch) {
            if let Some(write) = describe(ring, context, rest.wrapping_add(at)) {
                *mark = make_mark(ring, &write).map(|mark| (mark.index, mark.turn));
                unmarked |= mark.is_none();
            }
        }
        let result = call(rest, batch as isize);
        let submitted = if is_error(result) { 0 } else { result as usize };
        for (index, turn) in marks.iter().skip(submitted).flatten() {
            take_out(ring, *index, *turn);
        }
        if unmarked {
            lose(ring);
        }
        done += submitted;
        if submitted < batch {
            // As the kernel has it: an error only tells about the first block.
            return if done > 0 { done as isize } else { result };
        }
    }
    done as isize
}

/// What a control block asks for, if that is to write to a file of the primary.
fn describe(ring: &Ring, context: u64, pointer: *const *const u8) -> Option<Write> {
    if !is_readable(pointer.cast(), size_of::<usize>()) {
        return None;
    }
    // SAFETY: found readable; alignment is not assumed.
    let address = unsafe { pointer.read_unaligned() };
    if !is_readable(address, size_of::<Block>()) {
        return None;
    }
    // SAFETY: as above; integers, for which everything is valid.
    let block = unsafe { address.cast::<Block>().read_unaligned() };
    let bytes = match block.opcode {
        PWRITE => block.count,
        PWRITEV => bytes_of_parts(block.buffer, block.count)?,
        _ => return None,
    };
    let Verdict::File(file, flags) = identify::descriptor(ring, block.fd as i32) else { return None };
    let write = Write {
        file,
        offset: block.offset as u64,
        bytes,
        key: address as u64,
        context,
        fd: block.fd,
        flags: crate::descriptors::record_flags(flags),
    };
    if flags & APPENDS != 0 || block.rw_flags & RWF_APPEND != 0 {
        // Somewhere behind what is there now.
        let size = stat_descriptor(block.fd as i32).map_or(0, |stat| stat.st_size as u64);
        return Some(Write { offset: size, bytes: u64::MAX, ..write });
    }
    (block.offset >= 0).then_some(write)
}

fn bytes_of_parts(address: u64, count: u64) -> Option<u64> {
    let parts = address as *const libc::iovec;
    if count > PARTS_MAX || !is_readable(parts.cast(), count as usize * size_of::<libc::iovec>()) {
        return None;
    }
    // SAFETY: found readable; alignment is not assumed.
    let length = |at: usize| unsafe { parts.add(at).read_unaligned() }.iov_len as u64;
    Some((0..count as usize).fold(0u64, |sum, at| sum.saturating_add(length(at))))
}

fn make_mark(ring: &Ring, write: &Write) -> Option<MarkView> {
    let pid = process_id();
    if MARKED.load(Ordering::Relaxed) != 0 {
        // Whoever sees ends in memory never tells of them. The oldest of so many has ended.
        let mut same = ring.marks_with(pid, write.key, write.context);
        if let Some(oldest) = same.next()
            && same.count() + 1 >= SAME_BLOCK_MAX
        {
            record(ring, &oldest, oldest.write.bytes);
            take_out(ring, oldest.index, oldest.turn);
        }
    }
    // The replayer sees by the slot that this process lives.
    crate::thread::slot(ring)?;
    let mark = ring.mark(ring.claim_mark(pid, write)?)?;
    MARKED.fetch_add(1, Ordering::Relaxed);
    Some(mark)
}

fn take_out(ring: &Ring, index: u16, turn: u32) {
    ring.release_mark(index, turn);
    let _ = MARKED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
}

/// io_getevents(2) and io_pgetevents(2): `call` does it.
pub fn events(context: u64, events: *const Event, call: impl Fn() -> isize) -> isize {
    let result = blocking::call(BLOCKS, call);
    if MARKED.load(Ordering::Relaxed) != 0
        && !is_error(result)
        && let Some(ring) = state::ring()
    {
        for at in 0..result as usize {
            // SAFETY: the kernel has just written so many.
            let event = unsafe { events.add(at).read_unaligned() };
            ended(ring, context, &event);
        }
    }
    result
}

#[inline(never)]
fn ended(ring: &Ring, context: u64, event: &Event) {
    let pid = process_id();
    let number = ring.marks_with(pid, event.block, context).count();
    for mark in ring.marks_with(pid, event.block, context) {
        let whole = number > 1 || event.result < 0;
        let bytes = if whole { mark.write.bytes } else { mark.write.bytes.min(event.result as u64) };
        record(ring, &mark, if mark.write.bytes == u64::MAX { u64::MAX } else { bytes });
        // Of several with one control block, this can be the end of any.
        if ring.see_end(&mark) as usize >= number {
            take_out(ring, mark.index, mark.turn);
        }
    }
}

/// io_destroy(2), which waits for the ends of all writes.
pub fn io_destroy(context: u64) -> isize {
    // SAFETY: the program's own call.
    let result = blocking::call(BLOCKS, || unsafe { syscall!(libc::SYS_io_destroy, context) });
    if !is_error(result) {
        each_mark(|write| write.context == context, true);
    }
    result
}

/// A descriptor is about to be closed: what is being written through it is recorded as it is now, and once more when
/// it has ended.
#[inline(always)]
pub fn before_close(fd: i32) {
    if MARKED.load(Ordering::Relaxed) != 0 {
        each_mark(|write| write.fd == fd as u32, false);
    }
}

#[cold]
#[inline(never)]
fn each_mark(choose: impl Fn(&Write) -> bool, have_ended: bool) {
    let Some(ring) = state::ring() else { return };
    let pid = process_id();
    for mark in ring.mark_views().filter(|mark| mark.pid == pid && choose(&mark.write)) {
        record(ring, &mark, mark.write.bytes);
        if have_ended {
            take_out(ring, mark.index, mark.turn);
        }
    }
}

/// Records what the file holds where `bytes` bytes of a marked write went.
fn record(ring: &Ring, mark: &MarkView, bytes: u64) {
    let write = mark.write;
    let Some(mut operation) = Operation::on_contents(ring) else { return };
    operation.lock(&mut [StripeIndex::of_file(write.file)]);
    let readable = match identify::known(ring, write.fd as i32) {
        Verdict::File(file, flags) if file == write.file && bytes != u64::MAX => Some(flags & DIRECT != 0),
        _ => None,
    };
    let recorded = match readable {
        Some(true) => record_direct(&operation, &write, bytes),
        Some(false) => record_buffered(&operation, &write, bytes),
        None => 0,
    };
    if recorded < bytes {
        let left = if bytes == u64::MAX { u64::MAX } else { bytes - recorded };
        operation.reread(write.file, write.offset + recorded, left, write.flags);
    }
}

/// Reads what was written into records; returns how far that went.
fn record_buffered(operation: &Operation<'_>, write: &Write, bytes: u64) -> u64 {
    let mut done = 0;
    while done < bytes {
        let wanted = (bytes - done).min(DATA_BYTES_MAX as u64) as usize;
        let Some(pending) = operation.prepare(&draft(write, write.offset + done, wanted), wanted) else { break };
        let (data, _) = operation.data(&pending);
        // SAFETY: the record has room for `wanted` bytes.
        let read = unsafe { syscall!(libc::SYS_pread64, write.fd, data, wanted, write.offset + done) };
        operation.declare(&pending);
        if is_error(read) || read == 0 {
            operation.abort(&pending);
            break;
        }
        operation.commit(pending, |header| {
            header.b = read as u64;
            header.data_bytes = read as u32;
        });
        done += read as u64;
    }
    done
}

/// As [`record_buffered`], for a descriptor that wants aligned memory: by way of a mapping for the moment.
fn record_direct(operation: &Operation<'_>, write: &Write, bytes: u64) -> u64 {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let room = bytes.min(DATA_BYTES_MAX as u64) as usize;
    // SAFETY: a new mapping.
    let mapped = unsafe { syscall!(libc::SYS_mmap, 0, room, protection, flags, -1i32, 0) };
    if is_error(mapped) {
        return 0;
    }
    let mut done = 0;
    while done < bytes {
        let wanted = (bytes - done).min(room as u64) as usize;
        // SAFETY: the mapping is as large.
        let read = unsafe { syscall!(libc::SYS_pread64, write.fd, mapped, wanted, write.offset + done) };
        if is_error(read) || read == 0 {
            break;
        }
        // SAFETY: mapped and filled above, and nobody else knows it.
        let data = unsafe { core::slice::from_raw_parts(mapped as *const u8, read as usize) };
        let draft = Draft { data, ..draft(write, write.offset + done, read as usize) };
        let Some(pending) = operation.intend(&draft, 0) else { break };
        operation.commit(pending, |_| {});
        done += read as u64;
    }
    // SAFETY: our own mapping, used no more.
    unsafe { syscall!(libc::SYS_munmap, mapped, room) };
    done
}

fn draft<'a>(write: &Write, offset: u64, bytes: usize) -> Draft<'a> {
    Draft { file: write.file, a: offset, b: bytes as u64, flags: write.flags, ..Draft::new(Kind::Write) }
}
