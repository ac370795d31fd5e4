//! The backlog: what lies in the ring between the slowest mirror and the sequencer.
//!
//! Here is decided when space goes back to the programs, which mirrors may hold it back, how the ring is frozen by
//! several who want it at once, and how those who wait for progress are told.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use journal::claims::Position;

use crate::cursor::{Place, SeenPlace};
use crate::mirror::Mirror;
use crate::ring_file::RingFile;
use crate::status::MirrorState;

/// How long the ring stays frozen at most. Producers stop believing in it after five seconds.
pub const FREEZE_MAX: Duration = Duration::from_secs(4);

/// How old a freeze may be for another to join it.
const FREEZE_JOIN_MAX: Duration = Duration::from_secs(1);

/// What lies between the slowest mirror and the sequencer.
pub struct Backlog {
    /// The ring.
    pub ring: RingFile,
    /// Everything before it has its sequence number and can be applied.
    pub ready: SeenPlace,
    /// Told of every change that somebody may wait for.
    pub changes: Changes,
    mirrors: RwLock<Vec<Arc<Mirror>>>,
    releasing: Mutex<()>,
    freeze: Mutex<Freeze>,
}

#[derive(Debug, Default)]
struct Freeze {
    holders: u32,
    since: Option<Instant>,
}

/// While it lives, no wrapped program is inside an operation, unless it has lasted too long.
pub struct Frozen<'a> {
    backlog: &'a Backlog,
    since: Instant,
}

impl Backlog {
    /// The backlog of `ring`, from the sequencer's place on.
    pub fn new(ring: RingFile, ready: Place) -> Self {
        Self {
            ring,
            ready: SeenPlace::new(ready),
            changes: Changes::default(),
            mirrors: RwLock::new(Vec::new()),
            releasing: Mutex::new(()),
            freeze: Mutex::new(Freeze::default()),
        }
    }

    /// Every mirror that has a worker.
    pub fn mirrors(&self) -> Vec<Arc<Mirror>> {
        self.mirrors.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds a mirror, which holds space back from `place` on if one is given.
    pub fn add(&self, mirror: Arc<Mirror>, place: Option<Place>) {
        let _releasing = lock(&self.releasing);
        if let Some(place) = place {
            mirror.hold_from(place);
        }
        self.mirrors.write().unwrap_or_else(PoisonError::into_inner).push(mirror);
    }

    /// Removes a mirror and what it holds back.
    pub fn remove(&self, identity: u64) {
        let mut mirrors = self.mirrors.write().unwrap_or_else(PoisonError::into_inner);
        mirrors.retain(|mirror| mirror.settings.id != identity);
    }

    /// Makes `mirror` hold space back from the sequencer's place on. Only the sequencer calls this.
    pub fn join(&self, mirror: &Mirror, place: Place) {
        let _releasing = lock(&self.releasing);
        mirror.hold_from(place);
    }

    /// Wakes every worker that sleeps: there is something to apply.
    pub fn wake_workers(&self) {
        for mirror in self.mirrors.read().unwrap_or_else(PoisonError::into_inner).iter() {
            mirror.wake_for_records();
        }
    }

    /// True when giving space back is worth the look at every mirror: much is free to go, or somebody waits for it.
    pub fn should_release(&self, applied: Position) -> bool {
        let waiting = self.ring.header().space_waiters.load(Ordering::Relaxed) != 0;
        waiting || applied.since(self.ring.claims().head()) > self.ring.cells() / 64
    }

    /// Gives everything that all mirrors have taken back to the programs.
    ///
    /// Mirrors that are reachable hold space back however slow they are: programs wait for them. One that is away or
    /// paused keeps its place until half of the ring is used.
    pub fn release(&self) {
        let _releasing = lock(&self.releasing);
        let claims = self.ring.claims();
        let head = claims.head();
        let used = claims.end().since(head);
        let mut cells = self.ready.position().since(head);
        for mirror in self.mirrors.read().unwrap_or_else(PoisonError::into_inner).iter() {
            if !mirror.holds() {
                continue;
            }
            let taken = mirror.place.position().since(head);
            if taken > used || (used > self.ring.cells() / 2 && taken < cells && !is_served(mirror)) {
                mirror.let_go();
                continue;
            }
            cells = cells.min(taken);
        }
        if cells > 0 {
            self.ring.release(head.plus(cells));
        }
    }

    /// Freezes the ring, or joins a freeze that is young. `None` when an operation does not end within `timeout`; the
    /// caller goes on taking records before it tries again, because the operation may be waiting for space.
    pub fn freeze(&self, timeout: Duration) -> Option<Frozen<'_>> {
        let mut freeze = lock(&self.freeze);
        let since = match freeze.since {
            Some(since) if freeze.holders > 0 && since.elapsed() > FREEZE_JOIN_MAX => return None,
            Some(since) if freeze.holders > 0 => since,
            _ => {
                let since = Instant::now();
                if !self.ring.freeze(timeout.as_nanos() as u64) {
                    return None;
                }
                since
            }
        };
        freeze.holders += 1;
        freeze.since = Some(since);
        Some(Frozen { backlog: self, since })
    }
}

/// True for a mirror that is being served, which programs wait for when the ring is full.
fn is_served(mirror: &Mirror) -> bool {
    match mirror.facts().state {
        MirrorState::Current | MirrorState::CatchingUp | MirrorState::Resyncing => true,
        MirrorState::Away | MirrorState::Broken | MirrorState::Paused => false,
    }
}

impl Frozen<'_> {
    /// How long it has lasted.
    pub fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// True while programs are really kept out.
    pub fn holds(&self) -> bool {
        self.since.elapsed() < FREEZE_MAX && self.backlog.ring.header().frozen.0.load(Ordering::SeqCst) != 0
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let mut freeze = lock(&self.backlog.freeze);
        freeze.holders -= 1;
        if freeze.holders == 0 {
            freeze.since = None;
            self.backlog.ring.thaw();
        }
    }
}

/// A bell for those who wait for a condition that others bring about. Ringing it costs one load while nobody waits.
#[derive(Debug, Default)]
pub struct Changes {
    turn: Mutex<u64>,
    changed: Condvar,
    watchers: AtomicUsize,
}

/// How long a watcher sleeps at most before it looks again; only conditions that no thread rings for need it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl Changes {
    /// Tells all watchers to look again. The caller has stored its news before, sequentially consistent.
    pub fn ring(&self) {
        if self.watchers.load(Ordering::SeqCst) != 0 {
            *lock(&self.turn) += 1;
            self.changed.notify_all();
        }
    }

    /// True while somebody waits.
    pub fn is_watched(&self) -> bool {
        self.watchers.load(Ordering::SeqCst) != 0
    }

    /// Waits until `condition` answers, or until `deadline`.
    pub fn wait_for<T>(&self, deadline: Option<Instant>, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
        self.watchers.fetch_add(1, Ordering::SeqCst);
        let answer = loop {
            let turn = *lock(&self.turn);
            if let Some(answer) = condition() {
                break Some(answer);
            }
            let left = deadline.map_or(LOOK_AGAIN, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                break None;
            }
            let guard = lock(&self.turn);
            let result = self.changed.wait_timeout_while(guard, left.min(LOOK_AGAIN), |now| *now == turn);
            drop(result.unwrap_or_else(PoisonError::into_inner));
        };
        self.watchers.fetch_sub(1, Ordering::SeqCst);
        answer
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
