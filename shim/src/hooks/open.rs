//! open(2) and its family: files that are made, emptied, or opened for writing.
#![allow(unsafe_code)]

use core::ffi::c_char;
use core::sync::atomic::Ordering;

use journal::Ring;
use journal::locks::StripeIndex;
use journal::record::{Kind, pack_owner};

use crate::buffer::Buffer;
use crate::descriptors::{self, Verdict};
use crate::directory::{self, Found};
use crate::operation::{Draft, Operation, conclude, lose};
use crate::readable;
use crate::state;
use crate::sys::{HERE, error, is_error, read_link, stat_at, stat_descriptor, syscall};

use super::blocking;
use super::identify::{self, append_name, file_id, file_type};

/// How often an open is begun anew because the name changed under our eyes, before the kernel is left to it.
const TRIES: u32 = 40;

/// `struct open_how` of openat2(2).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct How {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// One open as the program asked for it.
#[derive(Clone, Copy)]
struct Request {
    dirfd: i32,
    address: *const c_char,
    how: How,
    /// By openat2(2), which has more to say.
    second: bool,
}

impl Request {
    /// The system call, with flags added and removed.
    fn call(&self, add: i32, remove: i32) -> isize {
        let flags = (self.how.flags | add as u64) & !(remove as u64);
        if self.second {
            let mode = if flags & (libc::O_CREAT as u64 | 0o20_000_000) == 0 { 0 } else { self.how.mode };
            let how = How { flags, mode, ..self.how };
            // SAFETY: the program's own call, but for the flags; the kernel checks the path's address.
            unsafe { syscall!(libc::SYS_openat2, self.dirfd, self.address, &raw const how, size_of::<How>()) }
        } else {
            // SAFETY: as above.
            unsafe { syscall!(libc::SYS_openat, self.dirfd, self.address, flags, self.how.mode) }
        }
    }

    fn has(&self, flag: i32) -> bool {
        self.how.flags & flag as u64 == flag as u64
    }
}

/// open(2), openat(2), creat(2).
pub fn openat(dirfd: i32, address: *const c_char, flags: i32, mode: u32) -> isize {
    // The kernel ignores the bits that it doesn't know, for open but not for openat2.
    let how = How { flags: u64::from(flags as u32), mode: u64::from(mode), resolve: 0 };
    open(Request { dirfd, address, how, second: false })
}

/// openat2(2).
pub fn openat2(dirfd: i32, address: *const c_char, how: *const How, bytes: usize) -> isize {
    // SAFETY: the program's own call, as it made it.
    let plain = || unsafe { syscall!(libc::SYS_openat2, dirfd, address, how, bytes) };
    let known = size_of::<How>();
    // A later version of the structure: what it adds must be zero, or this kernel's answer is needed.
    let extends = bytes > known
        && bytes <= 4096
        && readable::is_readable(how.cast(), bytes)
        // SAFETY: found readable for its size.
        && unsafe { core::slice::from_raw_parts(how.cast::<u8>().add(known), bytes - known) }.iter().all(|byte| *byte == 0);
    if !extends && (bytes != known || !readable::is_readable(how.cast(), bytes)) {
        let result = plain();
        forget(result);
        return result;
    }
    // SAFETY: found readable for its size; alignment is not assumed.
    let how = unsafe { how.read_unaligned() };
    open(Request { dirfd, address, how, second: true })
}

/// What open_by_handle_at(2) has given: its name is asked for at the first change, but it may have been emptied already.
pub fn opened_by_handle(result: isize, flags: i32) -> isize {
    forget(result);
    if !is_error(result)
        && flags & libc::O_TRUNC != 0
        && let Some(ring) = state::ring()
        && let Verdict::File(file, _) = identify::descriptor(ring, result as i32)
        && let Some(operation) = Operation::on_contents(ring)
    {
        operation.reread(file, 0, u64::MAX, 0);
    }
    result
}

fn forget(result: isize) {
    if !is_error(result) {
        descriptors::reset(result as i32);
    }
}

