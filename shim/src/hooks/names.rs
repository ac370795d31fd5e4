//! Calls that make, move and remove names.
#![allow(unsafe_code)]

use core::ffi::c_char;
use core::sync::atomic::Ordering;

use journal::Ring;
use journal::locks::StripeIndex;
use journal::record::{FileId, Kind, pack_owner};

use crate::buffer::Buffer;
use crate::descriptors::Verdict;
use crate::directory::{self, Found};
use crate::operation::{Draft, Operation, conclude, lose};
use crate::readable;
use crate::state;
use crate::sys::{HERE, error, is_error, stat_at, syscall};

use super::identify::{self, append_name, file_id, file_type, follow};

/// A name that is about to change.
#[derive(Clone, Copy)]
struct Name<'a> {
    dirfd: i32,
    address: *const c_char,
    /// As the program spells it.
    spelling: &'a [u8],
}

impl<'a> Name<'a> {
    /// `None` when the path can't be read, or its last name is one that can't be changed: the kernel refuses both.
    fn of(dirfd: i32, address: *const c_char) -> Option<Self> {
        // SAFETY: the path is used only during the program's call.
        let spelling = unsafe { readable::string(address) }?;
        (!directory::is_special(directory::split(spelling).1)).then_some(Self { dirfd, address, spelling })
    }

    fn find_directory(&self, ring: &Ring, place: &mut Buffer) -> Found {
        directory::find(ring, self.dirfd, directory::split(self.spelling).0, place)
    }

    fn last(&self) -> &'a [u8] {
        directory::split(self.spelling).1
    }

    fn stat(&self) -> Result<libc::stat, isize> {
        stat_at(self.dirfd, self.address, libc::AT_SYMLINK_NOFOLLOW)
    }
}

/// The result of a call on names (each relative to a descriptor) of which one can't be found: the kernel refuses it, in its
/// own words. If it doesn't, because the name has appeared meanwhile, what is there is read again.
pub fn refused(operation: &Operation<'_>, names: &[(i32, &[u8])], result: isize) -> isize {
    if is_error(result) {
        return result;
    }
    for (dirfd, spelling) in names {
        let (dir, name) = directory::split(spelling);
        let mut place = Buffer::new();
        match directory::find(operation.ring, *dirfd, dir, &mut place) {
            Found::Inside if append_name(&mut place, name) => {
                let pending = operation.intend(&Draft { path1: place.bytes(), ..Draft::new(Kind::Import) }, 0);
                conclude(operation, pending, true, |_| {});
            }
            Found::Outside => {}
            _ => lose(operation.ring),
        }
    }
    result
}

/// Runs `recorded` with the name's directory locked and its path below the primary, or `plain` where it lies elsewhere.
fn on_name(
    name: Option<Name<'_>>,
    moves: bool,
    plain: impl Fn() -> isize,
    recorded: impl Fn(&mut Operation<'_>, &Name<'_>, &[u8]) -> isize,
) -> isize {
    let (Some(ring), Some(name)) = (state::ring(), name) else { return plain() };
    let mut place = Buffer::new();
    if name.find_directory(ring, &mut place) == Found::Outside {
        return plain();
    }
    let entered = if moves { Operation::moving(ring) } else { Operation::on_names(ring) };
    let Some(mut operation) = entered else { return plain() };
    match name.find_directory(ring, &mut place) {
        Found::Inside => {}
        Found::Outside => return plain(),
        Found::Failed(_) => return refused(&operation, &[(name.dirfd, name.spelling)], plain()),
        Found::Unclear => {
            lose(ring);
            return plain();
        }
    }
    operation.lock(&mut [StripeIndex::of_directory(place.bytes())]);
    if !append_name(&mut place, name.last()) {
        return refused(&operation, &[(name.dirfd, name.spelling)], plain());
    }
    recorded(&mut operation, &name, place.bytes())
}

