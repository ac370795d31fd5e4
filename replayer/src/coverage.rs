//! Coverage: which processes are followed, which were announced but never attached, which can't be followed.
//!
//! The table of processes in the ring says who is attached and who is about to run what; `/proc` says who lives. A
//! process that can't be followed is counted when it is first seen, and remembered with its descendants until all of
//! them have ended: only then is a comparison with the primary able to find everything that they wrote.

use std::collections::{BTreeMap, HashMap, HashSet};
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
    open: Vec<Open>,
    /// Entries of the table that are counted and still there.
    in_table: HashSet<ExecId>,
    /// What was counted from the table or from a record, and is still to be met in the other.
    expected: Vec<Expected>,
}

/// One program in one process: the process number and how many programs it has run before.
type ExecId = (u32, u32);

/// A program that is not followed and has not ended.
#[derive(Debug)]
struct Open {
    pid: u32,
    /// Which exec of the process it is; unknown for one that only a record has told of.
    execs: Option<u32>,
    since_ns: u64,
    reason: Reason,
    program: Vec<u8>,
    /// Its descendants: number, and start in nanoseconds since boot.
    descendants: HashMap<u32, u64>,
}

/// Where a program that can't be followed is met: its exec writes both, and either may be missed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    Table,
    Record,
}

#[derive(Debug)]
struct Expected {
    source: Source,
    pid: u32,
    program: Vec<u8>,
    until_ns: u64,
}

/// How long a program that was met in one source is expected in the other.
const EXPECTED_NS: u64 = 60_000_000_000;

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
        Self { inner: Mutex::new(Inner { counts, ..Inner::default() }) }
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
    pub fn note(&self, ring: &Ring, pid: u32, reason: Reason, program: &[u8]) -> bool {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.is_expected(Source::Record, pid, program) {
            return false;
        }
        // A process that has gone on to a program that is followed has ended this one.
        let view = ring.process_views().map(|(_, view)| view).find(|view| view.pid == pid);
        let since_ns = match view {
            Some(view) if view.state == ProcessState::Attached => 0,
            Some(view) => view.since_ns,
            None => monotonic_ns(),
        };
        inner.count(Source::Record, (pid, None), reason, program, since_ns);
        true
    }

    /// Looks at every process of the table: forgets those that have ended, counts those that can't be followed.
    pub fn scan(&self, ring: &Ring) -> Scan {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let now_ns = monotonic_ns();
        let mut scan = Scan::default();
        let mut first_ns = u64::MAX;
        let mut there = HashSet::new();
        for (index, view) in ring.process_views() {
            let life = Life::of(view.pid, view.since_ns);
            let reason = match view.state {
                ProcessState::Attached => None,
                ProcessState::NotFollowed => Some(view.reason),
                ProcessState::Executing => {
                    let waited_ns = now_ns.saturating_sub(view.since_ns);
                    (life != Life::Lives || waited_ns > ATTACH_NS_MAX).then_some(Reason::Silent)
                }
            };
            // It may have attached while it was looked at.
            let stays = || ring.process_views().any(|(at, now)| at == index && now == view);
            if let Some(reason) = reason
                && stays()
            {
                there.insert((view.pid, view.execs));
                if inner.meet_in_table(&view, reason) {
                    scan.newly_not_followed += 1;
                    first_ns = first_ns.min(view.since_ns);
                }
            }
            match life {
                Life::Lives => scan.living += 1,
                // `run` looks the program up before it takes its status.
                Life::Zombie => {}
                Life::Gone if stays() => ring.forget_process(index, view.pid),
                Life::Gone => {}
            }
        }
        inner.in_table.retain(|id| there.contains(id));
        inner.expected.retain(|expected| expected.until_ns > now_ns);
        if scan.newly_not_followed > 0 {
            scan.since = realtime_seconds().saturating_sub(now_ns.saturating_sub(first_ns) / 1_000_000_000 + 2);
        }
        scan.not_followed_living = inner.close_ended(ring);
        scan
    }
}

impl Inner {
    /// Takes in a program that the table shows as not followed. True when it was not known.
    fn meet_in_table(&mut self, view: &ProcessView, reason: Reason) -> bool {
        if !self.in_table.insert((view.pid, view.execs)) {
            return false;
        }
        if self.is_expected(Source::Table, view.pid, view.program()) {
            let open = self.open.iter_mut().find(|open| open.pid == view.pid && open.execs.is_none());
            if let Some(open) = open {
                (open.execs, open.since_ns) = (Some(view.execs), view.since_ns);
            }
            return false;
        }
        self.count(Source::Table, (view.pid, Some(view.execs)), reason, view.program(), view.since_ns);
        true
    }

    /// True when this was counted from the other source, which is told once.
    fn is_expected(&mut self, source: Source, pid: u32, program: &[u8]) -> bool {
        let program = tail(program);
        let is_it = |it: &Expected| it.source == source && it.pid == pid && it.program == program;
        let found = self.expected.iter().position(is_it);
        if let Some(at) = found {
            self.expected.swap_remove(at);
        }
        found.is_some()
    }

