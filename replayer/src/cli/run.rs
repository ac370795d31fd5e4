//! `lockstep run`: checks, prepares the set, starts the program, stays out of its way, waits for the mirrors.
//!
//! From the program's start to its end this process has one thread, which waits for signals: it passes on those that
//! were sent to it alone, stops and goes on with the program, and looks after the replayer.

use super::launch::{Announcement, Arrived, Program, Signals};
use super::mirrors::{self, Wanted};
use super::program::{self, ProgramError};
use super::select::{self, FromEnvironment, resolve};
use super::supervisor::{self, Supervisor};
use super::{Global, adopt};
use crate::client::{Asked, ClientError};
use crate::control::{Answer, Purpose, Question};
use crate::exit::Exit;
use crate::library;
use crate::ring_file::{RING_BYTES_MAX, RING_BYTES_MIN, RingFile};
use crate::set::{OwnerPolicy, Set, StateDir};
use crate::status::MirrorState;
use anyhow::{Context, bail};
use journal::processes::{ProcessState, Reason};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, WaitId, WaitIdOptions, WaitIdStatus, WaitOptions};
use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Wraps one program and all its children, and mirrors what they change
#[derive(clap::Args, Debug)]
#[command(
    override_usage = "lockstep run [OPTIONS] --primary DIR --mirror DIR [--mirror DIR]... -- PROGRAM [ARG]...",
    before_long_help = "Examples:
  lockstep run --primary /srv/data --mirror /backup/data -- ./server
  lockstep run --primary ~/db --mirror /mnt/a/db --mirror /mnt/nas/db -- sqlite3 ~/db/main.db
  lockstep run --set data -- bash"
)]
pub struct Run {
    /// Directory that the program changes
    #[arg(long, value_name = "DIR", env = "LOCKSTEP_PRIMARY", hide_env = true)]
    primary: Option<PathBuf>,
    /// Directory to keep equal to it; may be given several times
    #[arg(long, value_name = "SPEC")]
    mirror: Vec<OsString>,
    /// Return when the program ends, without waiting for the mirrors
    #[arg(long, env = "LOCKSTEP_NO_WAIT", hide_env = true, value_parser = clap::builder::FalseyValueParser::new())]
    no_wait: bool,
    /// Refuse to start a program that cannot be followed
    #[arg(long, env = "LOCKSTEP_STRICT", hide_env = true, value_parser = clap::builder::FalseyValueParser::new())]
    strict: bool,
    /// Take over mirrors that are not empty: keep what is equal, overwrite or delete the rest
    #[arg(long)]
    adopt: bool,
    /// Don't ask
    #[arg(long, short)]
    yes: bool,
    /// What to do where a mirror can't hold an owner, for a new set
    #[arg(long, value_name = "POLICY", value_parser = ["strict", "warn", "record"])]
    owner: Option<String>,
    /// Size of the ring, for a new set
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(RING_BYTES_MIN..=RING_BYTES_MAX))]
    ring_bytes: Option<u64>,
    /// The program and its arguments
    #[arg(trailing_var_arg = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

/// How a program has ended, or that it hasn't.
enum Change {
    Ended(Exit),
    Stopped(i32),
    Nothing,
}

