//! Operations and the locks that they hold, so that the order of records is the order of effects.
//!
//! A thread is *inside* an operation from before its first lock to after its last. Contents and attributes lock the
//! stripe of their inode, names the stripe of their directory's path. Whoever moves a directory keeps all other name
//! operations out meanwhile ([`Ring::begin_move`]): so the path that a name operation has found stays right until its
//! system call is over. The replayer can keep all operations out for a moment ([`Ring::freeze`]).
//!
//! Order: inside < move < names, ascending < contents, ascending. Everything is taken up front, so there is no cycle.

use crate::claims::Owner;
use crate::layout::STRIPES;
use crate::record::FileId;
use crate::ring::Ring;
use crate::sync::Ordering;
use crate::sys::{futex_wait, futex_wake, sleep};

/// In a stripe's word: somebody sleeps on it.
pub const WAITERS: u32 = 1 << 31;

/// How long a sleeper sleeps before it looks again whether the owner lives.
const RECHECK_NS: u64 = 2_000_000;
/// How long a frozen ring is believed: a replayer that needs longer thaws and tries again.
const FREEZE_NS_MAX: u64 = 5_000_000_000;
/// How often an operation of a signal handler looks again before it goes on without what it waits for.
const NESTED_WAITS_MAX: u32 = 3;
/// Turns of the spin before a thread sleeps: some four times as long as a lock is usually held.
const SPINS: u32 = 4_000;

const NAMES: u32 = 1 << 16;

/// What an operation does, for those who have to wait until it is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Contents or attributes of a file that is known by its inode.
    Contents,
    /// Names, which must not move meanwhile.
    Names,
}

/// Index of a lock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct StripeIndex(u16);

impl StripeIndex {
    const MOVE: Self = Self(2 * STRIPES as u16);

    /// The lock of the names in the directory with this path below the primary.
    pub fn of_directory(path: &[u8]) -> Self {
        let hash = path
            .iter()
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
        Self(((hash ^ (hash >> 32)) % STRIPES as u64) as u16)
    }

