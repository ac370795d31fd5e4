//! Filling a new mirror and rebuilding one that has missed records, while programs run.
//!
//! The worker goes on taking records, so the ring never waits for a rebuild; they are noted, not applied. At the end
//! the ring is frozen for as long as the last pass takes: from that place on the mirror is a prefix, and served.

use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use journal::claims::{Fate, Peek};
use journal::record::Record;

use super::{Phase, Worker};
use crate::backlog::Frozen;
use crate::coverage::monotonic_ns;
use crate::cursor::{MirrorCursor, Place, SharedCursor};
use crate::error::ReplayError;
use crate::held::Due;
use crate::intent;
use crate::ledger::Entry;
use crate::resync::{Progress, Resync};
use crate::sequencer::Request;
use crate::settle::Rest;
use crate::site::Site;
use crate::status::MirrorState;

/// How long the first pass goes on before records are looked at.
const STEP: Duration = Duration::from_millis(20);
/// How many dirty objects the last pass may have, for which programs are held.
const LAST_PASS_MAX: usize = 64;
/// After so many passes the last one is tried with more.
const PASSES_MAX: usize = 8;
/// How long an operation that is in flight is waited for before records are looked at again.
const FREEZE: Duration = Duration::from_millis(50);
/// How long to leave programs alone after an attempt to freeze has failed.
const BREATH: Duration = Duration::from_millis(10);
/// How long a frozen ring may take to come to its end.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// Paths of the primary that could not be read, and why.
type Unreadable = Vec<(Vec<u8>, rustix::io::Errno)>;

/// Why a rebuild has not come to its end.
enum Interrupted {
    /// There is an order, or records were released that had not been noted.
    Again,
    /// Something failed.
    Trouble(ReplayError),
}

impl From<ReplayError> for Interrupted {
    fn from(error: ReplayError) -> Self {
        Self::Trouble(error)
    }
}

/// A rebuild on its way.
struct Rebuild {
    site: Site,
    resync: Resync,
    /// A record could not be read: what it said has to be found by another comparison.
    has_missed: bool,
}

impl Worker {
    /// Fills or rebuilds the mirror; ends in another phase, or in the same one to begin again.
    pub(super) fn rebuild(&mut self) {
        let Some(site) = self.site.take() else { return self.phase = Phase::Away(Instant::now()) };
        let name = self.mirror.settings.name.clone();
        log::info!("comparing mirror {name} with the primary");
        self.want_rebuild(Instant::now());
        self.rebuild_by = None;
        self.dry_since = None;
        self.mirror.set_settled(None);
        self.tell(MirrorState::Resyncing, None);
        let begun = Instant::now();
        let counted = self.replayer.coverage.counted();
        let not_followed_living = self.replayer.scan().not_followed_living;
        let mut rebuild = Rebuild { site, resync: Resync::new(), has_missed: false };
        let outcome = self.fill(&mut rebuild);
        self.mirror.set_busy_since(0);
        let (objects, bytes) = rebuild.resync.done();
        let has_missed = rebuild.has_missed;
        self.site = Some(rebuild.site);
        match outcome {
            Ok(unreadable) => {
                log::info!("mirror {name}: {objects} objects compared, {bytes} bytes written in {:?}", begun.elapsed());
                let same = not_followed_living == 0 && self.replayer.coverage.counted() == counted;
                self.finish_rebuild(unreadable, same);
                if has_missed {
                    self.want_rebuild(Instant::now());
                }
            }
            Err(Interrupted::Again) => {}
            Err(Interrupted::Trouble(error)) => {
                self.go_away(MirrorState::Away, format!("cannot rebuild: {error}"));
            }
        }
    }

    /// Says that the mirror is a prefix again. `is_repaired`: nothing that was not followed has run meanwhile.
    fn finish_rebuild(&mut self, unreadable: Unreadable, is_repaired: bool) {
        let first = unreadable.first().map(|(path, error)| {
            let more =
                if unreadable.len() > 1 { format!(", and {} more", unreadable.len() - 1) } else { String::new() };
            format!("cannot read \"{}\" in the primary: {error}{more}", path.escape_ascii())
        });
        let seq = self.place.seq;
        self.mirror.tell(|facts| {
            facts.needs_resync = false;
            facts.unreadable = unreadable.len() as u64;
            facts.pending_repairs = 0;
            facts.last_error = first;
            if is_repaired {
                facts.incomplete_since = 0;
            }
        });
        self.remember(|known| {
            known.resync = false;
            known.applied_seq = seq;
            if is_repaired {
                known.incomplete_since = 0;
            }
        });
        self.repaired_until = None;
        self.repairs = 0;
        self.written_seq = None;
        self.phase = Phase::Serving;
        self.tell(MirrorState::CatchingUp, None);
    }

    /// The rebuild itself. Returns what could not be read.
    fn fill(&mut self, rebuild: &mut Rebuild) -> Result<Unreadable, Interrupted> {
        let generation = self.replayer.set().settings.generation;
        let applied_seq = self.mirror.facts().prefix_seq;
        let cursor = MirrorCursor { generation, applied_seq, consistent: false };
        if let Err(error) = rebuild.site.write_cursor(&cursor) {
            log::warn!("cannot write the cursor of mirror {}: {error}", self.mirror.settings.name);
        }
        self.begin(rebuild)?;
        loop {
            self.look_up(rebuild)?;
            if rebuild.resync.step(&mut rebuild.site.applier, STEP)? == Progress::Walked {
                break;
            }
        }
        for pass in 0.. {
            self.look_up(rebuild)?;
            if rebuild.resync.dirty_len() > LAST_PASS_MAX && pass % PASSES_MAX != PASSES_MAX - 1 {
                rebuild.resync.dirty_pass(&mut rebuild.site.applier)?;
                continue;
            }
            rebuild.site.applier.settle(Rest::Busy, usize::MAX, || true)?;
            self.look_up(rebuild)?;
            if let Some(unreadable) = self.last_pass(rebuild)? {
                return Ok(unreadable);
            }
            std::thread::sleep(BREATH);
        }
        unreachable!("the passes never end by themselves")
    }

