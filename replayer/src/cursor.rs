//! Cursors: how far the sequencer and each mirror have come, and what of that survives the loss of the ring.
//!
//! A place in the ring is stored in the shared memory after each record, so a replayer that is killed leaves one record
//! that may or may not have been applied. What must outlive the ring lies in the set's `progress.json`: a ceiling
//! above every sequence number that was ever given out, and each mirror's sequence number and trouble.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use journal::claims::Position;
use journal::{Ring, layout};
use serde::{Deserialize, Serialize};

use crate::set::{SetError, replace_file};

/// Sequence numbers that are reserved on disk at a time; as many are skipped at most when the ring is lost.
pub const RESERVED: u64 = 65_536;

/// The identity under which the sequencer keeps its cursor; mirrors' are below 2^63.
pub const SEQUENCER: u64 = u64::MAX;

/// A place in the order: the position after a record, and that record's sequence number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Position after the record.
    pub position: Position,
    /// Its sequence number.
    pub seq: u64,
}

/// True when `position` is `goal` or lies after it. The two are never further apart than the ring is large.
pub fn reached(position: Position, goal: Position) -> bool {
    position.since(goal) < 1 << 35
}

/// A cursor in the shared memory.
#[derive(Clone, Copy)]
pub struct SharedCursor<'a>(&'a layout::Cursor);

impl<'a> SharedCursor<'a> {
    /// The cursor that the ring keeps for `identity`, if it has one.
    pub fn find(ring: &'a Ring, identity: u64) -> Option<Self> {
        ring.cursors().iter().find(|cursor| cursor.mirror.load(Ordering::Acquire) == identity).map(Self)
    }

    /// The cursor of `identity`, made at `place` if the ring has none. `None` when all are taken.
    pub fn find_or_make(ring: &'a Ring, identity: u64, place: Place) -> Option<Self> {
        Self::find(ring, identity).or_else(|| {
            let free = Self::find(ring, 0)?;
            free.store(place);
            free.0.mirror.store(identity, Ordering::Release);
            Some(free)
        })
    }

    /// Where it stands; `None` when that is not between `head` and `end`: then it is stale or was scribbled over.
    pub fn load(self, head: Position, end: Position) -> Option<Place> {
        let word = self.0.position.load(Ordering::Acquire);
        let position = Position::new(word);
        let inside = position.get() == word && position.since(head) <= end.since(head);
        inside.then(|| Place { position, seq: self.0.seq.load(Ordering::Acquire) })
    }

    /// Moves it. The number goes first: who is killed in between applies the record again and numbers it the same.
    pub fn store(self, place: Place) {
        self.0.seq.store(place.seq, Ordering::Release);
        self.0.position.store(place.position.get(), Ordering::Release);
    }

    /// Gives the entry back.
    pub fn free(self) {
        self.0.mirror.store(0, Ordering::Release);
    }
}

/// A [`Place`] that one thread moves and others look at. The two halves may be seen a record apart.
#[derive(Debug)]
pub struct SeenPlace {
    position: AtomicU64,
    seq: AtomicU64,
}

impl SeenPlace {
    /// At `place`.
    pub fn new(place: Place) -> Self {
        Self { position: AtomicU64::new(place.position.get()), seq: AtomicU64::new(place.seq) }
    }

    /// Where it stands. Pairs with [`Self::store`]: who sees the position sees what was done before it was stored.
    pub fn load(&self) -> Place {
        let position = self.position();
        Place { position, seq: self.seq.load(Ordering::Acquire) }
    }

    /// The position alone. Sequentially consistent, because sleepers look at it after saying that they sleep.
    pub fn position(&self) -> Position {
        Position::new(self.position.load(Ordering::SeqCst))
    }

    /// Moves it.
    pub fn store(&self, place: Place) {
        self.seq.store(place.seq, Ordering::Release);
        self.position.store(place.position.get(), Ordering::SeqCst);
    }
}