#[inline(always)]
fn open(request: Request) -> isize {
    let access = request.how.flags as i32 & libc::O_ACCMODE;
    let changes = access != libc::O_RDONLY || request.how.flags & (libc::O_CREAT | libc::O_TRUNC) as u64 != 0;
    match state::ring() {
        Some(ring) if changes && !request.has(libc::O_PATH) => open_to_change(ring, request),
        _ => {
            let result = blocking::call(descriptors::BLOCKS, move || request.call(0, 0));
            forget(result);
            result
        }
    }
}

#[inline(never)]
fn open_to_change(ring: &Ring, request: Request) -> isize {
    // SAFETY: the path is used only during this call.
    let Some(path) = (unsafe { readable::string(request.address) }) else {
        return request.call(0, 0);
    };
    if request.has(libc::O_TMPFILE) {
        return open_unnamed(ring, request);
    }
    let (_, name) = directory::split(path);
    let ends_in_slash = path.last() == Some(&b'/');
    let makes_or_empties = request.has(libc::O_CREAT) || request.has(libc::O_TRUNC);
    // With restrictions on how paths resolve, finding the directory by ourselves would not be the same.
    let resolves = request.how.resolve == 0 && !request.has(libc::O_DIRECTORY);
    if makes_or_empties && resolves && !directory::is_special(name) && !ends_in_slash {
        let mut target = request;
        // Room for the spelling that a symbolic link leads to.
        let mut spelling: Buffer;
        for _ in 0..TRIES {
            // SAFETY: either the program's path, or our buffer, which isn't changed before the next turn.
            let Some(path) = (unsafe { readable::string(target.address) }) else { break };
            match open_in_directory(ring, target, path) {
                Step::Done(result) => return result,
                Step::Again => {}
                Step::Link => {
                    // O_EXCL and O_NOFOLLOW don't follow; their errors are the kernel's to give. So is the refusal to
                    // follow somebody else's link in a shared directory (fs.protected_symlinks).
                    if request.has(libc::O_EXCL) || request.has(libc::O_NOFOLLOW) || !may_follow(target) {
                        break;
                    }
                    match follow_link(target, path) {
                        Some(followed) => spelling = followed,
                        None => break,
                    }
                    if spelling.bytes().first() == Some(&b'/') {
                        target.dirfd = HERE;
                    }
                    target.address = spelling.as_ptr();
                }
                Step::Plain => break,
            }
        }
        if target.address != request.address {
            let result = target.call(0, 0);
            return after_open(ring, target, result);
        }
    }
    // It may be a FIFO, which waits for its other end.
    let result = blocking::call(descriptors::BLOCKS, move || request.call(0, 0));
    after_open(ring, request, result)
}

enum Step {
    /// The kernel's result.
    Done(isize),
    /// The name changed meanwhile.
    Again,
    /// The name is a symbolic link.
    Link,
    /// Not a regular file, or outside the primary: the program's own call is all that is needed.
    Plain,
}

/// Opens, makes or empties a file whose directory lies in the primary.
fn open_in_directory(ring: &Ring, request: Request, path: &[u8]) -> Step {
    let (dir, name) = directory::split(path);
    if directory::is_special(name) {
        return Step::Plain;
    }
    let mut place = Buffer::new();
    // A look before signals are blocked: most files that programs open lie elsewhere.
    if directory::find(ring, request.dirfd, dir, &mut place) == Found::Outside {
        return outside_step(ring, request);
    }
    let Some(mut operation) = Operation::on_names(ring) else { return Step::Done(request.call(0, 0)) };
    match directory::find(ring, request.dirfd, dir, &mut place) {
        Found::Inside => {}
        Found::Outside => return Step::Plain,
        Found::Failed(_) => return Step::Done(refused(&operation, request, path)),
        Found::Unclear => {
            lose(ring);
            return Step::Plain;
        }
    }
    operation.lock(&mut [StripeIndex::of_directory(place.bytes())]);
    if !append_name(&mut place, name) {
        return Step::Done(refused(&operation, request, path));
    }
    if request.has(libc::O_CREAT) {
        let result = create(&operation, request, place.bytes());
        if result != error(libc::EEXIST) || request.has(libc::O_EXCL) {
            return Step::Done(result);
        }
    }
    let stat = match stat_at(request.dirfd, request.address, libc::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(result) if result == error(libc::ENOENT) && request.has(libc::O_CREAT) => return Step::Again,
        Err(_) => return Step::Done(refused(&operation, request, path)),
    };
    match file_type(&stat) {
        libc::S_IFREG => Step::Done(open_existing(&mut operation, request, place.bytes(), &stat)),
        libc::S_IFLNK => Step::Link,
        _ => Step::Plain,
    }
}

