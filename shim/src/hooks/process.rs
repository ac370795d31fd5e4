//! Programs that begin: exec in its three forms, and fork.
//!
//! vfork needs no hook: its child borrows our memory and its parent's slot, like any code of the parent thread, which
//! sleeps meanwhile; and what it runs is announced by its exec under the child's own number. Nor does posix_spawn,
//! which ends in libc's execve. Replacing vfork by fork would be visible: children report a failed exec through
//! memory that they share with their parent, and a fork copies the page tables of large programs.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_char, c_int};
use core::sync::atomic::Ordering;

use journal::processes::Reason;
use journal::sys::process_id;

use crate::elf::classify;
use crate::exec::{Environment, Library, with_environment};
use crate::readable::string;
use crate::state;
use crate::sys::{HERE, descriptor_path, error, is_error, now_ns, read_link, syscall};

/// Registers what a forked child has to do. Called by the constructor.
pub fn prepare() {
    unsafe extern "C" {
        // pthread_atfork(3) is a call of this one, the same in all versions of glibc; the handle tells which library's
        // handlers go when it is unloaded. Ours never is.
        fn __register_atfork(
            prepare: Option<unsafe extern "C" fn()>,
            parent: Option<unsafe extern "C" fn()>,
            child: Option<unsafe extern "C" fn()>,
            library: *mut libc::c_void,
        ) -> c_int;
    }
    // SAFETY: the handler stays for as long as the process lives. Without memory for it, children are found by their
    // first record.
    unsafe { __register_atfork(None, None, Some(after_fork_in_child), core::ptr::null_mut()) };
}

/// Enters the child into the table of processes.
unsafe extern "C" fn after_fork_in_child() {
    state::PID.store(process_id(), Ordering::Relaxed);
    attach_again();
}

/// Says that the library runs in this process, and what program that is.
fn attach_again() {
    let Some(ring) = state::ring() else { return };
    let mut program = [0; 256];
    let length = read_link(HERE, c"/proc/self/exe".as_ptr(), &mut program).unwrap_or(0);
    ring.attach_process(process_id(), program.get(..length).unwrap_or_default(), now_ns());
}

/// execve(2).
///
/// # Safety
/// The arguments are the program's.
pub unsafe fn execve(path: *const c_char, arguments: *const *const c_char, environment: Environment) -> isize {
    let mut call = |environment: Environment| {
        // SAFETY: the kernel checks all addresses; the environment is the program's or ours.
        unsafe { syscall!(libc::SYS_execve, path, arguments, environment) }
    };
    // SAFETY: the caller's promise.
    unsafe { guarded(HERE, path, 0, environment, &mut call) }
}

/// execveat(2).
///
/// # Safety
/// The arguments are the program's.
pub unsafe fn execveat(
    dirfd: c_int,
    path: *const c_char,
    arguments: *const *const c_char,
    environment: Environment,
    flags: c_int,
) -> isize {
    let mut call = |environment: Environment| {
        // SAFETY: as in `execve`.
        unsafe { syscall!(libc::SYS_execveat, dirfd, path, arguments, environment, flags) }
    };
    // SAFETY: the caller's promise.
    unsafe { guarded(dirfd, path, flags, environment, &mut call) }
}

/// fexecve(3).
///
/// # Safety
/// The arguments are the program's.
pub unsafe fn fexecve(fd: c_int, arguments: *const *const c_char, environment: Environment) -> isize {
    if fd < 0 || arguments.is_null() || environment.is_null() {
        return error(libc::EINVAL);
    }
    // SAFETY: the caller's promise.
    let result = unsafe { execveat(fd, c"".as_ptr(), arguments, environment, libc::AT_EMPTY_PATH) };
    if result != error(libc::ENOSYS) {
        return result;
    }
    // Before Linux 3.19, or under a filter that doesn't know the call.
    // SAFETY: the caller's promise.
    unsafe { execve(descriptor_path(fd).as_ptr().cast(), arguments, environment) }
}

/// Announces the program in the ring and repairs its environment. When the call comes back, it has failed, and this
/// program goes on.
///
/// # Safety
/// As for [`execveat`].
unsafe fn guarded(
    dirfd: c_int,
    path: *const c_char,
    flags: c_int,
    environment: Environment,
    call: &mut dyn FnMut(Environment) -> isize,
) -> isize {
    /// Asks whether the file could be run, and runs nothing (Linux 6.14).
    const AT_EXECVE_CHECK: c_int = 0x10000;
    let Some(ring) = state::ring().filter(|_| flags & AT_EXECVE_CHECK == 0) else { return call(environment) };
    let Some(reason) = outlook(dirfd, path, flags, state::LIBRARY.get()) else { return call(environment) };
    let pid = process_id();
    let mut link = [0; 256];
    // SAFETY: the kernel has just read the path to its end.
    ring.announce_exec(pid, unsafe { program(dirfd, path, &mut link) }, reason, now_ns());
    let library = match reason {
        // A static program's children may be dynamic ones: they get our settings from it. For a privileged program the
        // loader drops them without a word.
        Reason::None | Reason::Static | Reason::Privileged | Reason::User | Reason::Silent => Library::Wanted,
        Reason::OtherLibc | Reason::OtherArchitecture | Reason::Unreachable => Library::Unwanted,
    };
    // SAFETY: the caller's promise.
    let result = unsafe { with_environment(environment, library, call) };
    if is_error(result) {
        attach_again();
    }
    result
}

/// Keeps the buffers of the look at the file out of the frame in which the environment is built.
#[inline(never)]
fn outlook(dirfd: c_int, path: *const c_char, flags: c_int, library: &CStr) -> Option<Reason> {
    classify(dirfd, path, flags, library)
}

/// The name of the program that is run: its path, or what the descriptor leads to.
///
/// # Safety
/// As for [`string`].
unsafe fn program<'a>(dirfd: c_int, path: *const c_char, link: &'a mut [u8; 256]) -> &'a [u8] {
    // SAFETY: the caller's promise.
    let name = unsafe { string(path) }.unwrap_or_default();
    if !name.is_empty() {
        return name;
    }
    let length = read_link(HERE, descriptor_path(dirfd).as_ptr().cast(), link).unwrap_or(0);
    link.get(..length).unwrap_or_default()
}
