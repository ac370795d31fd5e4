//! The replayer process: one sequencer, a worker a mirror, a thread for the control socket, and this main loop.
//!
//! The main loop owns nothing that a mirror's I/O could hold up. Once a second it looks at the processes, at what was
//! lost, at workers that hang, and stores how far everything has come.

mod start;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use crate::backlog::Backlog;
use crate::control;
use crate::coverage::{Coverage, Scan, monotonic_ns};
use crate::cursor::{ProgressFile, RESERVED, SharedCursor, reached};
use crate::exit::Exit;
use crate::held::{self, Held};
use crate::mappings::{self, Mappings};
use crate::mirror::{Mirror, Order};
use crate::ring_file::RingFile;
use crate::sequencer::Request;
use crate::set::{ReplayerLock, Set};
use crate::status::MirrorState;
use start::{Start, start_sequencer, start_worker};

/// How a replayer is to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lifetime {
    /// Until it is told to stop.
    UntilStopped,
    /// Until no wrapped process lives and every mirror is current or paused: as `run` starts it.
    WhileNeeded,
}

/// What the main loop is told.
#[derive(Debug)]
pub enum Event {
    /// End: drained, or at once.
    Stop {
        /// Leave the rest in the ring.
        now: bool,
        /// Told when everything has ended; what comes back says that the answer has been delivered.
        done: Option<Sender<()>>,
    },
    /// SIGTERM or SIGINT.
    Signal,
    /// `set.toml` has changed.
    Reload {
        /// What became of it.
        answer: Sender<Result<(), String>>,
    },
    /// The reserved sequence numbers run low.
    Reserve,
    /// A program that can't be followed was noted in the ring.
    NotFollowed {
        /// Seconds of CLOCK_REALTIME before it began.
        since: u64,
    },
    /// The ring was damaged.
    Damaged,
}

/// What the threads of a replayer share.
pub struct Replayer {
    /// The primary.
    pub primary: PathBuf,
    /// What lies between the slowest mirror and the sequencer.
    pub backlog: Backlog,
    /// `progress.json`.
    pub progress: ProgressFile,
    /// What was followed and what was not.
    pub coverage: Coverage,
    /// Stores through shared mappings, and asynchronous writes.
    pub mappings: Mappings,
    /// How many names the sequencer has bound.
    pub names: AtomicUsize,
    /// When this replayer began.
    pub since: SystemTime,
    /// Records sequenced before this ring was made.
    pub records_before: u64,
    /// The sequence number that this ring began after.
    pub ring_first_seq: u64,
    set: Mutex<Set>,
    last_scan: Mutex<Scan>,
    sequencer: Sender<Request>,
    events: Sender<Event>,
}

/// How often the main loop looks around.
const TICK: Duration = Duration::from_secs(1);
/// How often progress is stored while records come in.
const SAVE_EVERY: Duration = Duration::from_secs(5);
/// How long a replayer that is no longer needed lingers.
const LINGER: Duration = Duration::from_secs(1);
/// How long one operation on a mirror may take while the ring runs full, before the mirror counts as hung.
const HUNG_NS: u64 = 10_000_000_000;
/// Names above which those of files that nobody holds are forgotten.
const NAMES_MIN: usize = 20_000;
/// How long programs may take to come out of their operations for that.
const FREEZE: Duration = Duration::from_millis(20);
/// How long workers get to end.
const END_MAX: Duration = Duration::from_secs(5);
/// How long a drained stop by a signal may take: systemd kills after 90 seconds.
const DRAIN_MAX_SIGNAL: Duration = Duration::from_secs(60);

/// Runs the replayer of `set` until it ends.
///
/// # Errors
/// What kept it from starting. A mirror in trouble is never a reason to end.
pub fn main(set: Set, lifetime: Lifetime) -> anyhow::Result<Exit> {
    let Some(lock) = set.lock_replayer()? else {
        eprintln!("lockstep: another replayer serves the set {:?} already", set.name());
        eprintln!("lockstep: see it with: lockstep --set {} status", set.name());
        return Ok(Exit::Trouble);
    };
    Ok(Running::start(set, lock)?.serve(lifetime))
}

impl Replayer {
    /// Tells the main loop.
    pub fn tell(&self, event: Event) {
        // The main loop ends last, so a failure only means that this event has come too late to matter.
        let _ = self.events.send(event);
    }

