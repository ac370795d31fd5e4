//! Raw system calls, futexes and the life word: the only unsafe doorway of the ring besides `ring.rs`.
//!
//! # Safety
//! Everything here may run in somebody else's program: in a signal handler, after `fork`, before `main`. So nothing
//! goes through libc's system call wrappers (the shim replaces those), `errno` is left alone, nothing is allocated.
#![allow(unsafe_code)]

#[cfg(not(loom))]
use crate::sync::AtomicU32;
#[cfg(target_arch = "x86_64")]
use core::arch::asm;

/// Issues a system call with up to six arguments; returns what the kernel returns, errors as `-errno`.
///
/// # Safety
/// The arguments must be what the call expects; pointers among them must be valid for it.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub unsafe fn syscall6(number: i64, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> isize {
    let result: isize;
    // SAFETY: the x86-64 kernel ABI: number in rax, arguments in these registers, rcx and r11 overwritten, no stack
    // used. What the call does to memory is the caller's promise; without `nomem` the compiler assumes any of it.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c,
            in("r10") d, in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// Issues a system call with up to six arguments; returns what the kernel returns, errors as `-errno`.
///
/// # Safety
/// The arguments must be what the call expects; pointers among them must be valid for it.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
pub unsafe fn syscall6(number: i64, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> isize {
    let result: isize;
    // SAFETY: the AArch64 kernel ABI: number in x8, arguments in x0 to x5, result in x0. What the call does to
    // memory is the caller's promise; without `nomem` the compiler assumes any of it.
    unsafe {
        core::arch::asm!("svc 0", in("x8") number, inlateout("x0") a as isize => result, in("x1") b, in("x2") c,
            in("x3") d, in("x4") e, in("x5") f, options(nostack));
    }
    result
}

/// Issues a system call with three arguments, without the instructions that clear the others.
///
/// # Safety
/// As for [`syscall6`], and the call takes at most three arguments.
#[inline(always)]
pub unsafe fn syscall3(number: i64, a: usize, b: usize, c: usize) -> isize {
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as in `syscall6`.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as in `syscall6`.
    unsafe {
        core::arch::asm!("svc 0", in("x8") number, inlateout("x0") a as isize => result, in("x1") b, in("x2") c,
            options(nostack));
    }
    result
}

/// Sleeps until `word` is woken, no longer holds `expected`, or `timeout_ns` nanoseconds have passed. futex(2),
/// shared between processes. Any reason for waking is as good as another: callers look again.
#[cfg(not(loom))]
pub fn futex_wait(word: &AtomicU32, expected: u32, timeout_ns: u64) {
    let timeout = [(timeout_ns / 1_000_000_000) as i64, (timeout_ns % 1_000_000_000) as i64];
    // SAFETY: the word lives as long as the reference, the time-out as long as this frame; FUTEX_WAIT only reads.
    unsafe {
        syscall6(
            libc::SYS_futex,
            core::ptr::from_ref(word) as usize,
            libc::FUTEX_WAIT as usize,
            expected as usize,
            timeout.as_ptr() as usize,
            0,
            0,
        );
    }
}

/// Wakes up to `count` sleepers of `word`. futex(2), shared between processes.
#[cfg(not(loom))]
pub fn futex_wake(word: &AtomicU32, count: i32) {
    // SAFETY: FUTEX_WAKE uses the address only as a key.
    unsafe {
        let address = core::ptr::from_ref(word) as usize;
        syscall6(libc::SYS_futex, address, libc::FUTEX_WAKE as usize, count as usize, 0, 0, 0);
    }
}

/// Sleeps for `ns` nanoseconds, or until a signal arrives.
pub fn sleep(ns: u64) {
    let time = [(ns / 1_000_000_000) as i64, (ns % 1_000_000_000) as i64];
    // SAFETY: nanosleep(2) reads two words that live in this frame; the remainder is not asked for.
    unsafe { syscall6(libc::SYS_nanosleep, time.as_ptr() as usize, 0, 0, 0, 0, 0) };
}

/// The calling thread's number, gettid(2).
pub fn thread_id() -> u32 {
    // SAFETY: the call has no arguments and can't fail.
    unsafe { syscall6(libc::SYS_gettid, 0, 0, 0, 0, 0, 0) as u32 }
}

/// The calling process's number, getpid(2), asked of the kernel: a child made by vfork sees its own.
pub fn process_id() -> u32 {
    // SAFETY: the call has no arguments and can't fail.
    unsafe { syscall6(libc::SYS_getpid, 0, 0, 0, 0, 0, 0) as u32 }
}

/// The mark that the kernel sets in a robust futex whose owner has died (futex(2), "Robust futexes").
pub const OWNER_DIED: u32 = libc::FUTEX_OWNER_DIED;

/// A robust mutex that its thread holds for life, with the layout of glibc's `pthread_mutex_t`.
///
/// The kernel walks a dying thread's list of robust mutexes and sets [`OWNER_DIED`] in each, at exit, SIGKILL and
/// exec alike; so one load tells whether the thread lives.
#[repr(C)]
pub struct LifeWord {
    word: core::sync::atomic::AtomicU32,
    count: u32,
    owner: u32,
    users: u32,
    kind: u32,
    spins: u32,
    previous: usize,
    next: usize,
}

const _: () = assert!(size_of::<LifeWord>() == size_of::<libc::pthread_mutex_t>());

impl LifeWord {
    /// `PTHREAD_MUTEX_ROBUST_NORMAL_NP | PSHARED`: glibc's `__kind` for a robust mutex shared between processes.
    /// Written by hand, because the functions that would write it carry newer symbol versions than the rest.
    const KIND: u32 = 16 | 128;

    /// True when the thread that took it has ended.
    pub fn is_dead(&self) -> bool {
        self.word.load(core::sync::atomic::Ordering::Acquire) & OWNER_DIED != 0
    }

    /// Takes it for the calling thread, until that thread's end.
    ///
    /// # Safety
    /// The caller owns the slot that holds it and nobody else touches it; it stays mapped until the thread ends.
    pub unsafe fn take(this: *mut Self) {
        // SAFETY: the caller has exclusive use of `this`. A zeroed mutex with this kind is an unlocked one; locking
        // it can't block, and links it into the thread's robust list. pthread_mutex_lock is not hooked.
        unsafe {
            this.write(core::mem::zeroed());
            (*this).kind = Self::KIND;
            libc::pthread_mutex_lock(this.cast());
        }
    }

    /// Marks it as belonging to nobody, after its thread has died.
    pub fn reset(&self) {
        self.word.store(0, core::sync::atomic::Ordering::Release);
    }
}
