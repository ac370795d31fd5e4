//! Starts processes exactly: the program as if nothing stood between it and its caller, the replayer as if nobody had
//! started it.
//!
//! # Safety
//! The unsafe steps are signal calls on sets and actions that live in the frame of their caller, reading `environ`
//! while this process has one thread and never changes its environment, and what happens between fork and exec: there
//! only async-signal-safe calls are made (signal-safety(7)), on memory that was prepared before the fork.
#![allow(unsafe_code)]

use journal::Ring;
use journal::processes::Reason;
use rustix::process::{Pid, Resource};
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::ptr::null;
use std::sync::atomic::{AtomicU8, Ordering};

/// Signals, as a file descriptor; they are blocked in this process while it lives.
pub struct Signals {
    descriptor: OwnedFd,
    mask_before: libc::sigset_t,
    child_ignored_before: bool,
}

/// A signal that has arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arrived {
    /// Its number.
    pub signal: i32,
    /// Who sent it; `None` when the kernel did, as it does for keys and hang-ups of a terminal.
    pub sender: Option<Pid>,
}

/// The program that `run` has started.
#[derive(Debug)]
pub struct Program {
    /// Its process number, its own until it has been waited for.
    pub pid: Pid,
}

/// How the first program is entered into the ring's table of processes, by itself and before it is executed.
#[derive(Clone, Copy)]
pub struct Announcement<'a> {
    /// The ring.
    pub ring: &'a Ring,
    /// Its path.
    pub path: &'a Path,
    /// Why it can't be followed, or that it can.
    pub reason: Reason,
}

/// What this process was given before Rust's runtime made it uniform.
static GIVEN: AtomicU8 = AtomicU8::new(0);
const PIPE_IGNORED: u8 = 8;

/// The loader calls this before `main`, hence before the runtime ignores SIGPIPE and opens missing standard streams.
#[used]
#[unsafe(link_section = ".init_array")]
static REMEMBER: extern "C" fn() = {
    extern "C" fn remember() {
        let mut given = 0;
        for descriptor in 0..3 {
            // SAFETY: fcntl(2) with F_GETFD only looks.
            if unsafe { libc::fcntl(descriptor, libc::F_GETFD) } < 0 {
                given |= 1 << descriptor;
            }
        }
        if is_ignored(libc::SIGPIPE) {
            given |= PIPE_IGNORED;
        }
        GIVEN.store(given, Ordering::Relaxed);
    }
    remember
};

fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: sigaction(2) without a new action writes the present one into `action`, which zeroes initialise anyway.
    let action = unsafe {
        libc::sigaction(signal, null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}

fn set_action(signal: i32, action: libc::sighandler_t) {
    // SAFETY: signal(2) with SIG_DFL or SIG_IGN, the only values that this file gives, runs no code of ours.
    unsafe { libc::signal(signal, action) };
}

/// Signals that are passed on to the program, and those that tell about it.
const WATCHED: [i32; 14] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGABRT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGTSTP,
    libc::SIGWINCH,
    libc::SIGIO,
    libc::SIGPWR,
];

