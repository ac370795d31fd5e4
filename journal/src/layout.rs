//! The layout of the shared memory: one file, mapped by the replayer and by every wrapped process.
//!
//! Fixed-width integers, no pointers, explicit padding; `docs/journal-format.md` has the same as tables. A change of
//! any size or offset here, or of a record's meaning, is a change of [`VERSION`].

use crate::claims::CELL_BYTES;
use crate::sync::{AtomicU32, AtomicU64};
use crate::sys::LifeWord;

/// First eight bytes of the file.
pub const MAGIC: u64 = u64::from_le_bytes(*b"lockstep");
/// Version of layout and records. A ring of another version is refused.
pub const VERSION: u32 = 1;

/// Slots: threads that can write records at the same time.
pub const SLOTS: usize = 4096;
/// Stripes of either kind (names, contents).
pub const STRIPES: usize = 2048;
/// Processes that can be known at the same time.
pub const PROCESSES: usize = 4096;
/// Shared writable mappings that can be known at the same time.
pub const MAPPINGS: usize = 4096;
/// Asynchronous writes that can be in flight at the same time.
pub const MARKS: usize = 4096;
/// Mirrors of a set.
pub const MIRRORS: usize = 32;
/// Longest path of a primary, in bytes.
pub const PRIMARY_BYTES: usize = 4096 - 8;

/// A value on a cache line of its own, so that those who write it don't disturb those who read its neighbour.
#[repr(C, align(64))]
pub struct Line<T>(pub T);

/// What the file begins with.
#[repr(C, align(4096))]
pub struct Header {
    /// [`MAGIC`], written last when a ring is made.
    pub magic: AtomicU64,
    /// [`VERSION`].
    pub version: AtomicU32,
    /// Cells of the data area, a power of two.
    pub cells: AtomicU32,
    /// Generation of the set (SPEC.md, "Words").
    pub generation: AtomicU64,
    /// `st_dev` of the primary.
    pub primary_dev: AtomicU64,
    /// `st_ino` of the primary.
    pub primary_ino: AtomicU64,
    /// When the ring was made, in nanoseconds of CLOCK_BOOTTIME; tells two rings of one name apart.
    pub made_ns: AtomicU64,
    /// Newest claim, see `claims.rs`.
    pub tail: Line<AtomicU64>,
    /// Oldest position not yet released by the consumer.
    pub head: Line<AtomicU64>,
    /// Futex, counted up by the consumer each time that it frees space.
    pub space: Line<AtomicU32>,
    /// Producers that sleep on `space`.
    pub space_waiters: AtomicU32,
    /// Futex: 1 while the consumer sleeps and wants to be woken by the next commit.
    pub consumer_sleeps: Line<AtomicU32>,
    /// Slot number + 1 of the thread that moves a directory; 0 when none does (`locks.rs`).
    pub mover: Line<AtomicU32>,
    /// Counted up before and after whatever may change which directory a path leads to.
    pub tree_generation: AtomicU64,
    /// Counted up when a file from outside the primary gets a name inside: cached verdicts "outside" are void.
    pub outside_generation: AtomicU64,
    /// Futex: not 0 while the replayer asks producers to stay out of operations for a moment (`locks.rs`).
    pub frozen: Line<AtomicU32>,
    /// One more than the highest slot ever used.
    pub slots_used: AtomicU32,
    /// The replayer's process number, 0 when none runs.
    pub replayer_pid: AtomicU32,
    /// Operations of which no record could be made; not 0 means that mirrors must be compared.
    pub lost: Line<AtomicU64>,
    /// How often a producer waited for space.
    pub full_waits: AtomicU64,
    /// Last sequence number given out.
    pub newest_seq: AtomicU64,
    /// Records settled because their owner had died or was overtaken.
    pub repairs: AtomicU64,
    /// Claims dropped because their owner had died.
    pub dropped: AtomicU64,
    /// Processes that have attached since the ring was made.
    pub attached: AtomicU64,
    /// Slot number + 1 of the replayer's sequencer, whose life word tells whether the replayer lives; 0 for none.
    pub replayer_slot: AtomicU32,
    /// One more than the highest entry of [`Mapping`] ever used.
    pub mappings_used: AtomicU32,
    /// One more than the highest entry of [`Mark`] ever used.
    pub marks_used: AtomicU32,
}

/// A thread that writes records.
#[repr(C, align(128))]
pub struct Slot {
    /// Held by the thread for life.
    pub life: LifeWord,
    /// See `slots.rs`.
    pub state: AtomicU32,
    /// Slot number + 1 of the thread that settles this dead slot.
    pub settler: AtomicU32,
    /// Process number.
    pub pid: AtomicU32,
    /// Thread number.
    pub tid: AtomicU32,
    /// Counted up each time that the slot changes hands.
    pub turn: AtomicU32,
    /// How many operations the thread is inside of (`locks.rs`).
    pub inside: AtomicU32,
    /// Not 0 when a signal handler's operation has met a stripe that the interrupted one holds.
    pub nested: AtomicU32,
    /// Keeps the offsets.
    pub reserved1: AtomicU32,
    /// Where the stack stood when the outermost operation was entered: the shim tells by it that a signal handler has
    /// jumped out of one.
    pub stack: AtomicU64,
    /// Keeps the size fixed.
    pub reserved: [AtomicU32; 12],
}

/// One lock of a table that is hashed by identity.
#[repr(C, align(64))]
pub struct Stripe {
    /// 0 when free, else the owner's slot number + 1, with [`crate::locks::WAITERS`].
    pub word: AtomicU32,
}

