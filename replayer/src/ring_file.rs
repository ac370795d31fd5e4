//! The file behind a set's ring: made, checked and mapped here.
//!
//! It lies in /dev/shm if there is room, else beside the settings; the symbolic link `ring` in the set's directory
//! leads to it, which is how the library finds it. Its space is reserved when it is made, so a full file system is an
//! error here and never SIGBUS in a program. A ring doesn't outlive the boot in which it was made.
//!
//! # Safety
//! The only unsafe steps are mapping the file and handing the mapping to [`Ring`]. The file is ours alone (mode 0600,
//! owner checked, never truncated once it has a name), and [`RingFile`] keeps the mapping for as long as the ring.
#![allow(unsafe_code)]

use crate::set::{Set, fnv1a, random};
use journal::Ring;
use journal::layout::{Layout, PRIMARY_BYTES};
use journal::ring::AttachError;
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, Mode, OFlags};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Default size of a ring's data area. Three sets fit into the 64 MB that containers give to /dev/shm.
pub const RING_BYTES_DEFAULT: u64 = 16 << 20;
/// Smallest: a ring must hold two of the longest records, in a power of two of cells.
pub const RING_BYTES_MIN: u64 = 1 << 20;
/// Largest: what 32-bit cell numbers and positions modulo 2^36 leave ample room for.
pub const RING_BYTES_MAX: u64 = 16 << 30;

/// Where the path of the primary stands, see [`Layout`].
const PRIMARY_AT: usize = Layout::new(1).primary;
const SHARED_MEMORY: &str = "/dev/shm";
/// What a ring must leave free in /dev/shm, which other programs need too.
const SHARED_MEMORY_RESERVE_BYTES: u64 = 1 << 20;

/// A mapped ring.
pub struct RingFile {
    // Field order is drop order: the ring goes before the memory that it lies in.
    ring: Ring,
    _map: MmapRaw,
}

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// It was made by another version, and may be in use by it.
    #[error(
        "cannot use the ring {path:?}: it was made by another version of lockstep (layout {found}, this one has {})\nlet the programs that it wraps end, run `lockstep stop` of that version, then try again",
        journal::layout::VERSION
    )]
    Version {
        /// Where the ring is.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// It is not, or no longer, a ring of this set.
    #[error("cannot use the ring {path:?}: {reason}")]
    Foreign {
        /// Where the ring is.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The primary is another directory than the one that the ring was made for.
    #[error(
        "cannot use the ring {path:?}: {primary:?} is another directory than when it was made, and a replayer or a program still uses the old one\nlet the programs end and run `lockstep stop --now`, then try again"
    )]
    PrimaryReplaced {
        /// Where the ring is.
        path: PathBuf,
        /// The primary.
        primary: PathBuf,
    },
    /// The path of the primary doesn't fit.
    #[error("cannot make a ring for {0:?}: the path is longer than {PRIMARY_BYTES} bytes")]
    PathTooLong(PathBuf),
    /// No file system has room for it.
    #[error(
        "cannot reserve {bytes} bytes for the ring, neither in {SHARED_MEMORY} nor in {dir:?}: {source}\nfree space there, or choose a smaller ring: --ring-bytes N"
    )]
    NoRoom {
        /// Bytes wanted.
        bytes: u64,
        /// The set's directory.
        dir: PathBuf,
        /// Why the last attempt failed.
        source: io::Error,
    },
    /// The system refused.
    #[error("cannot {what} {path:?}: {source}")]
    Io {
        /// Verb phrase.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl std::ops::Deref for RingFile {
    type Target = Ring;

    fn deref(&self) -> &Ring {
        &self.ring
    }
}

impl RingFile {
    /// Opens the set's ring; `None` when there is none, or only one of an earlier boot or of a primary that is gone.
    ///
    /// # Errors
    /// `Version` or `Io`.
    pub fn open(set: &Set) -> Result<Option<Self>, RingError> {
        match examine(set)? {
            Found::Usable(ring) => Ok(Some(ring)),
            Found::OtherVersion(path, found) => Err(RingError::Version { path, found }),
            Found::Nothing | Found::Stale(_) | Found::Replaced(_) => Ok(None),
        }
    }

