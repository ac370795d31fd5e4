//! Looks at a program before it is run: would this library be loaded into it?
//!
//! Reads the file as the kernel and the loader will (execve(2), elf(5), `fs/exec.c`, `security/commoncap.c`), with a
//! few system calls, no allocation, and no descriptor left behind. Called for exec only.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_char, c_int};

use journal::processes::Reason;

use crate::sys::{HERE, close, descriptor_path, is_error, stat_at, syscall};

/// The kernel follows this many `#!` lines from one to the next (`exec_binprm`).
const INTERPRETERS_MAX: usize = 5;
/// Bytes of a file that the kernel looks at for its `#!` line (`BINPRM_BUF_SIZE`).
const LINE_BYTES: usize = 256;
/// More program headers than that and the kernel refuses the file (`load_elf_phdrs`).
const PROGRAM_HEADERS_MAX: u64 = 65_536 / 56;

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;

/// Names of glibc's loader for this architecture; the second is the one of the Linux Standard Base.
#[cfg(target_arch = "x86_64")]
const LOADERS: [&[u8]; 2] = [b"ld-linux-x86-64.so.", b"ld-lsb-x86-64.so."];
#[cfg(target_arch = "aarch64")]
const LOADERS: [&[u8]; 2] = [b"ld-linux-aarch64.so.", b"ld-lsb-aarch64.so."];

/// Whether `library` would be loaded into the program that execveat(2) runs for these arguments.
///
/// `None` when the program can't be run at all, as far as can be seen: the call will say so. What can't be read is
/// taken for a program that can be followed; if it doesn't attach, that is noticed by its silence.
pub fn classify(dirfd: c_int, path: *const c_char, flags: c_int, library: &CStr) -> Option<Reason> {
    let mut target = Target::open(dirfd, path, flags)?;
    let mut line = [0; LINE_BYTES];
    for _ in 0..INTERPRETERS_MAX {
        match target.contents.as_mut().map_or(Format::Unknown, Contents::format) {
            Format::Script => {}
            Format::Foreign => return Some(Reason::OtherArchitecture),
            // For a file that isn't of these kinds the call fails, or some interpreter is registered (binfmt_misc).
            Format::Unknown => return Some(target.outlook(library)),
            Format::Native(elf) => {
                let reason = target.contents.as_mut().map_or(Reason::None, |contents| contents.loader(elf));
                return Some(if reason == Reason::None { target.outlook(library) } else { reason });
            }
        }
        let first = target.contents.as_mut().and_then(|contents| contents.bytes(0, LINE_BYTES)).unwrap_or_default();
        let Some(interpreter) = interpreter(first, &mut line) else { return Some(target.outlook(library)) };
        target = Target::open(HERE, interpreter.as_ptr(), 0)?;
    }
    None
}

/// True when the program loader of a new process could map the library from here.
fn is_reachable(library: &CStr) -> bool {
    const ST_NOEXEC: i64 = 8;
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    // SAFETY: a zero-terminated name.
    let fd = unsafe { syscall!(libc::SYS_openat, HERE, library.as_ptr(), flags, 0) };
    if is_error(fd) {
        return false;
    }
    let executable = mount_flags(fd as c_int).is_none_or(|flags| flags & ST_NOEXEC == 0);
    close(fd as c_int);
    executable
}

/// Flags of the mount that a file lies on, statfs(2).
fn mount_flags(fd: c_int) -> Option<i64> {
    let mut answer = core::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the kernel fills the buffer if it succeeds.
    let result = unsafe { syscall!(libc::SYS_fstatfs, fd, answer.as_mut_ptr()) };
    // `f_flags`, which the crate doesn't name, stands behind `f_frsize`: the twelfth word.
    const FLAGS_AT: usize = 80;
    const { assert!(core::mem::offset_of!(libc::statfs, f_frsize) + 8 == FLAGS_AT) };
    // SAFETY: the call succeeded, and the word lies within the structure.
    (result == 0).then(|| unsafe { answer.as_ptr().cast::<u8>().add(FLAGS_AT).cast::<i64>().read() })
}

/// True when this process runs a Go program: those make their system calls themselves, also where the loader has put
/// libc and us beside them for their parts in C. Reads the program's headers where the loader has left them.
pub fn is_go_program() -> bool {
    // SAFETY: values that the kernel has passed to the process.
    let (headers, count) = unsafe { (libc::getauxval(libc::AT_PHDR), libc::getauxval(libc::AT_PHNUM)) };
    if headers == 0 {
        return false;
    }
    let bytes = (count as usize).saturating_mul(SEGMENT_BYTES);
    // SAFETY: the program's own headers, mapped for as long as it runs.
    let headers_bytes = unsafe { core::slice::from_raw_parts(headers as *const u8, bytes) };
    let segments = || headers_bytes.chunks_exact(SEGMENT_BYTES).filter_map(Segment::of);
    let own = segments().find(|segment| segment.kind == libc::PT_PHDR);
    let base = own.map_or(0, |own| headers.wrapping_sub(own.address));
    segments().filter(|segment| segment.kind == libc::PT_NOTE).any(|segment| {
        let address = base.wrapping_add(segment.address) as *const u8;
        // SAFETY: notes lie in a loaded segment.
        has_go_note(unsafe { core::slice::from_raw_parts(address, segment.length as usize) })
    })
}

