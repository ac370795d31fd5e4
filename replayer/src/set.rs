//! A set on disk: the directory that belongs to one primary and its mirrors, with its settings and its locks.
//!
//! Everything of a set follows from the state directory and the set's name, so two state directories never meet.
//! Settings are changed under a lock and replaced as a whole; a reader sees the old ones or the new ones.

use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The state directory of a user: holds every set.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
}

/// One primary with its mirrors, as it is in the state directory.
#[derive(Clone, Debug)]
pub struct Set {
    state_dir: PathBuf,
    dir: PathBuf,
    /// What `set.toml` said when it was last read.
    pub settings: Settings,
}

/// What `set.toml` holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The set's name, which is also its directory's.
    pub name: String,
    /// Random, 32 hexadecimal digits: tells this set from another of the same name in the identities of mirrors.
    pub uuid: String,
    /// Canonical path of the primary.
    #[serde(with = "path_text")]
    pub primary: PathBuf,
    /// Generation (SPEC.md, "Words"), from 1.
    pub generation: u64,
    /// Bytes of the ring's data area, a power of two.
    pub ring_bytes: u64,
    /// What to do when a mirror can't hold an owner.
    #[serde(default)]
    pub owner: OwnerPolicy,
    /// The mirrors, in the order in which they were added.
    #[serde(default)]
    pub mirrors: Vec<MirrorSettings>,
}

/// A mirror as `set.toml` names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorSettings {
    /// Its name, unique in the set.
    pub name: String,
    /// As the user gave it, made absolute.
    pub spec: String,
    /// Canonical path of its root.
    #[serde(with = "path_text")]
    pub path: PathBuf,
    /// Random, never 0, below 2^63 (what TOML can hold): names its cursor in the ring and its identity on disk.
    pub id: u64,
    /// True while the user wants nothing to be applied.
    #[serde(default)]
    pub paused: bool,
    /// True when it was added with `--adopt`: the first sync may keep, overwrite and delete what was there.
    #[serde(default)]
    pub adopted: bool,
}

/// What happens when a mirror refuses an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OwnerPolicy {
    /// The mirror is in trouble.
    Strict,
    /// The mirror goes on and says so in its `limits`.
    #[default]
    Warn,
    /// As `Warn`, and the owner is kept in an extended attribute.
    Record,
}

/// Who a mirror belongs to: `.lockstep/identity.json` at its root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Name of the set.
    pub set: String,
    /// [`Settings::uuid`].
    pub uuid: String,
    /// Generation that the mirror belongs to.
    pub generation: u64,
    /// [`MirrorSettings::id`].
    pub mirror: u64,
}

/// The one reserved name at a mirror's root.
pub const IDENTITY_DIR: &str = ".lockstep";
const IDENTITY_FILE: &str = "identity.json";

/// Longest name of a set; leaves room for the socket in most state directories.
const NAME_BYTES_MAX: usize = 64;

/// Why a set can't be found, read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetError {
    /// Neither flag nor environment says where the state directory is.
    #[error(
        "cannot find a state directory: none of LOCKSTEP_STATE_DIR, XDG_STATE_HOME and HOME is set\nname one: --state-dir DIR"
    )]
    NoStateDir,
    /// The state directory could be changed by somebody else.
    #[error("cannot use the state directory {path:?}: {reason}\n{hint}")]
    StateDirUnsafe {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        hint: String,
    },
    /// A name that can't be one.
    #[error(
        "{name:?} cannot be the name of a set: a name has 1 to 64 letters, digits, '.', '_' or '-', and begins with a letter, a digit or '_'"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// `set.toml` or `identity.json` can't be understood.
    #[error("cannot read {path:?}: {reason}")]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        reason: String,
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

/// Held by a replayer for life: only one for a set.
#[derive(Debug)]
pub struct ReplayerLock {
    _file: File,
}

/// Held while sets are made or changed.
#[derive(Debug)]
pub struct ChangeLock {
    _file: File,
}

/// A path under which a socket can be bound or reached although its own path may be too long.
#[derive(Debug)]
pub struct SocketAddress {
    path: PathBuf,
    _dir: Option<OwnedFd>,
}

