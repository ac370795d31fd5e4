//! The control socket: how the other commands talk to a running replayer.
//!
//! A connection carries one question and one answer, each a line of JSON. `freeze` is the exception: what it asks for
//! lasts as long as the connection. Nothing here waits for a mirror's I/O but what is meant to: `wait` and `freeze`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use journal::claims::Position;
use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};

use crate::backlog::FREEZE_MAX;
use crate::mirror::{Mirror, Order};
use crate::replay::{Event, Replayer};
use crate::set::SocketAddress;
use crate::status::{MirrorState, SetStatus};

/// A question.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Question {
    /// How is everything?
    Status,
    /// Read `set.toml` again.
    Reload,
    /// Answer when mirrors have applied something.
    Wait {
        /// Name of one mirror; all when none.
        #[serde(default)]
        mirror: Option<String>,
        /// Sequence number; everything up to now when none.
        #[serde(default)]
        seq: Option<u64>,
        /// Give up after these milliseconds.
        #[serde(default)]
        timeout_ms: Option<u64>,
        /// What to do about mirrors that can't be waited for.
        #[serde(default, rename = "for")]
        purpose: Purpose,
    },
    /// End.
    Stop {
        /// Without applying the rest first.
        #[serde(default)]
        now: bool,
    },
    /// Apply nothing to a mirror any more.
    Pause {
        /// Its name.
        mirror: String,
    },
    /// Go on with a mirror.
    Resume {
        /// Its name.
        mirror: String,
    },
    /// Compare a mirror as a whole with the primary.
    Resync {
        /// Its name.
        mirror: String,
    },
    /// Keep all wrapped programs out of operations, with every mirror level, while the connection lasts.
    Freeze {
        /// For at most these milliseconds.
        ms: u64,
    },
}

/// On whose behalf is waited (SPEC.md, "Fine print").
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// `run`: mirrors that can't be reached are skipped and named.
    Run,
    /// `wait`: `broken` and `paused` are a no at once, `away` is waited for.
    #[default]
    Wait,
}

/// An answer.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// The answer is yes.
    pub ok: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Mirrors that were not waited for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Skipped>,
    /// The status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<SetStatus>,
    /// The question could not be dealt with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A mirror that was not waited for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Skipped {
    /// Its name.
    pub mirror: String,
    /// Its state.
    pub state: MirrorState,
    /// What is wrong with it.
    pub reason: Option<String>,
}

impl Answer {
    fn yes() -> Self {
        Self { ok: true, ..Self::default() }
    }

    fn no(reason: impl Into<String>) -> Self {
        Self { reason: Some(reason.into()), ..Self::default() }
    }

    fn error(reason: impl Into<String>) -> Self {
        Self { error: Some(reason.into()), ..Self::default() }
    }
}

/// Longest question that is read.
const QUESTION_BYTES_MAX: u64 = 64 * 1024;
/// How long a client may take to ask, or to take its answer.
const CLIENT_MAX: Duration = Duration::from_secs(10);
/// Connections at a time; more wait in the socket's queue.
const CONNECTIONS_MAX: usize = 256;

/// The listening socket.
pub struct Server {
    address: SocketAddress,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    closed: AtomicBool,
    connections: AtomicUsize,
}

impl Server {
    /// Listens, and answers from threads of its own.
    ///
    /// # Errors
    /// What kept the socket from being made.
    pub fn start(replayer: &Arc<Replayer>) -> anyhow::Result<Self> {
        let address = replayer.set().control_address()?;
        let listener = address.listen()?;
        let state = Arc::new(State::default());
        let (shared, inner) = (Arc::clone(replayer), Arc::clone(&state));
        let thread = std::thread::Builder::new().name("control".into());
        thread.spawn(move || listen(&listener, &shared, &inner)).context("cannot start a thread")?;
        Ok(Self { address, state })
    }

    /// True while somebody is being answered.
    pub fn is_busy(&self) -> bool {
        self.state.connections.load(Ordering::SeqCst) != 0
    }

    /// Takes no new connections; those that are open get their answers.
    pub fn close(self) {
        self.state.closed.store(true, Ordering::SeqCst);
        // The listener is blocked in accept: this connection lets it see that it is closed.
        let _ = UnixStream::connect(self.address.path());
        let _ = std::fs::remove_file(self.address.path());
    }
}

