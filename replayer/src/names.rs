//! `Names`: which names the files have that programs hold, for the set as a whole, at the sequencer's place.
//!
//! A mirror that is filled or rebuilt while programs run begins in the middle of the ring: the records that bound the
//! files which programs have open lie before its place. The sequencer folds the names of every record into this, so
//! it knows them whatever has become of the mirrors.

use std::collections::HashSet;
use std::path::Path;

use journal::record::{FileId, Kind, Record};

use crate::error::ReplayError;
use crate::ledger::{Entry, Ledger};

/// Most records between two calls of [`Names::flush`].
pub const BATCH: u64 = 128;

/// `RENAME_EXCHANGE` of renameat2(2).
const EXCHANGE: u64 = 2;

/// The set-wide bindings.
#[derive(Debug)]
pub struct Names {
    ledger: Ledger,
    /// Records up to this one are in the ledger already.
    folded_seq: u64,
    has_news: bool,
}

/// The bindings at one place in the order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Snapshot {
    /// Names with their files, in the order of the bytes.
    pub names: Vec<(Vec<u8>, FileId)>,
    /// Files that have lost their last name, oldest first.
    pub gone: Vec<FileId>,
    /// Files that were made without a name, with the process that made each.
    pub unnamed: Vec<(FileId, u32)>,
}

impl Names {
    /// Reads what was folded by a replayer whose cursor stands at `seq`.
    ///
    /// # Errors
    /// [`ReplayError::Ledger`].
    pub fn open(path: &Path, seq: u64) -> Result<Self, ReplayError> {
        let ledger = Ledger::open(path)?;
        // The ledger is written before the cursor: who is killed in between has folded up to a batch more.
        let folded_seq = (seq..=seq + BATCH).rev().find(|seq| ledger.intent(*seq).is_some()).unwrap_or(seq);
        Ok(Self { ledger, folded_seq, has_news: false })
    }

    /// Takes in the names of a record that took effect.
    pub fn fold(&mut self, seq: u64, record: &Record<'_>) {
        if seq <= self.folded_seq {
            return;
        }
        let file = record.file();
        let (path1, path2) = (record.path1, record.path2);
        match record.kind {
            // Without an identity, a `Bind` record follows with it.
            Kind::Create if file.ino == 0 => self.enter(Entry::Remove(path1)),
            Kind::Create => self.enter(Entry::Bind(file, path1)),
            Kind::Bind if self.ledger.bindings.file(path1) == Some(file) => {}
            Kind::Bind => self.enter(Entry::AddName(file, path1)),
            Kind::Link if file == FileId::NONE => {}
            Kind::Link => {
                if !path1.is_empty() && self.ledger.bindings.file(path1) != Some(file) {
                    self.enter(Entry::AddName(file, path1));
                }
                self.enter(Entry::AddName(file, path2));
            }
            Kind::Rename if path1 == path2 => {}
            Kind::Rename if !self.knows(path1) && !self.knows(path2) => {}
            Kind::Rename if record.header.a & EXCHANGE != 0 => self.enter(Entry::Exchange(path1, path2)),
            // Two names of one file: rename(2) does nothing.
            Kind::Rename if file != FileId::NONE && self.ledger.bindings.file(path2) == Some(file) => {}
            Kind::Rename => self.enter(Entry::Rename(path1, path2)),
            // What is imported may have been here before, under other inode numbers.
            Kind::Unlink | Kind::RemoveDirectory | Kind::Import if self.knows(path1) => {
                self.enter(Entry::Remove(path1))
            }
            Kind::CreateUnnamed => self.enter(Entry::Unnamed(file, record.pid())),
            _ => {}
        }
    }

    /// Makes what was folded up to `seq` survive this process. Call before the cursor moves there.
    ///
    /// # Errors
    /// [`ReplayError::Ledger`]; tried again the next time.
    pub fn flush(&mut self, seq: u64) -> Result<(), ReplayError> {
        if !self.has_news {
            return Ok(());
        }
        self.ledger.enter(Entry::Intent(seq, 0));
        self.ledger.flush()?;
        self.has_news = false;
        Ok(())
    }

    /// The bindings as they are now.
    pub fn snapshot(&self) -> Snapshot {
        let bindings = &self.ledger.bindings;
        Snapshot {
            names: bindings.iter().map(|(name, file)| (name.to_vec(), file)).collect(),
            gone: bindings.gone().collect(),
            unnamed: self.ledger.unnamed().iter().map(|(file, pid)| (*file, *pid)).collect(),
        }
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.ledger.bindings.len()
    }

    /// Forgets files that nobody holds.
    pub fn forget_others(&mut self, held: &HashSet<FileId>) {
        let others: HashSet<FileId> = self.ledger.bindings.iter().map(|(_, file)| file).collect();
        for file in others.difference(held) {
            self.enter(Entry::Forget(*file));
        }
    }

    fn knows(&self, path: &[u8]) -> bool {
        self.ledger.bindings.has_within(path)
    }

    fn enter(&mut self, entry: Entry<'_>) {
        self.ledger.enter(entry);
        self.has_news = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use journal::record::Header;

    fn fold(names: &mut Names, seq: u64, kind: Kind, ino: u64, path1: &str, path2: &str) {
        let payload = format!("{path1}{path2}");
        let (path1_bytes, path2_bytes) = (path1.len() as u16, path2.len() as u16);
        let header = Header { kind: kind as u8, ino, dev: 1, path1_bytes, path2_bytes, ..Header::default() };
        names.fold(seq, &Record::parse(header, payload.as_bytes()).expect("well formed"));
    }

    fn listed(names: &Names) -> Vec<(String, u64)> {
        let text = |(name, file): (Vec<u8>, FileId)| (String::from_utf8(name).expect("text"), file.ino);
        names.snapshot().names.into_iter().map(text).collect()
    }

    #[test]
    fn names_survive_a_kill_between_ledger_and_cursor() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("names");
        let mut names = Names::open(&path, 0).expect("opened");
        fold(&mut names, 1, Kind::Create, 10, "d/x", "");
        names.flush(1).expect("written");
        fold(&mut names, 2, Kind::Rename, 5, "d", "e");
        fold(&mut names, 3, Kind::Bind, 11, "d", "");
        names.flush(3).expect("written");
        // The cursor still stands at 1, so both records are folded once more.
        let mut again = Names::open(&path, 1).expect("opened");
        fold(&mut again, 2, Kind::Rename, 5, "d", "e");
        fold(&mut again, 3, Kind::Bind, 11, "d", "");
        assert_eq!(listed(&again), [("d".to_owned(), 11), ("e/x".to_owned(), 10)]);
        fold(&mut again, 4, Kind::Unlink, 11, "d", "");
        assert_eq!(listed(&again), [("e/x".to_owned(), 10)]);
        assert_eq!(again.snapshot().gone, [FileId { dev: 1, ino: 11 }]);
    }
}
