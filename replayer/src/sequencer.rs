//! The sequencer: the one thread that walks the ring from end to end.
//!
//! It gives each record that took effect its sequence number, settles what the dead have left undecided, keeps the
//! set-wide bindings that a mirror begins with, and says how far workers may read. It never touches a mirror and waits
//! for none.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use journal::claims::{Claim, Fate, Owner, Peek, Position};
use journal::processes::Reason;
use journal::record::{FLAG_REPAIR, FileId, Header, Kind, Record};

use crate::coverage::realtime_seconds;
use crate::cursor::{Place, SharedCursor};
use crate::held::{Due, Forgetting, Held};
use crate::mirror::Mirror;
use crate::names::{BATCH, Names, Snapshot};
use crate::replay::{Event, Replayer};

/// What others ask of the sequencer.
pub enum Request {
    /// Let `mirror` hold space back from here on, and say where here is.
    Join {
        /// Which.
        mirror: Arc<Mirror>,
        /// Where the answer goes.
        answer: Sender<Joined>,
    },
    /// Forget the bindings of files that nobody holds.
    Forget(Held),
    /// End after the record at hand.
    Stop,
}

/// Where a mirror begins.
pub struct Joined {
    /// The place.
    pub place: Place,
    /// Which names the files have that programs hold, at this place.
    pub names: Snapshot,
}

/// How long the sequencer looks for more by itself before it asks to be woken, which costs the program a system call.
const LINGER: Duration = Duration::from_millis(10);
const PAUSE_FIRST: Duration = Duration::from_micros(100);
const PAUSE_MAX: Duration = Duration::from_millis(1);

/// How often dead slots are looked for when nobody has stumbled over one.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// How long the oldest record may stay undecided before its owner is suspected to be stopped.
const STOPPED_AFTER: Duration = Duration::from_secs(1);

/// The sequencer's thread.
pub struct Sequencer {
    replayer: Arc<Replayer>,
    requests: Receiver<Request>,
    me: Owner,
    place: Place,
    published: Place,
    /// Numbers up to here may be given out.
    ceiling: u64,
    names: Names,
    forgetting: Forgetting,
    swept: Instant,
    undecided: Option<Undecided>,
}

/// The oldest record, while its owner has not decided it.
struct Undecided {
    position: Position,
    since: Instant,
    is_told: bool,
}

impl Sequencer {
    /// Runs until told to stop. `me` is this thread's slot in the ring.
    pub fn run(replayer: Arc<Replayer>, requests: Receiver<Request>, me: Owner, names: Names) {
        let place = replayer.backlog.ready.load();
        let ceiling = replayer.progress.get().ceiling_seq;
        let swept = Instant::now();
        let forgetting = Forgetting::default();
        let published = place;
        let mut this =
            Self { replayer, requests, me, place, published, ceiling, names, forgetting, swept, undecided: None };
        let mut pause = PAUSE_FIRST;
        let mut idle_since: Option<Instant> = None;
        loop {
            let Ok(stop) = this.serve_requests() else { return };
            if stop {
                return;
            }
            if this.swept.elapsed() >= SWEEP_EVERY {
                this.sweep();
            }
            let taken = this.take_batch();
            this.publish();
            if taken {
                pause = PAUSE_FIRST;
                idle_since = None;
                continue;
            }
            this.replayer.backlog.release();
            if idle_since.get_or_insert_with(Instant::now).elapsed() < LINGER {
                std::thread::sleep(pause);
                pause = (pause * 2).min(PAUSE_MAX);
            } else {
                let timeout = if this.undecided.is_some() { PAUSE_MAX * 20 } else { SWEEP_EVERY };
                this.replayer.backlog.ring.sleep_until_work(this.place.position, timeout.as_nanos() as u64);
            }
        }
    }

