//! The bytes of a jump, and three ways to write them over the entry of a function.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use super::stub::Stub;
use super::{Method, PATCHES_MAX};
use crate::sys::{is_error, syscall};

/// The bytes that lead from a function to its hook.
pub struct Jump {
    from: usize,
    length: usize,
    bytes: [u8; 24],
}

impl Jump {
    /// Bytes that it overwrites.
    pub const fn bytes(&self) -> usize {
        self.length
    }

    fn new(from: usize, parts: &[&[u8]]) -> Self {
        let mut jump = Self { from, length: 0, bytes: [0; 24] };
        for byte in parts.iter().flat_map(|part| part.iter()) {
            if let Some(place) = jump.bytes.get_mut(jump.length) {
                *place = *byte;
                jump.length += 1;
            }
        }
        jump
    }

    fn code(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

#[cfg(target_arch = "x86_64")]
impl Jump {
    /// A relative jump where it reaches, which it does between libraries that were mapped next to each other: its
    /// five bytes are replaced by one store. Else `jmp *0(%rip)` and the address.
    pub fn direct(from: usize, to: usize) -> Self {
        let distance = (to as i64).wrapping_sub(from as i64).wrapping_sub(5);
        match i32::try_from(distance) {
            Ok(near) => Self::new(from, &[&[0xe9], &near.to_le_bytes()]),
            Err(_) => Self::new(from, &[&[0xff, 0x25, 0, 0, 0, 0], &to.to_le_bytes()]),
        }
    }

    /// `movabs $stub, %r11; jmp *(%r11)`: r11 is nobody's at a function's entry.
    pub fn by_stub(from: usize, stub: *const Stub) -> Self {
        Self::new(from, &[&[0x49, 0xbb], &(stub as usize).to_le_bytes(), &[0x41, 0xff, 0x23]])
    }
}

#[cfg(target_arch = "aarch64")]
impl Jump {
    /// `bti c`: a landing place for indirect calls where the page asks for one, nothing elsewhere.
    const LANDING: [u8; 4] = 0xd503_245f_u32.to_le_bytes();

    /// A relative jump where it reaches, else `ldr x16, .+8; br x16` and the address.
    pub fn direct(from: usize, to: usize) -> Self {
        let distance = (to as i64).wrapping_sub(from as i64).wrapping_sub(4);
        if (-(1 << 27)..1 << 27).contains(&distance) {
            let branch = 0x1400_0000 | ((distance >> 2) as u32 & 0x03ff_ffff);
            return Self::new(from, &[&Self::LANDING, &branch.to_le_bytes()]);
        }
        let load = 0x5800_0050_u32.to_le_bytes();
        let branch = 0xd61f_0200_u32.to_le_bytes();
        Self::new(from, &[&Self::LANDING, &load, &branch, &to.to_le_bytes()])
    }

    /// `ldr x16, .+12; ldr x17, [x16]; br x17` and the stub's address: x16 and x17 are nobody's at a function's entry.
    pub fn by_stub(from: usize, stub: *const Stub) -> Self {
        let load = 0x5800_0070_u32.to_le_bytes();
        let follow = 0xf940_0211_u32.to_le_bytes();
        let branch = 0xd61f_0220_u32.to_le_bytes();
        Self::new(from, &[&Self::LANDING, &load, &follow, &branch, &(stub as usize).to_le_bytes()])
    }
}

/// The jumps of one library.
pub struct Jumps<'a>(pub &'a [Option<Jump>; PATCHES_MAX]);

impl Jumps<'_> {
    /// The jumps that there are.
    pub fn iter(&self) -> impl Iterator<Item = &Jump> {
        self.0.iter().flatten()
    }

