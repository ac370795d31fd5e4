//! The tests' own eye: compares two directory trees, entry by entry and attribute by attribute.
//!
//! It shares no code with the product, so that a mistake there cannot hide itself here. Trees are walked by descriptor,
//! so names may be of any bytes and directories deeper than PATH_MAX. `.lockstep` at a root is left out.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};

/// One way in which two trees differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The word that `lockstep verify` has for it.
    pub kind: &'static str,
    /// Path below the root, escaped.
    pub path: String,
    /// What is there and what should be.
    pub detail: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\t{}\t{}", self.kind, self.path, self.detail)
    }
}

/// All that is compared of one entry.
struct Entry {
    stat: Stat,
    target: Option<Vec<u8>>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

type Entries = BTreeMap<Vec<u8>, Entry>;

/// Lists every difference between the tree at `primary` and the one at `mirror`.
///
/// # Errors
/// If a tree cannot be read.
pub fn trees(primary: &Path, mirror: &Path) -> io::Result<Vec<Difference>> {
    let (left_root, right_root) = (open_root(primary)?, open_root(mirror)?);
    let (left, right) = (read_tree(&left_root)?, read_tree(&right_root)?);
    let mut found = Vec::new();
    for (path, entry) in &left {
        match right.get(path) {
            None => found.push(difference("missing", path, kind_name(entry))),
            Some(other) => compare_entries(path, entry, other, &mut found),
        }
    }
    for (path, entry) in right.iter().filter(|(path, _)| !left.contains_key(*path)) {
        found.push(difference("extra", path, kind_name(entry)));
    }
    for (path, entry) in &left {
        let Some(other) = right.get(path) else { continue };
        if file_type(entry) == FileType::RegularFile && file_type(other) == FileType::RegularFile {
            compare_contents(path, &left_root, &right_root, &mut found)?;
        }
    }
    compare_links(&left, &right, &mut found);
    Ok(found)
}

/// One line an entry: path, type, mode, size or target. What a program leaves behind, bare or wrapped, must agree in it.
///
/// # Errors
/// If the tree cannot be read.
pub fn outline(root: &Path) -> io::Result<Vec<String>> {
    let entries = read_tree(&open_root(root)?)?;
    Ok(entries
        .iter()
        .map(|(path, entry)| {
            let what = match file_type(entry) {
                FileType::RegularFile => format!("{} bytes", entry.stat.st_size),
                FileType::Symlink => format!("-> {}", escaped(entry.target.as_deref().unwrap_or_default())),
                _ => String::new(),
            };
            let names: Vec<_> = entry.xattrs.keys().map(|name| escaped(name)).collect();
            format!(
                "{} {} {:o} {}:{} links {} {} {}",
                escaped(path),
                kind_name(entry),
                entry.stat.st_mode & 0o7777,
                entry.stat.st_uid,
                entry.stat.st_gid,
                if file_type(entry) == FileType::Directory { 0 } else { entry.stat.st_nlink },
                what,
                names.join(",")
            )
        })
        .collect())
}

fn open_root(root: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, root, flags, Mode::empty())
        .map_err(|error| io::Error::other(format!("cannot open {}: {error}", root.display())))
}

fn read_tree(root: &OwnedFd) -> io::Result<Entries> {
    let mut entries = Entries::new();
    let stat = rustix::fs::fstat(root)?;
    entries.insert(Vec::new(), Entry { stat, target: None, xattrs: read_xattrs(root.as_fd(), c".")? });
    read_directory(root.as_fd(), &[], &mut entries)?;
    Ok(entries)
}

fn read_directory(directory: BorrowedFd<'_>, path: &[u8], entries: &mut Entries) -> io::Result<()> {
    let mut names: Vec<CString> = Vec::new();
    for item in Dir::read_from(directory)? {
        let item = item?;
        let reserved = path.is_empty() && item.file_name() == c".lockstep";
        if item.file_name() != c"." && item.file_name() != c".." && !reserved {
            names.push(item.file_name().to_owned());
        }
    }
    for name in names {
        let mut below = path.to_vec();
        if !below.is_empty() {
            below.push(b'/');
        }
        below.extend_from_slice(name.to_bytes());
        let stat = rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        let target = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => Some(rustix::fs::readlinkat(directory, &name, Vec::new())?.into_bytes()),
            _ => None,
        };
        let xattrs = read_xattrs(directory, &name)?;
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        entries.insert(below.clone(), Entry { stat, target, xattrs });
        if is_directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let child = rustix::fs::openat(directory, &name, flags, Mode::empty())?;
            read_directory(child.as_fd(), &below, entries)?;
        }
    }
    Ok(())
}