    /// Asks the sequencer.
    pub fn ask_sequencer(&self, request: Request) {
        let _ = self.sequencer.send(request);
        self.backlog.ring.wake_consumer();
    }

    /// The set, as its settings were last read.
    pub fn set(&self) -> MutexGuard<'_, Set> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure on disk that numbers after `seq` may be given out; returns up to which.
    pub fn reserve_after(&self, seq: u64) -> u64 {
        let ceiling = seq + RESERVED;
        let stored = self.progress.update(|progress| {
            progress.ceiling_seq = progress.ceiling_seq.max(ceiling);
            progress.at_rest = false;
        });
        if let Err(error) = stored {
            // To stop here would stop the programs; the numbers only repeat if the ring is lost as well.
            log::error!("{error}; sequence numbers go on without being reserved");
        }
        ceiling
    }

    /// Looks at the processes, and has mirrors compared after what was not followed has ended.
    pub fn scan(&self) -> Scan {
        let scan = self.coverage.scan(&self.backlog.ring);
        if scan.newly_not_followed > 0 {
            self.count_repairs(scan.newly_not_followed as u64);
            self.mark_incomplete(scan.since);
        }
        if scan.not_followed_living == 0 {
            for mirror in self.backlog.mirrors() {
                let since = mirror.facts().incomplete_since;
                if since != 0 {
                    mirror.order(Order::Compare { since });
                }
            }
        }
        *self.last_scan.lock().unwrap_or_else(PoisonError::into_inner) = scan;
        scan
    }