/// True when the note is there that Go's linker puts into every program: name "Go", type 4, its build's identity.
fn has_go_note(mut notes: &[u8]) -> bool {
    const GO_BUILD_ID: u32 = 4;
    let number = |bytes: &[u8], at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let round = |bytes: u32| (bytes as usize).saturating_add(3) & !3;
    while let (Some(name), Some(value), Some(kind)) = (number(notes, 0), number(notes, 4), number(notes, 8)) {
        if kind == GO_BUILD_ID && notes.get(12..15) == Some(&b"Go\0"[..]) {
            return true;
        }
        let next = round(name).saturating_add(round(value)).saturating_add(12);
        notes = notes.get(next..).unwrap_or_default();
    }
    false
}

/// A file that is about to be run.
struct Target {
    stat: libc::stat,
    /// `None` when it can't be read.
    contents: Option<Contents>,
}

impl Target {
    /// `None` when there is no such file, or it is of a kind that can't be run.
    fn open(dirfd: c_int, path: *const c_char, flags: c_int) -> Option<Self> {
        let followed = flags & (libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW);
        let stat = stat_at(dirfd, path, followed).ok()?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            return None;
        }
        let read = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK;
        let no_follow = if flags & libc::AT_SYMLINK_NOFOLLOW != 0 { libc::O_NOFOLLOW } else { 0 };
        // SAFETY: the kernel checks the path's address.
        let mut fd = unsafe { syscall!(libc::SYS_openat, dirfd, path, read | no_follow, 0) };
        if is_error(fd) && flags & libc::AT_EMPTY_PATH != 0 {
            let path = descriptor_path(dirfd);
            // SAFETY: a zero-terminated name.
            fd = unsafe { syscall!(libc::SYS_openat, HERE, path.as_ptr(), read, 0) };
        }
        let contents = (!is_error(fd)).then(|| Contents { fd: fd as c_int, start: 0, length: 0, bytes: [0; WINDOW] });
        Some(Self { stat, contents })
    }

    /// For a program whose own loader would do: are there other reasons for which it would leave the library out?
    fn outlook(&self, library: &CStr) -> Reason {
        if self.is_privileged() {
            Reason::Privileged
        } else if !is_reachable(library) {
            Reason::Unreachable
        } else {
            Reason::None
        }
    }

    /// True when the kernel will set AT_SECURE: effective and real ids differ after the exec, or capabilities come with
    /// the file (`bprm_fill_uid`, `cap_bprm_creds_from_file`).
    fn is_privileged(&self) -> bool {
        const ST_NOSUID: i64 = 2;
        let (mut real, mut effective, mut saved) = ([0u32; 2], [0u32; 2], 0u32);
        // SAFETY: the kernel writes one id each.
        unsafe {
            syscall!(libc::SYS_getresuid, &raw mut real[0], &raw mut effective[0], &raw mut saved);
            syscall!(libc::SYS_getresgid, &raw mut real[1], &raw mut effective[1], &raw mut saved);
        }
        let mode = self.stat.st_mode;
        let set_uid = mode & libc::S_ISUID != 0;
        let set_gid = mode & (libc::S_ISGID | libc::S_IXGRP) == libc::S_ISGID | libc::S_IXGRP;
        // To the superuser the file's capabilities give nothing that he doesn't have.
        let capable = real[0] != 0 && self.contents.as_ref().is_some_and(Contents::has_capabilities);
        if set_uid || set_gid || capable {
            let ignored = self.contents.as_ref().and_then(|contents| mount_flags(contents.fd));
            if ignored.is_none_or(|flags| flags & ST_NOSUID == 0) {
                if capable {
                    return true;
                }
                // SAFETY: asks for a flag of the calling thread.
                if unsafe { syscall!(libc::SYS_prctl, libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) } != 1 {
                    if set_uid {
                        effective[0] = self.stat.st_uid;
                    }
                    if set_gid {
                        effective[1] = self.stat.st_gid;
                    }
                }
            }
        }
        real != effective
    }
}

/// Bytes that are read at a time: the headers of ordinary programs are within them.
const WINDOW: usize = 1024;

/// The contents of an open file, a window at a time.
struct Contents {
    fd: c_int,
    start: u64,
    length: usize,
    bytes: [u8; WINDOW],
}