/// An open of a name that can't be found: the kernel refuses it, in its own words.
fn refused(operation: &Operation<'_>, request: Request, path: &[u8]) -> isize {
    let result = super::names::refused(operation, &[(request.dirfd, path)], request.call(0, 0));
    forget(result);
    result
}

/// Outside the primary a name may still be a symbolic link into it.
fn outside_step(ring: &Ring, request: Request) -> Step {
    match stat_at(request.dirfd, request.address, libc::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) if file_type(&stat) == libc::S_IFLNK => Step::Link,
        // A name outside of a file that has names inside, about to be emptied.
        Ok(stat)
            if file_type(&stat) == libc::S_IFREG
                && stat.st_nlink > 1
                && request.has(libc::O_TRUNC)
                && stat.st_dev == ring.header().primary_dev.load(Ordering::Relaxed) =>
        {
            Step::Done(empty_shared(ring, request))
        }
        _ => Step::Plain,
    }
}

/// Opens a file that may have names inside, without O_TRUNC, and empties it through the descriptor.
fn empty_shared(ring: &Ring, request: Request) -> isize {
    if request.how.flags as i32 & libc::O_ACCMODE == libc::O_RDONLY {
        // ftruncate(2) needs a descriptor for writing; what this one has emptied is read again.
        let result = request.call(0, 0);
        return after_open(ring, request, result);
    }
    let result = request.call(0, libc::O_TRUNC);
    let result = after_open(ring, request, result);
    if !is_error(result) {
        let emptied = super::resize::ftruncate(result as i32, 0);
        if is_error(emptied) {
            crate::sys::close(result as i32);
            return emptied;
        }
    }
    result
}

/// Tries to make the file; EEXIST when it is there.
fn create(operation: &Operation<'_>, request: Request, path: &[u8]) -> isize {
    let draft = Draft { path1: path, ..Draft::new(Kind::Create) };
    let pending = operation.intend(&draft, 0);
    let result = request.call(libc::O_EXCL, libc::O_TRUNC);
    let stat = if is_error(result) { None } else { stat_descriptor(result as i32).ok() };
    conclude(operation, pending, !is_error(result), |header| {
        if let Some(stat) = stat {
            header.a = u64::from(stat.st_mode);
            header.b = pack_owner(stat.st_uid, stat.st_gid);
        }
    });
    if let Some(stat) = stat {
        // Apart, and claimed only now: another program may have changed an unlinked file and closed it while we were
        // waiting for the call, and the new file has got its inode number.
        let bind = operation.intend(&Draft { file: file_id(&stat), path1: path, ..Draft::new(Kind::Bind) }, 0);
        conclude(operation, bind, true, |_| {});
        descriptors::reset(result as i32);
        descriptors::set_file(result as i32, file_id(&stat), descriptors::flags_of(request.how.flags as i32));
    }
    result
}

/// Opens a regular file that is there, under its directory's lock, and records its name and its emptying.
fn open_existing(operation: &mut Operation<'_>, request: Request, path: &[u8], stat: &libc::stat) -> isize {
    let file = file_id(stat);
    let empties = request.has(libc::O_TRUNC);
    if empties {
        operation.lock_also(StripeIndex::of_file(file));
    }
    let bind = operation.intend(&Draft { file, path1: path, ..Draft::new(Kind::Bind) }, 0);
    let truncate = if empties { operation.intend(&Draft { file, ..Draft::new(Kind::Truncate) }, 0) } else { None };
    let result = request.call(0, 0);
    let opened = !is_error(result);
    // Somebody who isn't wrapped may have put another file there; then what we know is about the wrong one.
    let same = opened && stat_descriptor(result as i32).is_ok_and(|now| file_id(&now) == file);
    conclude(operation, bind, same, |_| {});
    conclude(operation, truncate, opened, |_| {});
    if opened {
        descriptors::reset(result as i32);
        if same {
            descriptors::set_file(result as i32, file, descriptors::flags_of(request.how.flags as i32));
        } else {
            lose(operation.ring);
        }
    }
    result
}

