//! Compares a primary with a mirror, byte for byte and attribute for attribute, and changes nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use journal::record::FileId;
use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::Errno;

use crate::content::Buffers;
use crate::error::{ReplayError, in_mirror, in_primary, is_divergence};
use crate::limits::{Limit, Limits};
use crate::paths;
use crate::tree::{self, Tree};
use crate::xattrs;

/// In what respect two objects differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DifferenceKind {
    /// The mirror does not have it.
    Missing,
    /// The primary does not have it.
    Extra,
    /// One is a file and the other a directory, for instance.
    Type,
    /// Bytes differ.
    Content,
    /// The lengths differ.
    Size,
    /// Permission bits.
    Mode,
    /// User or group.
    Owner,
    /// Modification time.
    Mtime,
    /// What a symbolic link says.
    Target,
    /// Device number.
    Device,
    /// Extended attributes.
    Xattr,
    /// Access control lists.
    Acl,
    /// Which names are one file.
    Hardlink,
}

impl DifferenceKind {
    /// The word in the answer of `lockstep verify`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Type => "type",
            Self::Content => "content",
            Self::Size => "size",
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::Mtime => "mtime",
            Self::Target => "target",
            Self::Device => "device",
            Self::Xattr => "xattr",
            Self::Acl => "acl",
            Self::Hardlink => "hardlink",
        }
    }
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// In what respect.
    pub kind: DifferenceKind,
    /// Of which object, relative to the roots; empty for the roots themselves.
    pub path: Vec<u8>,
    /// Both sides, for people.
    pub detail: String,
}

/// What a comparison found.
#[derive(Debug, Default)]
pub struct Verified {
    /// The differences, in the order of the walk.
    pub differences: Vec<Difference>,
    /// What could not be read on either side.
    pub unreadable: Vec<(Vec<u8>, Errno)>,
    /// Objects compared.
    pub objects: u64,
}

/// Compares `below` (empty for everything) in both trees. What is in `limits` is left out, and `.lockstep` at the root.
/// Memory is bounded by the largest directory and the number of files with several names.
///
/// # Errors
/// [`ReplayError`] if a side fails; what is only unreadable is listed.
pub fn verify(primary: &mut Tree, mirror: &mut Tree, below: &[u8], limits: &Limits) -> Result<Verified, ReplayError> {
    primary.forget(b"");
    mirror.forget(b"");
    let mut comparison = Comparison::new(primary, mirror, limits);
    let mut directories = Vec::new();
    if comparison.compare(below)? {
        directories.push(below.to_vec());
    }
    while let Some(directory) = directories.pop() {
        for name in comparison.names(&directory)? {
            let path = paths::join(&directory, &name);
            if comparison.compare(&path)? {
                directories.push(path);
            }
        }
    }
    Ok(comparison.finish())
}

/// Compares only the given paths, each without what is below.
///
/// # Errors
/// As [`verify`].
pub fn recheck<'a>(
    primary: &mut Tree,
    mirror: &mut Tree,
    paths: impl IntoIterator<Item = &'a [u8]>,
    limits: &Limits,
) -> Result<Verified, ReplayError> {
    primary.forget(b"");
    mirror.forget(b"");
    let mut comparison = Comparison::new(primary, mirror, limits);
    for path in paths.into_iter().collect::<BTreeSet<&[u8]>>() {
        comparison.compare(path)?;
    }
    Ok(comparison.finish())
}

struct Comparison<'a> {
    primary: &'a mut Tree,
    mirror: &'a mut Tree,
    limits: &'a Limits,
    buffers: Buffers,
    found: Verified,
    primary_links: Groups,
    mirror_links: Groups,
}

/// Names of each file that has several.
type Groups = HashMap<FileId, Vec<Vec<u8>>>;

impl<'a> Comparison<'a> {
    fn new(primary: &'a mut Tree, mirror: &'a mut Tree, limits: &'a Limits) -> Self {
        Self {
            primary,
            mirror,
            limits,
            buffers: Buffers::default(),
            found: Verified::default(),
            primary_links: Groups::new(),
            mirror_links: Groups::new(),
        }
    }

