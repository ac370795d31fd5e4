//! The slot of the calling thread, found without thread-local storage.
//!
//! `__tls_get_addr` may allocate and isn't async-signal-safe, so the key is the thread pointer itself, in a table that
//! the kernel wipes in a forked child (MADV_WIPEONFORK): the child's threads take slots of their own.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use journal::Ring;
use journal::claims::Owner;

use crate::sys::{is_error, syscall};

const ENTRIES: usize = 8192;

struct Entry {
    /// The thread pointer; 0 when free.
    thread: AtomicU64,
    /// Slot number + 1 in the upper half, the slot's turn in the lower.
    slot: AtomicU64,
}

static TABLE: AtomicPtr<Entry> = AtomicPtr::new(core::ptr::null_mut());

#[cfg(target_arch = "x86_64")]
/// The thread pointer, which no two living threads share.
#[inline(always)]
pub fn thread_pointer() -> u64 {
    let pointer: u64;
    // SAFETY: the x86-64 ABI puts the thread pointer itself at fs:0.
    unsafe { core::arch::asm!("mov {}, fs:[0]", out(reg) pointer, options(nostack, pure, readonly)) };
    pointer
}

#[cfg(target_arch = "aarch64")]
/// The thread pointer, which no two living threads share.
#[inline(always)]
pub fn thread_pointer() -> u64 {
    let pointer: u64;
    // SAFETY: reading the thread pointer register has no effect.
    unsafe { core::arch::asm!("mrs {}, tpidr_el0", out(reg) pointer, options(nostack, pure, nomem)) };
    pointer
}

fn table() -> Option<&'static [Entry]> {
    let mut table = TABLE.load(Ordering::Acquire);
    if table.is_null() {
        let bytes = ENTRIES * size_of::<Entry>();
        // SAFETY: a new private anonymous mapping.
        let mapped = unsafe {
            syscall!(
                libc::SYS_mmap,
                0,
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1i32,
                0
            )
        };
        if is_error(mapped) {
            return None;
        }
        // SAFETY: the mapping was just made. If the advice is refused (Linux before 4.14), a forked child would take
        // its parent's slot for its own; then the table is not used at all.
        let wiped = unsafe { syscall!(libc::SYS_madvise, mapped, bytes, libc::MADV_WIPEONFORK) };
        let fresh = mapped as *mut Entry;
        if is_error(wiped) || TABLE.compare_exchange(table, fresh, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: nobody else has seen it.
            unsafe { syscall!(libc::SYS_munmap, mapped, bytes) };
        }
        table = TABLE.load(Ordering::Acquire);
    }
    if table.is_null() {
        return None;
    }
    // SAFETY: the mapping holds ENTRIES zeroed or valid entries, all atomic, and is never unmapped.
    Some(unsafe { core::slice::from_raw_parts(table, ENTRIES) })
}

/// The calling thread's slot, taken at its first call. `None` when there is none to be had.
#[inline(always)]
pub fn slot(ring: &Ring) -> Option<Owner> {
    let thread = thread_pointer();
    let table = TABLE.load(Ordering::Acquire);
    if !table.is_null() {
        // SAFETY: the index is below ENTRIES, the mapping is never unmapped.
        let entry = unsafe { &*table.add(first_index(thread)) };
        if entry.thread.load(Ordering::Acquire) == thread
            && let Some(owner) = still_owned(ring, entry)
        {
            return Some(owner);
        }
    }
    slot_slow(ring, thread)
}

/// The calling thread's slot, if it has taken one.
pub fn known_slot(ring: &Ring) -> Option<Owner> {
    let thread = thread_pointer();
    let start = first_index(thread);
    let table = table()?;
    let mut entries = table[start..].iter().chain(&table[..start]);
    let mine = entries.by_ref().take_while(|entry| entry.thread.load(Ordering::Acquire) != 0);
    mine.into_iter()
        .find(|entry| entry.thread.load(Ordering::Acquire) == thread)
        .and_then(|entry| still_owned(ring, entry))
}

#[inline(always)]
const fn first_index(thread: u64) -> usize {
    ((thread >> 6) ^ (thread >> 12)) as usize % ENTRIES
}

#[inline(always)]
fn still_owned(ring: &Ring, entry: &Entry) -> Option<Owner> {
    let value = entry.slot.load(Ordering::Relaxed);
    let owner = Owner(((value >> 32) as u32).checked_sub(1)? as u16);
    // A thread pointer is used again after its thread has ended: then the slot is dead, or another thread's turn.
    (ring.turn(owner) == value as u32 && ring.slot(owner).is_some_and(|slot| !slot.life.is_dead())).then_some(owner)
}

#[cold]
#[inline(never)]
fn slot_slow(ring: &Ring, thread: u64) -> Option<Owner> {
    let table = table()?;
    let start = first_index(thread);
    for entry in table[start..].iter().chain(&table[..start]) {
        let current = entry.thread.load(Ordering::Acquire);
        let mine = current == thread
            || (current == 0 && entry.thread.compare_exchange(0, thread, Ordering::AcqRel, Ordering::Acquire).is_ok());
        if !mine {
            continue;
        }
        if let Some(owner) = still_owned(ring, entry) {
            return Some(owner);
        }
        return take(ring, entry);
    }
    // All entries have been used in the life of this process: those of threads that have ended are free again.
    for entry in table[start..].iter().chain(&table[..start]) {
        let ended = entry.thread.load(Ordering::Acquire);
        if still_owned(ring, entry).is_none()
            && entry.thread.compare_exchange(ended, thread, Ordering::AcqRel, Ordering::Acquire).is_ok()
        {
            return take(ring, entry);
        }
    }
    None
}

fn take(ring: &Ring, entry: &Entry) -> Option<Owner> {
    let owner = ring.register()?;
    entry.slot.store((u64::from(owner.0) + 1) << 32 | u64::from(ring.turn(owner)), Ordering::Release);
    Some(owner)
}
