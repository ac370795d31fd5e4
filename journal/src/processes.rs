//! The table of wrapped processes: who is attached, who is about to exec what, and what can't be followed.

use crate::layout::{PROCESSES, Process};
use crate::ring::Ring;
use crate::sync::Ordering;

/// Bytes of a program's name that are kept, its last ones.
pub const PROGRAM_BYTES: usize = 104;

/// Where a process stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum ProcessState {
    /// The library runs in it.
    Attached = 1,
    /// It is about to run another program, in which the library should attach.
    Executing = 2,
    /// It runs, or is about to run, a program that can't be followed.
    NotFollowed = 3,
}

/// Why a program can't be followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Reason {
    /// It can be followed.
    None = 0,
    /// It has no dynamic loader.
    Static = 1,
    /// Its loader is not glibc's.
    OtherLibc = 2,
    /// It is for another architecture or word size.
    OtherArchitecture = 3,
    /// It has a setuid or setgid bit or file capabilities, so the loader ignores preloads.
    Privileged = 4,
    /// The library can't be read or mapped where the program runs (another root, noexec, permissions).
    Unreachable = 5,
    /// It runs as another user, who may not write the ring.
    User = 6,
    /// It was expected to attach and didn't.
    Silent = 7,
}

impl Reason {
    /// The reason with this number; an unknown one counts as [`Reason::Silent`].
    pub const fn from_u32(value: u32) -> Self {
        match value {
            0 => Self::None,
            1 => Self::Static,
            2 => Self::OtherLibc,
            3 => Self::OtherArchitecture,
            4 => Self::Privileged,
            5 => Self::Unreachable,
            6 => Self::User,
            _ => Self::Silent,
        }
    }

    /// The word for it in `status`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Static => "static",
            Self::OtherLibc => "other-libc",
            Self::OtherArchitecture => "other-architecture",
            Self::Privileged => "privileged",
            Self::Unreachable => "library-unreachable",
            Self::User => "user",
            Self::Silent => "did-not-attach",
        }
    }
}

/// A process as the table shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProcessView {
    /// Process number.
    pub pid: u32,
    /// Where it stands.
    pub state: ProcessState,
    /// Counted up at each exec.
    pub execs: u32,
    /// Why it can't be followed.
    pub reason: Reason,
    /// CLOCK_MONOTONIC nanoseconds of the last change.
    pub since_ns: u64,
    /// The end of its program's path.
    pub program: [u8; PROGRAM_BYTES],
}

impl ProcessView {
    /// The program's path, or the end of it.
    pub fn program(&self) -> &[u8] {
        self.program.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

impl Ring {
    /// The entry of `pid`, made if there is room and it isn't there.
    fn process_entry(&self, pid: u32) -> Option<&Process> {
        let table = self.processes();
        let start = pid as usize % PROCESSES;
        let row = || table[start..].iter().chain(&table[..start]);
        // Entries are freed, so a free one doesn't end the search; but the row is short where the table is sparse,
        // and a process asks once or twice in its life.
        if let Some(entry) = row().take(64).find(|entry| entry.pid.load(Ordering::Acquire) == pid) {
            return Some(entry);
        }
        row().find(|entry| {
            let free = entry.pid.load(Ordering::Relaxed) == 0;
            free && entry.pid.compare_exchange(0, pid, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })
    }

    /// Notes that the library runs in `pid`, which runs `program`. True when the process is new to the table.
    pub fn attach_process(&self, pid: u32, program: &[u8], now_ns: u64) -> bool {
        let Some(entry) = self.process_entry(pid) else { return false };
        let known = entry.state.load(Ordering::Acquire) != 0;
        if !program.is_empty() {
            set_program(entry, program);
        }
        entry.reason.store(Reason::None as u32, Ordering::Relaxed);
        entry.since_ns.store(now_ns, Ordering::Relaxed);
        entry.state.store(ProcessState::Attached as u32, Ordering::Release);
        if !known {
            self.header().attached.fetch_add(1, Ordering::Relaxed);
        }
        !known
    }

    /// Notes that `pid` is about to run `program`, which can be followed (`Reason::None`) or not.
    pub fn announce_exec(&self, pid: u32, program: &[u8], reason: Reason, now_ns: u64) {
        let Some(entry) = self.process_entry(pid) else { return };
        // A process that executes right after fork or vfork, or that `run` starts, is announced before it attaches.
        if reason == Reason::None && entry.state.load(Ordering::Acquire) == 0 {
            self.header().attached.fetch_add(1, Ordering::Relaxed);
        }
        set_program(entry, program);
        entry.execs.fetch_add(1, Ordering::Relaxed);
        entry.reason.store(reason as u32, Ordering::Relaxed);
        entry.since_ns.store(now_ns, Ordering::Relaxed);
        let state = if reason == Reason::None { ProcessState::Executing } else { ProcessState::NotFollowed };
        entry.state.store(state as u32, Ordering::Release);
        self.wake_consumer();
    }

    /// All entries in use, with their index.
    pub fn process_views(&self) -> impl Iterator<Item = (usize, ProcessView)> + '_ {
        self.processes().iter().enumerate().filter_map(|(index, entry)| {
            let pid = entry.pid.load(Ordering::Acquire);
            let state = match entry.state.load(Ordering::Acquire) {
                1 => ProcessState::Attached,
                2 => ProcessState::Executing,
                3 => ProcessState::NotFollowed,
                _ => return None,
            };
            let mut program = [0; PROGRAM_BYTES];
            for (bytes, word) in program.chunks_exact_mut(8).zip(&entry.program) {
                bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
            }
            let view = ProcessView {
                pid,
                state,
                execs: entry.execs.load(Ordering::Relaxed),
                reason: Reason::from_u32(entry.reason.load(Ordering::Relaxed)),
                since_ns: entry.since_ns.load(Ordering::Relaxed),
                program,
            };
            (pid != 0).then_some((index, view))
        })
    }

    /// Frees the entry of a process that has ended. Only the replayer calls this.
    pub fn forget_process(&self, index: usize, pid: u32) {
        if let Some(entry) = self.processes().get(index)
            && entry.pid.load(Ordering::Acquire) == pid
        {
            entry.state.store(0, Ordering::Release);
            entry.pid.store(0, Ordering::Release);
        }
    }
}

fn set_program(entry: &Process, program: &[u8]) {
    let end = &program[program.len().saturating_sub(PROGRAM_BYTES)..];
    let mut bytes = [0; PROGRAM_BYTES];
    bytes[..end.len()].copy_from_slice(end);
    for (chunk, word) in bytes.chunks_exact(8).zip(&entry.program) {
        let mut value = [0; 8];
        value.copy_from_slice(chunk);
        word.store(u64::from_ne_bytes(value), Ordering::Relaxed);
    }
}
