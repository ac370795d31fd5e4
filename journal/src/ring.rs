//! `Ring`: the shared memory, attached; the producers' and the consumer's calls on it.
//!
//! # Safety
//! Every area is reached by a reference into the mapping, made once in [`Ring::attach`]. All that lies there is atomic
//! integers, for which every bit pattern is valid, or payload cells, which are only copied as bytes, never referenced
//! while somebody may write them.
#![allow(unsafe_code)]

use core::slice;

use crate::claims::{CELL_BYTES, Claim, Claims, Fate, Owner, Peek, Position};
use crate::layout::{
    Cursor, Header, Layout, MAGIC, MAPPINGS, MARKS, MIRRORS, Mapping, Mark, PROCESSES, Primary, Process, SLOTS,
    STRIPES, Slot, Stripe, VERSION,
};
use crate::locks::StripeIndex;
use crate::record;
use crate::sync::{AtomicU64, Ordering};
use crate::sys::{futex_wait, futex_wake};

/// Why a file is not a ring that this build can use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum AttachError {
    /// It is too short, or its first bytes are others.
    NotARing,
    /// It was made by another version of lockstep, this one.
    Version(u32),
    /// Its header speaks of another size than the file has.
    Size,
}

/// How long a producer waits for space when no replayer lives, before it gives the record up.
const ORPHANED_NS_MAX: u64 = 10_000_000_000;
const FULL_RECHECK_NS: u64 = 20_000_000;
const FULL_SPINS: u32 = 2_000;

/// The ring of a set, mapped into this process.
pub struct Ring {
    base: *mut u8,
    layout: Layout,
    cells: u32,
}

// SAFETY: the mapping is shared between processes to begin with; everything in it is atomic or guarded by claims.
unsafe impl Send for Ring {}
// SAFETY: as above.
unsafe impl Sync for Ring {}

impl Ring {
    /// Writes the header of a new ring into zeroed memory, its magic last.
    ///
    /// # Safety
    /// `base` points to `Layout::new(cells).total` zeroed bytes, page-aligned, that nobody else uses yet.
    pub unsafe fn initialise(
        base: *mut u8,
        cells: u32,
        primary: &[u8],
        primary_dev: u64,
        primary_ino: u64,
        made_ns: u64,
    ) {
        let layout = Layout::new(cells);
        // SAFETY: the caller gives the whole area; headers begin at page-aligned offsets inside it.
        let header = unsafe { &*base.cast::<Header>() };
        // SAFETY: as above, and nobody else reads it yet.
        let path = unsafe { &mut *base.add(layout.primary).cast::<Primary>() };
        let length = primary.len().min(path.path.len());
        path.path[..length].copy_from_slice(&primary[..length]);
        path.length = length as u64;
        let (tail, head) = Claims::initial(u64::from(cells));
        header.tail.0.store(tail, Ordering::Relaxed);
        header.head.0.store(head, Ordering::Relaxed);
        header.version.store(VERSION, Ordering::Relaxed);
        header.cells.store(cells, Ordering::Relaxed);
        header.generation.store(1, Ordering::Relaxed);
        header.primary_dev.store(primary_dev, Ordering::Relaxed);
        header.primary_ino.store(primary_ino, Ordering::Relaxed);
        header.made_ns.store(made_ns, Ordering::Relaxed);
        header.tree_generation.store(1, Ordering::Relaxed);
        header.outside_generation.store(1, Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Release);
    }

    /// Attaches to the ring at `base`.
    ///
    /// # Errors
    /// [`AttachError`] when what lies there is not a ring of this version and size.
    ///
    /// # Safety
    /// `base` is a page-aligned shared mapping of `bytes` readable and writable bytes that stays for as long as the
    /// result or anything got from it is used.
    pub unsafe fn attach(base: *mut u8, bytes: usize) -> Result<Self, AttachError> {
        if bytes < size_of::<Header>() {
            return Err(AttachError::NotARing);
        }
        // SAFETY: long enough, aligned, and made of atomics.
        let header = unsafe { &*base.cast::<Header>() };
        if header.magic.load(Ordering::Acquire) != MAGIC {
            return Err(AttachError::NotARing);
        }
        let version = header.version.load(Ordering::Relaxed);
        if version != VERSION {
            return Err(AttachError::Version(version));
        }
        let cells = header.cells.load(Ordering::Relaxed);
        if !cells.is_power_of_two() || u64::from(cells) <= 2 * crate::claims::RECORD_CELLS_MAX {
            return Err(AttachError::Size);
        }
        let layout = Layout::new(cells);
        if layout.total != bytes {
            return Err(AttachError::Size);
        }
        Ok(Self { base, layout, cells })
    }

