//! chmod(2), chown(2), utimensat(2), setxattr(2), inode flags: recorded as what is there after the call.
#![allow(unsafe_code)]

use core::ffi::c_char;

use journal::record::{
    ATTRIBUTE_ATIME, ATTRIBUTE_MODE, ATTRIBUTE_MTIME, ATTRIBUTE_OWNER, FileId, Header, Kind, pack_owner,
};

use crate::descriptors::Verdict;
use crate::operation::{Draft, Operation, conclude};
use crate::readable;
use crate::state;
use crate::sys::{HERE, is_error, stat_at, stat_descriptor, syscall};

use super::identify;
use super::target::{self, Follow, Target};

/// fchmodat2(2), Linux 6.6; the libc crate knows it on some architectures only.
const SYS_FCHMODAT2: i64 = 452;
const XATTR_BYTES_MAX: usize = 65_536;

/// The object that a call on attributes names.
#[derive(Clone, Copy)]
enum Subject {
    Path(i32, *const c_char, Follow),
    Descriptor(i32),
}

impl Subject {
    fn stat(self) -> Result<libc::stat, isize> {
        match self {
            Self::Path(dirfd, address, Follow::Yes) => stat_at(dirfd, address, 0),
            Self::Path(dirfd, address, Follow::No) => stat_at(dirfd, address, libc::AT_SYMLINK_NOFOLLOW),
            Self::Descriptor(fd) => stat_descriptor(fd),
        }
    }

    /// Runs `recorded` with the object locked if it lies in the primary, else `plain`. An empty path and a file that
    /// is not none mean a file that is known by its inode.
    fn run(self, plain: impl Fn() -> isize, recorded: impl Fn(&Operation<'_>, FileId, &[u8], u8) -> isize) -> isize {
        match self {
            Self::Path(dirfd, address, follows) => {
                target::on_path(dirfd, address, follows, plain, |operation, target: &Target<'_>| {
                    recorded(operation, if target.path.is_empty() { FileId::NONE } else { target.file }, target.path, 0)
                })
            }
            Self::Descriptor(fd) => {
                let Some(ring) = state::ring() else { return plain() };
                if let Verdict::File(file, flags) = identify::descriptor(ring, fd) {
                    let Some(mut operation) = Operation::on_contents(ring) else { return plain() };
                    let maybe = crate::descriptors::record_flags(flags);
                    operation.lock_file(file, maybe);
                    return recorded(&operation, file, b"", maybe);
                }
                target::on_descriptor(fd, plain, |operation, target| {
                    recorded(operation, if target.path.is_empty() { FileId::NONE } else { target.file }, target.path, 0)
                })
            }
        }
    }
}

/// Changes attributes by `call`; `mask` says which of them the record carries.
fn change(subject: Subject, mask: u64, call: impl Fn() -> isize) -> isize {
    let with_times = mask & (ATTRIBUTE_ATIME | ATTRIBUTE_MTIME) != 0;
    subject.run(&call, |operation, file, path, flags| {
        let data: &[u8] = if with_times { &[0; 24] } else { b"" };
        let draft = Draft { file, path1: path, data, c: mask, flags, ..Draft::new(Kind::Attributes) };
        let pending = operation.intend(&draft, 0);
        let result = call();
        let stat = if is_error(result) { None } else { subject.stat().ok() };
        if let (Some(stat), Some(pending)) = (&stat, &pending)
            && with_times
        {
            let (data, room) = operation.data(pending);
            let times = times_of(stat);
            if room >= times.len() {
                // SAFETY: the claim has room for it, and the record is still ours.
                unsafe { core::ptr::copy_nonoverlapping(times.as_ptr(), data, times.len()) };
            }
        }
        conclude(operation, pending, stat.is_some(), |header| {
            if let Some(stat) = stat {
                header.a = u64::from(stat.st_mode);
                header.b = pack_owner(stat.st_uid, stat.st_gid);
            }
        });
        result
    })
}

fn times_of(stat: &libc::stat) -> [u8; 24] {
    let mut times = [0; 24];
    times[..8].copy_from_slice(&stat.st_atime.to_le_bytes());
    times[8..12].copy_from_slice(&(stat.st_atime_nsec as u32).to_le_bytes());
    times[12..20].copy_from_slice(&stat.st_mtime.to_le_bytes());
    times[20..].copy_from_slice(&(stat.st_mtime_nsec as u32).to_le_bytes());
    times
}

fn path_subject(dirfd: i32, address: *const c_char, flags: i32) -> Subject {
    // SAFETY: only looked at.
    let empty = flags & libc::AT_EMPTY_PATH != 0
        && (address.is_null() || unsafe { readable::string(address) }.is_some_and(<[u8]>::is_empty));
    if empty && dirfd != HERE {
        return Subject::Descriptor(dirfd);
    }
    let follows = if flags & libc::AT_SYMLINK_NOFOLLOW != 0 { Follow::No } else { Follow::Yes };
    Subject::Path(dirfd, address, follows)
}

