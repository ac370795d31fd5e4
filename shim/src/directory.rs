//! Where a directory lies: inside the primary, and with which path, or outside.
//!
//! The spelling that a program uses is looked up in a small cache. A cached answer that was found without passing a
//! symbolic link inside the primary needs no system call: whatever could change it counts up the ring's tree
//! generation. Other answers are confirmed by one stat(2) of the directory.
#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering};

use journal::Ring;

use crate::buffer::Buffer;
use crate::descriptors;
use crate::hooks::blocking;
use crate::state;
use crate::sys::{HERE, close, descriptor_path, error, is_error, read_link, stat_descriptor, syscall};

/// Where a directory lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// In the primary; the path is in the buffer, empty for the primary itself.
    Inside,
    /// Elsewhere.
    Outside,
    /// It can't be reached; the kernel's error, which the caller's own call would get too.
    Failed(isize),
    /// It may be inside, but its path can't be found out (no descriptor free, no /proc and no permission).
    Unclear,
}

/// The part of a path up to its last name, slashes included, and that name without slashes behind it.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    let trimmed = path.get(..end).unwrap_or_default();
    let start = trimmed.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    trimmed.split_at_checked(start).unwrap_or_default()
}

/// True when the last name of a path can't be made, removed or renamed: `.`, `..`, the root, nothing.
pub fn is_special(name: &[u8]) -> bool {
    matches!(name, b"" | b"." | b"..")
}

/// Finds the directory `name` (as a program spells it, empty for `dirfd` itself), relative to `dirfd`.
///
/// Call inside an operation on names, so that no directory moves before the answer is used. Up to four system calls.
pub fn find(ring: &Ring, dirfd: i32, name: &[u8], path: &mut Buffer) -> Found {
    let generation = ring.header().tree_generation.load(Ordering::Acquire);
    let anchor = anchor(dirfd, name);
    if let Some(anchor) = anchor
        && let Some(found) = cache_look_up(generation, anchor, dirfd, name, path)
    {
        return found;
    }
    let (found, identity) = find_slowly(ring, dirfd, name, path);
    if let Some(anchor) = anchor
        && matches!(found, Found::Inside | Found::Outside)
        && !state::is_borrowed_memory()
    {
        let trusted = match found {
            // No symbolic link was passed: the path is what the spelling says, anchored at something that is trusted.
            Found::Inside => is_literal(ring, anchor, dirfd, name, path.bytes()),
            _ => name.is_empty(),
        };
        cache_store(generation, anchor, name, path.bytes(), found, identity, trusted);
    }
    found
}

/// What a relative spelling starts from, as a key; `None` when answers must not be remembered.
fn anchor(dirfd: i32, name: &[u8]) -> Option<u64> {
    if name.first() == Some(&b'/') {
        return Some(1);
    }
    if blocking::is_threaded() && state::is_borrowed_memory() {
        // A child that shares memory with its parent's other threads has a directory and descriptors of its own.
        return None;
    }
    if dirfd == HERE {
        let differ = state::DIRECTORIES_DIFFER.load(Ordering::Relaxed);
        (!differ).then(|| state::DIRECTORY_CHANGES.load(Ordering::Relaxed) << 2 | 2)
    } else {
        descriptors::is_remembered(dirfd).then(|| (dirfd as u64) << 32 | descriptors::meaning(dirfd) << 2 | 3)
    }
}

/// True when `path` is just what `name` says, without `.`, `..` or links on the way.
fn is_literal(ring: &Ring, anchor: u64, dirfd: i32, name: &[u8], path: &[u8]) -> bool {
    let trimmed =
        name.get(..name.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1)).unwrap_or_default();
    if anchor == 1 {
        let literal = trimmed.strip_prefix(ring.primary()).map(|rest| rest.strip_prefix(b"/").unwrap_or(rest));
        return state::ROOT.get().is_empty() && literal == Some(path);
    }
    if trimmed.is_empty() {
        return true;
    }
    // The spelling must be the end of the path, and what is before it the anchor's own path.
    let mut base = Buffer::new();
    match find_slowly(ring, dirfd, b"", &mut base).0 {
        Found::Inside if base.bytes().is_empty() => path == trimmed,
        Found::Inside => path.strip_prefix(base.bytes()).and_then(|rest| rest.strip_prefix(b"/")) == Some(trimmed),
        _ => false,
    }
}