impl Run {
    /// Runs it.
    ///
    /// # Errors
    /// Everything that keeps the program from being started is trouble of lockstep's own (125), but for
    /// [`ProgramError`].
    pub fn main(&self, global: &Global) -> anyhow::Result<Exit> {
        let Some((name, arguments)) = self.program.split_first() else {
            bail!("no program is given\nname one after the options: lockstep run … -- PROGRAM [ARG]…");
        };
        let found = program::find(name, std::env::var_os("PATH").as_deref())?;
        if let Some(outer) = Outer::from_environment() {
            outer.check(self, global)?;
            let signals = Signals::collect()?;
            let started = start(&signals, name, arguments, &[], None)?;
            return Ok(Wrapped { signals, program: started, supervised: None, ring: None, path: &found }.wait());
        }
        let reason = self.check_program(&found)?;
        let (set, ring) = self.prepare(global)?;
        let library = library::install(set.state_dir(), |place| {
            let roots = set.settings.mirrors.iter().map(|mirror| &mirror.path).chain([&set.settings.primary]);
            roots.into_iter().all(|root| !mirrors::lies_inside(place, root))
        })?;
        supervisor::clear_stopped(&set);
        let mut supervisor = Supervisor::new(global.verbosity());
        supervisor.ensure(&set)?;

        let signals = Signals::collect()?;
        let environment = [
            ("LD_PRELOAD", preload(&library)),
            ("LOCKSTEP_SET", select::variable(&set)),
            ("LOCKSTEP_STATE_DIR", set.state_dir().as_os_str().to_owned()),
        ];
        let announcement = Announcement { ring: &ring, path: &found, reason };
        let started = start(&signals, name, arguments, &environment, Some(announcement))?;
        let mut wrapped = Wrapped {
            signals,
            program: started,
            supervised: Some((set, supervisor)),
            ring: Some((&ring, reason)),
            path: &found,
        };
        let exit = wrapped.wait();
        let Wrapped { signals, supervised, .. } = wrapped;
        let Some((set, mut supervisor)) = supervised else { unreachable!("given above") };
        if !self.no_wait {
            wait_for_mirrors(&set, &mut supervisor, &signals);
        }
        if supervisor.restarts > 0 {
            let log = set.file("replayer.log");
            eprintln!("lockstep: the replayer died and was started again {} times; see {log:?}", supervisor.restarts);
        }
        Ok(exit)
    }

    /// Says whether the program can be followed.
    fn check_program(&self, found: &Path) -> anyhow::Result<Reason> {
        let reason = program::classify(found);
        let why = match reason {
            Reason::None => return Ok(reason),
            Reason::Static if !self.strict => return Ok(reason),
            Reason::Static => "it is statically linked, so no library can be loaded into it",
            Reason::OtherLibc => "it uses another C library than glibc",
            Reason::OtherArchitecture => "it is for another architecture or word size",
            _ => {
                "it runs with the rights of another user (set-user-id, set-group-id or file capabilities), so the loader ignores libraries"
            }
        };
        bail!(
            "cannot follow {found:?}: {why}\nrun a dynamically linked program that does the same, or start the program that it starts"
        )
    }

    /// Checks everything, then makes or opens set, mirrors and ring.
    fn prepare(&self, global: &Global) -> anyhow::Result<(Set, RingFile)> {
        let wanted = self.wanted(global)?;
        let path = StateDir::locate(global.state_dir())?;
        let seen = mirrors::plan(StateDir::open(global.state_dir())?.as_ref(), &resolve(&path), &wanted)?;
        adopt::confirm(&seen, self.yes)?;
        let state = StateDir::open_or_make(global.state_dir())?;
        let _lock = state.lock()?;
        // Looked at again, now that nobody else can change anything.
        let plan = mirrors::plan(Some(&state), state.path(), &wanted)?;
        let set = plan.carry_out(&state)?;
        let ring = RingFile::open_or_make(&set)?;
        Ok((set, ring))
    }

    fn wanted(&self, global: &Global) -> anyhow::Result<Wanted> {
        let mut wanted = Wanted {
            set: global.set().map(str::to_owned),
            primary: self.primary.clone(),
            mirrors: self.mirror.clone(),
            adopt: self.adopt,
            ring_bytes: self.ring_bytes,
            owner: self.owner.as_deref().map(owner_policy).transpose()?,
        };
        if let Some(name) = &wanted.set
            && let Some(configured) = global.config().sets.get(name)
        {
            wanted.primary = wanted.primary.or_else(|| Some(configured.primary.clone()));
            if wanted.mirrors.is_empty() {
                wanted.mirrors = configured.mirrors.iter().map(OsString::from).collect();
            }
            wanted.ring_bytes = wanted.ring_bytes.or(configured.ring_bytes);
            wanted.owner = wanted.owner.or(configured.owner);
        }
        Ok(wanted)
    }
}

fn owner_policy(word: &str) -> anyhow::Result<OwnerPolicy> {
    Ok(match word {
        "strict" => OwnerPolicy::Strict,
        "warn" => OwnerPolicy::Warn,
        "record" => OwnerPolicy::Record,
        _ => bail!("{word:?} is no owner policy: strict, warn or record"),
    })
}