    /// Answers requests; `Ok(true)` to stop, an error when nobody can ask any more.
    fn serve_requests(&mut self) -> Result<bool, crossbeam_channel::TryRecvError> {
        loop {
            match self.requests.try_recv() {
                Ok(Request::Join { mirror, answer }) => {
                    self.publish();
                    self.replayer.backlog.join(&mirror, self.place);
                    // Who asked may have given up; then nobody holds the place and the next release passes it.
                    let _ = answer.send(Joined { place: self.place, names: self.names.snapshot() });
                }
                Ok(Request::Forget(held)) => self.forgetting.add(held),
                Ok(Request::Stop) => return Ok(true),
                Err(crossbeam_channel::TryRecvError::Empty) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes decided records up to a batch; false when there is none.
    fn take_batch(&mut self) -> bool {
        let replayer = Arc::clone(&self.replayer);
        let ring = &replayer.backlog.ring;
        let claims = ring.claims();
        let seconds = realtime_seconds() as u32;
        for taken in 0..BATCH {
            if let Due::Now(held) = self.forgetting.due(self.place.position) {
                self.names.forget_others(&held.files);
            }
            match claims.peek(self.place.position) {
                Peek::Empty => {
                    self.undecided = None;
                    return taken > 0;
                }
                Peek::Undecided(claim) => {
                    if !self.decide_for_owner(claim) {
                        return taken > 0;
                    }
                }
                Peek::Decided(claim, fate) => {
                    self.undecided = None;
                    self.take(claim, fate, seconds);
                }
                Peek::Damaged => {
                    self.skip_damage();
                    return true;
                }
            }
        }
        true
    }

    /// Numbers one record and moves on.
    fn take(&mut self, claim: Claim, fate: Fate, seconds: u32) {
        let mut place = Place { position: claim.position.plus(claim.cells), seq: self.place.seq };
        match fate {
            Fate::Aborted | Fate::Pad | Fate::Claimed | Fate::Intent => {}
            Fate::Committed | Fate::Repair => {
                place.seq += 1;
                self.reserve(place.seq);
                self.replayer.backlog.ring.stamp(&claim, place.seq, seconds);
                self.fold(&claim, fate, place.seq);
            }
        }
        self.place = place;
    }

    /// Keeps the bindings true, and notes what concerns the whole set.
    fn fold(&mut self, claim: &Claim, fate: Fate, seq: u64) {
        let replayer = Arc::clone(&self.replayer);
        let Some((header, payload)) = replayer.backlog.ring.record(claim) else { return };
        if header.flags & FLAG_REPAIR != 0 && fate == Fate::Committed {
            replayer.backlog.ring.header().repairs.fetch_add(1, Ordering::Relaxed);
        }
        if !concerns_names(&header) {
            return;
        }
        // A malformed record has its number like any other; workers find it too and have their mirrors compared.
        let Ok(record) = Record::parse(header, payload) else { return };
        match record.kind {
            Kind::NotFollowed => {
                let reason = Reason::from_u32(record.header.a as u32);
                let pid = record.header.b as u32;
                if replayer.coverage.note(&replayer.backlog.ring, pid, reason, record.path1) {
                    replayer.tell(Event::NotFollowed { since: realtime_seconds().saturating_sub(2) });
                }
            }
            Kind::Rename if fate == Fate::Repair && !replayer.rename_happened(&record) => {}
            _ => self.names.fold(seq, &record),
        }
    }

    /// Makes sure that `seq` may be given out, whatever happens to the ring.
    fn reserve(&mut self, seq: u64) {
        if self.ceiling.saturating_sub(seq) == crate::cursor::RESERVED / 2 {
            self.replayer.tell(Event::Reserve);
        }
        if seq > self.ceiling {
            self.ceiling = self.replayer.reserve_after(seq);
        }
    }

    /// Lets the workers read what has been numbered.
    fn publish(&mut self) {
        if self.place == self.published {
            return;
        }
        if let Err(error) = self.names.flush(self.place.seq) {
            // Only a mirror that is rebuilt after this process has been killed would miss it.
            log::error!("{error}; it is tried again");
        }
        self.replayer.names.store(self.names.len(), Ordering::Relaxed);
        self.replayer.sequenced(self.place);
        let backlog = &self.replayer.backlog;
        backlog.ring.header().newest_seq.store(self.place.seq, Ordering::Release);
        backlog.ready.store(self.place);
        self.published = self.place;
        backlog.wake_workers();
        if backlog.ring.header().space_waiters.load(Ordering::Relaxed) != 0 {
            backlog.release();
        }
    }

    /// Looks after a record whose owner has not decided it. True when it may be decided now.
    fn decide_for_owner(&mut self, claim: Claim) -> bool {
        let ring = &self.replayer.backlog.ring;
        if ring.is_dead(claim.owner) {
            return ring.settle(claim.owner, Some(self.me)).is_some();
        }
        match &mut self.undecided {
            Some(undecided) if undecided.position == claim.position => {
                if !undecided.is_told && undecided.since.elapsed() >= STOPPED_AFTER {
                    undecided.is_told = true;
                    tell_stopped(&self.replayer, claim);
                }
            }
            _ => {
                let (position, since) = (claim.position, Instant::now());
                self.undecided = Some(Undecided { position, since, is_told: false });
            }
        }
        false
    }

    /// Settles dead threads that nobody has stumbled over.
    fn sweep(&mut self) {
        let ring = &self.replayer.backlog.ring;
        self.swept = Instant::now();
        ring.sweep(self.me);
        for (owner, thread) in ring.changing().collect::<Vec<_>>() {
            if !fs::exists(format!("/proc/{thread}")).unwrap_or(true) {
                ring.free_changing(owner, thread);
            }
        }
    }

    /// Gives up on what lies in the ring: somebody has scribbled over it. Every mirror is compared as a whole.
    fn skip_damage(&mut self) {
        let replayer = Arc::clone(&self.replayer);
        let backlog = &replayer.backlog;
        log::error!("the ring is damaged at {:?}; every mirror will be compared with the primary", self.place.position);
        // Frozen, so that nobody is filling a record in the space that is given back.
        let frozen = backlog.freeze(Duration::from_millis(200));
        self.place.position = backlog.ring.claims().end();
        self.undecided = None;
        for mirror in backlog.mirrors() {
            mirror.let_go();
        }
        self.publish();
        backlog.release();
        drop(frozen);
        replayer.tell(Event::Damaged);
    }
}

/// True for records that the sequencer has to read, besides numbering them.
fn concerns_names(header: &Header) -> bool {
    match Kind::from_u8(header.kind) {
        Some(
            Kind::Create
            | Kind::Bind
            | Kind::Link
            | Kind::Rename
            | Kind::Unlink
            | Kind::RemoveDirectory
            | Kind::CreateUnnamed
            | Kind::NotFollowed,
        ) => true,
        Some(_) | None => false,
    }
}

/// Says which thread all mirrors wait for, if it can't run now: stopped by a signal, a tracer or a frozen cgroup. Its
/// record is not taken from it, because it would write into the ring when it goes on.
fn tell_stopped(replayer: &Replayer, claim: Claim) {
    let Some(slot) = replayer.backlog.ring.slot(claim.owner) else { return };
    let (pid, tid) = (slot.pid.load(Ordering::Relaxed), slot.tid.load(Ordering::Relaxed));
    let Ok(text) = fs::read(format!("/proc/{pid}/task/{tid}/stat")) else { return };
    let state = text.iter().rposition(|byte| *byte == b')').and_then(|at| text.get(at + 2));
    if matches!(state, Some(b'T' | b't')) {
        log::warn!("thread {tid} of process {pid} is stopped inside a change; mirrors wait for it");
    }
}

impl Replayer {
    /// Stores how far the sequencer has come, where the next replayer finds it.
    fn sequenced(&self, place: Place) {
        if let Some(cursor) = SharedCursor::find_or_make(&self.backlog.ring, crate::cursor::SEQUENCER, place) {
            cursor.store(place);
        }
    }

    /// Finds out from the primary whether a rename took effect whose caller died before it could say so.
    pub fn rename_happened(&self, record: &Record<'_>) -> bool {
        let names = |path: &[u8]| {
            use std::os::unix::ffi::OsStrExt;
            use std::os::unix::fs::MetadataExt;
            let path = self.primary.join(std::ffi::OsStr::from_bytes(path));
            path.symlink_metadata().is_ok_and(|data| FileId::new(data.dev(), data.ino()) == record.file())
        };
        names(record.path2) && !names(record.path1)
    }
}
