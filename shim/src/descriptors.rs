//! What each descriptor is: a file of the primary, or none of our business. A flat table, checked lazily.
//!
//! An entry is a verdict that was found at open or at the first change through a descriptor that came by another way
//! (inherited, received, opened by handle). Every call that gives a descriptor number a new meaning resets it.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use journal::Ring;
use journal::record::{FLAG_MAYBE_OUTSIDE, FileId};

/// Descriptors above this number are asked about each time.
const ENTRIES: usize = 1 << 16;

const UNKNOWN: u64 = 0;
const OUTSIDE: u64 = 1;
const FILE: u64 = 2;
const VERDICT: u64 = 3;

/// Every write appends, whatever offset is asked for (O_APPEND).
pub const APPENDS: u64 = 4;
/// Transfers bypass the page cache and want aligned addresses (O_DIRECT).
pub const DIRECT: u64 = 16;
/// The file was met under a name outside the primary; it has several names.
pub const MAYBE_OUTSIDE: u64 = 32;
/// Not a regular file: transfers may block.
pub const BLOCKS: u64 = 64;

/// The number is being given a new meaning (dup2(2)): nothing found out about it now can be relied on.
const CHANGING: u64 = 128;

struct Entry {
    /// Verdict and flags in the low byte, how often the number was given a new meaning (24 bits), device (32 bits);
    /// with `OUTSIDE`, the upper half is the ring's `outside_generation` at the time of the verdict.
    word: AtomicU64,
    ino: AtomicU64,
}

static TABLE: [Entry; ENTRIES] = [const { Entry { word: AtomicU64::new(0), ino: AtomicU64::new(0) } }; ENTRIES];

/// A descriptor's verdict.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Nobody has looked yet, or it has a new meaning since.
    Unknown,
    /// Not a regular file of the primary; the flags say whether it may block.
    Outside(u64),
    /// A regular file of the primary, with its flags.
    File(FileId, u64),
}

fn entry(fd: i32) -> Option<&'static Entry> {
    TABLE.get(usize::try_from(fd).ok()?)
}

/// The remembered verdict on `fd`.
#[inline(always)]
pub fn look_up(ring: &Ring, fd: i32) -> Verdict {
    let Some(entry) = entry(fd) else { return Verdict::Unknown };
    let word = entry.word.load(Ordering::Acquire);
    match word & VERDICT {
        OUTSIDE if (word >> 32) as u32 == ring.header().outside_generation.load(Ordering::Relaxed) as u32 => {
            Verdict::Outside(word & 0xfc)
        }
        FILE => Verdict::File(FileId { dev: (word >> 32) as u32, ino: entry.ino.load(Ordering::Relaxed) }, word & 0xfc),
        _ => Verdict::Unknown,
    }
}

/// Forgets what is known of `fd`, whose number has a new meaning.
#[inline(always)]
pub fn reset(fd: i32) {
    if let Some(entry) = entry(fd) {
        let word = entry.word.load(Ordering::Relaxed);
        entry.word.store((word & 0xffff_ff00).wrapping_add(0x100) & 0xffff_ff00 | UNKNOWN, Ordering::Release);
    }
}

/// Says that `fd` is about to get a new meaning, while it keeps its old one for a moment; ends with [`copy`] or [`reset`].
pub fn begin_change(fd: i32) {
    reset(fd);
    if let Some(entry) = entry(fd) {
        entry.word.fetch_or(CHANGING, Ordering::SeqCst);
    }
}

/// True while `fd` is being given a new meaning.
pub fn is_changing(fd: i32) -> bool {
    entry(fd).is_some_and(|entry| entry.word.load(Ordering::SeqCst) & CHANGING != 0)
}

/// Forgets what is known of a range of descriptors.
pub fn reset_range(first: u32, last: u32) {
    for fd in first..=last.min(ENTRIES as u32 - 1) {
        if let Some(entry) = entry(fd as i32)
            && entry.word.load(Ordering::Relaxed) != 0
        {
            reset(fd as i32);
        }
    }
}

/// True when [`meaning`] tells one meaning of `fd` from the next.
pub fn is_remembered(fd: i32) -> bool {
    entry(fd).is_some() && REMEMBERS.load(Ordering::Relaxed)
}

