//! `Ledger`: what a worker must remember of its mirror when it is killed: bindings, what is touched and not settled,
//! what is still to be repaired, and what the mirror could not take.
//!
//! Every change of it is an [`Entry`], appended to a file before its record counts as applied, so the file read again
//! gives the same ledger. A torn entry at the end belongs to a record that is applied again. Too long a file is
//! rewritten. The file protects against death of the process only; after a crash of the machine a mirror is resynced.

mod entries;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use journal::record::FileId;

use crate::bindings::Bindings;
use crate::error::ReplayError;
use crate::paths::{self, PathMap};
use crate::repair::{PathRepair, Pending};

use entries::{decode, encode};

const MAGIC: &[u8; 16] = b"lockstep ledger1";

/// What [`Ledger::intent`] gives after the names have changed in the ledger, too.
pub const MOVED: u64 = u64::MAX;

/// Below this many bytes a rewrite is not worth while.
const REWRITE_BYTES_MIN: u64 = 4 << 20;

/// One change of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry<'a> {
    /// `file` has this name and no other.
    Bind(FileId, &'a [u8]),
    /// `file` has this name, too.
    AddName(FileId, &'a [u8]),
    /// The name and all below it are removed.
    Remove(&'a [u8]),
    /// The first, with all below it, became the second.
    Rename(&'a [u8], &'a [u8]),
    /// The two changed places.
    Exchange(&'a [u8], &'a [u8]),
    /// Nothing is known of the file.
    Forget(FileId),
    /// The file has no name.
    Gone(FileId),
    /// What was known of files without a name is forgotten.
    ForgetGone,
    /// The file's times are not settled.
    Touch(FileId),
    /// The times of the object of this name are not settled.
    TouchPath(&'a [u8]),
    /// All that was touched is settled.
    Settled,
    /// A record that is not idempotent by itself is about to be applied: its sequence number, and the inode number of
    /// its first path in the mirror.
    Intent(u64, u64),
    /// The mirror could not take the object of this name.
    Absent(&'a [u8]),
    /// Bytes of a file are to be read again: offset and length, u64::MAX for all and the size.
    RepairFile(FileId, u64, u64),
    /// A path is to be compared again.
    RepairPath(&'a [u8], PathRepair),
    /// The file is repaired.
    MendedFile(FileId),
    /// The path is repaired.
    MendedPath(&'a [u8]),
    /// The object was read from the primary and may be ahead of the records.
    Ahead(&'a [u8]),
    /// Bytes of the file were read from the primary and may be ahead of the records.
    AheadFile(FileId),
    /// All records have been applied, so that nothing is ahead of them.
    CaughtUp,
    /// An unnamed file belongs to this process.
    Unnamed(FileId, u32),
}

/// What is remembered of a mirror.
#[derive(Debug)]
pub struct Ledger {
    /// Names of files. Changed only through [`Ledger::enter`], but for descriptors.
    pub bindings: Bindings,
    touched: PathMap<()>,
    pending: Pending,
    absent: PathMap<()>,
    ahead: PathMap<()>,
    ahead_files: HashSet<FileId>,
    unnamed: HashMap<FileId, u32>,
    intent: (u64, u64),
    unwritten: Vec<u8>,
    file: File,
    path: PathBuf,
    file_bytes: u64,
    rewrite_at_bytes: u64,
    is_fresh: bool,
}

impl Ledger {
    /// Reads the ledger in `path`, or makes an empty one.
    ///
    /// # Errors
    /// [`ReplayError::Ledger`].
    pub fn open(path: &Path) -> Result<Self, ReplayError> {
        let failed = |operation| move |source| ReplayError::Ledger { operation, path: path.to_path_buf(), source };
        let mut options = File::options();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(failed("open"))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed("read"))?;
        let mut ledger = Self {
            bindings: Bindings::default(),
            touched: PathMap::default(),
            pending: Pending::default(),
            absent: PathMap::default(),
            ahead: PathMap::default(),
            ahead_files: HashSet::new(),
            unnamed: HashMap::new(),
            intent: (0, 0),
            unwritten: Vec::new(),
            file,
            path: path.to_path_buf(),
            file_bytes: 0,
            rewrite_at_bytes: REWRITE_BYTES_MIN,
            is_fresh: false,
        };
        if let Some(entries) = bytes.strip_prefix(&MAGIC[..]) {
            let mut rest = entries;
            while let Some((entry, after)) = decode(rest) {
                ledger.perform(&entry);
                rest = after;
            }
            ledger.file_bytes = (bytes.len() - rest.len()) as u64;
            ledger.file.set_len(ledger.file_bytes).map_err(failed("truncate"))?;
            ledger.file.seek(SeekFrom::Start(ledger.file_bytes)).map_err(failed("seek in"))?;
        } else {
            ledger.is_fresh = true;
            ledger.rewrite()?;
        }
        Ok(ledger)
    }

    /// True when there was no ledger to read: nothing is known of earlier records.
    pub const fn is_fresh(&self) -> bool {
        self.is_fresh
    }

    /// Forgets everything, for a resync.
    ///
    /// # Errors
    /// [`ReplayError::Ledger`].
    pub fn clear(&mut self) -> Result<(), ReplayError> {
        self.bindings = Bindings::default();
        self.touched.clear();
        self.pending = Pending::default();
        self.absent.clear();
        self.ahead.clear();
        self.ahead_files.clear();
        self.unnamed.clear();
        self.intent = (0, 0);
        self.unwritten.clear();
        self.rewrite()
    }

    /// Makes a change; it is in the file after the next [`Self::flush`].
    pub fn enter(&mut self, entry: Entry) {
        self.perform(&entry);
        encode(&mut self.unwritten, &entry);
    }

    /// Writes what was entered since the last time.
    ///
    /// # Errors
    /// [`ReplayError::Ledger`]; what could not be written is written the next time.
    pub fn flush(&mut self) -> Result<(), ReplayError> {
        if self.unwritten.is_empty() {
            return Ok(());
        }
        if self.file_bytes + self.unwritten.len() as u64 > self.rewrite_at_bytes {
            return self.rewrite();
        }
        let written = self.file.write_all(&self.unwritten);
        if let Err(source) = written {
            // A part may be there: the next attempt begins at the same place again.
            let _ = self.file.seek(SeekFrom::Start(self.file_bytes));
            return Err(ReplayError::Ledger { operation: "write", path: self.path.clone(), source });
        }
        self.file_bytes += self.unwritten.len() as u64;
        self.unwritten.clear();
        Ok(())
    }

    /// Notes that the times of the object at `path` have to be settled.
    pub fn touch_path(&mut self, path: &[u8]) {
        if self.touched.get(path).is_none() && !paths::is_reserved(path) {
            self.enter(Entry::TouchPath(path));
        }
    }

    /// Notes that the times of `file` have to be settled.
    pub fn touch(&mut self, file: FileId) {
        if self.bindings.touch(file) {
            encode(&mut self.unwritten, &Entry::Touch(file));
        }
    }

    /// Paths that are touched.
    pub const fn touched_paths(&self) -> &PathMap<()> {
        &self.touched
    }

    /// Takes the marks of some objects away; what is left in the file is settled once more after a crash.
    pub fn settled(&mut self, files: &[FileId], paths: &[Vec<u8>]) {
        for file in files {
            self.bindings.settle(*file);
        }
        for path in paths {
            self.touched.remove(path);
        }
        if self.touched.is_empty() && self.bindings.touched().len() == 0 && !(files.is_empty() && paths.is_empty()) {
            self.enter(Entry::Settled);
        }
    }

    /// What is to be repaired.
    pub const fn pending(&self) -> &Pending {
        &self.pending
    }

    /// Unnamed files with the process that made each.
    pub const fn unnamed(&self) -> &HashMap<FileId, u32> {
        &self.unnamed
    }

    /// True when the mirror could not take the object at `path` or a directory above it.
    pub fn is_absent(&self, path: &[u8]) -> bool {
        !self.absent.is_empty() && paths::ancestors(path).any(|above| self.absent.get(above).is_some())
    }

    /// True when `path` was read from the primary with what is around it, after the last moment of rest.
    pub fn is_ahead(&self, path: &[u8]) -> bool {
        !self.ahead.is_empty()
            && (self.ahead.get(b"").is_some() || paths::ancestors(path).any(|above| self.ahead.get(above).is_some()))
    }

    /// True when bytes of the file, or the file with what is around it, were read after the last moment of rest.
    pub fn is_file_ahead(&self, file: FileId) -> bool {
        self.ahead_files.contains(&file)
            || !self.ahead.is_empty() && self.bindings.names(file).any(|name| self.is_ahead(name))
    }

    /// Notes that bytes of the file were read from the primary.
    pub fn read_ahead(&mut self, file: FileId) {
        if !self.ahead_files.contains(&file) {
            self.enter(Entry::AheadFile(file));
        }
    }

    /// Called when all records have been applied.
    pub fn caught_up(&mut self) {
        if !self.ahead.is_empty() || !self.ahead_files.is_empty() {
            self.enter(Entry::CaughtUp);
        }
    }

    /// True when something is remembered of `path` or below it.
    pub fn knows(&self, path: &[u8]) -> bool {
        self.bindings.has_within(path)
            || self.touched.has_within(path)
            || self.absent.has_within(path)
            || self.ahead.has_within(path)
            || self.pending.has_within(path)
    }

    /// The inode number entered by [`Entry::Intent`] for record `seq`.
    pub fn intent(&self, seq: u64) -> Option<u64> {
        (self.intent.0 == seq).then_some(self.intent.1)
    }

    fn perform(&mut self, entry: &Entry) {
        match *entry {
            Entry::Bind(file, path) => {
                self.bindings.bind(file, path);
                self.absent.remove(path);
                self.unnamed.remove(&file);
                self.bindings.touch(file);
            }
            Entry::AddName(file, path) => {
                self.bindings.add_name(file, path);
                self.absent.remove(path);
                self.bindings.touch(file);
            }
            Entry::Remove(path) => {
                self.bindings.remove_tree(path);
                self.touched.take_tree(path);
                self.absent.take_tree(path);
                self.ahead.take_tree(path);
                self.pending.remove(path);
            }
            Entry::Rename(old, new) => {
                self.bindings.rename(old, new);
                self.touched.rename(old, new);
                self.absent.rename(old, new);
                self.ahead.rename(old, new);
                self.pending.rename(old, new);
                self.intent.1 = MOVED;
            }
            Entry::Exchange(a, b) => {
                self.bindings.exchange(a, b);
                self.touched.exchange(a, b);
                self.absent.exchange(a, b);
                self.ahead.exchange(a, b);
                self.pending.exchange(a, b);
                self.intent.1 = MOVED;
            }
            Entry::Forget(file) => self.bindings.forget(file),
            Entry::Gone(file) => self.bindings.set_gone(file),
            Entry::ForgetGone => self.bindings.forget_gone(),
            Entry::Touch(file) => drop(self.bindings.touch(file)),
            Entry::TouchPath(path) => drop(self.touched.insert(path, ())),
            Entry::Settled => {
                self.touched.clear();
                let files: Vec<FileId> = self.bindings.touched().collect();
                for file in files {
                    self.bindings.settle(file);
                }
            }
            Entry::Intent(seq, ino) => self.intent = (seq, ino),
            Entry::Absent(path) => drop(self.absent.insert(path, ())),
            Entry::RepairFile(file, offset, bytes) => self.pending.add_file(file, offset, bytes),
            Entry::RepairPath(path, what) => self.pending.add_path(path, what),
            Entry::MendedFile(file) => self.pending.mended_file(file),
            Entry::MendedPath(path) => self.pending.mended_path(path),
            Entry::Ahead(path) => drop(self.ahead.insert(path, ())),
            Entry::AheadFile(file) => drop(self.ahead_files.insert(file)),
            Entry::CaughtUp => {
                self.ahead.clear();
                self.ahead_files.clear();
            }
            Entry::Unnamed(file, pid) => drop(self.unnamed.insert(file, pid)),
        }
        // A file that lost its name has nothing left to repair, and is no longer an unnamed one.
        if matches!(entry, Entry::Remove(_) | Entry::Rename(..) | Entry::Forget(_) | Entry::Gone(_) | Entry::Bind(..)) {
            let bindings = &self.bindings;
            self.pending.retain_files(|file| bindings.has(file));
            if !self.unnamed.is_empty() {
                self.unnamed.retain(|file, _| bindings.has(*file));
            }
        }
    }

    /// Writes the ledger as it is into a new file in place of the old one.
    fn rewrite(&mut self) -> Result<(), ReplayError> {
        let bytes = self.snapshot();
        let new = self.path.with_extension("new");
        let replaced =
            File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(&new).and_then(
                |mut file| {
                    file.write_all(&bytes)?;
                    std::fs::rename(&new, &self.path)?;
                    Ok::<File, io::Error>(file)
                },
            );
        let failed = |source| ReplayError::Ledger { operation: "rewrite", path: self.path.clone(), source };
        self.file = replaced.map_err(failed)?;
        self.file_bytes = bytes.len() as u64;
        self.rewrite_at_bytes = (self.file_bytes * 3).max(REWRITE_BYTES_MIN);
        self.unwritten.clear();
        Ok(())
    }

    fn snapshot(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let mut put = |entry: Entry| encode(&mut bytes, &entry);
        for file in self.bindings.gone() {
            put(Entry::Gone(file));
        }
        for (name, file) in self.bindings.iter() {
            put(Entry::AddName(file, name));
        }
        put(Entry::Settled);
        for file in sorted(self.bindings.touched()) {
            put(Entry::Touch(file));
        }
        for (path, ()) in self.touched.iter() {
            put(Entry::TouchPath(path));
        }
        for (path, ()) in self.absent.iter() {
            put(Entry::Absent(path));
        }
        for (path, ()) in self.ahead.iter() {
            put(Entry::Ahead(path));
        }
        for file in sorted(self.ahead_files.iter().copied()) {
            put(Entry::AheadFile(file));
        }
        for (file, pid) in sorted(self.unnamed.iter()) {
            put(Entry::Unnamed(*file, *pid));
        }
        for (file, offset, length) in sorted(self.pending.files()) {
            put(Entry::RepairFile(file, offset, length));
        }
        for (path, what) in self.pending.paths() {
            put(Entry::RepairPath(path, what));
        }
        put(Entry::Intent(self.intent.0, self.intent.1));
        bytes
    }
}

/// Hash maps have no order; a rewritten ledger has one.
fn sorted<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.collect();
    items.sort_unstable();
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: FileId = FileId { dev: 1, ino: 10 };
    const B: FileId = FileId { dev: 1, ino: 11 };

    fn all() -> Vec<Entry<'static>> {
        vec![
            Entry::Bind(A, b"a\n\xff"),
            Entry::AddName(A, b"d/a2"),
            Entry::Bind(B, b"b"),
            Entry::Touch(B),
            Entry::TouchPath(b""),
            Entry::TouchPath(b"d"),
            Entry::Absent(b"d/dev"),
            Entry::RepairFile(B, 5, 10),
            Entry::RepairPath(b"d/sub", PathRepair::Tree),
            Entry::RepairPath(b"d/names", PathRepair::Names),
            Entry::CaughtUp,
            Entry::Ahead(b"d/sub"),
            Entry::AheadFile(B),
            Entry::Rename(b"d", b"e"),
            Entry::Exchange(b"e", b"b"),
            Entry::Intent(7, 99),
            Entry::Unnamed(A, 4),
            Entry::Gone(FileId { dev: 2, ino: 1 }),
            Entry::ForgetGone,
            Entry::Gone(FileId { dev: 2, ino: 2 }),
            Entry::Forget(FileId { dev: 2, ino: 3 }),
            Entry::MendedPath(b"nothing"),
            Entry::MendedFile(A),
            Entry::Remove(b"nothing"),
        ]
    }

    #[test]
    fn entries_come_back_as_they_went_in() {
        let mut bytes = Vec::new();
        let mut entries = all();
        entries.push(Entry::Settled);
        for entry in &entries {
            encode(&mut bytes, entry);
        }
        let mut rest = &bytes[..];
        for entry in &entries {
            let (got, after) = decode(rest).expect("whole");
            assert_eq!(got, *entry);
            rest = after;
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn a_ledger_is_the_same_after_a_crash_and_after_a_rewrite() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("ledger");
        let mut ledger = Ledger::open(&path).expect("opened");
        assert!(ledger.is_fresh());
        for entry in all() {
            ledger.enter(entry);
        }
        ledger.flush().expect("written");
        let expected = ledger.snapshot();
        let mut again = Ledger::open(&path).expect("opened");
        assert!(!again.is_fresh());
        assert_eq!(again.snapshot(), expected);
        assert_eq!(again.bindings.name(A), Some(&b"a\n\xff"[..]));
        assert!(again.is_absent(b"b/dev/below") && !again.is_absent(b"b"));
        assert_eq!(again.intent(7), Some(99));
        again.rewrite().expect("rewritten");
        assert_eq!(Ledger::open(&path).expect("opened").snapshot(), expected);
    }

    #[test]
    fn a_torn_end_is_cut_off() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("ledger");
        let mut ledger = Ledger::open(&path).expect("opened");
        ledger.enter(Entry::Bind(A, b"a"));
        ledger.flush().expect("written");
        let whole = std::fs::read(&path).expect("read");
        ledger.enter(Entry::Bind(B, b"b"));
        ledger.flush().expect("written");
        let both = std::fs::read(&path).expect("read");
        for length in whole.len()..both.len() {
            std::fs::write(&path, &both[..length]).expect("written");
            let mut ledger = Ledger::open(&path).expect("opened");
            assert!(ledger.bindings.has(A) && !ledger.bindings.has(B));
            ledger.enter(Entry::Bind(B, b"later"));
            ledger.flush().expect("written");
            assert_eq!(Ledger::open(&path).expect("opened").bindings.name(B), Some(&b"later"[..]));
        }
    }
}
