//! The shared mappings of files of the primary that this process has: its own view of what it has entered into the
//! table of mappings, kept over fork.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use journal::Ring;
use journal::layout::MAPPINGS;
use journal::mappings::{MappingState, Range};
use journal::record::FileId;

use crate::sys::{is_error, syscall};

const WORDS: usize = MAPPINGS / 64;

/// A mapping, or what is left of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapped {
    /// Its number here.
    pub slot: usize,
    /// Its entry in the ring's table.
    pub index: u16,
    /// The entry's turn.
    pub turn: u32,
    /// How stores are found.
    pub state: MappingState,
    /// What is mapped where.
    pub range: Range,
}

impl Mapped {
    /// First address.
    pub const fn start(&self) -> usize {
        self.range.address as usize
    }

    /// The address after the last.
    pub const fn end(&self) -> usize {
        (self.range.address + self.range.bytes) as usize
    }

    /// The part of it between two addresses, if there is one.
    pub fn part(&self, start: usize, end: usize) -> Option<(usize, usize)> {
        let part = (self.start().max(start), self.end().min(end));
        (part.0 < part.1).then_some(part)
    }

    /// What a part of it maps.
    pub const fn between(&self, start: usize, end: usize) -> Range {
        let offset = self.offset_of(start);
        Range { address: start as u64, bytes: (end - start) as u64, offset, ..self.range }
    }

    /// Offset in the file of an address.
    pub const fn offset_of(&self, address: usize) -> u64 {
        self.range.offset + (address as u64 - self.range.address)
    }
}

struct Entry {
    index: AtomicU32,
    turn: AtomicU32,
    state: AtomicU32,
    flags: AtomicU32,
    dev: AtomicU32,
    ino: AtomicU64,
    address: AtomicU64,
    bytes: AtomicU64,
    offset: AtomicU64,
}

/// The table, in a mapping that is made with the first entry.
pub struct Table {
    used: [AtomicU64; WORDS],
    entries: [Entry; MAPPINGS],
}

static TABLE: AtomicPtr<Table> = AtomicPtr::new(core::ptr::null_mut());
/// Entries in use; nothing else is looked at while there are none.
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// A word that is not 0, and that the kernel zeroes in a forked child (MADV_WIPEONFORK).
static MINE: AtomicPtr<AtomicU32> = AtomicPtr::new(core::ptr::null_mut());

/// True when this process has mappings that concern us.
#[inline(always)]
pub fn any() -> bool {
    COUNT.load(Ordering::Relaxed) != 0
}

/// The table, if there is anything in it.
pub fn table() -> Option<&'static Table> {
    if !any() {
        return None;
    }
    // SAFETY: null or the mapping made below, which stays.
    unsafe { TABLE.load(Ordering::Acquire).as_ref() }
}

/// The table, made if it isn't there.
pub fn table_or_new() -> Option<&'static Table> {
    if MINE.load(Ordering::Acquire).is_null() {
        let word = new_memory(size_of::<AtomicU32>())?;
        // SAFETY: advice on a mapping of ours.
        let wiped = unsafe { syscall!(libc::SYS_madvise, word, 4096, libc::MADV_WIPEONFORK) };
        if is_error(wiped) || !publish(&MINE, word.cast()) {
            unmap(word, size_of::<AtomicU32>());
        }
        take_over();
    }
    if TABLE.load(Ordering::Acquire).is_null() {
        let memory = new_memory(size_of::<Table>())?;
        if !publish(&TABLE, memory.cast()) {
            unmap(memory, size_of::<Table>());
        }
    }
    // SAFETY: as in `table`.
    unsafe { TABLE.load(Ordering::Acquire).as_ref() }
}

/// True when what is in the table was entered by this process or one whose memory it shares, and not by the process
/// that it was forked from.
pub fn is_mine() -> bool {
    // SAFETY: null or a mapping made above, which stays.
    unsafe { MINE.load(Ordering::Acquire).as_ref() }.is_some_and(|word| word.load(Ordering::Relaxed) != 0)
}

/// Makes what is in the table this process's own.
pub fn take_over() {
    // SAFETY: as above.
    if let Some(word) = unsafe { MINE.load(Ordering::Acquire).as_ref() } {
        word.store(1, Ordering::Relaxed);
    }
}

fn new_memory(bytes: usize) -> Option<*mut u8> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping; zero is valid for all that is kept in it.
    let mapped = unsafe { syscall!(libc::SYS_mmap, 0, bytes, protection, flags, -1i32, 0) };
    (!is_error(mapped)).then_some(mapped as *mut u8)
}

fn unmap(memory: *mut u8, bytes: usize) {
    // SAFETY: made above, and seen by nobody else.
    unsafe { syscall!(libc::SYS_munmap, memory, bytes) };
}

fn publish<T>(place: &AtomicPtr<T>, memory: *mut T) -> bool {
    place.compare_exchange(core::ptr::null_mut(), memory, Ordering::AcqRel, Ordering::Acquire).is_ok()
}

