//! Times of touched objects, read from the primary when they rest, and repairs that waited.
//!
//! Times of the primary can't be predicted and are not journaled. Names and contents never come from here, but for
//! repairs.

use journal::record::FileId;
use rustix::fs::FileType;

use crate::apply::Applier;
use crate::error::{ReplayError, in_primary, is_divergence};
use crate::ledger::Entry;
use crate::limits::Limit;
use crate::paths;
use crate::repair::PathRepair;
use crate::resync::Leveling;
use crate::tree;

/// Whether all records that there are have been applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// More records wait: what is read from the primary may be ahead of them.
    Busy,
    /// None waits: the primary is, but for changes of this moment, what the mirror stands for.
    AtRest,
}

impl Applier {
    /// How many objects have times that are not settled.
    pub fn touched(&self) -> usize {
        self.ledger.touched_paths().len() + self.ledger.bindings.touched().len()
    }

    /// Settles up to `objects_max` touched objects and returns how many are left. At rest, modes and owners that the
    /// kernel changed by itself (set-user-ID bits at a write) are settled as well.
    ///
    /// Objects that are known by their path alone wait for rest: ahead of the records, the primary may have another
    /// one there. `still_rests` is asked at the end; if the primary went on meanwhile, all of them stay touched.
    ///
    /// # Errors
    /// [`ReplayError`]; what was not reached stays touched.
    pub fn settle(
        &mut self,
        rest: Rest,
        objects_max: usize,
        still_rests: impl FnOnce() -> bool,
    ) -> Result<usize, ReplayError> {
        self.primary.forget(b"");
        if rest == Rest::AtRest {
            self.ledger.caught_up();
        }
        let paths_max = if rest == Rest::AtRest { objects_max } else { 0 };
        let mut paths: Vec<Vec<u8>> =
            self.ledger.touched_paths().iter().take(paths_max).map(|(path, ())| path.to_vec()).collect();
        let left = objects_max.saturating_sub(paths.len());
        let mut files: Vec<FileId> = self.ledger.bindings.touched().take(left).collect();
        let mut result = Ok(());
        retain_until_error(&mut paths, &mut result, |path| self.settle_path(path, None, rest));
        retain_until_error(&mut files, &mut result, |file| self.settle_file(*file, rest));
        if rest == Rest::Busy || still_rests() {
            self.ledger.settled(&files, &paths);
        }
        self.ledger.flush()?;
        result?;
        Ok(self.touched())
    }