    /// Opens the set's ring or makes a new one. The caller holds the state directory's lock, or is the replayer.
    ///
    /// # Errors
    /// Any of [`RingError`]; a ring that may be in use is never replaced.
    pub fn open_or_make(set: &Set) -> Result<Self, RingError> {
        match examine(set)? {
            Found::Usable(ring) => return Ok(ring),
            Found::Nothing => {}
            Found::Stale(path) => remove(&path)?,
            Found::Replaced(path) if is_mapped(&path) => {
                return Err(RingError::PrimaryReplaced { path, primary: set.settings.primary.clone() });
            }
            Found::Replaced(path) => remove(&path)?,
            Found::OtherVersion(path, found) if is_mapped(&path) => return Err(RingError::Version { path, found }),
            Found::OtherVersion(path, _) => remove(&path)?,
        }
        make(set)
    }

    fn map(file: &File, path: &Path) -> Result<Self, RingError> {
        let fail = |source| RingError::Io { what: "map the ring", path: path.to_path_buf(), source };
        let bytes = file.metadata().map_err(fail)?.len() as usize;
        let map = MmapOptions::new().len(bytes).map_raw(file).map_err(fail)?;
        // Core dumps of the replayer would otherwise hold what programs wrote.
        map.advise(memmap2::Advice::DontDump).map_err(fail)?;
        // SAFETY: a shared, page-aligned mapping of `bytes` bytes, readable and writable, which `Self` keeps until
        // after the ring is gone.
        match unsafe { Ring::attach(map.as_mut_ptr(), bytes) } {
            Ok(ring) => Ok(Self { ring, _map: map }),
            Err(AttachError::Version(found)) => Err(RingError::Version { path: path.to_path_buf(), found }),
            Err(error) => Err(RingError::Foreign { path: path.to_path_buf(), reason: format!("{error:?}") }),
        }
    }
}

enum Found {
    Nothing,
    Usable(RingFile),
    /// Of an earlier boot, or never finished.
    Stale(PathBuf),
    /// Made for another directory at the primary's path.
    Replaced(PathBuf),
    /// Made by another version, this one.
    OtherVersion(PathBuf, u32),
}

fn examine(set: &Set) -> Result<Found, RingError> {
    let Some(path) = target(set)? else { return Ok(Found::Nothing) };
    let io_error = |what| {
        let path = path.clone();
        move |source: io::Error| RingError::Io { what, path, source }
    };
    let opened = File::options().read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Stale(path)),
        Err(error) => return Err(io_error("open the ring")(error)),
    };
    let data = file.metadata().map_err(io_error("examine the ring"))?;
    let foreign = |reason: &str| RingError::Foreign { path: path.clone(), reason: reason.to_owned() };
    if !data.is_file() || data.uid() != rustix::process::geteuid().as_raw() {
        return Err(foreign("it is not a file of yours; remove the link to it, then try again"));
    }
    if data.mode() & 0o077 != 0 {
        return Err(foreign("others may read or write it; remove it, then try again"));
    }
    if !path.as_os_str().as_bytes().ends_with(boot_id()?.as_bytes()) {
        return Ok(Found::Stale(path));
    }
    let ring = match RingFile::map(&file, &path) {
        Ok(ring) => ring,
        // The lock is ours, so a ring that isn't one is what somebody who was killed left half made.
        Err(RingError::Foreign { .. }) => return Ok(Found::Stale(path)),
        Err(RingError::Version { path, found }) => return Ok(Found::OtherVersion(path, found)),
        Err(error) => return Err(error),
    };
    let primary = &set.settings.primary;
    let Ok(there) = primary.metadata() else { return Ok(Found::Usable(ring)) };
    let header = ring.header();
    let load = |word: &journal::sync::AtomicU64| word.load(journal::sync::Ordering::Relaxed);
    let same = ring.primary() == primary.as_os_str().as_bytes()
        && (load(&header.primary_dev), load(&header.primary_ino)) == (there.dev(), there.ino());
    Ok(if same { Found::Usable(ring) } else { Found::Replaced(path) })
}