/// chmod(2), fchmodat(2).
pub fn fchmodat(dirfd: i32, address: *const c_char, mode: u32) -> isize {
    change(Subject::Path(dirfd, address, Follow::Yes), ATTRIBUTE_MODE, || {
        // SAFETY: the program's own call; the kernel checks the address.
        unsafe { syscall!(libc::SYS_fchmodat, dirfd, address, mode) }
    })
}

/// fchmodat2(2), which takes flags.
pub fn fchmodat2(dirfd: i32, address: *const c_char, mode: u32, flags: i32) -> isize {
    change(path_subject(dirfd, address, flags), ATTRIBUTE_MODE, || {
        // SAFETY: as above.
        unsafe { syscall!(SYS_FCHMODAT2, dirfd, address, mode, flags) }
    })
}

/// fchmodat(3) of glibc, which takes flags on any kernel.
pub fn fchmodat_with_flags(dirfd: i32, address: *const c_char, mode: u32, flags: i32) -> isize {
    use crate::sys::{close, descriptor_path, error};
    if flags == 0 {
        return fchmodat(dirfd, address, mode);
    }
    let result = fchmodat2(dirfd, address, mode, flags);
    if result != error(libc::ENOSYS) {
        return result;
    }
    if flags != libc::AT_SYMLINK_NOFOLLOW {
        return error(libc::EINVAL);
    }
    // Before Linux 6.6, as glibc does it: through the descriptor's name in /proc.
    // SAFETY: the kernel checks the address.
    let opened =
        unsafe { syscall!(libc::SYS_openat, dirfd, address, libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC, 0) };
    if is_error(opened) {
        return opened;
    }
    let fd = opened as i32;
    let result = match stat_descriptor(fd) {
        Ok(stat) if stat.st_mode & libc::S_IFMT == libc::S_IFLNK => error(libc::EOPNOTSUPP),
        Ok(_) => fchmodat(HERE, descriptor_path(fd).as_ptr().cast(), mode),
        Err(error) => error,
    };
    close(fd);
    result
}

/// fchmod(2).
pub fn fchmod(fd: i32, mode: u32) -> isize {
    change(Subject::Descriptor(fd), ATTRIBUTE_MODE, || {
        // SAFETY: no pointers.
        unsafe { syscall!(libc::SYS_fchmod, fd, mode) }
    })
}

/// chown(2), lchown(2), fchownat(2). A change of owner may take the setuid bits away, so the mode is recorded too.
pub fn fchownat(dirfd: i32, address: *const c_char, uid: u32, gid: u32, flags: i32) -> isize {
    change(path_subject(dirfd, address, flags), ATTRIBUTE_OWNER | ATTRIBUTE_MODE, || {
        // SAFETY: the program's own call; the kernel checks the address.
        unsafe { syscall!(libc::SYS_fchownat, dirfd, address, uid, gid, flags) }
    })
}

/// fchown(2).
pub fn fchown(fd: i32, uid: u32, gid: u32) -> isize {
    change(Subject::Descriptor(fd), ATTRIBUTE_OWNER | ATTRIBUTE_MODE, || {
        // SAFETY: no pointers.
        unsafe { syscall!(libc::SYS_fchown, fd, uid, gid) }
    })
}

/// utimensat(2) and all its ancestors; a null path means the descriptor itself.
pub fn utimensat(dirfd: i32, address: *const c_char, times: *const libc::timespec, flags: i32) -> isize {
    let subject = if address.is_null() { Subject::Descriptor(dirfd) } else { path_subject(dirfd, address, flags) };
    let mask = if times.is_null() || !readable::is_readable(times.cast(), 2 * size_of::<libc::timespec>()) {
        ATTRIBUTE_ATIME | ATTRIBUTE_MTIME
    } else {
        // SAFETY: found readable; alignment is not assumed.
        let [access, modification] = unsafe { times.cast::<[libc::timespec; 2]>().read_unaligned() };
        (if access.tv_nsec == libc::UTIME_OMIT { 0 } else { ATTRIBUTE_ATIME })
            | (if modification.tv_nsec == libc::UTIME_OMIT { 0 } else { ATTRIBUTE_MTIME })
    };
    // SAFETY: the program's own call; the kernel checks the addresses.
    let call = || unsafe { syscall!(libc::SYS_utimensat, dirfd, address, times, flags) };
    if mask == 0 { call() } else { change(subject, mask, call) }
}

