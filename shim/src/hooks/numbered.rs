//! syscall(2): dispatched by number to the same bodies as the named functions.
#![allow(unsafe_code)]

use crate::sys::syscall;

use super::attributes::{self, XattrOf};
use super::{aio, copy, descriptor, mapping, memory, names, open, process, resize, write};
use crate::sys::HERE;

/// The arguments of a call by number.
pub type Arguments = [usize; 6];

const SYS_FCHMODAT2: i64 = 452;
const SYS_SETXATTRAT: i64 = 463;
const SYS_REMOVEXATTRAT: i64 = 466;
const SYS_FILE_SETATTR: i64 = 469;

/// Runs the call with this number.
///
/// # Safety
/// The arguments are the program's, for that call.
pub unsafe fn call(number: i64, arguments: Arguments) -> isize {
    let [a, b, c, d, e, f] = arguments;
    let here = HERE;
    match number {
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open => open::openat(here, a as _, b as _, c as _),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_creat => open::openat(here, a as _, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, b as _),
        libc::SYS_openat => open::openat(a as _, b as _, c as _, d as _),
        libc::SYS_openat2 => open::openat2(a as _, b as _, c as _, d),
        libc::SYS_open_by_handle_at => {
            // SAFETY: the program's own call.
            let result = unsafe { syscall!(number, a, b, c) };
            open::opened_by_handle(result, c as i32)
        }
        libc::SYS_write => write::write(a as _, b as _, c),
        libc::SYS_pwrite64 => write::pwrite(a as _, b as _, c, d as _),
        libc::SYS_writev => write::writev(a as _, b as _, c as _),
        libc::SYS_pwritev => write::pwritev(a as _, b as _, c as _, d as _),
        libc::SYS_pwritev2 => write::pwritev2(a as _, b as _, c as _, d as _, f as _),
        libc::SYS_sendfile => copy::sendfile(a as _, b as _, c as _, d),
        libc::SYS_splice => copy::splice(a as _, b as _, c as _, d as _, e, f as _),
        libc::SYS_copy_file_range => copy::copy_file_range(a as _, b as _, c as _, d as _, e, f as _),
        libc::SYS_truncate => resize::truncate(a as _, b as _),
        libc::SYS_ftruncate => resize::ftruncate(a as _, b as _),
        libc::SYS_fallocate => resize::fallocate(a as _, b as _, c as _, d as _),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_rename => names::renameat2(here, a as _, here, b as _, 0),
        libc::SYS_renameat => names::renameat2(a as _, b as _, c as _, d as _, 0),
        libc::SYS_renameat2 => names::renameat2(a as _, b as _, c as _, d as _, e as _),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_link => names::linkat(here, a as _, here, b as _, 0),
        libc::SYS_linkat => names::linkat(a as _, b as _, c as _, d as _, e as _),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_symlink => names::symlinkat(a as _, here, b as _),
        libc::SYS_symlinkat => names::symlinkat(a as _, b as _, c as _),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_unlink => names::unlinkat(here, a as _, 0),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_rmdir => names::unlinkat(here, a as _, libc::AT_REMOVEDIR),
        libc::SYS_unlinkat => names::unlinkat(a as _, b as _, c as _),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_mkdir => names::mkdirat(here, a as _, b as _),
        libc::SYS_mkdirat => names::mkdirat(a as _, b as _, c as _),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_mknod => names::mknodat(here, a as _, b as _, c as _),
        libc::SYS_mknodat => names::mknodat(a as _, b as _, c as _, d as _),
        libc::SYS_bind => names::bind(a as _, b as _, c as _),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_chmod => attributes::fchmodat(here, a as _, b as _),
        libc::SYS_fchmod => attributes::fchmod(a as _, b as _),
        libc::SYS_fchmodat => attributes::fchmodat(a as _, b as _, c as _),
        SYS_FCHMODAT2 => attributes::fchmodat2(a as _, b as _, c as _, d as _),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_chown => attributes::fchownat(here, a as _, b as _, c as _, 0),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_lchown => attributes::fchownat(here, a as _, b as _, c as _, libc::AT_SYMLINK_NOFOLLOW),
        libc::SYS_fchown => attributes::fchown(a as _, b as _, c as _),
        libc::SYS_fchownat => attributes::fchownat(a as _, b as _, c as _, d as _, e as _),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_utime => attributes::utime(a as _, b as _),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_utimes => attributes::futimesat(here, a as _, b as _, 0),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_futimesat => attributes::futimesat(a as _, b as _, c as _, 0),
        libc::SYS_utimensat => attributes::utimensat(a as _, b as _, c as _, d as _),
        libc::SYS_setxattr => attributes::setxattr(XattrOf::Path(a as _), b as _, c as _, d, e as _),
        libc::SYS_lsetxattr => attributes::setxattr(XattrOf::Link(a as _), b as _, c as _, d, e as _),
        libc::SYS_fsetxattr => attributes::setxattr(XattrOf::Descriptor(a as _), b as _, c as _, d, e as _),
        libc::SYS_removexattr => attributes::removexattr(XattrOf::Path(a as _), b as _),
        libc::SYS_lremovexattr => attributes::removexattr(XattrOf::Link(a as _), b as _),
        libc::SYS_fremovexattr => attributes::removexattr(XattrOf::Descriptor(a as _), b as _),
        libc::SYS_ioctl => descriptor::ioctl(a as _, b as _, c),
        libc::SYS_fcntl => descriptor::fcntl(a as _, b as _, c),
        libc::SYS_close => descriptor::close(a as _),
        libc::SYS_close_range => descriptor::close_range(a as _, b as _, c as _),
        libc::SYS_dup => descriptor::dup(a as _),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_dup2 => descriptor::dup2(a as _, b as _),
        libc::SYS_dup3 => descriptor::dup3(a as _, b as _, c as _),
        libc::SYS_fsync | libc::SYS_fdatasync => descriptor::fsync(a as _, number),
        // SAFETY: the program's own calls.
        libc::SYS_sync | libc::SYS_syncfs => descriptor::sync_all(|| unsafe { syscall!(number, a) }),
        // SAFETY: as above.
        libc::SYS_chdir | libc::SYS_fchdir => descriptor::change_directory(|| unsafe { syscall!(number, a) }),
        libc::SYS_chroot => descriptor::chroot(a as _),
        libc::SYS_unshare => descriptor::unshare(a as _),
        libc::SYS_io_submit => aio::io_submit(a as _, b as _, c as _),
        // SAFETY: as above.
        libc::SYS_io_getevents => aio::events(a as _, d as _, || unsafe { syscall!(number, a, b, c, d, e) }),
        // SAFETY: as above.
        aio::SYS_IO_PGETEVENTS => aio::events(a as _, d as _, || unsafe { syscall!(number, a, b, c, d, e, f) }),
        libc::SYS_io_destroy => aio::io_destroy(a as _),
        // Newer forms of calls on attributes, and calls that change what a path leads to or what a file holds by ways
        // of their own: the mirrors are compared.
        SYS_SETXATTRAT
        | SYS_REMOVEXATTRAT
        | SYS_FILE_SETATTR
        | libc::SYS_setns
        | libc::SYS_pivot_root
        | libc::SYS_mount
        | libc::SYS_umount2
        | libc::SYS_move_mount
        | libc::SYS_process_vm_writev => {
            // SAFETY: the program's own call.
            descriptor::compared_after(|| unsafe { syscall!(number, a, b, c, d, e, f) })
        }
        libc::SYS_io_uring_setup => descriptor::no_io_uring(),
        libc::SYS_mmap => memory::mmap(a, b, c as _, d as _, e as _, f as _),
        libc::SYS_munmap => memory::munmap(a, b),
        libc::SYS_mprotect => memory::mprotect(a, b, c as _),
        libc::SYS_mremap => memory::mremap(a, b, c, d as _, e),
        libc::SYS_pkey_mprotect => memory::pkey_mprotect(a, b, c as _, d as _),
        libc::SYS_msync => mapping::msync(a, b, c as _),
        libc::SYS_madvise => memory::madvise(a, b, c as _),
        libc::SYS_remap_file_pages => mapping::remap_file_pages(a, b, c as _, d, e as _),
        libc::SYS_exit_group => process::exit(a as _),
        // SAFETY: the program's own arguments.
        libc::SYS_execve => unsafe { process::execve(a as _, b as _, c as _) },
        // SAFETY: as above.
        libc::SYS_execveat => unsafe { process::execveat(a as _, b as _, c as _, d as _, e as _) },
        // SAFETY: as above.
        _ => unsafe { syscall!(number, a, b, c, d, e, f) },
    }
}