impl StateDir {
    /// Where the state directory is, whether it exists or not: the flag, else the environment.
    ///
    /// # Errors
    /// `NoStateDir` if nothing says so, `Io` if the current directory is gone and the path is relative.
    pub fn locate(flag: Option<&Path>) -> Result<PathBuf, SetError> {
        let path = flag
            .map(Path::to_path_buf)
            .or_else(|| variable("LOCKSTEP_STATE_DIR"))
            .or_else(Self::usual)
            .ok_or(SetError::NoStateDir)?;
        std::path::absolute(&path).map_err(|source| SetError::Io { what: "find the state directory", path, source })
    }

    /// Where the state directory is when nobody says otherwise. The library looks there too.
    pub fn usual() -> Option<PathBuf> {
        variable("XDG_STATE_HOME")
            .filter(|home| home.is_absolute())
            .map(|home| home.join("lockstep"))
            .or_else(|| variable("HOME").map(|home| home.join(".local/state/lockstep")))
    }

    /// Opens the state directory if there is one.
    ///
    /// # Errors
    /// `StateDirUnsafe` if it belongs to somebody else or others may write to it.
    pub fn open(flag: Option<&Path>) -> Result<Option<Self>, SetError> {
        let path = Self::locate(flag)?;
        match path.canonicalize() {
            Ok(path) => Self::checked(path).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(SetError::Io { what: "open the state directory", path, source }),
        }
    }

    /// Opens the state directory, making it (mode 0700) if need be.
    ///
    /// # Errors
    /// As [`Self::open`], and `Io` if it can't be made.
    pub fn open_or_make(flag: Option<&Path>) -> Result<Self, SetError> {
        let path = Self::locate(flag)?;
        make_private_dir(&path)?;
        let path =
            path.canonicalize().map_err(|source| SetError::Io { what: "open the state directory", path, source })?;
        let state = Self::checked(path)?;
        make_private_dir(&state.path.join("sets"))?;
        Ok(state)
    }

    /// Its canonical path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the lock under which sets are made and mirrors added; blocks while another command has it.
    ///
    /// # Errors
    /// `Io` if the lock file can't be made.
    pub fn lock(&self) -> Result<ChangeLock, SetError> {
        let path = self.path.join("sets/lock");
        Ok(ChangeLock { _file: lock_file(&path, FlockOperation::LockExclusive)?.expect("a blocking lock is granted") })
    }

    /// Every set, by name.
    ///
    /// # Errors
    /// `Io` or `Syntax`, naming the file.
    pub fn sets(&self) -> Result<Vec<Set>, SetError> {
        let dir = self.path.join("sets");
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(SetError::Io { what: "list", path: dir, source }),
        };
        let mut sets = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| SetError::Io { what: "list", path: dir.clone(), source })?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| check_name(name).is_ok()) else { continue };
            sets.extend(self.set(name)?);
        }
        sets.sort_by(|a, b| a.settings.name.cmp(&b.settings.name));
        Ok(sets)
    }

    /// The set of this name, if there is one.
    ///
    /// # Errors
    /// `Name`, `Io` or `Syntax`.
    pub fn set(&self, name: &str) -> Result<Option<Set>, SetError> {
        check_name(name)?;
        let dir = self.path.join("sets").join(name);
        let path = dir.join("set.toml");
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let settings = parse(&path, &text)?;
                Ok(Some(Set { state_dir: self.path.clone(), dir, settings }))
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(source) => Err(SetError::Io { what: "read", path, source }),
        }
    }

    /// Makes a set. The caller holds [`Self::lock`] and has seen that there is none of this name or primary.
    ///
    /// # Errors
    /// `Name` or `Io`.
    pub fn make_set(&self, settings: Settings) -> Result<Set, SetError> {
        check_name(&settings.name)?;
        make_private_dir(&self.path.join("sets"))?;
        let dir = self.path.join("sets").join(&settings.name);
        make_private_dir(&dir)?;
        let set = Set { state_dir: self.path.clone(), dir, settings };
        set.store()?;
        Ok(set)
    }

    fn checked(path: PathBuf) -> Result<Self, SetError> {
        let data = path.metadata().map_err(|source| SetError::Io {
            what: "examine the state directory",
            path: path.clone(),
            source,
        })?;
        let quoted = path.display().to_string();
        let (reason, hint) = if !data.is_dir() {
            ("it is not a directory".to_owned(), "name a directory: --state-dir DIR".to_owned())
        } else if data.uid() != rustix::process::geteuid().as_raw() {
            (format!("it belongs to user {}", data.uid()), "name one of your own: --state-dir DIR".to_owned())
        } else if data.mode() & 0o022 != 0 {
            (format!("others may write to it (mode {:04o})", data.mode() & 0o7777), format!("run: chmod 700 {quoted}"))
        } else {
            return Ok(Self { path });
        };
        Err(SetError::StateDirUnsafe { path, reason, hint })
    }
}

