//! `Mirror`: one mirror as the other threads of the replayer see it, and how they give its worker orders.
//!
//! Everything here is atomics or a lock that is held for a few instructions, never during I/O: `status` answers while
//! a worker hangs in a dead mount.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, SystemTime};

use crossbeam_channel::Sender;
use journal::claims::Position;

use crate::cursor::{Place, SeenPlace, reached};
use crate::held::Held;
use crate::set::MirrorSettings;
use crate::status::MirrorState;

/// What a worker is told.
#[derive(Clone, Debug)]
pub enum Order {
    /// End: keep the cursor, leave the mirror as it is.
    Stop,
    /// Apply nothing until told to resume.
    Pause,
    /// Go on, or try again what needed a person.
    Resume,
    /// Compare everything with the primary.
    Resync,
    /// Something that was not followed may have written since these seconds: compare with the primary.
    Compare {
        /// Seconds of CLOCK_REALTIME.
        since: u64,
    },
    /// Forget the bindings of files that nobody holds.
    Forget(Held),
    /// Bring times level as soon as everything before this position is applied.
    Settle(Position),
}

/// What is told about a mirror besides its place.
#[derive(Clone, PartialEq, Debug)]
pub struct Facts {
    /// State.
    pub state: MirrorState,
    /// Since when.
    pub since: SystemTime,
    /// What went wrong last; cleared when the mirror is current again.
    pub last_error: Option<String>,
    /// Re-reads whose place in the order has not been reached yet.
    pub pending_repairs: u64,
    /// What the mirror's file system can't hold.
    pub limits: Vec<String>,
    /// Last sequence number on stable storage.
    pub durable_seq: u64,
    /// What was not followed may have written since these seconds; 0 for no.
    pub incomplete_since: u64,
    /// The mirror has not got everything, or not in order, until it is compared as a whole.
    pub needs_resync: bool,
    /// Last sequence number at which the mirror was a prefix, while it isn't one.
    pub prefix_seq: u64,
    /// Paths that could not be read or represented.
    pub unreadable: u64,
}

/// One mirror.
#[derive(Debug)]
pub struct Mirror {
    /// What `set.toml` said when the worker was started.
    pub settings: MirrorSettings,
    /// Everything before it has been taken from the ring.
    pub place: SeenPlace,
    /// While true, space behind `place` is not released.
    holds: AtomicBool,
    /// Records have been released that this mirror had not taken.
    overrun: AtomicBool,
    /// Position that times are settled for; `NOT_SETTLED` for none.
    settled: AtomicU64,
    /// CLOCK_MONOTONIC nanoseconds since when the worker is inside one operation on the mirror; 0 while it isn't.
    busy_since_ns: AtomicU64,
    facts: Mutex<Facts>,
    orders: Sender<Order>,
    listens: AtomicBool,
    doze: Doze,
}

const NOT_SETTLED: u64 = u64::MAX;

impl Mirror {
    /// A mirror whose worker takes its orders from the other end of `orders`.
    pub fn new(settings: MirrorSettings, place: Place, facts: Facts, orders: Sender<Order>) -> Self {
        Self {
            settings,
            place: SeenPlace::new(place),
            holds: AtomicBool::new(false),
            overrun: AtomicBool::new(false),
            settled: AtomicU64::new(NOT_SETTLED),
            busy_since_ns: AtomicU64::new(0),
            facts: Mutex::new(facts),
            orders,
            listens: AtomicBool::new(false),
            doze: Doze::default(),
        }
    }

    /// Gives an order and wakes the worker. Orders to a worker that has ended are lost with it.
    pub fn order(&self, order: Order) {
        let _ = self.orders.send(order);
        self.doze.wake();
    }

    /// The worker's sleep; see [`Doze::sleep`].
    pub fn sleep(&self, timeout: Duration, has_work: impl Fn() -> bool) {
        self.doze.sleep(timeout, has_work);
    }

    /// What is told about it.
    pub fn facts(&self) -> Facts {
        self.lock().clone()
    }

    /// Changes what is told; `since` follows the state.
    pub fn tell(&self, change: impl FnOnce(&mut Facts)) {
        let mut facts = self.lock();
        let before = facts.state;
        change(&mut facts);
        if facts.state != before {
            facts.since = SystemTime::now();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether the worker wants to be woken for records.
    pub fn set_listening(&self, listening: bool) {
        self.listens.store(listening, Ordering::SeqCst);
    }

    /// Wakes the worker if it sleeps and there being records matters to it.
    pub fn wake_for_records(&self) {
        if self.listens.load(Ordering::SeqCst) {
            self.doze.wake();
        }
    }

    /// True while its place holds space back.
    pub fn holds(&self) -> bool {
        self.holds.load(Ordering::SeqCst)
    }

    /// Begins to hold space back behind `place`. Only under the backlog's lock, so that nothing is released meanwhile.
    pub fn hold_from(&self, place: Place) {
        self.place.store(place);
        self.overrun.store(false, Ordering::SeqCst);
        self.holds.store(true, Ordering::SeqCst);
    }

    /// Lets space be released that it has not taken; from then on it can only be resynced.
    pub fn let_go(&self) {
        if self.holds.swap(false, Ordering::SeqCst) {
            self.overrun.store(true, Ordering::SeqCst);
        }
    }

    /// True when records were released that it had not taken.
    pub fn is_overrun(&self) -> bool {
        self.overrun.load(Ordering::SeqCst)
    }

    /// Says that everything up to its place is applied and its times are settled, or that no longer.
    pub fn set_settled(&self, position: Option<Position>) {
        self.settled.store(position.map_or(NOT_SETTLED, Position::get), Ordering::SeqCst);
    }

    /// True when everything before `goal` is applied and its times are settled.
    pub fn has_settled(&self, goal: Position) -> bool {
        match self.settled.load(Ordering::SeqCst) {
            NOT_SETTLED => false,
            position => reached(Position::new(position), goal),
        }
    }

    /// Notes when an operation on the mirror began, or with 0 that it is over.
    pub fn set_busy_since(&self, ns: u64) {
        self.busy_since_ns.store(ns, Ordering::Relaxed);
    }

    /// How long the operation that the worker is inside of has taken.
    pub fn busy_ns(&self, now_ns: u64) -> u64 {
        match self.busy_since_ns.load(Ordering::Relaxed) {
            0 => 0,
            since => now_ns.saturating_sub(since),
        }
    }
}

/// The sleep of one thread, which others end. Waking a thread that doesn't sleep costs one load.
#[derive(Debug, Default)]
pub struct Doze {
    thread: OnceLock<Thread>,
    asleep: AtomicBool,
}

impl Doze {
    /// Sleeps until woken or `timeout` has passed, unless `has_work` says that there is something to do.
    ///
    /// `has_work` is asked after the sleeper has said that it sleeps; a waker stores its news before it looks whether
    /// anybody sleeps. Both are sequentially consistent, so one of them sees the other.
    pub fn sleep(&self, timeout: Duration, has_work: impl Fn() -> bool) {
        self.thread.get_or_init(std::thread::current);
        self.asleep.store(true, Ordering::SeqCst);
        if !has_work() {
            std::thread::park_timeout(timeout);
        }
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// Wakes the sleeper.
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }
}
