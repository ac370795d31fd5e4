//! A sandbox with a primary and two mirrors, in which a job runs bare and under `lockstep run`.
//!
//! Both mirrors are `current` before the wrapped run begins, so that what is compared afterwards came through the
//! ring and not through the first copy.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::binary;
use crate::compare;
use crate::place::{Ground, Place};
use crate::process::{self, Outcome, Running};

/// The longest that any one program may take.
pub const LIMIT: Duration = Duration::from_secs(180);

/// What runs, bare and wrapped.
#[derive(Debug, Clone, Default)]
pub struct Job {
    /// Program and arguments. `{outside}` stands for a directory outside the primary.
    pub argv: Vec<OsString>,
    /// Variables beside the usual ones.
    pub environment: Vec<(String, OsString)>,
}

impl Job {
    /// A program with its arguments.
    pub fn new<A: Into<OsString>>(argv: impl IntoIterator<Item = A>) -> Self {
        Self { argv: argv.into_iter().map(Into::into).collect(), environment: Vec::new() }
    }

    /// A script for bash.
    pub fn script(path: &Path) -> Self {
        Self::new([OsStr::new("bash"), path.as_os_str()])
    }

    /// With one more variable.
    pub fn with(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }
}

/// Whether anything may have been re-read: only where a process was killed in the middle of a change, or where one
/// could not be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repairs {
    None,
    Allowed,
}

/// A primary, two mirrors and a state directory, with the replayer running.
pub struct Sandbox {
    pub place: Place,
    replayer: Mutex<Option<Running>>,
    ground: Ground,
}

/// The three directories in which a job runs; all paths have the same length.
#[derive(Debug, Clone, Copy)]
enum Side {
    FirstBare,
    SecondBare,
    Primary,
}

impl Side {
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::FirstBare => ("bare1", "outs1"),
            Self::SecondBare => ("bare2", "outs2"),
            Self::Primary => ("prime", "outsp"),
        }
    }
}

impl Sandbox {
    /// Directories at `place`; nothing of lockstep runs yet.
    ///
    /// # Errors
    /// Why this machine cannot have such a place.
    pub fn new(place: Place) -> Result<Self, String> {
        let ground = place.make()?;
        let sandbox = Self { place, replayer: Mutex::new(None), ground };
        for side in [Side::FirstBare, Side::SecondBare, Side::Primary] {
            let (tree, outside) = side.names();
            sandbox.make_directory(&format!("{tree}/work"));
            sandbox.make_directory(outside);
        }
        for name in ["home", "temp", "output"] {
            sandbox.make_directory(name);
        }
        Ok(sandbox)
    }

    /// A path in the sandbox.
    pub fn path(&self, name: &str) -> PathBuf {
        self.ground.path.join(name)
    }

    /// The primary.
    pub fn primary(&self) -> PathBuf {
        self.path("prime")
    }

    /// The mirrors.
    pub fn mirrors(&self) -> [PathBuf; 2] {
        [self.path("mirr1"), self.path("mirr2")]
    }

    /// Makes a directory that belongs to the sandbox's user.
    pub fn make_directory(&self, name: &str) {
        let mut path = self.ground.path.clone();
        for part in Path::new(name) {
            path.push(part);
            if !path.exists() {
                fs::create_dir(&path).unwrap_or_else(|error| panic!("cannot make {}: {error}", path.display()));
                self.give(&path);
            }
        }
    }

    /// Gives a file to the sandbox's user.
    pub fn give(&self, path: &Path) {
        if let Some(id) = self.place.switch_to() {
            chown(path, Some(id), Some(id)).unwrap_or_else(|error| panic!("cannot chown {}: {error}", path.display()));
        }
    }

