//! The claims of the ring under loom: every interleaving of two producers and a consumer, with a death at each step.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p lockstep-journal --test loom --release`. A file is one register, an
//! operation writes its unique value to it, the mirror is the fold of the records in order. A death is a thread that
//! stops at a step and sets its life word, which is what the kernel does with a robust futex. The broken variants
//! must fail: they show that the model can.
#![cfg(loom)]

use journal::claims::{Claim, Claims, Fate, Owner, Peek, Position};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use loom::thread;

/// Small, so that the ring goes round.
const CELLS: u64 = 4;

#[derive(Clone, Copy, PartialEq)]
enum Broken {
    No,
    ClaimBeforeLock,
    DropIntents,
    ClaimAfterCall,
}

/// Where the first producer dies, if it does.
#[derive(Clone, Copy, PartialEq)]
enum Death {
    Never,
    HoldingTheLock,
    AfterClaim,
    AfterIntent,
    AfterCall,
    AfterCommit,
}

struct Model {
    tail: AtomicU64,
    head: AtomicU64,
    control: Vec<AtomicU64>,
    /// The payload: one value a cell.
    values: Vec<AtomicU64>,
    /// One stripe: 0 or owner + 1.
    lock: AtomicU32,
    dead: Vec<AtomicU32>,
    settled: Vec<AtomicU32>,
    file: AtomicU64,
    mirror: AtomicU64,
}

impl Model {
    fn new() -> Self {
        let (tail, head) = Claims::initial(CELLS);
        let zeros = |count: u64| (0..count).map(|_| AtomicU64::new(0)).collect();
        let words = || (0..2).map(|_| AtomicU32::new(0)).collect();
        Self {
            tail: AtomicU64::new(tail),
            head: AtomicU64::new(head),
            control: zeros(CELLS),
            values: zeros(CELLS),
            lock: AtomicU32::new(0),
            dead: words(),
            settled: words(),
            file: AtomicU64::new(0),
            mirror: AtomicU64::new(0),
        }
    }