impl Table {
    /// Enters a mapping that is about to be made; `None` when there is no room, here or in the ring.
    pub fn enter(&self, ring: &Ring, pid: u32, range: &Range) -> Option<Mapped> {
        let slot = self.take_slot()?;
        let Some(index) = ring.claim_mapping(pid, range) else {
            self.free_slot(slot);
            return None;
        };
        let turn = ring.mapping(index).map_or(0, |view| view.turn);
        let mapped = Mapped { slot, index, turn, state: MappingState::Preparing, range: *range };
        self.store(&mapped);
        Some(mapped)
    }

    /// Says that a mapping has changed, here and in the ring.
    pub fn set(&self, ring: &Ring, mapped: &Mapped) {
        self.store(mapped);
        ring.set_mapping(mapped.index, mapped.turn, &mapped.range, mapped.state);
    }

    /// Takes out a mapping that is no more.
    pub fn leave(&self, ring: &Ring, mapped: &Mapped) {
        ring.release_mapping(mapped.index, mapped.turn);
        self.free_slot(mapped.slot);
    }

    /// Enters a mapping of the parent's under this process's number, in place of the parent's entry.
    pub fn enter_again(&self, ring: &Ring, pid: u32, inherited: &Mapped) -> Option<Mapped> {
        let Some(index) = ring.claim_mapping(pid, &inherited.range) else {
            self.free_slot(inherited.slot);
            return None;
        };
        let turn = ring.mapping(index).map_or(0, |view| view.turn);
        let mapped = Mapped { index, turn, ..*inherited };
        self.set(ring, &mapped);
        Some(mapped)
    }

    /// The mapping with this number, if there is one.
    pub fn get(&self, slot: usize) -> Option<Mapped> {
        let word = self.used.get(slot / 64)?.load(Ordering::Acquire);
        let entry = self.entries.get(slot)?;
        if word & (1 << (slot % 64)) == 0 {
            return None;
        }
        let ino = entry.ino.load(Ordering::Acquire);
        let range = Range {
            file: FileId { dev: entry.dev.load(Ordering::Relaxed), ino },
            address: entry.address.load(Ordering::Relaxed),
            bytes: entry.bytes.load(Ordering::Relaxed),
            offset: entry.offset.load(Ordering::Relaxed),
            flags: entry.flags.load(Ordering::Relaxed) as u8,
        };
        let state = match entry.state.load(Ordering::Relaxed) {
            1 => MappingState::Readable,
            2 => MappingState::Writable,
            3 => MappingState::Tracked,
            _ => MappingState::Preparing,
        };
        let index = entry.index.load(Ordering::Relaxed) as u16;
        let turn = entry.turn.load(Ordering::Relaxed);
        (ino != 0).then_some(Mapped { slot, index, turn, state, range })
    }

    /// All mappings that there are when they are reached.
    pub fn all(&self) -> impl Iterator<Item = Mapped> + '_ {
        let words = self.used.iter().enumerate().filter(|(_, word)| word.load(Ordering::Acquire) != 0);
        words.flat_map(move |(number, _)| (number * 64..number * 64 + 64).filter_map(|slot| self.get(slot)))
    }

    fn store(&self, mapped: &Mapped) {
        let Some(entry) = self.entries.get(mapped.slot) else { return };
        entry.index.store(u32::from(mapped.index), Ordering::Relaxed);
        entry.turn.store(mapped.turn, Ordering::Relaxed);
        entry.state.store(mapped.state as u32, Ordering::Relaxed);
        entry.flags.store(u32::from(mapped.range.flags), Ordering::Relaxed);
        entry.dev.store(mapped.range.file.dev, Ordering::Relaxed);
        entry.address.store(mapped.range.address, Ordering::Relaxed);
        entry.bytes.store(mapped.range.bytes, Ordering::Relaxed);
        entry.offset.store(mapped.range.offset, Ordering::Relaxed);
        entry.ino.store(mapped.range.file.ino, Ordering::Release);
    }

    fn take_slot(&self) -> Option<usize> {
        for (number, word) in self.used.iter().enumerate() {
            let mut value = word.load(Ordering::Relaxed);
            while value != u64::MAX {
                let bit = value.trailing_ones() as usize;
                match word.compare_exchange(value, value | 1 << bit, Ordering::AcqRel, Ordering::Relaxed) {
                    Ok(_) => {
                        COUNT.fetch_add(1, Ordering::AcqRel);
                        return Some(number * 64 + bit);
                    }
                    Err(now) => value = now,
                }
            }
        }
        None
    }

    fn free_slot(&self, slot: usize) {
        if let (Some(word), Some(entry)) = (self.used.get(slot / 64), self.entries.get(slot)) {
            entry.ino.store(0, Ordering::Release);
            let bit = 1 << (slot % 64);
            if word.fetch_and(!bit, Ordering::AcqRel) & bit != 0 {
                COUNT.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }
}
