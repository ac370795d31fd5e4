//! Every name that we export and every function of libc that we take over, each with its hook body.
//!
//! Two ways lead to a body: programs bind to the exported names, and [`patches`] lists the functions of libc whose
//! entry is overwritten, for libc's calls of itself and for whoever got their address by another way.
#![allow(unsafe_code, missing_docs, non_upper_case_globals, non_snake_case)]

use core::ffi::{c_char, c_int, c_long, c_uint, c_ulong, c_void};

use libc::{
    dev_t, gid_t, iovec, mode_t, off_t, size_t, sockaddr, socklen_t, ssize_t, timespec, timeval, uid_t, utimbuf,
};

use crate::hooks;
use crate::hooks::attributes::XattrOf;
use crate::patch::Patch;
use crate::sys::{HERE, is_error, syscall};

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

/// The kernel's result in libc's style: -1 and `errno`.
#[inline(always)]
fn conclude(result: isize) -> isize {
    if is_error(result) {
        // SAFETY: glibc's per-thread `errno`.
        unsafe { *__errno_location() = -result as c_int };
        return -1;
    }
    result
}

/// Each line: exported name / name of its Rust function (arguments) → result, body.
macro_rules! hooks {
    ($($name:ident / $body_name:ident ($($argument:ident : $type:ty),*) -> $result:ty $body:block)*) => {
        $(redhook::hook! { unsafe fn $name($($argument : $type),*) -> $result => $body_name { conclude($body as isize) as $result } })*
    };
}

const NOFOLLOW: c_int = libc::AT_SYMLINK_NOFOLLOW;
const CREATES: c_int = libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC;

