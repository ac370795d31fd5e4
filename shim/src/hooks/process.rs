//! Programs that begin: exec in its three forms, fork and vfork.
//!
//! vfork stays what it is. Its child borrows the memory and the slot of its parent, like any other code of the parent's
//! thread, which sleeps meanwhile; what it runs is announced by its exec under the child's own number. To make it a fork
//! would be visible: children report a failed exec through memory that they share with their parent, and a fork
//! copies the page tables of large programs. posix_spawn needs nothing: it ends in libc's execve.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_char, c_int};
use core::sync::atomic::Ordering;

use journal::Ring;
use journal::processes::Reason;
use journal::record::Kind as RecordKind;
use journal::sys::process_id;

use crate::elf::{classify, is_go_program};
use crate::exec::{Environment, Library, with_environment};
use crate::operation::{Draft, Operation};
use crate::readable::string;
use crate::state;
use crate::sys::{HERE, descriptor_path, error, is_error, now_ns, read_link, syscall};
use crate::thread::slot;

use super::mapping;

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
    if let Some(ring) = state::ring() {
        attach(ring);
    }
    mapping::after_fork();
}

/// Says that the library runs in this process, and what program that is.
pub fn attach(ring: &Ring) {
    let mut program = [0; 256];
    let length = read_link(HERE, c"/proc/self/exe".as_ptr(), &mut program).unwrap_or(0);
    let program = program.get(..length).unwrap_or_default();
    if is_go_program() {
        announce(ring, program, Reason::Static);
    } else {
        ring.attach_process(process_id(), program, now_ns());
    }
}

/// exit_group(2), which ends the process.
pub fn exit(status: c_int) -> isize {
    mapping::end();
    // SAFETY: the program's own call.
    unsafe { syscall!(libc::SYS_exit_group, status) }
}

/// vfork(2).
///
/// The child returns through the parent's frames and overwrites the return address on the stack, so it is kept in a
/// register, as glibc keeps it: the parent finds its registers as they were at the system call.
///
/// # Safety
/// As for vfork(2): the child only calls exec or `_exit`, and doesn't return from the function that called.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn vfork() -> c_int {
    core::arch::naked_asm!(
        "sub rsp, 8",
        "call {before}",
        "add rsp, 8",
        "mov esi, eax",
        "pop rdi",
        "mov eax, {number}",
        "syscall",
        "push rdi",
        "test eax, eax",
        "jz 2f",
        "mov rdi, rax",
        "sub rsp, 8",
        "call {after}",
        "add rsp, 8",
        "2:",
        "ret",
        before = sym before_vfork,
        after = sym after_vfork,
        number = const libc::SYS_vfork,
    )
}

/// vfork(2): clone(2) with `CLONE_VM | CLONE_VFORK | SIGCHLD` on this architecture.
///
/// # Safety
/// As for vfork(2): the child only calls exec or `_exit`, and doesn't return from the function that called.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn vfork() -> c_int {
    core::arch::naked_asm!(
        "hint 34",
        "stp x29, x30, [sp, -16]!",
        "bl {before}",
        "ldp x29, x30, [sp], 16",
        "mov w9, w0",
        "mov x0, {flags}",
        "mov x1, 0",
        "mov x2, 0",
        "mov x3, 0",
        "mov x4, 0",
        "mov x8, {number}",
        "svc 0",
        "cbz x0, 2f",
        "mov w1, w9",
        "b {after}",
        "2:",
        "ret",
        before = sym before_vfork,
        after = sym after_vfork,
        flags = const libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
        number = const libc::SYS_clone,
    )
}

/// Takes the thread's slot, so that the child doesn't take it in its own name; true when the thread is inside an
/// operation: then vfork is called by a signal handler.
extern "C" fn before_vfork() -> bool {
    let inside = |ring: &Ring| Some(ring.slot(slot(ring)?)?.inside.load(Ordering::Relaxed) != 0);
    state::ring().and_then(inside).unwrap_or(false)
}

/// In the parent, when the child has let go of its memory: if it was killed inside an operation, that is settled now,
/// since others may be waiting for its locks. Returns what vfork returns.
extern "C" fn after_vfork(result: isize, was_inside: bool) -> c_int {
    if is_error(result) {
        // SAFETY: the address of this thread's `errno`.
        unsafe { *libc::__errno_location() = -result as c_int };
        return -1;
    }
    if !was_inside
        && let Some(ring) = state::ring()
        && let Some(me) = slot(ring)
        && ring.slot(me).is_some_and(|slot| slot.inside.load(Ordering::Relaxed) != 0)
    {
        ring.settle_own(me);
    }
    result as c_int
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
    let mut link = [0; 256];
    // SAFETY: the kernel has just read the path to its end.
    let name = unsafe { program(dirfd, path, &mut link) };
    announce(ring, name, reason);
    let library = match reason {
        // A static program's children may be dynamic ones: they get our settings from it. For a privileged program the
        // loader drops them without a word.
        Reason::None | Reason::Static | Reason::Privileged | Reason::User | Reason::Silent => Library::Wanted,
        Reason::OtherLibc | Reason::OtherArchitecture | Reason::Unreachable => Library::Unwanted,
    };
    let taken_out = mapping::before_exec();
    // SAFETY: the caller's promise.
    let result = unsafe { with_environment(environment, library, call) };
    if is_error(result) {
        mapping::exec_failed(taken_out);
        attach(ring);
    }
    result
}

/// Says in the table of processes what this one is about to run; and if that can't be followed, in a record too, because
/// the table forgets it when the process goes on to yet another program.
#[inline(never)]
fn announce(ring: &Ring, program: &[u8], reason: Reason) {
    let pid = process_id();
    ring.announce_exec(pid, program, reason, now_ns());
    if reason == Reason::None {
        return;
    }
    let Some(operation) = Operation::on_contents(ring) else { return };
    let draft = Draft { path1: program, a: reason as u64, b: u64::from(pid), ..Draft::new(RecordKind::NotFollowed) };
    if let Some(pending) = operation.intend(&draft, 0) {
        operation.commit(pending, |_| {});
    }
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
unsafe fn program(dirfd: c_int, path: *const c_char, link: &mut [u8; 256]) -> &[u8] {
    // SAFETY: the caller's promise.
    let name = unsafe { string(path) }.unwrap_or_default();
    if !name.is_empty() {
        return name;
    }
    let length = read_link(HERE, descriptor_path(dirfd).as_ptr().cast(), link).unwrap_or(0);
    link.get(..length).unwrap_or_default()
}