/// Reads extended attributes by a path through the directory's descriptor, which works for links and special files
/// and below PATH_MAX.
fn read_xattrs(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    let mut list = vec![0u8; 65536];
    let length = match rustix::fs::llistxattr(path.as_slice(), &mut list[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP | rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => {
            return Ok(BTreeMap::new());
        }
        Err(error) => return Err(error.into()),
    };
    let mut xattrs = BTreeMap::new();
    for key in list[..length].split(|byte| *byte == 0).filter(|key| !key.is_empty()) {
        let mut value = vec![0u8; 65536];
        match rustix::fs::lgetxattr(path.as_slice(), key, &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                xattrs.insert(key.to_vec(), value);
            }
            // Some names are listed that this user may not read.
            Err(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS | rustix::io::Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(xattrs)
}

fn compare_entries(path: &[u8], left: &Entry, right: &Entry, found: &mut Vec<Difference>) {
    if file_type(left) != file_type(right) {
        found.push(difference("type", path, format!("{} here, {} there", kind_name(left), kind_name(right))));
        return;
    }
    let (a, b) = (&left.stat, &right.stat);
    if a.st_mode != b.st_mode {
        found.push(difference("mode", path, format!("{:o} here, {:o} there", a.st_mode & 0o7777, b.st_mode & 0o7777)));
    }
    if (a.st_uid, a.st_gid) != (b.st_uid, b.st_gid) {
        let detail = format!("{}:{} here, {}:{} there", a.st_uid, a.st_gid, b.st_uid, b.st_gid);
        found.push(difference("owner", path, detail));
    }
    if (a.st_mtime, a.st_mtime_nsec) != (b.st_mtime, b.st_mtime_nsec) {
        let detail = format!("{}.{:09} here, {}.{:09} there", a.st_mtime, a.st_mtime_nsec, b.st_mtime, b.st_mtime_nsec);
        found.push(difference("mtime", path, detail));
    }
    if file_type(left) == FileType::RegularFile && a.st_size != b.st_size {
        found.push(difference("size", path, format!("{} here, {} there", a.st_size, b.st_size)));
    }
    if matches!(file_type(left), FileType::CharacterDevice | FileType::BlockDevice) && a.st_rdev != b.st_rdev {
        found.push(difference("device", path, format!("{:x} here, {:x} there", a.st_rdev, b.st_rdev)));
    }
    if left.target != right.target {
        let show = |entry: &Entry| escaped(entry.target.as_deref().unwrap_or_default());
        found.push(difference("target", path, format!("{} here, {} there", show(left), show(right))));
    }
    for (key, value) in &left.xattrs {
        if right.xattrs.get(key) != Some(value) {
            found.push(difference(xattr_kind(key), path, format!("{} differs or is missing there", escaped(key))));
        }
    }
    for key in right.xattrs.keys().filter(|key| !left.xattrs.contains_key(*key)) {
        found.push(difference(xattr_kind(key), path, format!("{} is only there", escaped(key))));
    }
}

fn compare_contents(path: &[u8], left: &OwnedFd, right: &OwnedFd, found: &mut Vec<Difference>) -> io::Result<()> {
    let (mut a, mut b) = (open_below(left.as_fd(), path)?, open_below(right.as_fd(), path)?);
    let (mut left_chunk, mut right_chunk) = (vec![0u8; 1 << 18], vec![0u8; 1 << 18]);
    let mut offset = 0u64;
    loop {
        let here = read_full(&mut a, &mut left_chunk)?;
        let there = read_full(&mut b, &mut right_chunk)?;
        let common = here.min(there);
        if let Some(at) = (0..common).find(|&at| left_chunk[at] != right_chunk[at]) {
            found.push(difference("content", path, format!("first differs at byte {}", offset + at as u64)));
            return Ok(());
        }
        // A difference in length is told as `size`.
        if here != there || here == 0 {
            return Ok(());
        }
        offset += here as u64;
    }
}

fn open_below(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<std::fs::File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    let name = parts.pop().unwrap_or_default();
    let mut directory: Option<OwnedFd> = None;
    for part in parts {
        let from = directory.as_ref().map_or(root, |fd| fd.as_fd());
        directory = Some(rustix::fs::openat(from, part, flags | OFlags::DIRECTORY, Mode::empty())?);
    }
    let from = directory.as_ref().map_or(root, |fd| fd.as_fd());
    let file = rustix::fs::openat(from, name, flags, Mode::empty());
    file.map(std::fs::File::from).map_err(|error| io::Error::other(format!("cannot open {}: {error}", escaped(path))))
}

fn read_full(file: &mut std::fs::File, chunk: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < chunk.len() {
        match io::Read::read(file, &mut chunk[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

/// Two names that are one file on one side must be one file on the other.
fn compare_links(left: &Entries, right: &Entries, found: &mut Vec<Difference>) {
    let mut check = |one: &Entries, other: &Entries, where_joined: &str| {
        let mut first_names: HashMap<(u64, u64), &Vec<u8>> = HashMap::new();
        for (path, entry) in one.iter().filter(|(_, entry)| is_linked(entry)) {
            let Some(first) = first_names.get(&(entry.stat.st_dev, entry.stat.st_ino)) else {
                first_names.insert((entry.stat.st_dev, entry.stat.st_ino), path);
                continue;
            };
            if let (Some(a), Some(b)) = (other.get(*first), other.get(path))
                && (a.stat.st_dev, a.stat.st_ino) != (b.stat.st_dev, b.stat.st_ino)
            {
                found.push(difference(
                    "hardlink",
                    path,
                    format!("one file with {} only {where_joined}", escaped(first)),
                ));
            }
        }
    };
    check(left, right, "here");
    check(right, left, "there");
}

fn is_linked(entry: &Entry) -> bool {
    file_type(entry) != FileType::Directory && entry.stat.st_nlink > 1
}

fn file_type(entry: &Entry) -> FileType {
    FileType::from_raw_mode(entry.stat.st_mode)
}

fn kind_name(entry: &Entry) -> String {
    format!("{:?}", file_type(entry))
}

fn xattr_kind(key: &[u8]) -> &'static str {
    if key.starts_with(b"system.posix_acl_") { "acl" } else { "xattr" }
}

fn difference(kind: &'static str, path: &[u8], detail: String) -> Difference {
    Difference { kind, path: escaped(path), detail }
}

fn escaped(bytes: &[u8]) -> String {
    let shown = bytes.escape_ascii().to_string();
    // Very long names are cut in the middle: the ends tell them apart.
    if shown.len() > 300 { format!("{}…{}", &shown[..140], &shown[shown.len() - 140..]) } else { shown }
}

#[cfg(test)]
mod of_the_comparer {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn twins() -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (left, right) = (directory.path().join("l"), directory.path().join("r"));
        for side in [&left, &right] {
            fs::create_dir_all(side.join("d")).expect("mkdir");
            fs::write(side.join("d/f"), b"content").expect("write");
            fs::hard_link(side.join("d/f"), side.join("h")).expect("link");
            symlink("d/f", side.join("s")).expect("symlink");
            fs::create_dir(side.join(".lockstep")).expect("mkdir");
        }
        fs::write(right.join(".lockstep/id"), b"only here").expect("write");
        (directory, left, right)
    }

    fn kinds(left: &Path, right: &Path) -> Vec<&'static str> {
        let mut kinds: Vec<_> = trees(left, right).expect("readable trees").iter().map(|found| found.kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    }

    fn level_times(left: &Path, right: &Path) {
        for path in ["d/f", "d", ""] {
            let times = fs::metadata(left.join(path)).and_then(|found| found.modified()).expect("metadata");
            let file = fs::File::open(right.join(path)).expect("open");
            file.set_modified(times).expect("set times");
        }
        let stat = rustix::fs::lstat(left.join("s")).expect("lstat");
        let time = rustix::fs::Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as i64 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, right.join("s"), &times, AtFlags::SYMLINK_NOFOLLOW).expect("set times");
    }

    #[test]
    fn equal_trees_have_no_difference() {
        let (_keep, left, right) = twins();
        level_times(&left, &right);
        assert_eq!(kinds(&left, &right), Vec::<&str>::new());
    }

    #[test]
    fn an_empty_mirror_differs() {
        let (_keep, left, _) = twins();
        let empty = tempfile::tempdir().expect("a temporary directory");
        assert!(kinds(&left, empty.path()).contains(&"missing"));
        assert!(kinds(empty.path(), &left).contains(&"extra"));
    }

    #[test]
    fn each_kind_of_difference_is_seen() {
        type Change = fn(&Path);
        let changes: [(&str, Change); 8] = [
            ("content", |root| fs::write(root.join("d/f"), b"Content").expect("write")),
            ("size", |root| fs::write(root.join("d/f"), b"contents").expect("write")),
            ("mode", |root| fs::set_permissions(root.join("d"), fs::Permissions::from_mode(0o701)).expect("chmod")),
            ("missing", |root| fs::remove_file(root.join("h")).expect("unlink")),
            ("extra", |root| fs::write(root.join("new"), b"").expect("write")),
            ("target", |root| {
                fs::remove_file(root.join("s")).expect("unlink");
                symlink("d/g", root.join("s")).expect("symlink");
            }),
            ("hardlink", |root| {
                fs::remove_file(root.join("h")).expect("unlink");
                fs::write(root.join("h"), b"content").expect("write");
            }),
            ("xattr", |root| {
                let path = root.join("d/f");
                rustix::fs::setxattr(path, "user.k", b"v", rustix::fs::XattrFlags::empty()).expect("setxattr");
            }),
        ];
        for (kind, change) in changes {
            let (_keep, left, right) = twins();
            change(&right);
            level_times(&left, &right);
            assert!(kinds(&left, &right).contains(&kind), "{kind} was not seen");
        }
    }

    #[test]
    fn a_nanosecond_of_mtime_is_seen() {
        let (_keep, left, right) = twins();
        level_times(&left, &right);
        let file = fs::File::open(right.join("d/f")).expect("open");
        let time = file.metadata().and_then(|found| found.modified()).expect("metadata");
        file.set_modified(time + std::time::Duration::from_nanos(1)).expect("set times");
        assert_eq!(kinds(&left, &right), ["mtime"]);
    }
}
