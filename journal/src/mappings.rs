//! What changes files without a call of its own: shared writable mappings, and asynchronous writes in flight.
//!
//! A process enters each before the first change can happen and takes it out after the last one is recorded, so what
//! is left of a process that was killed says which ranges have to be read again. Entries of a file's mappings are
//! changed under the stripe of the file, so whoever holds it and finds an entry as it was can rely on it.

use crate::layout::{MAPPINGS, MARKS, Mapping, Mark};
use crate::record::FileId;
use crate::ring::Ring;
use crate::sync::Ordering;

/// What a program says over the socket `mappings` of the set when it has made a mapping, with the descriptor of its
/// userfaultfd attached if the kernel tracks the stores: index and turn of the entry.
pub const ANNOUNCEMENT_BYTES: usize = 8;

/// Marks with one key lie at most this far from where the key says.
const MARK_PROBES: usize = 16;

/// How the stores of a mapping are found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum MappingState {
    /// It is being made.
    Preparing = 0,
    /// It has never been writable.
    Readable = 1,
    /// By comparing.
    Writable = 2,
    /// The kernel says which pages were written.
    Tracked = 3,
}

impl MappingState {
    const fn from_u32(value: u32) -> Self {
        match value {
            1 => Self::Readable,
            2 => Self::Writable,
            3 => Self::Tracked,
            _ => Self::Preparing,
        }
    }
}

/// What is mapped where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// The file.
    pub file: FileId,
    /// First address.
    pub address: u64,
    /// Bytes.
    pub bytes: u64,
    /// Offset in the file.
    pub offset: u64,
    /// `FLAG_…` of the records about it.
    pub flags: u8,
}

/// An entry of the table of mappings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MappingView {
    /// Its number.
    pub index: u16,
    /// How often the number has changed hands.
    pub turn: u32,
    /// The process.
    pub pid: u32,
    /// How stores are found.
    pub state: MappingState,
    /// What is mapped; file [`FileId::NONE`] when its owner has not said so yet.
    pub range: Range,
}

/// Says that `turn` of entry `index` has been made.
pub fn announcement(index: u16, turn: u32) -> [u8; ANNOUNCEMENT_BYTES] {
    let mut bytes = [0; ANNOUNCEMENT_BYTES];
    bytes[..4].copy_from_slice(&u32::from(index).to_le_bytes());
    bytes[4..].copy_from_slice(&turn.to_le_bytes());
    bytes
}

/// Index and turn of an [`announcement`].
pub fn announced(bytes: [u8; ANNOUNCEMENT_BYTES]) -> Option<(u16, u32)> {
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    Some((u16::try_from(word(0)?).ok()?, word(4)?))
}

/// An asynchronous write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Write {
    /// The file.
    pub file: FileId,
    /// First byte.
    pub offset: u64,
    /// Bytes; u64::MAX when it appends, somewhere after `offset`.
    pub bytes: u64,
    /// What names it in its end.
    pub key: u64,
    /// The context that it was given to.
    pub context: u64,
    /// The descriptor, as it was numbered then.
    pub fd: u32,
    /// `FLAG_…` of the records about it.
    pub flags: u8,
}

/// An entry of the table of asynchronous writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MarkView {
    /// Its number.
    pub index: u16,
    /// How often the number has changed hands.
    pub turn: u32,
    /// The process.
    pub pid: u32,
    /// What is written; file [`FileId::NONE`] when its owner has not said so yet.
    pub write: Write,
}