/// Our library first: ours must see what the others do. One that is there by hand would be loaded twice.
fn preload(library: &Path) -> OsString {
    let mut value = library.as_os_str().to_owned();
    let before = std::env::var_os("LD_PRELOAD").unwrap_or_default();
    let separates = |byte: &u8| matches!(byte, b':' | b' ');
    let others: Vec<_> =
        before.as_bytes().split(separates).filter(|it| !it.is_empty() && !library::is_ours(it)).collect();
    for other in others {
        value.push(":");
        value.push(OsStr::from_bytes(other));
    }
    value
}

fn start(
    signals: &Signals,
    name: &OsStr,
    arguments: &[OsString],
    environment: &[(&str, OsString)],
    announcement: Option<Announcement<'_>>,
) -> Result<Program, ProgramError> {
    Program::start(signals, name, arguments, environment, announcement).map_err(|source| {
        let program = name.to_owned();
        match source.kind() {
            std::io::ErrorKind::NotFound => ProgramError::NotFound { program, reason: source.to_string() },
            _ => ProgramError::CannotExecute { program, source },
        }
    })
}

/// The `run` that this command is inside of.
pub struct Outer {
    /// Name of its set.
    pub set: String,
    /// Its state directory.
    pub state_dir: PathBuf,
}

impl Outer {
    /// Looks whether there is one: its variables are set, and its library is loaded.
    pub fn from_environment() -> Option<Self> {
        let FromEnvironment { name, state_dir } = FromEnvironment::read()?;
        let state_dir = state_dir.or_else(StateDir::usual)?;
        let preloads = std::env::var_os("LD_PRELOAD")?;
        let wrapped = preloads.as_bytes().split(|byte| matches!(byte, b':' | b' ')).any(library::is_ours);
        wrapped.then_some(Self { set: name, state_dir })
    }

    /// Refuses what is not this set: one process writes into one ring.
    fn check(&self, run: &Run, global: &Global) -> anyhow::Result<()> {
        let refuse = |what: String| -> anyhow::Result<()> {
            bail!(
                "cannot run inside the set {}: {what}\nstart it outside of `lockstep run`, or leave out what names another set",
                self.set
            )
        };
        if let Some(name) = global.set_flag()
            && name != self.set
        {
            return refuse(format!("this is to be a program of the set {name}"));
        }
        if let Some(other) = global.state_dir_flag()
            && resolve(&std::path::absolute(other)?) != resolve(&self.state_dir)
        {
            return refuse(format!("this is to be a program of the state directory {other:?}"));
        }
        if let Some(primary) = &run.primary {
            let canonical = primary.canonicalize().with_context(|| format!("cannot use {primary:?} as primary"))?;
            let set = StateDir::open(Some(&self.state_dir))?.map(|state| state.set(&self.set)).transpose()?.flatten();
            if !set.is_some_and(|set| mirrors::same_directory(&set.settings.primary, &canonical)) {
                return refuse(format!("{primary:?} is not its primary"));
            }
        }
        Ok(())
    }
}

/// A program that runs.
struct Wrapped<'a> {
    signals: Signals,
    program: Program,
    supervised: Option<(Set, Supervisor)>,
    ring: Option<(&'a RingFile, Reason)>,
    path: &'a Path,
}

