//! Makes one object of a mirror, or a tree of them, equal to the primary's, changing only what differs.
//!
//! Names are compared by what they are now; what the ledger knows of names is changed by records alone, because the
//! primary may be ahead of them.

use std::collections::{HashMap, HashSet};

use journal::record::FileId;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::attributes::differing_flags;
use super::walk::Walk;
use crate::apply::Applier;
use crate::content::Size;
use crate::error::{ReplayError, in_mirror, in_primary, is_divergence};
use crate::ledger::Entry;
use crate::limits::{Limit, is_refusal};
use crate::paths;
use crate::settle::Rest;
use crate::tree;

/// Bytes of one file that are compared before others get a turn.
const STRETCH_BYTES: u64 = 16 << 20;

/// What is learned while objects are compared.
#[derive(Debug, Default)]
pub struct Leveling {
    /// The first name found of each file that has several.
    links: HashMap<FileId, Vec<u8>>,
    /// For files of the mirror with several names, which file they stand for, by inode number.
    mirror_files: HashMap<u64, FileId>,
    /// Files with several names that were compared in this pass, under one of them.
    compared: HashSet<FileId>,
    /// What could not be read in the primary.
    pub unreadable: Vec<(Vec<u8>, Errno)>,
    phase: Phase,
    /// Names of files with several that were not bound, because records say otherwise.
    pub(super) unbound: Vec<(Vec<u8>, FileId)>,
    /// Bytes written to the mirror.
    pub bytes_written: u64,
    /// Objects looked at.
    pub objects: u64,
}

/// What is known of the primary and of names while objects are compared.
#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
pub enum Phase {
    /// Records are noted, not applied. The primary says what is to be; only files with several names get a binding.
    #[default]
    Resync,
    /// Records are applied, and the primary is ahead of them: what they say of names is exact and stays, where the
    /// primary has another file. Every file that is met gets a binding, because programs may have it open.
    Busy,
    /// All records have been applied: the primary is right in everything. Every file gets a binding.
    AtRest,
}

/// What an object is, once it is equal.
pub(super) enum Leveled {
    /// Not there, or nothing more to do.
    Done,
    /// A directory whose contents have not been looked at.
    Directory(Stat),
    /// A file with more bytes to compare.
    Large(Box<Copying>),
}

/// A large file on its way.
#[derive(Debug)]
pub(super) struct Copying {
    pub(super) path: Vec<u8>,
    pub(super) primary: OwnedFd,
    pub(super) mirror: OwnedFd,
    pub(super) stat: Stat,
    pub(super) done: u64,
    pub(super) is_new: bool,
    pub(super) flags: Option<u32>,
}

impl Leveling {
    /// For repairs, outside a resync.
    pub fn during(rest: Rest) -> Self {
        let phase = if rest == Rest::AtRest { Phase::AtRest } else { Phase::Busy };
        Self { phase, ..Self::default() }
    }

    /// From now on files are compared again, even those that were met before.
    pub fn begin_pass(&mut self) {
        self.compared.clear();
    }
}

impl Applier {
    /// Makes `path` and everything below equal to the primary's; false if the primary has nothing there.
    pub(crate) fn level_tree(&mut self, path: &[u8], leveling: &mut Leveling) -> Result<bool, ReplayError> {
        let Some(mut walk) = Walk::start(self, path, leveling)? else { return Ok(false) };
        while walk.advance(self, leveling)? {}
        Ok(true)
    }

    /// Makes `path` alone equal to the primary's: removes it where the primary has nothing. A directory that the mirror
    /// does not have comes with what is below.
    pub(crate) fn level_one(&mut self, path: &[u8], leveling: &mut Leveling) -> Result<(), ReplayError> {
        if paths::is_reserved(path) {
            return Ok(());
        }
        let wanted = match self.primary.look(path) {
            Ok(wanted) => wanted,
            Err(Errno::ACCESS) => {
                leveling.unreadable.push((path.to_vec(), Errno::ACCESS));
                return Ok(());
            }
            Err(errno) => return Err(in_primary("stat", path)(errno)),
        };
        let Some(wanted) = wanted else {
            if self.look(path)?.is_some() {
                self.discard(path)?;
                self.ledger.touch_path(paths::parent(path));
            }
            return Ok(());
        };
        if tree::file_type(&wanted) == FileType::Directory
            && self.look(path)?.is_some_and(|there| tree::file_type(&there) == FileType::Directory)
        {
            return self.level_directory_attributes(path, &wanted, leveling);
        }
        self.level_tree(path, leveling).map(drop)
    }