    /// Writes those that aren't written yet: in place if that is allowed, else as it can be done.
    ///
    /// # Safety
    /// Each jump lies within a function that nobody executes just now.
    pub unsafe fn write(&self) -> Method {
        const PAGE: usize = 4096;
        // AArch64 kernels have pages of up to 64 KiB; rounding to those does no harm.
        const ROUND: usize = if cfg!(target_arch = "x86_64") { PAGE } else { 16 * PAGE };
        // SAFETY: functions of a loaded library can be read.
        let todo = || self.iter().filter(|jump| unsafe { !jump.is_written() });
        let (Some(low), Some(high)) =
            (todo().map(|jump| jump.from).min(), todo().map(|jump| jump.from + jump.length).max())
        else {
            return Method::InPlace;
        };
        let low = low & !(ROUND - 1);
        let bytes = ((high + ROUND - 1) & !(ROUND - 1)) - low;
        let (read, write, execute) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
        // SAFETY: only adds a permission; the pages stay executable, because libc and we run in them meanwhile.
        if unsafe { syscall!(libc::SYS_mprotect, low, bytes, read | write | execute) } == 0 {
            for jump in todo() {
                // SAFETY: the pages are writable now.
                unsafe { jump.write_in_place() };
            }
            // SAFETY: the permissions that text has.
            unsafe { syscall!(libc::SYS_mprotect, low, bytes, read | execute) };
            return Method::InPlace;
        }
        if self.write_through_proc() {
            return Method::ThroughProc;
        }
        // SAFETY: the span lies within the library's text.
        if unsafe { self.write_remapped(low, bytes) } { Method::Remapped } else { Method::Failed }
    }

    /// Writes as a debugger would: the kernel then doesn't ask for the permission to write.
    fn write_through_proc(&self) -> bool {
        let flags = libc::O_RDWR | libc::O_CLOEXEC;
        // SAFETY: opens a file by a constant name.
        let memory = unsafe { syscall!(libc::SYS_openat, libc::AT_FDCWD, c"/proc/self/mem".as_ptr(), flags, 0) };
        if is_error(memory) {
            return false;
        }
        let written = self.iter().all(|jump| {
            // SAFETY: the bytes replace the beginning of a function that nobody executes just now.
            let written = unsafe { syscall!(libc::SYS_pwrite64, memory, jump.bytes.as_ptr(), jump.length, jump.from) };
            flush_instructions(jump.from, jump.length);
            written == jump.length as isize
        });
        crate::sys::close(memory as i32);
        written
    }

    /// Copies the pages into an anonymous file, patches the copy and maps it over them, in one step.
    ///
    /// # Safety
    /// `low` and `bytes` are whole pages within the text of a library.
    unsafe fn write_remapped(&self, low: usize, bytes: usize) -> bool {
        const MFD_EXEC: u32 = 0x10;
        let create = |flags: u32| {
            // SAFETY: a constant name.
            unsafe { syscall!(libc::SYS_memfd_create, c"libc".as_ptr(), flags) }
        };
        let mut copy = create(libc::MFD_CLOEXEC | MFD_EXEC);
        if is_error(copy) {
            // The flag came with Linux 6.3.
            copy = create(libc::MFD_CLOEXEC);
        }
        if is_error(copy) {
            return false;
        }
        // SAFETY: text can be read.
        let mut right = unsafe { syscall!(libc::SYS_pwrite64, copy, low, bytes, 0) } == bytes as isize;
        for jump in self.iter() {
            // SAFETY: the bytes belong to the jump.
            let written =
                unsafe { syscall!(libc::SYS_pwrite64, copy, jump.bytes.as_ptr(), jump.length, jump.from - low) };
            right = right && written == jump.length as isize;
        }
        if right {
            let protection = libc::PROT_READ | libc::PROT_EXEC;
            let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
            // SAFETY: replaces text by a copy of itself that differs only at the beginning of patched functions.
            right = unsafe { syscall!(libc::SYS_mmap, low, bytes, protection, flags, copy, 0) } == low as isize;
        }
        crate::sys::close(copy as i32);
        right
    }
}