impl Set {
    /// The set's name.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// The set's directory, `<state>/sets/<NAME>`.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The state directory that the set is in.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// A file of the set by its name: `ring`, `control`, `replayer.log`, …
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Reads the settings again.
    ///
    /// # Errors
    /// `Io` or `Syntax`; the old settings stay.
    pub fn reload(&mut self) -> Result<(), SetError> {
        let path = self.dir.join("set.toml");
        let text = std::fs::read_to_string(&path).map_err(|source| SetError::Io {
            what: "read",
            path: path.clone(),
            source,
        })?;
        self.settings = parse(&path, &text)?;
        Ok(())
    }

    /// Changes the settings as they are on disk now, under their lock, and makes the change durable.
    ///
    /// # Errors
    /// What `change` answers, in which case nothing is stored; `Io` or `Syntax`.
    pub fn change<T, E: From<SetError>>(&mut self, change: impl FnOnce(&mut Settings) -> Result<T, E>) -> Result<T, E> {
        let _lock = lock_file(&self.dir.join("settings.lock"), FlockOperation::LockExclusive)?;
        self.reload()?;
        let mut changed = self.clone();
        let answer = change(&mut changed.settings)?;
        if changed.settings != self.settings {
            changed.store()?;
        }
        *self = changed;
        Ok(answer)
    }

    /// The mirror that `which` names: its name, spec or path.
    pub fn mirror(&self, which: &str) -> Option<&MirrorSettings> {
        let mirrors = &self.settings.mirrors;
        let path = Path::new(which).canonicalize().ok();
        mirrors
            .iter()
            .find(|mirror| mirror.name == which)
            .or_else(|| mirrors.iter().find(|mirror| mirror.spec == which || mirror.path == Path::new(which)))
            .or_else(|| mirrors.iter().find(|mirror| path.as_ref() == Some(&mirror.path)))
    }

