//! Which pages of the program can be read, so that a bad pointer gets the kernel's answer and not our crash.
//!
//! A page is asked about once, with a system call that reads eight bytes of it and does nothing else, and then
//! remembered until the program unmaps or protects anything.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::sys::{error, syscall};

const PAGE: usize = 4096;
const ENTRIES: usize = 2048;

/// Page number in the upper 40 bits, generation in the lower 24.
static KNOWN: [AtomicU64; ENTRIES] = [const { AtomicU64::new(0) }; ENTRIES];
static GENERATION: AtomicU32 = AtomicU32::new(1);

/// Forgets everything: the program has changed its address space.
pub fn forget() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// True when all of `bytes` bytes at `address` can be read.
pub fn is_readable(address: *const u8, bytes: usize) -> bool {
    let start = address as usize;
    let Some(last) = start.checked_add(bytes.saturating_sub(1)) else { return false };
    let generation = u64::from(GENERATION.load(Ordering::Relaxed)) & 0xff_ffff;
    (start / PAGE..=last / PAGE).all(|page| {
        let entry = &KNOWN[page % ENTRIES];
        let wanted = (page as u64) << 24 | generation;
        entry.load(Ordering::Relaxed) == wanted || {
            // A null set is no set to the kernel, so the first page is asked about behind its beginning.
            let readable = probe((page * PAGE).max(8) as *const u8);
            if readable {
                entry.store(wanted, Ordering::Relaxed);
            }
            readable
        }
    })
}

/// Asks the kernel to read eight bytes: rt_sigprocmask(2) copies the set in before it looks at `how`, so an invalid
/// `how` gives EINVAL for a readable address and EFAULT for another, and changes nothing.
fn probe(address: *const u8) -> bool {
    // SAFETY: the kernel only reads, and checks the address itself.
    let result = unsafe { syscall!(libc::SYS_rt_sigprocmask, -1i32, address, 0, 8) };
    result != error(libc::EFAULT)
}

/// The bytes of a zero-terminated string before its end, or `None` when it can't be read up to there or is longer
/// than `PATH_MAX`; the kernel refuses both.
///
/// # Safety
/// The bytes must not be changed or unmapped while the result is used. Programs that do that to a path during a call
/// have no defined result without us either.
pub unsafe fn string<'a>(address: *const libc::c_char) -> Option<&'a [u8]> {
    let start = address.cast::<u8>();
    let mut length = 0;
    while length < libc::PATH_MAX as usize {
        let here = start.wrapping_add(length);
        let in_page = PAGE - here as usize % PAGE;
        if !is_readable(here, 1) {
            return None;
        }
        // SAFETY: the page was just found readable, and this stays inside it.
        let piece = unsafe { core::slice::from_raw_parts(here, in_page) };
        match piece.iter().position(|byte| *byte == 0) {
            Some(end) => {
                length += end;
                // SAFETY: all pages up to here were found readable.
                return Some(unsafe { core::slice::from_raw_parts(start, length) });
            }
            None => length += in_page,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two pages, of which the second can't be read.
    fn half_readable() -> *mut u8 {
        let (none, both) = (libc::PROT_NONE, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a new private mapping.
        let base = unsafe {
            libc::mmap(core::ptr::null_mut(), 2 * PAGE, both, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        assert_ne!(base, libc::MAP_FAILED);
        // SAFETY: the second page of it.
        assert_eq!(unsafe { libc::mprotect(base.add(PAGE), PAGE, none) }, 0);
        base.cast()
    }

    #[test]
    fn only_what_can_be_read_is_readable() {
        let base = half_readable();
        assert!(is_readable(base, PAGE));
        assert!(!is_readable(base, PAGE + 1));
        assert!(is_readable(base.wrapping_add(PAGE - 1), 1));
        assert!(!is_readable(base.wrapping_add(PAGE), 1));
        assert!(!is_readable(core::ptr::null(), 1));
        assert!(!is_readable(usize::MAX as *const u8, 1));
        assert!(!is_readable((usize::MAX - 5) as *const u8, 100));
        // SAFETY: protects the first page too.
        unsafe { libc::mprotect(base.cast(), PAGE, libc::PROT_NONE) };
        forget();
        assert!(!is_readable(base, 1));
    }

    #[test]
    fn a_string_may_end_with_the_last_readable_byte() {
        let base = half_readable();
        // SAFETY: inside the first page.
        unsafe { base.add(PAGE - 4).copy_from_nonoverlapping(c"abc".as_ptr().cast(), 4) };
        // SAFETY: nobody changes it.
        assert_eq!(unsafe { string(base.add(PAGE - 4).cast()) }, Some(&b"abc"[..]));
        // SAFETY: inside the first page.
        unsafe { base.add(PAGE - 1).write(b'd') };
        // SAFETY: as above; it has no end that can be read.
        assert_eq!(unsafe { string(base.add(PAGE - 4).cast()) }, None);
    }
}