/// True when the kernel follows the link, or would if what it leads to were there, and its text is where it leads: not so
/// for the links of /proc, which lead to pipes and to files without a name.
fn may_follow(request: Request) -> bool {
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: the program's own path, opened for nothing.
    let link = unsafe { syscall!(libc::SYS_openat, request.dirfd, request.address, flags | libc::O_NOFOLLOW, 0) };
    if is_error(link) {
        return false;
    }
    let mut system = core::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the kernel fills the structure for the descriptor just opened.
    let known = !is_error(unsafe { syscall!(libc::SYS_fstatfs, link, system.as_mut_ptr()) });
    crate::sys::close(link as i32);
    // SAFETY: zeroed, and filled if `known`.
    let is_magic = !known || unsafe { system.assume_init() }.f_type == libc::PROC_SUPER_MAGIC;
    if is_magic {
        return false;
    }
    // SAFETY: as above.
    let followed = unsafe { syscall!(libc::SYS_openat, request.dirfd, request.address, flags, 0) };
    if !is_error(followed) {
        crate::sys::close(followed as i32);
    }
    !is_error(followed) || followed == error(libc::ENOENT)
}

/// The spelling that the symbolic link at `path` leads to, relative to the same directory or absolute.
fn follow_link(request: Request, path: &[u8]) -> Option<Buffer> {
    let (dir, _) = directory::split(path);
    let mut target = Buffer::new();
    target.fill(|room| read_link(request.dirfd, request.address, room)).ok()?;
    let absolute = target.bytes().first() == Some(&b'/');
    if target.bytes().is_empty() || (!absolute && !target.push_front(dir)) {
        return None;
    }
    Some(target)
}

/// Looks at what a plain open has given: a file of the primary is bound to its name.
fn after_open(ring: &Ring, request: Request, result: isize) -> isize {
    if is_error(result) {
        return result;
    }
    let fd = result as i32;
    descriptors::reset(fd);
    let Ok(stat) = stat_descriptor(fd) else { return result };
    if file_type(&stat) != libc::S_IFREG {
        descriptors::set_outside(ring, fd, descriptors::BLOCKS);
        return result;
    }
    let flags = descriptors::flags_of(request.how.flags as i32);
    // SAFETY: the path was readable for the open just now.
    let hint = unsafe { readable::string(request.address) }.map(|path| (request.dirfd, path, request.address));
    let verdict = identify::bind(ring, fd, &stat, flags, hint);
    if let Verdict::File(file, flags) = verdict
        && request.has(libc::O_TRUNC)
    {
        // It came by a way on which it was emptied unseen (a magic link, a race with a program that isn't wrapped).
        if let Some(operation) = Operation::on_contents(ring) {
            let maybe = crate::descriptors::record_flags(flags);
            operation.reread(file, 0, u64::MAX, maybe);
        }
    }
    result
}

/// O_TMPFILE: a file without a name, which may get one later by linkat(2).
fn open_unnamed(ring: &Ring, request: Request) -> isize {
    // Without O_EXCL it can be linked. The directory only says on which file system it is born.
    let result = request.call(0, 0);
    forget(result);
    if is_error(result) || request.has(libc::O_EXCL) {
        return result;
    }
    let fd = result as i32;
    // SAFETY: the path was readable for the open just now.
    let Some(path) = (unsafe { readable::string(request.address) }) else { return result };
    let Ok(stat) = stat_descriptor(fd) else { return result };
    let Some(operation) = Operation::on_names(ring) else { return result };
    let mut place = Buffer::new();
    if directory::find(ring, request.dirfd, path, &mut place) != Found::Inside {
        return result;
    }
    let file = file_id(&stat);
    let draft = Draft {
        file,
        path1: place.bytes(),
        a: u64::from(stat.st_mode),
        b: pack_owner(stat.st_uid, stat.st_gid),
        ..Draft::new(Kind::CreateUnnamed)
    };
    if let Some(pending) = operation.intend(&draft, 0) {
        operation.commit(pending, |_| {});
    }
    descriptors::set_file(fd, file, descriptors::flags_of(request.how.flags as i32));
    result
}