    /// Takes the lock that makes this process the set's replayer; `None` if another one has it.
    ///
    /// # Errors
    /// `Io` if the lock file can't be made.
    pub fn lock_replayer(&self) -> Result<Option<ReplayerLock>, SetError> {
        // Whoever only asks whether it is free holds it for an instant.
        for _ in 0..50 {
            if let Some(file) = lock_file(&self.dir.join("lock"), FlockOperation::NonBlockingLockExclusive)? {
                return Ok(Some(ReplayerLock { _file: file }));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(None)
    }

    /// True when no replayer has the lock: none serves the set, starts or ends.
    ///
    /// # Errors
    /// `Io` if the lock file can't be made.
    pub fn has_no_replayer(&self) -> Result<bool, SetError> {
        Ok(lock_file(&self.dir.join("lock"), FlockOperation::NonBlockingLockExclusive)?.is_some())
    }

    /// Where the replayer's control socket is.
    ///
    /// # Errors
    /// `Io` if the set's directory can't be opened.
    pub fn control_address(&self) -> Result<SocketAddress, SetError> {
        SocketAddress::new(&self.dir, "control")
    }

    /// The identity that `mirror` must carry at its root.
    pub fn identity(&self, mirror: &MirrorSettings) -> Identity {
        Identity {
            set: self.settings.name.clone(),
            uuid: self.settings.uuid.clone(),
            generation: self.settings.generation,
            mirror: mirror.id,
        }
    }

    fn store(&self) -> Result<(), SetError> {
        let path = self.dir.join("set.toml");
        let text = toml::to_string(&self.settings)
            .map_err(|error| SetError::Syntax { path: path.clone(), reason: error.to_string() })?;
        replace_file(&path, text.as_bytes(), 0o600)
    }
}

impl Settings {
    /// Settings of a new set of `primary` (canonical), without mirrors.
    pub fn new(name: String, primary: PathBuf, ring_bytes: u64) -> Self {
        let uuid = format!("{:016x}{:016x}", random(), random());
        Self { name, uuid, primary, generation: 1, ring_bytes, owner: OwnerPolicy::default(), mirrors: Vec::new() }
    }
}

impl MirrorSettings {
    /// Settings of a new mirror at `path` (canonical), named after its last component and unlike those in `taken`.
    pub fn new(spec: String, path: PathBuf, taken: &[Self]) -> Self {
        let base = path.file_name().map_or_else(|| "root".into(), |name| name.to_string_lossy().into_owned());
        let base: String = base.chars().map(|c| if c.is_control() || c == '/' { '_' } else { c }).collect();
        let free = |name: &String| taken.iter().all(|mirror| mirror.name != *name);
        let name = std::iter::once(base.clone())
            .chain((2u32..).map(|number| format!("{base}-{number}")))
            .find(free)
            .expect("a set has fewer mirrors than there are numbers");
        Self { name, spec, path, id: (random() >> 1).max(1), paused: false, adopted: false }
    }
}

impl Identity {
    /// Reads the identity at `root`; `None` when there is none.
    ///
    /// # Errors
    /// `Io`, or `Syntax` if the file is not an identity.
    pub fn read(root: &Path) -> Result<Option<Self>, SetError> {
        let path = root.join(IDENTITY_DIR).join(IDENTITY_FILE);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let text = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(file) => io::read_to_string(File::from(file)),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
            Err(error) => Err(error.into()),
        };
        let text = text.map_err(|source| SetError::Io { what: "read", path: path.clone(), source })?;
        let identity =
            serde_json::from_str(&text).map_err(|error| SetError::Syntax { path, reason: error.to_string() })?;
        Ok(Some(identity))
    }

    /// Writes the identity below `root`, making `.lockstep` (0700) if need be.
    ///
    /// # Errors
    /// `Io`.
    pub fn write(&self, root: &Path) -> Result<(), SetError> {
        let dir = root.join(IDENTITY_DIR);
        match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(SetError::Io { what: "make", path: dir, source: error });
            }
            _ => {}
        }
        let mut text = serde_json::to_string(self).expect("an identity is plain text and numbers");
        text.push('\n');
        replace_file(&dir.join(IDENTITY_FILE), text.as_bytes(), 0o600)
    }
}

impl SocketAddress {
    /// The address of the socket `name` in `dir`. sockaddr_un holds 107 bytes; a longer path is reached through the
    /// descriptor of its directory.
    ///
    /// # Errors
    /// `Io` if `dir` can't be opened.
    pub fn new(dir: &Path, name: &str) -> Result<Self, SetError> {
        let path = dir.join(name);
        if path.as_os_str().len() < 108 {
            return Ok(Self { path, _dir: None });
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(dir, flags, Mode::empty()).map_err(|error| SetError::Io {
            what: "open",
            path: dir.to_path_buf(),
            source: error.into(),
        })?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", std::os::fd::AsRawFd::as_raw_fd(&opened)));
        Ok(Self { path, _dir: Some(opened) })
    }

    /// Makes the socket, for this user alone. One that is left over has nobody behind it: the caller holds the
    /// replayer's lock.
    ///
    /// # Errors
    /// `Io` with what failed.
    pub fn listen(&self) -> Result<UnixListener, SetError> {
        let failed = |what| move |source| SetError::Io { what, path: self.path.clone(), source };
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove")(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&self.path).map_err(failed("make the socket"))?;
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&self.path, private).map_err(failed("make private"))?;
        Ok(listener)
    }

    /// What bind(2) and connect(2) take. Valid while `self` lives.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Checks that a set can have this name: it becomes a directory's and part of a line in logs and mails.
///
/// # Errors
/// `Name`.
pub fn check_name(name: &str) -> Result<(), SetError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let begins_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if begins_well && name.len() <= NAME_BYTES_MAX && name.bytes().all(allowed) && name != "lock" {
        Ok(())
    } else {
        Err(SetError::Name { name: name.to_owned() })
    }
}

