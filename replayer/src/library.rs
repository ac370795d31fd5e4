//! The preload library: carried inside this binary, written once per version to where programs can load it.
//!
//! A place serves if its path can stand in LD_PRELOAD, if nobody else can write there, and if a file there can be
//! mapped executable, which is tried rather than guessed: noexec mounts and security modules both say no.
//!
//! # Safety
//! The one unsafe step maps a file executable to learn whether that is allowed; the mapping is never read or called.
#![allow(unsafe_code)]

use crate::set::{fnv1a, random};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

static CONTENT: &[u8] = include_bytes!(env!("LOCKSTEP_LIBRARY"));

/// No place can hold the library.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot write the preload library to any place from which programs could load it:{}\nname a directory of yours on a file system without noexec: XDG_CACHE_HOME=DIR",
    .0.iter().map(|(place, reason)| format!("\n  {}: {reason}", place.display())).collect::<String>()
)]
pub struct NoPlace(Vec<(PathBuf, String)>);

/// Path of the library, written if it isn't there yet: in the cache, state or runtime directory, else in a directory
/// for temporary files; only where `allowed`.
///
/// # Errors
/// [`NoPlace`], with the reason for each place.
pub fn install(state_dir: &Path, allowed: impl Fn(&Path) -> bool) -> Result<PathBuf, NoPlace> {
    let from = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let private = format!("lockstep-{}", rustix::process::geteuid().as_raw());
    let cache = from("XDG_CACHE_HOME").or_else(|| from("HOME").map(|home| home.join(".cache")));
    let places = [
        cache.map(|dir| dir.join("lockstep")),
        Some(state_dir.join("lib")),
        from("XDG_RUNTIME_DIR").map(|dir| dir.join("lockstep")),
        Some(Path::new("/var/tmp").join(&private)),
        Some(Path::new("/tmp").join(&private)),
    ];
    let mut refused = Vec::new();
    for place in places.into_iter().flatten() {
        if !allowed(&place) {
            refused.push((place, "it lies inside the primary or a mirror".to_owned()));
            continue;
        }
        match install_in(&place, CONTENT) {
            Ok(path) => return Ok(path),
            Err(reason) => refused.push((place, reason)),
        }
    }
    Err(NoPlace(refused))
}

/// True when `path` is a library that this command, of this or another version, has written.
pub fn is_ours(path: &[u8]) -> bool {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    name.starts_with(b"liblockstep_shim")
}

fn install_in(dir: &Path, content: &[u8]) -> Result<PathBuf, String> {
    // ld.so splits LD_PRELOAD at colons and spaces and expands dollar tokens, and nothing quotes them.
    if dir.as_os_str().as_bytes().iter().any(|byte| matches!(byte, b':' | b' ' | b'\t' | b'\n' | b'$')) {
        return Err("its path cannot stand in LD_PRELOAD (it has a colon, a space or a dollar sign)".into());
    }
    let parent = dir.parent().ok_or("it has no parent")?;
    std::fs::create_dir_all(parent).map_err(|error| error.to_string())?;
    match std::fs::DirBuilder::new().mode(0o755).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.to_string()),
        _ => {}
    }
    let data = dir.symlink_metadata().map_err(|error| error.to_string())?;
    if !data.is_dir() || !is_private(&data) {
        return Err("it is not a directory of yours that only you can write to".into());
    }
    let path = dir.join(format!("liblockstep_shim-{:016x}.so", fnv1a(content)));
    let file = match open_if_right(&path, content) {
        Some(file) => file,
        None => write(&path, content).map_err(|error| error.to_string())?,
    };
    // SAFETY: the file is ours, complete, and never changed in place; the mapping is dropped at once, unread.
    match unsafe { memmap2::MmapOptions::new().map_exec(&file) } {
        Ok(_) => Ok(path),
        Err(error) => {
            // What can't serve is not left lying about.
            let _ = std::fs::remove_file(&path);
            Err(format!("a file there cannot be mapped executable: {error}"))
        }
    }
}

fn is_private(data: &std::fs::Metadata) -> bool {
    data.uid() == rustix::process::geteuid().as_raw() && data.mode() & 0o022 == 0
}

/// The file at `path`, if it is ours and holds exactly `content`.
fn open_if_right(path: &Path, content: &[u8]) -> Option<File> {
    let mut file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).ok()?;
    let data = file.metadata().ok()?;
    if !data.is_file() || !is_private(&data) || data.len() != content.len() as u64 {
        return None;
    }
    let mut there = Vec::with_capacity(content.len());
    file.read_to_end(&mut there).ok()?;
    (there == content).then_some(file)
}

/// Writes the library beside its place and renames it there: a program that starts now sees all of it or none.
fn write(path: &Path, content: &[u8]) -> io::Result<File> {
    let temporary = path.with_extension(format!("{:x}.new", random()));
    let written = || {
        let mut file = File::options().read(true).write(true).create_new(true).mode(0o644).open(&temporary)?;
        file.write_all(content)?;
        // Other users that a program becomes may load it, whatever the umask.
        file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
        std::fs::rename(&temporary, path)?;
        // Reopened, because a file that is open for writing can't be executed.
        File::open(path)
    };
    written().inspect_err(|_| {
        let _ = std::fs::remove_file(&temporary);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_an_elf_file() {
        assert_eq!(&CONTENT[..4], b"\x7fELF");
    }

    #[test]
    fn it_is_written_once_and_repaired_when_changed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let place = dir.path().join("cache/lockstep");
        let path = install_in(&place, b"library").expect("written");
        let first = path.metadata().expect("there");
        assert_eq!(first.mode() & 0o777, 0o644);
        assert_eq!(install_in(&place, b"library").expect("found"), path);
        assert_eq!(path.metadata().expect("there").ino(), first.ino());
        std::fs::write(&path, b"somethi").expect("changed");
        install_in(&place, b"library").expect("repaired");
        assert_eq!(std::fs::read(&path).expect("readable"), b"library");
        assert_ne!(install_in(&place, b"another").expect("written"), path);
        assert!(is_ours(path.as_os_str().as_bytes()));
    }

    #[test]
    fn a_path_that_ld_so_would_split_or_expand_is_not_used() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for name in ["a b", "a:b", "$LIB"] {
            assert!(install_in(&dir.path().join(name), b"library").is_err(), "{name}");
            assert!(!dir.path().join(name).exists());
        }
    }

    #[test]
    fn a_place_that_others_may_write_to_is_not_used() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).expect("allowed");
        assert!(install_in(dir.path(), b"library").is_err());
    }
}
