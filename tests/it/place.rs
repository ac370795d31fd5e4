//! Where and as whom a test runs: the kind of file system, the user, and the directory made for it.

use std::fmt;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The kind of file system under primary and mirrors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4 where a temporary directory lies on one, else whatever the temporary directory lies on.
    Disk,
    Tmpfs,
    Overlay,
}

/// The user that runs programs and the replayer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    Root,
    Ordinary,
}

/// One combination of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub file_system: FileSystem,
    pub user: User,
}

/// `nobody`: a user that every system knows by name, which initdb insists on.
const ORDINARY_ID: u32 = 65534;

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} as {:?}", self.file_system, self.user)
    }
}

impl Place {
    /// The disk, as the user who runs the tests.
    pub fn everyday() -> Self {
        Self { file_system: FileSystem::Disk, user: if is_root() { User::Root } else { User::Ordinary } }
    }

    /// The user id to become, if it is not ours.
    pub fn switch_to(self) -> Option<u32> {
        (is_root() && self.user == User::Ordinary).then_some(ORDINARY_ID)
    }

    /// Makes a directory of this kind.
    ///
    /// # Errors
    /// Why this machine cannot.
    pub fn make(self) -> Result<Ground, String> {
        if self.user == User::Root && !is_root() {
            return Err("needs root".into());
        }
        let holder_in = match self.file_system {
            FileSystem::Disk | FileSystem::Overlay => disk_directory(),
            FileSystem::Tmpfs => tmpfs_directory().ok_or("no tmpfs here")?,
        };
        let holder = tempfile::Builder::new().prefix("lockstep-test-").tempdir_in(&holder_in);
        let holder = holder.map_err(|error| format!("cannot make a directory in {}: {error}", holder_in.display()))?;
        set_mode(holder.path(), 0o755);
        let mut ground = Ground { path: holder.path().to_owned(), mounted: false, holder: Some(holder) };
        if self.file_system == FileSystem::Overlay {
            ground.mount_overlay()?;
        }
        if let Some(id) = self.switch_to() {
            chown(&ground.path, Some(id), Some(id)).map_err(|error| format!("chown: {error}"))?;
        }
        Ok(ground)
    }
}

/// A directory that goes away with this value, unmounted first if it was mounted.
pub struct Ground {
    pub path: PathBuf,
    mounted: bool,
    holder: Option<tempfile::TempDir>,
}

impl Ground {
    fn mount_overlay(&mut self) -> Result<(), String> {
        if !is_root() {
            return Err("mounting an overlay needs root".into());
        }
        let holder = self.path.clone();
        for name in ["lower", "upper", "work", "tree"] {
            std::fs::create_dir(holder.join(name)).map_err(|error| format!("mkdir: {error}"))?;
            set_mode(&holder.join(name), 0o755);
        }
        // Files of the lower layer: changing them moves them to the upper one.
        let below = holder.join("lower/below");
        std::fs::create_dir(&below).map_err(|error| format!("mkdir: {error}"))?;
        for name in ["written", "renamed", "truncated", "moded"] {
            std::fs::write(below.join(name), name.repeat(3000)).map_err(|error| format!("write: {error}"))?;
        }
        let options = format!(
            "lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work",
            holder.to_str().ok_or("a temporary directory with an odd name")?
        );
        self.path = holder.join("tree");
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "lockstep-test", "-o", &options]).arg(&self.path);
        let mount = mount.output().map_err(|error| format!("mount: {error}"))?;
        if !mount.status.success() {
            return Err(format!("cannot mount an overlay: {}", String::from_utf8_lossy(&mount.stderr).trim()));
        }
        self.mounted = true;
        Ok(())
    }
}

impl Ground {
    /// Leaves everything where it is, for a person to look at.
    pub fn keep(&mut self) {
        self.mounted = false;
        let _path = self.holder.take().map(tempfile::TempDir::keep);
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if self.mounted {
            // A process that is just ending may still hold it, so the mount is detached and goes when that has gone.
            let _told_by_the_next_lines = Command::new("umount").arg("--lazy").arg(&self.path).status();
        }
        if let Some(holder) = self.holder.take() {
            clear_flags(holder.path());
            let _left_for_the_temporary_cleaner = holder.close();
        }
    }
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether every test is to run everywhere.
pub fn everything() -> bool {
    std::env::var_os("LOCKSTEP_FULL").is_some_and(|value| value == "1")
}

/// Tells that a test, or a part of one, did not run. In CI nothing may be skipped.
pub fn skip(what: &str, why: &str) {
    // Past the test harness's capture of output, so that plain `cargo test` shows it.
    use std::io::Write;
    let _closed_stderr = writeln!(std::io::stderr(), "skipped: {what}: {why}");
    assert!(std::env::var_os("CI").is_none(), "{what} was skipped in CI: {why}");
}

/// A directory on a disk: on ext4 if one of the usual places lies there.
pub fn disk_directory() -> PathBuf {
    const EXT4: i64 = 0xef53;
    let mut candidates: Vec<PathBuf> = std::env::var_os("LOCKSTEP_TEST_DIR").map(PathBuf::from).into_iter().collect();
    candidates.extend([std::env::temp_dir(), "/var/tmp".into(), env!("CARGO_TARGET_TMPDIR").into()]);
    let on_ext4 = |path: &PathBuf| rustix::fs::statfs(path).is_ok_and(|found| found.f_type == EXT4);
    candidates.iter().find(|path| on_ext4(path)).or(candidates.first()).cloned().expect("there is one candidate")
}

fn tmpfs_directory() -> Option<PathBuf> {
    const TMPFS: i64 = 0x0102_1994;
    let candidates = [PathBuf::from("/dev/shm"), std::env::temp_dir(), PathBuf::from("/run/user/0")];
    candidates.into_iter().find(|path| rustix::fs::statfs(path).is_ok_and(|found| found.f_type == TMPFS))
}

pub fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    let set = std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    set.unwrap_or_else(|error| panic!("cannot set the mode of {}: {error}", path.display()));
}

/// Takes the immutable and append-only flags away, which would keep a tree from being removed.
fn clear_flags(path: &Path) {
    let _not_every_file_system = Command::new("chattr")
        .args(["-R", "-f", "-i", "-a"])
        .arg(path)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status();
}