/// Makes a name by `call` and records what is there afterwards.
fn make(kind: Kind, moves: bool, target: &[u8], dirfd: i32, address: *const c_char, call: impl Fn() -> isize) -> isize {
    on_name(Name::of(dirfd, address), moves, &call, |operation, name, path| {
        let pending = operation.intend(&Draft { path1: path, path2: target, ..Draft::new(kind) }, 0);
        let result = call();
        let stat = if is_error(result) { None } else { name.stat().ok() };
        conclude(operation, pending, !is_error(result), |header| {
            if let Some(stat) = stat {
                header.a = u64::from(stat.st_mode);
                header.b = pack_owner(stat.st_uid, stat.st_gid);
                header.c = stat.st_rdev;
            }
        });
        if let Some(stat) = stat
            && kind == Kind::Create
        {
            let bind = operation.intend(&Draft { file: file_id(&stat), path1: path, ..Draft::new(Kind::Bind) }, 0);
            conclude(operation, bind, true, |_| {});
        }
        result
    })
}

/// mkdir(2).
pub fn mkdirat(dirfd: i32, address: *const c_char, mode: u32) -> isize {
    make(Kind::MakeDirectory, false, b"", dirfd, address, || {
        // SAFETY: the program's own call; the kernel checks the address.
        unsafe { syscall!(libc::SYS_mkdirat, dirfd, address, mode) }
    })
}

/// symlink(2). A new link may stand where a directory stood, so cached paths are void: other name operations wait.
pub fn symlinkat(target: *const c_char, dirfd: i32, address: *const c_char) -> isize {
    // SAFETY: the program's own call; the kernel checks the addresses.
    let call = || unsafe { syscall!(libc::SYS_symlinkat, target, dirfd, address) };
    // SAFETY: the target is used only during this call.
    match unsafe { readable::string(target) } {
        Some(text) if !text.is_empty() => make(Kind::SymbolicLink, true, text, dirfd, address, call),
        _ => call(),
    }
}

/// mknod(2), mkfifo(3).
pub fn mknodat(dirfd: i32, address: *const c_char, mode: u32, device: u64) -> isize {
    let regular = matches!(mode & libc::S_IFMT, 0 | libc::S_IFREG);
    make(if regular { Kind::Create } else { Kind::MakeNode }, false, b"", dirfd, address, || {
        // SAFETY: the program's own call; the kernel checks the address.
        unsafe { syscall!(libc::SYS_mknodat, dirfd, address, mode, device) }
    })
}

/// bind(2): a Unix socket gets a name.
pub fn bind(fd: i32, address: *const libc::sockaddr, bytes: u32) -> isize {
    // SAFETY: the program's own call; the kernel checks the address.
    let call = || unsafe { syscall!(libc::SYS_bind, fd, address, bytes) };
    let mut copy = [0u8; size_of::<libc::sockaddr_un>() + 1];
    let length = bytes as usize;
    if state::ring().is_none() || length <= 2 || length >= copy.len() || !readable::is_readable(address.cast(), length)
    {
        return call();
    }
    // SAFETY: found readable; the copy is larger, and ends in a zero whatever the program's address ends in.
    unsafe { core::ptr::copy_nonoverlapping(address.cast::<u8>(), copy.as_mut_ptr(), length) };
    let path = copy.get(2..).unwrap_or_default();
    if u16::from_ne_bytes([copy[0], copy[1]]) != libc::AF_UNIX as u16 || path.first() == Some(&0) {
        return call();
    }
    make(Kind::MakeNode, false, b"", HERE, path.as_ptr().cast(), call)
}

/// unlink(2), rmdir(2).
pub fn unlinkat(dirfd: i32, address: *const c_char, flags: i32) -> isize {
    // SAFETY: the program's own call; the kernel checks the address.
    let call = || unsafe { syscall!(libc::SYS_unlinkat, dirfd, address, flags) };
    let removes_directory = flags & libc::AT_REMOVEDIR != 0;
    let kind = if removes_directory { Kind::RemoveDirectory } else { Kind::Unlink };
    on_name(Name::of(dirfd, address), false, call, |operation, _, path| {
        if removes_directory {
            // Nobody makes or removes a name in it meanwhile, or the order of the records could be another than that
            // of the effects. The parent is locked already and its stripe may come after: two threads that remove a
            // directory and its child could each wait for the other, so both are taken anew, in order.
            let (parent, _) = directory::split(path);
            let parent = parent.strip_suffix(b"/").unwrap_or(parent);
            operation.relock(&mut [StripeIndex::of_directory(parent), StripeIndex::of_directory(path)]);
        }
        let pending = operation.intend(&Draft { path1: path, ..Draft::new(kind) }, 0);
        let result = call();
        conclude(operation, pending, !is_error(result), |_| {});
        result
    })
}

