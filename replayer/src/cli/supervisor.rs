//! Starts the replayer of a set when none runs, and again when it dies while a program depends on it.

use super::launch;
use crate::client::{self, ClientError};
use crate::control::Question;
use crate::set::Set;
use anyhow::Context;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Child;
use std::time::{Duration, Instant};

/// How long a replayer may take until it answers.
const START_MAX: Duration = Duration::from_secs(30);
/// How long it may take to read its settings.
const RELOAD_MAX: Duration = Duration::from_secs(10);
/// How often a replayer that dies is started again for one program, before it is left alone.
const RESTARTS_MAX: u32 = 5;
/// How often a look is taken whether it lives.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A log that is longer is put aside when a replayer starts.
const LOG_BYTES_MAX: u64 = 4 << 20;

/// Present while a person wants no replayer: `stop` makes it, `run` and `replay` remove it.
const STOPPED: &str = "stopped";

/// Sees to it that a set's replayer runs.
#[derive(Debug)]
pub struct Supervisor {
    verbosity: &'static [&'static str],
    child: Option<Child>,
    looked: Instant,
    starting_since: Option<Instant>,
    /// How often it was started again.
    pub restarts: u32,
}

impl Supervisor {
    /// Supervises nothing yet.
    pub fn new(verbosity: &'static [&'static str]) -> Self {
        Self { verbosity, child: None, looked: Instant::now(), starting_since: None, restarts: 0 }
    }

    /// Has a replayer that knows the set's present settings; returns when it answers.
    ///
    /// # Errors
    /// With the last line of its log, when it can't be started or doesn't answer.
    pub fn ensure(&mut self, set: &Set) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_MAX;
        loop {
            match client::ask(set, &Question::Reload, RELOAD_MAX) {
                Ok(_) => return Ok(()),
                Err(ClientError::NoReplayer { .. } | ClientError::BrokenOff { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            let ended = self.child.as_mut().is_none_or(has_ended);
            // Otherwise somebody else's is starting, or ending.
            if ended && set.has_no_replayer()? {
                if self.child.take().is_some() {
                    anyhow::bail!("cannot start the replayer of the set {}: {}", set.name(), last_words(set));
                }
                self.start(set)?;
            }
            if Instant::now() > deadline {
                anyhow::bail!(
                    "cannot start the replayer of the set {}: it does not answer within {} s; {}",
                    set.name(),
                    START_MAX.as_secs(),
                    last_words(set)
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Looks, once in a while, whether the replayer lives, and starts it again if it has died. Never waits for it.
    pub fn look(&mut self, set: &Set) {
        let died = self.child.as_mut().is_some_and(has_ended);
        if !died && self.looked.elapsed() < LOOK_EVERY {
            return;
        }
        self.looked = Instant::now();
        if died {
            self.child = None;
        }
        if client::replayer_listens(set) {
            self.starting_since = None;
            return;
        }
        let starting = self.starting_since.is_some_and(|since| since.elapsed() < START_MAX);
        if self.restarts >= RESTARTS_MAX || is_stopped(set) || (starting && self.child.is_some()) {
            return;
        }
        // Somebody else's replayer that is starting or ending holds the lock; the next look will see.
        if set.has_no_replayer().unwrap_or(false) {
            self.restarts += 1;
            if let Err(error) = self.start(set) {
                log::debug!("cannot start the replayer again: {error:#}");
            }
        }
    }

    fn start(&mut self, set: &Set) -> anyhow::Result<()> {
        let path = set.file("replayer.log");
        if path.metadata().is_ok_and(|data| data.len() > LOG_BYTES_MAX) {
            std::fs::rename(&path, set.file("replayer.log.1")).with_context(|| format!("cannot put {path:?} aside"))?;
        }
        let log = File::options().append(true).create(true).mode(0o600).open(&path);
        let log = log.with_context(|| format!("cannot open the log {path:?}"))?;
        let child = launch::start_replayer(set.state_dir(), set.name(), log, self.verbosity)
            .with_context(|| format!("cannot start the replayer of the set {}", set.name()))?;
        self.child = Some(child);
        self.starting_since = Some(Instant::now());
        Ok(())
    }
}

/// Where SIGCHLD is ignored, the kernel forgets a child that has ended, and asking for it is an error.
fn has_ended(child: &mut Child) -> bool {
    !matches!(child.try_wait(), Ok(None))
}

/// Notes that a person wants no replayer for now.
pub fn set_stopped(set: &Set) -> std::io::Result<()> {
    File::options().write(true).create(true).truncate(true).mode(0o600).open(set.file(STOPPED)).map(drop)
}

/// Notes that a person wants one again.
pub fn clear_stopped(set: &Set) {
    // If it isn't there, that is what was wanted; if it can't be removed, nor can the replayer work there.
    let _ = std::fs::remove_file(set.file(STOPPED));
}

/// True when a person wants no replayer.
pub fn is_stopped(set: &Set) -> bool {
    set.file(STOPPED).exists()
}

/// The last line of the replayer's log, and where the rest is.
fn last_words(set: &Set) -> String {
    let path = set.file("replayer.log");
    let tail = || {
        let mut file = File::open(&path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(4096)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        std::io::Result::Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let tail = tail().unwrap_or_default();
    let last = tail.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    format!("{last}\nsee its log: {}", path.display())
}
