//! The program that `run` starts: where it is, and whether the library can follow it.
//!
//! Found as execvp(3) finds it, before anything is touched. The library decides the same for every later program; the
//! first one has nobody to do it but us.

use journal::processes::Reason;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Why a program can't be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// There is none.
    #[error("cannot run {program:?}: {reason}\ncheck the name, or give its path")]
    NotFound {
        /// As given.
        program: OsString,
        /// Where it was looked for.
        reason: String,
    },
    /// There is one that can't be executed.
    #[error("cannot run {program:?}: {source}\ncheck that it is a program and that you may execute it")]
    CannotExecute {
        /// As given, or its path.
        program: OsString,
        /// Why.
        source: io::Error,
    },
}

/// Finds `program` as execvp(3) would, in `path` (the variable PATH).
///
/// # Errors
/// `NotFound`, or `CannotExecute` if all that there is under that name may not be executed.
pub fn find(program: &OsStr, path: Option<&OsStr>) -> Result<PathBuf, ProgramError> {
    let not_found = |reason: &str| ProgramError::NotFound { program: program.to_owned(), reason: reason.to_owned() };
    if program.is_empty() {
        return Err(not_found("its name is empty"));
    }
    let with_interpreter = |path: PathBuf| match missing_interpreter(&path) {
        // execve(2) answers as if the script itself were missing, which is hard to understand.
        Some(interpreter) => Err(not_found(&format!("its interpreter {interpreter:?} does not exist"))),
        None => Ok(path),
    };
    if program.as_bytes().contains(&b'/') {
        return match executable(Path::new(program)) {
            Ok(()) => with_interpreter(PathBuf::from(program)),
            Err(error) if is_missing(&error) => Err(not_found(&error.to_string())),
            Err(source) => Err(ProgramError::CannotExecute { program: program.to_owned(), source }),
        };
    }
    // Without PATH, execvp(3) uses this (confstr(3), _CS_PATH).
    let path = path.unwrap_or(OsStr::new("/bin:/usr/bin"));
    let mut refused = None;
    for dir in path.as_bytes().split(|byte| *byte == b':') {
        let dir = if dir.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(dir) };
        let candidate = Path::new(dir).join(program);
        match executable(&candidate) {
            Ok(()) => return with_interpreter(candidate),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => refused = Some((candidate, error)),
            Err(_) => {}
        }
    }
    match refused {
        Some((candidate, source)) => Err(ProgramError::CannotExecute { program: candidate.into(), source }),
        None => Err(not_found("no directory of PATH has it")),
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn executable(path: &Path) -> io::Result<()> {
    let data = path.metadata()?;
    if !data.is_file() {
        // What execve(2) answers for a directory.
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let flags = rustix::fs::AtFlags::EACCESS;
    Ok(rustix::fs::accessat(rustix::fs::CWD, path, rustix::fs::Access::EXEC_OK, flags)?)
}

/// The interpreter that the script at `path` names, if there is no such file.
fn missing_interpreter(path: &Path) -> Option<PathBuf> {
    let mut head = Vec::new();
    File::open(path).ok()?.take(4096).read_to_end(&mut head).ok()?;
    let interpreter = interpreter(&head)?;
    interpreter.metadata().is_err_and(|error| is_missing(&error)).then(|| interpreter.to_path_buf())
}

/// The interpreter that a script's first line names.
fn interpreter(head: &[u8]) -> Option<&Path> {
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let name = line.trim_ascii().split(u8::is_ascii_whitespace).next()?;
    (!name.is_empty()).then(|| Path::new(OsStr::from_bytes(name)))
}

/// Says whether the library would load in the program at `path`, and if not, why.
pub fn classify(path: &Path) -> Reason {
    classify_to_depth(path, 0)
}

/// The kernel follows this many interpreters of interpreters (execve(2)).
const INTERPRETERS_MAX: u32 = 5;

fn classify_to_depth(path: &Path, depth: u32) -> Reason {
    let Ok(mut file) = File::open(path) else {
        // Executable but unreadable: the kernel treats its process as one that may not be looked into.
        return if is_privileged(path) { Reason::Privileged } else { Reason::None };
    };
    let mut head = Vec::new();
    if file.by_ref().take(4096).read_to_end(&mut head).is_err() {
        return Reason::None;
    }
    if let Some(interpreter) = interpreter(&head)
        && depth < INTERPRETERS_MAX
    {
        return classify_to_depth(interpreter, depth + 1);
    }
    if !head.starts_with(b"\x7fELF") {
        // execvp(3) gives it to /bin/sh.
        return Reason::None;
    }
    match examine_elf(path, &mut file, &head) {
        Reason::None if is_privileged(path) => Reason::Privileged,
        reason => reason,
    }
}

/// Set-user-id, set-group-id and file capabilities make the loader ignore preloads, if they change anything.
fn is_privileged(path: &Path) -> bool {
    let Ok(data) = path.metadata() else { return false };
    let user = rustix::process::geteuid().as_raw();
    let other_user = data.mode() & 0o4000 != 0 && data.uid() != user;
    let other_group = data.mode() & 0o2010 == 0o2010 && data.gid() != rustix::process::getegid().as_raw();
    let mut value = [0u8; 64];
    let capable = user != 0 && rustix::fs::getxattr(path, "security.capability", &mut value).is_ok();
    other_user || other_group || capable
}

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const PT_INTERP: u32 = 3;
const PROGRAM_HEADER_BYTES: usize = 56;

/// elf(5): the program header PT_INTERP names the loader; a program without one loads nothing.
fn examine_elf(path: &Path, file: &mut File, head: &[u8]) -> Reason {
    let half = |at: usize| head.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let same_kind = head.get(4) == Some(&CLASS_64) && head.get(5) == Some(&LITTLE_ENDIAN) && half(18) == Some(MACHINE);
    if !same_kind {
        return Reason::OtherArchitecture;
    }
    let (Some(offset), Some(count)) = (word(head, 32), half(56)) else { return Reason::None };
    let mut headers = vec![0; usize::from(count) * PROGRAM_HEADER_BYTES];
    if file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut headers)).is_err() {
        return Reason::None;
    }
    let interpreter = headers.chunks_exact(PROGRAM_HEADER_BYTES).find(|header| header[..4] == PT_INTERP.to_le_bytes());
    let Some(header) = interpreter else {
        return if is_loader(path) { Reason::None } else { Reason::Static };
    };
    let (Some(offset), Some(bytes)) = (word(header, 8), word(header, 32)) else { return Reason::None };
    let mut name = vec![0; bytes.min(4096) as usize];
    if file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut name)).is_err() {
        return Reason::None;
    }
    name.retain(|byte| *byte != 0);
    let loader = PathBuf::from(OsString::from_vec(name));
    let glibc = loader.file_name().is_some_and(|name| name.as_bytes().starts_with(b"ld-linux"));
    // Systems that keep their loader elsewhere (NixOS, Guix) keep its name.
    if glibc { Reason::None } else { Reason::OtherLibc }
}