/// Where one end of a rename or link lies. Nothing is allocated here, so the buffer is part of it.
#[allow(clippy::large_enum_variant)]
enum End {
    Inside(Buffer),
    Outside,
}

/// The path of a name below the primary, or the result that the call has.
fn locate(ring: &Ring, name: &Name<'_>) -> Result<End, isize> {
    let mut place = Buffer::new();
    match name.find_directory(ring, &mut place) {
        Found::Inside if append_name(&mut place, name.last()) => Ok(End::Inside(place)),
        Found::Inside => Err(error(libc::ENAMETOOLONG)),
        Found::Outside => Ok(End::Outside),
        Found::Failed(error) => Err(error),
        Found::Unclear => {
            lose(ring);
            Ok(End::Outside)
        }
    }
}

fn parent_of(path: &[u8]) -> StripeIndex {
    let (parent, _) = directory::split(path);
    StripeIndex::of_directory(parent.strip_suffix(b"/").unwrap_or(parent))
}

/// rename(2), with all flags of renameat2(2).
pub fn renameat2(old_dirfd: i32, old: *const c_char, new_dirfd: i32, new: *const c_char, flags: u32) -> isize {
    // SAFETY: the program's own call; the kernel checks the addresses. renameat(2) is asked for where no flag is, for
    // file systems and sandboxes that don't know the newer call.
    let call = || unsafe {
        if flags == 0 {
            syscall!(libc::SYS_renameat, old_dirfd, old, new_dirfd, new)
        } else {
            syscall!(libc::SYS_renameat2, old_dirfd, old, new_dirfd, new, flags)
        }
    };
    let names = (Name::of(old_dirfd, old), Name::of(new_dirfd, new));
    let (Some(ring), (Some(from), Some(to))) = (state::ring(), names) else { return call() };
    if matches!((locate(ring, &from), locate(ring, &to)), (Ok(End::Outside), Ok(End::Outside))) {
        return call();
    }
    let exchanges = flags & libc::RENAME_EXCHANGE != 0;
    // Whatever is not a regular file may be part of paths: a directory, a symbolic link.
    let is_plain = |name: &Name<'_>| name.stat().is_ok_and(|stat| file_type(&stat) == libc::S_IFREG);
    let mut moves = !is_plain(&from) || (exchanges && !is_plain(&to));
    loop {
        let entered = if moves { Operation::moving(ring) } else { Operation::on_names(ring) };
        let Some(mut operation) = entered else { return call() };
        let (from_end, to_end) = match (locate(ring, &from), locate(ring, &to)) {
            (Ok(from), Ok(to)) => (from, to),
            _ => {
                let names = [(old_dirfd, from.spelling), (new_dirfd, to.spelling)];
                return refused(&operation, &names, call());
            }
        };
        let mut stripes = [None; 3];
        let mut add = |stripe| {
            if let Some(place) = stripes.iter_mut().find(|place: &&mut Option<StripeIndex>| place.is_none()) {
                *place = Some(stripe);
            }
        };
        for end in [&from_end, &to_end] {
            if let End::Inside(path) = end {
                add(parent_of(path.bytes()));
            }
        }
        if let End::Inside(path) = &to_end
            && moves
        {
            // A directory may be replaced: nobody works in it meanwhile.
            add(StripeIndex::of_directory(path.bytes()));
        }
        operation.lock_some(&mut stripes);
        let source = from.stat();
        let target = to.stat();
        let is_dangerous =
            |stat: &Result<libc::stat, isize>| stat.as_ref().is_ok_and(|stat| file_type(stat) != libc::S_IFREG);
        if !moves && (is_dangerous(&source) || (exchanges && is_dangerous(&target))) {
            // It was something else a moment ago.
            moves = true;
            continue;
        }
        return rename_recorded(&operation, &call, flags, (&from_end, source.ok()), (&to_end, target.ok()));
    }
}