/// What `progress.json` holds.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// Generation that the numbers belong to.
    pub generation: u64,
    /// `made_ns` of the ring that was in use.
    pub ring_made_ns: u64,
    /// No sequence number above this one has been given out.
    pub ceiling_seq: u64,
    /// Last sequence number given out when this was written.
    pub newest_seq: u64,
    /// Records sequenced in the rings before this one, and the number that this ring began after.
    pub records_before: u64,
    /// See `records_before`.
    pub ring_first_seq: u64,
    /// `Header::lost` as far as mirrors have been compared for it.
    pub lost_seen: u64,
    /// True when nothing was pending and no wrapped program lived: losing the ring then loses nothing.
    pub at_rest: bool,
    /// Programs that could not be followed: reason, program, how often.
    pub not_followed: Vec<(String, String, u64)>,
    /// Each mirror by its identity.
    pub mirrors: BTreeMap<u64, MirrorProgress>,
}

/// What [`Progress`] knows of one mirror.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MirrorProgress {
    /// Last sequence number applied.
    pub applied_seq: u64,
    /// Last sequence number known to be on stable storage.
    pub durable_seq: u64,
    /// True while the mirror is not a prefix: it must be compared with the primary as a whole.
    pub resync: bool,
    /// Something that was not followed may have written since these seconds of CLOCK_REALTIME; 0 for no.
    pub incomplete_since: u64,
    /// What is written in the mirror's own `cursor.json`; another number there means another copy.
    pub written_seq: u64,
}

/// `progress.json` of a set: kept in memory, replaced on disk as a whole.
#[derive(Debug)]
pub struct ProgressFile {
    path: PathBuf,
    progress: Mutex<Progress>,
}

impl ProgressFile {
    /// Reads the file at `path`; a set that has none begins with defaults.
    ///
    /// # Errors
    /// `Io` if it can't be read, `Syntax` if it can't be understood: then a person has to look, because starting
    /// again from 1 would repeat numbers.
    pub fn open(path: PathBuf) -> Result<Self, SetError> {
        let progress = read(&path)?;
        Ok(Self { path, progress: Mutex::new(progress) })
    }

    /// What is known, as a copy.
    pub fn get(&self) -> Progress {
        self.lock().clone()
    }

    /// Changes it in memory and on disk, durably. Blocks on the disk of the state directory.
    ///
    /// # Errors
    /// `Io`; the change stays in memory and goes to disk with the next one.
    pub fn update(&self, change: impl FnOnce(&mut Progress)) -> Result<(), SetError> {
        let mut progress = self.lock();
        let before = progress.clone();
        change(&mut progress);
        if *progress == before {
            return Ok(());
        }
        let mut text = serde_json::to_string_pretty(&*progress).expect("numbers and texts");
        text.push('\n');
        replace_file(&self.path, text.as_bytes(), 0o600)
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a `progress.json`; defaults when there is none.
///
/// # Errors
/// `Io` or `Syntax`.
pub fn read(path: &Path) -> Result<Progress, SetError> {
    match std::fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text)
            .map_err(|error| SetError::Syntax { path: path.to_path_buf(), reason: error.to_string() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Progress::default()),
        Err(source) => Err(SetError::Io { what: "read", path: path.to_path_buf(), source }),
    }
}

/// `.lockstep/cursor.json` at a mirror's root: how far the mirror was when it last came to rest.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MirrorCursor {
    /// Generation that the number belongs to.
    pub generation: u64,
    /// Last sequence number applied.
    pub applied_seq: u64,
    /// False while the mirror is not a prefix.
    pub consistent: bool,
}

impl MirrorCursor {
    /// Name of the file in the mirror's `.lockstep`.
    pub const FILE: &str = "cursor.json";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_compared_across_the_wrap() {
        let last = Position::new((1 << 36) - 1);
        assert!(reached(last.plus(5), last));
        assert!(reached(last, last));
        assert!(!reached(last, last.plus(5)));
    }

    #[test]
    fn progress_survives_and_unknown_or_missing_fields_do_no_harm() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("progress.json");
        let file = ProgressFile::open(path.clone()).expect("none yet");
        file.update(|progress| {
            progress.ceiling_seq = 7;
            progress.mirrors.entry(5).or_default().applied_seq = 6;
        })
        .expect("written");
        assert_eq!(ProgressFile::open(path.clone()).expect("read").get(), file.get());
        std::fs::write(&path, br#"{"ceiling_seq": 9, "later": [1]}"#).expect("written");
        assert_eq!(read(&path).expect("read").ceiling_seq, 9);
        std::fs::write(&path, b"{").expect("written");
        assert!(matches!(read(&path), Err(SetError::Syntax { .. })));
    }
}
