//! `Worker`: one mirror's thread. Takes records in order where they lie in the ring, applies them, keeps the cursor.
//!
//! The mirror's I/O happens in this thread alone, so a mirror that is slow, full or gone holds up nobody but those who
//! wait for it. Trouble ends in a state that the status shows and, where no person is needed, in another attempt.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};
use journal::claims::{Fate, Peek, Position};
use journal::record::Record;

use crate::apply::Applied;
use crate::coverage::monotonic_ns;
use crate::cursor::{MirrorProgress, Place, SharedCursor, reached};
use crate::error::ReplayError;
use crate::held::{Due, Forgetting};
use crate::intent;
use crate::mirror::{Facts, Mirror, Order};
use crate::replay::{Replayer, bindings_file};
use crate::set::MirrorSettings;
use crate::site::{Site, Unusable};
use crate::status::MirrorState;

mod rebuild;
mod rest;

/// Records applied before orders are looked at.
const BATCH: usize = 64;
/// How often times are settled while records never stop coming.
const SETTLE_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked whether the mirror is still where it was.
const PLACE_EVERY: Duration = Duration::from_secs(2);
/// First and longest pause between attempts to reach a mirror that is away.
const AWAY_FIRST: Duration = Duration::from_millis(250);
const AWAY_MAX: Duration = Duration::from_secs(30);
/// How long what is wanted of a mirror that never comes to rest is put off.
const REBUILD_PUT_OFF: Duration = Duration::from_secs(5);

/// One mirror's thread.
pub struct Worker {
    replayer: Arc<Replayer>,
    mirror: Arc<Mirror>,
    orders: Receiver<Order>,
    phase: Phase,
    site: Option<Site>,
    place: Place,
    /// Times are settled up to here, if anywhere.
    settled: Option<Place>,
    settled_at: Instant,
    /// Somebody waits until times are settled up to here.
    settle_for: Option<Position>,
    /// Since when there has been nothing to apply.
    dry_since: Option<Instant>,
    looked_at: Instant,
    /// The mirror is to be compared as a whole, since then at the latest.
    rebuild_by: Option<Instant>,
    /// Only what has changed since these seconds need be compared.
    compare_since: Option<u64>,
    away_pause: Duration,
    /// The record that failed last, to tell a mirror that is unwell from one that is not as it should be.
    failed_seq: u64,
    /// Repairs are pending until everything before this position is applied.
    repaired_until: Option<Position>,
    repairs: u64,
    /// What is written in the mirror's own `cursor.json`.
    written_seq: Option<u64>,
    forgetting: Forgetting,
}

/// What the worker is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Applies records.
    Serving,
    /// Fills or rebuilds the mirror.
    Rebuilding,
    /// Tries to reach the mirror again at this time.
    Away(Instant),
    /// A person has paused it.
    Paused,
    /// Ends.
    Stopping,
}

impl Worker {
    /// Starts the worker of a mirror at `place`; without one the mirror is filled or rebuilt first.
    ///
    /// # Errors
    /// Those of making a thread.
    pub fn start(
        replayer: &Arc<Replayer>,
        settings: MirrorSettings,
        place: Option<Place>,
        known: Option<MirrorProgress>,
    ) -> std::io::Result<JoinHandle<()>> {
        let known = known.unwrap_or_default();
        let (orders_in, orders) = crossbeam_channel::unbounded();
        let paused = settings.paused;
        let facts = Facts {
            state: if paused { MirrorState::Paused } else { MirrorState::CatchingUp },
            since: std::time::SystemTime::now(),
            last_error: None,
            pending_repairs: 0,
            limits: Vec::new(),
            durable_seq: known.durable_seq,
            incomplete_since: known.incomplete_since,
            needs_resync: place.is_none(),
            prefix_seq: known.applied_seq,
            unreadable: 0,
        };
        let name = settings.name.clone();
        let begin = place.unwrap_or_else(|| replayer.backlog.ready.load());
        let mirror = Arc::new(Mirror::new(settings, begin, facts, orders_in));
        replayer.backlog.add(Arc::clone(&mirror), place);
        let now = Instant::now();
        let worker = Self {
            replayer: Arc::clone(replayer),
            mirror,
            orders,
            phase: if paused { Phase::Paused } else { Phase::Away(now) },
            site: None,
            place: begin,
            settled: None,
            settled_at: now,
            settle_for: None,
            dry_since: None,
            looked_at: now,
            rebuild_by: None,
            compare_since: None,
            away_pause: AWAY_FIRST,
            failed_seq: 0,
            repaired_until: None,
            repairs: 0,
            written_seq: None,
            forgetting: Forgetting::default(),
        };
        std::thread::Builder::new().name(format!("mirror {name}")).spawn(move || worker.run())
    }

