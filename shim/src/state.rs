//! What the constructor finds out once: the ring, the primary, the set. Everything is written before [`ring`] gives the
//! ring out, and never changed after, but for what is atomic.
#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::ffi::CStr;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use journal::Ring;

/// Longest setting that is kept, in bytes with its final zero.
const SETTING_BYTES: usize = 4096;

struct Slot<T>(UnsafeCell<MaybeUninit<T>>);
// SAFETY: written once by the constructor, before READY is set; only read after.
unsafe impl<T> Sync for Slot<T> {}

static READY: AtomicBool = AtomicBool::new(false);
static RING: Slot<Ring> = Slot(UnsafeCell::new(MaybeUninit::uninit()));

/// A zero-terminated setting in static memory.
pub struct Setting(UnsafeCell<[u8; SETTING_BYTES]>);
// SAFETY: as for `Slot`.
unsafe impl Sync for Setting {}

impl Setting {
    const fn new() -> Self {
        Self(UnsafeCell::new([0; SETTING_BYTES]))
    }

    /// Sets it; too long a value leaves it empty. Only the constructor and the hook of chroot(2) call this.
    pub fn set(&self, value: &[u8]) {
        // SAFETY: called while no other thread reads: by the constructor, or by chroot, which changes the process as
        // a whole and which no program calls while other threads work with paths.
        let bytes = unsafe { &mut *self.0.get() };
        if value.len() < bytes.len() {
            bytes[..value.len()].copy_from_slice(value);
            bytes[value.len()] = 0;
        } else {
            bytes[0] = 0;
        }
    }

    /// The value; empty if there is none.
    pub fn get(&self) -> &'static CStr {
        // SAFETY: static memory, zero-terminated by `set` or by being zero from the start.
        unsafe { CStr::from_ptr(self.0.get().cast()) }
    }
}

/// Path of this library, as the loader was told.
pub static LIBRARY: Setting = Setting::new();
/// Value of `LOCKSTEP_SET`.
pub static SET: Setting = Setting::new();
/// Value of `LOCKSTEP_STATE_DIR`.
pub static STATE_DIR: Setting = Setting::new();
/// The path of this process's root directory, as seen from outside, when it has changed it: `LOCKSTEP_ROOT`.
pub static ROOT: Setting = Setting::new();

/// Counted up by chdir(2) and its sisters: cached relative paths are void.
pub static DIRECTORY_CHANGES: AtomicU64 = AtomicU64::new(1);
/// Not 0 once a thread has a working directory of its own (unshare(2) with CLONE_FS): relative paths aren't cached.
pub static DIRECTORIES_DIFFER: AtomicBool = AtomicBool::new(false);
/// This process's number as the last of constructor and fork handler saw it.
pub static PID: AtomicU32 = AtomicU32::new(0);

/// The ring, once the constructor has attached it.
#[inline(always)]
pub fn ring() -> Option<&'static Ring> {
    if !READY.load(Ordering::Acquire) {
        return None;
    }
    // SAFETY: READY is set after the ring was written, and it is never written again.
    Some(unsafe { (*RING.0.get()).assume_init_ref() })
}

/// Publishes the ring. Called once, by the constructor.
pub fn publish(ring: Ring) {
    // SAFETY: READY is still false, so nobody reads; constructors of one library don't run twice.
    unsafe { (*RING.0.get()).write(ring) };
    READY.store(true, Ordering::Release);
}

/// True in a child that shares its parent's memory (vfork, posix_spawn): nothing may be remembered there that the
/// parent would believe. One system call.
pub fn is_borrowed_memory() -> bool {
    journal::sys::process_id() != PID.load(Ordering::Relaxed)
}