    fn claims(&self) -> Claims<'_> {
        Claims::new(&self.tail, &self.head, &self.control)
    }

    fn value(&self, position: Position) -> &AtomicU64 {
        &self.values[(position.get() % CELLS) as usize]
    }

    fn is_dead(&self, owner: u16) -> bool {
        self.dead[owner as usize].load(Ordering::Acquire) == 1
    }

    /// One write by `me`; false when it died.
    fn write(&self, me: u16, value: u64, cells: u64, broken: Broken, death: Death) -> bool {
        let claims = self.claims();
        let dies = |step: Death| {
            if death == step {
                self.dead[me as usize].store(1, Ordering::Release);
            }
            death == step
        };
        let mut claim: Option<Claim> = None;
        if broken == Broken::ClaimBeforeLock {
            claim = claims.claim(Owner(me), cells);
            if claim.is_none() {
                return true;
            }
        }
        while self.lock.compare_exchange(0, u32::from(me) + 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            let holder = self.lock.load(Ordering::Relaxed);
            if holder != 0 && self.is_dead((holder - 1) as u16) {
                self.settle((holder - 1) as u16);
            }
            thread::yield_now();
        }
        if dies(Death::HoldingTheLock) {
            return false;
        }
        if broken == Broken::ClaimAfterCall {
            self.file.store(value, Ordering::Relaxed);
            if dies(Death::AfterCall) {
                return false;
            }
        }
        let Some(claim) = claim.or_else(|| claims.claim(Owner(me), cells)) else {
            self.lock.store(0, Ordering::Release);
            return true;
        };
        if dies(Death::AfterClaim) {
            return false;
        }
        claims.decide(claim, Fate::Claimed, Fate::Intent);
        if dies(Death::AfterIntent) {
            return false;
        }
        self.file.store(value, Ordering::Relaxed);
        if dies(Death::AfterCall) {
            return false;
        }
        self.value(claim.position).store(value, Ordering::Relaxed);
        claims.decide(claim, Fate::Intent, Fate::Committed);
        if dies(Death::AfterCommit) {
            return false;
        }
        self.lock.store(0, Ordering::Release);
        true
    }

    fn settle(&self, dead: u16) {
        if self.settled[dead as usize].compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return;
        }
        self.claims().settle_dead(Owner(dead));
        let _ = self.lock.compare_exchange(u32::from(dead) + 1, 0, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// One step of the consumer.
    fn consume(&self, broken: Broken) {
        let claims = self.claims();
        let position = claims.head();
        let (claim, fate) = match claims.peek(position) {
            Peek::Empty => return,
            Peek::Damaged => panic!("control word missing or stale"),
            Peek::Undecided(claim) => {
                if self.is_dead(claim.owner.0) {
                    self.settle(claim.owner.0);
                }
                return;
            }
            Peek::Decided(claim, fate) => (claim, fate),
        };
        match fate {
            Fate::Committed => {
                let value = self.value(position).load(Ordering::Relaxed);
                assert_eq!(
                    value / 1000,
                    u64::from(claim.owner.0) + 1,
                    "a record carries a value that its owner didn't write"
                );
                self.mirror.store(value, Ordering::Relaxed);
            }
            Fate::Repair if broken != Broken::DropIntents => {
                self.mirror.store(self.file.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            _ => {}
        }
        claims.release(position.plus(claim.cells));
    }
}

/// Runs all interleavings of two producers, who write records of these sizes, and a consumer of `steps` steps.
fn check(death: Death, broken: Broken, sizes: [&'static [u64]; 2], steps: u32) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.max_branches = 20_000;
    model.check(move || {
        let model = Arc::new(Model::new());
        let producers: Vec<_> = (0..2u16)
            .map(|me| {
                let model = model.clone();
                let sizes = sizes[me as usize];
                thread::spawn(move || {
                    for (number, cells) in sizes.iter().enumerate() {
                        let value = 1000 * (u64::from(me) + 1) + number as u64;
                        let death = if me == 0 { death } else { Death::Never };
                        if !model.write(me, value, *cells, broken, death) {
                            return;
                        }
                    }
                })
            })
            .collect();
        for _ in 0..steps {
            model.consume(broken);
            thread::yield_now();
        }
        for producer in producers {
            producer.join().unwrap();
        }
        // At rest only the dead have left something; the consumer alone must be able to finish.
        for me in 0..2 {
            if model.is_dead(me) {
                model.settle(me);
            }
        }
        for _ in 0..8 {
            model.consume(broken);
        }
        assert_eq!(model.claims().head(), model.claims().end(), "the consumer is stuck");
        assert_eq!(model.lock.load(Ordering::Relaxed), 0, "a lock is left");
        assert_eq!(model.mirror.load(Ordering::Relaxed), model.file.load(Ordering::Relaxed), "the mirror differs");
    });
}

const SHORT: [&[u64]; 2] = [&[1], &[2]];
const LONGER: [&[u64]; 2] = [&[1], &[2, 1]];

#[test]
fn nobody_dies() {
    check(Death::Never, Broken::No, SHORT, 2);
}

#[test]
fn the_ring_goes_round() {
    check(Death::Never, Broken::No, [&[2], &[2, 2]], 2);
}

#[test]
fn a_death_at_each_step_is_settled() {
    for death in [Death::HoldingTheLock, Death::AfterClaim, Death::AfterIntent, Death::AfterCall, Death::AfterCommit] {
        check(death, Broken::No, LONGER, 1);
    }
}

#[test]
#[should_panic]
fn claiming_before_the_lock_is_caught() {
    check(Death::Never, Broken::ClaimBeforeLock, [&[1], &[1]], 0);
}

#[test]
#[should_panic]
fn dropping_intents_is_caught() {
    check(Death::AfterCall, Broken::DropIntents, [&[1], &[]], 0);
}

#[test]
#[should_panic]
fn claiming_after_the_call_is_caught() {
    check(Death::AfterCall, Broken::ClaimAfterCall, [&[1], &[]], 0);
}
