//! `Bindings`: which names of a mirror stand for which file of the primary.
//!
//! Records of contents carry a file's identity and no name; `Create`, `Bind` and `Link` records tie it to names, and
//! records of names move and remove those. A file that has lost its last name is remembered for a while, because
//! programs go on writing to it. The mirror's files are kept open here, the least recently used closed first.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use journal::record::FileId;
use rustix::fd::OwnedFd;

use crate::paths::PathMap;

/// Files of a mirror that are kept open, where this process may have that many.
const OPEN_FILES_MAX: usize = 1024;

/// Files without a name that are remembered.
const GONE_MAX: usize = 1 << 16;

/// Names of files, both ways.
#[derive(Debug)]
pub struct Bindings {
    files: HashMap<FileId, Bound>,
    names: PathMap<FileId>,
    open: HashMap<FileId, Open>,
    touched: HashSet<FileId>,
    gone: HashSet<FileId>,
    gone_in_order: VecDeque<FileId>,
    open_max: usize,
    uses: u64,
}

#[derive(Debug, Default)]
struct Bound {
    names: Vec<Box<[u8]>>,
    is_touched: bool,
}

#[derive(Debug)]
struct Open {
    fd: Arc<OwnedFd>,
    used: u64,
}

impl Default for Bindings {
    fn default() -> Self {
        Self {
            files: HashMap::new(),
            names: PathMap::default(),
            open: HashMap::new(),
            touched: HashSet::new(),
            gone: HashSet::new(),
            gone_in_order: VecDeque::new(),
            open_max: crate::tree::share_of_descriptors(8).min(OPEN_FILES_MAX),
            uses: 0,
        }
    }
}

impl Bindings {
    /// `file` has the name `path` and no other; what was known of either is replaced.
    pub fn bind(&mut self, file: FileId, path: &[u8]) {
        self.forget(file);
        self.add_name(file, path);
    }

    /// `file` has the name `path`, too.
    pub fn add_name(&mut self, file: FileId, path: &[u8]) {
        if let Some(other) = self.names.insert(path, file)
            && other != file
        {
            self.lose_name(other, path);
        }
        self.gone.remove(&file);
        let bound = self.files.entry(file).or_default();
        if !bound.names.iter().any(|name| **name == *path) {
            bound.names.push(path.into());
        }
    }

    /// The name `path` is removed, with all names below it.
    pub fn remove_tree(&mut self, path: &[u8]) {
        for (rest, file) in self.names.take_tree(path) {
            self.lose_name(file, &[path, &rest].concat());
        }
    }

    /// `old`, with all names below it, becomes `new`, in place of what was there.
    pub fn rename(&mut self, old: &[u8], new: &[u8]) {
        self.remove_tree(new);
        let moved = self.names.take_tree(old);
        self.put_tree(old, new, moved);
    }

    /// `a` and `b` change places, with all names below them.
    pub fn exchange(&mut self, a: &[u8], b: &[u8]) {
        let (from_a, from_b) = (self.names.take_tree(a), self.names.take_tree(b));
        self.put_tree(a, b, from_a);
        self.put_tree(b, a, from_b);
    }

    /// Nothing is known of `file` any more.
    pub fn forget(&mut self, file: FileId) {
        self.gone.remove(&file);
        if let Some(bound) = self.files.remove(&file) {
            self.open.remove(&file);
            self.touched.remove(&file);
            for name in bound.names {
                self.names.remove(&name);
            }
        }
    }

    /// `file` has no name, and what programs still write to it is of no interest.
    pub fn set_gone(&mut self, file: FileId) {
        self.forget(file);
        if self.gone.insert(file) {
            self.gone_in_order.push_back(file);
        }
        while self.gone_in_order.len() > GONE_MAX {
            if let Some(oldest) = self.gone_in_order.pop_front() {
                self.gone.remove(&oldest);
            }
        }
    }

    /// Files without a name are no longer remembered.
    pub fn forget_gone(&mut self) {
        self.gone.clear();
        self.gone_in_order.clear();
    }

    /// The names of `file`, in the order in which they became known.
    pub fn names(&self, file: FileId) -> impl Iterator<Item = &[u8]> {
        self.files.get(&file).into_iter().flat_map(|bound| bound.names.iter().map(|name| &**name))
    }

    /// The first known name of `file`.
    pub fn name(&self, file: FileId) -> Option<&[u8]> {
        self.files.get(&file)?.names.first().map(|name| &**name)
    }

    /// The file that `path` is known to name.
    pub fn file(&self, path: &[u8]) -> Option<FileId> {
        self.names.get(path).copied()
    }

    /// True when a name of `file` is known.
    pub fn has(&self, file: FileId) -> bool {
        self.files.contains_key(&file)
    }

    /// True when `file` lost its last name.
    pub fn is_gone(&self, file: FileId) -> bool {
        self.gone.contains(&file)
    }

    /// Files without a name, oldest first.
    pub fn gone(&self) -> impl Iterator<Item = FileId> {
        self.gone_in_order.iter().copied().filter(|file| self.gone.contains(file))
    }

    /// True when `path` or something below it is bound.
    pub fn has_within(&self, path: &[u8]) -> bool {
        self.names.has_within(path)
    }