    fn settle_file(&mut self, file: FileId, rest: Rest) -> Result<bool, ReplayError> {
        let names: Vec<Vec<u8>> = self.ledger.bindings.names(file).map(<[u8]>::to_vec).collect();
        if self.limits.has(Limit::Hardlink) && names.len() > 1 {
            for other in &names[1..] {
                self.copy_within_mirror(&names[0], other)?;
            }
        }
        for name in &names {
            if !paths::is_reserved(name) && !self.settle_path(name, Some(file), rest)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Settles one path, if it is (still) the file that is meant; false if there is more to do at rest.
    pub(crate) fn settle_path(&mut self, path: &[u8], file: Option<FileId>, rest: Rest) -> Result<bool, ReplayError> {
        let wanted = match self.primary.look(path) {
            Ok(Some(wanted)) => wanted,
            // Ahead of the records, the primary may have it under another name already.
            Ok(None) | Err(rustix::io::Errno::ACCESS) => return Ok(rest == Rest::AtRest),
            Err(errno) => return Err(in_primary("stat", path)(errno)),
        };
        if file.is_some_and(|file| tree::id_of(&wanted) != file) {
            return Ok(rest == Rest::AtRest);
        }
        let Some(there) = self.look(path)? else { return Ok(rest == Rest::AtRest) };
        if tree::file_type(&wanted) != tree::file_type(&there) {
            return Ok(rest == Rest::AtRest);
        }
        let is_link = tree::file_type(&wanted) == FileType::Symlink;
        let mode_differs = !is_link && wanted.st_mode != there.st_mode;
        let owner_differs =
            !self.limits.has(Limit::Owner) && (wanted.st_uid, wanted.st_gid) != (there.st_uid, there.st_gid);
        if rest == Rest::AtRest && (mode_differs || owner_differs) {
            let owned = self.own(path, &there, wanted.st_uid, wanted.st_gid)?;
            if !is_link && (mode_differs || owned) {
                self.set_mode(path, wanted.st_mode)?;
            }
        }
        let is_exact = !self.limits.has(Limit::Mtime) || wanted.st_mtime != there.st_mtime;
        if tree::mtime_of(&wanted) != tree::mtime_of(&there) && is_exact {
            match self.set_times(path, None, Some(tree::mtime_of(&wanted))) {
                Err(ReplayError::Mirror { source, .. }) if is_divergence(source) => {}
                result => result?,
            }
        }
        Ok(rest == Rest::AtRest || !mode_differs && !owner_differs || self.limits.has(Limit::Mode))
    }

    /// Tries the repairs that wait and returns how many are left. At rest, what the primary does not have is removed,
    /// and files that none of their names leads to are compared by name.
    ///
    /// # Errors
    /// [`ReplayError`]; the repairs stay on the list.
    pub fn repair_pending(&mut self, rest: Rest) -> Result<usize, ReplayError> {
        if self.ledger.pending().is_empty() {
            return Ok(0);
        }
        self.primary.forget(b"");
        let mut leveling = Leveling::during(rest);
        for file in self.ledger.pending().file_ids() {
            let Some(ranges) = self.ledger.pending().ranges(file) else { continue };
            let ranges: Vec<(u64, u64)> = ranges.iter().collect();
            self.ledger.read_ahead(file);
            if self.read_ranges_late(file, &ranges)? {
                self.ledger.touch(file);
                self.ledger.enter(Entry::MendedFile(file));
            } else if rest == Rest::AtRest {
                let names = self.ledger.bindings.names(file).filter(|name| !paths::is_reserved(name));
                let names: Vec<Vec<u8>> = names.map(<[u8]>::to_vec).collect();
                for name in &names {
                    self.ledger.enter(Entry::RepairPath(name, PathRepair::Tree));
                }
                if !names.is_empty() {
                    self.ledger.enter(Entry::MendedFile(file));
                }
            }
        }
        let waiting: Vec<(Vec<u8>, PathRepair)> =
            self.ledger.pending().paths().map(|(path, what)| (path.to_vec(), what)).collect();
        for (path, what) in waiting {
            let wanted = self.primary.look(&path).map_err(in_primary("stat", &path))?;
            if wanted.is_some() {
                self.repair_path(&path, what, rest, &mut leveling)?;
            } else if rest == Rest::AtRest {
                self.discard(&path)?;
                self.ledger.enter(Entry::Remove(&path));
                self.ledger.enter(Entry::MendedPath(&path));
            }
        }
        self.ledger.flush()?;
        Ok(self.pending_repairs())
    }

    /// Compares a path with the primary and makes it equal; false, and left on the list, if it is not to be had there.
    pub(crate) fn repair_path(
        &mut self,
        path: &[u8],
        what: PathRepair,
        rest: Rest,
        leveling: &mut Leveling,
    ) -> Result<bool, ReplayError> {
        self.primary.forget(b"");
        let wanted = self.primary.look(path).map_err(in_primary("stat", path))?;
        if rest == Rest::Busy && wanted.is_some_and(|wanted| self.is_in_order(path, &wanted)) {
            return Ok(false);
        }
        let unreadable = leveling.unreadable.len();
        let found = match what {
            PathRepair::Names => self.level_names(path, leveling)?,
            PathRepair::Tree => self.level_tree(path, leveling)?,
        };
        if found {
            self.ledger.enter(Entry::Ahead(path));
        }
        if !found || leveling.unreadable.len() > unreadable {
            return Ok(false);
        }
        self.ledger.enter(Entry::MendedPath(path));
        Ok(true)
    }
}

/// Keeps those that `operation` says are done, and none after the first error.
fn retain_until_error<T>(
    items: &mut Vec<T>,
    result: &mut Result<(), ReplayError>,
    mut operation: impl FnMut(&T) -> Result<bool, ReplayError>,
) {
    items.retain(|item| {
        if result.is_err() {
            return false;
        }
        match operation(item) {
            Ok(done) => done,
            Err(error) => {
                *result = Err(error);
                false
            }
        }
    });
}