/// glibc's loader, run as a program (`ld-linux-x86-64.so.2 PROGRAM`), has no loader itself and obeys LD_PRELOAD.
fn is_loader(path: &Path) -> bool {
    let name = |path: &Path| path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"ld-linux"));
    name(path) || path.canonicalize().is_ok_and(|path| name(&path))
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8).map(|b| u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn file(dir: &tempfile::TempDir, name: &str, content: &[u8], mode: u32) -> PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, content).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("allowed");
        path
    }

    #[test]
    fn programs_are_found_as_execvp_finds_them() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let tool = file(&dir, "tool", b"#!/bin/sh\n", 0o755);
        let path = format!("/nonexistent:{}", dir.path().display());
        assert_eq!(find("tool".as_ref(), Some(path.as_ref())).expect("there"), tool);
        assert_eq!(find(tool.as_ref(), None).expect("there"), tool);
        find("sh".as_ref(), None).expect("in the default path");
        for missing in ["", "no-such-program", "/no/such/program"] {
            let error = find(missing.as_ref(), Some(path.as_ref())).expect_err(missing);
            assert!(matches!(error, ProgramError::NotFound { .. }), "{error}");
        }
        let script = file(&dir, "orphan", b"#!/no/such/interpreter\n", 0o755);
        let error = find(script.as_ref(), None).expect_err("no interpreter").to_string();
        assert!(error.contains("/no/such/interpreter"), "{error}");
        let below_file = tool.join("x");
        assert!(matches!(find(below_file.as_ref(), None), Err(ProgramError::NotFound { .. })));
        assert!(matches!(find(dir.path().as_ref(), None), Err(ProgramError::CannotExecute { .. })));
    }

    #[test]
    fn a_file_without_the_bit_cannot_be_executed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let plain = file(&dir, "plain", b"text", 0o644);
        assert!(matches!(find(plain.as_ref(), None), Err(ProgramError::CannotExecute { .. })));
        let path = dir.path().as_os_str();
        assert!(matches!(find("plain".as_ref(), Some(path)), Err(ProgramError::CannotExecute { .. })));
    }

    #[test]
    fn dynamic_programs_and_scripts_can_be_followed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let script = file(&dir, "script", b"#! /bin/sh -e\necho\n", 0o755);
        let bare = file(&dir, "bare", b"echo\n", 0o755);
        let shell = Path::new("/bin/sh");
        for path in [shell, &script, &bare] {
            assert_eq!(classify(path), Reason::None, "{path:?}");
        }
    }

    /// An ELF header with one program header of this kind.
    fn elf(machine: u16, kind: u32, interpreter: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 64 + PROGRAM_HEADER_BYTES];
        bytes[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', CLASS_64, LITTLE_ENDIAN]);
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32..40].copy_from_slice(&64u64.to_le_bytes());
        bytes[56..58].copy_from_slice(&1u16.to_le_bytes());
        bytes[64..68].copy_from_slice(&kind.to_le_bytes());
        bytes[72..80].copy_from_slice(&(64 + PROGRAM_HEADER_BYTES as u64).to_le_bytes());
        bytes[96..104].copy_from_slice(&(interpreter.len() as u64).to_le_bytes());
        bytes.extend_from_slice(interpreter);
        bytes
    }

    #[test]
    fn programs_that_the_library_cannot_enter_are_told_apart() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let cases = [
            (elf(MACHINE, PT_INTERP, b"/lib64/ld-linux-x86-64.so.2\0"), Reason::None),
            (elf(MACHINE, PT_INTERP, b"/lib/ld-musl-x86_64.so.1\0"), Reason::OtherLibc),
            (elf(MACHINE, 1, b""), Reason::Static),
            (elf(3, PT_INTERP, b"/lib/ld-linux.so.2\0"), Reason::OtherArchitecture),
        ];
        for (number, (content, reason)) in cases.into_iter().enumerate() {
            let program = file(&dir, &format!("program{number}"), &content, 0o755);
            assert_eq!(classify(&program), reason, "case {number}");
            let line = format!("#!{}\n", program.display());
            let script = file(&dir, &format!("script{number}"), line.as_bytes(), 0o755);
            assert_eq!(classify(&script), reason, "script of case {number}");
        }
    }
}