    /// Compares the names in directory `path`, and what they name as far as it looks changed; false if the primary has
    /// nothing there.
    pub(crate) fn level_names(&mut self, path: &[u8], leveling: &mut Leveling) -> Result<bool, ReplayError> {
        let wanted = self.primary.look(path).map_err(in_primary("stat", path))?;
        let Some(wanted) = wanted else { return Ok(false) };
        let there = self.look(path)?.map(|stat| tree::file_type(&stat));
        if tree::file_type(&wanted) != FileType::Directory || there != Some(FileType::Directory) {
            return self.level_tree(path, leveling);
        }
        for name in self.level_list(path, leveling)? {
            let child = paths::join(path, &name);
            let (Ok(ours), theirs) = (self.primary.look(&child), self.look(&child)?) else {
                leveling.unreadable.push((child, Errno::ACCESS));
                continue;
            };
            let is_same = match (&ours, &theirs) {
                (Some(ours), Some(theirs)) => {
                    let is_bound_so = self.ledger.bindings.file(&child).is_none_or(|file| file == tree::id_of(ours));
                    let is_directory = tree::file_type(ours) == FileType::Directory;
                    tree::file_type(ours) == tree::file_type(theirs)
                        && is_bound_so
                        && (is_directory
                            || ours.st_nlink == 1
                                && theirs.st_nlink == 1
                                && ours.st_size == theirs.st_size
                                && tree::mtime_of(ours) == tree::mtime_of(theirs))
                }
                _ => false,
            };
            if !is_same {
                self.level_one(&child, leveling)?;
            }
        }
        self.level_directory_attributes(path, &wanted, leveling)?;
        Ok(true)
    }

    /// Makes the directories above `path` that the mirror does not have.
    pub(super) fn level_parents(&mut self, path: &[u8]) -> Result<(), ReplayError> {
        let directories: Vec<&[u8]> = paths::ancestors(paths::parent(path)).collect();
        if self.look(paths::parent(path))?.is_some_and(|stat| tree::file_type(&stat) == FileType::Directory) {
            return Ok(());
        }
        let mut leveling = Leveling::default();
        for directory in directories {
            if let Leveled::Directory(stat) = self.level_object(directory, &mut leveling)? {
                self.level_directory_attributes(directory, &stat, &mut leveling)?;
            }
        }
        Ok(())
    }