fn make(set: &Set) -> Result<RingFile, RingError> {
    let primary = &set.settings.primary;
    if primary.as_os_str().len() > PRIMARY_BYTES {
        return Err(RingError::PathTooLong(primary.clone()));
    }
    let there = primary.metadata().map_err(|source| RingError::Io {
        what: "examine the primary",
        path: primary.clone(),
        source,
    })?;
    let ring_bytes = set.settings.ring_bytes.clamp(RING_BYTES_MIN, RING_BYTES_MAX).next_power_of_two();
    let cells = (ring_bytes / journal::claims::CELL_BYTES as u64) as u32;
    let bytes = Layout::new(cells).total as u64;

    let (path, file) = reserve(set, bytes)?;
    let made = || -> Result<RingFile, RingError> {
        let fail = |source| RingError::Io { what: "map the ring", path: path.clone(), source };
        let map = MmapOptions::new().len(bytes as usize).map_raw(&file).map_err(fail)?;
        // SAFETY: a new file of `bytes` zeros, whose name nobody knows before the link below is made.
        unsafe {
            Ring::initialise(
                map.as_mut_ptr(),
                cells,
                primary.as_os_str().as_bytes(),
                there.dev(),
                there.ino(),
                boot_time_ns(),
            );
        }
        drop(map);
        let ring = RingFile::map(&file, &path)?;
        ring.header().generation.store(set.settings.generation, journal::sync::Ordering::Release);
        let link = set.file("ring");
        let new = set.file("ring.new");
        remove(&new)?;
        std::os::unix::fs::symlink(&path, &new)
            .and_then(|()| std::fs::rename(&new, &link))
            .map_err(|source| RingError::Io { what: "link the ring as", path: link, source })?;
        // Without it the ring works as well; it is only never swept up.
        if let Err(error) = Note::of(set.dir()).and_then(|note| note.write(&file, primary)) {
            log::debug!("cannot note in {path:?} whose it is: {error}");
        }
        Ok(ring)
    };
    made().inspect_err(|_| {
        let _ = remove(&path);
    })
}

/// Makes an empty file of `bytes` bytes with its space reserved: in /dev/shm, else in the set's directory.
fn reserve(set: &Set, bytes: u64) -> Result<(PathBuf, File), RingError> {
    let boot = boot_id()?;
    let owner = rustix::process::geteuid().as_raw();
    let mut whole = set.state_dir().as_os_str().as_bytes().to_vec();
    whole.push(0);
    whole.extend_from_slice(set.name().as_bytes());
    let of_user = format!("lockstep-{owner}-");
    sweep(&of_user);
    let name = format!("{of_user}{:016x}-{:08x}-{boot}", fnv1a(&whole), random() as u32);
    let places = [(Path::new(SHARED_MEMORY), SHARED_MEMORY_RESERVE_BYTES), (set.dir(), 0)];
    let mut last = io::Error::from(io::ErrorKind::StorageFull);
    for (dir, spare) in places {
        let room = rustix::fs::statvfs(dir).map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize));
        if !room.is_ok_and(|room| room >= bytes.saturating_add(spare)) {
            continue;
        }
        let path = dir.join(&name);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let allocated = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).and_then(|file| {
            // A umask can only have taken bits away; the mode must be exactly this for `examine`.
            rustix::fs::fchmod(&file, Mode::RUSR | Mode::WUSR)?;
            rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes).or_else(|error| match error {
                rustix::io::Errno::OPNOTSUPP => write_zeros(&file, bytes),
                error => Err(error),
            })?;
            Ok(File::from(file))
        });
        match allocated {
            Ok(file) => return Ok((path, file)),
            Err(error) => {
                last = error.into();
                let _ = std::fs::remove_file(&path);
            }
        }
    }
    Err(RingError::NoRoom { bytes, dir: set.dir().to_path_buf(), source: last })
}

/// Whose ring a file is. It stands behind the path of the primary, in the space that the path leaves.
///
/// Rings in /dev/shm outlive a state directory that is deleted by hand. A later command removes them, but only where it
/// can tell that nobody needs them: /dev/shm may be shared with containers whose files and processes are not seen here.
#[derive(PartialEq, Eq, Debug)]
struct Note {
    /// Namespaces of mounts and processes, as /proc names them.
    namespaces: Vec<u8>,
    /// Directory of the set.
    set_dir: PathBuf,
}