hooks! {
    open / h_open (p: *const c_char, f: c_int, m: mode_t) -> c_int { hooks::open::openat(HERE, p, f, m) }
    open64 / h_open64 (p: *const c_char, f: c_int, m: mode_t) -> c_int { hooks::open::openat(HERE, p, f, m) }
    __open / h___open (p: *const c_char, f: c_int, m: mode_t) -> c_int { hooks::open::openat(HERE, p, f, m) }
    __open64 / h___open64 (p: *const c_char, f: c_int, m: mode_t) -> c_int { hooks::open::openat(HERE, p, f, m) }
    __open_2 / h___open_2 (p: *const c_char, f: c_int) -> c_int { hooks::open::openat(HERE, p, f, 0) }
    __open64_2 / h___open64_2 (p: *const c_char, f: c_int) -> c_int { hooks::open::openat(HERE, p, f, 0) }
    openat / h_openat (d: c_int, p: *const c_char, f: c_int, m: mode_t) -> c_int { hooks::open::openat(d, p, f, m) }
    openat64 / h_openat64 (d: c_int, p: *const c_char, f: c_int, m: mode_t) -> c_int { hooks::open::openat(d, p, f, m) }
    __openat_2 / h___openat_2 (d: c_int, p: *const c_char, f: c_int) -> c_int { hooks::open::openat(d, p, f, 0) }
    __openat64_2 / h___openat64_2 (d: c_int, p: *const c_char, f: c_int) -> c_int { hooks::open::openat(d, p, f, 0) }
    creat / h_creat (p: *const c_char, m: mode_t) -> c_int { hooks::open::openat(HERE, p, CREATES, m) }
    creat64 / h_creat64 (p: *const c_char, m: mode_t) -> c_int { hooks::open::openat(HERE, p, CREATES, m) }
    open_by_handle_at / h_open_by_handle_at (d: c_int, h: *mut c_void, f: c_int) -> c_int {
        // SAFETY: the program's own arguments.
        unsafe { hooks::numbered::call(libc::SYS_open_by_handle_at, [d as usize, h as usize, f as usize, 0, 0, 0]) }
    }

    write / h_write (fd: c_int, b: *const c_void, n: size_t) -> ssize_t { hooks::write::write(fd, b.cast(), n) }
    __write / h___write (fd: c_int, b: *const c_void, n: size_t) -> ssize_t { hooks::write::write(fd, b.cast(), n) }
    pwrite / h_pwrite (fd: c_int, b: *const c_void, n: size_t, o: off_t) -> ssize_t { hooks::write::pwrite(fd, b.cast(), n, o) }
    pwrite64 / h_pwrite64 (fd: c_int, b: *const c_void, n: size_t, o: off_t) -> ssize_t { hooks::write::pwrite(fd, b.cast(), n, o) }
    __pwrite64 / h___pwrite64 (fd: c_int, b: *const c_void, n: size_t, o: off_t) -> ssize_t { hooks::write::pwrite(fd, b.cast(), n, o) }
    writev / h_writev (fd: c_int, v: *const iovec, n: c_int) -> ssize_t { hooks::write::writev(fd, v, n) }
    pwritev / h_pwritev (fd: c_int, v: *const iovec, n: c_int, o: off_t) -> ssize_t { hooks::write::pwritev(fd, v, n, o) }
    pwritev64 / h_pwritev64 (fd: c_int, v: *const iovec, n: c_int, o: off_t) -> ssize_t { hooks::write::pwritev(fd, v, n, o) }
    pwritev2 / h_pwritev2 (fd: c_int, v: *const iovec, n: c_int, o: off_t, f: c_int) -> ssize_t { hooks::write::pwritev2(fd, v, n, o, f) }
    pwritev64v2 / h_pwritev64v2 (fd: c_int, v: *const iovec, n: c_int, o: off_t, f: c_int) -> ssize_t { hooks::write::pwritev2(fd, v, n, o, f) }

    sendfile / h_sendfile (to: c_int, from: c_int, o: *mut off_t, n: size_t) -> ssize_t { hooks::copy::sendfile(to, from, o, n) }
    sendfile64 / h_sendfile64 (to: c_int, from: c_int, o: *mut off_t, n: size_t) -> ssize_t { hooks::copy::sendfile(to, from, o, n) }
    splice / h_splice (a: c_int, ao: *mut i64, b: c_int, bo: *mut i64, n: size_t, f: c_uint) -> ssize_t { hooks::copy::splice(a, ao, b, bo, n, f) }
    copy_file_range / h_copy_file_range (a: c_int, ao: *mut i64, b: c_int, bo: *mut i64, n: size_t, f: c_uint) -> ssize_t {
        hooks::copy::copy_file_range(a, ao, b, bo, n, f)
    }
    ioctl / h_ioctl (fd: c_int, r: c_ulong, a: usize) -> c_int { hooks::descriptor::ioctl(fd, r, a) }

    truncate / h_truncate (p: *const c_char, n: off_t) -> c_int { hooks::resize::truncate(p, n) }
    truncate64 / h_truncate64 (p: *const c_char, n: off_t) -> c_int { hooks::resize::truncate(p, n) }
    ftruncate / h_ftruncate (fd: c_int, n: off_t) -> c_int { hooks::resize::ftruncate(fd, n) }
    ftruncate64 / h_ftruncate64 (fd: c_int, n: off_t) -> c_int { hooks::resize::ftruncate(fd, n) }
    fallocate / h_fallocate (fd: c_int, m: c_int, o: off_t, n: off_t) -> c_int { hooks::resize::fallocate(fd, m, o, n) }
    fallocate64 / h_fallocate64 (fd: c_int, m: c_int, o: off_t, n: off_t) -> c_int { hooks::resize::fallocate(fd, m, o, n) }
    posix_fallocate / h_posix_fallocate (fd: c_int, o: off_t, n: off_t) -> c_int { hooks::resize::posix_fallocate(fd, o, n) }
    posix_fallocate64 / h_posix_fallocate64 (fd: c_int, o: off_t, n: off_t) -> c_int { hooks::resize::posix_fallocate(fd, o, n) }

    rename / h_rename (a: *const c_char, b: *const c_char) -> c_int { hooks::names::renameat2(HERE, a, HERE, b, 0) }
    renameat / h_renameat (d: c_int, a: *const c_char, e: c_int, b: *const c_char) -> c_int { hooks::names::renameat2(d, a, e, b, 0) }
    renameat2 / h_renameat2 (d: c_int, a: *const c_char, e: c_int, b: *const c_char, f: c_uint) -> c_int { hooks::names::renameat2(d, a, e, b, f) }
    link / h_link (a: *const c_char, b: *const c_char) -> c_int { hooks::names::linkat(HERE, a, HERE, b, 0) }
    linkat / h_linkat (d: c_int, a: *const c_char, e: c_int, b: *const c_char, f: c_int) -> c_int { hooks::names::linkat(d, a, e, b, f) }
    symlink / h_symlink (t: *const c_char, p: *const c_char) -> c_int { hooks::names::symlinkat(t, HERE, p) }
    symlinkat / h_symlinkat (t: *const c_char, d: c_int, p: *const c_char) -> c_int { hooks::names::symlinkat(t, d, p) }
    unlink / h_unlink (p: *const c_char) -> c_int { hooks::names::unlinkat(HERE, p, 0) }
    unlinkat / h_unlinkat (d: c_int, p: *const c_char, f: c_int) -> c_int { hooks::names::unlinkat(d, p, f) }
    rmdir / h_rmdir (p: *const c_char) -> c_int { hooks::names::unlinkat(HERE, p, libc::AT_REMOVEDIR) }
    mkdir / h_mkdir (p: *const c_char, m: mode_t) -> c_int { hooks::names::mkdirat(HERE, p, m) }
    mkdirat / h_mkdirat (d: c_int, p: *const c_char, m: mode_t) -> c_int { hooks::names::mkdirat(d, p, m) }
    mknod / h_mknod (p: *const c_char, m: mode_t, v: dev_t) -> c_int { hooks::names::mknodat(HERE, p, m, v) }
    mknodat / h_mknodat (d: c_int, p: *const c_char, m: mode_t, v: dev_t) -> c_int { hooks::names::mknodat(d, p, m, v) }
    __xmknod / h___xmknod (_x: c_int, p: *const c_char, m: mode_t, v: *const dev_t) -> c_int {
        // SAFETY: glibc reads the device number the same way.
        hooks::names::mknodat(HERE, p, m, unsafe { *v })
    }
    __xmknodat / h___xmknodat (_x: c_int, d: c_int, p: *const c_char, m: mode_t, v: *const dev_t) -> c_int {
        // SAFETY: glibc reads the device number the same way.
        hooks::names::mknodat(d, p, m, unsafe { *v })
    }
    mkfifo / h_mkfifo (p: *const c_char, m: mode_t) -> c_int { hooks::names::mknodat(HERE, p, m | libc::S_IFIFO, 0) }
    mkfifoat / h_mkfifoat (d: c_int, p: *const c_char, m: mode_t) -> c_int { hooks::names::mknodat(d, p, m | libc::S_IFIFO, 0) }
    bind / h_bind (fd: c_int, a: *const sockaddr, n: socklen_t) -> c_int { hooks::names::bind(fd, a, n) }

    chmod / h_chmod (p: *const c_char, m: mode_t) -> c_int { hooks::attributes::fchmodat(HERE, p, m) }
    fchmod / h_fchmod (fd: c_int, m: mode_t) -> c_int { hooks::attributes::fchmod(fd, m) }
    fchmodat / h_fchmodat (d: c_int, p: *const c_char, m: mode_t, f: c_int) -> c_int { hooks::attributes::fchmodat_with_flags(d, p, m, f) }
    lchmod / h_lchmod (p: *const c_char, m: mode_t) -> c_int { hooks::attributes::fchmodat_with_flags(HERE, p, m, NOFOLLOW) }
    chown / h_chown (p: *const c_char, u: uid_t, g: gid_t) -> c_int { hooks::attributes::fchownat(HERE, p, u, g, 0) }
    lchown / h_lchown (p: *const c_char, u: uid_t, g: gid_t) -> c_int { hooks::attributes::fchownat(HERE, p, u, g, NOFOLLOW) }
    fchown / h_fchown (fd: c_int, u: uid_t, g: gid_t) -> c_int { hooks::attributes::fchown(fd, u, g) }
    fchownat / h_fchownat (d: c_int, p: *const c_char, u: uid_t, g: gid_t, f: c_int) -> c_int { hooks::attributes::fchownat(d, p, u, g, f) }
    utime / h_utime (p: *const c_char, t: *const utimbuf) -> c_int { hooks::attributes::utime(p, t) }
    utimes / h_utimes (p: *const c_char, t: *const timeval) -> c_int { hooks::attributes::futimesat(HERE, p, t, 0) }
    lutimes / h_lutimes (p: *const c_char, t: *const timeval) -> c_int { hooks::attributes::futimesat(HERE, p, t, NOFOLLOW) }
    futimes / h_futimes (fd: c_int, t: *const timeval) -> c_int { hooks::attributes::futimesat(fd, core::ptr::null(), t, 0) }
    futimesat / h_futimesat (d: c_int, p: *const c_char, t: *const timeval) -> c_int { hooks::attributes::futimesat(d, p, t, 0) }
    utimensat / h_utimensat (d: c_int, p: *const c_char, t: *const timespec, f: c_int) -> c_int { hooks::attributes::utimensat(d, p, t, f) }
    futimens / h_futimens (fd: c_int, t: *const timespec) -> c_int { hooks::attributes::utimensat(fd, core::ptr::null(), t, 0) }
    setxattr / h_setxattr (p: *const c_char, k: *const c_char, v: *const c_void, n: size_t, f: c_int) -> c_int {
        hooks::attributes::setxattr(XattrOf::Path(p), k, v.cast(), n, f)
    }
    lsetxattr / h_lsetxattr (p: *const c_char, k: *const c_char, v: *const c_void, n: size_t, f: c_int) -> c_int {
        hooks::attributes::setxattr(XattrOf::Link(p), k, v.cast(), n, f)
    }
    fsetxattr / h_fsetxattr (fd: c_int, k: *const c_char, v: *const c_void, n: size_t, f: c_int) -> c_int {
        hooks::attributes::setxattr(XattrOf::Descriptor(fd), k, v.cast(), n, f)
    }
    removexattr / h_removexattr (p: *const c_char, k: *const c_char) -> c_int { hooks::attributes::removexattr(XattrOf::Path(p), k) }
    lremovexattr / h_lremovexattr (p: *const c_char, k: *const c_char) -> c_int { hooks::attributes::removexattr(XattrOf::Link(p), k) }
    fremovexattr / h_fremovexattr (fd: c_int, k: *const c_char) -> c_int { hooks::attributes::removexattr(XattrOf::Descriptor(fd), k) }

    fsync / h_fsync (fd: c_int) -> c_int { hooks::descriptor::fsync(fd, libc::SYS_fsync) }
    fdatasync / h_fdatasync (fd: c_int) -> c_int { hooks::descriptor::fsync(fd, libc::SYS_fdatasync) }
    syncfs / h_syncfs (fd: c_int) -> c_int {
        hooks::descriptor::sync_all(|| {
            // SAFETY: the program's own call.
            unsafe { syscall!(libc::SYS_syncfs, fd) }
        })
    }

    close / h_close (fd: c_int) -> c_int { hooks::descriptor::close(fd) }
    __close / h___close (fd: c_int) -> c_int { hooks::descriptor::close(fd) }
    close_range / h_close_range (a: c_uint, b: c_uint, f: c_int) -> c_int { hooks::descriptor::close_range(a, b, f as c_uint) }
    dup / h_dup (fd: c_int) -> c_int { hooks::descriptor::dup(fd) }
    dup2 / h_dup2 (a: c_int, b: c_int) -> c_int { hooks::descriptor::dup2(a, b) }
    dup3 / h_dup3 (a: c_int, b: c_int, f: c_int) -> c_int { hooks::descriptor::dup3(a, b, f) }
    fcntl / h_fcntl (fd: c_int, c: c_int, a: usize) -> c_int { hooks::descriptor::fcntl(fd, c, a) }
    fcntl64 / h_fcntl64 (fd: c_int, c: c_int, a: usize) -> c_int { hooks::descriptor::fcntl(fd, c, a) }
    chdir / h_chdir (p: *const c_char) -> c_int {
        hooks::descriptor::change_directory(|| {
            // SAFETY: the program's own call.
            unsafe { syscall!(libc::SYS_chdir, p) }
        })
    }
    fchdir / h_fchdir (fd: c_int) -> c_int {
        hooks::descriptor::change_directory(|| {
            // SAFETY: the program's own call.
            unsafe { syscall!(libc::SYS_fchdir, fd) }
        })
    }
    chroot / h_chroot (p: *const c_char) -> c_int { hooks::descriptor::chroot(p) }
    unshare / h_unshare (f: c_int) -> c_int { hooks::descriptor::unshare(f) }

    mmap / h_mmap (a: *mut c_void, n: size_t, p: c_int, f: c_int, fd: c_int, o: off_t) -> *mut c_void { hooks::memory::mmap(a as usize, n, p, f, fd, o) }
    mmap64 / h_mmap64 (a: *mut c_void, n: size_t, p: c_int, f: c_int, fd: c_int, o: off_t) -> *mut c_void { hooks::memory::mmap(a as usize, n, p, f, fd, o) }
    munmap / h_munmap (a: *mut c_void, n: size_t) -> c_int { hooks::memory::munmap(a as usize, n) }
    mprotect / h_mprotect (a: *mut c_void, n: size_t, p: c_int) -> c_int { hooks::memory::mprotect(a as usize, n, p) }
    mremap / h_mremap (a: *mut c_void, n: size_t, m: size_t, f: c_int, b: *mut c_void) -> *mut c_void {
        hooks::memory::mremap(a as usize, n, m, f, b as usize)
    }
    pkey_mprotect / h_pkey_mprotect (a: *mut c_void, n: size_t, p: c_int, k: c_int) -> c_int { hooks::memory::pkey_mprotect(a as usize, n, p, k) }
    msync / h_msync (a: *mut c_void, n: size_t, f: c_int) -> c_int { hooks::mapping::msync(a as usize, n, f) }
    madvise / h_madvise (a: *mut c_void, n: size_t, v: c_int) -> c_int { hooks::memory::madvise(a as usize, n, v) }
    remap_file_pages / h_remap_file_pages (a: *mut c_void, n: size_t, p: c_int, g: size_t, f: c_int) -> c_int {
        hooks::mapping::remap_file_pages(a as usize, n, p, g, f)
    }

    execve / h_execve (p: *const c_char, a: *const *const c_char, e: *const *const c_char) -> c_int {
        // SAFETY: the program's own arguments.
        unsafe { hooks::process::execve(p, a, e) }
    }
    execveat / h_execveat (d: c_int, p: *const c_char, a: *const *const c_char, e: *const *const c_char, f: c_int) -> c_int {
        // SAFETY: the program's own arguments.
        unsafe { hooks::process::execveat(d, p, a, e, f) }
    }
    fexecve / h_fexecve (fd: c_int, a: *const *const c_char, e: *const *const c_char) -> c_int {
        // SAFETY: the program's own arguments.
        unsafe { hooks::process::fexecve(fd, a, e) }
    }

    io_uring_setup / h_io_uring_setup (_n: c_uint, _p: *mut c_void) -> c_int { hooks::descriptor::no_io_uring() }
}