fn listen(listener: &UnixListener, replayer: &Arc<Replayer>, state: &Arc<State>) {
    for stream in listener.incoming() {
        if state.closed.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else {
            // Out of descriptors, say: others will be given back.
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        while state.connections.load(Ordering::SeqCst) >= CONNECTIONS_MAX {
            std::thread::sleep(Duration::from_millis(10));
        }
        state.connections.fetch_add(1, Ordering::SeqCst);
        let (replayer, inner) = (Arc::clone(replayer), Arc::clone(state));
        let spawned = std::thread::Builder::new().name("control".into()).spawn(move || {
            if let Err(error) = serve(&replayer, stream) {
                log::debug!("a client of the control socket went away: {error}");
            }
            inner.connections.fetch_sub(1, Ordering::SeqCst);
        });
        if let Err(error) = spawned {
            log::warn!("cannot start a thread to answer: {error}");
            state.connections.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

fn serve(replayer: &Replayer, mut stream: UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(CLIENT_MAX))?;
    stream.set_write_timeout(Some(CLIENT_MAX))?;
    let mut line = String::new();
    BufReader::new((&stream).take(QUESTION_BYTES_MAX)).read_line(&mut line)?;
    if line.is_empty() {
        return Ok(());
    }
    let question = match serde_json::from_str(&line) {
        Ok(question) => question,
        Err(error) => return say(&mut stream, &Answer::error(format!("cannot understand the question: {error}"))),
    };
    log::debug!("asked: {question:?}");
    let answer = match question {
        Question::Status => Answer { set: Some(replayer.status()), ..Answer::yes() },
        Question::Reload => reload(replayer),
        Question::Wait { mirror, seq, timeout_ms, purpose } => {
            let deadline = timeout_ms.and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms)));
            match wait(replayer, &stream, mirror.as_deref(), seq, deadline, purpose) {
                Some(answer) => answer,
                None => return Ok(()),
            }
        }
        Question::Stop { now } => return stop(replayer, &mut stream, now),
        Question::Pause { mirror } => set_paused(replayer, &mirror, true),
        Question::Resume { mirror } => set_paused(replayer, &mirror, false),
        Question::Resync { mirror } => order(replayer, &mirror, Order::Resync),
        Question::Freeze { ms } => return freeze(replayer, &mut stream, Duration::from_millis(ms)),
    };
    say(&mut stream, &answer)
}

fn say(stream: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_string(answer).expect("texts, numbers and lists of them");
    line.push('\n');
    stream.write_all(line.as_bytes())
}

fn has_hung_up(stream: &UnixStream) -> bool {
    let mut polled = [PollFd::new(stream, PollFlags::HUP)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut polled, Some(&now)), Ok(events) if events > 0)
}

fn find(replayer: &Replayer, name: &str) -> Option<Arc<Mirror>> {
    replayer.backlog.mirrors().into_iter().find(|mirror| mirror.settings.name == name)
}

fn unknown(name: &str) -> Answer {
    Answer::error(format!("there is no mirror {name:?} in this set"))
}

fn reload(replayer: &Replayer) -> Answer {
    let (answer, answered) = crossbeam_channel::bounded(1);
    replayer.tell(Event::Reload { answer });
    match answered.recv() {
        Ok(Ok(())) => Answer::yes(),
        Ok(Err(reason)) => Answer::error(reason),
        Err(_) => Answer::error("the replayer is ending"),
    }
}

fn order(replayer: &Replayer, name: &str, order: Order) -> Answer {
    match find(replayer, name) {
        Some(mirror) => {
            mirror.order(order);
            Answer::yes()
        }
        None => unknown(name),
    }
}

fn set_paused(replayer: &Replayer, name: &str, paused: bool) -> Answer {
    let Some(mirror) = find(replayer, name) else { return unknown(name) };
    let id = mirror.settings.id;
    let stored = replayer.set().change::<_, crate::set::SetError>(|settings| {
        if let Some(settings) = settings.mirrors.iter_mut().find(|settings| settings.id == id) {
            settings.paused = paused;
        }
        Ok(())
    });
    if let Err(error) = stored {
        return Answer::error(error.to_string());
    }
    mirror.order(if paused { Order::Pause } else { Order::Resume });
    Answer::yes()
}

/// Waits for mirrors; `None` when the client has gone away.
fn wait(
    replayer: &Replayer,
    stream: &UnixStream,
    name: Option<&str>,
    seq: Option<u64>,
    deadline: Option<Instant>,
    purpose: Purpose,
) -> Option<Answer> {
    if name.is_some_and(|name| find(replayer, name).is_none()) {
        return Some(unknown(name.unwrap_or_default()));
    }
    // What was not followed and has ended, and what went without a record, is compared first, and that is part of what
    // is waited for.
    replayer.scan();
    let asked = Instant::now();
    while replayer.has_unseen_losses() && asked.elapsed() < LOSSES_SEEN_WITHIN && !has_hung_up(stream) {
        std::thread::sleep(Duration::from_millis(10));
    }
    replayer.mappings.flush(&replayer.backlog.ring);
    let goal = Goal { position: replayer.backlog.ring.claims().end(), seq };
    let chosen = || {
        let mirrors = replayer.backlog.mirrors();
        mirrors.into_iter().filter(|mirror| name.is_none_or(|name| mirror.settings.name == name)).collect::<Vec<_>>()
    };
    for mirror in chosen() {
        mirror.order(Order::Settle(goal.position));
    }
    let outcome = replayer.backlog.changes.wait_for(deadline, || {
        if has_hung_up(stream) {
            return Some(None);
        }
        verdict(replayer, &chosen(), goal, purpose).map(Some)
    });
    match outcome {
        Some(answer) => answer,
        None => {
            let behind = chosen().into_iter().filter(|mirror| !goal.is_reached_by(replayer, mirror));
            let behind: Vec<String> =
                behind.map(|mirror| format!("mirror {} is {}", mirror.settings.name, mirror.facts().state)).collect();
            Some(Answer::no(format!("timed out: {}", behind.join(", "))))
        }
    }
}