fn rename_recorded(
    operation: &Operation<'_>,
    call: &impl Fn() -> isize,
    flags: u32,
    (from, source): (&End, Option<libc::stat>),
    (to, target): (&End, Option<libc::stat>),
) -> isize {
    let file = source.as_ref().map_or(FileId::NONE, file_id);
    let mode = source.as_ref().map_or(0, |stat| u64::from(stat.st_mode));
    let is_directory = source.as_ref().is_some_and(|stat| file_type(stat) == libc::S_IFDIR);
    let exchanges = flags & libc::RENAME_EXCHANGE != 0;
    match (from, to) {
        (End::Inside(from), End::Inside(to)) => {
            let same = target.as_ref().is_some_and(|target| file_id(target) == file) && !exchanges;
            let draft = Draft {
                file,
                path1: from.bytes(),
                path2: to.bytes(),
                a: u64::from(flags),
                b: mode,
                c: target.as_ref().map_or(0, |stat| stat.st_ino),
                ..Draft::new(Kind::Rename)
            };
            let pending = operation.intend(&draft, 0);
            let result = call();
            // Two names of one file: rename(2) does nothing and succeeds.
            conclude(operation, pending, !is_error(result) && !same, |_| {});
            result
        }
        (End::Inside(from), End::Outside) => {
            // What leaves is removed, a whole tree at once. What an exchange or a whiteout puts there is read anew.
            let kind = if is_directory || flags != 0 { Kind::Import } else { Kind::Unlink };
            let stays_linked = source.as_ref().is_some_and(|stat| stat.st_nlink > 1);
            let pending = operation.intend(&Draft { file, path1: from.bytes(), ..Draft::new(kind) }, 0);
            let result = call();
            conclude(operation, pending, !is_error(result), |_| {});
            if !is_error(result) && (exchanges || stays_linked || is_directory) {
                forget_outside(operation.ring);
            }
            result
        }
        (End::Outside, End::Inside(to)) => {
            let pending = operation.intend(&Draft { file, path1: to.bytes(), ..Draft::new(Kind::Import) }, 0);
            let result = call();
            if !is_error(result) {
                // Descriptors that are open on what came in are files of the primary from now on.
                forget_outside(operation.ring);
            }
            conclude(operation, pending, !is_error(result), |_| {});
            result
        }
        (End::Outside, End::Outside) => call(),
    }
}

fn forget_outside(ring: &Ring) {
    ring.header().outside_generation.fetch_add(1, Ordering::SeqCst);
}

/// Where the file that gets another name comes from.
#[allow(clippy::large_enum_variant)]
enum Origin {
    /// A name in the primary.
    Name(Buffer),
    /// A file of the primary without a name, or whose name doesn't matter: open as a descriptor.
    File(FileId),
    /// Elsewhere.
    Outside,
}

/// link(2), linkat(2), also of descriptors (AT_EMPTY_PATH, /proc/self/fd).
pub fn linkat(old_dirfd: i32, old: *const c_char, new_dirfd: i32, new: *const c_char, flags: i32) -> isize {
    // SAFETY: the program's own call; the kernel checks the addresses.
    let call = || unsafe { syscall!(libc::SYS_linkat, old_dirfd, old, new_dirfd, new, flags) };
    let (Some(ring), Some(to)) = (state::ring(), Name::of(new_dirfd, new)) else { return call() };
    // SAFETY: the path is used only during this call.
    let Some(old_path) = (unsafe { readable::string(old) }) else { return call() };
    // A second name of a symbolic link may stand where a directory stood: as for symlink(2).
    let moves = stat_at(old_dirfd, old, libc::AT_SYMLINK_NOFOLLOW).is_ok_and(|stat| file_type(&stat) == libc::S_IFLNK);
    let entered = if moves { Operation::moving(ring) } else { Operation::on_names(ring) };
    let Some(mut operation) = entered else { return call() };
    let (Ok(origin), Ok(to_end)) = (origin_of(ring, old_dirfd, old_path, old, flags), locate(ring, &to)) else {
        return refused(&operation, &[(new_dirfd, to.spelling)], call());
    };
    let from_stripe = if let Origin::Name(path) = &origin { Some(parent_of(path.bytes())) } else { None };
    let End::Inside(path) = to_end else {
        let result = link_out(&mut operation, &origin, from_stripe, &call);
        return result;
    };
    operation.lock_some(&mut [Some(parent_of(path.bytes())), from_stripe, None]);
    let (file, from): (FileId, &[u8]) = match &origin {
        Origin::Name(from) => (FileId::NONE, from.bytes()),
        Origin::File(file) => (*file, b""),
        Origin::Outside => {
            let pending = operation.intend(&Draft { path1: path.bytes(), ..Draft::new(Kind::Import) }, 0);
            let result = call();
            if !is_error(result) {
                forget_outside(ring);
            }
            conclude(&operation, pending, !is_error(result), |_| {});
            return result;
        }
    };
    let pending = operation.intend(&Draft { file, path1: from, path2: path.bytes(), ..Draft::new(Kind::Link) }, 0);
    let result = call();
    let stat = if is_error(result) { None } else { to.stat().ok() };
    conclude(&operation, pending, !is_error(result), |header| {
        if let Some(stat) = stat {
            let file = file_id(&stat);
            header.ino = file.ino;
            header.dev = file.dev;
            header.a = u64::from(stat.st_mode);
        }
    });
    result
}