/// _exit(2), where exit(3) ends too. It never returns, which the macro can't say.
#[allow(non_camel_case_types)]
pub struct _exit;

impl _exit {
    #[unsafe(no_mangle)]
    unsafe extern "C" fn _exit(status: c_int) -> ! {
        loop {
            hooks::process::exit(status);
        }
    }
}

// liburing makes its system calls itself and returns kernel-style errors.
redhook::hook! { unsafe fn io_uring_queue_init(_n: c_uint, _r: *mut c_void, _f: c_uint) -> c_int => h_io_uring_queue_init {
    hooks::descriptor::no_io_uring() as c_int
} }
redhook::hook! { unsafe fn io_uring_queue_init_params(_n: c_uint, _r: *mut c_void, _p: *mut c_void) -> c_int => h_io_uring_queue_init_params {
    hooks::descriptor::no_io_uring() as c_int
} }
redhook::hook! { unsafe fn io_uring_queue_init_mem(_n: c_uint, _r: *mut c_void, _p: *mut c_void, _b: *mut c_void, _s: size_t) -> c_int => h_io_uring_queue_init_mem {
    hooks::descriptor::no_io_uring() as c_int
} }
// libaio returns kernel-style errors; some builds of it make their system calls themselves.
redhook::hook! { unsafe fn io_submit(context: u64, n: c_long, blocks: *const *const u8) -> c_int => h_io_submit {
    hooks::aio::io_submit(context, n as isize, blocks) as c_int
} }
redhook::hook! { unsafe fn io_getevents(context: u64, least: c_long, n: c_long, events: *mut u8, timeout: *mut timespec) -> c_int => h_io_getevents {
    hooks::aio::events(context, events.cast(), || {
        // SAFETY: the program's own call.
        unsafe { syscall!(libc::SYS_io_getevents, context, least, n, events, timeout) }
    }) as c_int
} }
redhook::hook! { unsafe fn io_pgetevents(context: u64, least: c_long, n: c_long, events: *mut u8, timeout: *mut timespec, mask: *mut c_void) -> c_int => h_io_pgetevents {
    // The kernel takes the mask with its size.
    let sized = [mask as usize, 8];
    hooks::aio::events(context, events.cast(), || {
        // SAFETY: the program's own call; the pair lives in this frame.
        unsafe { syscall!(hooks::aio::SYS_IO_PGETEVENTS, context, least, n, events, timeout, sized.as_ptr()) }
    }) as c_int
} }
redhook::hook! { unsafe fn io_destroy(context: u64) -> c_int => h_io_destroy { hooks::aio::io_destroy(context) as c_int } }
redhook::hook! { unsafe fn sync() => h_sync {
    // SAFETY: no arguments.
    hooks::descriptor::sync_all(|| unsafe { syscall!(libc::SYS_sync) });
} }
redhook::hook! { unsafe fn closefrom(first: c_int) => h_closefrom { hooks::descriptor::closefrom(first) } }
redhook::hook! { unsafe fn longjmp(e: *const c_void, v: c_int) => h_longjmp {
    // SAFETY: the program's own arguments.
    unsafe { hooks::jump::LONGJMP.go(e, v) }
} }
redhook::hook! { unsafe fn _longjmp(e: *const c_void, v: c_int) => h__longjmp {
    // SAFETY: the program's own arguments.
    unsafe { hooks::jump::UNDERSCORE_LONGJMP.go(e, v) }
} }
redhook::hook! { unsafe fn siglongjmp(e: *const c_void, v: c_int) => h_siglongjmp {
    // SAFETY: the program's own arguments.
    unsafe { hooks::jump::SIGLONGJMP.go(e, v) }
} }
redhook::hook! { unsafe fn __longjmp_chk(e: *const c_void, v: c_int) => h___longjmp_chk {
    // SAFETY: the program's own arguments.
    unsafe { hooks::jump::LONGJMP_CHECKED.go(e, v) }
} }
redhook::hook! { unsafe fn dlmopen(namespace: c_long, name: *const c_char, mode: c_int) -> *mut c_void => h_dlmopen {
    // SAFETY: the program's own arguments; the table holds our hooks.
    unsafe { hooks::loader::dlmopen(namespace, name, mode, &patches()) }
} }