    /// A command as the sandbox's user, in a clean environment.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear();
        command.env("PATH", program_path());
        command.env("HOME", self.path("home"));
        command.env("TMPDIR", self.path("temp"));
        command.env("LANG", "C").env("LC_ALL", "C").env("TZ", "UTC").env("USER", "tester");
        // Object names in git depend on the time and the author.
        command.env("GIT_AUTHOR_DATE", "2001-02-03T04:05:06Z").env("GIT_COMMITTER_DATE", "2001-02-03T04:05:06Z");
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_ADVICE", "0");
        command.current_dir(&self.ground.path);
        if let Some(id) = self.place.switch_to() {
            command.uid(id).gid(id);
        }
        command
    }

    /// `lockstep --state-dir DIR ARGS`, as the sandbox's user.
    pub fn lockstep<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = self.command(binary::lockstep());
        command.arg("--state-dir").arg(self.path("state")).args(arguments);
        command
    }

    /// Runs a command of ours to its end.
    pub fn answer<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Outcome {
        process::run(&mut self.lockstep(arguments), &self.path("output"), LIMIT)
    }

    /// Like [`Self::answer`], for what must succeed.
    pub fn done<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Outcome {
        let mut command = self.lockstep(arguments);
        let outcome = process::run(&mut command, &self.path("output"), LIMIT);
        assert_eq!(outcome.status, 0, "{command:?} failed\nstdout: {}\nstderr: {}", outcome.stdout, outcome.stderr);
        outcome
    }

    /// The arguments of `run` that name primary and mirrors.
    pub fn run_arguments(&self) -> Vec<OsString> {
        let [first, second] = self.mirrors();
        let mut arguments: Vec<OsString> = vec!["run".into(), "--primary".into(), self.primary().into()];
        for mirror in [first, second] {
            arguments.extend(["--mirror".into(), mirror.into()]);
        }
        arguments
    }

    /// Makes the set, starts its replayer, and waits until both mirrors are `current`.
    pub fn start(&self) {
        let mut first = self.run_arguments();
        first.extend(["--".into(), "true".into()]);
        self.done(first);
        self.start_replayer();
        self.done(["wait", "--timeout", "60"]);
        let status = self.settled();
        assert!(status.is_level(), "the mirrors are not current at the start: {}", status.json);
        let found = self.differences();
        assert!(found.is_empty(), "the first copy differs from the primary: {found:#?}");
    }

    /// Starts `lockstep replay`, which lives as long as the sandbox.
    pub fn start_replayer(&self) {
        // The one that `run` started ends by itself, and a set has one replayer.
        let deadline = Instant::now() + LIMIT;
        while self.status().json["replayer"]["pid"].is_number() {
            assert!(Instant::now() < deadline, "the replayer that run started does not end");
            let _answer = self.answer(["stop"]);
        }
        let log = fs::File::create(self.path("output/replayer.log")).expect("a file for the log");
        let mut command = self.lockstep(["replay"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        *self.replayer.lock().expect("no test panics while it holds this") = Some(Running::start(&mut command));
        while !self.status().json["replayer"]["pid"].is_number() {
            assert!(Instant::now() < deadline, "the replayer does not start: {}", self.replayer_log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn replayer_log(&self) -> String {
        fs::read_to_string(self.path("output/replayer.log")).unwrap_or_default()
    }

    /// `status --json` of the set.
    pub fn status(&self) -> Status {
        let outcome = self.answer(["status", "--json"]);
        assert_eq!(outcome.status, 0, "status failed: {}", outcome.stderr);
        let json: Value = serde_json::from_str(&outcome.stdout)
            .unwrap_or_else(|error| panic!("status --json is not JSON ({error}): {}", outcome.stdout));
        Status { json: json["sets"].get(0).cloned().unwrap_or(Value::Null) }
    }

    /// The status once every mirror is `current` and complete, or after a while whatever it is.
    pub fn settled(&self) -> Status {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let status = self.status();
            if status.is_level() || Instant::now() > deadline {
                return status;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs `job` without lockstep, in a fresh directory.
    pub fn bare(&self, job: &Job) -> (Outcome, Vec<String>) {
        self.run_bare(job, Side::FirstBare)
    }

    /// Runs `job` a second time without lockstep.
    pub fn bare_again(&self, job: &Job) -> (Outcome, Vec<String>) {
        self.run_bare(job, Side::SecondBare)
    }

    fn run_bare(&self, job: &Job, side: Side) -> (Outcome, Vec<String>) {
        let argv = self.argv_at(job, side);
        let mut command = self.command(&argv[0]);
        command.args(&argv[1..]);
        let outcome = self.run_at(&mut command, job, side);
        let outline = compare::outline(&self.path(side.names().0).join("work")).expect("a readable tree");
        (outcome, outline)
    }

    /// Runs `job` under `lockstep run`, in the primary.
    pub fn wrapped(&self, job: &Job) -> Outcome {
        self.wrapped_below(job, None)
    }

    /// Like [`Self::wrapped`], with a command before `lockstep run` (a tracer, say).
    pub fn wrapped_below(&self, job: &Job, before: Option<&[OsString]>) -> Outcome {
        let mut command = match before {
            None => self.lockstep(self.run_arguments()),
            Some(before) => {
                let mut command = self.command(&before[0]);
                command.args(&before[1..]).arg(binary::lockstep());
                command.arg("--state-dir").arg(self.path("state")).args(self.run_arguments());
                command
            }
        };
        command.arg("--").args(self.argv_at(job, Side::Primary));
        self.run_at(&mut command, job, Side::Primary)
    }

    fn argv_at(&self, job: &Job, side: Side) -> Vec<OsString> {
        let outside = self.path(side.names().1);
        let outside = outside.to_str().expect("a plain path");
        let plain = |word: &OsString| word.to_str().map(|text| text.replace("{outside}", outside).into());
        job.argv.iter().map(|word| plain(word).unwrap_or_else(|| word.clone())).collect()
    }

    fn run_at(&self, command: &mut Command, job: &Job, side: Side) -> Outcome {
        command.envs(job.environment.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.path(side.names().0).join("work"));
        let mut outcome = process::run(command, &self.path("output"), LIMIT);
        let (tree, outside) = side.names();
        for text in [&mut outcome.stdout, &mut outcome.stderr] {
            for (name, word) in [(tree, "<tree>"), (outside, "<outside>")] {
                *text = text.replace(self.path(name).to_str().expect("a plain path"), word);
            }
        }
        outcome
    }

    /// What the tree of the wrapped run looks like.
    pub fn outline(&self) -> Vec<String> {
        compare::outline(&self.primary().join("work")).expect("a readable tree")
    }

    /// All differences between the primary and either mirror.
    pub fn differences(&self) -> Vec<String> {
        let mut found = Vec::new();
        for mirror in self.mirrors() {
            let differences = compare::trees(&self.primary(), &mirror).expect("readable trees");
            let name = mirror.file_name().unwrap_or_default().to_string_lossy().into_owned();
            found.extend(differences.iter().map(|difference| format!("{name}: {difference}")));
        }
        found
    }

    /// Runs `work` and asserts that all it changed came to both mirrors by records alone.
    ///
    /// Returns what `work` returned and how many records it made.
    pub fn mirrored<T>(&self, work: impl FnOnce() -> T) -> (T, u64) {
        self.mirrored_with(Repairs::None, work)
    }

    /// Like [`Self::mirrored`], for work that may need repairs.
    pub fn mirrored_with<T>(&self, repairs: Repairs, work: impl FnOnce() -> T) -> (T, u64) {
        let before = self.settled();
        assert!(before.is_level(), "not current before the program starts: {}", before.json);
        let (result, resynced) = self.watched(work);
        if repairs == Repairs::None {
            assert!(!resynced, "a mirror was resynced while the program ran\n{}", self.replayer_log());
        }
        let after = self.settled();
        let found = self.differences();
        let log = self.replayer_log();
        assert!(found.is_empty(), "mirrors differ from the primary: {found:#?}\n{}\n{log}", after.json);
        assert!(after.is_level(), "not current, complete and without repairs at the end: {}\n{log}", after.json);
        if repairs == Repairs::None {
            assert_eq!(after.repairs(), before.repairs(), "something was repaired: {}\n{log}", after.json);
            assert_eq!(after.resyncs(), before.resyncs(), "something was resynced: {}\n{log}", after.json);
        }
        let verify = self.answer(["verify"]);
        assert_eq!(verify.status, 0, "verify: {}\n{}", verify.stdout, verify.stderr);
        assert_eq!(verify.stdout, "", "verify says that all is the same and prints");
        self.second_opinion();
        let records = after.records() - before.records();
        (result, records)
    }

    /// Runs `work` while the states of the mirrors are sampled; says whether one was `resyncing`.
    fn watched<T>(&self, work: impl FnOnce() -> T) -> (T, bool) {
        let (ended, resynced) = (AtomicBool::new(false), AtomicBool::new(false));
        let result = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    if self.status().states().iter().any(|state| state == "resyncing") {
                        resynced.store(true, Ordering::Relaxed);
                    }
                    std::thread::sleep(Duration::from_millis(200));
                }
            });
            let ends = EndsOnDrop(&ended);
            let result = work();
            drop(ends);
            result
        });
        (result, resynced.into_inner())
    }

    /// Asks the comparer that was written apart from this project, where it is at hand.
    fn second_opinion(&self) {
        let Some(treecmp) = shared("oracle/treecmp") else { return };
        let [first, second] = self.mirrors();
        let mut command = Command::new(treecmp);
        command.env("PATH", program_path());
        command.args(["-x", ".lockstep"]).arg(self.primary()).args([first, second]);
        let outcome = process::run(&mut command, &self.path("output"), LIMIT);
        assert_eq!(outcome.status, 0, "treecmp: {}\n{}", outcome.stdout, outcome.stderr);
    }
}

/// Lets the sampling thread end also when the work panics.
struct EndsOnDrop<'a>(&'a AtomicBool);

