//! Records of names: objects are made, linked, moved and removed.

use std::collections::HashSet;
use std::sync::Arc;

use journal::record::{FileId, unpack_owner};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::unnamed::UNNAMED;
use super::{Applied, Applier};
use crate::error::{ReplayError, in_mirror, in_primary};
use crate::ledger::Entry;
use crate::limits::{Limit, is_refusal};
use crate::paths;
use crate::repair::PathRepair;
use crate::resync::Leveling;
use crate::settle::Rest;
use crate::tree;

/// What is in the way of an object that is to be made.
enum Existing {
    /// Nothing was: it was made.
    Made,
    /// It is there already.
    Same(Stat),
}

impl Applier {
    pub(super) fn create(&mut self, path: &[u8], file: FileId, mode: u64, owner: u64) -> Result<Applied, ReplayError> {
        let bits = Mode::from_raw_mode(mode as u32 & 0o7777);
        let is_known = file != FileId::NONE;
        let is_bound = self.ledger.bindings.file(path) == Some(file);
        let mut made: Option<OwnedFd> = None;
        let result = self.make(
            path,
            |directory, name| {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
                made = Some(tree::open_name(directory, name, flags, bits)?);
                Ok(())
            },
            |stat| {
                // One whose identity is not told yet has not been written to when its record is applied again.
                let is_newborn = !is_known && stat.st_size == 0 && stat.st_nlink == 1;
                (is_bound || is_newborn) && tree::file_type(stat) == FileType::RegularFile
            },
        );
        let existing = match result? {
            Ok(existing) => existing,
            Err(errno) => return self.outcome(Err(errno), "create", path),
        };
        let stat = match (&existing, &made) {
            (Existing::Same(stat), _) => *stat,
            (Existing::Made, Some(fd)) => rustix::fs::fstat(fd).map_err(in_mirror("stat", path))?,
            (Existing::Made, None) => unreachable!("it was made by opening it"),
        };
        if !is_known {
            self.ledger.enter(Entry::Remove(path));
            self.ledger.enter(Entry::TouchPath(path));
            self.newborn = made.map(|fd| (path.to_vec(), Arc::new(fd)));
        } else {
            if !is_bound || made.is_some() {
                self.ledger.enter(Entry::Bind(file, path));
            }
            if let Some(fd) = made {
                self.ledger.bindings.keep_open(file, Arc::new(fd));
            }
            self.ledger.touch(file);
        }
        self.touch_parent(path);
        self.conform(path, &stat, mode as u32, owner)?;
        Ok(Applied::Done)
    }

    pub(super) fn bind(&mut self, path: &[u8], file: FileId) -> Result<Applied, ReplayError> {
        let bindings = &self.ledger.bindings;
        if bindings.file(path) == Some(file) {
            return Ok(Applied::Done);
        }
        if let Some((_, fd)) = self.newborn.take().filter(|(newborn, _)| newborn == path) {
            // The file that the record before this one has made: whatever was known of the inode number is of old.
            self.ledger.enter(Entry::Bind(file, path));
            self.ledger.bindings.keep_open(file, fd);
            return Ok(Applied::Done);
        }
        let other = bindings.name(file).map(<[u8]>::to_vec);
        let here = self.look(path)?;
        let same_file = match (&other, &here) {
            (Some(other), Some(here)) => {
                self.look(other)?.is_some_and(|there| tree::id_of(&there) == tree::id_of(here))
            }
            _ => false,
        };
        // Another name of a file that is known, or a file of which the old names are stale.
        self.ledger.enter(if same_file { Entry::AddName(file, path) } else { Entry::Bind(file, path) });
        if here.is_some() { Ok(Applied::Done) } else { self.missing(path) }
    }

    pub(super) fn make_directory(&mut self, path: &[u8], mode: u64, owner: u64) -> Result<Applied, ReplayError> {
        let bits = Mode::from_raw_mode(mode as u32 & 0o7777);
        let result = self.make(
            path,
            |directory, name| rustix::fs::mkdirat(directory, name, bits),
            |stat| tree::file_type(stat) == FileType::Directory,
        );
        self.made(path, mode as u32, owner, "make directory", result)
    }

    pub(super) fn symbolic_link(&mut self, path: &[u8], target: &[u8], owner: u64) -> Result<Applied, ReplayError> {
        if let Ok((directory, name)) = self.mirror.place(path)
            && let Ok(there) = rustix::fs::readlinkat(&directory, name, Vec::new())
            && there.to_bytes() != target
        {
            self.discard(path)?;
        }
        let result = self.make(
            path,
            |directory, name| rustix::fs::symlinkat(target, directory, name),
            |stat| tree::file_type(stat) == FileType::Symlink,
        );
        self.made(path, 0o777, owner, "make symbolic link", result)
    }