    /// Compares one object; true if both are directories.
    fn compare(&mut self, path: &[u8]) -> Result<bool, ReplayError> {
        if paths::is_reserved(path) {
            return Ok(false);
        }
        self.found.objects += 1;
        let ours = match self.primary.look(path) {
            Ok(stat) => stat,
            Err(errno) => return self.unreadable(path, errno, in_primary("stat", path)).map(|()| false),
        };
        let theirs = match self.mirror.look(path) {
            Ok(stat) => stat,
            Err(errno) => return self.unreadable(path, errno, in_mirror("stat", path)).map(|()| false),
        };
        let (ours, theirs) = match (ours, theirs) {
            (Some(ours), Some(theirs)) => (ours, theirs),
            (Some(ours), None) => {
                if !self.is_limited(&ours) {
                    self.say(DifferenceKind::Missing, path, kind_word(&ours).to_string());
                }
                return Ok(false);
            }
            (None, Some(theirs)) => {
                self.say(DifferenceKind::Extra, path, kind_word(&theirs).to_string());
                return Ok(false);
            }
            (None, None) => return Ok(false),
        };
        let kind = tree::file_type(&ours);
        if kind != tree::file_type(&theirs) {
            let detail = format!("{}, mirror {}", kind_word(&ours), kind_word(&theirs));
            self.say(DifferenceKind::Type, path, detail);
            return Ok(false);
        }
        self.compare_attributes(path, &ours, &theirs);
        self.compare_xattrs(path)?;
        match kind {
            FileType::RegularFile => self.compare_contents(path, &ours, &theirs)?,
            FileType::Symlink => self.compare_targets(path)?,
            FileType::CharacterDevice | FileType::BlockDevice if ours.st_rdev != theirs.st_rdev => {
                self.say(DifferenceKind::Device, path, format!("{:#x}, mirror {:#x}", ours.st_rdev, theirs.st_rdev));
            }
            _ => {}
        }
        if kind != FileType::Directory {
            for (stat, groups) in [(&ours, &mut self.primary_links), (&theirs, &mut self.mirror_links)] {
                if stat.st_nlink > 1 {
                    groups.entry(tree::id_of(stat)).or_default().push(path.to_vec());
                }
            }
        }
        Ok(kind == FileType::Directory)
    }

    /// The names of a directory on both sides, sorted.
    fn names(&mut self, path: &[u8]) -> Result<BTreeSet<Vec<u8>>, ReplayError> {
        let mut names = BTreeSet::new();
        match self.primary.list(path) {
            Ok(list) => names.extend(list.into_iter().map(|(name, _)| name)),
            Err(errno) => {
                // Without it, everything in the mirror would look extra.
                self.unreadable(path, errno, in_primary("list", path))?;
                return Ok(names);
            }
        }
        match self.mirror.list(path) {
            Ok(list) => names.extend(list.into_iter().map(|(name, _)| name)),
            Err(errno) => {
                self.unreadable(path, errno, in_mirror("list", path))?;
                names.clear();
            }
        }
        Ok(names)
    }

    fn compare_attributes(&mut self, path: &[u8], ours: &Stat, theirs: &Stat) {
        let is_link = tree::file_type(ours) == FileType::Symlink;
        let (mode, there) = (ours.st_mode & 0o7777, theirs.st_mode & 0o7777);
        if mode != there && !is_link && !self.limits.has(Limit::Mode) {
            self.say(DifferenceKind::Mode, path, format!("{mode:04o}, mirror {there:04o}"));
        }
        if (ours.st_uid, ours.st_gid) != (theirs.st_uid, theirs.st_gid) && !self.limits.has(Limit::Owner) {
            let detail = format!("{}:{}, mirror {}:{}", ours.st_uid, ours.st_gid, theirs.st_uid, theirs.st_gid);
            self.say(DifferenceKind::Owner, path, detail);
        }
        let (ours, theirs) = (tree::mtime_of(ours), tree::mtime_of(theirs));
        if ours != theirs {
            let detail = format!("{}.{:09}, mirror {}.{:09}", ours.tv_sec, ours.tv_nsec, theirs.tv_sec, theirs.tv_nsec);
            self.say(DifferenceKind::Mtime, path, detail);
        }
    }

    fn compare_xattrs(&mut self, path: &[u8]) -> Result<(), ReplayError> {
        let ours = match attributes(self.primary, path) {
            Ok(attributes) => attributes,
            Err(errno) => return self.unreadable(path, errno, in_primary("read the extended attributes of", path)),
        };
        let theirs = match attributes(self.mirror, path) {
            Ok(attributes) => attributes,
            Err(errno) => return self.unreadable(path, errno, in_mirror("read the extended attributes of", path)),
        };
        if ours == theirs {
            return Ok(());
        }
        for name in ours.keys().chain(theirs.keys()).collect::<BTreeSet<_>>() {
            let is_acl = xattrs::is_acl(name);
            let limit = if is_acl { Limit::Acl } else { Limit::Xattr };
            if ours.get(name) != theirs.get(name) && !self.limits.has(limit) {
                let shown = |value: Option<&Vec<u8>>| match value {
                    None => "nothing".to_string(),
                    Some(value) => format!("\"{}\"", value[..value.len().min(40)].escape_ascii()),
                };
                let detail =
                    format!("{} is {}, mirror {}", name.escape_ascii(), shown(ours.get(name)), shown(theirs.get(name)));
                let kind = if is_acl { DifferenceKind::Acl } else { DifferenceKind::Xattr };
                self.say(kind, path, detail);
            }
        }
        Ok(())
    }