/// The name of a set whose user gave none: the primary's last component, readable, and a hash of its whole path.
pub fn default_name(primary: &Path) -> String {
    let last = primary.file_name().unwrap_or_default().to_string_lossy();
    let mut name: String = last.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).collect();
    name.truncate(32);
    let name = name.trim_matches('-');
    let name = if name.is_empty() { "root" } else { name };
    format!("{name}-{:08x}", fnv1a(primary.as_os_str().as_bytes()) as u32)
}

/// The FNV-1a hash: for names that must be the same in every version, never for safety.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// A random number from the kernel.
pub fn random() -> u64 {
    let mut bytes = [0; 8];
    let file = File::open("/dev/urandom").and_then(|mut file| io::Read::read_exact(&mut file, &mut bytes));
    file.expect("every Linux has /dev/urandom, and it never fails or ends");
    u64::from_ne_bytes(bytes)
}

/// Replaces a file as a whole and durably: written beside it, synced, renamed over it, its directory synced.
///
/// # Errors
/// `Io`; the old file stays.
pub fn replace_file(path: &Path, content: &[u8], mode: u32) -> Result<(), SetError> {
    let fail = |source| SetError::Io { what: "write", path: path.to_path_buf(), source };
    let dir = path.parent().expect("a file lies in a directory");
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{:x}.new", random()));
    let temporary = PathBuf::from(temporary);
    let write = || -> io::Result<()> {
        let mut file = File::options().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        fail(error)
    })
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn parse(path: &Path, text: &str) -> Result<Settings, SetError> {
    toml::from_str(text)
        .map_err(|error| SetError::Syntax { path: path.to_path_buf(), reason: error.to_string().trim_end().to_owned() })
}

fn make_private_dir(path: &Path) -> Result<(), SetError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let made = std::fs::create_dir_all(parent).and_then(|()| std::fs::DirBuilder::new().mode(0o700).create(path));
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(SetError::Io { what: "make the directory", path: path.to_path_buf(), source: error })
        }
        _ => Ok(()),
    }
}

/// Opens and locks a lock file; `None` when the lock is held elsewhere and `operation` doesn't block.
fn lock_file(path: &Path, operation: FlockOperation) -> Result<Option<File>, SetError> {
    let fail = |source| SetError::Io { what: "lock", path: path.to_path_buf(), source };
    let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(path).map_err(fail)?;
    loop {
        match rustix::fs::flock(&file, operation) {
            Ok(()) => return Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(fail(error.into())),
        }
    }
}

