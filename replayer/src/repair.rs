//! What is to be read again from the primary, because its name there is not yet, or no longer, the mirror's.

use std::collections::HashMap;

use journal::record::FileId;

use crate::paths::PathMap;

/// Ranges of one file that are kept apart; more become the whole file.
const RANGES_MAX: usize = 64;

/// How much of a path is to be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathRepair {
    /// The names in this directory.
    Names = 1,
    /// The object and everything below.
    Tree = 2,
}

/// Repairs that wait.
#[derive(Debug, Default)]
pub struct Pending {
    files: HashMap<FileId, Ranges>,
    paths: PathMap<PathRepair>,
}

/// Ranges of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges {
    /// Offset and length; a length of u64::MAX means to the end, size included.
    list: Vec<(u64, u64)>,
}

impl Ranges {
    /// Everything, and the size.
    pub const WHOLE: (u64, u64) = (0, u64::MAX);

    /// Adds a range, joined with the last one where they meet.
    pub fn add(&mut self, offset: u64, bytes: u64) {
        if self.is_whole() {
            return;
        }
        if let Some((start, length)) = self.list.last_mut()
            && bytes != u64::MAX
            && *length != u64::MAX
            && *start <= offset
            && offset <= *start + *length
        {
            *length = (*length).max(offset.saturating_add(bytes) - *start);
            return;
        }
        if self.list.len() >= RANGES_MAX || (offset, bytes) == Self::WHOLE {
            self.list.clear();
            self.list.push(Self::WHOLE);
        } else {
            self.list.push((offset, bytes));
        }
    }

    /// True when it is the whole file.
    pub fn is_whole(&self) -> bool {
        self.list.first() == Some(&Self::WHOLE)
    }

    /// The ranges.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.list.iter().copied()
    }
}

impl Pending {
    /// Adds bytes of a file.
    pub fn add_file(&mut self, file: FileId, offset: u64, bytes: u64) {
        self.files.entry(file).or_default().add(offset, bytes);
    }

    /// Adds a path; the larger of two repairs of one path stays.
    pub fn add_path(&mut self, path: &[u8], what: PathRepair) {
        let what = self.paths.get(path).map_or(what, |before| what.max(*before));
        self.paths.insert(path, what);
    }

    /// The file is repaired.
    pub fn mended_file(&mut self, file: FileId) {
        self.files.remove(&file);
    }

    /// The path is repaired.
    pub fn mended_path(&mut self, path: &[u8]) {
        self.paths.remove(path);
    }

    /// The path is removed, with all below.
    pub fn remove(&mut self, path: &[u8]) {
        self.paths.take_tree(path);
    }

    /// The first became the second.
    pub fn rename(&mut self, old: &[u8], new: &[u8]) {
        self.paths.rename(old, new);
    }

    /// Two paths changed places.
    pub fn exchange(&mut self, a: &[u8], b: &[u8]) {
        self.paths.exchange(a, b);
    }

    /// Drops files that are no longer of interest.
    pub fn retain_files(&mut self, keep: impl Fn(FileId) -> bool) {
        if !self.files.is_empty() {
            self.files.retain(|file, _| keep(*file));
        }
    }

    /// Files and ranges, one line a range.
    pub fn files(&self) -> impl Iterator<Item = (FileId, u64, u64)> {
        self.files.iter().flat_map(|(file, ranges)| ranges.iter().map(|(offset, bytes)| (*file, offset, bytes)))
    }

    /// The ranges of one file.
    pub fn ranges(&self, file: FileId) -> Option<&Ranges> {
        self.files.get(&file)
    }

    /// Every file, once.
    pub fn file_ids(&self) -> Vec<FileId> {
        self.files.keys().copied().collect()
    }

    /// Paths.
    pub fn paths(&self) -> impl Iterator<Item = (&[u8], PathRepair)> {
        self.paths.iter().map(|(path, what)| (path, *what))
    }

    /// The repair of exactly this path.
    pub fn path(&self, path: &[u8]) -> Option<PathRepair> {
        self.paths.get(path).copied()
    }

    /// True when a repair is pending at `path` or below it.
    pub fn has_within(&self, path: &[u8]) -> bool {
        self.paths.has_within(path)
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.paths.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_join_and_become_the_whole_file() {
        let mut ranges = Ranges::default();
        ranges.add(0, 10);
        ranges.add(10, 5);
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [(0, 15)]);
        for at in 0..200 {
            ranges.add(at * 100, 1);
        }
        assert!(ranges.is_whole());
    }

    #[test]
    fn the_larger_repair_stays_and_follows_renames() {
        let mut pending = Pending::default();
        pending.add_path(b"d/x", PathRepair::Tree);
        pending.add_path(b"d/x", PathRepair::Names);
        pending.rename(b"d", b"e");
        assert_eq!(pending.path(b"e/x"), Some(PathRepair::Tree));
        pending.remove(b"e");
        assert!(pending.is_empty());
    }
}