impl Wrapped<'_> {
    /// Waits for the program's end.
    fn wait(&mut self) -> Exit {
        let mut attached = self.ring.is_none_or(|(_, reason)| reason != Reason::None);
        // Looked at often while it starts, because a short program is soon gone from the table.
        let mut pause = Duration::from_millis(1);
        loop {
            attached = attached || self.has_attached() == Some(true);
            while let Some(arrived) = self.signals.next() {
                self.pass_on(arrived);
            }
            match self.look() {
                Change::Ended(exit) => {
                    attached = attached || self.has_attached() != Some(false);
                    self.reap();
                    if attached {
                        return exit;
                    }
                    eprintln!(
                        "lockstep: {:?} could not be followed: the library did not attach; its own exit status was {}",
                        self.path,
                        exit.code()
                    );
                    eprintln!("lockstep: the mirrors are compared with the primary; see: lockstep status");
                    return Exit::RunTrouble;
                }
                Change::Stopped(signal) => self.stop_along(signal),
                Change::Nothing => {}
            }
            if let Some((set, supervisor)) = &mut self.supervised {
                supervisor.look(set);
            }
            let limit = if attached { supervisor::LOOK_EVERY } else { pause };
            pause = (pause * 2).min(supervisor::LOOK_EVERY);
            sleep_until_readable(&[self.signals.as_fd()], limit);
        }
    }

    /// Whether the library runs, or ran, in the program; `None` when the table of processes doesn't know it (any more).
    fn has_attached(&self) -> Option<bool> {
        let (ring, _) = self.ring?;
        let pid = self.program.pid.as_raw_pid() as u32;
        let (_, view) = ring.process_views().find(|(_, view)| view.pid == pid)?;
        // Whoever announces a second program in the same process has attached before.
        Some(view.state == ProcessState::Attached || view.execs > 1)
    }

    /// Looks whether the program has ended or was stopped; it stays a zombie until [`Self::reap`].
    fn look(&self) -> Change {
        let id = WaitId::Pid(self.program.pid);
        let stops = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
        if let Ok(Some(status)) = rustix::process::waitid(id, stops)
            && let Some(signal) = status.stopping_signal()
        {
            return Change::Stopped(signal);
        }
        let id = WaitId::Pid(self.program.pid);
        let ends = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match rustix::process::waitid(id, ends) {
            Ok(Some(status)) => Change::Ended(exit_of(&status)),
            _ => Change::Nothing,
        }
    }

    fn reap(&self) {
        let _ = rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(self.program.pid), WaitOptions::empty()));
    }

    fn pass_on(&self, arrived: Arrived) {
        let Arrived { signal, sender } = arrived;
        match (signal, sender) {
            // Looked at in every round.
            (libc::SIGCHLD, _) => {}
            (libc::SIGCONT, _) => {
                if is_stopped(self.program.pid) {
                    self.program.send(libc::SIGCONT);
                }
            }
            // The kernel tells only the leader of a session that the terminal is gone; without us that would be the
            // program. Everything else that comes from a terminal, the program got too.
            (libc::SIGHUP, None) => {
                if rustix::process::getsid(None).ok() == Some(rustix::process::getpid()) {
                    self.program.send(signal);
                }
            }
            (_, None) => {}
            // A program that signals its whole group has had its own.
            (_, Some(sender)) if is_descendant(sender, self.program.pid) => {}
            (_, Some(_)) => self.program.send(signal),
        }
    }

    /// Stops as the program was stopped, so that the caller's shell sees it, and goes on with it.
    fn stop_along(&self, signal: i32) {
        // `fg` continues the whole group at once, and the program may have gone on before this process was told that
        // it had stopped.
        std::thread::sleep(Duration::from_millis(20));
        if !is_stopped(self.program.pid) {
            return;
        }
        self.signals.stop_self(signal);
        if is_stopped(self.program.pid) {
            self.program.send(libc::SIGCONT);
        }
    }
}

fn exit_of(status: &WaitIdStatus) -> Exit {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(status), _) => Exit::Program(status as u8),
        (None, Some(signal)) => Exit::Program(128 + signal as u8),
        (None, None) => Exit::RunTrouble,
    }
}

/// State and parent of a process (proc_pid_stat(5)).
fn state_and_parent(pid: Pid) -> Option<(u8, Pid)> {
    let stat = std::fs::read(format!("/proc/{}/stat", pid.as_raw_pid())).ok()?;
    // The name, in parentheses, may hold anything.
    let after = stat.iter().rposition(|byte| *byte == b')')? + 2;
    let mut fields = stat[after..].split(|byte| *byte == b' ');
    let state = *fields.next()?.first()?;
    let parent = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    Some((state, Pid::from_raw(parent)?))
}

fn is_stopped(pid: Pid) -> bool {
    matches!(state_and_parent(pid), Some((b'T', _)))
}

/// True when `pid` is `ancestor` or comes from it.
fn is_descendant(pid: Pid, ancestor: Pid) -> bool {
    const GENERATIONS_MAX: usize = 64;
    std::iter::successors(Some(pid), |pid| state_and_parent(*pid).map(|(_, parent)| parent))
        .take(GENERATIONS_MAX)
        .any(|pid| pid == ancestor)
}

fn sleep_until_readable(descriptors: &[std::os::fd::BorrowedFd<'_>], limit: Duration) {
    let mut polled: Vec<_> = descriptors.iter().map(|descriptor| PollFd::new(descriptor, PollFlags::IN)).collect();
    let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) };
    // Interrupted or not, the caller looks at everything again.
    let _ = poll(&mut polled, Some(&limit));
}