impl Note {
    fn of(set_dir: &Path) -> io::Result<Self> {
        let mut namespaces = std::fs::read_link("/proc/self/ns/mnt")?.into_os_string().into_encoded_bytes();
        namespaces.extend_from_slice(std::fs::read_link("/proc/self/ns/pid")?.as_os_str().as_bytes());
        Ok(Self { namespaces, set_dir: set_dir.to_path_buf() })
    }

    /// Written last, when the set leads to the ring: a file without a note may be one that is being made.
    fn write(&self, file: &File, primary: &Path) -> io::Result<()> {
        let mut bytes = vec![0];
        bytes.extend_from_slice(&self.namespaces);
        bytes.push(0);
        bytes.extend_from_slice(self.set_dir.as_os_str().as_bytes());
        bytes.push(0);
        let used = primary.as_os_str().len();
        if used + bytes.len() <= PRIMARY_BYTES {
            file.write_all_at(&bytes, (PRIMARY_AT + size_of::<u64>() + used) as u64)?;
        }
        Ok(())
    }

    fn read(file: &File) -> Option<Self> {
        let mut page = [0; size_of::<u64>() + PRIMARY_BYTES];
        file.read_exact_at(&mut page, PRIMARY_AT as u64).ok()?;
        let (used, path) = page.split_first_chunk::<8>()?;
        let rest = path.get(usize::try_from(u64::from_ne_bytes(*used)).ok()?..)?;
        let mut fields = rest.strip_prefix(&[0])?.split(|byte| *byte == 0);
        let namespaces = fields.next().filter(|field| !field.is_empty())?.to_vec();
        let set_dir = fields.next().filter(|field| !field.is_empty())?;
        Some(Self { namespaces, set_dir: PathBuf::from(OsStr::from_bytes(set_dir)) })
    }
}

/// Removes our rings in /dev/shm whose set is gone or has another, unless they are in use.
fn sweep(prefix: &str) {
    let Ok(here) = Note::of(Path::new("/")) else { return };
    let entries = std::fs::read_dir(SHARED_MEMORY).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().as_bytes().starts_with(prefix.as_bytes())) {
        let path = entry.path();
        let opened = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&path);
        let Some(note) = opened.ok().and_then(|file| Note::read(&file)) else { continue };
        let is_left = note.namespaces == here.namespaces
            && std::fs::read_link(note.set_dir.join("ring")).map_or_else(is_missing, |target| target != path);
        if is_left && !is_mapped(&path) {
            // Whoever removes it first is as good as another.
            let _ = std::fs::remove_file(&path);
        }
    }
}

fn is_missing(error: io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Reserves space where fallocate(2) can't: every byte is written.
fn write_zeros(file: &impl std::os::fd::AsFd, bytes: u64) -> Result<(), rustix::io::Errno> {
    let zeros = vec![0; 1 << 20];
    let mut at = 0;
    while at < bytes {
        let length = zeros.len().min((bytes - at) as usize);
        at += rustix::io::pwrite(file, &zeros[..length], at)? as u64;
    }
    Ok(())
}

/// Where the set's link leads.
fn target(set: &Set) -> Result<Option<PathBuf>, RingError> {
    let link = set.file("ring");
    match std::fs::read_link(&link) {
        Ok(path) => Ok(Some(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RingError::Io { what: "follow the link", path: link, source }),
    }
}

fn remove(path: &Path) -> Result<(), RingError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(RingError::Io { what: "remove", path: path.to_path_buf(), source: error })
        }
        _ => Ok(()),
    }
}

/// True while any process that we may look into has the file mapped: a replayer or a wrapped program.
fn is_mapped(path: &Path) -> bool {
    let Ok(processes) = std::fs::read_dir("/proc") else { return true };
    let needle = path.as_os_str().as_bytes();
    processes.flatten().any(|process| {
        let numeric = process.file_name().as_bytes().iter().all(u8::is_ascii_digit);
        numeric
            && std::fs::read(process.path().join("maps"))
                .is_ok_and(|maps| maps.split(|byte| *byte == b'\n').any(|line| line.ends_with(needle)))
    })
}

/// Names the boot: process numbers, locks and unwritten pages of a ring mean nothing after the next one.
fn boot_id() -> Result<String, RingError> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text =
        std::fs::read_to_string(path).map_err(|source| RingError::Io { what: "read", path: path.into(), source })?;
    Ok(text.trim().chars().filter(char::is_ascii_hexdigit).take(12).collect())
}