    pub(super) fn make_node(
        &mut self,
        path: &[u8],
        mode: u64,
        owner: u64,
        device: u64,
    ) -> Result<Applied, ReplayError> {
        let kind = FileType::from_raw_mode(mode as u32);
        let bits = Mode::from_raw_mode(mode as u32 & 0o7777);
        let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        let device = if is_device { device } else { 0 };
        let result = self.make(
            path,
            |directory, name| rustix::fs::mknodat(directory, name, kind, bits, device),
            |stat| tree::file_type(stat) == kind && (!is_device || stat.st_rdev == device),
        );
        self.made(path, mode as u32, owner, "make node", result)
    }

    pub(super) fn link(&mut self, from: &[u8], to: &[u8], file: FileId) -> Result<Applied, ReplayError> {
        let known: Vec<Vec<u8>> = self.ledger.bindings.names(file).map(<[u8]>::to_vec).collect();
        let named = (!from.is_empty()).then(|| from.to_vec());
        let mut source = None;
        for name in named.into_iter().chain(known.iter().cloned()) {
            if name != to
                && let Some(stat) = self.look(&name)?
            {
                source = Some((name, stat));
                break;
            }
        }
        let Some((source, stat)) = source else {
            if known.iter().any(|name| name == to) && self.look(to)?.is_some() {
                return Ok(Applied::Done);
            }
            if self.ledger.is_absent(from) {
                self.ledger.enter(Entry::Absent(to));
                return Ok(Applied::Done);
            }
            // Nothing of the file is here: its content comes from the primary.
            self.ledger.enter(Entry::Bind(file, to));
            self.touch_parent(to);
            return self.link_of_unknown(to, file);
        };
        let directories = [paths::parent(&source), paths::parent(to)];
        let mut result = self.mirror.with_access(&directories, |mirror| link_in(mirror, &source, to));
        if result == Err(Errno::EXIST) {
            if self.look(to)?.is_some_and(|there| tree::id_of(&there) == tree::id_of(&stat)) {
                result = Ok(());
            } else {
                self.discard(to)?;
                result = self.mirror.with_access(&directories, |mirror| link_in(mirror, &source, to));
            }
        }
        let is_unnamed = paths::is_within(&source, UNNAMED);
        match result {
            Ok(()) => {}
            Err(errno) if is_refusal(errno) || matches!(errno, Errno::XDEV | Errno::MLINK) => {
                self.limits.add(Limit::Hardlink);
                if tree::file_type(&stat) == FileType::RegularFile {
                    self.copy_within_mirror(&source, to)?;
                }
            }
            Err(errno) => return self.outcome(Err(errno), "link", to),
        }
        if is_unnamed {
            self.ledger.enter(Entry::Bind(file, to));
            self.ledger.flush()?;
            self.mirror.remove(&source).map_err(in_mirror("remove", &source))?;
        } else {
            for name in [&source, to] {
                if self.ledger.bindings.file(name) != Some(file) {
                    self.ledger.enter(Entry::AddName(file, name));
                }
            }
        }
        self.ledger.touch(file);
        self.touch_parent(to);
        if let Some(ranges) = self.ledger.pending().ranges(file) {
            // Now there may be a name by which to read what waits.
            let ranges: Vec<(u64, u64)> = ranges.iter().collect();
            if self.read_ranges_late(file, &ranges)? {
                self.ledger.enter(Entry::MendedFile(file));
            }
        }
        Ok(Applied::Done)
    }

    /// A link of a file of which the mirror knows no name. If it has another one, opened only for reading, that is
    /// searched in the whole primary, so that both stay one file.
    fn link_of_unknown(&mut self, to: &[u8], file: FileId) -> Result<Applied, ReplayError> {
        self.primary.forget(b"");
        let stat = self.primary.look(to).map_err(in_primary("stat", to))?;
        if stat.is_some_and(|stat| stat.st_nlink > 1 && tree::id_of(&stat) == file) {
            for (_, name) in self.find_files(&HashSet::from([file]))? {
                // A name that is not here, or stands for another file, is ahead of the records.
                if name != to && self.ledger.bindings.file(&name).is_none() && self.look(&name)?.is_some() {
                    self.ledger.enter(Entry::AddName(file, &name));
                }
            }
        }
        self.read_again(to, PathRepair::Tree)
    }

    pub(super) fn unlink(&mut self, path: &[u8], file: FileId) -> Result<Applied, ReplayError> {
        if file.ino != 0 && self.ledger.bindings.file(path).is_some_and(|other| other != file) {
            // The mirror has another file there: it is ahead of the records, or was mistaken.
            self.touch_parent(path);
            return self.missing(path);
        }
        let result = self.mirror.with_access(&[paths::parent(path)], |mirror| {
            let (directory, name) = mirror.place(path)?;
            rustix::fs::unlinkat(&directory, name, AtFlags::empty())
        });
        match result {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(_) => self.discard(path)?,
        }
        self.removed(path);
        Ok(Applied::Done)
    }

    pub(super) fn remove_directory(&mut self, path: &[u8]) -> Result<Applied, ReplayError> {
        self.discard(path)?;
        self.mirror.forget(path);
        self.removed(path);
        Ok(Applied::Done)
    }

    fn removed(&mut self, path: &[u8]) {
        if self.ledger.knows(path) {
            self.ledger.enter(Entry::Remove(path));
        }
        self.touch_parent(path);
    }