    /// What the last scan has found.
    pub fn last_scan(&self) -> Scan {
        *self.last_scan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True while changes that went without a record have not been taken in by the main loop.
    pub fn has_unseen_losses(&self) -> bool {
        self.backlog.ring.header().lost.0.load(Ordering::SeqCst) > self.progress.get().lost_seen
    }

    /// Counts comparisons that make up for what was not recorded.
    fn count_repairs(&self, count: u64) {
        self.backlog.ring.header().repairs.fetch_add(count, Ordering::Relaxed);
    }

    fn mark_incomplete(&self, since: u64) {
        for mirror in self.backlog.mirrors() {
            mirror.tell(|facts| {
                facts.incomplete_since =
                    if facts.incomplete_since == 0 { since } else { facts.incomplete_since.min(since) };
            });
        }
        self.save(Rest::No);
    }

    /// Stores how far everything has come.
    fn save(&self, rest: Rest) {
        let ready = self.backlog.ready.load();
        let stored = self.progress.update(|progress| {
            progress.newest_seq = ready.seq;
            progress.at_rest = rest == Rest::Yes;
            if rest == Rest::Yes {
                progress.ceiling_seq = ready.seq;
            }
            progress.not_followed = self.coverage.counted();
            for mirror in self.backlog.mirrors() {
                let facts = mirror.facts();
                let known = progress.mirrors.entry(mirror.settings.id).or_default();
                known.durable_seq = facts.durable_seq;
                known.resync = facts.needs_resync || mirror.is_overrun();
                known.incomplete_since = facts.incomplete_since;
                if !known.resync {
                    known.applied_seq = mirror.place.load().seq;
                }
            }
        });
        if let Err(error) = stored {
            log::error!("{error}; it is tried again");
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// Losing the ring now loses nothing.
    Yes,
    No,
}

/// A replayer at work.
struct Running {
    replayer: Arc<Replayer>,
    events: Receiver<Event>,
    sequencer: JoinHandle<()>,
    workers: BTreeMap<u64, JoinHandle<()>>,
    control: control::Server,
    mappings: mappings::Server,
    saved: Instant,
    needless_since: Option<Instant>,
    /// Names that were left when others were forgotten last.
    names_kept: usize,
    lock: ReplayerLock,
    /// Who is told when everything has ended.
    done: Vec<Sender<()>>,
}

impl Running {
    fn start(set: Set, lock: ReplayerLock) -> anyhow::Result<Self> {
        let ring = RingFile::open_or_make(&set)?;
        let progress = ProgressFile::open(set.file("progress.json"))?;
        let start = Start::find(&set, &ring, &progress.get());
        start.store(&set, &ring, &progress)?;
        let names = start.names(&set)?;
        let (events_in, events) = crossbeam_channel::unbounded();
        let (requests_in, requests) = crossbeam_channel::unbounded();
        let (mappings, mappings_commands) = Mappings::new();
        let stored = progress.get();
        let replayer = Arc::new(Replayer {
            primary: set.settings.primary.clone(),
            coverage: Coverage::new(&stored.not_followed),
            mappings,
            names: AtomicUsize::new(0),
            records_before: stored.records_before,
            ring_first_seq: stored.ring_first_seq,
            backlog: Backlog::new(ring, start.place),
            progress,
            since: SystemTime::now(),
            set: Mutex::new(set),
            last_scan: Mutex::new(Scan::default()),
            sequencer: requests_in,
            events: events_in,
        });
        // Mirrors join before the sequencer runs, so that nothing they still need is released.
        let settings = replayer.set().settings.mirrors.clone();
        let mut workers = BTreeMap::new();
        for mirror in settings {
            let id = mirror.id;
            workers.insert(id, start_worker(&replayer, mirror, start.same_ring).context("cannot start a thread")?);
        }
        let sequencer = start_sequencer(&replayer, requests, names)?;
        let header = replayer.backlog.ring.header();
        header.replayer_pid.store(std::process::id(), Ordering::SeqCst);
        catch_signals(&replayer)?;
        let mappings = mappings::Server::start(&replayer, mappings_commands)?;
        let control = control::Server::start(&replayer)?;
        log::info!("replaying {} from {}", replayer.primary.display(), start.place.seq + 1);
        Ok(Self {
            replayer,
            events,
            sequencer,
            workers,
            control,
            mappings,
            saved: Instant::now(),
            needless_since: None,
            names_kept: 0,
            lock,
            done: Vec::new(),
        })
    }

    fn serve(mut self, lifetime: Lifetime) -> Exit {
        let mut next_tick = Instant::now() + TICK;
        let now = loop {
            match self.events.recv_deadline(next_tick) {
                Ok(Event::Stop { now, done }) => {
                    self.done.extend(done);
                    break now;
                }
                Ok(Event::Signal) => {
                    let drained = self.drain(Some(Instant::now() + DRAIN_MAX_SIGNAL));
                    log::info!("ending on a signal, {}", if drained { "drained" } else { "not drained" });
                    break true;
                }
                Ok(Event::Reload { answer }) => {
                    // The asker may have gone away.
                    let _ = answer.send(self.reload());
                }
                Ok(Event::Reserve) => {
                    self.replayer.reserve_after(self.replayer.backlog.ready.load().seq);
                }
                Ok(Event::NotFollowed { since }) => {
                    self.replayer.count_repairs(1);
                    self.replayer.mark_incomplete(since);
                }
                Ok(Event::Damaged) => self.resync_all(),
                Err(RecvTimeoutError::Timeout) => {
                    next_tick = Instant::now() + TICK;
                    self.tick();
                    if lifetime == Lifetime::WhileNeeded && self.is_needless() {
                        break false;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => unreachable!("this thread holds a sender itself"),
            }
        };
        if !now {
            self.drain(None);
        }
        self.end();
        Exit::Done
    }

    fn tick(&mut self) {
        let replayer = Arc::clone(&self.replayer);
        let backlog = &replayer.backlog;
        replayer.scan();
        replayer.mappings.wake(&backlog.ring);
        let lost = backlog.ring.header().lost.0.load(Ordering::SeqCst);
        let lost_before = replayer.progress.get().lost_seen;
        if replayer.has_unseen_losses() {
            replayer.count_repairs(lost - lost_before);
            log::error!("changes were made without a record; every mirror is compared with the primary");
            self.resync_all();
            // Only now that the mirrors' need is stored: who is killed in between has them compared once more.
            if let Err(error) = replayer.progress.update(|progress| progress.lost_seen = lost) {
                log::error!("{error}; it is tried again");
            }
        }
        let now_ns = monotonic_ns();
        let claims = backlog.ring.claims();
        let full = claims.free() < backlog.ring.cells() / 4;
        for mirror in backlog.mirrors() {
            if full && mirror.holds() && mirror.busy_ns(now_ns) > HUNG_NS {
                log::error!("mirror {} hangs and no longer holds up the programs", mirror.settings.name);
                mirror.tell(|facts| {
                    facts.state = MirrorState::Away;
                    facts.last_error = Some("the mirror's file system does not answer".into());
                });
                mirror.let_go();
                backlog.release();
                backlog.changes.ring();
            }
        }
        self.forget_names();
        if self.saved.elapsed() >= SAVE_EVERY {
            self.saved = Instant::now();
            replayer.save(Rest::No);
        }
    }

    /// Has the bindings of files forgotten that no wrapped program holds, when there are many.
    fn forget_names(&mut self) {
        let names = self.replayer.names.load(Ordering::Relaxed);
        self.names_kept = self.names_kept.min(names);
        if names < NAMES_MIN || names < 2 * self.names_kept {
            return;
        }
        let backlog = &self.replayer.backlog;
        let Some(frozen) = backlog.freeze(FREEZE) else { return };
        let at = backlog.ring.claims().end();
        let files = held::files(&backlog.ring);
        // Whether or not it could be done: it is not worth holding the programs for it each second.
        self.names_kept = names;
        let Some(files) = files.filter(|_| frozen.holds()) else { return };
        let held = Held { at, files: Arc::new(files) };
        // Before programs go on: nobody may pass the place unawares.
        for mirror in backlog.mirrors() {
            mirror.order(Order::Forget(held.clone()));
        }
        self.replayer.ask_sequencer(Request::Forget(held));
    }

    fn resync_all(&self) {
        for mirror in self.replayer.backlog.mirrors() {
            mirror.tell(|facts| facts.needs_resync = true);
            mirror.order(Order::Resync);
        }
        self.replayer.save(Rest::No);
    }

    /// True when no program needs the replayer and no mirror has anything to catch up with, for some time already.
    fn is_needless(&mut self) -> bool {
        let mapped = self.replayer.backlog.ring.has_mappings_or_marks();
        let needless =
            self.replayer.last_scan() == Scan::default() && !mapped && self.is_at_rest() && !self.control.is_busy();
        if !needless {
            self.needless_since = None;
            return false;
        }
        self.needless_since.get_or_insert_with(Instant::now).elapsed() >= LINGER
    }

    /// True when the ring is empty and every mirror is current or paused.
    fn is_at_rest(&self) -> bool {
        let backlog = &self.replayer.backlog;
        let end = backlog.ring.claims().end();
        backlog.ready.position() == end
            && backlog.mirrors().iter().all(|mirror| match mirror.facts().state {
                MirrorState::Current => mirror.has_settled(end),
                MirrorState::Paused => true,
                MirrorState::CatchingUp | MirrorState::Away | MirrorState::Resyncing | MirrorState::Broken => false,
            })
    }

    /// Waits until every mirror that is being served has applied what the ring holds now.
    fn drain(&mut self, deadline: Option<Instant>) -> bool {
        let replayer = Arc::clone(&self.replayer);
        let (events, done) = (&self.events, &mut self.done);
        let backlog = &replayer.backlog;
        replayer.mappings.flush(&backlog.ring);
        let goal = backlog.ring.claims().end();
        let served = |state| matches!(state, MirrorState::Current | MirrorState::CatchingUp | MirrorState::Resyncing);
        for mirror in backlog.mirrors() {
            mirror.order(Order::Settle(goal));
        }
        let drained = backlog.changes.wait_for(deadline, || {
            let level = reached(backlog.ready.position(), goal)
                && backlog.mirrors().iter().all(|mirror| !served(mirror.facts().state) || mirror.has_settled(goal));
            let mut hurried = false;
            for event in events.try_iter() {
                match event {
                    // A second request ends the patience.
                    Event::Signal => hurried = true,
                    Event::Stop { now, done: another } => {
                        hurried |= now;
                        done.extend(another);
                    }
                    Event::Reserve => drop(replayer.reserve_after(backlog.ready.load().seq)),
                    Event::NotFollowed { since } => replayer.mark_incomplete(since),
                    // Who asked for a reload sees that nobody answers; damage shows in the mirrors that were let go.
                    Event::Reload { .. } | Event::Damaged => {}
                }
            }
            (level || hurried).then_some(level)
        });
        drained.unwrap_or(false)
    }

    /// Reads `set.toml` again: starts workers for new mirrors, ends those of mirrors that are gone.
    fn reload(&mut self) -> Result<(), String> {
        let settings = {
            let mut set = self.replayer.set();
            set.reload().map_err(|error| error.to_string())?;
            set.settings.mirrors.clone()
        };
        for mirror in self.replayer.backlog.mirrors() {
            let id = mirror.settings.id;
            match settings.iter().find(|settings| settings.id == id) {
                Some(now) if now.name == mirror.settings.name && now.path == mirror.settings.path => {
                    let paused = mirror.facts().state == MirrorState::Paused;
                    match (paused, now.paused) {
                        (false, true) => mirror.order(Order::Pause),
                        (true, false) => mirror.order(Order::Resume),
                        _ => {}
                    }
                }
                _ => self.drop_worker(&mirror),
            }
        }
        for mirror in settings {
            if !self.workers.contains_key(&mirror.id) {
                let id = mirror.id;
                // A mirror that is new, or whose path has changed, begins at the sequencer's place.
                let worker = start_worker(&self.replayer, mirror, true).map_err(|error| error.to_string())?;
                self.workers.insert(id, worker);
            }
        }
        self.replayer.save(Rest::No);
        self.replayer.backlog.changes.ring();
        Ok(())
    }

    /// Ends the worker of a mirror that is no longer in the set.
    fn drop_worker(&mut self, mirror: &Mirror) {
        let id = mirror.settings.id;
        mirror.order(Order::Stop);
        self.replayer.backlog.remove(id);
        if let Some(worker) = self.workers.remove(&id) {
            join(worker, Instant::now() + END_MAX);
        }
        if let Some(cursor) = SharedCursor::find(&self.replayer.backlog.ring, id) {
            cursor.free();
        }
        let set = self.replayer.set();
        // A file that is not there has nothing to say.
        let _ = std::fs::remove_file(set.file(&bindings_file(id)));
        drop(set);
        let gone = self.replayer.progress.update(|progress| {
            progress.mirrors.remove(&id);
        });
        if let Err(error) = gone {
            log::error!("{error}");
        }
        self.replayer.backlog.release();
    }

    /// Ends every thread and leaves everything in order for the next replayer.
    fn end(self) {
        let Self { replayer, sequencer, mut workers, control, mappings, lock, done, .. } = self;
        control.close();
        mappings.close();
        let deadline = Instant::now() + END_MAX;
        for mirror in replayer.backlog.mirrors() {
            mirror.order(Order::Stop);
        }
        let mut all_ended = true;
        while let Some((_, worker)) = workers.pop_first() {
            all_ended &= join(worker, deadline);
        }
        let scan = replayer.scan();
        let header = replayer.backlog.ring.header();
        let ready = replayer.backlog.ready.position();
        let level = replayer.backlog.mirrors().iter().all(|mirror| mirror.has_settled(ready));
        let nothing_lost = header.lost.0.load(Ordering::SeqCst) == replayer.progress.get().lost_seen;
        let empty = ready == replayer.backlog.ring.claims().end();
        let rest = all_ended && level && empty && nothing_lost && scan == Scan::default();
        replayer.ask_sequencer(Request::Stop);
        join(sequencer, deadline);
        header.replayer_slot.store(0, Ordering::SeqCst);
        header.replayer_pid.store(0, Ordering::SeqCst);
        replayer.save(if rest { Rest::Yes } else { Rest::No });
        log::info!("ended at {}", replayer.backlog.ready.load().seq);
        // Before the answer, so that who gets it can start another replayer at once.
        drop(lock);
        for done in done {
            // A rendezvous: the process must not end before the answer is on its way.
            let _ = done.send_timeout((), END_MAX);
            let _ = done.send_timeout((), Duration::from_millis(500));
        }
    }
}

/// Name of the file in the set's directory that remembers the bindings of a mirror.
pub fn bindings_file(mirror: u64) -> String {
    format!("bindings-{mirror}")
}

fn catch_signals(replayer: &Arc<Replayer>) -> anyhow::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT]).context("cannot catch signals")?;
    let replayer = Arc::clone(replayer);
    let thread = std::thread::Builder::new().name("signals".into()).spawn(move || {
        for _ in signals.forever() {
            replayer.tell(Event::Signal);
        }
    });
    thread.context("cannot start a thread")?;
    Ok(())
}

/// Waits for a thread until `deadline`; a thread that hangs in a dead mount is left to the process's end.
fn join(thread: JoinHandle<()>, deadline: Instant) -> bool {
    while !thread.is_finished() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    thread.join().is_ok()
}

#[cfg(test)]
mod tests;