impl Drop for Contents {
    fn drop(&mut self) {
        close(self.fd);
    }
}

impl Contents {
    /// Up to `count` bytes (at most a window) at `offset`; fewer at the end of the file.
    fn bytes(&mut self, offset: u64, count: usize) -> Option<&[u8]> {
        let inside = offset.checked_sub(self.start).filter(|skip| skip + count as u64 <= self.length as u64);
        if inside.is_none() {
            // SAFETY: the kernel writes at most a window.
            let read = unsafe { syscall!(libc::SYS_pread64, self.fd, self.bytes.as_mut_ptr(), WINDOW, offset) };
            self.start = offset;
            self.length = if is_error(read) { 0 } else { read as usize };
        }
        let skip = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        self.bytes.get(skip..self.length.min(skip.checked_add(count)?))
    }

    fn format(&mut self) -> Format {
        self.bytes(0, WINDOW).map_or(Format::Unknown, Format::of)
    }

    fn has_capabilities(&self) -> bool {
        let mut value = [0u8; 64];
        let name = c"security.capability".as_ptr();
        // SAFETY: the kernel writes at most the length of the buffer.
        let result = unsafe { syscall!(libc::SYS_fgetxattr, self.fd, name, value.as_mut_ptr(), value.len()) };
        result > 0
    }

    /// What the program's loader is.
    fn loader(&mut self, elf: Elf) -> Reason {
        let mut dynamic = None;
        let mut header = elf;
        while let Some(segment) = header.next().and_then(|offset| Segment::of(self.bytes(offset, SEGMENT_BYTES)?)) {
            match segment.kind {
                libc::PT_INTERP => {
                    let length = segment.length.min(WINDOW as u64) as usize;
                    let name = self.bytes(segment.offset, length).unwrap_or_default();
                    let Ok(name) = CStr::from_bytes_until_nul(name) else { return Reason::None };
                    // Where the loader is missing, the call fails.
                    let ours = is_our_loader(name.to_bytes()) || stat_at(HERE, name.as_ptr(), 0).is_err();
                    return if ours { Reason::None } else { Reason::OtherLibc };
                }
                libc::PT_DYNAMIC => dynamic = Some(segment),
                _ => {}
            }
        }
        // Without an interpreter it is a static program, or a loader that is given the program's name.
        match dynamic.and_then(|dynamic| self.own_name(elf, &dynamic)) {
            None => Reason::Static,
            Some(true) => Reason::None,
            Some(false) => Reason::OtherLibc,
        }
    }

    /// For a shared object, and every loader is one: is its `DT_SONAME` that of glibc's loader?
    fn own_name(&mut self, elf: Elf, dynamic: &Segment) -> Option<bool> {
        const DT_STRTAB: u64 = 5;
        const DT_SONAME: u64 = 14;
        let (mut strings, mut name) = (None, None);
        for index in 0..dynamic.length / 16 {
            let entry = self.bytes(dynamic.offset.checked_add(index * 16)?, 16)?;
            let (tag, value) = (word(entry, 0)?, word(entry, 8)?);
            match tag {
                0 => break,
                DT_STRTAB => strings = Some(value),
                DT_SONAME => name = Some(value),
                _ => {}
            }
        }
        let address = strings?.checked_add(name?)?;
        let mut header = elf;
        while let Some(segment) = header.next().and_then(|offset| Segment::of(self.bytes(offset, SEGMENT_BYTES)?)) {
            let skip = address.wrapping_sub(segment.address);
            if segment.kind == libc::PT_LOAD && skip < segment.length {
                let name = self.bytes(segment.offset.checked_add(skip)?, 64)?;
                return Some(is_our_loader(name.split(|byte| *byte == 0).next()?));
            }
        }
        None
    }
}

/// The kind of a file, as its first bytes say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    /// A program for this architecture.
    Native(Elf),
    /// A program for another one, or for another word size.
    Foreign,
    /// It begins with `#!`.
    Script,
    /// Anything else.
    Unknown,
}

/// Where the program headers of an ELF file are; gives their offsets one after another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Elf {
    next: u64,
    left: u64,
}

impl Iterator for Elf {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.left = self.left.checked_sub(1)?;
        let offset = self.next;
        self.next = offset.checked_add(SEGMENT_BYTES as u64)?;
        Some(offset)
    }
}

impl Format {
    fn of(bytes: &[u8]) -> Self {
        const CLASS_64_LITTLE_ENDIAN: [u8; 2] = [2, 1];
        if bytes.starts_with(b"#!") {
            return Self::Script;
        }
        if !bytes.starts_with(b"\x7fELF") {
            return Self::Unknown;
        }
        let native = bytes.get(4..6) == Some(&CLASS_64_LITTLE_ENDIAN[..]) && half(bytes, 18) == Some(MACHINE);
        match (word(bytes, 32), half(bytes, 56)) {
            (Some(next), Some(count)) if native => {
                Self::Native(Elf { next, left: u64::from(count).min(PROGRAM_HEADERS_MAX) })
            }
            _ => Self::Foreign,
        }
    }
}

