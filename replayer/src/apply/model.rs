//! A primary that tests change call by call, with the record that a shim would have written for each call.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use journal::record::{
    ATTRIBUTE_ATIME, ATTRIBUTE_MODE, ATTRIBUTE_MTIME, ATTRIBUTE_OWNER, FileId, Header, Kind, Record, pack_owner,
};
use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, Timespec, XattrFlags};

use super::{Applied, Applier, OwnerPolicy};
use crate::resync::{Progress, Resync};
use crate::settle::Rest;
use crate::verify::{Difference, DifferenceKind, verify};

/// No flags of renameat2(2).
pub const PLAIN: RenameFlags = RenameFlags::empty();

/// A record with its payload.
#[derive(Debug, Clone)]
pub struct Owned {
    header: Header,
    payload: Vec<u8>,
}

impl Owned {
    pub fn record(&self) -> Record<'_> {
        Record::parse(self.header, &self.payload).expect("made well formed")
    }
}

/// A primary, and the records of what was done to it.
pub struct Primary {
    directory: tempfile::TempDir,
    pub records: Vec<Owned>,
    /// Open files by a number of the test's own.
    pub open: BTreeMap<u8, (File, FileId)>,
    seq: u64,
}

/// Where a record of attributes goes.
#[derive(Debug, Clone, Copy)]
pub enum On<'a> {
    Path(&'a [u8]),
    Open(u8),
}

fn id(meta: &std::fs::Metadata) -> FileId {
    FileId::new(meta.dev(), meta.ino())
}

