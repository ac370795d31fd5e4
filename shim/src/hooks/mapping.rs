//! Shared mappings of files of the primary: stores through them are recorded at msync(2), munmap(2) and whatever else
//! ends or moves a mapping; the replayer does the same once a second, and when the process has ended.
//!
//! The stores are in the file the moment that they are made, so there is no call to order them by. What is recorded is
//! what the pages hold when it is asked, under the file's lock.
#![allow(unsafe_code)]

use journal::Ring;
use journal::mappings::{MappingState, Range};
use journal::record::FileId;

use crate::descriptors::{self, Verdict};
use crate::mapped::{self, Mapped, Table, any};
use crate::state;
use crate::stores::{
    Since, Taken, add, add_mapped, each_part, inherit, mine, record, record_where, reread, span, take, under_lock,
    watch,
};
use crate::sys::{is_error, stat_descriptor, syscall};
use crate::tracking::{self, page_bytes};

use super::{blocking, copy, identify};

/// True when mmap(2) with these arguments concerns shared mappings.
#[inline(always)]
pub fn concerns(flags: i32, fd: i32) -> bool {
    let shared = matches!(flags & libc::MAP_TYPE, libc::MAP_SHARED | libc::MAP_SHARED_VALIDATE);
    shared && fd >= 0 && flags & libc::MAP_ANONYMOUS == 0 || flags & libc::MAP_FIXED != 0 && any()
}

/// mmap(2) of a file for sharing, or over something that may be shared.
pub fn mmap(address: usize, bytes: usize, protection: i32, flags: i32, fd: i32, offset: i64) -> isize {
    // SAFETY: the program's own call.
    let call = || unsafe { syscall!(libc::SYS_mmap, address, bytes, protection, flags, fd, offset) };
    let Some(ring) = state::ring() else { return call() };
    let replaced = if flags & libc::MAP_FIXED != 0 { take(address, bytes) } else { Taken::default() };
    let entered = if concerns(flags & !libc::MAP_FIXED, fd) { enter(ring, fd, bytes, offset) } else { None };
    let result = call();
    if is_error(result) {
        if let Some((table, entered)) = entered {
            table.leave(ring, &entered);
        }
        replaced.give_back(ring);
        return result;
    }
    if let Some((table, mut entered)) = entered {
        entered.range.address = result as u64;
        if protection & libc::PROT_WRITE != 0 {
            let size = stat_descriptor(fd).map_or(0, |stat| stat.st_size.saturating_sub(offset).max(0) as usize);
            watch(ring, table, &mut entered, size);
        } else {
            entered.state = MappingState::Readable;
            table.set(ring, &entered);
        }
    }
    result
}

/// Enters the mapping that is about to be made of `fd`, if stores through it would change a file of the primary.
fn enter(ring: &Ring, fd: i32, bytes: usize, offset: i64) -> Option<(&'static Table, Mapped)> {
    // SAFETY: F_GETFL takes no pointer.
    let status = unsafe { syscall!(libc::SYS_fcntl, fd, libc::F_GETFL, 0) };
    // Whatever the protection is now, mprotect(2) may allow stores later; but never through what is open for reading.
    if is_error(status) || status as i32 & libc::O_ACCMODE != libc::O_RDWR {
        return None;
    }
    let Verdict::File(file, flags) = identify::descriptor(ring, fd) else { return None };
    let flags = crate::descriptors::record_flags(flags);
    let bytes = bytes.checked_next_multiple_of(page_bytes()).filter(|bytes| *bytes > 0 && offset >= 0)?;
    let range = Range { file, address: 0, bytes: bytes as u64, offset: offset as u64, flags };
    add(ring, &range)
}

/// munmap(2).
pub fn munmap(address: usize, bytes: usize) -> isize {
    // SAFETY: the program's own call.
    let call = || unsafe { syscall!(libc::SYS_munmap, address, bytes) };
    let Some((ring, _)) = mine().filter(|_| address.is_multiple_of(page_bytes()) && bytes > 0) else { return call() };
    let taken = take(address, bytes);
    let result = call();
    if is_error(result) {
        taken.give_back(ring);
    }
    result
}

/// msync(2).
pub fn msync(address: usize, bytes: usize, flags: i32) -> isize {
    record(address, bytes);
    // SAFETY: the program's own call.
    let result = blocking::call(descriptors::BLOCKS, || unsafe { syscall!(libc::SYS_msync, address, bytes, flags) });
    if flags & libc::MS_SYNC != 0 && !is_error(result) {
        each_part(address, bytes, |_, mapped, _| copy::synced(mapped.range.file));
    }
    result
}

/// mprotect(2), once it has allowed stores: those to what could only be read so far are looked for before they can be
/// made. `call` does it.
pub fn allow_stores(address: usize, bytes: usize, call: impl Fn() -> isize) -> isize {
    if let Some((ring, table)) = mine() {
        let (start, end) = span(address, bytes);
        for mapped in table.all().filter(|mapped| mapped.part(start, end).is_some()) {
            under_lock(ring, table, &mapped, |_, mapped| {
                if mapped.state == MappingState::Readable {
                    let mut mapped = mapped;
                    let size = tracking::reach(mapped.start(), mapped.range.bytes as usize);
                    watch(ring, table, &mut mapped, size);
                }
            });
        }
    }
    call()
}