    fn area<T>(&self, offset: usize, count: usize) -> &[T] {
        // SAFETY: `Layout` places `count` values of `T` at `offset`, aligned, within the mapping that `attach` checked;
        // they are made of atomics. The mapping outlives `self`.
        unsafe { slice::from_raw_parts(self.base.add(offset).cast::<T>(), count) }
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.area::<Header>(0, 1)[0]
    }

    /// The path of the primary.
    pub fn primary(&self) -> &[u8] {
        let primary = &self.area::<Primary>(self.layout.primary, 1)[0];
        &primary.path[..(primary.length as usize).min(primary.path.len())]
    }

    /// Slot `owner`, if there is one with that number.
    pub fn slot(&self, owner: Owner) -> Option<&Slot> {
        self.area::<Slot>(self.layout.slots, SLOTS).get(owner.0 as usize)
    }

    pub(crate) fn stripes(&self) -> &[Stripe] {
        self.area(self.layout.stripes, 2 * STRIPES + 1)
    }

    pub(crate) fn stripe(&self, index: StripeIndex) -> Option<&Stripe> {
        self.stripes().get(index.index())
    }

    pub(crate) fn processes(&self) -> &[Process] {
        self.area(self.layout.processes, PROCESSES)
    }

    pub(crate) fn mappings(&self) -> &[Mapping] {
        self.area(self.layout.mappings, MAPPINGS)
    }

    pub(crate) fn marks(&self) -> &[Mark] {
        self.area(self.layout.marks, MARKS)
    }

    /// The cursors of the mirrors.
    pub fn cursors(&self) -> &[Cursor] {
        self.area(self.layout.cursors, MIRRORS)
    }

