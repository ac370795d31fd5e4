//! Which file of the primary a descriptor or a path stands for; ties its inode to its name with a `Bind` record.
#![allow(unsafe_code)]

use core::ffi::c_char;
use core::sync::atomic::Ordering;

use journal::Ring;
use journal::locks::StripeIndex;
use journal::record::{FileId, Kind};

use crate::buffer::Buffer;
use crate::descriptors::{self, Verdict};
use crate::directory::{self, Found};
use crate::operation::{Draft, Operation, lose};
use crate::sys::{HERE, descriptor_path, is_error, read_link, stat_at, stat_descriptor, syscall};

/// How often a name that keeps changing under our eyes is looked up again.
const TRIES: u32 = 16;

/// Identity of what stat(2) has described.
pub const fn file_id(stat: &libc::stat) -> FileId {
    FileId::new(stat.st_dev, stat.st_ino)
}

/// The type bits of what stat(2) has described.
pub const fn file_type(stat: &libc::stat) -> u32 {
    stat.st_mode & libc::S_IFMT
}

/// The verdict on `fd`, found out now if it isn't known.
#[inline(always)]
pub fn descriptor(ring: &Ring, fd: i32) -> Verdict {
    match descriptors::look_up(ring, fd) {
        Verdict::Unknown => find_out(ring, fd),
        known => known,
    }
}

/// The verdict on `fd` if it is known already.
pub fn known(ring: &Ring, fd: i32) -> Verdict {
    descriptors::look_up(ring, fd)
}

#[cold]
#[inline(never)]
fn find_out(ring: &Ring, fd: i32) -> Verdict {
    let meaning = descriptors::meaning(fd);
    let verdict = find_out_once(ring, fd);
    if descriptors::meaning(fd) != meaning {
        // Another thread has given the number a new meaning meanwhile: what was remembered may be about the old one.
        descriptors::reset(fd);
    }
    verdict
}

fn find_out_once(ring: &Ring, fd: i32) -> Verdict {
    let Ok(stat) = stat_descriptor(fd) else { return Verdict::Outside(descriptors::BLOCKS) };
    if file_type(&stat) != libc::S_IFREG {
        descriptors::set_outside(ring, fd, descriptors::BLOCKS);
        return Verdict::Outside(descriptors::BLOCKS);
    }
    // SAFETY: F_GETFL takes no pointer.
    let status = unsafe { syscall!(libc::SYS_fcntl, fd, libc::F_GETFL, 0) };
    let flags = if is_error(status) { 0 } else { descriptors::flags_of(status as i32) };
    bind(ring, fd, &stat, flags, None)
}

/// Finds out the name of the regular file behind `fd`, records it and remembers the verdict.
///
/// `hint` is the spelling by which it was opened: usually right, and much cheaper than asking /proc.
pub fn bind(ring: &Ring, fd: i32, stat: &libc::stat, flags: u64, hint: Option<(i32, &[u8], *const c_char)>) -> Verdict {
    let file = file_id(stat);
    if stat.st_nlink == 0 {
        // It has lost its name, or it is an unnamed file (O_TMPFILE) that has come from another process and may get one:
        // the replayer knows it from the record of its birth, and ignores others.
        return bind_without_proc(ring, fd, stat, flags);
    }
    if let Some((dirfd, path, address)) = hint
        && let Some(verdict) = bind_by_spelling(ring, fd, file, flags, dirfd, path, address)
    {
        return verdict;
    }
    for _ in 0..TRIES {
        match bind_by_proc(ring, fd, file, flags) {
            Named::Verdict(verdict) => return verdict,
            Named::Unknown => return bind_without_proc(ring, fd, stat, flags),
            Named::Moved => {}
        }
    }
    // It is renamed faster than we look.
    lose(ring);
    descriptors::set_file(fd, file, flags | descriptors::MAYBE_OUTSIDE);
    Verdict::File(file, flags | descriptors::MAYBE_OUTSIDE)
}

/// What /proc says of a descriptor's name.
enum Named {
    /// It is bound, or it is none of our business.
    Verdict(Verdict),
    /// The name has changed under our eyes.
    Moved,
    /// /proc can't be asked.
    Unknown,
}

