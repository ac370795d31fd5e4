//! What a mirror's file system can't hold.

use std::collections::BTreeSet;

use rustix::io::Errno;

/// Words for what was found not to work on a mirror; they stand in the status, and verify leaves them out.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Limits(BTreeSet<Limit>);

/// One thing that a mirror can't hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    /// User and group.
    Owner,
    /// Extended attributes.
    Xattr,
    /// Access control lists.
    Acl,
    /// Block and character devices.
    Device,
    /// Named pipes.
    Fifo,
    /// Sockets.
    Socket,
    /// Symbolic links.
    Symlink,
    /// Several names for one file.
    Hardlink,
    /// Permission bits.
    Mode,
    /// Inode flags.
    Flags,
    /// Modification times to the nanosecond.
    Mtime,
}

impl Limit {
    /// The word in the status.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Xattr => "xattr",
            Self::Acl => "acl",
            Self::Device => "device",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
            Self::Symlink => "symlink",
            Self::Hardlink => "hardlink",
            Self::Mode => "mode",
            Self::Flags => "flags",
            Self::Mtime => "mtime",
        }
    }
}

impl Limits {
    /// Remembers a limit.
    pub fn add(&mut self, limit: Limit) {
        self.0.insert(limit);
    }

    /// True when it was met.
    pub fn has(&self, limit: Limit) -> bool {
        self.0.contains(&limit)
    }

    /// The limits that these words stand for; words that mean nothing here are left out.
    pub fn from_words<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        use Limit::{Acl, Device, Fifo, Flags, Hardlink, Mode, Mtime, Owner, Socket, Symlink, Xattr};
        let all = [Owner, Xattr, Acl, Device, Fifo, Socket, Symlink, Hardlink, Mode, Flags, Mtime];
        Self(words.into_iter().filter_map(|word| all.into_iter().find(|limit| limit.word() == word)).collect())
    }

    /// The words, in order.
    pub fn words(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|limit| limit.word())
    }

    /// Forgets all, for a resync that tries everything anew.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// Errors by which a file system or the kernel says that it does not do such a thing here.
pub fn is_refusal(errno: Errno) -> bool {
    matches!(errno, Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::NOTTY | Errno::ACCESS)
}