fn os(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

type Outcome = std::io::Result<()>;

impl Primary {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for name in ["primary", "outside"] {
            std::fs::create_dir(directory.path().join(name)).expect("made");
        }
        Self { directory, records: Vec::new(), open: BTreeMap::new(), seq: 0 }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("primary")
    }

    pub fn beside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Puts back the counter, so that changes made so far have no records.
    pub fn forget_records(&mut self) {
        self.records.clear();
    }

    /// True when no directory on the way to `path` is a symbolic link, as in the paths that records have.
    pub fn is_plain(&self, path: &[u8]) -> bool {
        crate::paths::ancestors(crate::paths::parent(path))
            .all(|above| !self.meta(above).is_ok_and(|meta| meta.is_symlink()))
    }

    fn at(&self, path: &[u8]) -> PathBuf {
        self.path().join(os(path))
    }

    fn meta(&self, path: &[u8]) -> std::io::Result<std::fs::Metadata> {
        self.at(path).symlink_metadata()
    }

    pub fn push(&mut self, kind: Kind, header: Header, path1: &[u8], path2: &[u8], data: &[u8]) {
        self.seq += 1;
        let header = Header {
            kind: kind as u8,
            path1_bytes: path1.len() as u16,
            path2_bytes: path2.len() as u16,
            data_bytes: data.len() as u32,
            seq: self.seq,
            pid_and_time: u64::from(std::process::id()) << 32,
            ..header
        };
        self.records.push(Owned { header, payload: [path1, path2, data].concat() });
    }

    fn of(file: FileId) -> Header {
        Header { ino: file.ino, dev: file.dev, ..Header::default() }
    }

    fn made(&mut self, kind: Kind, path: &[u8], target: &[u8], c: u64) -> Outcome {
        let meta = self.meta(path)?;
        let owner = pack_owner(meta.uid(), meta.gid());
        self.push(kind, Header { a: u64::from(meta.mode()), b: owner, c, ..Header::default() }, path, target, b"");
        if kind == Kind::Create {
            self.push(Kind::Bind, Self::of(id(&meta)), path, b"", b"");
        }
        Ok(())
    }

    pub fn create(&mut self, slot: u8, path: &[u8], mode: u32) -> Outcome {
        let file = File::options().read(true).write(true).create_new(true).mode(mode).open(self.at(path))?;
        let file_id = id(&file.metadata()?);
        self.open.insert(slot, (file, file_id));
        self.made(Kind::Create, path, b"", 0)
    }

    /// Opens a file that is there, for writing.
    pub fn open(&mut self, slot: u8, path: &[u8]) -> Outcome {
        if !self.meta(path)?.is_file() {
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
        let file = File::options().read(true).write(true).open(self.at(path))?;
        let file_id = id(&file.metadata()?);
        self.open.insert(slot, (file, file_id));
        self.push(Kind::Bind, Self::of(file_id), path, b"", b"");
        Ok(())
    }

    fn opened(&self, slot: u8) -> std::io::Result<(File, FileId)> {
        let (file, file_id) = self.open.get(&slot).ok_or(std::io::ErrorKind::NotFound)?;
        Ok((file.try_clone()?, *file_id))
    }

    pub fn write(&mut self, slot: u8, offset: u64, data: &[u8]) -> Outcome {
        let (file, file_id) = self.opened(slot)?;
        file.write_all_at(data, offset)?;
        self.push(Kind::Write, Header { a: offset, ..Self::of(file_id) }, b"", b"", data);
        Ok(())
    }

    /// A change that no record carries.
    pub fn write_unseen(&mut self, slot: u8, offset: u64, data: &[u8]) -> Outcome {
        let (file, file_id) = self.opened(slot)?;
        file.write_all_at(data, offset)?;
        let header = Header { a: offset, b: data.len() as u64, ..Self::of(file_id) };
        self.push(Kind::Reread, header, b"", b"", b"");
        Ok(())
    }

    pub fn truncate(&mut self, slot: u8, size: u64) -> Outcome {
        let (file, file_id) = self.opened(slot)?;
        file.set_len(size)?;
        self.push(Kind::Truncate, Header { a: size, ..Self::of(file_id) }, b"", b"", b"");
        Ok(())
    }

    pub fn allocate(&mut self, slot: u8, mode: FallocateFlags, offset: u64, length: u64) -> Outcome {
        let (file, file_id) = self.opened(slot)?;
        let moves = FallocateFlags::COLLAPSE_RANGE | FallocateFlags::INSERT_RANGE;
        if mode.intersects(moves) && offset + length >= file.metadata()?.len() {
            // ext4 refuses some of these after it has changed the modification time.
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
        rustix::fs::fallocate(&file, mode, offset, length)?;
        let size = file.metadata()?.len().to_le_bytes();
        let header = Header { a: offset, b: length, c: u64::from(mode.bits()), ..Self::of(file_id) };
        self.push(Kind::Allocate, header, b"", b"", &size);
        Ok(())
    }

    pub fn make_directory(&mut self, path: &[u8], mode: u32) -> Outcome {
        rustix::fs::mkdir(self.at(path), Mode::from_raw_mode(mode))?;
        self.made(Kind::MakeDirectory, path, b"", 0)
    }

    pub fn symbolic_link(&mut self, path: &[u8], target: &[u8]) -> Outcome {
        std::os::unix::fs::symlink(os(target), self.at(path))?;
        self.made(Kind::SymbolicLink, path, target, 0)
    }

    pub fn make_node(&mut self, path: &[u8], kind: FileType, mode: u32, device: u64) -> Outcome {
        rustix::fs::mknodat(CWD, self.at(path), kind, Mode::from_raw_mode(mode), device)?;
        self.made(Kind::MakeNode, path, b"", device)
    }

    pub fn link(&mut self, from: &[u8], to: &[u8]) -> Outcome {
        let file = id(&self.meta(from)?);
        std::fs::hard_link(self.at(from), self.at(to))?;
        self.push(Kind::Link, Self::of(file), from, to, b"");
        Ok(())
    }

    pub fn create_unnamed(&mut self, slot: u8, directory: &[u8], mode: u32) -> Outcome {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(self.at(directory), flags, Mode::from_raw_mode(mode))?);
        let meta = file.metadata()?;
        let header = Header { a: u64::from(meta.mode()), b: pack_owner(meta.uid(), meta.gid()), ..Self::of(id(&meta)) };
        self.open.insert(slot, (file, id(&meta)));
        self.push(Kind::CreateUnnamed, header, directory, b"", b"");
        Ok(())
    }

    /// Gives an unnamed file a name.
    pub fn link_open(&mut self, slot: u8, to: &[u8]) -> Outcome {
        use std::os::fd::AsRawFd;
        let (file, file_id) = self.opened(slot)?;
        let through = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::linkat(CWD, through, CWD, self.at(to), AtFlags::SYMLINK_FOLLOW)?;
        self.push(Kind::Link, Self::of(file_id), b"", to, b"");
        Ok(())
    }

    pub fn rename(&mut self, old: &[u8], new: &[u8], flags: RenameFlags) -> Outcome {
        let meta = self.meta(old)?;
        let other = self.meta(new).map_or(0, |meta| meta.ino());
        if other == meta.ino() {
            // rename(2) does nothing with two names of one file, and there is no record.
            return Ok(());
        }
        if other != 0 && flags.contains(RenameFlags::WHITEOUT) {
            // ext4 refuses some of these after it has changed the modification time of the directory.
            return Err(std::io::ErrorKind::AlreadyExists.into());
        }
        rustix::fs::renameat_with(CWD, self.at(old), CWD, self.at(new), flags)?;
        let header = Header {
            a: u64::from(flags.bits()),
            b: u64::from(meta.mode()),
            c: if flags.contains(RenameFlags::EXCHANGE) { other } else { 0 },
            ..Self::of(id(&meta))
        };
        self.push(Kind::Rename, header, old, new, b"");
        Ok(())
    }

    pub fn unlink(&mut self, path: &[u8]) -> Outcome {
        let file = id(&self.meta(path)?);
        std::fs::remove_file(self.at(path))?;
        self.push(Kind::Unlink, Self::of(file), path, b"", b"");
        Ok(())
    }

    pub fn remove_directory(&mut self, path: &[u8]) -> Outcome {
        std::fs::remove_dir(self.at(path))?;
        self.push(Kind::RemoveDirectory, Header::default(), path, b"", b"");
        Ok(())
    }

    fn target<'a>(&self, on: On<'a>) -> std::io::Result<(PathBuf, Header, &'a [u8])> {
        use std::os::fd::AsRawFd;
        Ok(match on {
            On::Path(path) => (self.at(path), Header::default(), path),
            On::Open(slot) => {
                let (file, file_id) = self.open.get(&slot).ok_or(std::io::ErrorKind::NotFound)?;
                (PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())), Self::of(*file_id), b"")
            }
        })
    }

    pub fn chmod(&mut self, on: On, mode: u32) -> Outcome {
        let (path, header, name) = self.target(on)?;
        if path.symlink_metadata()?.is_symlink() && matches!(on, On::Path(_)) {
            return Err(std::io::ErrorKind::Unsupported.into());
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        let a = u64::from(path.metadata()?.mode());
        self.push(Kind::Attributes, Header { a, c: ATTRIBUTE_MODE, ..header }, name, b"", b"");
        Ok(())
    }

    pub fn chown(&mut self, on: On, uid: u32, gid: u32) -> Outcome {
        let (path, header, name) = self.target(on)?;
        match on {
            On::Path(_) => std::os::unix::fs::lchown(&path, Some(uid), Some(gid))?,
            On::Open(_) => std::os::unix::fs::chown(&path, Some(uid), Some(gid))?,
        }
        self.push(Kind::Attributes, Header { b: pack_owner(uid, gid), c: ATTRIBUTE_OWNER, ..header }, name, b"", b"");
        Ok(())
    }

    pub fn set_times(&mut self, on: On, atime: (i64, u32), mtime: (i64, u32)) -> Outcome {
        let (path, header, name) = self.target(on)?;
        let time = |(tv_sec, nanoseconds): (i64, u32)| Timespec { tv_sec, tv_nsec: i64::from(nanoseconds) };
        let times = crate::tree::timestamps(Some(time(atime)), Some(time(mtime)));
        let flags = if matches!(on, On::Path(_)) { AtFlags::SYMLINK_NOFOLLOW } else { AtFlags::empty() };
        rustix::fs::utimensat(CWD, &path, &times, flags)?;
        let mut data = Vec::new();
        for (seconds, nanoseconds) in [atime, mtime] {
            data.extend_from_slice(&seconds.to_le_bytes());
            data.extend_from_slice(&nanoseconds.to_le_bytes());
        }
        self.push(Kind::Attributes, Header { c: ATTRIBUTE_ATIME | ATTRIBUTE_MTIME, ..header }, name, b"", &data);
        Ok(())
    }

    pub fn set_xattr(&mut self, on: On, name: &[u8], value: &[u8]) -> Outcome {
        let (path, header, path1) = self.target(on)?;
        match on {
            On::Path(_) => rustix::fs::lsetxattr(&path, name, value, XattrFlags::empty())?,
            On::Open(_) => rustix::fs::setxattr(&path, name, value, XattrFlags::empty())?,
        }
        self.push(Kind::SetXattr, header, path1, name, value);
        Ok(())
    }

    pub fn remove_xattr(&mut self, on: On, name: &[u8]) -> Outcome {
        let (path, header, path1) = self.target(on)?;
        match on {
            On::Path(_) => rustix::fs::lremovexattr(&path, name)?,
            On::Open(_) => rustix::fs::removexattr(&path, name)?,
        }
        self.push(Kind::RemoveXattr, header, path1, name, b"");
        Ok(())
    }

    /// Moves an object out, which is a removal of everything in it.
    pub fn move_out(&mut self, path: &[u8], name: &str) -> Outcome {
        let meta = self.meta(path)?;
        let outside = self.beside("outside").join(name);
        if outside.symlink_metadata().is_ok() {
            return Err(std::io::ErrorKind::AlreadyExists.into());
        }
        std::fs::rename(self.at(path), outside)?;
        if meta.is_dir() {
            self.push(Kind::Import, Self::of(id(&meta)), path, b"", b"");
        } else {
            self.push(Kind::Unlink, Self::of(id(&meta)), path, b"", b"");
        }
        Ok(())
    }

    /// Moves an object in.
    pub fn move_in(&mut self, name: &str, path: &[u8]) -> Outcome {
        let outside = self.beside("outside").join(name);
        let file = id(&outside.symlink_metadata()?);
        std::fs::rename(outside, self.at(path))?;
        self.push(Kind::Import, Self::of(file), path, b"", b"");
        Ok(())
    }

    /// Says again which files are open, as shims do in a new epoch.
    pub fn bind_again(&mut self) {
        for file in self.open.values().map(|(_, id)| *id).collect::<Vec<FileId>>() {
            if let Some(path) = self.name_of(file) {
                self.push(Kind::Bind, Self::of(file), &path, b"", b"");
            }
        }
    }

    fn name_of(&self, file: FileId) -> Option<Vec<u8>> {
        let mut directories = vec![self.path()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).ok()?.flatten() {
                let meta = entry.path().symlink_metadata().ok()?;
                if meta.is_dir() {
                    directories.push(entry.path());
                } else if id(&meta) == file {
                    let path = entry.path();
                    return Some(path.strip_prefix(self.path()).ok()?.as_os_str().as_bytes().to_vec());
                }
            }
        }
        None
    }
}