    /// Something came to `path` from outside, or left it for there, so what was there is no more.
    pub(super) fn import(&mut self, path: &[u8], file: FileId) -> Result<Applied, ReplayError> {
        self.removed(path);
        self.primary.forget(b"");
        let there = self.primary.look(path).map_err(in_primary("stat", path))?;
        if there.is_none_or(|there| file.ino != 0 && tree::id_of(&there) != file) {
            // It left, or has moved on, which later records say.
            self.discard(path)?;
            self.ledger.enter(Entry::RepairPath(path, PathRepair::Tree));
            return Ok(Applied::Repair);
        }
        self.read_again(path, PathRepair::Tree)
    }

    pub(super) fn reread_names(&mut self, path: &[u8]) -> Result<Applied, ReplayError> {
        self.ledger.touch_path(path);
        self.read_again(path, PathRepair::Names)
    }

    /// Compares a path with the primary now, or later if it is not there.
    fn read_again(&mut self, path: &[u8], what: PathRepair) -> Result<Applied, ReplayError> {
        self.ledger.enter(Entry::RepairPath(path, what));
        let mut leveling = Leveling::during(Rest::Busy);
        Ok(if self.repair_path(path, what, Rest::Busy, &mut leveling)? { Applied::Done } else { Applied::Repair })
    }

    /// Makes an object; where another one, or the same, is in its place, `is_same` decides. The inner error is one of
    /// the file system that the caller weighs.
    #[allow(clippy::type_complexity)]
    fn make(
        &mut self,
        path: &[u8],
        mut create: impl FnMut(&OwnedFd, &[u8]) -> rustix::io::Result<()>,
        is_same: impl Fn(&Stat) -> bool,
    ) -> Result<Result<Existing, Errno>, ReplayError> {
        for _ in 0..2 {
            let result = self.mirror.with_access(&[paths::parent(path)], |mirror| {
                let (directory, name) = mirror.place(path)?;
                create(&directory, name)
            });
            match result {
                Ok(()) => return Ok(Ok(Existing::Made)),
                Err(Errno::EXIST) => {}
                Err(errno) => return Ok(Err(errno)),
            }
            match self.look(path)? {
                Some(stat) if is_same(&stat) => return Ok(Ok(Existing::Same(stat))),
                _ => {}
            }
            self.discard(path)?;
            if self.ledger.knows(path) {
                self.ledger.enter(Entry::Remove(path));
            }
        }
        Ok(Err(Errno::EXIST))
    }

    /// What follows after an object other than a regular file was made.
    fn made(
        &mut self,
        path: &[u8],
        mode: u32,
        owner: u64,
        operation: &'static str,
        result: Result<Result<Existing, Errno>, ReplayError>,
    ) -> Result<Applied, ReplayError> {
        let kind = FileType::from_raw_mode(mode);
        let stat = match result? {
            Ok(Existing::Same(stat)) => stat,
            Ok(Existing::Made) => match self.look(path)? {
                Some(stat) => stat,
                None => return self.missing(path),
            },
            Err(errno)
                if is_refusal(errno)
                    && let Some(limit) = limit_of(operation, kind) =>
            {
                self.limits.add(limit);
                self.ledger.enter(Entry::Absent(path));
                self.touch_parent(path);
                return Ok(Applied::Done);
            }
            Err(errno) => return self.outcome(Err(errno), operation, path),
        };
        if let Some(stale) = self.ledger.bindings.file(path) {
            self.ledger.enter(Entry::Forget(stale));
        }
        self.ledger.touch_path(path);
        self.touch_parent(path);
        self.conform(path, &stat, mode, owner)?;
        Ok(Applied::Done)
    }

    /// Sets mode and owner as a record gives them, where they differ.
    fn conform(&mut self, path: &[u8], stat: &Stat, mode: u32, owner: u64) -> Result<(), ReplayError> {
        let (uid, gid) = unpack_owner(owner);
        let owned = self.own(path, stat, uid, gid)?;
        let loses_bits = owned && mode & 0o6000 != 0;
        if tree::file_type(stat) != FileType::Symlink && (stat.st_mode & 0o7777 != mode & 0o7777 || loses_bits) {
            self.set_mode(path, mode)?;
        }
        Ok(())
    }
}

/// The limit that a refusal to make such an object shows.
fn limit_of(operation: &str, kind: FileType) -> Option<Limit> {
    match kind {
        FileType::CharacterDevice | FileType::BlockDevice => Some(Limit::Device),
        FileType::Fifo => Some(Limit::Fifo),
        FileType::Socket => Some(Limit::Socket),
        _ if operation == "make symbolic link" => Some(Limit::Symlink),
        _ => None,
    }
}

fn link_in(mirror: &mut tree::Tree, from: &[u8], to: &[u8]) -> rustix::io::Result<()> {
    let (old_directory, old) = mirror.place(from)?;
    let (new_directory, new) = mirror.place(to)?;
    rustix::fs::linkat(&old_directory, old, &new_directory, new, AtFlags::empty())
}