/// mremap(2).
pub fn mremap(old: usize, old_bytes: usize, new_bytes: usize, flags: i32, new: usize) -> isize {
    // SAFETY: the program's own call.
    let call = || unsafe { syscall!(libc::SYS_mremap, old, old_bytes, new_bytes, flags, new) };
    let Some((ring, table)) = mine() else { return call() };
    let replaced = if flags & libc::MREMAP_FIXED != 0 { take(new, new_bytes) } else { Taken::default() };
    let moved = table.all().find(|mapped| mapped.part(old, old + 1).is_some());
    // Of nothing, it makes a second mapping of the same pages.
    let stays = flags & libc::MREMAP_DONTUNMAP != 0 || old_bytes == 0;
    let taken = if stays { Taken::default() } else { take(old, old_bytes) };
    let result = call();
    if is_error(result) {
        replaced.give_back(ring);
        taken.give_back(ring);
    } else if let Some(moved) = moved {
        let range = Range {
            address: result as u64,
            bytes: span(0, new_bytes).1 as u64,
            offset: moved.offset_of(old),
            ..moved.range
        };
        add_mapped(ring, &range, moved.state);
    }
    result
}

/// madvise(2) with advice that drops pages, or what is in the file. `call` does it.
pub fn advise(address: usize, bytes: usize, advice: i32, call: impl Fn() -> isize) -> isize {
    if !any() {
        return call();
    }
    record(address, bytes);
    let result = call();
    if advice == libc::MADV_REMOVE && !is_error(result) {
        each_part(address, bytes, |operation, mapped, (start, end)| {
            reread(operation, &mapped, start, end);
        });
    }
    result
}

/// remap_file_pages(2): another part of the same file at the same address.
pub fn remap_file_pages(address: usize, bytes: usize, protection: i32, page: usize, flags: i32) -> isize {
    // SAFETY: the program's own call.
    let call = || unsafe { syscall!(libc::SYS_remap_file_pages, address, bytes, protection, page, flags) };
    let Some((ring, table)) = mine() else { return call() };
    let mapped = table.all().find(|mapped| mapped.part(address, address + 1).is_some());
    let taken = take(address, bytes);
    let result = call();
    if is_error(result) {
        taken.give_back(ring);
    } else if let Some(mapped) = mapped {
        let (start, end) = span(address, bytes);
        let offset = (page * page_bytes()) as u64;
        let range = Range { address: start as u64, bytes: (end - start) as u64, offset, ..mapped.range };
        add_mapped(ring, &range, mapped.state);
    }
    result
}

/// Records what was stored to `file` through mappings of this process: fsync(2) makes that durable, too.
#[inline(always)]
pub fn record_file(file: FileId) {
    if any() {
        record_where(|mapped| (mapped.range.file == file).then(|| (mapped.start(), mapped.end())));
    }
}

/// Records everything that was stored through mappings of this process: it is about to end, or all is made durable.
#[inline(always)]
pub fn record_all() {
    if any() {
        record_where(|mapped| Some((mapped.start(), mapped.end())));
    }
}

/// The process ends by its own will.
pub fn end() {
    if any() {
        record_last();
    }
}

/// The process is about to run another program, in place of all that it has mapped. What comes back is for
/// [`exec_failed`].
pub fn before_exec() -> bool {
    any() && record_last()
}

/// It was not: what is mapped is entered again.
pub fn exec_failed(taken_out: bool) {
    if taken_out && let Some((ring, table)) = mine() {
        inherit(ring, table, Since::Now);
    }
}

/// Records what was stored so far. If only this thread is left to store anything, and the kernel has told of every
/// store, that is all there is: the entries are taken out of the ring's table, so that nobody reads the files again.
fn record_last() -> bool {
    if mapped::is_mine() && state::is_borrowed_memory() {
        // A child that borrows its parent's memory leaves it as it is.
        return false;
    }
    record_all();
    let Some((ring, table)) = mine() else { return false };
    let told = |mapped: Mapped| matches!(mapped.state, MappingState::Tracked | MappingState::Readable);
    let complete = is_last_thread() && table.all().all(told);
    if complete {
        for mapped in table.all() {
            under_lock(ring, table, &mapped, |_, mapped| ring.release_mapping(mapped.index, mapped.turn));
        }
    }
    complete
}

/// True when the process has one thread: a directory has a link from each below it, and two of its own.
fn is_last_thread() -> bool {
    crate::sys::stat_at(crate::sys::HERE, c"/proc/self/task".as_ptr(), 0).is_ok_and(|stat| stat.st_nlink == 3)
}

/// In a forked child, before it goes on: what it has inherited is mapped by it, too.
pub fn after_fork() {
    if any()
        && let (Some(ring), Some(table)) = (state::ring(), mapped::table())
        && !mapped::is_mine()
    {
        inherit(ring, table, Since::Now);
    }
}
