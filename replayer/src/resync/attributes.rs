//! Makes the attributes of one object of a mirror equal to the primary's.

use rustix::fs::{FileType, IFlags, Stat};
use rustix::io::Errno;

use super::level::Leveling;
use crate::apply::{Applier, FLAGS};
use crate::error::{ReplayError, in_mirror, in_primary, is_divergence};
use crate::limits::Limit;
use crate::paths;
use crate::tree;
use crate::xattrs;

impl Applier {
    /// Makes owner, extended attributes, mode, times and flags of `path` equal, in the order in which the kernel lets
    /// the later ones stand.
    pub(super) fn level_attributes(
        &mut self,
        path: &[u8],
        wanted: &Stat,
        is_new: bool,
        flags: Option<u32>,
        leveling: &mut Leveling,
    ) -> Result<(), ReplayError> {
        let Some(there) = self.look(path)? else { return Ok(()) };
        let kind = tree::file_type(wanted);
        if tree::file_type(&there) != kind {
            return Ok(());
        }
        self.own(path, &there, wanted.st_uid, wanted.st_gid)?;
        self.level_xattrs(path, leveling)?;
        let Some(there) = self.look(path)? else { return Ok(()) };
        if kind != FileType::Symlink && there.st_mode != wanted.st_mode {
            self.set_mode(path, wanted.st_mode)?;
        }
        let mtime = tree::mtime_of(wanted);
        if is_new || mtime != tree::mtime_of(&there) {
            let atime = is_new.then(|| tree::atime_of(wanted));
            self.set_times(path, atime, Some(mtime))?;
        }
        if let Some(flags) = flags {
            self.set_flags(path, flags)?;
        }
        Ok(())
    }

    pub(super) fn level_directory_attributes(
        &mut self,
        path: &[u8],
        wanted: &Stat,
        leveling: &mut Leveling,
    ) -> Result<(), ReplayError> {
        let is_possible = !self.limits.has(Limit::Flags);
        let flags = if is_possible { differing_flags(self.primary.flags(path), self.mirror.flags(path)) } else { None };
        self.level_attributes(path, wanted, false, flags, leveling)
    }

    pub(super) fn level_xattrs(&mut self, path: &[u8], leveling: &mut Leveling) -> Result<(), ReplayError> {
        let ours = match xattrs::names(&mut self.primary, path) {
            Ok(ours) => ours,
            Err(errno) if is_divergence(errno) => return Ok(()),
            Err(errno @ (Errno::ACCESS | Errno::PERM)) => {
                leveling.unreadable.push((path.to_vec(), errno));
                return Ok(());
            }
            Err(errno) => return Err(in_primary("list the extended attributes of", path)(errno)),
        };
        let listed = self.mirror.with_access(&[paths::parent(path)], |mirror| xattrs::names(mirror, path));
        let theirs = listed.map_err(in_mirror("list the extended attributes of", path))?;
        for name in theirs.iter().filter(|name| ours.binary_search(name).is_err()) {
            self.change_xattr(path, name, None)?;
        }
        for name in &ours {
            let value = match xattrs::get(&mut self.primary, path, name) {
                Ok(Some(value)) => value,
                Ok(None) => continue,
                Err(errno) if is_divergence(errno) => return Ok(()),
                Err(errno @ (Errno::ACCESS | Errno::PERM)) => {
                    leveling.unreadable.push((path.to_vec(), errno));
                    continue;
                }
                Err(errno) => return Err(in_primary("read an extended attribute of", path)(errno)),
            };
            let is_there = theirs.binary_search(name).is_ok();
            if !is_there || xattrs::get(&mut self.mirror, path, name).ok().flatten().as_ref() != Some(&value) {
                self.change_xattr(path, name, Some(&value))?;
            }
        }
        Ok(())
    }
}

/// The primary's inode flags, if those that count are not the mirror's.
pub(super) fn differing_flags(ours: Option<IFlags>, theirs: Option<IFlags>) -> Option<u32> {
    let ours = ours?.bits();
    let theirs = theirs.map_or(0, |flags| flags.bits());
    (ours & FLAGS != theirs & FLAGS).then_some(ours)
}