/// A file of the primary gets a name outside. Changes by that name are recorded, so the replayer has to know the file.
fn link_out(
    operation: &mut Operation<'_>,
    origin: &Origin,
    stripe: Option<StripeIndex>,
    call: &impl Fn() -> isize,
) -> isize {
    operation.lock_some(&mut [stripe, None, None]);
    let result = call();
    if !is_error(result)
        && let Origin::Name(path) = origin
        && let Some(absolute) = absolute(operation.ring, path.bytes())
        && let Ok(stat) = stat_at(HERE, absolute.as_ptr(), libc::AT_SYMLINK_NOFOLLOW)
    {
        let draft = Draft { file: file_id(&stat), path1: path.bytes(), ..Draft::new(Kind::Bind) };
        if let Some(pending) = operation.intend(&draft, 0) {
            operation.commit(pending, |_| {});
        }
        forget_outside(operation.ring);
    }
    result
}

/// The absolute path of something in the primary.
fn absolute(ring: &Ring, path: &[u8]) -> Option<Buffer> {
    let mut absolute = Buffer::of(ring.primary())?;
    (absolute.push(b"/") && absolute.push(path)).then_some(absolute)
}

fn origin_of(ring: &Ring, dirfd: i32, path: &[u8], address: *const c_char, flags: i32) -> Result<Origin, isize> {
    if path.is_empty() {
        return Ok(if flags & libc::AT_EMPTY_PATH != 0 { origin_of_descriptor(ring, dirfd) } else { Origin::Outside });
    }
    let (dir, name) = directory::split(path);
    let follows = flags & libc::AT_SYMLINK_FOLLOW != 0;
    let stat = stat_at(dirfd, address, libc::AT_SYMLINK_NOFOLLOW)?;
    let leads_on = follows && file_type(&stat) == libc::S_IFLNK;
    if !directory::is_special(name) && !leads_on {
        let mut place = Buffer::new();
        return match directory::find(ring, dirfd, dir, &mut place) {
            Found::Inside if append_name(&mut place, name) => Ok(Origin::Name(place)),
            Found::Failed(error) => Err(error),
            _ => Ok(Origin::Outside),
        };
    }
    // A link that is followed: to another name, or a magic one to a descriptor.
    let mut absolute = Buffer::new();
    let stat = follow(dirfd, address, &mut absolute)?;
    if stat.st_nlink == 0 {
        // O_TMPFILE, by /proc/self/fd: the record of its birth has made it known.
        return Ok(Origin::File(file_id(&stat)));
    }
    let mut place = Buffer::new();
    match directory::relative(ring, &mut absolute, &mut place) {
        Found::Inside => Ok(Origin::Name(place)),
        _ => Ok(Origin::Outside),
    }
}

fn origin_of_descriptor(ring: &Ring, fd: i32) -> Origin {
    match identify::known(ring, fd) {
        Verdict::File(file, _) => Origin::File(file),
        _ => {
            let mut absolute = Buffer::new();
            let mut place = Buffer::new();
            let link = crate::sys::descriptor_path(fd);
            let named = absolute.fill(|room| crate::sys::read_link(HERE, link.as_ptr().cast(), room)).is_ok();
            if named && directory::relative(ring, &mut absolute, &mut place) == Found::Inside {
                Origin::Name(place)
            } else {
                Origin::Outside
            }
        }
    }
}