    fn run(mut self) {
        loop {
            self.take_orders();
            self.mirror.set_listening(self.phase == Phase::Serving);
            match self.phase {
                Phase::Serving => self.serve(),
                Phase::Rebuilding => self.rebuild(),
                Phase::Away(until) if Instant::now() >= until => self.come_back(),
                Phase::Away(until) => self.sleep(until.saturating_duration_since(Instant::now())),
                Phase::Paused => self.sleep(Duration::from_secs(3600)),
                Phase::Stopping => return self.finish(),
            }
        }
    }

    /// Sleeps until there is an order, or in service a record.
    fn sleep(&self, timeout: Duration) {
        let serving = self.phase == Phase::Serving;
        self.mirror.sleep(timeout, || {
            !self.orders.is_empty() || (serving && self.replayer.backlog.ready.position() != self.place.position)
        });
    }

    fn take_orders(&mut self) {
        loop {
            match self.orders.try_recv() {
                Ok(order) => self.obey(order),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => return self.phase = Phase::Stopping,
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Stop => self.phase = Phase::Stopping,
            Order::Pause if self.phase != Phase::Stopping => {
                self.phase = Phase::Paused;
                self.write_cursor();
                self.tell(MirrorState::Paused, None);
                // A paused mirror may be unmounted: nothing of it stays open.
                self.site = None;
            }
            Order::Resume if matches!(self.phase, Phase::Paused | Phase::Away(_)) => self.retry_now(),
            Order::Resync => {
                self.want_rebuild(Instant::now());
                if matches!(self.phase, Phase::Away(_)) {
                    self.retry_now();
                }
            }
            Order::Compare { since } => {
                // A rebuild that is wanted anyway compares everything.
                if self.rebuild_by.is_none() && !self.mirror.facts().needs_resync {
                    self.compare_since = Some(self.compare_since.map_or(since, |before| before.min(since)));
                    self.rebuild_by = Some(Instant::now());
                }
            }
            Order::Settle(goal) => {
                self.settle_for = Some(match self.settle_for {
                    Some(before) if reached(before, goal) => before,
                    _ => goal,
                });
            }
            Order::Forget(held) => self.forgetting.add(held),
            Order::Pause | Order::Resume => {}
        }
    }

    fn retry_now(&mut self) {
        self.away_pause = AWAY_FIRST;
        self.phase = Phase::Away(Instant::now());
        self.tell(MirrorState::CatchingUp, None);
    }

    /// Has the mirror compared as a whole, as soon as it is at rest or `by` has come.
    fn want_rebuild(&mut self, by: Instant) {
        self.compare_since = None;
        self.rebuild_by = Some(self.rebuild_by.map_or(by, |before| before.min(by)));
        if self.mirror.facts().needs_resync {
            return;
        }
        let prefix_seq = self.place.seq;
        self.mirror.tell(|facts| (facts.needs_resync, facts.prefix_seq) = (true, prefix_seq));
        self.remember(|known| known.resync = true);
    }

    /// Stores something about this mirror where the next replayer finds it.
    fn remember(&self, change: impl FnOnce(&mut MirrorProgress)) {
        let id = self.mirror.settings.id;
        let stored = self.replayer.progress.update(|progress| change(progress.mirrors.entry(id).or_default()));
        if let Err(error) = stored {
            log::error!("{error}; it is tried again");
        }
    }

    /// Opens the mirror, new or after it was away.
    fn come_back(&mut self) {
        let set = self.replayer.set().clone();
        let ledger = self.ledger_path();
        self.site = None;
        self.mirror.set_busy_since(monotonic_ns());
        let opened = Site::open(&set, &self.mirror.settings, &ledger);
        self.mirror.set_busy_since(0);
        let site = match opened {
            Ok(site) => site,
            Err(Unusable::Away(reason)) => return self.go_away(MirrorState::Away, reason),
            Err(Unusable::Broken(reason)) => return self.go_away(MirrorState::Broken, reason),
        };
        let known = self.replayer.progress.get().mirrors.get(&self.mirror.settings.id).cloned().unwrap_or_default();
        let written = site.cursor().filter(|cursor| cursor.generation == set.settings.generation);
        let is_stale = known.written_seq > written.as_ref().map_or(0, |cursor| cursor.applied_seq);
        self.written_seq = written.filter(|cursor| cursor.consistent).map(|cursor| cursor.applied_seq);
        if is_stale && !self.mirror.facts().needs_resync {
            log::warn!("mirror {} is an older copy of itself and is rebuilt", self.mirror.settings.name);
            self.want_rebuild(Instant::now());
        }
        if !self.mirror.facts().needs_resync && site.applier.is_fresh() && self.place.seq > 0 && self.has_history() {
            log::warn!("what was known of mirror {} is gone; it is rebuilt", self.mirror.settings.name);
            self.want_rebuild(Instant::now());
        }
        self.site = Some(site);
        self.looked_at = Instant::now();
        self.phase = if self.mirror.facts().needs_resync || self.mirror.is_overrun() {
            Phase::Rebuilding
        } else {
            self.tell(MirrorState::CatchingUp, None);
            Phase::Serving
        };
    }

    /// True when this ring holds, or has held, records for the mirror: without its ledger it can't go on from them.
    fn has_history(&self) -> bool {
        self.place.seq > self.replayer.ring_first_seq
    }

    fn ledger_path(&self) -> PathBuf {
        self.replayer.set().file(&bindings_file(self.mirror.settings.id))
    }

    /// Leaves the mirror alone for a while.
    fn go_away(&mut self, state: MirrorState, reason: String) {
        let name = &self.mirror.settings.name;
        if self.mirror.facts().last_error.as_ref() != Some(&reason) {
            log::warn!("mirror {name} is {state}: {reason}");
        }
        self.site = None;
        self.phase = Phase::Away(Instant::now() + self.away_pause);
        self.away_pause = (self.away_pause * 2).min(AWAY_MAX);
        self.tell(state, Some(reason));
    }

    /// Tells a state, and rings for those who wait for it.
    fn tell(&mut self, state: MirrorState, error: Option<String>) {
        if state != MirrorState::Current {
            self.settled = None;
        }
        let limits = self.site.as_ref().map(|site| site.applier.limits().words().map(str::to_owned).collect());
        self.mirror.tell(|facts| {
            facts.state = state;
            if let Some(limits) = limits {
                facts.limits = limits;
            }
            match error {
                Some(error) => facts.last_error = Some(error),
                None if state == MirrorState::Current && facts.unreadable == 0 => facts.last_error = None,
                None => {}
            }
        });
        self.replayer.backlog.changes.ring();
    }

    /// One round of service: applies a batch, or does what can be done at rest.
    fn serve(&mut self) {
        if self.mirror.is_overrun() {
            self.want_rebuild(Instant::now());
        }
        let due = self.rebuild_by.is_some_and(|by| self.dry_since.is_some() || Instant::now() >= by);
        if due {
            return self.phase = Phase::Rebuilding;
        }
        let applied = self.apply_batch();
        if self.phase != Phase::Serving {
            return;
        }
        let replayer = Arc::clone(&self.replayer);
        let backlog = &replayer.backlog;
        if backlog.should_release(self.place.position) {
            backlog.release();
        }
        if self.looked_at.elapsed() >= PLACE_EVERY && !self.is_in_place() {
            return;
        }
        if applied {
            self.dry_since = None;
            backlog.changes.ring();
            let asked = self.settle_for.is_some_and(|goal| reached(self.place.position, goal));
            if asked || self.settled_at.elapsed() >= SETTLE_EVERY {
                self.settle();
            }
            return;
        }
        self.rest();
    }

    /// Applies what is ready, up to a batch; false when there was nothing.
    fn apply_batch(&mut self) -> bool {
        let replayer = Arc::clone(&self.replayer);
        let backlog = &replayer.backlog;
        let ready = backlog.ready.position();
        if ready == self.place.position {
            return false;
        }
        if self.settled.take().is_some() {
            self.tell(MirrorState::CatchingUp, None);
        }
        let claims = backlog.ring.claims();
        let cursor = SharedCursor::find_or_make(&backlog.ring, self.mirror.settings.id, self.place);
        let Some(cursor) = cursor else {
            self.go_away(MirrorState::Broken, "the ring has no room for the cursors of so many mirrors".into());
            return false;
        };
        for _ in 0..BATCH {
            if self.place.position == ready {
                break;
            }
            if !self.forget_others() {
                return true;
            }
            let Peek::Decided(claim, fate) = claims.peek(self.place.position) else {
                log::error!("the ring is damaged before {:?}", self.place);
                self.mirror.let_go();
                break;
            };
            let mut next = Place { position: claim.position.plus(claim.cells), seq: self.place.seq };
            if matches!(fate, Fate::Committed | Fate::Repair) {
                next.seq += 1;
                let taken = backlog.ring.record(&claim).map(|(header, payload)| Record::parse(header, payload));
                let Some(Ok(record)) = taken else {
                    log::error!("record {} is malformed; mirror {} is rebuilt", next.seq, self.mirror.settings.name);
                    self.want_rebuild(Instant::now() + REBUILD_PUT_OFF);
                    self.advance(cursor, next);
                    continue;
                };
                self.mirror.set_busy_since(monotonic_ns());
                let done = self.apply(&record, fate, next.seq);
                self.mirror.set_busy_since(0);
                if !done {
                    return true;
                }
            }
            self.advance(cursor, next);
        }
        true
    }

    /// Forgets the bindings of files that nobody holds, if this is the place for it; false when that has failed.
    fn forget_others(&mut self) -> bool {
        let Due::Now(held) = self.forgetting.due(self.place.position) else { return true };
        let Some(site) = &mut self.site else { return true };
        match site.applier.forget_others(&held.files) {
            Ok(()) => true,
            Err(error) => self.take_trouble(&error, self.place.seq + 1),
        }
    }

    fn advance(&mut self, cursor: SharedCursor<'_>, next: Place) {
        cursor.store(next);
        self.mirror.place.store(next);
        self.place = next;
        if self.repaired_until.is_some_and(|until| reached(next.position, until)) {
            self.repaired_until = None;
            self.repairs = 0;
            self.tell_repairs();
        }
    }

    /// Applies one record; false when it has to be applied again.
    fn apply(&mut self, record: &Record<'_>, fate: Fate, seq: u64) -> bool {
        let Some(site) = &mut self.site else { return false };
        let result = match fate {
            Fate::Repair => intent::apply(&mut site.applier, &self.replayer, record),
            _ => site.applier.apply(record),
        };
        match result {
            Ok(Applied::Repair) if fate != Fate::Repair => self.tell_repairs(),
            Ok(Applied::Done | Applied::Dropped) if fate != Fate::Repair => {}
            Ok(Applied::Done | Applied::Dropped | Applied::Repair) => {
                self.repaired_until = Some(self.replayer.backlog.ring.claims().end());
                self.repairs += 1;
                self.tell_repairs();
            }
            Ok(Applied::UnknownFile(file)) => {
                let name = &self.mirror.settings.name;
                log::warn!("record {seq}: no name is known of inode {}; mirror {name} is rebuilt", file.ino);
                self.want_rebuild(Instant::now() + REBUILD_PUT_OFF);
            }
            Err(error) => return self.take_trouble(&error, seq),
        }
        self.away_pause = AWAY_FIRST;
        true
    }

    fn tell_repairs(&self) {
        let waiting = self.site.as_ref().map_or(0, |site| site.applier.pending_repairs()) as u64;
        let pending = self.repairs.max(waiting);
        self.mirror.tell(|facts| facts.pending_repairs = pending);
    }

    /// Weighs an error; true when the record is to be left out.
    fn take_trouble(&mut self, error: &ReplayError, seq: u64) -> bool {
        if error.is_reserved() {
            log::warn!("record {seq}: {error}");
            return true;
        }
        let reason = format!("cannot apply record {seq}: {error}");
        if let ReplayError::Primary { .. } = error {
            // Other mirrors meet the same; what could not be read is compared when the mirror is.
            log::warn!("mirror {}: {reason}", self.mirror.settings.name);
            self.mirror.tell(|facts| {
                facts.unreadable += 1;
                facts.last_error = Some(reason);
            });
            return true;
        }
        let again = self.failed_seq == seq;
        self.failed_seq = seq;
        if again && !error.is_mirror_trouble() {
            self.want_rebuild(Instant::now());
        }
        self.go_away(MirrorState::Away, reason);
        if !again {
            // The first attempt to mend it is to open everything anew.
            self.phase = Phase::Away(Instant::now());
        }
        false
    }

    fn finish(&mut self) {
        if self.site.is_some() {
            self.write_cursor();
        }
        self.site = None;
    }
}
