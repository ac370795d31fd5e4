//! `Resync`: brings a mirror level with the primary while programs run.
//!
//! The tree is walked once and everything that differs is made equal, while the records that arrive are not applied
//! but noted: what they touch is dirty. Dirty objects are compared again, pass after pass, until few are left. After
//! the last pass, for which the caller holds the primary still, the mirror is exact, and what the ledger knows of
//! names is what the records up to then say.

mod attributes;
mod level;
mod walk;

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use journal::record::{FLAG_MAYBE_OUTSIDE, FileId, Kind, Record};
use rustix::fs::{FileType, RenameFlags};
use rustix::io::Errno;

use crate::apply::Applier;
use crate::error::{ReplayError, in_primary};
use crate::ledger::Entry;
use crate::paths::{self, PathMap};
use crate::repair::Ranges;
use crate::settle::Rest;
use crate::tree;

pub use level::Leveling;
pub use walk::Walk;

/// A resync of one mirror.
#[derive(Debug, Default)]
pub struct Resync {
    state: State,
    leveling: Leveling,
    files: HashMap<FileId, Ranges>,
    paths: PathMap<Scope>,
    unknown: HashSet<FileId>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    New,
    Walking(Walk),
    Walked,
}

/// How far the first pass is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// There is more.
    Walking,
    /// Everything was compared once.
    Walked,
}

/// How much of a dirty path is compared again; a later one includes those before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    One,
    Names,
    Tree,
}

impl Resync {
    /// A resync that has not begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets what was known of the mirror. From here on every record is to be noted, and programs are to say again
    /// which files they write to ([`Kind::Bind`]).
    ///
    /// # Errors
    /// [`ReplayError`].
    pub fn begin(&mut self, applier: &mut Applier) -> Result<(), ReplayError> {
        *self = Self::default();
        applier.limits.clear();
        applier.ledger.clear()?;
        applier.remove_unnamed()?;
        applier.mirror.forget(b"");
        Ok(())
    }

    /// Takes in a record instead of applying it.
    ///
    /// # Errors
    /// [`ReplayError::Ledger`].
    pub fn note(&mut self, applier: &mut Applier, record: &Record) -> Result<(), ReplayError> {
        let (path1, path2, file) = (record.path1, record.path2, record.file());
        let (a, b) = (record.header.a, record.header.b);
        match record.kind {
            Kind::Write => self.note_bytes(applier, record, a, record.data.len() as u64),
            Kind::Truncate | Kind::Allocate => self.note_bytes(applier, record, 0, u64::MAX),
            Kind::Reread => self.note_bytes(applier, record, a, b),
            Kind::Create => {
                let is_known = file.ino != 0;
                applier.ledger.enter(if is_known { Entry::Bind(file, path1) } else { Entry::Remove(path1) });
                self.dirty(applier, path1, Scope::One);
            }
            Kind::Bind => note_name(applier, file, path1),
            Kind::MakeDirectory | Kind::SymbolicLink | Kind::MakeNode => {
                applier.ledger.enter(Entry::Remove(path1));
                // The mirror may still have a directory of that name that has gone, with what was in it.
                let is_directory = record.kind == Kind::MakeDirectory;
                self.dirty(applier, path1, if is_directory { Scope::Names } else { Scope::One });
            }
            Kind::Link => {
                if !path1.is_empty() {
                    note_name(applier, file, path1);
                    self.dirty(applier, path1, Scope::One);
                } else if !applier.ledger.bindings.is_gone(file) {
                    // It may have a name that was met when it had no other.
                    self.unknown.insert(file);
                }
                note_name(applier, file, path2);
                self.dirty(applier, path2, Scope::One);
            }
            Kind::Rename => self.note_rename(applier, record),
            Kind::Unlink => {
                if applier.ledger.bindings.file(path1).is_none_or(|bound| bound == file || file.ino == 0) {
                    applier.ledger.enter(Entry::Remove(path1));
                }
                self.dirty(applier, path1, Scope::One);
            }
            Kind::RemoveDirectory => {
                applier.ledger.enter(Entry::Remove(path1));
                self.dirty(applier, path1, Scope::One);
            }
            Kind::Attributes | Kind::SetXattr | Kind::RemoveXattr | Kind::Flags => match applier.target_of(record) {
                Some(path) => {
                    // The file may keep them under another name when this one goes.
                    if let Some(bound) = applier.ledger.bindings.file(&path) {
                        self.files.entry(bound).or_default();
                    }
                    self.dirty(applier, &path, Scope::One);
                }
                None => self.note_bytes(applier, record, 0, 0),
            },
            Kind::Import => {
                // What comes in may have been here before.
                applier.ledger.enter(Entry::Remove(path1));
                applier.ledger.enter(Entry::ForgetGone);
                self.dirty(applier, path1, Scope::Tree);
            }
            Kind::RereadNames => self.dirty(applier, path1, Scope::Names),
            // What is written to a file without a name is read when it gets one.
            Kind::CreateUnnamed => applier.ledger.enter(Entry::Gone(file)),
            Kind::NotFollowed | Kind::Sync => {}
            kind => unreachable!("{kind:?} is listed above"),
        }
        applier.ledger.flush()
    }