fn set_of(signals: impl Iterator<Item = i32>) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset(3) initialises the set.
    let mut set = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    };
    for signal in signals {
        // SAFETY: the set is initialised; numbers that are no signals are refused by the call.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}

/// Changes this thread's mask and returns what it was.
fn change_mask(how: i32, set: &libc::sigset_t) -> libc::sigset_t {
    let mut before = MaybeUninit::uninit();
    // SAFETY: both sets live through the call, which can't fail for these three values of `how` and initialises
    // `before`.
    unsafe {
        libc::pthread_sigmask(how, set, before.as_mut_ptr());
        before.assume_init()
    }
}

impl Signals {
    /// Begins to collect signals. Those that the caller of lockstep ignores stay ignored, here and in the program.
    ///
    /// # Errors
    /// What signalfd(2) answers.
    pub fn collect() -> io::Result<Self> {
        // With SIGCHLD ignored, the kernel would not keep the program's status for us.
        let child_ignored_before = is_ignored(libc::SIGCHLD);
        if child_ignored_before {
            set_action(libc::SIGCHLD, libc::SIG_DFL);
        }
        let watched = || {
            let real_time = libc::SIGRTMIN()..=libc::SIGRTMAX();
            WATCHED.into_iter().chain(real_time).filter(|signal| *signal == libc::SIGCHLD || !is_ignored(*signal))
        };
        let set = set_of(watched());
        let mask_before = change_mask(libc::SIG_BLOCK, &set);
        // SAFETY: the set is initialised; the call makes a new descriptor or fails.
        let descriptor = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: new, and ours alone.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        Ok(Self { descriptor, mask_before, child_ignored_before })
    }

    /// The next signal that has arrived; never blocks.
    pub fn next(&self) -> Option<Arrived> {
        const INFO_BYTES: usize = size_of::<libc::signalfd_siginfo>();
        let mut info = [0u8; INFO_BYTES];
        if rustix::io::read(&self.descriptor, &mut info).ok()? != INFO_BYTES {
            return None;
        }
        // signalfd(2): ssi_signo, ssi_errno, ssi_code, ssi_pid, 32 bits each.
        let word = |at: usize| i32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
        let (signal, code, pid) = (word(0), word(8), word(12));
        // Codes of signals that processes send are not positive (sigaction(2)).
        Some(Arrived { signal, sender: if code <= 0 { Pid::from_raw(pid) } else { None } })
    }

    /// Stops this process as `signal` has stopped its program; returns when it is continued.
    pub fn stop_self(&self, signal: i32) {
        let set = set_of(std::iter::once(signal));
        // SAFETY: kill(2) on ourselves. A blocked signal stays pending until it is unblocked below.
        unsafe { libc::kill(libc::getpid(), signal) };
        let before = change_mask(libc::SIG_UNBLOCK, &set);
        change_mask(libc::SIG_SETMASK, &before);
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Program {
    /// Sends it a signal. Not to be called once it has been waited for.
    pub fn send(&self, signal: i32) {
        // SAFETY: kill(2) touches no memory; the number is the program's until somebody waits for it.
        unsafe { libc::kill(self.pid.as_raw_pid(), signal) };
    }

    /// Starts `program` with `arguments` and this process's own environment, in which only `changes` are made.
    ///
    /// Order and spelling of the environment, signal mask, ignored signals, closed standard streams: all as this
    /// process was given them. This process has one thread.
    ///
    /// # Errors
    /// What execvp(3) answers.
    pub fn start(
        signals: &Signals,
        program: &OsStr,
        arguments: &[OsString],
        changes: &[(&str, OsString)],
        announcement: Option<Announcement<'_>>,
    ) -> io::Result<Self> {
        let arguments = c_strings(std::iter::once(program).chain(arguments.iter().map(OsString::as_os_str)))?;
        let environment = environment(changes)?;
        let (arguments_at, environment_at) = (pointers(&arguments), pointers(&environment));
        let given = GIVEN.load(Ordering::Relaxed);
        let (failure, failure_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        // SAFETY: this process has one thread, so the child is a whole copy of it.
        let forked = unsafe { libc::fork() };
        if forked == 0 {
            if let Some(Announcement { ring, path, reason }) = announcement {
                let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
                let now_ns = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
                let (pid, path) = (journal::sys::process_id(), path.as_os_str().as_bytes());
                ring.announce_exec(pid, path, reason, now_ns);
            }
            let back = |ignored| if ignored { libc::SIG_IGN } else { libc::SIG_DFL };
            set_action(libc::SIGPIPE, back(given & PIPE_IGNORED != 0));
            set_action(libc::SIGCHLD, back(signals.child_ignored_before));
            for descriptor in (0..3).filter(|descriptor| given & (1 << descriptor) != 0) {
                // SAFETY: close(2) of a stream that the runtime has opened, in a process that is about to be replaced.
                unsafe { libc::close(descriptor) };
            }
            change_mask(libc::SIG_SETMASK, &signals.mask_before);
            // SAFETY: both arrays end in null and point to strings that this copy of the process has too.
            unsafe { libc::execvpe(arguments_at[0], arguments_at.as_ptr(), environment_at.as_ptr()) };
            let error = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL);
            if let Some(Announcement { ring, .. }) = announcement {
                // Nothing runs that could go unfollowed: takes the announcement back.
                ring.attach_process(journal::sys::process_id(), &[], 0);
            }
            let _ = rustix::io::write(&failure_end, &error.to_ne_bytes());
            // SAFETY: _exit(2) runs nothing that belongs to the parent.
            unsafe { libc::_exit(127) };
        }
        let pid = Pid::from_raw(forked).ok_or_else(io::Error::last_os_error)?;
        drop(failure_end);
        let mut error = [0; 4];
        if matches!(rustix::io::retry_on_intr(|| rustix::io::read(&failure, &mut error)), Ok(4)) {
            let _ = rustix::io::retry_on_intr(|| {
                rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())
            });
            return Err(io::Error::from_raw_os_error(i32::from_ne_bytes(error)));
        }
        Ok(Self { pid })
    }
}

fn c_strings<'a>(strings: impl Iterator<Item = &'a OsStr>) -> io::Result<Vec<CString>> {
    strings.map(|string| CString::new(string.as_bytes()).map_err(io::Error::from)).collect()
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain(std::iter::once(null())).collect()
}

/// This process's environment, entry by entry as it was given, with `changes` made where the variables stand.
fn environment(changes: &[(&str, OsString)]) -> io::Result<Vec<CString>> {
    unsafe extern "C" {
        static environ: *const *const libc::c_char;
    }
    let mut entries: Vec<CString> = Vec::new();
    // SAFETY: nothing in this process changes its environment, so pointer, array and strings stay as they are.
    let mut entry = unsafe { environ };
    // SAFETY: as above; the array ends in null.
    while let Some(string) = unsafe { entry.as_ref() }.filter(|string| !string.is_null()) {
        // SAFETY: as above; the entry is a string that ends in zero.
        entries.push(unsafe { CStr::from_ptr(*string) }.to_owned());
        // SAFETY: as above; the null that ends the array has not been reached.
        entry = unsafe { entry.add(1) };
    }
    for (name, value) in changes {
        let mut prefix = name.as_bytes().to_vec();
        prefix.push(b'=');
        let mut changed = prefix.clone();
        changed.extend_from_slice(value.as_bytes());
        let changed = CString::new(changed)?;
        match entries.iter_mut().find(|entry| entry.as_bytes().starts_with(&prefix)) {
            Some(entry) => *entry = changed,
            None => entries.push(changed),
        }
    }
    Ok(entries)
}

/// Starts a replayer for a set as a session of its own: nothing of the caller's stays with it.
///
/// # Errors
/// What spawning this same binary answers.
pub fn start_replayer(state_dir: &Path, set: &str, log: File, verbosity: &[&str]) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("lockstep").arg("--state-dir").arg(state_dir).args(["--set", set]).args(verbosity);
    command.args(["replay", "--detached"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).current_dir("/");
    for (name, _) in std::env::vars_os() {
        if name == "LD_PRELOAD" || name.as_bytes().starts_with(b"LOCKSTEP_") {
            command.env_remove(name);
        }
    }
    // SAFETY: runs between fork and exec; makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(detach) };
    command.spawn()
}

fn detach() -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::umask(rustix::fs::Mode::empty());
    for signal in 1..=libc::SIGRTMAX() {
        set_action(signal, libc::SIG_DFL);
    }
    change_mask(libc::SIG_SETMASK, &set_of(std::iter::empty()));
    for resource in [
        Resource::Nofile,
        Resource::Fsize,
        Resource::Cpu,
        Resource::As,
        Resource::Data,
        Resource::Nproc,
        Resource::Memlock,
        Resource::Locks,
        Resource::Sigpending,
    ] {
        let mut limit = rustix::process::getrlimit(resource);
        limit.current = limit.maximum;
        // To raise a soft limit to the hard one is always allowed.
        let _ = rustix::process::setrlimit(resource, limit);
    }
    close_on_exec_from(3);
    Ok(())
}