    fn count(&mut self, met: Source, id: (u32, Option<u32>), reason: Reason, program: &[u8], since_ns: u64) {
        let program = tail(program).to_vec();
        let name = String::from_utf8_lossy(&program).into_owned();
        *self.counts.entry((reason.word().to_owned(), name)).or_default() += 1;
        let (pid, execs) = id;
        // What never attached is shown by the table alone.
        if reason != Reason::Silent {
            let source = if met == Source::Table { Source::Record } else { Source::Table };
            let until_ns = monotonic_ns() + EXPECTED_NS;
            self.expected.push(Expected { source, pid, program: program.clone(), until_ns });
        }
        self.open.push(Open { pid, execs, since_ns, reason, program, descendants: HashMap::new() });
    }

    /// Drops the programs that have ended with all their descendants; returns how many are left.
    fn close_ended(&mut self, ring: &Ring) -> usize {
        if self.open.is_empty() {
            return 0;
        }
        let table: HashMap<u32, ProcessView> = ring.process_views().map(|(_, view)| (view.pid, view)).collect();
        let follows = |pid: u32| table.get(&pid).is_some_and(|view| view.state == ProcessState::Attached);
        let processes = all_processes();
        self.open.retain_mut(|open| {
            // The same process may have gone on to a program that is followed, or to another that isn't.
            let moved_on = table.get(&open.pid).is_some_and(|view| {
                let attached_since = view.state == ProcessState::Attached && view.since_ns > open.since_ns;
                attached_since || open.execs.is_some_and(|execs| execs != view.execs)
            });
            let lives = !moved_on && Life::of(open.pid, open.since_ns) == Life::Lives;
            open.descendants.retain(|child, start| processes.get(child).is_some_and(|it| it.start_ns == *start));
            loop {
                let known = open.descendants.len();
                for (child, process) in &processes {
                    let is_descendant =
                        lives && process.parent == open.pid || open.descendants.contains_key(&process.parent);
                    if is_descendant && !follows(*child) {
                        open.descendants.insert(*child, process.start_ns);
                    }
                }
                if open.descendants.len() == known {
                    break;
                }
            }
            open.descendants.retain(|child, _| !follows(*child));
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

/// What has become of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Life {
    /// It runs, or could.
    Lives,
    /// It has ended, and its parent has not taken its status.
    Zombie,
    /// It is gone, and its number may be somebody else's.
    Gone,
}

impl Life {
    /// What has become of the process that had the number `pid` at `since_ns` (CLOCK_MONOTONIC).
    fn of(pid: u32, since_ns: u64) -> Self {
        let Some(process) = Process::read(pid) else { return Self::Gone };
        let suspended_ns = boottime_ns().saturating_sub(monotonic_ns());
        if process.start_ns.saturating_sub(suspended_ns) > since_ns.saturating_add(CLOCK_SLACK_NS) {
            Self::Gone
        } else if process.ended {
            Self::Zombie
        } else {
            Self::Lives
        }
    }
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
        assert_eq!(Life::of(pid, monotonic_ns()), Life::Lives);
        assert_eq!(Life::of(pid, 0), Life::Gone);
        let process = Process::read(pid).expect("it runs");
        assert!(all_processes().contains_key(&process.parent) || process.parent == 0);
    }

    #[test]
    fn a_child_that_was_not_waited_for_is_a_zombie() {
        let mut child = std::process::Command::new("true").spawn().expect("true exists");
        let since = monotonic_ns();
        while Life::of(child.id(), since) == Life::Lives {
            std::thread::yield_now();
        }
        assert_eq!(Life::of(child.id(), since), Life::Zombie);
        assert!(child.wait().expect("ours").success());
        assert_eq!(Life::of(child.id(), since), Life::Gone);
    }

    #[test]
    fn a_program_that_is_met_in_table_and_record_is_counted_once() {
        let view = ProcessView {
            pid: std::process::id(),
            state: ProcessState::NotFollowed,
            execs: 3,
            reason: Reason::Static,
            since_ns: monotonic_ns(),
            program: std::array::from_fn(|at| b"/bin/busybox".get(at).copied().unwrap_or(0)),
        };
        let mut inner = Inner::default();
        assert!(inner.meet_in_table(&view, view.reason));
        assert!(!inner.meet_in_table(&view, view.reason), "seen again");
        assert!(inner.is_expected(Source::Record, view.pid, b"/bin/busybox"));
        assert!(!inner.is_expected(Source::Record, view.pid, b"/bin/busybox"), "once");
        let mut inner = Inner::default();
        inner.count(Source::Record, (view.pid, None), Reason::Static, b"/bin/busybox", view.since_ns);
        assert!(!inner.meet_in_table(&view, view.reason));
        assert_eq!(inner.counts.values().sum::<u64>(), 1);
        assert_eq!(inner.open[0].execs, Some(3));
    }
}