impl Drop for EndsOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let keep = std::thread::panicking() && std::env::var_os("LOCKSTEP_KEEP").is_some();
        let ring = self.ring_files();
        if self.path("state").exists() && !keep {
            let mut stop = self.lockstep(["stop", "--now"]);
            stop.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let _ended_or_not = Running::start(&mut stop).wait(Duration::from_secs(20));
        }
        if let Ok(mut replayer) = self.replayer.lock() {
            drop(replayer.take());
        }
        for file in ring {
            let _gone_already = fs::remove_file(file);
        }
        if keep {
            eprintln!("kept: {}", self.ground.path.display());
            self.ground.keep();
        }
    }
}

impl Sandbox {
    /// The rings, which lie in shared memory; a link in each set's directory leads to its own.
    fn ring_files(&self) -> Vec<PathBuf> {
        let sets = fs::read_dir(self.path("state/sets")).into_iter().flatten().flatten();
        let rings = sets.filter_map(|set| fs::read_link(set.path().join("ring")).ok());
        rings.filter(|ring| ring.starts_with("/dev/shm")).collect()
    }
}

/// What `status --json` says of the set.
#[derive(Debug, Clone)]
pub struct Status {
    pub json: Value,
}

impl Status {
    /// The state word of each mirror.
    pub fn states(&self) -> Vec<String> {
        self.mirrors().iter().map(|mirror| mirror["state"].as_str().unwrap_or("?").to_owned()).collect()
    }