/// Waits until every mirror that can be reached has applied everything up to now, and says what was not waited for.
fn wait_for_mirrors(set: &Set, supervisor: &mut Supervisor, signals: &Signals) {
    match wait_for_answer(set, supervisor, signals) {
        Ok(Some(answer)) => {
            for skipped in &answer.skipped {
                let name = &skipped.mirror;
                let reason = skipped.reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default();
                let then = match skipped.state {
                    MirrorState::Paused => format!("run: lockstep --set {} mirror resume {name}", set.name()),
                    MirrorState::Broken => format!("see: lockstep --set {} status", set.name()),
                    _ => "it is brought level when it is back".to_owned(),
                };
                eprintln!("lockstep: did not wait for mirror {name}, which is {}{reason}; {then}", skipped.state);
            }
            if !answer.ok {
                let reason = answer.reason.unwrap_or_default();
                eprintln!("lockstep: not every mirror is level: {reason}; see: lockstep --set {} status", set.name());
            }
        }
        Ok(None) => {
            eprintln!("lockstep: interrupted: mirrors may be behind; see: lockstep --set {} status", set.name());
        }
        Err(_) if supervisor::is_stopped(set) => {
            let set = set.name();
            eprintln!(
                "lockstep: the replayer was stopped: mirrors may be behind; start it: lockstep --set {set} replay"
            );
        }
        Err(error) => super::complain(&error.context("cannot wait for the mirrors")),
    }
}

/// How often a replayer that dies while it is waited for is started again.
const ATTEMPTS_MAX: u32 = 5;
/// How long an answer may take to arrive, once it has begun to.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// `None` when a person has interrupted it.
fn wait_for_answer(set: &Set, supervisor: &mut Supervisor, signals: &Signals) -> anyhow::Result<Option<Answer>> {
    let question = Question::Wait { mirror: None, seq: None, timeout_ms: None, purpose: Purpose::Run };
    let mut attempts = 0;
    loop {
        let asked = Asked::new(set, &question).and_then(|mut asked| match wait_readable(&asked, signals) {
            Waited::Readable => asked.answer(set, Some(ANSWER_MAX)).map(Some),
            Waited::Interrupted => Ok(None),
        });
        match asked {
            Ok(answer) => return Ok(answer),
            Err(ClientError::NoReplayer { .. } | ClientError::BrokenOff { .. })
                if attempts < ATTEMPTS_MAX && !supervisor::is_stopped(set) =>
            {
                // It died, or ended for want of work just before it was asked.
                attempts += 1;
                supervisor.ensure(set)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

enum Waited {
    Readable,
    Interrupted,
}

fn wait_readable(asked: &Asked, signals: &Signals) -> Waited {
    loop {
        while let Some(Arrived { signal, .. }) = signals.next() {
            match signal {
                libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT => return Waited::Interrupted,
                libc::SIGTSTP => signals.stop_self(signal),
                _ => {}
            }
        }
        let mut polled = [PollFd::new(asked, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        if poll(&mut polled, None).is_ok() && !polled[0].revents().is_empty() {
            return Waited::Readable;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a thread of its own, because collecting signals changes the thread's mask for good.
    fn exit(script: &'static str) -> Exit {
        let run = move || {
            let signals = Signals::collect().expect("signals can be collected");
            let arguments = ["-c", script].map(OsString::from);
            let program = start(&signals, "sh".as_ref(), &arguments, &[], None).expect("there is a shell");
            Wrapped { signals, program, supervised: None, ring: None, path: Path::new("sh") }.wait()
        };
        std::thread::spawn(run).join().expect("no panic")
    }

    #[test]
    fn the_programs_status_is_passed_on() {
        assert_eq!(exit("exit 0").code(), 0);
        assert_eq!(exit("exit 3").code(), 3);
        assert_eq!(exit("kill -9 $$").code(), 128 + 9);
        assert_eq!(exit("kill -TERM $$").code(), 128 + 15);
    }

    #[test]
    fn a_process_and_what_comes_from_it_are_its_own() {
        let me = rustix::process::getpid();
        let parent = rustix::process::getppid().expect("tests are started by something");
        assert!(is_descendant(me, me));
        assert!(is_descendant(me, parent));
        assert!(!is_descendant(parent, me));
        assert!(!is_stopped(me));
    }
}
