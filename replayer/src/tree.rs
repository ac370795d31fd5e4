//! `Tree`: a directory tree, entered only through its root and never through a symbolic link.
//!
//! Every path is resolved by `openat2` beneath the root, in pieces where it is longer than the kernel takes at once.
//! Directories of a mirror are kept open, because only the worker moves them; those of the primary are not, because
//! programs move them at any time.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use journal::record::FileId;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Gid, IFlags, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::{Errno, Result};

use crate::paths;

/// Directories that are kept open for a mirror, where this process may have that many files open.
const DIRECTORIES_MAX: usize = 512;

/// Most bytes of a path that are resolved at once; the kernel takes 4095.
const PIECE_BYTES_MAX: usize = 4000;

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// A tree of directories.
#[derive(Debug)]
pub struct Tree {
    root: Arc<OwnedFd>,
    path: PathBuf,
    kept: HashMap<Vec<u8>, Kept>,
    kept_max: usize,
    uses: u64,
}

#[derive(Debug)]
struct Kept {
    fd: Arc<OwnedFd>,
    used: u64,
}

impl Tree {
    /// Opens the tree at `root`, which may be named through symbolic links. Up to `kept_max` directories stay open;
    /// 0 for a tree whose directories others move.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(root: &Path, kept_max: usize) -> Result<Self> {
        let fd = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { root: Arc::new(fd), path: root.to_path_buf(), kept: HashMap::new(), kept_max, uses: 0 })
    }

    /// False when another directory, or none, is now where the tree was opened.
    pub fn is_in_place(&self) -> bool {
        match (rustix::fs::fstat(&*self.root), rustix::fs::stat(&self.path)) {
            (Ok(ours), Ok(there)) => id_of(&ours) == id_of(&there),
            _ => false,
        }
    }

    /// The directory `path`, open for use as a starting point only (`O_PATH`).
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ELOOP` where the path does not lead through directories alone.
    pub fn directory(&mut self, path: &[u8]) -> Result<Arc<OwnedFd>> {
        if path.is_empty() {
            return Ok(self.root.clone());
        }
        if let Some(fd) = self.kept(path) {
            return Ok(fd);
        }
        let mut base = self.root.clone();
        let mut done = 0;
        while path.len() - done > PIECE_BYTES_MAX {
            let slash = path[done..done + PIECE_BYTES_MAX].iter().rposition(|byte| *byte == b'/');
            let end = done + slash.ok_or(Errno::NAMETOOLONG)?;
            base = match self.kept(&path[..end]) {
                Some(fd) => fd,
                None => self.keep(&path[..end], open_directory(&base, &path[done..end])?),
            };
            done = end + 1;
        }
        let fd = open_directory(&base, &path[done..])?;
        Ok(self.keep(path, fd))
    }

    /// The directory that holds `path`, and the last name; `.` for the root itself.
    ///
    /// # Errors
    /// As [`Self::directory`].
    pub fn place<'p>(&mut self, path: &'p [u8]) -> Result<(Arc<OwnedFd>, &'p [u8])> {
        if path.is_empty() {
            return Ok((self.root.clone(), b"."));
        }
        let (directory, name) = paths::split(path);
        Ok((self.directory(directory)?, name))
    }

    /// stat(2) of `path` itself.
    ///
    /// # Errors
    /// Those of the path and of fstatat(2).
    pub fn lstat(&mut self, path: &[u8]) -> Result<Stat> {
        let (directory, name) = self.place(path)?;
        lstat_at(&directory, name)
    }

    /// As [`Self::lstat`]; nothing when there is nothing at `path`.
    ///
    /// # Errors
    /// All but `ENOENT` and `ENOTDIR`.
    pub fn look(&mut self, path: &[u8]) -> Result<Option<Stat>> {
        match self.lstat(path) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Opens `path`, never following a link and never waiting for the other end of a pipe.
    ///
    /// # Errors
    /// Those of the path and of openat(2).
    pub fn open_at(&mut self, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd> {
        let (directory, name) = self.place(path)?;
        open_name(&directory, name, flags, mode)
    }

    /// The names in directory `path` with their types, as the kernel gives them.
    ///
    /// # Errors
    /// Those of the path, of openat(2) and of getdents(2).
    pub fn list(&mut self, path: &[u8]) -> Result<Vec<(Vec<u8>, FileType)>> {
        let fd = self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        list(fd)
    }

    /// Removes `path` and, if it is a directory, everything below, whatever the modes. Nothing there is fine.
    ///
    /// # Errors
    /// Those of the path, of unlinkat(2) and of getdents(2).
    pub fn remove(&mut self, path: &[u8]) -> Result<()> {
        let mut stack = vec![path.to_vec()];
        while let Some(top) = stack.last().cloned() {
            let mut kind = AtFlags::empty();
            let result = self.with_access(&[paths::parent(&top)], |tree| {
                let (directory, name) = tree.place(&top)?;
                let mut result = rustix::fs::unlinkat(&directory, name, kind);
                if matches!(result, Err(Errno::ISDIR)) {
                    kind = AtFlags::REMOVEDIR;
                    result = rustix::fs::unlinkat(&directory, name, kind);
                }
                result
            });
            match result {
                Err(Errno::NOTEMPTY | Errno::EXIST) => {
                    for (name, _) in self.with_access(&[&top], |tree| tree.list(&top))? {
                        stack.push(paths::join(&top, &name));
                    }
                }
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {
                    if kind == AtFlags::REMOVEDIR {
                        self.forget(&top);
                    }
                    stack.pop();
                }
                Err(Errno::PERM) if self.clear_flags(&top) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Runs `operation`; if a mode keeps it out, once more with `directories` and what is above them opened up to
    /// their owner, and their modes put back afterwards. Only ever used on a mirror.
    ///
    /// # Errors
    /// Those of `operation`.
    pub fn with_access<T>(
        &mut self,
        directories: &[&[u8]],
        mut operation: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<T> {
        match operation(self) {
            Err(Errno::ACCESS) => {}
            result => return result,
        }
        let mut lifted: Vec<(Arc<OwnedFd>, Mode)> = Vec::new();
        for directory in directories {
            for path in std::iter::once(&b""[..]).chain(paths::ancestors(directory)) {
                let Ok(fd) = self.directory(path) else { break };
                let Ok(stat) = rustix::fs::fstat(&*fd) else { break };
                if stat.st_mode & 0o700 != 0o700 && chmod_handle(&fd, Mode::from_raw_mode(stat.st_mode | 0o700)).is_ok()
                {
                    lifted.push((fd, Mode::from_raw_mode(stat.st_mode & 0o7777)));
                }
            }
        }
        let result = operation(self);
        for (fd, mode) in lifted.iter().rev() {
            // What can't be put back is touched, and settled from the primary.
            let _ = chmod_handle(fd, *mode);
        }
        result
    }

    /// Opens the regular file `path` for reading and writing, whatever its mode, which is the same afterwards.
    ///
    /// # Errors
    /// Those of the path and of openat(2).
    pub fn open_to_write(&mut self, path: &[u8]) -> Result<OwnedFd> {
        let opened = self.with_access(&[paths::parent(path)], |tree| tree.open_at(path, OFlags::RDWR, Mode::empty()));
        match opened {
            Err(Errno::ACCESS) => self.with_writable(path, |tree| tree.open_at(path, OFlags::RDWR, Mode::empty())),
            Err(Errno::PERM) if self.clear_flags(path) => self.open_at(path, OFlags::RDWR, Mode::empty()),
            result => result,
        }
    }

    /// Runs `operation` on `path`; if its mode keeps it out, once more with the mode opened up to its owner and put
    /// back afterwards. Only ever used on a mirror.
    ///
    /// # Errors
    /// Those of `operation`.
    pub fn with_writable<T>(&mut self, path: &[u8], mut operation: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        match operation(self) {
            Err(Errno::ACCESS) => {}
            result => return result,
        }
        let handle = self.open_at(path, OFlags::PATH, Mode::empty())?;
        let mode = rustix::fs::fstat(&handle)?.st_mode & 0o7777;
        chmod_handle(&handle, Mode::from_raw_mode(mode | 0o600))?;
        let result = operation(self);
        chmod_handle(&handle, Mode::from_raw_mode(mode))?;
        result
    }

    /// Sets the mode of `path` itself; on a symbolic link nothing, because it has none.
    ///
    /// # Errors
    /// Those of the path and of chmod(2).
    pub fn chmod(&mut self, path: &[u8], mode: u32) -> Result<()> {
        let handle = self.open_at(path, OFlags::PATH, Mode::empty())?;
        match chmod_handle(&handle, Mode::from_raw_mode(mode & 0o7777)) {
            Err(Errno::OPNOTSUPP) if file_type(&rustix::fs::fstat(&handle)?) == FileType::Symlink => Ok(()),
            result => result,
        }
    }

    /// Sets the modification time of `path` itself, and the access time when given.
    ///
    /// # Errors
    /// Those of the path and of utimensat(2).
    pub fn set_times(&mut self, path: &[u8], atime: Option<Timespec>, mtime: Option<Timespec>) -> Result<()> {
        let (directory, name) = self.place(path)?;
        let times = timestamps(atime, mtime);
        rustix::fs::utimensat(&directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// A path in /proc that leads to `path` itself, for the calls that know no directory descriptor. The descriptor
    /// must stay open while it is used.
    ///
    /// # Errors
    /// Those of the path.
    pub fn proc_path(&mut self, path: &[u8]) -> Result<(Arc<OwnedFd>, Vec<u8>)> {
        let (directory, name) = self.place(path)?;
        let mut through = proc_fd(directory.as_fd());
        through.push(b'/');
        through.extend_from_slice(name);
        Ok((directory, through))
    }

    /// The inode flags of `path`, where the file system has them.
    pub fn flags(&mut self, path: &[u8]) -> Option<IFlags> {
        let fd = self.open_at(path, OFlags::RDONLY, Mode::empty()).ok()?;
        rustix::fs::ioctl_getflags(&fd).ok()
    }

    /// Takes away the flags that forbid changes, if `path` has one; true if it is worth trying again.
    pub fn clear_flags(&mut self, path: &[u8]) -> bool {
        let Ok(fd) = self.open_at(path, OFlags::RDONLY, Mode::empty()) else { return false };
        let Ok(flags) = rustix::fs::ioctl_getflags(&fd) else { return false };
        let locked = IFlags::IMMUTABLE | IFlags::APPEND;
        flags.intersects(locked) && rustix::fs::ioctl_setflags(&fd, flags.difference(locked)).is_ok()
    }

    /// Closes what is kept of directory `path` and below, because it was moved or removed.
    pub fn forget(&mut self, path: &[u8]) {
        self.kept.retain(|kept, _| !paths::is_within(kept, path));
    }

    fn kept(&mut self, path: &[u8]) -> Option<Arc<OwnedFd>> {
        let kept = self.kept.get_mut(path)?;
        self.uses += 1;
        kept.used = self.uses;
        Some(kept.fd.clone())
    }

    fn keep(&mut self, path: &[u8], fd: OwnedFd) -> Arc<OwnedFd> {
        let fd = Arc::new(fd);
        if self.kept_max > 0 {
            if self.kept.len() >= self.kept_max {
                // A quarter goes at once, so that the search is paid for by many insertions.
                let mut ages: Vec<u64> = self.kept.values().map(|kept| kept.used).collect();
                let (_, limit, _) = ages.select_nth_unstable(self.kept_max / 4);
                let limit = *limit;
                self.kept.retain(|_, kept| kept.used > limit);
            }
            self.uses += 1;
            self.kept.insert(path.to_vec(), Kept { fd: fd.clone(), used: self.uses });
        }
        fd
    }
}

/// How many directories of a mirror are kept open.
pub fn directories_max() -> usize {
    share_of_descriptors(16).min(DIRECTORIES_MAX)
}

/// A part of the descriptors that this process may have, for one mirror of several.
pub fn share_of_descriptors(part: u64) -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit / part).unwrap_or(usize::MAX)).max(16)
}

/// Device and inode number.
pub fn id_of(stat: &Stat) -> FileId {
    FileId::new(stat.st_dev, stat.st_ino)
}

/// The type in the mode.
pub fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// The modification time.
pub fn mtime_of(stat: &Stat) -> Timespec {
    Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ }
}

/// The access time.
pub fn atime_of(stat: &Stat) -> Timespec {
    Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ }
}

/// stat(2) of the name itself.
///
/// # Errors
/// Those of fstatat(2).
pub fn lstat_at(directory: impl AsFd, name: &[u8]) -> Result<Stat> {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// Opens a name in a directory; a symbolic link is an error unless it is only a handle that is wanted.
///
/// # Errors
/// Those of openat(2).
pub fn open_name(directory: impl AsFd, name: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    rustix::fs::openat(directory, name, flags, mode)
}

/// Opens a name for reading without leaving an access time behind, where the kernel lets us.
///
/// # Errors
/// Those of openat(2).
pub fn open_to_read(directory: impl AsFd, name: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let flags = flags | OFlags::RDONLY;
    match open_name(&directory, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => open_name(&directory, name, flags, Mode::empty()),
        result => result,
    }
}

/// The names in an open directory, without `.` and `..`.
///
/// # Errors
/// Those of getdents(2).
pub fn list(fd: OwnedFd) -> Result<Vec<(Vec<u8>, FileType)>> {
    let mut names = Vec::new();
    for entry in Dir::new(fd)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push((name.to_vec(), entry.file_type()));
        }
    }
    Ok(names)
}

/// chown(2) of a name itself.
///
/// # Errors
/// Those of fchownat(2).
pub fn chown_at(directory: impl AsFd, name: &[u8], uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    rustix::fs::chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
}

/// Both times for utimensat(2); what is not given stays.
pub fn timestamps(atime: Option<Timespec>, mtime: Option<Timespec>) -> Timestamps {
    const OMIT: Timespec = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    Timestamps { last_access: atime.unwrap_or(OMIT), last_modification: mtime.unwrap_or(OMIT) }
}

/// Sets the mode of what an `O_PATH` descriptor stands for: fchmod(2) refuses those, the link in /proc does not.
///
/// # Errors
/// Those of chmod(2); `EOPNOTSUPP` for a symbolic link.
pub fn chmod_handle(fd: impl AsFd, mode: Mode) -> Result<()> {
    rustix::fs::chmod(proc_fd(fd.as_fd()), mode)
}

fn proc_fd(fd: BorrowedFd<'_>) -> Vec<u8> {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into_bytes()
}

fn open_directory(base: &OwnedFd, path: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for _ in 0..64 {
        match rustix::fs::openat2(base, path, flags, Mode::empty(), RESOLVE) {
            // EAGAIN: a rename elsewhere made the kernel unsure whether the path stayed beneath the root.
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree() -> (tempfile::TempDir, Tree) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let tree = Tree::open(directory.path(), 8).expect("it was just made");
        (directory, tree)
    }

    #[test]
    fn links_are_never_followed() {
        let (directory, mut tree) = tree();
        std::fs::create_dir(directory.path().join("d")).expect("made");
        symlink("d", directory.path().join("inside")).expect("made");
        symlink("/etc", directory.path().join("outside")).expect("made");
        for path in [&b"inside"[..], b"outside", b"inside/x", b"outside/x"] {
            let result = tree.directory(path).map(drop);
            assert!(matches!(result, Err(Errno::LOOP | Errno::NOTDIR)), "{result:?}");
        }
        assert!(tree.open_at(b"outside/passwd", OFlags::RDONLY, Mode::empty()).is_err());
        assert!(tree.open_at(b"inside", OFlags::RDONLY, Mode::empty()).is_err());
        assert_eq!(file_type(&tree.lstat(b"outside").expect("there")), FileType::Symlink);
    }

    #[test]
    fn a_directory_swapped_for_a_link_is_not_entered() {
        let (directory, mut tree) = tree();
        std::fs::create_dir_all(directory.path().join("a/b")).expect("made");
        tree.directory(b"a").expect("there");
        std::fs::rename(directory.path().join("a"), directory.path().join("c")).expect("renamed");
        symlink("/tmp", directory.path().join("a")).expect("made");
        assert!(tree.directory(b"a/b").is_err(), "resolved from the root");
    }

    #[test]
    fn paths_longer_than_the_kernel_takes_are_resolved_in_pieces() {
        let (_directory, mut tree) = tree();
        let name = [b'n'; 200];
        let mut path = Vec::new();
        for _ in 0..60 {
            let next = paths::join(&path, &name);
            let (parent, last) = tree.place(&next).expect("there");
            rustix::fs::mkdirat(&parent, last, Mode::RWXU).expect("made");
            path = next;
        }
        assert!(path.len() > 12_000);
        assert_eq!(file_type(&tree.lstat(&path).expect("there")), FileType::Directory);
        assert!(tree.kept.len() <= 8);
        tree.remove(&name).expect("removed");
        assert_eq!(tree.list(b"").expect("there").len(), 0);
        assert!(tree.look(&path).expect("no trouble").is_none());
    }

    #[test]
    fn names_are_bytes() {
        let (directory, mut tree) = tree();
        let name = b"a\n\xff\x01 b";
        std::fs::write(directory.path().join(std::ffi::OsStr::from_bytes(name)), "x").expect("written");
        assert_eq!(tree.list(b"").expect("there"), [(name.to_vec(), FileType::RegularFile)]);
        assert_eq!(tree.lstat(name).expect("there").st_size, 1);
    }

    #[test]
    fn a_root_that_was_replaced_is_noticed() {
        let outer = tempfile::tempdir().expect("a temporary directory");
        let path = outer.path().join("m");
        std::fs::create_dir(&path).expect("made");
        let tree = Tree::open(&path, 8).expect("there");
        assert!(tree.is_in_place());
        std::fs::rename(&path, outer.path().join("n")).expect("renamed");
        assert!(!tree.is_in_place());
        std::fs::create_dir(&path).expect("made");
        assert!(!tree.is_in_place());
    }
}