fn find_slowly(ring: &Ring, dirfd: i32, name: &[u8], path: &mut Buffer) -> (Found, Identity) {
    let none = (0, 0, 0);
    if name.is_empty() && dirfd != HERE {
        let identity = match stat_descriptor(dirfd) {
            Ok(stat) if stat.st_mode & libc::S_IFMT == libc::S_IFDIR => {
                identity_of(dirfd, c"".as_ptr(), libc::AT_EMPTY_PATH).unwrap_or(none)
            }
            Ok(_) => return (Found::Failed(error(libc::ENOTDIR)), none),
            Err(error) => return (Found::Failed(error), none),
        };
        return (path_of(ring, dirfd, path), identity);
    }
    let Some(spelling) = Buffer::of(if name.is_empty() { b"." } else { name }) else {
        return (Found::Failed(error(libc::ENAMETOOLONG)), none);
    };
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: a zero-terminated path of ours.
    let opened = unsafe { syscall!(libc::SYS_openat, dirfd, spelling.as_ptr(), flags, 0) };
    if is_error(opened) {
        let out_of_descriptors = opened == error(libc::EMFILE) || opened == error(libc::ENFILE);
        return (if out_of_descriptors { Found::Unclear } else { Found::Failed(opened) }, none);
    }
    let fd = opened as i32;
    let identity = identity_of(fd, c"".as_ptr(), libc::AT_EMPTY_PATH).unwrap_or(none);
    let found = path_of(ring, fd, path);
    close(fd);
    (found, identity)
}

/// Device, inode and time of birth: a directory that was made after another was removed may have its inode number.
type Identity = (u64, u64, u64);

/// The identity of a directory, by one system call. statx(2).
fn identity_of(dirfd: i32, path: *const libc::c_char, flags: i32) -> Option<Identity> {
    let mut stat = core::mem::MaybeUninit::<libc::statx>::zeroed();
    let mask = libc::STATX_INO | libc::STATX_BTIME;
    // SAFETY: the kernel checks the path's address and fills the structure.
    let result = unsafe { syscall!(libc::SYS_statx, dirfd, path, flags, mask, stat.as_mut_ptr()) };
    if is_error(result) {
        return None;
    }
    // SAFETY: zeroed, and filled by the call.
    let stat = unsafe { stat.assume_init() };
    let birth =
        (stat.stx_btime.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(u64::from(stat.stx_btime.tv_nsec));
    Some((u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor), stat.stx_ino, birth))
}

/// The path of what `fd` stands for, below the primary.
pub fn path_of(ring: &Ring, fd: i32, path: &mut Buffer) -> Found {
    let mut climbed = Buffer::new();
    let mut current = fd;
    let mut found = Found::Unclear;
    // Directories deeper than a page of path, and processes without /proc, are found by climbing. The bound is that
    // of a record's path: 65,535 bytes of one-letter names.
    for _ in 0..32_768 {
        match path_by_proc(ring, current, path) {
            Found::Unclear => {}
            answer => {
                found = answer;
                break;
            }
        }
        match climb(ring, current, &mut climbed) {
            Ok(Climbed::Up(parent)) => {
                if current != fd {
                    close(current);
                }
                current = parent;
            }
            Ok(Climbed::Primary) => {
                path.clear();
                found = Found::Inside;
                break;
            }
            Ok(Climbed::Root(answer)) => {
                path.clear();
                if answer == Found::Inside && !state::ROOT.get().is_empty() {
                    // The process's root lies in the primary: what was climbed hangs below that.
                    let root = state::ROOT.get().to_bytes().strip_prefix(ring.primary()).unwrap_or_default();
                    let _ = path.push(root.strip_prefix(b"/").unwrap_or(root));
                }
                found = answer;
                break;
            }
            Err(()) => break,
        }
    }
    if current != fd {
        close(current);
    }
    if found == Found::Inside && !climbed.bytes().is_empty() {
        let separator: &[u8] = if path.bytes().is_empty() { b"" } else { b"/" };
        if !path.push(separator) || !path.push(climbed.bytes()) {
            return Found::Unclear;
        }
    }
    found
}

/// What /proc says of the descriptor's path.
fn path_by_proc(ring: &Ring, fd: i32, path: &mut Buffer) -> Found {
    let link = descriptor_path(fd);
    let mut absolute = Buffer::new();
    if absolute.fill(|room| read_link(HERE, link.as_ptr().cast(), room)).is_err() {
        return Found::Unclear;
    }
    if absolute.bytes().ends_with(b" (deleted)") && stat_descriptor(fd).is_ok_and(|stat| stat.st_nlink == 0) {
        return Found::Outside;
    }
    relative(ring, &mut absolute, path)
}