/// The functions of libc whose entry is overwritten. Aliases share an address and need no line of their own, but for
/// names that some version of glibc has as a function of its own.
macro_rules! patches {
    ($($name:literal => $hook:ident),* $(,)?) => {
        /// The table for [`crate::patch::install`].
        pub fn patches() -> [Patch; [$($name),*].len()] {
            [$(Patch { name: $name, target: $hook::$hook as *const () }),*]
        }
    };
}

patches! {
    c"open64" => open64, c"open" => open, c"__open64_nocancel" => open64, c"__open_nocancel" => open,
    c"__open_2" => __open_2, c"__open64_2" => __open64_2, c"openat64" => openat64, c"openat" => openat,
    c"__openat_2" => __openat_2, c"__openat64_2" => __openat64_2, c"creat64" => creat64, c"creat" => creat,
    c"open_by_handle_at" => open_by_handle_at,
    c"write" => write, c"__write_nocancel" => write, c"pwrite64" => pwrite64, c"pwrite" => pwrite,
    c"__pwrite64_nocancel" => pwrite64, c"writev" => writev, c"pwritev64" => pwritev64, c"pwritev" => pwritev,
    c"pwritev64v2" => pwritev64v2, c"pwritev2" => pwritev2,
    c"sendfile64" => sendfile64, c"sendfile" => sendfile, c"splice" => splice, c"copy_file_range" => copy_file_range,
    c"ioctl" => ioctl,
    c"truncate64" => truncate64, c"truncate" => truncate, c"ftruncate64" => ftruncate64, c"ftruncate" => ftruncate,
    c"fallocate64" => fallocate64, c"fallocate" => fallocate, c"posix_fallocate64" => posix_fallocate64,
    c"posix_fallocate" => posix_fallocate,
    c"rename" => rename, c"renameat" => renameat, c"renameat2" => renameat2, c"link" => link, c"linkat" => linkat,
    c"symlink" => symlink, c"symlinkat" => symlinkat, c"unlink" => unlink, c"unlinkat" => unlinkat, c"rmdir" => rmdir,
    c"mkdir" => mkdir, c"mkdirat" => mkdirat, c"mknod" => mknod, c"mknodat" => mknodat, c"__xmknod" => __xmknod,
    c"__xmknodat" => __xmknodat, c"mkfifo" => mkfifo, c"mkfifoat" => mkfifoat, c"bind" => bind,
    c"chmod" => chmod, c"fchmod" => fchmod, c"fchmodat" => fchmodat, c"lchmod" => lchmod, c"chown" => chown,
    c"lchown" => lchown, c"fchown" => fchown, c"fchownat" => fchownat, c"utime" => utime, c"utimes" => utimes,
    c"lutimes" => lutimes, c"futimes" => futimes, c"futimesat" => futimesat, c"utimensat" => utimensat,
    c"futimens" => futimens, c"setxattr" => setxattr, c"lsetxattr" => lsetxattr, c"fsetxattr" => fsetxattr,
    c"removexattr" => removexattr, c"lremovexattr" => lremovexattr, c"fremovexattr" => fremovexattr,
    c"fsync" => fsync, c"fdatasync" => fdatasync, c"syncfs" => syncfs, c"sync" => sync,
    c"close" => close, c"__close_nocancel" => close, c"close_range" => close_range, c"closefrom" => closefrom,
    c"dup" => dup, c"dup2" => dup2, c"dup3" => dup3, c"fcntl64" => fcntl64, c"fcntl" => fcntl,
    c"__fcntl64_nocancel" => fcntl64, c"chdir" => chdir, c"fchdir" => fchdir, c"chroot" => chroot, c"unshare" => unshare,
    c"mmap64" => mmap64, c"mmap" => mmap, c"munmap" => munmap, c"mprotect" => mprotect, c"mremap" => mremap,
    c"pkey_mprotect" => pkey_mprotect, c"msync" => msync, c"madvise" => madvise, c"remap_file_pages" => remap_file_pages,
    c"_exit" => _exit,
    c"execve" => execve, c"execveat" => execveat, c"fexecve" => fexecve,
}