    /// Goes on with the first pass for about `budget`.
    ///
    /// # Errors
    /// [`ReplayError`]; it can be gone on with.
    pub fn step(&mut self, applier: &mut Applier, budget: Duration) -> Result<Progress, ReplayError> {
        let until = Instant::now() + budget;
        applier.primary.forget(b"");
        if matches!(self.state, State::New) {
            let walk = Walk::start(applier, b"", &mut self.leveling)?;
            let root_is_gone = in_primary("find", b"");
            self.state = State::Walking(walk.ok_or_else(|| root_is_gone(Errno::NOENT))?);
        }
        if let State::Walking(walk) = &mut self.state {
            while walk.advance(applier, &mut self.leveling)? {
                if Instant::now() >= until {
                    applier.ledger.flush()?;
                    return Ok(Progress::Walking);
                }
            }
            self.state = State::Walked;
        }
        applier.ledger.flush()?;
        Ok(Progress::Walked)
    }

    /// How many objects are to be compared again.
    pub fn dirty_len(&self) -> usize {
        self.files.len() + self.paths.len() + self.unknown.len()
    }

    /// Objects looked at and bytes written so far.
    pub const fn done(&self) -> (u64, u64) {
        (self.leveling.objects, self.leveling.bytes_written)
    }

    /// Compares what was noted up to now.
    ///
    /// # Errors
    /// [`ReplayError`]; nothing that was noted is lost.
    pub fn dirty_pass(&mut self, applier: &mut Applier) -> Result<(), ReplayError> {
        applier.primary.forget(b"");
        self.leveling.begin_pass();
        while let Some((path, scope)) = self.paths.pop_first() {
            if let Err(error) = self.level(applier, &path, scope) {
                self.add(&path, scope);
                return Err(error);
            }
        }
        let files: Vec<FileId> = self.files.keys().copied().collect();
        for file in files {
            let Some(ranges) = self.files.get(&file).cloned() else { continue };
            if self.level_file(applier, file, &ranges)? {
                self.files.remove(&file);
            }
        }
        if !self.unknown.is_empty() {
            self.find_unknown(applier)?;
        }
        applier.ledger.flush()
    }

    /// The end: called while nothing changes the primary and every record up to then was noted. Returns what could not
    /// be read, with the reason; if there is anything, the mirror is not complete.
    ///
    /// # Errors
    /// [`ReplayError`]; it can be called again.
    pub fn finish(&mut self, applier: &mut Applier) -> Result<Vec<(Vec<u8>, Errno)>, ReplayError> {
        self.dirty_pass(applier)?;
        // What is left has no name that leads to it: its names stand for other files by now.
        let stale: Vec<FileId> = self.files.keys().copied().collect();
        for file in stale {
            let names: Vec<Vec<u8>> = applier.ledger.bindings.names(file).map(<[u8]>::to_vec).collect();
            for name in names {
                applier.level_one(&name, &mut self.leveling)?;
            }
            self.files.remove(&file);
        }
        applier.check_bindings(&std::mem::take(&mut self.leveling.unbound))?;
        applier.repair_pending(Rest::AtRest)?;
        applier.settle(Rest::AtRest, usize::MAX, || true)?;
        Ok(std::mem::take(&mut self.leveling.unreadable))
    }