const SEGMENT_BYTES: usize = 56;

/// An `Elf64_Phdr`.
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    length: u64,
}

impl Segment {
    fn of(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            kind: word(bytes, 0)? as u32,
            offset: word(bytes, 8)?,
            address: word(bytes, 16)?,
            length: word(bytes, 32)?,
        })
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

fn is_our_loader(path: &[u8]) -> bool {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    LOADERS.iter().any(|loader| name.starts_with(loader))
}

/// The interpreter that a `#!` line names, written into `buffer`; `None` if the kernel would find none there either.
fn interpreter<'a>(bytes: &[u8], buffer: &'a mut [u8; LINE_BYTES]) -> Option<&'a CStr> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let line = bytes.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let line = line.get(line.iter().position(|byte| !is_blank(byte))?..)?;
    let path = line.split(|byte| is_blank(byte) || *byte == 0).next().filter(|path| !path.is_empty())?;
    buffer.get_mut(..path.len())?.copy_from_slice(path);
    *buffer.get_mut(path.len())? = 0;
    CStr::from_bytes_until_nul(buffer).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interpreter_of(bytes: &[u8]) -> Option<Vec<u8>> {
        interpreter(bytes, &mut [0; LINE_BYTES]).map(|path| path.to_bytes().to_vec())
    }

    #[test]
    fn interpreter_is_the_first_word_of_the_line() {
        assert_eq!(interpreter_of(b"#!/bin/sh\necho"), Some(b"/bin/sh".to_vec()));
        assert_eq!(interpreter_of(b"#! \t/usr/bin/env -S perl -w\n"), Some(b"/usr/bin/env".to_vec()));
        assert_eq!(interpreter_of(b"#!/bin/sh"), Some(b"/bin/sh".to_vec()));
        assert_eq!(interpreter_of(b"#!\n/bin/sh"), None);
        assert_eq!(interpreter_of(b"#!   "), None);
        assert_eq!(interpreter_of(b""), None);
    }

    #[test]
    fn format_follows_class_and_machine() {
        let mut header = [0u8; 64];
        header[..6].copy_from_slice(b"\x7fELF\x02\x01");
        header[18..20].copy_from_slice(&MACHINE.to_le_bytes());
        header[32] = 64;
        header[56] = 2;
        assert_eq!(Format::of(&header), Format::Native(Elf { next: 64, left: 2 }));
        header[4] = 1;
        assert_eq!(Format::of(&header), Format::Foreign);
        header[4] = 2;
        header[18] = 3;
        assert_eq!(Format::of(&header), Format::Foreign);
        assert_eq!(Format::of(&header[..20]), Format::Foreign);
        assert_eq!(Format::of(b"#!/bin/sh"), Format::Script);
        assert_eq!(Format::of(b"echo"), Format::Unknown);
        assert_eq!(Format::of(b""), Format::Unknown);
    }

    #[test]
    fn go_is_known_by_its_note() {
        let build_id = b"\x04\0\0\0\x03\0\0\0\x03\0\0\0GNU\0abc\0";
        let go = b"\x04\0\0\0\x05\0\0\0\x04\0\0\0Go\0\0abcde\0\0\0";
        assert!(has_go_note(go));
        assert!(has_go_note(&[&build_id[..], go].concat()));
        assert!(!has_go_note(build_id));
        assert!(!has_go_note(b""));
        assert!(!has_go_note(b"\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0"));
        assert!(!is_go_program());
    }

    #[test]
    fn loader_is_known_by_its_file_name() {
        assert!(!is_our_loader(b"/lib/ld-musl-x86_64.so.1"));
        assert!(!is_our_loader(b"/lib/ld-linux.so.2"));
        #[cfg(target_arch = "x86_64")]
        assert!(is_our_loader(b"/nix/store/glibc/lib/ld-linux-x86-64.so.2"));
        #[cfg(target_arch = "aarch64")]
        assert!(is_our_loader(b"/lib/ld-linux-aarch64.so.1"));
    }

    #[test]
    fn ordinary_program_can_be_followed() {
        assert_eq!(classify(HERE, c"/proc/self/exe".as_ptr(), 0, c"/proc/self/exe"), Some(Reason::None));
        assert_eq!(classify(HERE, c"/proc/self/exe".as_ptr(), 0, c"/nowhere"), Some(Reason::Unreachable));
        assert_eq!(classify(HERE, c"/nowhere".as_ptr(), 0, c"/proc/self/exe"), None);
        assert_eq!(classify(HERE, c"/".as_ptr(), 0, c"/proc/self/exe"), None);
    }
}
