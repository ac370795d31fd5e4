//! Which files the wrapped programs hold: only those need a binding, so the others can be forgotten now and then.
//!
//! Bindings are made for every file that is created or opened for writing, and records don't say when the last
//! descriptor is closed. While the ring is frozen, `/proc` says which files are open or mapped; whoever opens another
//! one later has it bound again first.

use std::collections::{HashSet, VecDeque};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use journal::Ring;
use journal::claims::Position;
use journal::layout::PROCESSES;
use journal::record::FileId;

use crate::apply::Applier;
use crate::cursor::reached;
use crate::error::ReplayError;
use crate::ledger::Entry;

/// The files that were held at one place.
#[derive(Clone, Debug)]
pub struct Held {
    /// The end of the ring while it was frozen.
    pub at: Position,
    /// The files.
    pub files: Arc<HashSet<FileId>>,
}

/// Bindings to forget, each at its place and nowhere else: a file may be bound again right after it.
#[derive(Debug, Default)]
pub struct Forgetting(VecDeque<Held>);

/// What to do about the next [`Held`].
#[derive(Debug)]
pub enum Due {
    /// Something, further on.
    Later,
    /// It is time: forget all others.
    Now(Held),
    /// Nothing at all.
    Never,
}

impl Forgetting {
    /// Adds one, which lies after those that were added before.
    pub fn add(&mut self, held: Held) {
        self.0.push_back(held);
    }

    /// What is due at `position`. Those that were passed without being met are dropped.
    pub fn due(&mut self, position: Position) -> Due {
        while let Some(next) = self.0.front() {
            if !reached(position, next.at) {
                return Due::Later;
            }
            let is_here = next.at == position;
            let next = self.0.pop_front().expect("looked at just now");
            if is_here {
                return Due::Now(next);
            }
        }
        Due::Never
    }
}

/// The files that wrapped programs hold. The ring is frozen meanwhile. `None` when that can't be known for certain.
pub fn files(ring: &Ring) -> Option<HashSet<FileId>> {
    let processes: Vec<u32> = ring.process_views().map(|(_, view)| view.pid).collect();
    // A full table may have had no room for others.
    if processes.len() >= PROCESSES {
        return None;
    }
    let mut files = HashSet::new();
    for pid in processes {
        match std::fs::read_dir(format!("/proc/{pid}/fd")) {
            Ok(entries) => {
                for entry in entries {
                    // A descriptor that is closed meanwhile holds nothing.
                    if let Ok(data) = entry.ok()?.path().metadata() {
                        files.insert(FileId::new(data.dev(), data.ino()));
                    }
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(_) => return None,
        }
    }
    files.extend(ring.mapping_views().map(|mapping| mapping.range.file));
    files.extend(ring.mark_views().map(|mark| mark.write.file));
    Some(files)
}

impl Applier {
    /// Forgets the bindings of files that are not in `held`, but for those that something has still to be done for,
    /// and those with several names.
    ///
    /// # Errors
    /// [`ReplayError::Ledger`].
    pub fn forget_others(&mut self, held: &HashSet<FileId>) -> Result<(), ReplayError> {
        let bindings = &self.ledger.bindings;
        let mut others: HashSet<FileId> = bindings.iter().map(|(_, file)| file).collect();
        others.retain(|file| !held.contains(file) && bindings.names(*file).nth(1).is_none());
        for file in bindings.touched().chain(self.ledger.pending().file_ids()) {
            others.remove(&file);
        }
        for file in others {
            self.ledger.enter(Entry::Forget(file));
        }
        self.ledger.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_used_at_its_place_only() {
        let held = |at| Held { at: Position::new(at), files: Arc::default() };
        let mut forgetting = Forgetting::default();
        assert!(matches!(forgetting.due(Position::new(5)), Due::Never));
        forgetting.add(held(10));
        forgetting.add(held(20));
        assert!(matches!(forgetting.due(Position::new(5)), Due::Later));
        assert!(matches!(forgetting.due(Position::new(10)), Due::Now(_)));
        assert!(matches!(forgetting.due(Position::new(21)), Due::Never), "the place was passed");
        assert!(matches!(forgetting.due(Position::new(20)), Due::Never), "and is gone");
    }
}