    /// Every name with its file.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], FileId)> {
        self.names.iter().map(|(name, file)| (name, *file))
    }

    /// Names below the directory `path` with their files.
    pub fn below(&self, path: &[u8]) -> impl Iterator<Item = (&[u8], FileId)> {
        self.names.below(path).map(|(name, file)| (name, *file))
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Marks `file` as touched; true when it was not before.
    pub fn touch(&mut self, file: FileId) -> bool {
        let is_new = self.files.get_mut(&file).is_some_and(|bound| !std::mem::replace(&mut bound.is_touched, true));
        if is_new {
            self.touched.insert(file);
        }
        is_new
    }

    /// Takes the mark of [`Self::touch`] away.
    pub fn settle(&mut self, file: FileId) {
        if let Some(bound) = self.files.get_mut(&file) {
            bound.is_touched = false;
        }
        self.touched.remove(&file);
    }

    /// Every file that is marked as touched.
    pub fn touched(&self) -> impl ExactSizeIterator<Item = FileId> {
        self.touched.iter().copied()
    }

    /// The mirror's file, if it is open.
    pub fn open(&mut self, file: FileId) -> Option<Arc<OwnedFd>> {
        self.uses += 1;
        let open = self.open.get_mut(&file)?;
        open.used = self.uses;
        Some(open.fd.clone())
    }

    /// Keeps the mirror's file open.
    pub fn keep_open(&mut self, file: FileId, fd: Arc<OwnedFd>) {
        if self.open.len() >= self.open_max {
            self.close_a_quarter();
        }
        self.uses += 1;
        if self.files.contains_key(&file) {
            self.open.insert(file, Open { fd, used: self.uses });
        }
    }

    /// Closes the mirror's file, because its name now stands for another.
    pub fn close(&mut self, file: FileId) {
        self.open.remove(&file);
    }

    fn close_a_quarter(&mut self) {
        let mut ages: Vec<u64> = self.open.values().map(|open| open.used).collect();
        let quarter = ages.len() / 4;
        let (_, limit, _) = ages.select_nth_unstable(quarter);
        let limit = *limit;
        self.open.retain(|_, open| open.used > limit);
    }

    fn lose_name(&mut self, file: FileId, path: &[u8]) {
        let Some(bound) = self.files.get_mut(&file) else { return };
        bound.names.retain(|name| **name != *path);
        if bound.names.is_empty() {
            self.set_gone(file);
        }
    }

    fn put_tree(&mut self, from: &[u8], to: &[u8], moved: Vec<(Vec<u8>, FileId)>) {
        for (rest, file) in &moved {
            let (old, new) = ([from, rest].concat(), [to, rest].concat());
            if let Some(bound) = self.files.get_mut(file)
                && let Some(name) = bound.names.iter_mut().find(|name| ***name == *old)
            {
                *name = new.into();
            }
        }
        self.names.put_tree(to, moved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: FileId = FileId { dev: 1, ino: 10 };
    const B: FileId = FileId { dev: 1, ino: 11 };

    fn names(bindings: &Bindings, file: FileId) -> Vec<&[u8]> {
        bindings.names(file).collect()
    }

    #[test]
    fn a_directory_takes_its_open_files_along() {
        let mut bindings = Bindings::default();
        bindings.bind(A, b"d/x");
        bindings.bind(B, b"dx");
        bindings.rename(b"d", b"e/f");
        assert_eq!((bindings.name(A), bindings.name(B)), (Some(&b"e/f/x"[..]), Some(&b"dx"[..])));
        bindings.exchange(b"e/f", b"dx");
        assert_eq!((bindings.name(A), bindings.name(B)), (Some(&b"dx/x"[..]), Some(&b"e/f"[..])));
    }

    #[test]
    fn a_replaced_file_loses_its_name_and_is_gone() {
        let mut bindings = Bindings::default();
        bindings.bind(A, b"a");
        bindings.bind(B, b"b");
        bindings.add_name(B, b"b2");
        bindings.rename(b"a", b"b");
        assert_eq!(names(&bindings, B), [b"b2"]);
        assert!(!bindings.is_gone(B));
        bindings.rename(b"b", b"b2");
        assert!(bindings.is_gone(B) && !bindings.has(B));
        assert_eq!(names(&bindings, A), [b"b2"]);
    }

    #[test]
    fn a_reused_number_is_a_new_file() {
        let mut bindings = Bindings::default();
        bindings.bind(A, b"a");
        bindings.remove_tree(b"a");
        assert!(bindings.is_gone(A));
        bindings.bind(A, b"new");
        assert!(!bindings.is_gone(A));
        bindings.bind(A, b"newer");
        assert_eq!((bindings.file(b"new"), bindings.file(b"newer")), (None, Some(A)));
    }

    #[test]
    fn files_without_a_name_are_remembered_within_bounds() {
        let mut bindings = Bindings::default();
        for ino in 0..GONE_MAX as u64 + 10 {
            bindings.set_gone(FileId { dev: 1, ino });
        }
        assert_eq!(bindings.gone().count(), GONE_MAX);
        assert!(!bindings.is_gone(FileId { dev: 1, ino: 3 }));
    }
}