/// Binds `fd` under the name that /proc gives it. The name needs no other confirmation than that it is still the same
/// once its directory is locked, so it may lie where the program can't go.
fn bind_by_proc(ring: &Ring, fd: i32, file: FileId, flags: u64) -> Named {
    let link = descriptor_path(fd);
    let ask = |answer: &mut Buffer| answer.fill(|room| read_link(HERE, link.as_ptr().cast(), room)).is_ok();
    let Some(mut operation) = Operation::on_names(ring) else { return Named::Unknown };
    let (mut before, mut place, mut now) = (Buffer::new(), Buffer::new(), Buffer::new());
    if !ask(&mut before) {
        return Named::Unknown;
    }
    let Some(mut absolute) = Buffer::of(before.bytes()) else { return Named::Unknown };
    let found = directory::relative(ring, &mut absolute, &mut place);
    if found == Found::Inside {
        let (dir, _) = directory::split(place.bytes());
        operation.lock(&mut [StripeIndex::of_directory(dir.strip_suffix(b"/").unwrap_or(dir))]);
    }
    let Ok(stat) = stat_descriptor(fd) else { return Named::Unknown };
    if !ask(&mut now) || now.bytes() != before.bytes() {
        return Named::Moved;
    }
    // So ends the kernel's spelling of a name that is gone; and perhaps a name that is there.
    let is_gone = now.bytes().ends_with(b" (deleted)")
        && !stat_at(HERE, now.as_ptr(), libc::AT_SYMLINK_NOFOLLOW).is_ok_and(|there| file_id(&there) == file);
    let flags = if found != Found::Inside || is_gone {
        if stat.st_nlink == 0 {
            return Named::Unknown;
        }
        // By its other names it may be a file of the primary: the replayer knows all names of such files.
        if stat.st_nlink == 1 && found != Found::Inside
            || stat.st_dev != ring.header().primary_dev.load(Ordering::Relaxed)
        {
            descriptors::set_outside(ring, fd, 0);
            return Named::Verdict(Verdict::Outside(0));
        }
        flags | descriptors::MAYBE_OUTSIDE
    } else {
        let draft = Draft { file, path1: place.bytes(), ..Draft::new(Kind::Bind) };
        if let Some(pending) = operation.intend(&draft, 0) {
            operation.commit(pending, |_| {});
        }
        flags
    };
    descriptors::set_file(fd, file, flags);
    Named::Verdict(Verdict::File(file, flags))
}

/// Binds `fd` under the name that `path` spells, if it is that; `None` when the name now stands for something else.
fn bind_by_spelling(
    ring: &Ring,
    fd: i32,
    file: FileId,
    flags: u64,
    dirfd: i32,
    path: &[u8],
    address: *const c_char,
) -> Option<Verdict> {
    let (dir, name) = directory::split(path);
    if directory::is_special(name) {
        return None;
    }
    let mut operation = Operation::on_names(ring)?;
    let mut place = Buffer::new();
    match directory::find(ring, dirfd, dir, &mut place) {
        Found::Inside => {
            operation.lock(&mut [StripeIndex::of_directory(place.bytes())]);
            let there = stat_at(dirfd, address, libc::AT_SYMLINK_NOFOLLOW).ok()?;
            if file_id(&there) != file {
                return None;
            }
            if !append_name(&mut place, name) {
                return None;
            }
            let draft = Draft { file, path1: place.bytes(), ..Draft::new(Kind::Bind) };
            if let Some(pending) = operation.intend(&draft, 0) {
                operation.commit(pending, |_| {});
            }
            descriptors::set_file(fd, file, flags);
            Some(Verdict::File(file, flags))
        }
        Found::Outside => {
            let there = stat_at(dirfd, address, libc::AT_SYMLINK_NOFOLLOW).ok()?;
            if file_id(&there) != file {
                return None;
            }
            let could_be_inside =
                there.st_nlink > 1 && there.st_dev == ring.header().primary_dev.load(Ordering::Relaxed);
            if could_be_inside {
                descriptors::set_file(fd, file, flags | descriptors::MAYBE_OUTSIDE);
                return Some(Verdict::File(file, flags | descriptors::MAYBE_OUTSIDE));
            }
            descriptors::set_outside(ring, fd, 0);
            Some(Verdict::Outside(0))
        }
        Found::Failed(_) | Found::Unclear => None,
    }
}

/// Without /proc a file's name can't be asked for. A file of the primary's device may be inside: its changes are
/// recorded, and the replayer knows the files that have been bound before.
fn bind_without_proc(ring: &Ring, fd: i32, stat: &libc::stat, flags: u64) -> Verdict {
    if stat.st_dev == ring.header().primary_dev.load(Ordering::Relaxed) {
        let flags = flags | descriptors::MAYBE_OUTSIDE;
        descriptors::set_file(fd, file_id(stat), flags);
        Verdict::File(file_id(stat), flags)
    } else {
        descriptors::set_outside(ring, fd, 0);
        Verdict::Outside(0)
    }
}

/// Appends a name to a directory's path.
#[must_use]
pub fn append_name(path: &mut Buffer, name: &[u8]) -> bool {
    (path.bytes().is_empty() || path.push(b"/")) && path.push(name)
}

/// The absolute path, in this process's eyes, of what a path leads to after all symbolic links.
pub fn follow(dirfd: i32, address: *const c_char, absolute: &mut Buffer) -> Result<libc::stat, isize> {
    // SAFETY: the kernel checks the path's address.
    let opened = unsafe { syscall!(libc::SYS_openat, dirfd, address, libc::O_PATH | libc::O_CLOEXEC, 0) };
    if is_error(opened) {
        return Err(opened);
    }
    let fd = opened as i32;
    let link = descriptor_path(fd);
    let result = stat_descriptor(fd).and_then(|stat| {
        absolute.fill(|room| read_link(HERE, link.as_ptr().cast(), room))?;
        Ok(stat)
    });
    crate::sys::close(fd);
    result
}