/// A mirror of a [`Primary`].
pub struct Mirror {
    primary: PathBuf,
    path: PathBuf,
    ledger: PathBuf,
    pub applier: Applier,
}

impl Mirror {
    pub fn new(primary: &Primary, name: &str) -> Self {
        let path = primary.beside(name);
        std::fs::create_dir(&path).expect("made");
        let mut mirror = Self::over(primary, &path);
        // It was made at another moment than the primary.
        mirror.applier.ledger.touch_path(b"");
        mirror.applier.ledger.flush().expect("written");
        mirror
    }

    pub fn over(primary: &Primary, path: &Path) -> Self {
        let ledger = path.with_extension("ledger");
        let applier =
            Applier::new(&primary.path(), path, &ledger, OwnerPolicy::Strict).expect("both directories are there");
        Self { primary: primary.path(), path: path.to_path_buf(), ledger, applier }
    }

    pub fn path(&self, path: &[u8]) -> PathBuf {
        self.path.join(os(path))
    }

    /// As if the replayer had been killed.
    pub fn crash(&mut self) {
        self.applier = Applier::new(&self.primary, &self.path, &self.ledger, OwnerPolicy::Strict).expect("there");
    }

    /// Applies a record, loses what the ledger learned from it, as if the replayer had been killed between the change and
    /// the ledger, and applies it again.
    pub fn apply_torn(&mut self, record: &Owned) {
        let before = std::fs::metadata(&self.ledger).expect("there").len();
        self.apply(record);
        let parsed = record.record();
        let again = u64::from((RenameFlags::EXCHANGE | RenameFlags::WHITEOUT).bits());
        let exchanges = parsed.kind == Kind::Rename && parsed.header.a & again != 0;
        // The intent of what can't be seen to have been done is written first: length, checksum, kind, two numbers.
        let kept = if exchanges { before + 25 } else { before };
        let ledger = File::options().write(true).open(&self.ledger).expect("there");
        if ledger.metadata().expect("open").len() >= kept {
            ledger.set_len(kept).expect("cut");
        }
        self.crash();
        self.apply(record);
    }