    /// Takes a place in the ring, with the names that files have there.
    fn begin(&mut self, rebuild: &mut Rebuild) -> Result<(), Interrupted> {
        let (answer, joined) = crossbeam_channel::bounded(1);
        self.replayer.ask_sequencer(Request::Join { mirror: self.mirror.clone(), answer });
        let joined = loop {
            match joined.recv_timeout(Duration::from_millis(100)) {
                Ok(joined) => break joined,
                Err(RecvTimeoutError::Timeout) => self.heed_orders()?,
                Err(RecvTimeoutError::Disconnected) => {
                    // The sequencer has ended, so this replayer is ending.
                    self.phase = Phase::Stopping;
                    return Err(Interrupted::Again);
                }
            }
        };
        self.place = joined.place;
        let applier = &mut rebuild.site.applier;
        rebuild.resync.begin(applier)?;
        for file in joined.names.gone {
            applier.ledger.enter(Entry::Gone(file));
        }
        for (name, file) in &joined.names.names {
            applier.ledger.enter(Entry::AddName(*file, name));
        }
        // What was written to an unnamed file before this place is read when it gets a name.
        for (file, _) in joined.names.unnamed {
            applier.ledger.enter(Entry::Gone(file));
        }
        applier.ledger.flush()?;
        Ok(())
    }

    /// Between two steps: orders, and records that have arrived.
    fn look_up(&mut self, rebuild: &mut Rebuild) -> Result<(), Interrupted> {
        self.heed_orders()?;
        self.note_ready(rebuild)?;
        self.mirror.set_busy_since(monotonic_ns());
        Ok(())
    }

    fn heed_orders(&mut self) -> Result<(), Interrupted> {
        self.take_orders();
        // What a compare or resync was ordered for before this one has ended is not covered by it for certain.
        if self.phase != Phase::Rebuilding || self.mirror.is_overrun() { Err(Interrupted::Again) } else { Ok(()) }
    }

    /// Notes every record that is ready.
    fn note_ready(&mut self, rebuild: &mut Rebuild) -> Result<(), Interrupted> {
        let backlog = &self.replayer.backlog;
        let ready = backlog.ready.position();
        let claims = backlog.ring.claims();
        while self.place.position != ready {
            if let Due::Now(held) = self.forgetting.due(self.place.position) {
                rebuild.site.applier.forget_others(&held.files)?;
            }
            let Peek::Decided(claim, fate) = claims.peek(self.place.position) else {
                self.mirror.let_go();
                return Err(Interrupted::Again);
            };
            let mut next = Place { position: claim.position.plus(claim.cells), seq: self.place.seq };
            if matches!(fate, Fate::Committed | Fate::Repair) {
                next.seq += 1;
                match backlog.ring.record(&claim).map(|(header, payload)| Record::parse(header, payload)) {
                    Some(Ok(record)) => {
                        let applier = &mut rebuild.site.applier;
                        if fate == Fate::Committed {
                            rebuild.resync.note(applier, &record)?;
                        } else {
                            let rereads = intent::rereads(&record, || self.replayer.rename_happened(&record));
                            for again in rereads.iter().flatten() {
                                rebuild.resync.note(applier, again)?;
                            }
                        }
                    }
                    _ => {
                        log::error!("record {} is malformed", next.seq);
                        rebuild.has_missed = true;
                    }
                }
            }
            self.place = next;
            self.mirror.place.store(next);
            if backlog.should_release(next.position) {
                backlog.release();
            }
        }
        Ok(())
    }

    /// The last pass, with programs held. `None` when they could not be held for long enough.
    fn last_pass(&mut self, rebuild: &mut Rebuild) -> Result<Option<Unreadable>, Interrupted> {
        let replayer = self.replayer.clone();
        let Some(frozen) = replayer.backlog.freeze(FREEZE) else { return Ok(None) };
        if !self.note_to_end(rebuild, &frozen)? {
            return Ok(None);
        }
        let unreadable = rebuild.resync.finish(&mut rebuild.site.applier)?;
        // Records may have come in the moment before programs were let go too early.
        if !frozen.holds() || replayer.backlog.ring.claims().end() != self.place.position {
            log::debug!("the last pass took {:?}, too long", frozen.age());
            return Ok(None);
        }
        let ring = &replayer.backlog.ring;
        let Some(cursor) = SharedCursor::find_or_make(ring, self.mirror.settings.id, self.place) else {
            self.go_away(MirrorState::Broken, "the ring has no room for the cursors of so many mirrors".into());
            return Err(Interrupted::Again);
        };
        cursor.store(self.place);
        Ok(Some(unreadable))
    }

    /// Notes everything up to the end of the frozen ring.
    fn note_to_end(&mut self, rebuild: &mut Rebuild, frozen: &Frozen<'_>) -> Result<bool, Interrupted> {
        let begun = Instant::now();
        let end = self.replayer.backlog.ring.claims().end();
        loop {
            self.note_ready(rebuild)?;
            if self.place.position == end {
                return Ok(true);
            }
            if begun.elapsed() > DRAIN_MAX || !frozen.holds() {
                return Ok(false);
            }
            // The sequencer may sleep: nobody has committed anything since.
            self.replayer.backlog.ring.wake_consumer();
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}