/// Makes an absolute path, as this process sees it, relative to the primary.
pub fn relative(ring: &Ring, absolute: &mut Buffer, path: &mut Buffer) -> Found {
    let root = state::ROOT.get().to_bytes();
    if !root.is_empty() {
        if absolute.bytes() == b"/" {
            absolute.clear();
        }
        if !absolute.push_front(root) {
            return Found::Unclear;
        }
    }
    let Some(rest) = absolute.bytes().strip_prefix(ring.primary()) else { return Found::Outside };
    path.clear();
    let inside = match rest.strip_prefix(b"/") {
        Some(below) => path.push(below),
        // A sibling whose name begins with the primary's is outside.
        None => rest.is_empty() || ring.primary() == b"/" && path.push(rest),
    };
    if inside { Found::Inside } else { Found::Outside }
}

enum Climbed {
    /// The parent, as a new descriptor.
    Up(i32),
    /// The primary was reached.
    Primary,
    /// The process's root was reached, which lies there; or a directory that has been removed.
    Root(Found),
}

/// One step from `fd` to its parent; puts the name before `climbed`.
fn climb(ring: &Ring, fd: i32, climbed: &mut Buffer) -> Result<Climbed, ()> {
    let here = stat_descriptor(fd).map_err(drop)?;
    let header = ring.header();
    if here.st_dev == header.primary_dev.load(Ordering::Relaxed)
        && here.st_ino == header.primary_ino.load(Ordering::Relaxed)
    {
        return Ok(Climbed::Primary);
    }
    if here.st_nlink == 0 {
        return Ok(Climbed::Root(Found::Outside));
    }
    // SAFETY: a constant path.
    let opened = unsafe {
        syscall!(libc::SYS_openat, fd, c"..".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC, 0)
    };
    if is_error(opened) {
        return Err(());
    }
    let parent = opened as i32;
    let above = stat_descriptor(parent).map_err(drop);
    if above.as_ref().is_ok_and(|above| (above.st_dev, above.st_ino) == (here.st_dev, here.st_ino)) {
        close(parent);
        let inside = state::ROOT.get().to_bytes().starts_with(ring.primary());
        return Ok(Climbed::Root(if inside && !state::ROOT.get().is_empty() { Found::Inside } else { Found::Outside }));
    }
    if above.is_ok() && name_in(parent, here.st_ino, climbed) {
        return Ok(Climbed::Up(parent));
    }
    close(parent);
    Err(())
}

/// Looks up the name of inode `ino` in the directory `parent` and puts it before `climbed`.
fn name_in(parent: i32, ino: u64, climbed: &mut Buffer) -> bool {
    // Aligned for `struct linux_dirent64`; getdents64(2).
    let mut entries = [0u64; 128];
    loop {
        // SAFETY: the kernel writes at most the size of the array.
        let got = unsafe { syscall!(libc::SYS_getdents64, parent, entries.as_mut_ptr(), size_of_val(&entries)) };
        if got <= 0 {
            return false;
        }
        // SAFETY: the kernel has just written `got` bytes there; any byte is a valid u8.
        let bytes = unsafe { core::slice::from_raw_parts(entries.as_ptr().cast::<u8>(), got as usize) };
        let mut rest = bytes;
        while let (Some(number), Some(length)) = (rest.first_chunk::<8>(), rest.get(16..18)) {
            let length = usize::from(u16::from_ne_bytes([length[0], length[1]]));
            let name = rest.get(19..length).unwrap_or_default().split(|byte| *byte == 0).next().unwrap_or_default();
            if u64::from_ne_bytes(*number) == ino && !is_special(name) {
                let separator: &[u8] = if climbed.bytes().is_empty() { b"" } else { b"/" };
                return climbed.push_front(separator) && climbed.push_front(name);
            }
            match rest.get(length..) {
                Some(next) if length > 0 => rest = next,
                _ => break,
            }
        }
    }
}

const CACHE_ENTRIES: usize = 64;
const NAME_BYTES: usize = 168;
const PATH_BYTES: usize = 168;

#[derive(Clone, Copy)]
struct Cached {
    generation: u64,
    anchor: u64,
    identity: Identity,
    inside: bool,
    trusted: bool,
    name_bytes: u8,
    path_bytes: u8,
    name: [u8; NAME_BYTES],
    path: [u8; PATH_BYTES],
}

