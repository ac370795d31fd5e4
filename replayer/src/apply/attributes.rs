//! Records of attributes: mode, owner, times, extended attributes, inode flags.

use journal::record::{ATTRIBUTE_ATIME, ATTRIBUTE_MODE, ATTRIBUTE_MTIME, ATTRIBUTE_OWNER, Record, unpack_owner};
use rustix::fs::{FileType, IFlags, Mode, OFlags, Stat, Timespec};
use rustix::io::Errno;

use super::{Applied, Applier};
use crate::error::{ReplayError, in_mirror, is_divergence};
use crate::limits::{Limit, is_refusal};
use crate::paths;
use crate::{tree, xattrs};

/// What is done where a mirror can't have the owner that the primary has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OwnerPolicy {
    /// It is an error.
    Strict,
    /// The mirror's limits say so.
    #[default]
    Warn,
    /// As `Warn`, and the owner is written into an extended attribute.
    Record,
}

/// Flags that chattr(1) sets and that have a meaning on every file system that knows them.
pub const FLAGS: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x80 | 0x8000 | 0x1_0000 | 0x2_0000 | 0x80_0000;

impl Applier {
    pub(super) fn attributes(&mut self, record: &Record) -> Result<Applied, ReplayError> {
        let path = match self.target(record) {
            Ok(path) => path,
            Err(applied) => return Ok(applied),
        };
        let Some(stat) = self.look(&path)? else { return self.missing(&path) };
        let mask = record.header.c;
        let mut owned = false;
        if mask & ATTRIBUTE_OWNER != 0 {
            let (uid, gid) = unpack_owner(record.header.b);
            owned = self.own(&path, &stat, uid, gid)?;
            if !owned && stat.st_mode & 0o6000 != 0 {
                // To change nothing takes these bits away as well; settled where the mirror refuses.
                let _ = self.mirror.place(&path).and_then(|(directory, name)| {
                    tree::chown_at(&directory, name, Some(stat.st_uid), Some(stat.st_gid))
                });
                owned = true;
            }
        }
        let mode = record.header.a as u32 & 0o7777;
        // A change of owner takes the set-user-ID bits away.
        if mask & ATTRIBUTE_MODE != 0 && (stat.st_mode & 0o7777 != mode || owned) {
            self.set_mode(&path, mode)?;
        }
        if mask & (ATTRIBUTE_ATIME | ATTRIBUTE_MTIME) != 0
            && let Some([atime, mtime]) = record.times()
        {
            let time = |(tv_sec, nanoseconds)| Timespec { tv_sec, tv_nsec: i64::from(nanoseconds) };
            let atime = (mask & ATTRIBUTE_ATIME != 0).then_some(time(atime));
            let mtime = (mask & ATTRIBUTE_MTIME != 0).then_some(time(mtime));
            self.set_times(&path, atime, mtime)?;
        }
        self.touch_target(&path);
        Ok(Applied::Done)
    }

    pub(super) fn set_xattr(&mut self, record: &Record, value: Option<&[u8]>) -> Result<Applied, ReplayError> {
        let path = match self.target(record) {
            Ok(path) => path,
            Err(applied) => return Ok(applied),
        };
        let name = record.path2;
        if xattrs::is_local(name) {
            return Ok(Applied::Done);
        }
        match self.change_xattr(&path, name, value) {
            Err(ReplayError::Mirror { source, .. }) if is_divergence(source) => self.missing(&path),
            Err(error) => Err(error),
            Ok(()) => {
                self.touch_target(&path);
                Ok(Applied::Done)
            }
        }
    }

    /// Sets or removes an extended attribute, or finds that the mirror can't hold it.
    pub(crate) fn change_xattr(&mut self, path: &[u8], name: &[u8], value: Option<&[u8]>) -> Result<(), ReplayError> {
        let result = self.mirror.with_access(&[paths::parent(path)], |mirror| {
            mirror.with_writable(path, |mirror| match value {
                Some(value) => xattrs::set(mirror, path, name, value),
                None => xattrs::remove(mirror, path, name),
            })
        });
        match result {
            Err(errno) if is_refusal(errno) || matches!(errno, Errno::TOOBIG | Errno::RANGE | Errno::NOSPC) => {
                if errno == Errno::NOSPC && !self.has_space() {
                    return Err(in_mirror("set an extended attribute of", path)(errno));
                }
                if value.is_some() {
                    self.limits.add(if xattrs::is_acl(name) { Limit::Acl } else { Limit::Xattr });
                }
                Ok(())
            }
            result => result.map_err(in_mirror("set an extended attribute of", path)),
        }
    }

    /// Tells a full file system from an inode without room for attributes, which is the same error.
    fn has_space(&mut self) -> bool {
        let Ok(root) = self.mirror.open_at(b"", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()) else {
            return false;
        };
        rustix::fs::fstatvfs(&root).is_ok_and(|room| room.f_bavail > 16)
    }