impl Ring {
    /// Takes an entry for a mapping that process `pid` is about to make. `None` when the table is full.
    pub fn claim_mapping(&self, pid: u32, range: &Range) -> Option<u16> {
        let table = self.mappings();
        let index = (0..MAPPINGS).find(|index| {
            let free = table[*index].pid.load(Ordering::Relaxed) == 0;
            free && table[*index].pid.compare_exchange(0, pid, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })?;
        let turn = table[index].turn.fetch_add(1, Ordering::AcqRel).wrapping_add(1);
        self.header().mappings_used.fetch_max(index as u32 + 1, Ordering::SeqCst);
        self.set_mapping(index as u16, turn, range, MappingState::Preparing);
        Some(index as u16)
    }

    /// Says what an entry stands for. Only its owner calls this, under the file's stripe once stores are possible.
    pub fn set_mapping(&self, index: u16, turn: u32, range: &Range, state: MappingState) {
        let Some(entry) = self.mappings().get(index as usize) else { return };
        if entry.turn.load(Ordering::Acquire) != turn || entry.pid.load(Ordering::Acquire) == 0 {
            // The replayer has found the mapping gone before its owner has said so.
            return;
        }
        entry.address.store(range.address, Ordering::Relaxed);
        entry.bytes.store(range.bytes, Ordering::Relaxed);
        entry.offset.store(range.offset, Ordering::Relaxed);
        entry.dev.store(range.file.dev, Ordering::Relaxed);
        entry.ino.store(range.file.ino, Ordering::Release);
        entry.state.store(state as u32 | u32::from(range.flags) << 8, Ordering::Release);
    }

    /// The entry with this number, if it is in use.
    pub fn mapping(&self, index: u16) -> Option<MappingView> {
        let entry = self.mappings().get(index as usize)?;
        let turn = entry.turn.load(Ordering::Acquire);
        let pid = entry.pid.load(Ordering::Acquire);
        let state = entry.state.load(Ordering::Acquire);
        let ino = entry.ino.load(Ordering::Acquire);
        let range = Range {
            file: FileId { dev: entry.dev.load(Ordering::Acquire), ino },
            address: entry.address.load(Ordering::Acquire),
            bytes: entry.bytes.load(Ordering::Acquire),
            offset: entry.offset.load(Ordering::Acquire),
            flags: (state >> 8) as u8,
        };
        let state = MappingState::from_u32(state & 0xff);
        // Whatever lies there, its ends can be computed with.
        let bytes = range.bytes.min(u64::MAX - range.address.max(range.offset));
        let file = if ino == 0 { FileId::NONE } else { range.file };
        let range = Range { file, bytes, ..range };
        let same = entry.turn.load(Ordering::Acquire) == turn;
        (pid != 0 && same).then_some(MappingView { index, turn, pid, state, range })
    }

    /// All entries in use.
    pub fn mapping_views(&self) -> impl Iterator<Item = MappingView> + '_ {
        let used = self.header().mappings_used.load(Ordering::SeqCst).min(MAPPINGS as u32);
        (0..used as u16).filter_map(|index| self.mapping(index))
    }

    /// Frees an entry, if it is still `view`'s. Only its owner calls this, or the replayer when the owner has ended.
    pub fn release_mapping(&self, index: u16, turn: u32) {
        let Some(entry) = self.mappings().get(index as usize) else { return };
        if entry.turn.load(Ordering::Acquire) == turn && entry.pid.load(Ordering::Acquire) != 0 {
            entry.ino.store(0, Ordering::Relaxed);
            entry.state.store(MappingState::Preparing as u32, Ordering::Relaxed);
            entry.pid.store(0, Ordering::Release);
        }
    }

    fn mark_indices(pid: u32, key: u64, context: u64) -> impl Iterator<Item = usize> {
        let hash = (key ^ context.rotate_left(32) ^ u64::from(pid)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        (0..MARK_PROBES).map(move |step| (hash as usize + step) % MARKS)
    }

    /// Marks a write that process `pid` is about to submit. `None` when there is no room for it.
    pub fn claim_mark(&self, pid: u32, write: &Write) -> Option<u16> {
        let table = self.marks();
        let index = Self::mark_indices(pid, write.key, write.context).find(|index| {
            let free = table[*index].pid.load(Ordering::Relaxed) == 0;
            free && table[*index].pid.compare_exchange(0, pid, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })?;
        let entry = &table[index];
        entry.turn.fetch_add(1, Ordering::AcqRel);
        entry.seen.store(0, Ordering::Relaxed);
        entry.offset.store(write.offset, Ordering::Relaxed);
        entry.bytes.store(write.bytes, Ordering::Relaxed);
        entry.key.store(write.key, Ordering::Relaxed);
        entry.context.store(write.context, Ordering::Relaxed);
        entry.fd.store(write.fd, Ordering::Relaxed);
        entry.flags.store(u32::from(write.flags), Ordering::Relaxed);
        entry.dev.store(write.file.dev, Ordering::Relaxed);
        entry.ino.store(write.file.ino, Ordering::Release);
        self.header().marks_used.fetch_max(index as u32 + 1, Ordering::SeqCst);
        Some(index as u16)
    }

    /// The mark with this number, if it is in use.
    pub fn mark(&self, index: u16) -> Option<MarkView> {
        let entry = self.marks().get(index as usize)?;
        let turn = entry.turn.load(Ordering::Acquire);
        let pid = entry.pid.load(Ordering::Acquire);
        let ino = entry.ino.load(Ordering::Acquire);
        let dev = entry.dev.load(Ordering::Acquire);
        let write = Write {
            file: if ino == 0 { FileId::NONE } else { FileId { dev, ino } },
            offset: entry.offset.load(Ordering::Acquire),
            bytes: entry.bytes.load(Ordering::Acquire),
            key: entry.key.load(Ordering::Acquire),
            context: entry.context.load(Ordering::Acquire),
            fd: entry.fd.load(Ordering::Acquire),
            flags: entry.flags.load(Ordering::Acquire) as u8,
        };
        let same = entry.turn.load(Ordering::Acquire) == turn;
        (pid != 0 && same).then_some(MarkView { index, turn, pid, write })
    }

    /// The marks of process `pid` whose end is told by `key` and `context`: one, unless a program uses the same
    /// control block for several writes at a time.
    pub fn marks_with(&self, pid: u32, key: u64, context: u64) -> impl Iterator<Item = MarkView> + '_ {
        Self::mark_indices(pid, key, context)
            .filter_map(|index| self.mark(index as u16))
            .filter(move |mark| mark.pid == pid && mark.write.key == key && mark.write.context == context)
    }

    /// All marks.
    pub fn mark_views(&self) -> impl Iterator<Item = MarkView> + '_ {
        let used = self.header().marks_used.load(Ordering::SeqCst).min(MARKS as u32);
        (0..used as u16).filter_map(|index| self.mark(index))
    }