impl Jump {
    /// # Safety
    /// The function can be read.
    unsafe fn is_written(&self) -> bool {
        // SAFETY: the jump is no longer than the function.
        unsafe { core::slice::from_raw_parts(self.from as *const u8, self.length) == self.code() }
    }

    /// # Safety
    /// The function can be written, and nobody executes it just now.
    unsafe fn write_in_place(&self) {
        let place = self.from as *mut u8;
        if self.length <= 8 && self.from.is_multiple_of(8) {
            // One store, so that a thread that comes by sees the function or the jump. Functions are aligned to 16
            // bytes and padded to that, so the eight bytes are this function's own.
            // SAFETY: aligned; the caller's promise for the rest.
            let word = unsafe { &*place.cast::<AtomicU64>() };
            let mut bytes = word.load(Ordering::Relaxed).to_ne_bytes();
            for (place, byte) in bytes.iter_mut().zip(self.code()) {
                *place = *byte;
            }
            word.store(u64::from_ne_bytes(bytes), Ordering::Release);
        } else {
            // SAFETY: the caller's promise.
            unsafe { core::ptr::copy_nonoverlapping(self.bytes.as_ptr(), place, self.length) };
        }
        flush_instructions(self.from, self.length);
    }
}

/// x86-64 keeps its instruction caches coherent.
#[cfg(target_arch = "x86_64")]
fn flush_instructions(_start: usize, _bytes: usize) {}

/// Makes new instructions visible to all cores (Arm ARM, "Concurrent modification and execution of instructions").
#[cfg(target_arch = "aarch64")]
fn flush_instructions(start: usize, bytes: usize) {
    let lines = || (start & !3..start + bytes).step_by(4);
    // SAFETY: cleans and invalidates caches for addresses that are mapped; changes no memory.
    unsafe {
        lines().for_each(|line| core::arch::asm!("dc cvau, {}", in(reg) line, options(nostack)));
        core::arch::asm!("dsb ish", options(nostack));
        lines().for_each(|line| core::arch::asm!("ic ivau, {}", in(reg) line, options(nostack)));
        core::arch::asm!("dsb ish", "isb", options(nostack));
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn jump_is_relative_where_it_reaches() {
        assert_eq!(Jump::direct(0x1000, 0x1005).code(), [0xe9, 0, 0, 0, 0]);
        assert_eq!(Jump::direct(0x7000_0000_1000, 0x7000_0000_0000).code(), [0xe9, 0xfb, 0xef, 0xff, 0xff]);
        let far = Jump::direct(0x1000, 0x7fff_1234_5678);
        assert_eq!(far.code(), [0xff, 0x25, 0, 0, 0, 0, 0x78, 0x56, 0x34, 0x12, 0xff, 0x7f, 0, 0]);
    }

    extern "C" fn two() -> i32 {
        2
    }

    /// Writes a jump over a function far from here, and calls that.
    #[test]
    fn far_jump_leads_to_the_hook() {
        const FAR: *mut libc::c_void = 0x1234_5678_0000 as *mut libc::c_void;
        let (read, write, execute) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, at the address given if that is free.
        let page = unsafe { libc::mmap(FAR, 4096, read | write, flags, -1, 0) };
        assert_ne!(page, libc::MAP_FAILED);
        // `mov $1, %eax; ret`
        let one = [0xb8u8, 1, 0, 0, 0, 0xc3];
        // SAFETY: the page is writable, then executable, and holds a function of that type.
        let one = unsafe {
            page.cast::<[u8; 6]>().write(one);
            assert_eq!(libc::mprotect(page, 4096, read | execute), 0);
            core::mem::transmute::<*mut libc::c_void, extern "C" fn() -> i32>(page)
        };
        assert_eq!(one(), 1);
        let mut jumps = [const { None }; PATCHES_MAX];
        jumps[0] = Some(Jump::direct(page as usize, two as *const () as usize));
        // SAFETY: nobody else knows this function.
        assert_eq!(unsafe { Jumps(&jumps).write() }, Method::InPlace);
        assert_eq!(one(), 2);
    }
}
