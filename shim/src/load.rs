//! The constructor: reads the settings, attaches the ring, takes over libc's functions.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_char, c_int};

use journal::Ring;

use crate::buffer::Buffer;
use crate::exports;
use crate::hooks::process;
use crate::patch;
use crate::state;
use crate::sys::{HERE, close, is_error, stat_descriptor, syscall};

/// Run by the loader, before `main` and after the constructors of the libraries that we need (libc).
#[used]
#[unsafe(link_section = ".init_array")]
static INITIALISE: unsafe extern "C" fn(c_int, *const *const c_char, *const *const c_char) = initialise;

unsafe extern "C" fn initialise(_: c_int, _: *const *const c_char, environment: *const *const c_char) {
    // SAFETY: the loader passes the process's environment.
    let value = |name: &[u8]| unsafe { variable(environment, name) };
    let (Some(set), Some(library)) = (value(b"LOCKSTEP_SET="), own_path()) else { return };
    state::SET.set(set);
    state::LIBRARY.set(library.to_bytes());
    if let Some(root) = value(b"LOCKSTEP_ROOT=") {
        state::ROOT.set(root);
    }
    let Some(ring_path) = ring_path(set, value) else { return };
    let Some(ring) = attach(&ring_path) else { return };
    state::PID.store(journal::sys::process_id(), core::sync::atomic::Ordering::Relaxed);
    process::attach(&ring);
    state::publish(ring);
    process::prepare();
    crate::hooks::jump::prepare();
    let mut patches = exports::patches();
    let disabled = value(b"LOCKSTEP_TEST_DISABLE=").map_or(0, |hook| disable(&mut patches, hook));
    let enabled = patches.get(..patches.len() - disabled).unwrap_or_default();
    // SAFETY: each hook has the signature of the function that it replaces.
    unsafe { patch::install(enabled) };
}

/// The value of an environment variable, given with its `=`.
///
/// # Safety
/// `environment` is a null-terminated array of strings that stay.
unsafe fn variable(environment: *const *const c_char, name: &[u8]) -> Option<&'static [u8]> {
    let mut entry = environment;
    loop {
        // SAFETY: not yet past the null that ends the array.
        let string = unsafe { *entry };
        if string.is_null() {
            return None;
        }
        // SAFETY: a string of the environment.
        if let Some(value) = unsafe { CStr::from_ptr(string) }.to_bytes().strip_prefix(name) {
            return Some(value);
        }
        // SAFETY: the array goes on, since this entry wasn't its end.
        entry = unsafe { entry.add(1) };
    }
}

/// The path under which the loader knows this library.
fn own_path() -> Option<&'static CStr> {
    let mut info = core::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: dladdr(3) fills the structure for an address of ours.
    let found = unsafe { libc::dladdr(own_path as *const libc::c_void, info.as_mut_ptr()) };
    // SAFETY: zeroed, and filled when found.
    let info = unsafe { info.assume_init() };
    if found == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: the loader's string, which stays as long as the library.
    Some(unsafe { CStr::from_ptr(info.dli_fname) })
}

/// The path of the set's ring: below the state directory, or below `LOCKSTEP_SET` itself if that is a path.
fn ring_path(set: &[u8], value: impl Fn(&[u8]) -> Option<&'static [u8]>) -> Option<Buffer> {
    if set.contains(&b'/') {
        let mut path = Buffer::of(set)?;
        return path.push(b"/ring").then_some(path);
    }
    let mut path = Buffer::new();
    let pushed = if let Some(directory) = value(b"LOCKSTEP_STATE_DIR=") {
        path.push(directory)
    } else if let Some(directory) = value(b"XDG_STATE_HOME=").filter(|directory| !directory.is_empty()) {
        path.push(directory) && path.push(b"/lockstep")
    } else {
        path.push(value(b"HOME=")?) && path.push(b"/.local/state/lockstep")
    };
    if !pushed {
        return None;
    }
    state::STATE_DIR.set(path.bytes());
    (path.push(b"/sets/") && path.push(set) && path.push(b"/ring")).then_some(path)
}

/// Maps the ring. No descriptor of it is kept.
fn attach(path: &Buffer) -> Option<Ring> {
    // SAFETY: a zero-terminated path of ours.
    let opened = unsafe { syscall!(libc::SYS_openat, HERE, path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC, 0) };
    if is_error(opened) {
        return None;
    }
    let fd = opened as i32;
    let mapped = stat_descriptor(fd).ok().and_then(|stat| {
        let bytes = usize::try_from(stat.st_size).ok()?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping of a file that the replayer has made and reserved in full.
        let base = unsafe { syscall!(libc::SYS_mmap, 0, bytes, protection, libc::MAP_SHARED, fd, 0) };
        (!is_error(base)).then_some((base as *mut u8, bytes))
    });
    close(fd);
    let (base, bytes) = mapped?;
    // SAFETY: advice on our own mapping: a core dump of the program should not carry it.
    unsafe { syscall!(libc::SYS_madvise, base, bytes, libc::MADV_DONTDUMP) };
    // SAFETY: mapped just now, page-aligned, never unmapped unless it is refused.
    match unsafe { Ring::attach(base, bytes) } {
        Ok(ring) => Some(ring),
        Err(_) => {
            // SAFETY: nobody uses it.
            unsafe { syscall!(libc::SYS_munmap, base, bytes) };
            None
        }
    }
}

/// Switches one hook off, by a name of the function: for tests, which must notice. Moves the hook's patches to the end of
/// the table and says how many they are; the exported name leads back to libc.
fn disable(patches: &mut [patch::Patch], hook: &[u8]) -> usize {
    let Some(named) = patches.iter().find(|patch| patch.name.to_bytes() == hook) else { return 0 };
    let target = named.target;
    if let Some(original) = patch::libc_function(named.name) {
        // SAFETY: both are functions with the same signature, and nobody is inside of ours yet.
        unsafe { redirect(target, original) };
    }
    patches.sort_unstable_by_key(|patch| patch.target == target);
    patches.iter().filter(|patch| patch.target == target).count()
}

/// Writes a jump to `to` over the entry of `from`, a function of ours.
///
/// # Safety
/// The functions have the same signature, and no thread runs `from`.
unsafe fn redirect(from: *const (), to: *const ()) {
    // The bytes of `jmp [rip + 0]`, followed by the address. Tests of this kind run on x86-64 only.
    let mut jump = [0xff, 0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    jump[6..].copy_from_slice(&(to as usize as u64).to_le_bytes());
    let page = from as usize & !4095;
    let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    if cfg!(not(target_arch = "x86_64")) {
        return;
    }
    // SAFETY: two pages of our own text, which hold the entry.
    if is_error(unsafe { syscall!(libc::SYS_mprotect, page, 8192, all) }) {
        return;
    }
    // SAFETY: writable now; functions are aligned to 16 bytes and at least as long.
    unsafe { core::ptr::copy_nonoverlapping(jump.as_ptr(), from as *mut u8, jump.len()) };
    // SAFETY: as above.
    unsafe { syscall!(libc::SYS_mprotect, page, 8192, libc::PROT_READ | libc::PROT_EXEC) };
}