    /// The lock of the contents and attributes of this file.
    pub fn of_file(file: FileId) -> Self {
        let mixed = (file.ino ^ (u64::from(file.dev) << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self(STRIPES as u16 + ((mixed >> 48) % STRIPES as u64) as u16)
    }

    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

impl Ring {
    /// Enters an operation; waits while the ring is frozen or, for names, while a directory is being moved.
    ///
    /// Call before any lock is taken. May be nested (signal handlers); only the outermost waits.
    pub fn enter(&self, me: Owner, operation: Operation) {
        let Some(slot) = self.slot(me) else { return };
        let step = if operation == Operation::Names { NAMES } else { 1 };
        let header = self.header();
        let mut waited_ns = 0;
        let mut nested_waits = 0;
        loop {
            let before = slot.inside.load(Ordering::Relaxed);
            // The swap is a full barrier: either we see the mover or the freeze, or they see us inside.
            slot.inside.swap(before + step, Ordering::SeqCst);
            let mover = header.mover.0.load(Ordering::SeqCst);
            let frozen = header.frozen.0.load(Ordering::SeqCst);
            // A handler's operation inside of another must not wait for a freeze, which waits for the outer one. It may
            // wait for a mover, who never waits for the locks of contents that the outer one holds.
            let waits_for_freeze = frozen != 0 && before == 0;
            let waits_for_mover = operation == Operation::Names && mover != 0 && before < NAMES;
            if !waits_for_freeze && !waits_for_mover {
                return;
            }
            slot.inside.store(before, Ordering::SeqCst);
            if waits_for_freeze {
                if waited_ns > FREEZE_NS_MAX || !self.replayer_lives() {
                    let _ = header.frozen.0.compare_exchange(frozen, 0, Ordering::SeqCst, Ordering::Relaxed);
                    continue;
                }
                futex_wait(&header.frozen.0, frozen, RECHECK_NS);
                waited_ns += RECHECK_NS;
            } else {
                let owner = Owner((mover - 1) as u16);
                if self.is_dead(owner) {
                    self.settle(owner, Some(me));
                }
                if before != 0 && nested_waits == NESTED_WAITS_MAX {
                    slot.inside.swap(before + step, Ordering::SeqCst);
                    self.lose();
                    return;
                }
                nested_waits += 1;
                futex_wait(&header.mover.0, mover, RECHECK_NS);
            }
        }
    }

    /// Leaves the operation that was entered last.
    pub fn leave(&self, me: Owner, operation: Operation) {
        if let Some(slot) = self.slot(me) {
            let step = if operation == Operation::Names { NAMES } else { 1 };
            let before = slot.inside.load(Ordering::Relaxed);
            slot.inside.store(before.saturating_sub(step), Ordering::Release);
        }
    }

    /// True for an operation of a signal handler that has interrupted another. It must not wait for long: who it waits
    /// for may wait for what the interrupted one holds.
    pub fn is_nested(&self, me: Owner) -> bool {
        self.slot(me).is_some_and(|slot| {
            let inside = slot.inside.load(Ordering::Relaxed);
            (inside & (NAMES - 1)) + inside / NAMES > 1
        })
    }

    /// Takes a lock; false when the caller goes on without it: it holds it already, because it is an operation of a
    /// signal handler that has interrupted one on the same stripe, and the interrupted one is told so
    /// ([`Ring::was_nested`]); or it is a handler's operation and has waited long enough, which is counted in `lost`.
    pub fn lock(&self, stripe: StripeIndex, me: Owner) -> bool {
        let Some(entry) = self.stripe(stripe) else { return false };
        let mine = u32::from(me.0) + 1;
        let word = &entry.word;
        if word.compare_exchange(0, mine, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            return true;
        }
        let mut spins = 0;
        let mut slept = false;
        let mut nested_waits = 0;
        loop {
            let value = word.load(Ordering::Relaxed);
            let holder = value & !WAITERS;
            if holder == mine {
                if let Some(slot) = self.slot(me) {
                    slot.nested.store(1, Ordering::Relaxed);
                }
                return false;
            }
            if holder == 0 {
                // Whoever has slept may not have been the only sleeper.
                let taken = mine | if slept { WAITERS } else { 0 };
                if word.compare_exchange(value, taken, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    return true;
                }
                continue;
            }
            if spins < SPINS {
                spins += 1;
                core::hint::spin_loop();
                continue;
            }
            let owner = Owner((holder - 1) as u16);
            if self.is_dead(owner) {
                self.settle(owner, Some(me));
                continue;
            }
            if value & WAITERS == 0
                && word.compare_exchange(value, value | WAITERS, Ordering::Relaxed, Ordering::Relaxed).is_err()
            {
                continue;
            }
            if nested_waits == NESTED_WAITS_MAX {
                self.lose();
                return false;
            }
            nested_waits += u32::from(self.is_nested(me));
            futex_wait(word, value | WAITERS, RECHECK_NS);
            slept = true;
        }
    }

    /// Gives a lock back.
    pub fn unlock(&self, stripe: StripeIndex) {
        if let Some(entry) = self.stripe(stripe)
            && entry.word.swap(0, Ordering::Release) & WAITERS != 0
        {
            futex_wake(&entry.word, 1);
        }
    }

    /// True once when a signal handler has done something to a stripe that this thread holds.
    pub fn was_nested(&self, me: Owner) -> bool {
        self.slot(me)
            .is_some_and(|slot| slot.nested.load(Ordering::Relaxed) != 0 && slot.nested.swap(0, Ordering::Relaxed) != 0)
    }

    /// Keeps all other name operations out, waits for those in flight, and voids all cached paths.
    ///
    /// For whoever may change what a path leads to. Call inside no operation and with no lock held; then enter with
    /// [`Operation::Contents`] if data locks are needed too. Ends with [`Ring::end_move`].
    pub fn begin_move(&self, me: Owner) {
        let header = self.header();
        self.enter(me, Operation::Contents);
        self.lock(StripeIndex::MOVE, me);
        header.mover.0.store(u32::from(me.0) + 1, Ordering::SeqCst);
        for number in 0..self.slots_used() {
            let owner = Owner(number);
            let Some(slot) = self.slot(owner) else { break };
            let mut spins = 0;
            while owner != me && slot.inside.load(Ordering::SeqCst) >= NAMES && !slot.life.is_dead() {
                if spins > SPINS + 100 && self.is_nested(me) {
                    self.lose();
                    break;
                }
                spins += 1;
                if spins < SPINS { core::hint::spin_loop() } else { sleep(50_000) }
            }
        }
        header.tree_generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Lets name operations go on.
    pub fn end_move(&self, me: Owner) {
        let header = self.header();
        header.tree_generation.fetch_add(1, Ordering::SeqCst);
        header.mover.0.store(0, Ordering::SeqCst);
        futex_wake(&header.mover.0, i32::MAX);
        self.unlock(StripeIndex::MOVE);
        self.leave(me, Operation::Contents);
    }

    /// Counts a change of which no record, or none in the right order, could be made: the mirrors will be compared.
    #[cold]
    pub fn lose(&self) {
        self.header().lost.0.fetch_add(1, Ordering::SeqCst);
        self.wake_consumer();
    }

    /// Voids all cached paths: something that a path may lead through has changed.
    pub fn void_paths(&self) {
        self.header().tree_generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Keeps all operations out and waits until none is in flight: the primary rests, for wrapped programs.
    ///
    /// False when that took longer than `timeout_ns` (a stopped program, say); then the ring isn't frozen. Only the
    /// replayer calls this, and thaws well before five seconds have passed.
    pub fn freeze(&self, timeout_ns: u64) -> bool {
        const PAUSE_NS: u64 = 100_000;
        self.header().frozen.0.store(1, Ordering::SeqCst);
        let mut waited_ns = 0;
        for number in 0..self.slots_used() {
            let Some(slot) = self.slot(Owner(number)) else { break };
            while slot.inside.load(Ordering::SeqCst) != 0 && !slot.life.is_dead() {
                if waited_ns > timeout_ns {
                    self.thaw();
                    return false;
                }
                sleep(PAUSE_NS);
                waited_ns += PAUSE_NS;
            }
        }
        true
    }

    /// Ends a freeze.
    pub fn thaw(&self) {
        let frozen = &self.header().frozen.0;
        frozen.store(0, Ordering::SeqCst);
        futex_wake(frozen, i32::MAX);
    }
}