    /// Counts an end that may be the mark's; returns how many there were.
    pub fn see_end(&self, mark: &MarkView) -> u32 {
        self.marks().get(mark.index as usize).map_or(0, |entry| entry.seen.fetch_add(1, Ordering::AcqRel) + 1)
    }

    /// Frees a mark, if it is still what it was.
    pub fn release_mark(&self, index: u16, turn: u32) {
        let Some(entry) = self.marks().get(index as usize) else { return };
        if entry.turn.load(Ordering::Acquire) == turn && entry.pid.load(Ordering::Acquire) != 0 {
            entry.ino.store(0, Ordering::Relaxed);
            entry.pid.store(0, Ordering::Release);
        }
    }

    /// True when anything is mapped or marked, by whomever.
    pub fn has_mappings_or_marks(&self) -> bool {
        let header = self.header();
        let mappings = header.mappings_used.load(Ordering::SeqCst).min(MAPPINGS as u32) as usize;
        let marks = header.marks_used.load(Ordering::SeqCst).min(MARKS as u32) as usize;
        let is_mapping = |entry: &Mapping| entry.pid.load(Ordering::Acquire) != 0;
        let is_mark = |entry: &Mark| entry.pid.load(Ordering::Acquire) != 0;
        self.mappings()[..mappings].iter().any(is_mapping) || self.marks()[..marks].iter().any(is_mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::tests::Memory;

    const FILE: FileId = FileId { dev: 7, ino: 8 };

    #[test]
    fn an_entry_is_seen_until_it_is_released() {
        let memory = Memory::new();
        let ring = memory.ring();
        let range = Range { file: FILE, address: 0x1000, bytes: 4096, offset: 8192, flags: 2 };
        let index = ring.claim_mapping(99, &range).expect("room");
        let view = ring.mapping(index).expect("in use");
        assert_eq!((view.pid, view.state, view.range), (99, MappingState::Preparing, range));
        ring.set_mapping(index, view.turn, &Range { bytes: 12288, ..range }, MappingState::Tracked);
        let view = ring.mapping(index).expect("in use");
        assert_eq!((view.state, view.range.bytes, view.range.flags), (MappingState::Tracked, 12288, 2));
        assert!(ring.has_mappings_or_marks());
        ring.release_mapping(index, view.turn + 1);
        assert!(ring.mapping(index).is_some(), "another turn's release does nothing");
        ring.release_mapping(index, view.turn);
        assert_eq!(ring.mapping(index), None);
        assert!(!ring.has_mappings_or_marks());
        assert_eq!(ring.mapping_views().count(), 0);
    }

    #[test]
    fn every_entry_can_be_taken_once() {
        let memory = Memory::new();
        let ring = memory.ring();
        let range = Range { file: FILE, address: 0, bytes: 1, offset: 0, flags: 0 };
        assert!((0..MAPPINGS).all(|_| ring.claim_mapping(5, &range).is_some()));
        assert_eq!(ring.claim_mapping(5, &range), None);
        assert_eq!(ring.mapping_views().count(), MAPPINGS);
    }

    #[test]
    fn writes_are_found_by_what_names_their_end() {
        let memory = Memory::new();
        let ring = memory.ring();
        let write = Write { file: FILE, offset: 5, bytes: 6, key: 0xabc0, context: 0x7f00, fd: 3, flags: 0 };
        let first = ring.claim_mark(1, &write).expect("room");
        let second = ring.claim_mark(1, &Write { offset: 50, ..write }).expect("room");
        ring.claim_mark(1, &Write { key: 0xabd0, ..write }).expect("room");
        ring.claim_mark(2, &write).expect("room");
        let mut found: Vec<_> = ring.marks_with(1, 0xabc0, 0x7f00).map(|mark| mark.index).collect();
        found.sort_unstable();
        let mut wanted = vec![first, second];
        wanted.sort_unstable();
        assert_eq!(found, wanted);
        let mark = ring.mark(first).expect("in use");
        assert_eq!(mark.write, write);
        assert_eq!((ring.see_end(&mark), ring.see_end(&mark)), (1, 2));
        ring.release_mark(first, mark.turn);
        assert_eq!(ring.marks_with(1, 0xabc0, 0x7f00).count(), 1);
        assert_eq!(ring.mark_views().count(), 3);
    }

    #[test]
    fn announcements_are_read_as_written() {
        assert_eq!(announced(announcement(4095, u32::MAX)), Some((4095, u32::MAX)));
        assert_eq!(announced([0xff; 8]), None);
    }
}