    /// The names of directory `path` in the primary; those that only the mirror has are removed there.
    pub(super) fn level_list(&mut self, path: &[u8], leveling: &mut Leveling) -> Result<Vec<Vec<u8>>, ReplayError> {
        let ours = match self.primary.list(path) {
            Ok(names) => names,
            Err(errno) if is_divergence(errno) => return Ok(Vec::new()),
            Err(errno @ (Errno::ACCESS | Errno::PERM)) => {
                leveling.unreadable.push((path.to_vec(), errno));
                return Ok(Vec::new());
            }
            Err(errno) => return Err(in_primary("list", path)(errno)),
        };
        let mut names: Vec<Vec<u8>> = ours.into_iter().map(|(name, _)| name).collect();
        if path.is_empty() {
            names.retain(|name| name != paths::RESERVED);
        }
        let theirs = self.mirror.with_access(&[path], |mirror| mirror.list(path)).map_err(in_mirror("list", path))?;
        if !theirs.is_empty() {
            let wanted: HashSet<&[u8]> = names.iter().map(|name| &name[..]).collect();
            for (name, _) in theirs {
                let child = paths::join(path, &name);
                let is_ours = leveling.phase == Phase::Busy && self.ledger.bindings.has_within(&child);
                if !wanted.contains(&name[..]) && !paths::is_reserved(&child) && !is_ours {
                    self.discard(&child)?;
                    self.ledger.touch_path(path);
                }
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Makes the object `path` equal, without what is below a directory and without the attributes of one.
    pub(super) fn level_object(&mut self, path: &[u8], leveling: &mut Leveling) -> Result<Leveled, ReplayError> {
        if paths::is_reserved(path) {
            return Ok(Leveled::Done);
        }
        leveling.objects += 1;
        let wanted = match self.primary.look(path) {
            Ok(Some(wanted)) => wanted,
            // It went away meanwhile, which a record says.
            Ok(None) => return Ok(Leveled::Done),
            Err(Errno::ACCESS) => {
                leveling.unreadable.push((path.to_vec(), Errno::ACCESS));
                return Ok(Leveled::Done);
            }
            Err(errno) => return Err(in_primary("stat", path)(errno)),
        };
        let kind = tree::file_type(&wanted);
        if leveling.phase == Phase::Busy && self.is_in_order(path, &wanted) {
            return Ok(Leveled::Done);
        }
        let mut there = self.look(path)?;
        if there.is_some_and(|there| tree::file_type(&there) != kind) {
            self.discard(path)?;
            self.ledger.touch_path(paths::parent(path));
            there = None;
        }
        if kind == FileType::Directory {
            self.level_directory(path, there.as_ref())?;
            return Ok(Leveled::Directory(wanted));
        }
        // While records wait, one of the names that they know of may have gone from the primary already.
        let is_known = leveling.phase == Phase::Busy && self.ledger.bindings.has(tree::id_of(&wanted));
        let mut is_linked = false;
        if wanted.st_nlink > 1 || is_known {
            is_linked = self.level_links(path, &wanted, &mut there, leveling)?;
            if is_linked && leveling.compared.contains(&tree::id_of(&wanted)) {
                self.bind_found(path, &wanted, leveling);
                return Ok(Leveled::Done);
            }
            leveling.compared.insert(tree::id_of(&wanted));
        }
        let is_shared = there.is_some_and(|there| there.st_nlink > 1);
        if wanted.st_nlink == 1 && !is_linked && is_shared && !self.has_hidden_name(path) {
            self.discard(path)?;
            there = None;
        }
        let is_new = there.is_none();
        if is_new {
            self.ledger.touch_path(paths::parent(path));
        }
        let mut flags = None;
        let is_there = match kind {
            FileType::RegularFile => match self.level_content(path, is_new, leveling)? {
                Content::Equal(differing) => {
                    flags = differing;
                    true
                }
                Content::NotThere => false,
                Content::Large(copying) => {
                    self.bind_found(path, &wanted, leveling);
                    return Ok(Leveled::Large(copying));
                }
            },
            FileType::Symlink => self.level_symlink(path, is_new)?,
            _ => self.level_node(path, &wanted, there.as_ref())?,
        };
        if is_there {
            self.bind_found(path, &wanted, leveling);
            self.level_attributes(path, &wanted, is_new, flags, leveling)?;
        }
        Ok(Leveled::Done)
    }

    /// True when records say that another file is at `path` than the primary has there now, or files below it where
    /// the primary has no directory. Records that follow say how it came to that.
    pub(crate) fn is_in_order(&self, path: &[u8], wanted: &Stat) -> bool {
        match self.ledger.bindings.file(path) {
            Some(file) => file != tree::id_of(wanted),
            None => tree::file_type(wanted) != FileType::Directory && self.ledger.bindings.has_within(path),
        }
    }

    /// True while a file that got its first name still has its hidden one.
    fn has_hidden_name(&self, path: &[u8]) -> bool {
        let file = self.ledger.bindings.file(path);
        file.is_some_and(|file| self.ledger.bindings.names(file).any(paths::is_reserved))
    }

    fn level_directory(&mut self, path: &[u8], there: Option<&Stat>) -> Result<(), ReplayError> {
        match there {
            None => {
                let made = self.mirror.with_access(&[paths::parent(path)], |mirror| {
                    let (directory, name) = mirror.place(path)?;
                    rustix::fs::mkdirat(&directory, name, Mode::RWXU)
                });
                made.map_err(in_mirror("make directory", path))?;
                self.ledger.touch_path(paths::parent(path));
            }
            // Its mode is set at the end.
            Some(there) if there.st_mode & 0o700 != 0o700 => self.set_mode(path, there.st_mode | 0o700)?,
            Some(_) => {}
        }
        Ok(())
    }

    /// For a file with several names: links `path` to another of them. True if the two are now one file.
    fn level_links(
        &mut self,
        path: &[u8],
        wanted: &Stat,
        there: &mut Option<Stat>,
        leveling: &mut Leveling,
    ) -> Result<bool, ReplayError> {
        let file = tree::id_of(wanted);
        if let Some(there) = there
            && there.st_nlink > 1
            && leveling.mirror_files.get(&there.st_ino) == Some(&file)
        {
            // It is the file's already, whatever the mirror still has under its other names.
            leveling.links.insert(file, path.to_vec());
            return Ok(true);
        }
        let mut others: Vec<Vec<u8>> = leveling.links.get(&file).cloned().into_iter().collect();
        others.extend(self.ledger.bindings.names(file).map(<[u8]>::to_vec));
        for other in others {
            if other == path || paths::is_reserved(&other) {
                continue;
            }
            // While records are applied, what they say of the mirror's names is exact. A resync goes by the primary.
            let is_other_name = leveling.phase != Phase::Resync && self.ledger.bindings.file(&other) == Some(file)
                || self.primary.look(&other).is_ok_and(|stat| stat.is_some_and(|stat| tree::id_of(&stat) == file));
            let Some(source) =
                self.look(&other)?.filter(|source| is_other_name && tree::file_type(source) == tree::file_type(wanted))
            else {
                continue;
            };
            let claimed = leveling.mirror_files.get(&source.st_ino).is_some_and(|claimant| *claimant != file);
            if claimed && source.st_nlink > 1 {
                continue;
            }
            if there.is_some_and(|there| tree::id_of(&there) == tree::id_of(&source)) {
                leveling.mirror_files.insert(source.st_ino, file);
                return Ok(true);
            }
            if there.is_some() {
                self.discard(path)?;
                *there = None;
            }
            let directories = [paths::parent(&other), paths::parent(path)];
            let linked = self.mirror.with_access(&directories, |mirror| {
                let (from, old) = mirror.place(&other)?;
                let (to, new) = mirror.place(path)?;
                rustix::fs::linkat(&from, old, &to, new, AtFlags::empty())
            });
            self.ledger.touch_path(paths::parent(path));
            match linked {
                Ok(()) => {
                    self.ledger.bindings.close(file);
                    leveling.mirror_files.insert(source.st_ino, file);
                    *there = Some(source);
                    return Ok(true);
                }
                Err(errno) if is_refusal(errno) || matches!(errno, Errno::XDEV | Errno::MLINK) => {
                    self.limits.add(Limit::Hardlink);
                    return Ok(false);
                }
                Err(errno) => return Err(in_mirror("link", path)(errno)),
            }
        }
        leveling.links.insert(file, path.to_vec());
        if let Some(stat) = *there
            && stat.st_nlink > 1
        {
            if leveling.mirror_files.get(&stat.st_ino).is_some_and(|claimant| *claimant != file) {
                self.discard(path)?;
                *there = None;
            } else {
                leveling.mirror_files.insert(stat.st_ino, file);
            }
        }
        Ok(false)
    }

    fn bind_found(&mut self, path: &[u8], wanted: &Stat, leveling: &mut Leveling) {
        let file = tree::id_of(wanted);
        // A file of which a name is known, or was, has or had several.
        let is_wanted = wanted.st_nlink > 1
            || self.ledger.bindings.has(file)
            || self.ledger.bindings.is_gone(file)
            || leveling.phase != Phase::Resync && tree::file_type(wanted) == FileType::RegularFile;
        if !is_wanted || self.ledger.bindings.file(path) == Some(file) {
            return;
        }
        if leveling.phase == Phase::Resync && self.ledger.bindings.file(path).is_some() {
            // Records that are still to come may take the name from the other file, which must not lose it before.
            leveling.unbound.push((path.to_vec(), file));
            return;
        }
        self.ledger.enter(Entry::AddName(file, path));
    }

    fn level_content(&mut self, path: &[u8], is_new: bool, leveling: &mut Leveling) -> Result<Content, ReplayError> {
        let opened = self
            .primary
            .place(path)
            .and_then(|(directory, name)| tree::open_to_read(&directory, name, OFlags::empty()));
        let primary = match opened {
            Ok(primary) => primary,
            Err(errno @ (Errno::ACCESS | Errno::PERM)) => {
                leveling.unreadable.push((path.to_vec(), errno));
                return Ok(Content::NotThere);
            }
            Err(errno) if is_divergence(errno) || errno == Errno::NXIO => return Ok(Content::NotThere),
            Err(errno) => return Err(in_primary("open", path)(errno)),
        };
        let stat = rustix::fs::fstat(&primary).map_err(in_primary("stat", path))?;
        if tree::file_type(&stat) != FileType::RegularFile {
            return Ok(Content::NotThere);
        }
        let mirror = if is_new {
            if let Some(file) = self.ledger.bindings.file(path) {
                self.ledger.bindings.close(file);
            }
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
            self.mirror
                .with_access(&[paths::parent(path)], |mirror| mirror.open_at(path, flags, Mode::RUSR | Mode::WUSR))
        } else {
            self.mirror.open_to_write(path)
        };
        let mirror = mirror.map_err(in_mirror("open", path))?;
        let flags = if self.limits.has(Limit::Flags) {
            None
        } else {
            differing_flags(rustix::fs::ioctl_getflags(&primary).ok(), rustix::fs::ioctl_getflags(&mirror).ok())
        };
        if stat.st_size as u64 > STRETCH_BYTES {
            let path = path.to_vec();
            return Ok(Content::Large(Box::new(Copying { path, primary, mirror, stat, done: 0, is_new, flags })));
        }
        leveling.bytes_written += self.buffers.equalize(&primary, &mirror, 0..u64::MAX, Size::Same, path)?;
        Ok(Content::Equal(flags))
    }

    /// Compares one stretch of a large file; true when it was the last.
    pub(super) fn copy_stretch(&mut self, copying: &mut Copying, leveling: &mut Leveling) -> Result<bool, ReplayError> {
        let Copying { path, primary, mirror, done, .. } = copying;
        let end = *done + STRETCH_BYTES;
        let is_last = end >= rustix::fs::fstat(&*primary).map_err(in_primary("stat", path))?.st_size as u64;
        let (range, size) = if is_last { (*done..u64::MAX, Size::Same) } else { (*done..end, Size::Keep) };
        leveling.bytes_written += self.buffers.equalize(primary, mirror, range, size, path)?;
        *done = end;
        Ok(is_last)
    }

    fn level_symlink(&mut self, path: &[u8], is_new: bool) -> Result<bool, ReplayError> {
        let read = |tree: &mut tree::Tree| {
            let (directory, name) = tree.place(path)?;
            rustix::fs::readlinkat(&directory, name, Vec::new())
        };
        let target = match read(&mut self.primary) {
            Ok(target) => target,
            Err(errno) if is_divergence(errno) || errno == Errno::INVAL => return Ok(false),
            Err(errno) => return Err(in_primary("read the link", path)(errno)),
        };
        if !is_new {
            if read(&mut self.mirror).is_ok_and(|there| there == target) {
                return Ok(true);
            }
            self.discard(path)?;
            self.ledger.touch_path(paths::parent(path));
        }
        let made = self.mirror.with_access(&[paths::parent(path)], |mirror| {
            let (directory, name) = mirror.place(path)?;
            rustix::fs::symlinkat(&target, &directory, name)
        });
        self.weigh(made, "make symbolic link", path, Limit::Symlink)
    }

    fn level_node(&mut self, path: &[u8], wanted: &Stat, there: Option<&Stat>) -> Result<bool, ReplayError> {
        let kind = tree::file_type(wanted);
        let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        if let Some(there) = there {
            if !is_device || there.st_rdev == wanted.st_rdev {
                return Ok(true);
            }
            self.discard(path)?;
            self.ledger.touch_path(paths::parent(path));
        }
        let device = if is_device { wanted.st_rdev } else { 0 };
        let mode = Mode::from_raw_mode(wanted.st_mode & 0o7777);
        let made = self.mirror.with_access(&[paths::parent(path)], |mirror| {
            let (directory, name) = mirror.place(path)?;
            rustix::fs::mknodat(&directory, name, kind, mode, device)
        });
        let limit = match kind {
            FileType::Fifo => Limit::Fifo,
            FileType::Socket => Limit::Socket,
            _ => Limit::Device,
        };
        self.weigh(made, "make node", path, limit)
    }

    /// A refusal to make such an object is a limit of the mirror.
    fn weigh(
        &mut self,
        made: rustix::io::Result<()>,
        operation: &'static str,
        path: &[u8],
        limit: Limit,
    ) -> Result<bool, ReplayError> {
        match made {
            Ok(()) => Ok(true),
            Err(errno) if is_refusal(errno) => {
                self.limits.add(limit);
                self.ledger.enter(Entry::Absent(path));
                Ok(false)
            }
            Err(errno) => Err(in_mirror(operation, path)(errno)),
        }
    }
}

enum Content {
    /// With the inode flags that the mirror's file does not have yet.
    Equal(Option<u32>),
    NotThere,
    Large(Box<Copying>),
}