    pub(super) fn flags(&mut self, record: &Record) -> Result<Applied, ReplayError> {
        let path = match self.target(record) {
            Ok(path) => path,
            Err(applied) => return Ok(applied),
        };
        let Some(stat) = self.look(&path)? else { return self.missing(&path) };
        // An object that may not be changed any more gets its times before.
        self.settle_path(&path, None, crate::settle::Rest::Busy)?;
        if matches!(tree::file_type(&stat), FileType::RegularFile | FileType::Directory) {
            self.set_flags(&path, record.header.a as u32)?;
        }
        self.touch_target(&path);
        Ok(Applied::Done)
    }

    /// Sets those inode flags that have a meaning everywhere.
    pub(crate) fn set_flags(&mut self, path: &[u8], wanted: u32) -> Result<(), ReplayError> {
        let result = self.mirror.with_access(&[paths::parent(path)], |mirror| {
            mirror.with_writable(path, |mirror| {
                let fd = mirror.open_at(path, OFlags::RDONLY, Mode::empty())?;
                let now = rustix::fs::ioctl_getflags(&fd)?.bits();
                let new = now & !FLAGS | wanted & FLAGS;
                if new != now { rustix::fs::ioctl_setflags(&fd, IFlags::from_bits_retain(new)) } else { Ok(()) }
            })
        });
        match result {
            Err(errno) if is_refusal(errno) => {
                if wanted & FLAGS != 0 {
                    self.limits.add(Limit::Flags);
                }
                Ok(())
            }
            result => result.map_err(in_mirror("set the flags of", path)),
        }
    }

    /// Changes the owner of `path` where it differs; true if it was changed.
    pub(crate) fn own(&mut self, path: &[u8], stat: &Stat, uid: u32, gid: u32) -> Result<bool, ReplayError> {
        // -1 stands for what is not to change, in chown(2) and here.
        let uid = (uid != stat.st_uid && uid != u32::MAX).then_some(uid);
        let gid = (gid != stat.st_gid && gid != u32::MAX).then_some(gid);
        if uid.is_none() && gid.is_none() {
            return Ok(false);
        }
        let mut own = |uid, gid| {
            self.mirror.with_access(&[paths::parent(path)], |mirror| {
                let (directory, name) = mirror.place(path)?;
                tree::chown_at(&directory, name, uid, gid)
            })
        };
        match own(uid, gid) {
            Ok(()) => return Ok(true),
            Err(errno) if is_refusal(errno) && self.owner != OwnerPolicy::Strict => {}
            Err(errno) => return Err(in_mirror("change the owner of", path)(errno)),
        }
        // The group alone may be one of ours.
        let changed = uid.is_some() && gid.is_some() && own(None, gid).is_ok();
        self.limits.add(Limit::Owner);
        if self.owner == OwnerPolicy::Record {
            let (uid, gid) = (uid.unwrap_or(stat.st_uid), gid.unwrap_or(stat.st_gid));
            let _ = xattrs::set(&mut self.mirror, path, xattrs::OWNER, format!("{uid}:{gid}").as_bytes());
        }
        Ok(changed)
    }

    /// Sets the permission bits of `path`.
    pub(crate) fn set_mode(&mut self, path: &[u8], mode: u32) -> Result<(), ReplayError> {
        let set =
            |mirror: &mut tree::Tree| mirror.with_access(&[paths::parent(path)], |mirror| mirror.chmod(path, mode));
        let mut result = set(&mut self.mirror);
        if result == Err(Errno::PERM) && self.mirror.clear_flags(path) {
            result = set(&mut self.mirror);
        }
        match result {
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => {
                self.limits.add(Limit::Mode);
                Ok(())
            }
            result => result.map_err(in_mirror("change the mode of", path)),
        }
    }

    /// Sets times of `path`, also where a flag forbids changes.
    pub(crate) fn set_times(
        &mut self,
        path: &[u8],
        atime: Option<Timespec>,
        mtime: Option<Timespec>,
    ) -> Result<(), ReplayError> {
        let set = |mirror: &mut tree::Tree| {
            mirror.with_access(&[paths::parent(path)], |mirror| mirror.set_times(path, atime, mtime))
        };
        let result = match set(&mut self.mirror) {
            Err(Errno::PERM) => {
                let before = self.mirror.flags(path);
                if self.mirror.clear_flags(path) {
                    let result = set(&mut self.mirror);
                    if let Some(flags) = before {
                        self.set_flags(path, flags.bits())?;
                    }
                    result
                } else {
                    Err(Errno::PERM)
                }
            }
            result => result,
        };
        match result {
            Ok(()) => {}
            Err(errno) if is_refusal(errno) => {
                self.limits.add(Limit::Mtime);
                return Ok(());
            }
            Err(errno) => return Err(in_mirror("set the times of", path)(errno)),
        }
        // Some file systems, most of all in the network, keep whole seconds.
        if let Some(mtime) = mtime
            && !self.times_are_checked
            && mtime.tv_nsec % 1000 != 0
        {
            self.times_are_checked = true;
            if self.look(path)?.is_some_and(|there| tree::mtime_of(&there) != mtime) {
                self.limits.add(Limit::Mtime);
            }
        }
        Ok(())
    }

    pub(super) fn touch_target(&mut self, path: &[u8]) {
        match self.ledger.bindings.file(path) {
            Some(file) => self.ledger.touch(file),
            None => self.ledger.touch_path(path),
        }
    }
}
