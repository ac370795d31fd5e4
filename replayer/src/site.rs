//! `Site`: a mirror that is reachable, is the right one, and is ours alone while this lives.
//!
//! Before anything is written, the directory must carry the identity that the set has given it: an empty mount point,
//! a wrong disk and a stale copy are recognised here. Its `.lockstep` is entered once and kept open, so what is
//! written there later can't land in another directory that was put in its place.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::apply::{self, Applier};
use crate::cursor::MirrorCursor;
use crate::error::ReplayError;
use crate::set::{IDENTITY_DIR, Identity, MirrorSettings, OwnerPolicy, Set};

/// A mirror that can be applied to.
#[derive(Debug)]
pub struct Site {
    /// Applies records to it.
    pub applier: Applier,
    own: OwnedFd,
    /// Held for life: two writers never apply to one mirror.
    _lock: OwnedFd,
}

/// Why a mirror can't be applied to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unusable {
    /// Perhaps later.
    Away(String),
    /// A person is needed.
    Broken(String),
}

/// Name of the lock in `.lockstep`.
const LOCK: &str = "lock";
/// Longest `cursor.json` that is read.
const CURSOR_BYTES_MAX: u64 = 4096;

impl Site {
    /// Opens the mirror. `ledger` is the file in the set's directory that belongs to it.
    ///
    /// # Errors
    /// [`Unusable`], in words for a person.
    pub fn open(set: &Set, settings: &MirrorSettings, ledger: &Path) -> Result<Self, Unusable> {
        let root = &settings.path;
        let away =
            |what: &str, error: &dyn std::fmt::Display| Unusable::Away(format!("cannot {what} {root:?}: {error}"));
        check_identity(set, settings)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let own = rustix::fs::open(root.join(IDENTITY_DIR), OFlags::PATH | flags, Mode::empty())
            .map_err(|error| away("open .lockstep in", &error))?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock =
            rustix::fs::openat(&own, LOCK, flags, Mode::RUSR | Mode::WUSR).map_err(|error| away("write to", &error))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let hint = "end the other replayer, then run: lockstep mirror resume";
                return Err(Unusable::Broken(format!(
                    "another replayer applies to {root:?}\n{hint} {}",
                    settings.name
                )));
            }
            Err(error) => return Err(away("lock", &error)),
        }
        let owner = match set.settings.owner {
            OwnerPolicy::Strict => apply::OwnerPolicy::Strict,
            OwnerPolicy::Warn => apply::OwnerPolicy::Warn,
            OwnerPolicy::Record => apply::OwnerPolicy::Record,
        };
        let applier = Applier::new(&set.settings.primary, root, ledger, owner);
        let applier = applier.map_err(|error: ReplayError| away("use", &error))?;
        Ok(Self { applier, own, _lock: lock })
    }

    /// What the mirror itself says of how far it was when it last came to rest; `None` when it says nothing.
    pub fn cursor(&self) -> Option<MirrorCursor> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&self.own, MirrorCursor::FILE, flags, Mode::empty()).ok()?);
        let mut text = String::new();
        file.take(CURSOR_BYTES_MAX).read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Writes into the mirror how far it is.
    ///
    /// # Errors
    /// Those of the mirror's file system.
    pub fn write_cursor(&self, cursor: &MirrorCursor) -> std::io::Result<()> {
        const NEW: &str = "cursor.json.new";
        let mut text = serde_json::to_string(cursor).expect("numbers and a truth value");
        text.push('\n');
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&self.own, NEW, flags, Mode::RUSR | Mode::WUSR)?);
        file.write_all(text.as_bytes())?;
        drop(file);
        rustix::fs::renameat(&self.own, NEW, &self.own, MirrorCursor::FILE)?;
        Ok(())
    }

    /// Brings everything that was written to the mirror's file system to stable storage. May take long.
    ///
    /// # Errors
    /// Those of syncfs(2).
    pub fn sync(&self) -> std::io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let own = rustix::fs::openat(&self.own, ".", flags, Mode::empty())?;
        Ok(rustix::fs::syncfs(own)?)
    }

    /// True while `.lockstep` is where it was and the tree is reached by its path.
    pub fn is_in_place(&self, settings: &MirrorSettings) -> bool {
        let there = rustix::fs::statat(rustix::fs::CWD, settings.path.join(IDENTITY_DIR), AtFlags::SYMLINK_NOFOLLOW);
        match (there, rustix::fs::fstat(&self.own)) {
            (Ok(there), Ok(ours)) => {
                (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino) && self.applier.is_in_place()
            }
            _ => false,
        }
    }
}

fn check_identity(set: &Set, settings: &MirrorSettings) -> Result<(), Unusable> {
    let root = &settings.path;
    let name = &settings.name;
    match root.symlink_metadata() {
        Ok(data) if data.is_dir() => {}
        Ok(_) => return Err(Unusable::Away(format!("{root:?} is not a directory"))),
        Err(error) => return Err(Unusable::Away(format!("cannot reach {root:?}: {error}"))),
    }
    let expected = set.identity(settings);
    match Identity::read(root) {
        Ok(Some(found)) if found == expected => Ok(()),
        Ok(Some(found)) if (&found.uuid, found.mirror) == (&expected.uuid, expected.mirror) => {
            let generations = format!("generation {}, this set is at {}", found.generation, expected.generation);
            Err(Unusable::Broken(format!("{root:?} belongs to {generations}\nto rebuild it: lockstep resync {name}")))
        }
        Ok(Some(found)) => {
            let whose = format!("mirror {:x} of the set {:?}", found.mirror, found.set);
            let hint = format!("mount the right one, then run: lockstep mirror resume {name}");
            Err(Unusable::Broken(format!("{root:?} is another mirror: {whose}\n{hint}")))
        }
        Ok(None) => Err(Unusable::Away(format!("{root:?} carries no identity: is the mirror's file system mounted?"))),
        Err(error) => Err(Unusable::Away(error.to_string())),
    }
}