/// How often the number `fd` has got a new meaning: with the number, a key for what was found out about it.
pub fn meaning(fd: i32) -> u64 {
    entry(fd).map_or(0, |entry| entry.word.load(Ordering::Acquire) >> 8 & 0xff_ffff)
}

/// Not set while threads of the process have descriptors of their own (unshare(2) with CLONE_FILES): then one table
/// can't hold what a number means.
static REMEMBERS: AtomicBool = AtomicBool::new(true);

/// From now on nothing is remembered: a thread has got descriptors of its own.
pub fn stop_remembering() {
    REMEMBERS.store(false, Ordering::SeqCst);
    reset_range(0, u32::MAX);
}

fn may_remember() -> bool {
    REMEMBERS.load(Ordering::Relaxed) && !crate::state::is_borrowed_memory()
}

/// Remembers that `fd` is a file of the primary. Not for children that borrow their parent's memory.
pub fn set_file(fd: i32, file: FileId, flags: u64) {
    if let Some(entry) = entry(fd)
        && may_remember()
    {
        let word = entry.word.load(Ordering::Relaxed);
        if word & CHANGING != 0 {
            return;
        }
        let count = word & 0xffff_ff00;
        entry.ino.store(file.ino, Ordering::Relaxed);
        entry.word.store(u64::from(file.dev) << 32 | count | flags | FILE, Ordering::Release);
    }
}

/// Remembers that `fd` is none of our business, until a file comes in from outside.
pub fn set_outside(ring: &Ring, fd: i32, flags: u64) {
    if let Some(entry) = entry(fd)
        && may_remember()
    {
        let generation = ring.header().outside_generation.load(Ordering::Relaxed);
        let word = entry.word.load(Ordering::Relaxed);
        if word & CHANGING != 0 {
            return;
        }
        let count = word & 0xffff_ff00;
        entry.word.store((generation & 0xffff_ffff) << 32 | count | flags | OUTSIDE, Ordering::Release);
    }
}

/// Notes new status flags of `fd` (F_SETFL), and of all descriptors of the same file: they may share them.
pub fn set_status(fd: i32, status: i32) {
    let Some(changed) = entry(fd) else { return };
    let word = changed.word.load(Ordering::Relaxed);
    if word & VERDICT != FILE {
        return;
    }
    let ino = changed.ino.load(Ordering::Relaxed);
    let is_same = |entry: &&Entry| {
        entry.word.load(Ordering::Relaxed) & VERDICT == FILE && entry.ino.load(Ordering::Relaxed) == ino
    };
    for other in TABLE.iter().filter(is_same) {
        // The next call through it asks anew.
        let word = other.word.load(Ordering::Relaxed);
        other.word.store(word & 0xffff_ff00 | UNKNOWN, Ordering::Release);
    }
    changed.word.store(word & !(APPENDS | DIRECT) | flags_of(status) & (APPENDS | DIRECT), Ordering::Release);
}

/// The flags of records about a file, for the flags of its descriptor.
pub const fn record_flags(flags: u64) -> u8 {
    if flags & MAYBE_OUTSIDE != 0 { FLAG_MAYBE_OUTSIDE } else { 0 }
}

/// The entry's flags for the status flags of open(2) and F_GETFL.
pub const fn flags_of(status: i32) -> u64 {
    (if status & libc::O_APPEND != 0 { APPENDS } else { 0 }) | (if status & libc::O_DIRECT != 0 { DIRECT } else { 0 })
}

/// `to` has become another number for what `from` stands for.
pub fn copy(from: i32, to: i32) {
    reset(to);
    let (Some(source), Some(target)) = (entry(from), entry(to)) else { return };
    let word = source.word.load(Ordering::Acquire);
    if word & VERDICT != UNKNOWN && may_remember() {
        let count = target.word.load(Ordering::Relaxed) & 0xffff_ff00;
        target.ino.store(source.ino.load(Ordering::Relaxed), Ordering::Relaxed);
        target.word.store(word & !0xffff_ff00 | count, Ordering::Release);
    }
}