struct CacheEntry {
    /// Even at rest, odd while somebody writes; readers look before and after. One that stays odd (its writer was
    /// killed by a jump or a fork) is just never used again.
    sequence: AtomicU32,
    value: UnsafeCell<Cached>,
}
// SAFETY: `value` is written only by who has made `sequence` odd, and what is read is thrown away when it has changed.
unsafe impl Sync for CacheEntry {}

const EMPTY: Cached = Cached {
    generation: 0,
    anchor: 0,
    identity: (0, 0, 0),
    inside: false,
    trusted: false,
    name_bytes: 0,
    path_bytes: 0,
    name: [0; NAME_BYTES],
    path: [0; PATH_BYTES],
};
static CACHE: [CacheEntry; CACHE_ENTRIES] =
    [const { CacheEntry { sequence: AtomicU32::new(0), value: UnsafeCell::new(EMPTY) } }; CACHE_ENTRIES];

fn cache_entry(anchor: u64, name: &[u8]) -> &'static CacheEntry {
    let seed = anchor.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let hash = name.iter().fold(seed, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    &CACHE[(hash >> 40) as usize % CACHE_ENTRIES]
}

fn cache_look_up(generation: u64, anchor: u64, dirfd: i32, name: &[u8], path: &mut Buffer) -> Option<Found> {
    let entry = cache_entry(anchor, name);
    let before = entry.sequence.load(Ordering::Acquire);
    if before & 1 != 0 {
        return None;
    }
    let value = entry.value.get();
    // SAFETY: a racing writer makes the copy meaningless, not invalid: the fields are plain integers and the lengths
    // are bounded below; `sequence` tells afterwards. The two booleans are written as whole bytes, 0 or 1.
    let cached = unsafe { &*value };
    let hit = cached.generation == generation
        && cached.anchor == anchor
        && cached.name.get(..usize::from(cached.name_bytes)) == Some(name);
    if !hit {
        return None;
    }
    let (identity, inside, trusted) = (cached.identity, cached.inside, cached.trusted);
    path.clear();
    let copied = path.push(cached.path.get(..usize::from(cached.path_bytes))?);
    core::sync::atomic::fence(Ordering::Acquire);
    if !copied || entry.sequence.load(Ordering::Relaxed) != before {
        return None;
    }
    if !trusted {
        let spelling = Buffer::of(if name.is_empty() { b"." } else { name })?;
        if identity_of(dirfd, spelling.as_ptr(), 0) != Some(identity) {
            return None;
        }
    }
    Some(if inside { Found::Inside } else { Found::Outside })
}

fn cache_store(
    generation: u64,
    anchor: u64,
    name: &[u8],
    path: &[u8],
    found: Found,
    identity: Identity,
    trusted: bool,
) {
    let path = if found == Found::Inside { path } else { b"" };
    if name.len() > NAME_BYTES || path.len() > PATH_BYTES {
        return;
    }
    let entry = cache_entry(anchor, name);
    let before = entry.sequence.load(Ordering::Relaxed);
    if before & 1 != 0
        || entry.sequence.compare_exchange(before, before + 1, Ordering::Acquire, Ordering::Relaxed).is_err()
    {
        return;
    }
    // SAFETY: the odd sequence number gives this thread the value alone.
    let cached = unsafe { &mut *entry.value.get() };
    cached.generation = generation;
    cached.anchor = anchor;
    cached.identity = identity;
    cached.inside = found == Found::Inside;
    cached.trusted = trusted;
    cached.name_bytes = name.len() as u8;
    cached.path_bytes = path.len() as u8;
    if let (Some(to), Some(to_path)) = (cached.name.get_mut(..name.len()), cached.path.get_mut(..path.len())) {
        to.copy_from_slice(name);
        to_path.copy_from_slice(path);
    }
    entry.sequence.store(before + 2, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_split_at_its_last_name() {
        for (path, directory, name) in [
            ("a", "", "a"),
            ("a/b", "a/", "b"),
            ("/a", "/", "a"),
            ("a//b//", "a//", "b"),
            ("/", "", ""),
            ("", "", ""),
            ("a/..", "a/", ".."),
        ] {
            assert_eq!(split(path.as_bytes()), (directory.as_bytes(), name.as_bytes()), "{path:?}");
        }
        assert!([&b""[..], b".", b".."].into_iter().all(is_special));
        assert!(!is_special(b"..."));
    }
}