/// A process that is wrapped, or about to be.
#[repr(C, align(128))]
pub struct Process {
    /// Process number; 0 when the entry is free.
    pub pid: AtomicU32,
    /// See `processes.rs`.
    pub state: AtomicU32,
    /// Counted up at each exec.
    pub execs: AtomicU32,
    /// Why it can't be followed, see `processes.rs`.
    pub reason: AtomicU32,
    /// CLOCK_MONOTONIC nanoseconds of the last change of `state`.
    pub since_ns: AtomicU64,
    /// Name of the program, the last bytes of its path, padded with zeros.
    pub program: [AtomicU64; 13],
}

/// A shared mapping of a file of the primary through which stores can be made (`mappings.rs`).
#[repr(C, align(128))]
pub struct Mapping {
    /// Process number; 0 when the entry is free.
    pub pid: AtomicU32,
    /// See `mappings.rs`.
    pub state: AtomicU32,
    /// First address.
    pub address: AtomicU64,
    /// Bytes.
    pub bytes: AtomicU64,
    /// Offset in the file.
    pub offset: AtomicU64,
    /// Inode number; 0 while nothing is mapped yet.
    pub ino: AtomicU64,
    /// Device of the inode, as in [`crate::record::FileId`].
    pub dev: AtomicU32,
    /// Counted up each time that the entry changes hands.
    pub turn: AtomicU32,
    /// Keeps the size fixed.
    pub reserved: [AtomicU64; 10],
}

/// An asynchronous write that is in flight, or whose end nobody has seen (`mappings.rs`).
#[repr(C, align(64))]
pub struct Mark {
    /// Process number; 0 when the entry is free.
    pub pid: AtomicU32,
    /// Ends seen of writes with the same key, of which there are several.
    pub seen: AtomicU32,
    /// First byte in the file.
    pub offset: AtomicU64,
    /// Bytes; u64::MAX when the write appends.
    pub bytes: AtomicU64,
    /// Inode number; 0 while the entry is being filled.
    pub ino: AtomicU64,
    /// Device of the inode, as in [`crate::record::FileId`].
    pub dev: AtomicU32,
    /// Counted up each time that the entry changes hands.
    pub turn: AtomicU32,
    /// What names the write in its end: the address of its control block.
    pub key: AtomicU64,
    /// The context that it was given to.
    pub context: AtomicU64,
    /// `FLAG_…` of the records about it.
    pub flags: AtomicU32,
    /// The descriptor, as it was numbered then.
    pub fd: AtomicU32,
}

/// How far a mirror has applied.
#[repr(C, align(64))]
pub struct Cursor {
    /// Identity of the mirror, a random number; 0 when the entry is free.
    pub mirror: AtomicU64,
    /// Position after the last record that was applied.
    pub position: AtomicU64,
    /// Its sequence number.
    pub seq: AtomicU64,
    /// Keeps the size fixed.
    pub reserved: [AtomicU64; 5],
}

/// The path of the primary, as the kernel spells it.
#[repr(C, align(4096))]
pub struct Primary {
    /// Bytes of the path.
    pub length: u64,
    /// The path.
    pub path: [u8; PRIMARY_BYTES],
}

/// Where each area begins, in bytes from the start of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// [`Primary`].
    pub primary: usize,
    /// [`SLOTS`] × [`Slot`].
    pub slots: usize,
    /// 2 × [`STRIPES`] × [`Stripe`], then the one for moves of directories.
    pub stripes: usize,
    /// [`PROCESSES`] × [`Process`].
    pub processes: usize,
    /// [`MAPPINGS`] × [`Mapping`].
    pub mappings: usize,
    /// [`MARKS`] × [`Mark`].
    pub marks: usize,
    /// [`MIRRORS`] × [`Cursor`].
    pub cursors: usize,
    /// One control word a cell.
    pub control: usize,
    /// The cells.
    pub data: usize,
    /// Size of the file.
    pub total: usize,
}

impl Layout {
    /// The layout of a ring with `cells` cells.
    pub const fn new(cells: u32) -> Self {
        const fn page(bytes: usize) -> usize {
            (bytes + 4095) & !4095
        }
        let primary = size_of::<Header>();
        let slots = primary + size_of::<Primary>();
        let stripes = slots + SLOTS * size_of::<Slot>();
        let processes = page(stripes + (2 * STRIPES + 1) * size_of::<Stripe>());
        let mappings = processes + PROCESSES * size_of::<Process>();
        let marks = mappings + MAPPINGS * size_of::<Mapping>();
        let cursors = marks + MARKS * size_of::<Mark>();
        let control = page(cursors + MIRRORS * size_of::<Cursor>());
        let data = page(control + cells as usize * size_of::<u64>());
        let total = data + cells as usize * CELL_BYTES;
        Self { primary, slots, stripes, processes, mappings, marks, cursors, control, data, total }
    }
}

#[cfg(not(loom))]
const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Header>() == 4096);
    assert!(offset_of!(Header, generation) == 16);
    assert!(offset_of!(Header, tail) == 64);
    assert!(offset_of!(Header, head) == 128);
    assert!(offset_of!(Header, space) == 192);
    assert!(offset_of!(Header, consumer_sleeps) == 320);
    assert!(offset_of!(Header, mover) == 384);
    assert!(offset_of!(Header, frozen) == 512);
    assert!(offset_of!(Header, lost) == 640);
    assert!(size_of::<Primary>() == 4096);
    assert!(size_of::<Slot>() == 128);
    assert!(offset_of!(Slot, stack) == 72);
    assert!(size_of::<Stripe>() == 64);
    assert!(size_of::<Process>() == 128);
    assert!(size_of::<Mapping>() == 128);
    assert!(size_of::<Mark>() == 64);
    assert!(size_of::<Cursor>() == 64);
};
