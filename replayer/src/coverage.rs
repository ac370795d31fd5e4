//! Coverage: which processes are followed, which were announced but never attached, which can't be followed.
//!
//! The table of processes in the ring says who is attached and who is about to run what; `/proc` says who lives. A
//! process that can't be followed is counted when it is first seen, and remembered with its descendants until all of
//! them have ended: only then is a comparison with the primary able to find everything that they wrote.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use journal::Ring;
use journal::processes::{ProcessState, ProcessView, Reason};
use rustix::time::{ClockId, clock_gettime};

use crate::status::NotFollowed;

/// How long a program may take from its exec to the library's constructor.
const ATTACH_NS_MAX: u64 = 2_000_000_000;

/// /proc/PID/stat counts in ticks of 10 ms, rounded down; and the table's clock is read before it is stored.
const CLOCK_SLACK_NS: u64 = 50_000_000;

/// What was followed and what was not.
#[derive(Debug, Default)]
pub struct Coverage {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    counts: BTreeMap<(String, String), u64>,
    open: HashMap<ExecId, Open>,
}

/// One program in one process: the process number and how many programs it has run before.
type ExecId = (u32, u32);

/// A program that is not followed and has not ended.
#[derive(Debug)]
struct Open {
    since_ns: u64,
    reason: Reason,
    program: Vec<u8>,
    /// Its descendants: number, and start in nanoseconds since boot.
    descendants: HashMap<u32, u64>,
}

/// What a look at the table has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Scan {
    /// Processes that live and are followed, about to be, or known not to be.
    pub living: usize,
    /// Programs that are not followed and live, descendants included.
    pub not_followed_living: usize,
    /// Programs newly counted as not followed.
    pub newly_not_followed: usize,
    /// Seconds of CLOCK_REALTIME at which the first of the newly counted began.
    pub since: u64,
}

impl Coverage {
    /// Begins with what was counted before.
    pub fn new(counted: &[(String, String, u64)]) -> Self {
        let counts =
            counted.iter().map(|(reason, program, count)| ((reason.clone(), program.clone()), *count)).collect();
        Self { inner: Mutex::new(Inner { counts, open: HashMap::new() }) }
    }

    /// What has been counted: reason, program, how often.
    pub fn counted(&self) -> Vec<(String, String, u64)> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.counts.iter().map(|((reason, program), count)| (reason.clone(), program.clone(), *count)).collect()
    }

    /// The same for `status`.
    pub fn not_followed(&self) -> Vec<NotFollowed> {
        let counted = self.counted().into_iter();
        counted.map(|(reason, program, count)| NotFollowed { reason, program, count }).collect()
    }

    /// Takes in a record that says that `pid` runs a program that can't be followed. True when it was not known.
    pub fn note(&self, pid: u32, reason: Reason, program: &[u8]) -> bool {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let known = inner.open.iter().any(|((open, _), it)| *open == pid && it.program.ends_with(tail(program)));
        // The table counts executions from 1, so 0 never meets an entry of it.
        !known && inner.count((pid, 0), reason, program, monotonic_ns())
    }

    /// Looks at every process of the table: forgets those that have ended, counts those that can't be followed.
    pub fn scan(&self, ring: &Ring) -> Scan {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let now_ns = monotonic_ns();
        let mut scan = Scan::default();
        let mut first_ns = u64::MAX;
        for (index, view) in ring.process_views() {
            let lives = lives(view.pid, view.since_ns);
            let reason = match view.state {
                ProcessState::Attached => None,
                ProcessState::NotFollowed => Some(view.reason),
                ProcessState::Executing => {
                    let waited_ns = now_ns.saturating_sub(view.since_ns);
                    (!lives || waited_ns > ATTACH_NS_MAX).then_some(Reason::Silent)
                }
            };
            if let Some(reason) = reason
                && same_entry(ring, index, &view)
                && inner.count((view.pid, view.execs), reason, view.program(), view.since_ns)
            {
                scan.newly_not_followed += 1;
                first_ns = first_ns.min(view.since_ns);
            }
            if lives {
                scan.living += 1;
            } else {
                ring.forget_process(index, view.pid);
            }
        }
        if scan.newly_not_followed > 0 {
            scan.since = realtime_seconds().saturating_sub(now_ns.saturating_sub(first_ns) / 1_000_000_000 + 2);
        }
        scan.not_followed_living = inner.close_ended(ring);
        scan
    }
}

impl Inner {
    /// Counts a program that isn't followed, once. True when it is new.
    fn count(&mut self, id: ExecId, reason: Reason, program: &[u8], since_ns: u64) -> bool {
        if self.open.contains_key(&id) {
            return false;
        }
        let name = String::from_utf8_lossy(program).into_owned();
        *self.counts.entry((reason.word().to_owned(), name)).or_default() += 1;
        let open = Open { since_ns, reason, program: program.to_vec(), descendants: HashMap::new() };
        self.open.insert(id, open);
        true
    }