/// How soon the replayer's main loop, which looks once a second, has taken in what went without a record.
const LOSSES_SEEN_WITHIN: Duration = Duration::from_secs(5);

/// What a mirror has to reach.
#[derive(Clone, Copy)]
struct Goal {
    position: Position,
    seq: Option<u64>,
}

impl Goal {
    fn is_reached_by(self, replayer: &Replayer, mirror: &Mirror) -> bool {
        let facts = mirror.facts();
        if facts.needs_resync || facts.state == MirrorState::Resyncing {
            return false;
        }
        match self.seq {
            Some(seq) => mirror.place.load().seq >= seq,
            None => {
                let repaired = facts.incomplete_since == 0 || replayer.last_scan().not_followed_living > 0;
                repaired && facts.pending_repairs == 0 && mirror.has_settled(self.position)
            }
        }
    }
}

/// The answer to a wait, as soon as there is one.
fn verdict(replayer: &Replayer, mirrors: &[Arc<Mirror>], goal: Goal, purpose: Purpose) -> Option<Answer> {
    let mut skipped = Vec::new();
    for mirror in mirrors {
        let facts = mirror.facts();
        let reached = goal.is_reached_by(replayer, mirror);
        let skip = match (facts.state, purpose) {
            (MirrorState::Away | MirrorState::Broken | MirrorState::Paused, Purpose::Run) => true,
            (MirrorState::Broken | MirrorState::Paused, Purpose::Wait) if !reached => {
                return Some(Answer::no(format!("mirror {} is {}", mirror.settings.name, facts.state)));
            }
            _ => false,
        };
        if skip {
            let reason = facts.last_error;
            skipped.push(Skipped { mirror: mirror.settings.name.clone(), state: facts.state, reason });
        } else if !reached {
            return None;
        }
    }
    Some(Answer { skipped, ..Answer::yes() })
}

fn stop(replayer: &Replayer, stream: &mut UnixStream, now: bool) -> io::Result<()> {
    let (done, is_done) = crossbeam_channel::bounded(0);
    replayer.tell(Event::Stop { now, done: Some(done) });
    let answer = match is_done.recv() {
        Ok(()) => Answer::yes(),
        Err(_) => Answer::error("the replayer was ending already"),
    };
    let said = say(stream, &answer);
    // Tells the main loop that the answer is out.
    let _ = is_done.recv_timeout(Duration::from_secs(1));
    said
}

fn freeze(replayer: &Replayer, stream: &mut UnixStream, limit: Duration) -> io::Result<()> {
    const ATTEMPT: Duration = Duration::from_millis(50);
    const PAUSE: Duration = Duration::from_millis(20);
    const GIVE_UP: Duration = Duration::from_secs(5);
    let backlog = &replayer.backlog;
    let begun = Instant::now();
    let frozen = loop {
        replayer.mappings.flush(&backlog.ring);
        if let Some(frozen) = backlog.freeze(ATTEMPT) {
            break frozen;
        }
        if begun.elapsed() > GIVE_UP {
            return say(stream, &Answer::no("a program is inside a change that does not end"));
        }
        std::thread::sleep(PAUSE);
    };
    let until = Instant::now() + limit.min(FREEZE_MAX);
    let goal = backlog.ring.claims().end();
    let served = |mirror: &Mirror| matches!(mirror.facts().state, MirrorState::Current | MirrorState::CatchingUp);
    for mirror in backlog.mirrors() {
        mirror.order(Order::Settle(goal));
    }
    let level = backlog.changes.wait_for(Some(until), || {
        let level = backlog.mirrors().iter().all(|mirror| !served(mirror) || mirror.has_settled(goal));
        (level || !frozen.holds() || has_hung_up(stream)).then_some(level)
    });
    if level != Some(true) || !frozen.holds() {
        drop(frozen);
        return say(stream, &Answer::no("the mirrors did not come level while the programs were held"));
    }
    let away = backlog.mirrors().into_iter().filter(|mirror| !served(mirror)).map(|mirror| {
        let facts = mirror.facts();
        Skipped { mirror: mirror.settings.name.clone(), state: facts.state, reason: facts.last_error }
    });
    say(stream, &Answer { skipped: away.collect(), ..Answer::yes() })?;
    while frozen.holds() && Instant::now() < until {
        let left = until.saturating_duration_since(Instant::now()).min(Duration::from_millis(100));
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        // The client says nothing more; the end of its connection ends the freeze.
        match stream.read(&mut [0; 64]) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