    /// The claims of this ring.
    pub fn claims(&self) -> Claims<'_> {
        let header = self.header();
        Claims::new(&header.tail.0, &header.head.0, self.area::<AtomicU64>(self.layout.control, self.cells as usize))
    }

    /// Cells of the ring.
    pub const fn cells(&self) -> u64 {
        self.cells as u64
    }

    /// First address of a claim's record. A claim never wraps, but the number of cells is the producer's word.
    fn record_at(&self, position: Position) -> *mut u8 {
        let index = (position.get() & (self.cells() - 1)) as usize;
        // SAFETY: the index is below the number of cells, so the address lies in the data area.
        unsafe { self.base.add(self.layout.data + index * CELL_BYTES) }
    }

    /// Claims space for a record with `payload_bytes` of payload, waiting while the ring is full.
    ///
    /// `None` when no replayer has lived for ten seconds and there still is no room: the caller goes on without a
    /// record, which is counted in `lost`.
    pub fn claim(&self, me: Owner, payload_bytes: usize) -> Option<Claim> {
        let cells = record::cells_for(payload_bytes);
        match self.claims().claim(me, cells) {
            Some(claim) => Some(claim),
            None => self.claim_when_free(me, cells),
        }
    }

    #[cold]
    fn claim_when_free(&self, me: Owner, cells: u64) -> Option<Claim> {
        let header = self.header();
        header.full_waits.fetch_add(1, Ordering::Relaxed);
        let mut orphaned_ns = 0;
        let mut spins = 0;
        // The consumer may wait for the record of the operation that a signal handler has interrupted.
        let mut nested_waits = if self.is_nested(me) { 2 } else { u32::MAX };
        loop {
            let ticket = header.space.0.load(Ordering::SeqCst);
            if let Some(claim) = self.claims().claim(me, cells) {
                return Some(claim);
            }
            if spins < FULL_SPINS {
                spins += 1;
                core::hint::spin_loop();
                continue;
            }
            self.wake_consumer();
            header.space_waiters.fetch_add(1, Ordering::SeqCst);
            futex_wait(&header.space.0, ticket, FULL_RECHECK_NS);
            header.space_waiters.fetch_sub(1, Ordering::SeqCst);
            nested_waits -= 1;
            if nested_waits == 0 {
                self.lose();
                return None;
            }
            if self.replayer_lives() {
                orphaned_ns = 0;
            } else {
                orphaned_ns += FULL_RECHECK_NS;
                if orphaned_ns > ORPHANED_NS_MAX {
                    self.lose();
                    return None;
                }
            }
        }
    }

    /// True while a replayer is attached and alive.
    pub fn replayer_lives(&self) -> bool {
        match self.header().replayer_slot.load(Ordering::Acquire) {
            0 => false,
            slot => self.slot(Owner((slot - 1) as u16)).is_some_and(|slot| !slot.life.is_dead()),
        }
    }

    /// Writes the header of a claimed record. Only the claim's owner calls this, before the record is decided.
    pub fn write_header(&self, claim: &Claim, header: &record::Header) {
        // SAFETY: the claim's first cell belongs to its owner; a header is one cell long and aligned as cells are.
        unsafe { self.record_at(claim.position).cast::<record::Header>().write(*header) };
    }

    /// The payload of a claimed record, for its owner to fill: address and bytes.
    pub fn payload(&self, claim: &Claim) -> (*mut u8, usize) {
        // SAFETY: a claim has at least one cell, so this is at most the end of the data area.
        let address = unsafe { self.record_at(claim.position).add(CELL_BYTES) };
        (address, (claim.cells as usize - 1) * CELL_BYTES)
    }

    /// Commits a record and wakes the consumer if it sleeps; false when the record was decided by somebody else.
    pub fn commit(&self, claim: &Claim) -> bool {
        let committed = self.claims().decide(*claim, Fate::Intent, Fate::Committed);
        self.wake_consumer();
        committed
    }

    /// Declares the intent; the record's header is complete.
    pub fn intend(&self, claim: &Claim) -> bool {
        self.claims().decide(*claim, Fate::Claimed, Fate::Intent)
    }

    /// Drops a record whose call had no effect.
    pub fn abort(&self, claim: &Claim) {
        let claims = self.claims();
        if !claims.decide(*claim, Fate::Intent, Fate::Aborted) {
            claims.decide(*claim, Fate::Claimed, Fate::Aborted);
        }
        self.wake_consumer();
    }

    /// Claims, writes and commits a record that is known as a whole and about something that has happened. False when
    /// there was no room for it, which is counted in `lost`.
    pub fn append(&self, me: Owner, header: &record::Header, payload: &[u8]) -> bool {
        let Some(claim) = self.claim(me, payload.len()) else { return false };
        self.write_header(&claim, header);
        let (address, room) = self.payload(&claim);
        let bytes = payload.len().min(room);
        // SAFETY: the claim has this room, which is its owner's to fill; the payload is not part of it.
        unsafe { core::ptr::copy_nonoverlapping(payload.as_ptr(), address, bytes) };
        self.intend(&claim);
        self.commit(&claim)
    }

    /// Wakes the consumer if it sleeps: one load when it doesn't.
    pub fn wake_consumer(&self) {
        let sleeps = &self.header().consumer_sleeps.0;
        if sleeps.load(Ordering::SeqCst) != 0 && sleeps.swap(0, Ordering::SeqCst) != 0 {
            futex_wake(sleeps, 1);
        }
    }

    /// Consumer: sleeps until the record at `position` may have been decided, or `timeout_ns` have passed.
    pub fn sleep_until_work(&self, position: Position, timeout_ns: u64) {
        let sleeps = &self.header().consumer_sleeps.0;
        sleeps.store(1, Ordering::SeqCst);
        if !matches!(self.claims().peek(position), Peek::Decided(..) | Peek::Damaged) {
            futex_wait(sleeps, 1, timeout_ns);
        }
        sleeps.store(0, Ordering::SeqCst);
    }

    /// Consumer: gives the space before `position` back to the producers.
    pub fn release(&self, position: Position) {
        self.claims().release(position);
        let header = self.header();
        header.space.0.fetch_add(1, Ordering::SeqCst);
        if header.space_waiters.load(Ordering::SeqCst) != 0 {
            futex_wake(&header.space.0, i32::MAX);
        }
    }

    /// Consumer: the header and payload of a decided record, where they lie.
    ///
    /// The payload is shared memory: somebody hostile can change it while it is read. Callers check it as
    /// [`record::Record::parse`] does and don't rely on reading the same twice. `None` when the claim leaves the ring.
    pub fn record(&self, claim: &Claim) -> Option<(record::Header, &[u8])> {
        let index = claim.position.get() & (self.cells() - 1);
        if claim.cells == 0 || index + claim.cells > self.cells() {
            return None;
        }
        let address = self.record_at(claim.position);
        // SAFETY: checked to lie inside the data area; a header is plain integers.
        let header = unsafe { address.cast::<record::Header>().read_volatile() };
        // SAFETY: as above. Decided records are not written by honest producers; see above for others.
        let payload =
            unsafe { slice::from_raw_parts(address.add(CELL_BYTES), (claim.cells as usize - 1) * CELL_BYTES) };
        Some((header, payload))
    }

    /// Consumer: writes sequence number and time into a decided record.
    pub fn stamp(&self, claim: &Claim, seq: u64, seconds: u32) {
        let header = self.record_at(claim.position).cast::<record::Header>();
        // SAFETY: the first cell of a claim lies in the ring; once it is decided only the consumer writes there.
        unsafe {
            (*header).seq = seq;
        }
        // SAFETY: as above.
        let pid_and_time = unsafe { &mut (*header).pid_and_time };
        *pid_and_time = (*pid_and_time & !0xffff_ffff) | u64::from(seconds);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::locks::Operation;
    use crate::record::{FileId, Kind};

    const CELLS: u32 = 16 * 1024;

    pub(crate) struct Memory(*mut u8, usize);

    impl Memory {
        pub(crate) fn new() -> Self {
            let bytes = Layout::new(CELLS).total;
            // SAFETY: a new shared anonymous mapping; checked below.
            let base = unsafe {
                libc::mmap(
                    core::ptr::null_mut(),
                    bytes,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            assert_ne!(base, libc::MAP_FAILED);
            // SAFETY: zeroed, page-aligned, large enough, and ours alone.
            unsafe { Ring::initialise(base.cast(), CELLS, b"/primary", 1, 2, 3) };
            Self(base.cast(), bytes)
        }

        pub(crate) fn ring(&self) -> Ring {
            // SAFETY: the mapping stays until the test process ends (threads hold robust mutexes in it).
            unsafe { Ring::attach(self.0, self.1) }.expect("made just now")
        }
    }

    fn put(ring: &Ring, me: Owner, value: u64, payload: &[u8]) {
        let header = record::Header {
            kind: Kind::Write as u8,
            data_bytes: payload.len() as u32,
            a: value,
            ..record::Header::default()
        };
        assert!(ring.append(me, &header, payload));
    }

    #[test]
    fn attaching_to_other_bytes_is_refused() {
        let memory = Memory::new();
        let ring = memory.ring();
        assert_eq!(ring.primary(), b"/primary");
        // SAFETY: the mapping is as long as before; only what it says changes.
        let attach = || unsafe { Ring::attach(memory.0, memory.1) }.err();
        ring.header().version.store(VERSION + 1, Ordering::Relaxed);
        assert_eq!(attach(), Some(AttachError::Version(VERSION + 1)));
        ring.header().version.store(VERSION, Ordering::Relaxed);
        ring.header().cells.store(CELLS * 2, Ordering::Relaxed);
        assert_eq!(attach(), Some(AttachError::Size));
        ring.header().magic.store(0, Ordering::Relaxed);
        assert_eq!(attach(), Some(AttachError::NotARing));
    }

    #[test]
    fn records_of_many_threads_come_out_whole_and_in_each_threads_order() {
        const THREADS: u64 = 4;
        const EACH: u64 = 20_000;
        let memory = Memory::new();
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let ring = memory.ring();
                scope.spawn(move || {
                    let me = ring.register().expect("a free slot");
                    let payload = [thread as u8; 1500];
                    for number in 0..EACH {
                        put(&ring, me, thread << 32 | number, &payload[..(number as usize * 7) % 1500]);
                    }
                });
            }
            let ring = memory.ring();
            let consumer = ring.register().expect("a free slot");
            ring.header().replayer_slot.store(u32::from(consumer.0) + 1, Ordering::SeqCst);
            let mut next = [0; THREADS as usize];
            let mut position = ring.claims().head();
            while next.iter().sum::<u64>() < THREADS * EACH {
                match ring.claims().peek(position) {
                    Peek::Decided(claim, fate) => {
                        if fate == Fate::Committed {
                            let (header, payload) = ring.record(&claim).expect("inside the ring");
                            let thread = (header.a >> 32) as usize;
                            assert_eq!(header.a & 0xffff_ffff, next[thread]);
                            assert!(payload[..header.data_bytes as usize].iter().all(|byte| *byte == thread as u8));
                            next[thread] += 1;
                        }
                        position = claim.position.plus(claim.cells);
                        ring.release(position);
                    }
                    Peek::Damaged => panic!("damaged at {position:?}"),
                    Peek::Empty | Peek::Undecided(_) => ring.sleep_until_work(position, 1_000_000_000),
                }
            }
        });
    }

    #[test]
    fn what_a_dead_thread_leaves_is_settled() {
        let memory = Memory::new();
        let ring = memory.ring();
        let stripe = StripeIndex::of_file(FileId { dev: 1, ino: 5 });
        let dead = std::thread::scope(|scope| {
            let dying = scope.spawn(|| {
                let me = ring.register().expect("a free slot");
                ring.enter(me, Operation::Contents);
                ring.lock(stripe, me);
                let intent = ring.claim(me, 0).expect("room");
                ring.write_header(&intent, &record::Header::default());
                ring.intend(&intent);
                ring.claim(me, 100).expect("room");
                me
            });
            dying.join().expect("it doesn't panic")
        });
        let me = ring.register().expect("a free slot");
        assert_ne!(me, dead);
        assert!(ring.is_dead(dead));
        // Whoever wants the lock settles the dead holder's records before it gets it.
        assert!(ring.lock(stripe, me));
        assert!(!ring.is_dead(dead));
        let first = ring.claims().head();
        let Peek::Decided(claim, Fate::Repair) = ring.claims().peek(first) else {
            panic!("an intent becomes a repair")
        };
        let second = ring.claims().peek(claim.position.plus(claim.cells));
        assert!(matches!(second, Peek::Decided(_, Fate::Aborted)), "{second:?}");
        assert_eq!(ring.header().repairs.load(Ordering::Relaxed), 1);
        assert_eq!(ring.header().dropped.load(Ordering::Relaxed), 1);
        assert_eq!(ring.slot(dead).expect("exists").inside.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn freezing_waits_for_operations_and_keeps_new_ones_out() {
        let memory = Memory::new();
        let ring = memory.ring();
        let me = ring.register().expect("a free slot");
        ring.header().replayer_slot.store(u32::from(me.0) + 1, Ordering::SeqCst);
        std::thread::scope(|scope| {
            let (inside, is_inside) = std::sync::mpsc::channel();
            let (finish, may_finish) = std::sync::mpsc::channel::<()>();
            let other = memory.ring();
            scope.spawn(move || {
                let me = other.register().expect("a free slot");
                other.enter(me, Operation::Names);
                inside.send(()).expect("the test waits");
                may_finish.recv().expect("the test goes on");
                other.leave(me, Operation::Names);
                other.enter(me, Operation::Contents);
                inside.send(()).expect("the test waits");
                other.leave(me, Operation::Contents);
            });
            is_inside.recv().expect("the thread lives");
            assert!(!ring.freeze(1_000_000), "an operation is in flight");
            let freezer = scope.spawn(|| ring.freeze(u64::MAX));
            while ring.header().frozen.0.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            finish.send(()).expect("the thread waits");
            assert!(freezer.join().expect("it doesn't panic"));
            assert!(is_inside.recv_timeout(std::time::Duration::from_millis(20)).is_err(), "kept out");
            ring.thaw();
            is_inside.recv().expect("let in again");
        });
    }

    #[test]
    fn a_process_is_known_from_attach_to_exec() {
        use crate::processes::{ProcessState, Reason};
        let memory = Memory::new();
        let ring = memory.ring();
        assert!(ring.attach_process(77, b"/bin/a", 1));
        assert!(!ring.attach_process(77, b"", 2));
        let long = [b'x'; 300];
        ring.announce_exec(77, &long, Reason::Static, 3);
        let views: Vec<_> = ring.process_views().collect();
        assert_eq!(views.len(), 1);
        assert_eq!(
            (views[0].1.state, views[0].1.reason, views[0].1.execs),
            (ProcessState::NotFollowed, Reason::Static, 1)
        );
        assert_eq!(views[0].1.program(), &long[..crate::processes::PROGRAM_BYTES]);
        ring.forget_process(views[0].0, 77);
        assert_eq!(ring.process_views().count(), 0);
    }
}