    fn compare_contents(&mut self, path: &[u8], ours: &Stat, theirs: &Stat) -> Result<(), ReplayError> {
        if ours.st_size != theirs.st_size {
            self.say(DifferenceKind::Size, path, format!("{}, mirror {}", ours.st_size, theirs.st_size));
        }
        let size = ours.st_size.min(theirs.st_size) as u64;
        // A file with several names is read under the first of them.
        let was_read = |groups: &Groups, stat: &Stat| stat.st_nlink > 1 && groups.contains_key(&tree::id_of(stat));
        if size == 0 || was_read(&self.primary_links, ours) && was_read(&self.mirror_links, theirs) {
            return Ok(());
        }
        let open = |tree: &mut Tree| {
            let (directory, name) = tree.place(path)?;
            tree::open_to_read(&directory, name, OFlags::empty())
        };
        let ours = match open(self.primary) {
            Ok(fd) => fd,
            Err(errno) => return self.unreadable(path, errno, in_primary("open", path)),
        };
        let theirs = match open(self.mirror) {
            Ok(fd) => fd,
            Err(errno) => return self.unreadable(path, errno, in_mirror("open", path)),
        };
        if let Some(at) = self.buffers.first_difference(&ours, &theirs, size, path)? {
            self.say(DifferenceKind::Content, path, format!("first at byte {at}"));
        }
        Ok(())
    }

    fn compare_targets(&mut self, path: &[u8]) -> Result<(), ReplayError> {
        let read = |tree: &mut Tree| {
            let (directory, name) = tree.place(path)?;
            rustix::fs::readlinkat(&directory, name, Vec::new())
        };
        let (ours, theirs) = match (read(self.primary), read(self.mirror)) {
            (Ok(ours), Ok(theirs)) => (ours, theirs),
            (Err(errno), _) => return self.unreadable(path, errno, in_primary("read the link", path)),
            (_, Err(errno)) => return self.unreadable(path, errno, in_mirror("read the link", path)),
        };
        if ours != theirs {
            let [ours, theirs] = [ours, theirs].map(|target| target.to_bytes().escape_ascii().to_string());
            self.say(DifferenceKind::Target, path, format!("\"{ours}\", mirror \"{theirs}\""));
        }
        Ok(())
    }

    /// Compares which names are one file, and hands out what was found.
    fn finish(mut self) -> Verified {
        if !self.limits.has(Limit::Hardlink) {
            let (ours, theirs) = (by_name(&self.primary_links), by_name(&self.mirror_links));
            for path in ours.keys().chain(theirs.keys()).collect::<BTreeSet<_>>() {
                let alone = vec![path.to_vec()];
                let (a, b) = (ours.get(path).copied().unwrap_or(&alone), theirs.get(path).copied().unwrap_or(&alone));
                if a != b {
                    let shown = |names: &[Vec<u8>]| {
                        let names: Vec<String> =
                            names.iter().take(6).map(|name| format!("\"{}\"", name.escape_ascii())).collect();
                        names.join(", ")
                    };
                    let detail = format!("one file with {}, mirror {}", shown(a), shown(b));
                    let path = path.to_vec();
                    self.found.differences.push(Difference { kind: DifferenceKind::Hardlink, path, detail });
                }
            }
        }
        self.found
    }

    fn is_limited(&self, stat: &Stat) -> bool {
        match tree::file_type(stat) {
            FileType::CharacterDevice | FileType::BlockDevice => self.limits.has(Limit::Device),
            FileType::Fifo => self.limits.has(Limit::Fifo),
            FileType::Socket => self.limits.has(Limit::Socket),
            FileType::Symlink => self.limits.has(Limit::Symlink),
            _ => false,
        }
    }

    fn say(&mut self, kind: DifferenceKind, path: &[u8], detail: String) {
        self.found.differences.push(Difference { kind, path: path.to_vec(), detail });
    }

    /// What went away meanwhile is found by a recheck; what may not be read is listed; the rest is an error.
    fn unreadable(
        &mut self,
        path: &[u8],
        errno: Errno,
        error: impl FnOnce(Errno) -> ReplayError,
    ) -> Result<(), ReplayError> {
        if matches!(errno, Errno::ACCESS | Errno::PERM) || is_divergence(errno) || errno == Errno::NXIO {
            self.found.unreadable.push((path.to_vec(), errno));
            return Ok(());
        }
        Err(error(errno))
    }
}

fn attributes(tree: &mut Tree, path: &[u8]) -> rustix::io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut attributes = BTreeMap::new();
    for name in xattrs::names(tree, path)? {
        if let Some(value) = xattrs::get(tree, path, &name)? {
            attributes.insert(name, value);
        }
    }
    Ok(attributes)
}

/// For each name, all names of its file, sorted; only where there are several.
fn by_name(groups: &Groups) -> HashMap<&[u8], &Vec<Vec<u8>>> {
    let several = groups.values().filter(|names| names.len() > 1);
    several.flat_map(|names| names.iter().map(move |name| (&name[..], names))).collect()
}

fn kind_word(stat: &Stat) -> &'static str {
    match tree::file_type(stat) {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symbolic link",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Unknown => "unknown",
    }
}