    fn level(&mut self, applier: &mut Applier, path: &[u8], scope: Scope) -> Result<(), ReplayError> {
        match scope {
            Scope::One => applier.level_one(path, &mut self.leveling),
            Scope::Names | Scope::Tree => {
                let found = match scope {
                    Scope::Tree => applier.level_tree(path, &mut self.leveling)?,
                    _ => applier.level_names(path, &mut self.leveling)?,
                };
                if found { Ok(()) } else { applier.level_one(path, &mut self.leveling) }
            }
        }
    }

    /// Compares a file that was noted by its identity; false if none of its names leads to it now.
    fn level_file(&mut self, applier: &mut Applier, file: FileId, ranges: &Ranges) -> Result<bool, ReplayError> {
        let names: Vec<Vec<u8>> = applier.ledger.bindings.names(file).map(<[u8]>::to_vec).collect();
        if names.is_empty() {
            return Ok(true);
        }
        let ranges: Vec<(u64, u64)> = ranges.iter().filter(|(_, bytes)| *bytes > 0).collect();
        for name in &names {
            let stat = applier.primary.look(name).map_err(in_primary("stat", name))?;
            if stat.is_none_or(|stat| tree::id_of(&stat) != file) {
                continue;
            }
            let is_there = applier.look(name)?.is_some_and(|stat| tree::file_type(&stat) == FileType::RegularFile);
            if !is_there || ranges.is_empty() || !applier.read_ranges_by(name, file, &ranges)? {
                applier.level_one(name, &mut self.leveling)?;
            }
            applier.ledger.touch(file);
            return Ok(true);
        }
        Ok(false)
    }

    fn note_bytes(&mut self, applier: &mut Applier, record: &Record, offset: u64, bytes: u64) {
        let file = record.file();
        if applier.ledger.bindings.has(file) {
            self.files.entry(file).or_default().add(offset, bytes);
            applier.ledger.touch(file);
        } else if !applier.ledger.bindings.is_gone(file) && record.header.flags & FLAG_MAYBE_OUTSIDE == 0 {
            self.unknown.insert(file);
        }
    }

    fn note_rename(&mut self, applier: &mut Applier, record: &Record) {
        let (old, new, file) = (record.path1, record.path2, record.file());
        let flags = RenameFlags::from_bits_retain(record.header.a as u32);
        let is_directory = FileType::from_raw_mode(record.header.b as u32) == FileType::Directory;
        if old == new {
            return;
        }
        let bindings = &applier.ledger.bindings;
        if flags.contains(RenameFlags::EXCHANGE) {
            applier.ledger.enter(Entry::Exchange(old, new));
            self.paths.exchange(old, new);
            self.dirty(applier, old, Scope::Tree);
            self.dirty(applier, new, Scope::Tree);
            return;
        }
        let is_ahead = file.ino != 0 && !is_directory && bindings.file(new) == Some(file);
        if is_ahead {
            // The walk met it under its new name. The old one, if still known, is checked at the end.
            self.dirty(applier, old, Scope::One);
            self.dirty(applier, new, Scope::One);
            return;
        }
        applier.ledger.enter(Entry::Rename(old, new));
        self.paths.rename(old, new);
        if !is_directory && applier.ledger.bindings.has(file) && applier.ledger.bindings.file(new) != Some(file) {
            applier.ledger.enter(Entry::AddName(file, new));
        }
        self.dirty(applier, old, Scope::One);
        self.dirty(applier, new, if is_directory { Scope::Tree } else { Scope::One });
    }