fn boot_time_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::{Settings, StateDir};
    use journal::sync::Ordering;

    fn fixture() -> (tempfile::TempDir, Set) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let primary = dir.path().join("primary");
        std::fs::create_dir(&primary).expect("made");
        let state = StateDir::open_or_make(Some(&dir.path().join("state"))).expect("a state directory");
        let settings = Settings::new("s".into(), primary.canonicalize().expect("there"), RING_BYTES_MIN);
        let set = state.make_set(settings).expect("made");
        (dir, set)
    }

    fn remove_ring(set: &Set) -> Result<(), RingError> {
        target(set)?.map_or(Ok(()), |path| remove(&path))
    }

    #[test]
    fn a_ring_is_made_once_and_found_again() {
        let (_dir, set) = fixture();
        assert!(RingFile::open(&set).expect("no trouble").is_none());
        let ring = RingFile::open_or_make(&set).expect("made");
        ring.header().newest_seq.store(42, Ordering::SeqCst);
        assert_eq!(ring.cells(), RING_BYTES_MIN / 64);
        let again = RingFile::open_or_make(&set).expect("found");
        assert_eq!(again.header().newest_seq.load(Ordering::SeqCst), 42);
        assert_eq!(again.primary(), set.settings.primary.as_os_str().as_bytes());
        let mode = set.file("ring").metadata().expect("the link leads somewhere").mode();
        assert_eq!(mode & 0o777, 0o600);
        remove_ring(&set).expect("removed");
        assert!(!set.file("ring").exists());
    }

    #[test]
    fn a_ring_of_another_version_is_refused_while_it_is_in_use() {
        let (_dir, set) = fixture();
        let ring = RingFile::open_or_make(&set).expect("made");
        ring.header().version.store(journal::layout::VERSION + 1, Ordering::SeqCst);
        assert!(matches!(RingFile::open_or_make(&set), Err(RingError::Version { .. })));
        drop(ring);
        assert!(matches!(RingFile::open(&set), Err(RingError::Version { .. })));
        RingFile::open_or_make(&set).expect("made anew");
        remove_ring(&set).expect("removed");
    }

    #[test]
    fn a_ring_whose_primary_was_replaced_is_made_anew_unless_it_is_in_use() {
        let (_dir, set) = fixture();
        let old = RingFile::open_or_make(&set).expect("made");
        old.header().newest_seq.store(42, Ordering::SeqCst);
        std::fs::rename(&set.settings.primary, set.settings.primary.with_extension("old")).expect("moved");
        std::fs::create_dir(&set.settings.primary).expect("made");
        assert!(matches!(RingFile::open_or_make(&set), Err(RingError::PrimaryReplaced { .. })));
        drop(old);
        let new = RingFile::open_or_make(&set).expect("made anew");
        assert_eq!(new.header().newest_seq.load(Ordering::SeqCst), 0);
        remove_ring(&set).expect("removed");
    }

    #[test]
    fn a_ring_whose_set_is_gone_is_swept_up_unless_it_is_in_use() {
        let prefix = format!("lockstep-{}-", rustix::process::geteuid().as_raw());
        let (dir, set) = fixture();
        let ring = RingFile::open_or_make(&set).expect("made");
        let path = target(&set).expect("readable").expect("there");
        if !path.starts_with(SHARED_MEMORY) {
            return;
        }
        let note = Note::read(&File::open(&path).expect("ours")).expect("written");
        assert_eq!(note, Note::of(set.dir()).expect("readable"));
        sweep(&prefix);
        assert!(path.exists(), "its set is there");
        drop(dir);
        sweep(&prefix);
        assert!(path.exists(), "it is in use");
        drop(ring);
        sweep(&prefix);
        assert!(!path.exists());
    }

    #[test]
    fn a_half_made_ring_is_made_anew() {
        let (_dir, set) = fixture();
        let ring = RingFile::open_or_make(&set).expect("made");
        ring.header().magic.store(0, Ordering::SeqCst);
        drop(ring);
        RingFile::open_or_make(&set).expect("made anew");
        remove_ring(&set).expect("removed");
    }
}
