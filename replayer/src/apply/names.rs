//! Records of names: objects are made, linked, moved and removed.

use std::collections::HashSet;
use std::sync::Arc;

use journal::record::{FileId, Record, pack_owner, unpack_owner};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::{Applied, Applier};
use crate::error::{ReplayError, in_mirror, in_primary, is_divergence};
use crate::ledger::{EXCHANGED, Entry};
use crate::limits::{Limit, is_refusal};
use crate::paths;
use crate::repair::PathRepair;
use crate::resync::Leveling;
use crate::tree;

/// Where files without a name wait for one.
const UNNAMED: &[u8] = b".lockstep/unnamed";

/// Unnamed files from which on those of ended processes are looked for.
const UNNAMED_MANY: usize = 64;

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
            if self.read_ranges(file, &ranges)? {
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
                // A name that stands for another file here is ahead of the records.
                if name != to && self.ledger.bindings.file(&name).is_none() {
                    self.ledger.enter(Entry::AddName(file, &name));
                }
            }
        }
        self.read_again(to, PathRepair::Tree)
    }

    pub(super) fn rename(&mut self, record: &Record) -> Result<Applied, ReplayError> {
        let (old, new) = (record.path1, record.path2);
        let flags = RenameFlags::from_bits_retain(record.header.a as u32);
        if old == new {
            return Ok(Applied::Done);
        }
        let applied = if flags.contains(RenameFlags::EXCHANGE) {
            self.exchange(record)?
        } else {
            self.rename_checked(record, flags.contains(RenameFlags::WHITEOUT))?
        };
        for path in [old, new] {
            self.touch_parent(path);
        }
        self.touch_target(new);
        if flags.intersects(RenameFlags::EXCHANGE | RenameFlags::WHITEOUT) {
            self.ledger.touch_path(old);
        }
        Ok(applied)
    }

    /// A rename that replaces, with a look at what the mirror is thought to have under both names: after an import it
    /// may be ahead of the records.
    fn rename_checked(&mut self, record: &Record, leaves_whiteout: bool) -> Result<Applied, ReplayError> {
        let (old, new, file) = (record.path1, record.path2, record.file());
        let (at_old, at_new) = (self.ledger.bindings.file(old), self.ledger.bindings.file(new));
        if at_old.is_some() && at_old == at_new {
            // Two names of one file: rename(2) does nothing.
            return Ok(Applied::Done);
        }
        let is_directory = FileType::from_raw_mode(record.header.b as u32) == FileType::Directory;
        if is_directory || file.ino == 0 {
            // A directory has no binding that would tell whether it is the one that was meant.
            let doubtful = self.ledger.is_ahead(old) || self.ledger.is_ahead(new);
            let applied = self.rename_plainly(record, leaves_whiteout)?;
            return if doubtful { self.missing(new) } else { Ok(applied) };
        }
        if at_new == Some(file) {
            // Done before, or read from a primary where it was.
            if at_old.is_some() || self.look(old)?.is_some() {
                self.missing(old)?;
                return self.missing(new);
            }
            return Ok(Applied::Done);
        }
        let applied = self.rename_plainly(record, leaves_whiteout)?;
        if at_old.is_some_and(|other| other != file) {
            if let Some(other) = self.ledger.bindings.file(new) {
                self.ledger.enter(Entry::Forget(other));
            }
            self.ledger.enter(Entry::AddName(file, new));
            return self.missing(new);
        }
        if self.ledger.bindings.has(file) && self.ledger.bindings.file(new) != Some(file) {
            self.ledger.enter(Entry::AddName(file, new));
        }
        Ok(applied)
    }

    fn rename_plainly(&mut self, record: &Record, leaves_whiteout: bool) -> Result<Applied, ReplayError> {
        let (old, new) = (record.path1, record.path2);
        let kind = FileType::from_raw_mode(record.header.b as u32);
        if leaves_whiteout && let Some(applied) = self.whiteout_again(record)? {
            return Ok(applied);
        }
        let mut result = self.rename_in_mirror(kind, old, new, RenameFlags::empty());
        if matches!(result, Err(Errno::EXIST | Errno::NOTEMPTY | Errno::ISDIR | Errno::NOTDIR))
            && self.look(old)?.is_some()
            && self.look(new)?.is_some()
        {
            self.discard(new)?;
            result = self.rename_in_mirror(kind, old, new, RenameFlags::empty());
        }
        let applied = match result {
            Ok(()) => {
                self.ledger.enter(Entry::Rename(old, new));
                Applied::Done
            }
            Err(errno) if is_divergence(errno) => self.rename_of_nothing(old, new)?,
            Err(errno) => return Err(in_mirror("rename", old)(errno)),
        };
        if leaves_whiteout {
            let (mode, owner) = (u64::from(FileType::CharacterDevice.as_raw_mode()), pack_owner(u32::MAX, u32::MAX));
            self.make_node(old, mode, owner, 0)?;
        }
        Ok(applied)
    }

    /// A rename whose source is not in the mirror, or whose target's directory is not.
    fn rename_of_nothing(&mut self, old: &[u8], new: &[u8]) -> Result<Applied, ReplayError> {
        if self.look(old)?.is_some() {
            self.discard(old)?;
            self.ledger.enter(Entry::Rename(old, new));
            return self.missing(new);
        }
        let waits = self.ledger.pending().path(old) == Some(PathRepair::Tree);
        if waits || self.ledger.is_absent(old) {
            // It was never here, and takes the place of what is.
            self.discard(new)?;
            self.ledger.enter(Entry::Rename(old, new));
            return Ok(if waits { Applied::Repair } else { Applied::Done });
        }
        let is_there = self.look(new)?.is_some();
        if self.ledger.knows(old) {
            self.ledger.enter(Entry::Rename(old, new));
        }
        if is_there { Ok(Applied::Done) } else { self.missing(new) }
    }

    fn rename_in_mirror(
        &mut self,
        kind: FileType,
        old: &[u8],
        new: &[u8],
        flags: RenameFlags,
    ) -> rustix::io::Result<()> {
        // A directory that moves to another one is changed itself, because of its `..`.
        let directories = [paths::parent(old), paths::parent(new), old];
        // An exchange moves two objects.
        let is_directory_moved = !flags.is_empty() || kind != FileType::RegularFile;
        let result = self.mirror.with_access(&directories, |mirror| {
            let (from, old) = mirror.place(old)?;
            let (to, new) = mirror.place(new)?;
            if flags.is_empty() {
                rustix::fs::renameat(&from, old, &to, new)
            } else {
                rustix::fs::renameat_with(&from, old, &to, new, flags)
            }
        });
        if is_directory_moved {
            self.mirror.forget(old);
            self.mirror.forget(new);
        }
        result
    }

    /// Exchanging twice undoes it, so what is about to be done is entered first.
    fn exchange(&mut self, record: &Record) -> Result<Applied, ReplayError> {
        let (a, b, seq) = (record.path1, record.path2, record.header.seq);
        let before = self.ledger.intent(seq).filter(|_| seq != 0);
        if before == Some(EXCHANGED) {
            return Ok(Applied::Done);
        }
        let (Some(at_a), Some(_)) = (self.look(a)?, self.look(b)?) else {
            self.ledger.enter(Entry::Exchange(a, b));
            self.discard(a)?;
            self.discard(b)?;
            self.missing(a)?;
            return self.missing(b);
        };
        if before.is_none_or(|ino| ino == at_a.st_ino) {
            self.ledger.enter(Entry::Intent(seq, at_a.st_ino));
            self.ledger.flush()?;
            match self.rename_in_mirror(FileType::Unknown, a, b, RenameFlags::EXCHANGE) {
                Ok(()) => {}
                Err(errno) if is_refusal(errno) => self.exchange_in_steps(a, b)?,
                Err(errno) => return Err(in_mirror("exchange", a)(errno)),
            }
        }
        self.ledger.enter(Entry::Exchange(a, b));
        Ok(Applied::Done)
    }

    /// For file systems that can't exchange: by way of a hidden name. Not one step for those who look at the mirror.
    fn exchange_in_steps(&mut self, a: &[u8], b: &[u8]) -> Result<(), ReplayError> {
        self.make_hidden_directory()?;
        let aside = paths::join(UNNAMED, b"exchanged");
        for (from, to) in [(a, &aside[..]), (b, a), (&aside, b)] {
            self.rename_in_mirror(FileType::Unknown, from, to, RenameFlags::empty())
                .map_err(in_mirror("exchange", from))?;
        }
        Ok(())
    }

    /// For a rename that leaves a whiteout and may have been applied: the name is there before and after.
    fn whiteout_again(&mut self, record: &Record) -> Result<Option<Applied>, ReplayError> {
        let (old, new, seq) = (record.path1, record.path2, record.header.seq);
        let Some(stat) = self.look(old)? else { return Ok(None) };
        match self.ledger.intent(seq).filter(|_| seq != 0) {
            Some(before) if before != stat.st_ino => {
                if self.ledger.knows(old) && self.ledger.bindings.file(old).is_some() {
                    self.ledger.enter(Entry::Rename(old, new));
                }
                Ok(Some(Applied::Done))
            }
            _ => {
                self.ledger.enter(Entry::Intent(seq, stat.st_ino));
                self.ledger.flush()?;
                Ok(None)
            }
        }
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

    pub(super) fn create_unnamed(&mut self, record: &Record) -> Result<Applied, ReplayError> {
        if self.ledger.unnamed().len() >= UNNAMED_MANY {
            self.sweep_unnamed()?;
        }
        self.make_hidden_directory()?;
        let file = record.file();
        let path = unnamed_path(file);
        // One of that number is of an earlier file, or was made by this record and not written to since.
        self.discard(&path)?;
        let applied = self.create(&path, file, record.header.a, record.header.b)?;
        self.ledger.enter(Entry::Unnamed(file, record.pid()));
        Ok(applied)
    }

    /// Removes unnamed files whose makers have ended. Should another process still hold one and give it a name, its
    /// content is read from the primary.
    fn sweep_unnamed(&mut self) -> Result<(), ReplayError> {
        let ended = |pid: u32| !std::path::Path::new(&format!("/proc/{pid}")).exists();
        let files: Vec<FileId> =
            self.ledger.unnamed().iter().filter(|(_, pid)| ended(**pid)).map(|(file, _)| *file).collect();
        for file in files {
            let path = unnamed_path(file);
            self.discard(&path)?;
            self.ledger.enter(Entry::Remove(&path));
        }
        Ok(())
    }

    /// Removes hidden files that nothing in the ledger stands for.
    pub(super) fn remove_stray_unnamed(&mut self) -> Result<(), ReplayError> {
        if self.mirror.look(UNNAMED).map_err(in_mirror("stat", UNNAMED))?.is_none() {
            return Ok(());
        }
        for (name, _) in self.mirror.list(UNNAMED).map_err(in_mirror("list", UNNAMED))? {
            let path = paths::join(UNNAMED, &name);
            if self.ledger.bindings.file(&path).is_none() && name != b"exchanged" {
                self.mirror.remove(&path).map_err(in_mirror("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Removes every unnamed file, before a resync.
    pub(crate) fn remove_unnamed(&mut self) -> Result<(), ReplayError> {
        self.mirror.remove(UNNAMED).map_err(in_mirror("remove", UNNAMED))
    }

    fn make_hidden_directory(&mut self) -> Result<(), ReplayError> {
        for path in [paths::RESERVED, UNNAMED] {
            let (directory, name) = self.mirror.place(path).map_err(in_mirror("open", path))?;
            match rustix::fs::mkdirat(&directory, name, Mode::RWXU) {
                Ok(()) => self.ledger.touch_path(b""),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(in_mirror("make directory", path)(errno)),
            }
        }
        Ok(())
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
        let mut leveling = Leveling::default();
        Ok(if self.repair_path(path, what, &mut leveling)? { Applied::Done } else { Applied::Repair })
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

fn unnamed_path(file: FileId) -> Vec<u8> {
    paths::join(UNNAMED, format!("{}-{}", file.dev, file.ino).as_bytes())
}

fn link_in(mirror: &mut tree::Tree, from: &[u8], to: &[u8]) -> rustix::io::Result<()> {
    let (old_directory, old) = mirror.place(from)?;
    let (new_directory, new) = mirror.place(to)?;
    rustix::fs::linkat(&old_directory, old, &new_directory, new, AtFlags::empty())
}