    /// Drops the programs that have ended with all their descendants; returns how many are left.
    fn close_ended(&mut self, ring: &Ring) -> usize {
        if self.open.is_empty() {
            return 0;
        }
        let followed: HashMap<u32, ProcessView> = ring.process_views().map(|(_, view)| (view.pid, view)).collect();
        let processes = all_processes();
        self.open.retain(|(pid, execs), open| {
            // The same process may have gone on to a program that is followed, or to another that isn't.
            let moved_on = followed.get(pid).is_some_and(|view| {
                view.execs != *execs && *execs != 0
                    || view.state == ProcessState::Attached && view.since_ns > open.since_ns
            });
            let lives = !moved_on && lives(*pid, open.since_ns);
            open.descendants.retain(|child, start| processes.get(child).is_some_and(|it| it.start_ns == *start));
            loop {
                let known = open.descendants.len();
                for (child, process) in &processes {
                    let parent_is_ours =
                        lives && process.parent == *pid || open.descendants.contains_key(&process.parent);
                    if parent_is_ours && !followed.get(child).is_some_and(|view| view.state == ProcessState::Attached) {
                        open.descendants.insert(*child, process.start_ns);
                    }
                }
                if open.descendants.len() == known {
                    break;
                }
            }
            open.descendants
                .retain(|child, _| !followed.get(child).is_some_and(|view| view.state == ProcessState::Attached));
            let stays = lives || !open.descendants.is_empty();
            if !stays {
                log::info!("{} ({}) has ended", String::from_utf8_lossy(&open.program), open.reason.word());
            }
            stays
        });
        self.open.len()
    }
}

/// The part of a program's path that the table would keep.
fn tail(program: &[u8]) -> &[u8] {
    &program[program.len().saturating_sub(journal::processes::PROGRAM_BYTES)..]
}

/// True when the entry still says what was seen, so that a process that attached meanwhile is not counted.
fn same_entry(ring: &Ring, index: usize, view: &ProcessView) -> bool {
    ring.process_views().any(|(at, now)| at == index && now == *view)
}

/// A process as `/proc/PID/stat` shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Process {
    parent: u32,
    start_ns: u64,
    ended: bool,
}

impl Process {
    fn read(pid: u32) -> Option<Self> {
        let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything, closing ones included.
        let after = text.iter().rposition(|byte| *byte == b')')? + 2;
        let fields = std::str::from_utf8(text.get(after..)?).ok()?;
        let mut fields = fields.split(' ');
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        // Field 22 of the file; the state is field 3, the parent 4.
        let ticks: u64 = fields.nth(17)?.parse().ok()?;
        let start_ns = ticks * (1_000_000_000 / rustix::param::clock_ticks_per_second());
        // A process whose first thread has ended shows as a zombie while other threads go on.
        let ended = matches!(state, "Z" | "X" | "x")
            && std::fs::read_dir(format!("/proc/{pid}/task")).map_or(true, |tasks| tasks.count() <= 1);
        Some(Self { parent, start_ns, ended })
    }
}

/// True when the process that had the number `pid` at `since_ns` (CLOCK_MONOTONIC) still lives.
fn lives(pid: u32, since_ns: u64) -> bool {
    let Some(process) = Process::read(pid) else { return false };
    let suspended_ns = boottime_ns().saturating_sub(monotonic_ns());
    !process.ended && process.start_ns.saturating_sub(suspended_ns) <= since_ns.saturating_add(CLOCK_SLACK_NS)
}

fn all_processes() -> HashMap<u32, Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return HashMap::new() };
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    numbers.filter_map(|pid| Some((pid, Process::read(pid)?))).filter(|(_, process)| !process.ended).collect()
}

/// CLOCK_MONOTONIC in nanoseconds, the clock of the table of processes.
pub fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

fn boottime_ns() -> u64 {
    nanoseconds(ClockId::Boottime)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// CLOCK_REALTIME in seconds.
pub fn realtime_seconds() -> u64 {
    clock_gettime(ClockId::Realtime).tv_sec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_an_earlier_user_of_its_number_does_not() {
        let pid = std::process::id();
        assert!(lives(pid, monotonic_ns()));
        assert!(!lives(pid, 0));
        let process = Process::read(pid).expect("it runs");
        assert!(!process.ended);
        assert!(all_processes().contains_key(&process.parent) || process.parent == 0);
    }

    #[test]
    fn a_child_that_has_ended_and_was_not_waited_for_does_not_live() {
        let mut child = std::process::Command::new("true").spawn().expect("true exists");
        let since = monotonic_ns();
        while lives(child.id(), since) {
            std::thread::yield_now();
        }
        assert!(child.wait().expect("ours").success());
    }
}