/// Lets exec close every descriptor from `first` on, whoever opened it.
fn close_on_exec_from(first: libc::c_uint) {
    // SAFETY: close_range(2) with this flag closes nothing now.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 {
        return;
    }
    // Before Linux 5.11. The limit was raised above, but no number beyond it can have been given out often.
    let last = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(1 << 20).min(1 << 20);
    for descriptor in first..last as libc::c_uint {
        // SAFETY: fcntl(2) with F_SETFD changes a flag, or fails where nothing is open.
        unsafe { libc::fcntl(descriptor as libc::c_int, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_keeps_its_order_and_changes_where_it_is_told_to() {
        let before = environment(&[]).expect("no zero in it");
        let after = environment(&[("PATH", "/p".into()), ("LOCKSTEP_TEST_NEW", "1".into())]).expect("no zero in it");
        assert_eq!(after.len(), before.len() + 1);
        assert_eq!(after.last().map(|entry| entry.as_bytes()), Some(&b"LOCKSTEP_TEST_NEW=1"[..]));
        for (before, after) in before.iter().zip(&after) {
            let is_path = before.as_bytes().starts_with(b"PATH=");
            assert_eq!(after.as_bytes(), if is_path { b"PATH=/p" } else { before.as_bytes() });
        }
        assert!(environment(&[("X", "a\0b".into())]).is_err());
    }

    #[test]
    fn a_program_that_cannot_be_executed_is_an_error_and_leaves_no_child() {
        let signals = Signals::collect().expect("signals can be collected");
        let error = Program::start(&signals, "/no/such/program".as_ref(), &[], &[], None).expect_err("not there");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn signals_tell_who_sent_them() {
        let signals = Signals::collect().expect("signals can be collected");
        // SAFETY: tgkill(2) touches no memory.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), libc::SIGUSR1) };
        let arrived = signals.next().expect("pending for this thread");
        assert_eq!(arrived.signal, libc::SIGUSR1);
        assert_eq!(arrived.sender, Some(rustix::process::getpid()));
    }
}