/// utime(2), utimes(2), futimesat(2): microseconds, or a null pointer for now.
pub fn futimesat(dirfd: i32, address: *const c_char, times: *const libc::timeval, flags: i32) -> isize {
    if times.is_null() {
        return utimensat(dirfd, address, core::ptr::null(), flags);
    }
    if !readable::is_readable(times.cast(), 2 * size_of::<libc::timeval>()) {
        return crate::sys::error(libc::EFAULT);
    }
    // SAFETY: found readable; alignment is not assumed.
    let times = unsafe { times.cast::<[libc::timeval; 2]>().read_unaligned() };
    if times.iter().any(|time| !(0..1_000_000).contains(&time.tv_usec)) {
        return crate::sys::error(libc::EINVAL);
    }
    let times = times.map(|time| libc::timespec { tv_sec: time.tv_sec, tv_nsec: time.tv_usec * 1000 });
    utimensat(dirfd, address, times.as_ptr(), flags)
}

/// utime(2): whole seconds.
pub fn utime(address: *const c_char, times: *const libc::utimbuf) -> isize {
    if times.is_null() {
        return utimensat(HERE, address, core::ptr::null(), 0);
    }
    if !readable::is_readable(times.cast(), size_of::<libc::utimbuf>()) {
        return crate::sys::error(libc::EFAULT);
    }
    // SAFETY: found readable; alignment is not assumed.
    let times = unsafe { times.read_unaligned() };
    let times = [times.actime, times.modtime].map(|seconds| libc::timespec { tv_sec: seconds, tv_nsec: 0 });
    utimensat(HERE, address, times.as_ptr(), 0)
}

/// Which object an extended attribute is set on.
#[derive(Clone, Copy)]
pub enum XattrOf {
    /// The one that the path leads to.
    Path(*const c_char),
    /// The one that has the name, a symbolic link perhaps.
    Link(*const c_char),
    /// The descriptor's.
    Descriptor(i32),
}

impl XattrOf {
    const fn subject(self) -> Subject {
        match self {
            Self::Path(address) => Subject::Path(HERE, address, Follow::Yes),
            Self::Link(address) => Subject::Path(HERE, address, Follow::No),
            Self::Descriptor(fd) => Subject::Descriptor(fd),
        }
    }

    fn first_argument(self) -> usize {
        match self {
            Self::Path(address) | Self::Link(address) => address as usize,
            Self::Descriptor(fd) => fd as usize,
        }
    }
}

/// setxattr(2), lsetxattr(2), fsetxattr(2).
pub fn setxattr(of: XattrOf, name: *const c_char, value: *const u8, bytes: usize, flags: i32) -> isize {
    let number = match of {
        XattrOf::Path(_) => libc::SYS_setxattr,
        XattrOf::Link(_) => libc::SYS_lsetxattr,
        XattrOf::Descriptor(_) => libc::SYS_fsetxattr,
    };
    // SAFETY: the program's own call; the kernel checks the addresses.
    let call = || unsafe { syscall!(number, of.first_argument(), name, value, bytes, flags) };
    // SAFETY: used only during this call.
    let Some(name) = (unsafe { readable::string(name) }) else { return call() };
    if name.is_empty() || bytes > XATTR_BYTES_MAX || (bytes > 0 && !readable::is_readable(value, bytes)) {
        return call();
    }
    // SAFETY: found readable. A value that another thread changes meanwhile is recorded as it was before the call.
    let value = if bytes == 0 { b"" } else { unsafe { core::slice::from_raw_parts(value, bytes) } };
    of.subject().run(call, |operation, file, path, record_flags| {
        let draft =
            Draft { file, path1: path, path2: name, data: value, flags: record_flags, ..Draft::new(Kind::SetXattr) };
        finish(operation, &draft, call)
    })
}

/// removexattr(2), lremovexattr(2), fremovexattr(2).
pub fn removexattr(of: XattrOf, name: *const c_char) -> isize {
    let number = match of {
        XattrOf::Path(_) => libc::SYS_removexattr,
        XattrOf::Link(_) => libc::SYS_lremovexattr,
        XattrOf::Descriptor(_) => libc::SYS_fremovexattr,
    };
    // SAFETY: the program's own call; the kernel checks the addresses.
    let call = || unsafe { syscall!(number, of.first_argument(), name) };
    // SAFETY: used only during this call.
    let Some(name) = (unsafe { readable::string(name) }) else { return call() };
    if name.is_empty() {
        return call();
    }
    of.subject().run(call, |operation, file, path, flags| {
        finish(operation, &Draft { file, path1: path, path2: name, flags, ..Draft::new(Kind::RemoveXattr) }, call)
    })
}

/// ioctl(2) FS_IOC_SETFLAGS: `flags` are those that the program asks for.
pub fn set_inode_flags(fd: i32, flags: u32, call: impl Fn() -> isize) -> isize {
    Subject::Descriptor(fd).run(&call, |operation, file, path, record_flags| {
        let draft = Draft { file, path1: path, a: u64::from(flags), flags: record_flags, ..Draft::new(Kind::Flags) };
        finish(operation, &draft, &call)
    })
}

fn finish(operation: &Operation<'_>, draft: &Draft<'_>, call: impl Fn() -> isize) -> isize {
    let pending = operation.intend(draft, 0);
    let result = call();
    conclude(operation, pending, !is_error(result), |_: &mut Header| {});
    result
}