    /// The mirrors, as they stand in the JSON.
    pub fn mirrors(&self) -> &[Value] {
        self.json["mirrors"].as_array().map_or(&[], Vec::as_slice)
    }

    /// Whether there are two mirrors and both are `current`.
    pub fn is_current(&self) -> bool {
        self.mirrors().len() == 2 && self.states().iter().all(|state| state == "current")
    }

    /// Whether both mirrors are `current`, complete and have nothing left to repair.
    pub fn is_level(&self) -> bool {
        let whole = |mirror: &Value| mirror["complete"] == true && mirror["pending_repairs"] == 0;
        self.is_current() && self.mirrors().iter().all(whole)
    }

    /// Whether each mirror calls itself complete.
    pub fn complete(&self) -> Vec<bool> {
        self.mirrors().iter().map(|mirror| mirror["complete"] == true).collect()
    }

    /// Records of the set.
    pub fn records(&self) -> u64 {
        self.coverage("records")
    }

    /// Repairs of the set.
    pub fn repairs(&self) -> u64 {
        self.coverage("repairs")
    }

    /// Resyncs of both mirrors, as far as the status counts them.
    pub fn resyncs(&self) -> u64 {
        self.mirrors().iter().filter_map(|mirror| mirror["resyncs"].as_u64()).sum()
    }

    /// What could not be followed, as (reason, program).
    pub fn not_followed(&self) -> Vec<(String, String)> {
        let list = self.json["coverage"]["not_followed"].as_array().cloned().unwrap_or_default();
        let text = |item: &Value, key: &str| item[key].as_str().unwrap_or("?").to_owned();
        list.iter().map(|item| (text(item, "reason"), text(item, "program"))).collect()
    }

    fn coverage(&self, key: &str) -> u64 {
        let value = self.json["coverage"][key].as_u64();
        value.unwrap_or_else(|| panic!("coverage.{key} is missing: {}", self.json))
    }
}

/// A file of the folder that lies beside the project on the machines where it is developed, if it is there.
pub fn shared(name: &str) -> Option<PathBuf> {
    let folder = match std::env::var_os("LOCKSTEP_SHARED") {
        Some(folder) => PathBuf::from(folder),
        None => binary::source("../../shared"),
    };
    Some(folder.join(name)).filter(|path| path.exists())
}

/// Where programs are looked for: the usual directories, and PostgreSQL's own.
pub fn program_path() -> OsString {
    let mut path = OsString::from("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    for entry in fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten() {
        path.push(":");
        path.push(entry.path().join("bin"));
    }
    path
}

/// The programs of `names` that are not installed.
pub fn missing_programs(names: &str) -> Vec<String> {
    let path = program_path();
    let exists = |name: &&str| std::env::split_paths(&path).any(|directory| directory.join(name).exists());
    names.split_whitespace().filter(|name| !exists(name)).map(str::to_owned).collect()
}

/// Asserts that the wrapped run said what the bare runs said, where these agree with each other.
pub fn assert_same_words(what: &str, first: &str, second: &str, wrapped: &str) {
    if first == second {
        assert_eq!(wrapped, first, "{what}: wrapped (left) and bare (right) say different things");
        return;
    }
    let (first, second): (Vec<_>, Vec<_>) = (first.lines().collect(), second.lines().collect());
    let wrapped: Vec<_> = wrapped.lines().collect();
    if first.len() != second.len() {
        let steady = first.iter().filter(|line| second.contains(line));
        let lost: Vec<_> = steady.filter(|line| !wrapped.contains(line)).collect();
        assert!(lost.is_empty(), "{what}: both bare runs say this, the wrapped one does not: {lost:#?}");
        return;
    }
    assert_eq!(wrapped.len(), first.len(), "{what}: another number of lines: {wrapped:#?}");
    for (at, line) in first.iter().enumerate().filter(|(at, line)| second[*at] == **line) {
        assert_eq!(wrapped[at], *line, "{what}: line {} differs", at + 1);
    }
}
