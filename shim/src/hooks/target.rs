//! Calls on an object that a path names: its attributes, its size. The object must not change its name meanwhile.
#![allow(unsafe_code)]

use core::ffi::c_char;
use core::sync::atomic::Ordering;

use journal::Ring;
use journal::locks::StripeIndex;
use journal::record::FileId;

use crate::buffer::Buffer;
use crate::directory::{self, Found};
use crate::operation::{Operation, lose};
use crate::readable;
use crate::state;
use crate::sys::{HERE, descriptor_path, read_link, stat_at, stat_descriptor};

use super::identify::{append_name, file_id, file_type, follow};
use super::names::refused;

/// Whether a symbolic link at the end of a path is followed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// It is.
    Yes,
    /// The link itself is meant.
    No,
}

/// An object of the primary, its directory and itself locked.
pub struct Target<'a> {
    /// What it is.
    pub file: FileId,
    /// Where it is; empty for the primary itself.
    pub path: &'a [u8],
}

/// How often a name that changes under our eyes is looked up again.
const TRIES: u32 = 16;

/// Runs `recorded` on the object that the path names if it lies in the primary, else `plain`.
pub fn on_path(
    dirfd: i32,
    address: *const c_char,
    follows: Follow,
    plain: impl Fn() -> isize,
    recorded: impl Fn(&Operation<'_>, &Target<'_>) -> isize,
) -> isize {
    let Some(ring) = state::ring() else { return plain() };
    // SAFETY: the path is used only during this call.
    let Some(path) = (unsafe { readable::string(address) }) else { return plain() };
    if path.is_empty() {
        return plain();
    }
    if let Some(result) = try_spelling(ring, dirfd, path, address, follows, &plain, &recorded) {
        return result;
    }
    // A symbolic link, `.`, `..`, or the primary itself: ask where it leads.
    on_followed(ring, &plain, &recorded, |absolute| follow(dirfd, address, absolute))
}

/// Runs `recorded` on the object behind a descriptor that is not a regular file of the primary open for changes.
pub fn on_descriptor(
    fd: i32,
    plain: impl Fn() -> isize,
    recorded: impl Fn(&Operation<'_>, &Target<'_>) -> isize,
) -> isize {
    let Some(ring) = state::ring() else { return plain() };
    let link = descriptor_path(fd);
    match stat_descriptor(fd) {
        // Pipes, sockets and what else has no name of its own lie on other devices than any directory.
        Ok(stat) if stat.st_nlink > 0 => {}
        _ => return plain(),
    }
    on_followed(ring, &plain, &recorded, |absolute| {
        let stat = stat_descriptor(fd)?;
        absolute.fill(|room| read_link(HERE, link.as_ptr().cast(), room))?;
        Ok(stat)
    })
}

/// `None` when the spelling's last name isn't the object itself.
fn try_spelling(
    ring: &Ring,
    dirfd: i32,
    path: &[u8],
    address: *const c_char,
    follows: Follow,
    plain: &impl Fn() -> isize,
    recorded: &impl Fn(&Operation<'_>, &Target<'_>) -> isize,
) -> Option<isize> {
    let (dir, name) = directory::split(path);
    if directory::is_special(name) {
        return None;
    }
    let ends_in_slash = path.last() == Some(&b'/');
    let mut place = Buffer::new();
    if directory::find(ring, dirfd, dir, &mut place) == Found::Outside {
        return outside(ring, dirfd, address, follows, plain);
    }
    let mut operation = Operation::on_names(ring)?;
    match directory::find(ring, dirfd, dir, &mut place) {
        Found::Inside => {}
        Found::Outside => return None,
        Found::Failed(_) => return Some(refused(&operation, &[(dirfd, path)], plain())),
        Found::Unclear => {
            lose(ring);
            return Some(plain());
        }
    }
    let directory = StripeIndex::of_directory(place.bytes());
    operation.lock(&mut [directory]);
    let stat = match stat_at(dirfd, address, libc::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(_) => return Some(refused(&operation, &[(dirfd, path)], plain())),
    };
    if file_type(&stat) == libc::S_IFLNK && (follows == Follow::Yes || ends_in_slash) {
        return None;
    }
    if !append_name(&mut place, name) {
        return None;
    }
    let file = file_id(&stat);
    operation.lock_also(StripeIndex::of_file(file));
    Some(recorded(&operation, &Target { file, path: place.bytes() }))
}

/// A name outside: a symbolic link may lead inside, and the primary itself is named from outside.
fn outside(
    ring: &Ring,
    dirfd: i32,
    address: *const c_char,
    follows: Follow,
    plain: &impl Fn() -> isize,
) -> Option<isize> {
    let Ok(stat) = stat_at(dirfd, address, libc::AT_SYMLINK_NOFOLLOW) else { return Some(plain()) };
    let header = ring.header();
    let is_primary = stat.st_ino == header.primary_ino.load(Ordering::Relaxed)
        && stat.st_dev == header.primary_dev.load(Ordering::Relaxed);
    let leads_on = file_type(&stat) == libc::S_IFLNK && follows == Follow::Yes;
    // A file with a name inside, changed by its name outside.
    let shared = file_type(&stat) == libc::S_IFREG
        && stat.st_nlink > 1
        && stat.st_dev == header.primary_dev.load(Ordering::Relaxed);
    if shared {
        let result = plain();
        if let Some(operation) = Operation::on_contents(ring)
            && !crate::sys::is_error(result)
        {
            operation.reread(file_id(&stat), 0, u64::MAX, journal::record::FLAG_MAYBE_OUTSIDE);
        }
        return Some(result);
    }
    if is_primary || leads_on { None } else { Some(plain()) }
}

fn on_followed(
    ring: &Ring,
    plain: &impl Fn() -> isize,
    recorded: &impl Fn(&Operation<'_>, &Target<'_>) -> isize,
    locate: impl Fn(&mut Buffer) -> Result<libc::stat, isize>,
) -> isize {
    for _ in 0..TRIES {
        let mut absolute = Buffer::new();
        let Ok(stat) = locate(&mut absolute) else { return plain() };
        let Some(mut operation) = Operation::on_names(ring) else { return plain() };
        let mut path = Buffer::new();
        // The absolute path is also what the object is checked by, once its directory is locked.
        let Some(spelling) = Buffer::of(absolute.bytes()) else { return plain() };
        match directory::relative(ring, &mut absolute, &mut path) {
            Found::Inside => {}
            Found::Outside | Found::Failed(_) => {
                drop(operation);
                return plain();
            }
            Found::Unclear => {
                lose(ring);
                drop(operation);
                return plain();
            }
        }
        let (dir, _) = directory::split(path.bytes());
        let dir = dir.strip_suffix(b"/").unwrap_or(dir);
        operation.lock(&mut [StripeIndex::of_directory(dir)]);
        operation.lock_also(StripeIndex::of_file(file_id(&stat)));
        if stat_at(HERE, spelling.as_ptr(), libc::AT_SYMLINK_NOFOLLOW).is_ok_and(|now| file_id(&now) == file_id(&stat))
        {
            return recorded(&operation, &Target { file: file_id(&stat), path: path.bytes() });
        }
    }
    lose(ring);
    plain()
}
