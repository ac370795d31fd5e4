//! longjmp(3) and its sisters: a jump out of a signal handler may leave an operation for good.
//!
//! What it leaves is settled before the jump, or its locks would be held until the thread's next operation.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_int, c_void};
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::patch::libc_function;
use crate::state;
use crate::thread;

/// One of libc's functions that jump.
pub struct Jump {
    name: &'static CStr,
    /// libc's function, looked up when the library is loaded: a signal handler should not wait for the loader.
    real: AtomicPtr<()>,
}

/// longjmp(3).
pub static LONGJMP: Jump = Jump::new(c"longjmp");
/// _longjmp(3).
pub static UNDERSCORE_LONGJMP: Jump = Jump::new(c"_longjmp");
/// siglongjmp(3).
pub static SIGLONGJMP: Jump = Jump::new(c"siglongjmp");
/// The form that programs compiled with _FORTIFY_SOURCE call.
pub static LONGJMP_CHECKED: Jump = Jump::new(c"__longjmp_chk");

impl Jump {
    const fn new(name: &'static CStr) -> Self {
        Self { name, real: AtomicPtr::new(core::ptr::null_mut()) }
    }

    fn find(&self) -> *mut () {
        let known = self.real.load(Ordering::Relaxed);
        if !known.is_null() {
            return known;
        }
        let found = libc_function(self.name).map_or(core::ptr::null_mut(), <*const ()>::cast_mut);
        self.real.store(found, Ordering::Relaxed);
        found
    }

    /// Settles what the jump leaves, and jumps.
    ///
    /// # Safety
    /// The arguments are the program's, for this function.
    pub unsafe fn go(&self, environment: *const c_void, value: c_int) {
        if let Some(ring) = state::ring()
            && let Some(me) = thread::known_slot(ring)
            && let Some(slot) = ring.slot(me)
            && slot.inside.load(Ordering::Relaxed) != 0
            // SAFETY: the program's own buffer, which libc reads in the same way.
            && unsafe { target_stack(environment) } > slot.stack.load(Ordering::Relaxed)
        {
            ring.settle_own(me);
        }
        let real = self.find();
        if !real.is_null() {
            // SAFETY: libc's function of that name has this signature, and doesn't return.
            let real: unsafe extern "C" fn(*const c_void, c_int) = unsafe { core::mem::transmute(real) };
            // SAFETY: the program's own arguments.
            unsafe { real(environment, value) };
        }
    }
}

/// Looks all of them up. Called by the constructor.
pub fn prepare() {
    for jump in [&LONGJMP, &UNDERSCORE_LONGJMP, &SIGLONGJMP, &LONGJMP_CHECKED] {
        jump.find();
    }
}

/// Where the stack will stand after the jump. glibc keeps the pointer mangled (sysdeps/x86_64/jmpbuf-offsets.h,
/// pointer_guard.h): rotated by 17 and combined with a secret of the thread.
///
/// # Safety
/// `environment` is a `jmp_buf` that setjmp(3) has filled.
#[cfg(target_arch = "x86_64")]
unsafe fn target_stack(environment: *const c_void) -> u64 {
    const STACK_POINTER: usize = 6;
    // SAFETY: the buffer has eight words of registers.
    let mangled = unsafe { environment.cast::<u64>().add(STACK_POINTER).read() };
    let secret: u64;
    // SAFETY: glibc's thread control block holds the pointer guard there, as part of the ABI between it and its
    // compiled macros.
    unsafe { core::arch::asm!("mov {}, fs:[0x30]", out(reg) secret, options(nostack, pure, readonly)) };
    mangled.rotate_right(17) ^ secret
}

/// Not known here: what a jump leaves is settled by the thread's next operation.
///
/// # Safety
/// None is needed.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn target_stack(_: *const c_void) -> u64 {
    0
}
