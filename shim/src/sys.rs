//! Raw system calls for hook bodies: kernel-style results, `errno` untouched, no symbol of libc.
//!
//! # Safety
//! The macros take integers and pointers as they are; each caller says why they are right for the call.
#![allow(unsafe_code)]

pub use journal::sys::{syscall3, syscall6};

/// Issues a system call by number with up to six arguments of any integer or pointer type.
macro_rules! syscall {
    ($number:expr $(, $argument:expr)* $(,)?) => { $crate::sys::syscall!(@pad $number; [$($argument,)*] 0, 0, 0, 0, 0, 0,) };
    (@pad $number:expr; [$a:expr, $b:expr, $c:expr, $d:expr, $e:expr, $f:expr,] $($rest:expr,)*) =>
        { $crate::sys::syscall6($number as i64, $a as usize, $b as usize, $c as usize, $d as usize, $e as usize, $f as usize) };
    (@pad $number:expr; [$($argument:expr,)*] $zero:expr, $($rest:expr,)*) =>
        { $crate::sys::syscall!(@pad $number; [$($argument,)* $zero,] $($rest,)*) };
}
pub(crate) use syscall;

/// `AT_FDCWD`, as hook bodies pass it on.
pub const HERE: i32 = libc::AT_FDCWD;

/// The kernel's `-errno` for `errno`.
pub const fn error(errno: i32) -> isize {
    -(errno as isize)
}

/// True for a kernel-style error.
pub const fn is_error(result: isize) -> bool {
    result < 0 && result > -4096
}

/// What stat(2) says, or the kernel's error.
pub fn stat_descriptor(fd: i32) -> Result<libc::stat, isize> {
    stat_at(fd, c"".as_ptr(), libc::AT_EMPTY_PATH)
}

/// What stat(2) says of a name, or the kernel's error. newfstatat(2).
pub fn stat_at(dirfd: i32, path: *const libc::c_char, flags: i32) -> Result<libc::stat, isize> {
    let mut stat = core::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel checks the path's address itself and writes one `struct stat` into the buffer.
    let result = unsafe { syscall!(libc::SYS_newfstatat, dirfd, path, stat.as_mut_ptr(), flags) };
    if is_error(result) {
        return Err(result);
    }
    // SAFETY: the call succeeded, so the kernel has filled it.
    Ok(unsafe { stat.assume_init() })
}

/// Reads the target of a symbolic link into `buffer`; the bytes read, or the kernel's error.
pub fn read_link(dirfd: i32, path: *const libc::c_char, buffer: &mut [u8]) -> Result<usize, isize> {
    // SAFETY: the kernel checks the path's address and writes at most `len` bytes into the buffer.
    let result = unsafe { syscall!(libc::SYS_readlinkat, dirfd, path, buffer.as_mut_ptr(), buffer.len()) };
    if is_error(result) { Err(result) } else { Ok(result as usize) }
}

/// Closes a descriptor of ours.
pub fn close(fd: i32) {
    // SAFETY: the descriptor was opened by the caller and is used no more.
    unsafe { syscall!(libc::SYS_close, fd) };
}

/// A path for `/proc/self/fd/N`, zero-terminated.
pub fn descriptor_path(fd: i32) -> [u8; 32] {
    let mut path = [0; 32];
    let prefix = b"/proc/self/fd/";
    path[..prefix.len()].copy_from_slice(prefix);
    let mut digits = [0; 10];
    let mut count = 0;
    let mut rest = fd.unsigned_abs();
    loop {
        digits[count % 10] = b'0' + (rest % 10) as u8;
        count += 1;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    for (place, digit) in path[prefix.len()..].iter_mut().zip(digits[..count.min(10)].iter().rev()) {
        *place = *digit;
    }
    path
}

/// Nanoseconds of CLOCK_MONOTONIC.
pub fn now_ns() -> u64 {
    let mut time = [0i64; 2];
    // SAFETY: the kernel writes two words.
    unsafe { syscall!(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC, time.as_mut_ptr()) };
    (time[0] as u64).wrapping_mul(1_000_000_000).wrapping_add(time[1] as u64)
}

/// Blocks all signals of the calling thread while it lives, as name operations need: they are short, and a handler
/// that jumped out of one would leave a directory locked.
pub struct SignalsBlocked(u64);

impl SignalsBlocked {
    /// Blocks them.
    pub fn new() -> Self {
        let all = u64::MAX;
        let mut before = 0u64;
        // SAFETY: rt_sigprocmask(2) reads and writes eight bytes each; SIGKILL and SIGSTOP are left out by the kernel.
        unsafe { syscall!(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, &raw const all, &raw mut before, 8) };
        Self(before)
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: as above; the mask is the one that held before.
        unsafe { syscall!(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const self.0, 0, 8) };
    }
}