/// The body of [`syscall()`], for all calls that return once and in this process.
unsafe extern "C" fn syscall_by_number(
    n: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    // SAFETY: the program's own arguments.
    conclude(unsafe { hooks::numbered::call(n, [a, b, c, d, e, f]) }) as c_long
}

/// syscall(2), which takes its arguments as they come. Calls that return twice or elsewhere are made right here, with
/// the caller's stack: clone, clone3, vfork, rt_sigreturn.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn syscall() {
    core::arch::naked_asm!(
        "cmp rdi, 15",
        "je 2f",
        "cmp rdi, 56",
        "je 2f",
        "cmp rdi, 58",
        "je 2f",
        "cmp rdi, 435",
        "je 2f",
        "jmp {body}",
        "2:",
        "mov rax, rdi",
        "mov rdi, rsi",
        "mov rsi, rdx",
        "mov rdx, rcx",
        "mov r10, r8",
        "mov r8, r9",
        "mov r9, [rsp + 8]",
        "syscall",
        "cmp rax, -4095",
        "jae 3f",
        "ret",
        "3:",
        "mov rdi, rax",
        "jmp {error}",
        body = sym syscall_by_number,
        error = sym fail,
    )
}

/// syscall(2); see the x86-64 form.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn syscall() {
    core::arch::naked_asm!(
        "cmp x0, 139",
        "b.eq 2f",
        "cmp x0, 220",
        "b.eq 2f",
        "cmp x0, 435",
        "b.eq 2f",
        "b {body}",
        "2:",
        "mov x8, x0",
        "mov x0, x1",
        "mov x1, x2",
        "mov x2, x3",
        "mov x3, x4",
        "mov x4, x5",
        "mov x5, x6",
        "svc 0",
        "cmn x0, 4095",
        "b.cs {error}",
        "ret",
        body = sym syscall_by_number,
        error = sym fail,
    )
}

unsafe extern "C" fn fail(result: isize) -> c_long {
    conclude(result) as c_long
}
