//! Renames: what the mirror has under both names decides, because it may be ahead of the records, or have done the
//! same record before.

use journal::record::{Record, pack_owner};
use rustix::fs::{FileType, RenameFlags};
use rustix::io::Errno;

use super::unnamed::UNNAMED;
use super::{Applied, Applier};
use crate::error::{ReplayError, in_mirror, is_divergence};
use crate::ledger::{Entry, MOVED};
use crate::limits::is_refusal;
use crate::paths;
use crate::repair::PathRepair;

impl Applier {
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
            // Two names of one file here, but not where the record was made: rename(2) would have done nothing.
            self.discard(old)?;
            self.ledger.enter(Entry::Remove(old));
            if leaves_whiteout {
                self.make_whiteout(old)?;
            }
            return Ok(Applied::Done);
        }
        // Without a binding, and directories have none, nothing tells whether it is the one that was meant.
        let is_doubtful = at_old != Some(file) && (self.ledger.is_ahead(old) || self.ledger.is_ahead(new));
        let is_directory = FileType::from_raw_mode(record.header.b as u32) == FileType::Directory;
        if is_directory || file.ino == 0 {
            let applied = self.rename_plainly(record, leaves_whiteout)?;
            return if is_doubtful { self.missing(new) } else { Ok(applied) };
        }
        if at_new == Some(file) {
            // Done before, or read from a primary where it was.
            if at_old.is_some() || self.look(old)?.is_some() {
                self.missing(old)?;
                return self.missing(new);
            }
            return if self.look(new)?.is_some() { Ok(Applied::Done) } else { self.missing(new) };
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
        if is_doubtful { self.missing(new) } else { Ok(applied) }
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
            self.make_whiteout(old)?;
        }
        Ok(applied)
    }

    /// What a rename with RENAME_WHITEOUT leaves behind; its owner is settled.
    fn make_whiteout(&mut self, path: &[u8]) -> Result<Applied, ReplayError> {
        let (mode, owner) = (u64::from(FileType::CharacterDevice.as_raw_mode()), pack_owner(u32::MAX, u32::MAX));
        self.make_node(path, mode, owner, 0)
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
        if before == Some(MOVED) {
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
        if self.ledger.is_ahead(a) || self.ledger.is_ahead(b) {
            // What was read from the primary may have been exchanged already.
            self.missing(a)?;
            return self.missing(b);
        }
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
            Some(MOVED) => Ok(Some(Applied::Done)),
            Some(before) if before != stat.st_ino => {
                self.ledger.enter(Entry::Rename(old, new));
                Ok(Some(Applied::Done))
            }
            _ => {
                self.ledger.enter(Entry::Intent(seq, stat.st_ino));
                self.ledger.flush()?;
                Ok(None)
            }
        }
    }
}