    pub fn apply(&mut self, record: &Owned) -> Applied {
        let applied = self.applier.apply(&record.record());
        applied.unwrap_or_else(|error| panic!("{error}\n{:?}", record.record()))
    }

    pub fn apply_all(&mut self, records: &[Owned]) {
        for record in records {
            self.apply(record);
        }
    }

    /// Repairs and settles what is left to.
    pub fn rest(&mut self) {
        assert_eq!(self.applier.repair_pending(Rest::AtRest).expect("repaired"), 0);
        assert_eq!(self.applier.settle(Rest::AtRest, usize::MAX, || true).expect("settled"), 0);
    }

    pub fn differences(&mut self) -> Vec<Difference> {
        let Applier { primary, mirror, limits, .. } = &mut self.applier;
        let verified = verify(primary, mirror, b"", limits).expect("both can be read");
        assert!(verified.unreadable.is_empty(), "{:?}", verified.unreadable);
        verified.differences
    }

    /// Differences that a mirror may not have at any time: all but times.
    pub fn differences_in_flight(&mut self) -> Vec<Difference> {
        let mut differences = self.differences();
        differences.retain(|difference| difference.kind != DifferenceKind::Mtime);
        differences
    }

    #[track_caller]
    pub fn assert_equal(&mut self) {
        self.rest();
        assert_eq!(self.differences(), []);
    }
}

/// Brings a mirror level while nothing happens.
pub fn resync(mirror: &mut Mirror) {
    let mut resync = Resync::new();
    resync.begin(&mut mirror.applier).expect("begun");
    first_pass(&mut resync, mirror);
    assert_eq!(resync.finish(&mut mirror.applier).expect("finished"), []);
}

pub fn first_pass(resync: &mut Resync, mirror: &mut Mirror) {
    while resync.step(&mut mirror.applier, Duration::from_millis(20)).expect("walked") == Progress::Walking {}
}