/// Paths in TOML: text where they are text, else a list of their bytes.
mod path_text {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Spelled {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        let spelled = match path.to_str() {
            Some(text) => Spelled::Text(text.to_owned()),
            None => Spelled::Bytes(path.as_os_str().as_bytes().to_vec()),
        };
        spelled.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        Ok(match Spelled::deserialize(deserializer)? {
            Spelled::Text(text) => text.into(),
            Spelled::Bytes(bytes) => OsString::from_vec(bytes).into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::fs::PermissionsExt;

    fn state() -> (tempfile::TempDir, StateDir) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let state = StateDir::open_or_make(Some(&dir.path().join("state"))).expect("a state directory");
        (dir, state)
    }

    #[test]
    fn default_name_is_readable_and_differs_for_equal_last_components() {
        let one = default_name(Path::new("/srv/a/data"));
        let other = default_name(Path::new("/srv/b/data"));
        assert!(one.starts_with("data-"));
        assert_ne!(one, other);
        assert_eq!(one, default_name(Path::new("/srv/a/data")));
    }

    #[test]
    fn default_name_is_always_a_legal_name() {
        let long = format!("/{}", "x".repeat(255));
        let paths: [&OsStr; 6] = [
            "/".as_ref(),
            "/a b".as_ref(),
            "/-x".as_ref(),
            "/...".as_ref(),
            long.as_ref(),
            OsStr::from_bytes(b"/\xff\n"),
        ];
        for path in paths {
            check_name(&default_name(Path::new(path))).expect("legal");
        }
    }

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        for name in ["", ".", "..", "../x", "a/b", ".hidden", "-x", "a b", "é", "lock", &"n".repeat(65)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        for name in ["a", "A-1", "my.set", "_x"] {
            check_name(name).expect(name);
        }
    }

    #[test]
    fn settings_survive_the_disk_with_names_that_are_not_text() {
        let (_dir, state) = state();
        let primary = PathBuf::from(OsStr::from_bytes(b"/srv/\xff\xfe"));
        let mut set = state.make_set(Settings::new("s".into(), primary.clone(), 1 << 20)).expect("made");
        set.change::<_, SetError>(|settings| {
            settings.mirrors.push(MirrorSettings::new("/m".into(), "/m".into(), &[]));
            Ok(())
        })
        .expect("changed");
        let read = state.set("s").expect("readable").expect("there");
        assert_eq!(read.settings, set.settings);
        assert_eq!(read.settings.primary, primary);
        assert_eq!(read.settings.mirrors.len(), 1);
        assert_eq!(state.sets().expect("listed").len(), 1);
    }

    #[test]
    fn a_change_that_fails_stores_nothing() {
        let (_dir, state) = state();
        let mut set = state.make_set(Settings::new("s".into(), "/p".into(), 1 << 20)).expect("made");
        let before = set.settings.clone();
        let answer: Result<(), SetError> = set.change(|settings| {
            settings.generation = 7;
            Err(SetError::NoStateDir)
        });
        assert!(answer.is_err());
        set.reload().expect("readable");
        assert_eq!(set.settings, before);
    }

    #[test]
    fn mirrors_are_named_after_their_last_component() {
        let first = MirrorSettings::new("/a/m".into(), "/a/m".into(), &[]);
        let second = MirrorSettings::new("/b/m".into(), "/b/m".into(), std::slice::from_ref(&first));
        let third = MirrorSettings::new("/c/m".into(), "/c/m".into(), &[first.clone(), second.clone()]);
        assert_eq!([&*first.name, &*second.name, &*third.name], ["m", "m-2", "m-3"]);
        assert_ne!(first.id, second.id);
    }

    #[test]
    fn a_mirror_is_found_by_name_spec_or_path() {
        let (dir, state) = state();
        let mut set = state.make_set(Settings::new("s".into(), "/p".into(), 1 << 20)).expect("made");
        let root = dir.path().join("m").canonicalize().unwrap_or_else(|_| dir.path().join("m"));
        std::fs::create_dir(&root).expect("made");
        let root = root.canonicalize().expect("there");
        set.settings.mirrors.push(MirrorSettings::new("/spelled/otherwise".into(), root.clone(), &[]));
        for which in ["m", "/spelled/otherwise", root.to_str().expect("text")] {
            assert!(set.mirror(which).is_some(), "{which}");
        }
        assert!(set.mirror("n").is_none());
    }

    #[test]
    fn a_state_directory_that_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).expect("allowed");
        let error = StateDir::open_or_make(Some(dir.path())).expect_err("refused");
        assert!(error.to_string().contains("chmod 700"), "{error}");
    }

    #[test]
    fn only_one_replayer_gets_the_lock() {
        let (_dir, state) = state();
        let set = state.make_set(Settings::new("s".into(), "/p".into(), 1 << 20)).expect("made");
        let held = set.lock_replayer().expect("no trouble").expect("free");
        assert!(set.lock_replayer().expect("no trouble").is_none());
        assert!(!set.has_no_replayer().expect("no trouble"));
        drop(held);
        assert!(set.has_no_replayer().expect("no trouble"));
        assert!(set.lock_replayer().expect("no trouble").is_some());
    }

    #[test]
    fn an_identity_is_read_back_and_its_directory_is_private() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(Identity::read(dir.path()).expect("no trouble"), None);
        let identity = Identity { set: "s".into(), uuid: "u".into(), generation: 1, mirror: 7 };
        identity.write(dir.path()).expect("written");
        assert_eq!(Identity::read(dir.path()).expect("readable"), Some(identity));
        let mode = dir.path().join(IDENTITY_DIR).metadata().expect("there").mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_socket_deep_below_is_reached_by_a_short_path() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let deep = dir.path().join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(&deep).expect("made");
        let address = SocketAddress::new(&deep, "control").expect("opened");
        let _listener = std::os::unix::net::UnixListener::bind(address.path()).expect("bound");
        assert!(deep.join("control").exists());
        let again = SocketAddress::new(&deep, "control").expect("opened");
        std::os::unix::net::UnixStream::connect(again.path()).expect("connected");
    }
}
