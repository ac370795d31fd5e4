//! Slots: each thread that writes records owns one, for life; a dead one is settled by whoever finds it.

use crate::claims::{Owner, Settled};
use crate::layout::{SLOTS, Slot};
use crate::ring::Ring;
use crate::sync::Ordering;
use crate::sys::{LifeWord, futex_wake, process_id, thread_id};

const FREE: u32 = 0;
const LIVE: u32 = 1;
/// The slot is being taken or given back by the thread whose number is in the low bits; it owns no record and no
/// lock, so if that thread dies here the slot can simply be freed.
const CHANGING: u32 = 1 << 31;

impl Ring {
    /// Takes a slot for the calling thread, which keeps it until it ends. `None` when all are taken by the living.
    ///
    /// Not quite async-signal-safe: a handler that interrupted glibc inside `pthread_mutex_lock` of a robust mutex
    /// could disturb the thread's robust list. Called once a thread, at its first record.
    pub fn register(&self) -> Option<Owner> {
        let first_free = (0..SLOTS as u16).find_map(|number| self.try_register(Owner(number)));
        first_free.or_else(|| {
            (0..SLOTS as u16)
                .find_map(|number| self.settle_free(Owner(number)).then(|| self.try_register(Owner(number)))?)
        })
    }

    fn try_register(&self, owner: Owner) -> Option<Owner> {
        let slot = self.slot(owner)?;
        let tid = thread_id();
        if slot.state.load(Ordering::Relaxed) != FREE {
            return None;
        }
        slot.state.compare_exchange(FREE, CHANGING | tid, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        slot.turn.fetch_add(1, Ordering::AcqRel);
        slot.inside.store(0, Ordering::Relaxed);
        slot.nested.store(0, Ordering::Relaxed);
        slot.pid.store(process_id(), Ordering::Relaxed);
        slot.tid.store(tid, Ordering::Relaxed);
        self.take_life(slot);
        self.header().slots_used.fetch_max(u32::from(owner.0) + 1, Ordering::SeqCst);
        slot.state.store(LIVE, Ordering::Release);
        Some(owner)
    }

    /// True when the slot's thread has ended and its slot waits to be settled.
    pub fn is_dead(&self, owner: Owner) -> bool {
        self.slot(owner).is_some_and(|slot| slot.state.load(Ordering::Acquire) == LIVE && slot.life.is_dead())
    }

    /// True while a thread with a slot lives in the process that numbers itself `pid`, in whichever namespace.
    pub fn has_live_thread(&self, pid: u32) -> bool {
        (0..self.slots_used()).filter_map(|number| self.slot(Owner(number))).any(|slot| {
            let is_live = slot.state.load(Ordering::Acquire) == LIVE && !slot.life.is_dead();
            is_live && slot.pid.load(Ordering::Relaxed) == pid
        })
    }

    /// How often the slot has changed hands; a thread remembers it, to see that a slot is still its own.
    pub fn turn(&self, owner: Owner) -> u32 {
        self.slot(owner).map_or(0, |slot| slot.turn.load(Ordering::Relaxed))
    }

    /// Settles a slot nobody is known to own: for callers without a slot of their own.
    fn settle_free(&self, dead: Owner) -> bool {
        self.is_dead(dead) && self.settle(dead, None).is_some()
    }

    /// Settles what the dead thread of `dead` has left: first its records, then its locks, then its slot.
    ///
    /// `me` is the caller's slot. `None` when the slot isn't dead or somebody else is at it.
    pub fn settle(&self, dead: Owner, me: Option<Owner>) -> Option<Settled> {
        let slot = self.slot(dead)?;
        let mark = me.map_or(u32::MAX, |me| u32::from(me.0) + 1);
        let current = slot.settler.load(Ordering::Acquire);
        let settler_died = current != 0 && current != u32::MAX && self.is_dead(Owner((current - 1) as u16));
        if current != 0 && !settler_died {
            return None;
        }
        slot.settler.compare_exchange(current, mark, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        if !self.is_dead(dead) {
            slot.settler.store(0, Ordering::Release);
            return None;
        }
        let settled = self.claims().settle_dead(dead);
        let header = self.header();
        header.dropped.fetch_add(settled.dropped, Ordering::Relaxed);
        header.repairs.fetch_add(settled.repairs, Ordering::Relaxed);
        self.free_locks_of(dead);
        slot.inside.store(0, Ordering::SeqCst);
        slot.state.store(CHANGING | thread_id(), Ordering::Release);
        slot.life.reset();
        slot.settler.store(0, Ordering::Release);
        slot.state.store(FREE, Ordering::Release);
        self.wake_consumer();
        Some(settled)
    }

    /// Settles what the calling thread's own slot still holds of operations that can't end any more: a child of
    /// vfork(2) was killed in one, or a signal handler has jumped out of one.
    ///
    /// The caller is inside no operation and holds no lock.
    pub fn settle_own(&self, me: Owner) {
        let Some(slot) = self.slot(me) else { return };
        let settled = self.claims().settle_dead(me);
        let header = self.header();
        header.dropped.fetch_add(settled.dropped, Ordering::Relaxed);
        header.repairs.fetch_add(settled.repairs, Ordering::Relaxed);
        self.free_locks_of(me);
        slot.nested.store(0, Ordering::Relaxed);
        slot.inside.store(0, Ordering::SeqCst);
        self.wake_consumer();
    }

    /// Settles every dead slot; returns how many. The replayer calls this now and then.
    pub fn sweep(&self, me: Owner) -> u32 {
        let mut swept = 0;
        for number in 0..self.slots_used() {
            let owner = Owner(number);
            if self.is_dead(owner) && self.settle(owner, Some(me)).is_some() {
                swept += 1;
            }
        }
        swept
    }

    /// Slots whose thread was taking or giving them back: (slot, thread number). If that thread has ended, hand the
    /// pair to [`Ring::free_changing`].
    pub fn changing(&self) -> impl Iterator<Item = (Owner, u32)> + '_ {
        (0..SLOTS as u16).filter_map(|number| {
            let state = self.slot(Owner(number))?.state.load(Ordering::Acquire);
            (state & CHANGING != 0).then_some((Owner(number), state & !CHANGING))
        })
    }

    /// Frees a slot whose thread ended while taking it or giving it back.
    pub fn free_changing(&self, owner: Owner, thread: u32) {
        if let Some(slot) = self.slot(owner) {
            let state = CHANGING | thread;
            if slot.state.compare_exchange(state, CHANGING | thread_id(), Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                slot.life.reset();
                slot.settler.store(0, Ordering::Release);
                slot.state.store(FREE, Ordering::Release);
            }
        }
    }

    /// One more than the highest slot number ever used.
    pub fn slots_used(&self) -> u16 {
        self.header().slots_used.load(Ordering::SeqCst).min(SLOTS as u32) as u16
    }

    fn free_locks_of(&self, dead: Owner) {
        for stripe in self.stripes() {
            let word = stripe.word.load(Ordering::Acquire);
            if word & !crate::locks::WAITERS == u32::from(dead.0) + 1 {
                stripe.word.store(0, Ordering::Release);
                futex_wake(&stripe.word, i32::MAX);
            }
        }
        let header = self.header();
        if header.mover.0.load(Ordering::Acquire) == u32::from(dead.0) + 1 {
            header.tree_generation.fetch_add(1, Ordering::SeqCst);
            header.mover.0.store(0, Ordering::SeqCst);
            futex_wake(&header.mover.0, i32::MAX);
        }
    }

    #[allow(unsafe_code)]
    fn take_life(&self, slot: &Slot) {
        // SAFETY: the state word gives this thread the slot alone; the ring is never unmapped in a wrapped program.
        unsafe { LifeWord::take(core::ptr::from_ref(&slot.life).cast_mut()) };
    }
}