    fn dirty(&mut self, applier: &mut Applier, path: &[u8], scope: Scope) {
        if !paths::is_reserved(path) {
            self.add(path, scope);
            applier.ledger.touch_path(paths::parent(path));
        }
    }

    fn add(&mut self, path: &[u8], scope: Scope) {
        let scope = self.paths.get(path).map_or(scope, |before| scope.max(*before));
        self.paths.insert(path, scope);
    }

    /// Looks for files that were written to and of which no name is known, by walking the whole primary.
    fn find_unknown(&mut self, applier: &mut Applier) -> Result<(), ReplayError> {
        for (file, path) in applier.find_files(&self.unknown)? {
            applier.ledger.enter(Entry::AddName(file, &path));
            applier.level_one(&path, &mut self.leveling)?;
            applier.ledger.touch(file);
        }
        for file in self.unknown.drain() {
            if !applier.ledger.bindings.has(file) {
                applier.ledger.enter(Entry::Gone(file));
            }
        }
        Ok(())
    }
}

fn note_name(applier: &mut Applier, file: FileId, path: &[u8]) {
    if applier.ledger.bindings.file(path) != Some(file) {
        applier.ledger.enter(Entry::AddName(file, path));
    }
}

impl Applier {
    /// The path that a record of attributes is about, if it is known.
    fn target_of(&self, record: &Record) -> Option<Vec<u8>> {
        self.target(record).ok()
    }

    /// Drops names that do not lead to their file in the primary, and adds those of `unbound` that do. Only right while
    /// the primary is held still.
    fn check_bindings(&mut self, unbound: &[(Vec<u8>, FileId)]) -> Result<(), ReplayError> {
        self.primary.forget(b"");
        let names: Vec<(Vec<u8>, FileId)> =
            self.ledger.bindings.iter().map(|(name, file)| (name.to_vec(), file)).collect();
        let mut stale = HashSet::new();
        let mut right: HashMap<FileId, Vec<Vec<u8>>> = HashMap::new();
        for (name, file) in names {
            let found = match self.primary.look(&name) {
                Ok(stat) => stat.map(|stat| tree::id_of(&stat)),
                Err(Errno::ACCESS) => Some(file),
                Err(errno) => return Err(in_primary("stat", &name)(errno)),
            };
            if found == Some(file) {
                right.entry(file).or_default().push(name);
            } else {
                stale.insert(file);
            }
        }
        for file in stale {
            self.ledger.enter(Entry::Forget(file));
            for name in right.get(&file).into_iter().flatten() {
                self.ledger.enter(Entry::AddName(file, name));
            }
        }
        for (name, file) in unbound {
            let is_there =
                self.primary.look(name).is_ok_and(|stat| stat.is_some_and(|stat| tree::id_of(&stat) == *file));
            if is_there && self.ledger.bindings.file(name).is_none() {
                self.ledger.enter(Entry::AddName(*file, name));
            }
        }
        Ok(())
    }

    /// Walks the primary for files by their identity.
    pub(crate) fn find_files(&mut self, wanted: &HashSet<FileId>) -> Result<Vec<(FileId, Vec<u8>)>, ReplayError> {
        let mut found = Vec::new();
        let mut directories = vec![Vec::new()];
        while let Some(directory) = directories.pop() {
            let names = match self.primary.list(&directory) {
                Ok(names) => names,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::PERM) => continue,
                Err(errno) => return Err(in_primary("list", &directory)(errno)),
            };
            for (name, kind) in names {
                let path = paths::join(&directory, &name);
                if paths::is_reserved(&path) {
                    continue;
                }
                if kind == FileType::Directory {
                    directories.push(path);
                } else if let Ok(Some(stat)) = self.primary.look(&path) {
                    match tree::file_type(&stat) {
                        FileType::Directory => directories.push(path),
                        _ if wanted.contains(&tree::id_of(&stat)) => found.push((tree::id_of(&stat), path)),
                        _ => {}
                    }
                }
            }
        }
        Ok(found)
    }
}
