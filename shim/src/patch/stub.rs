//! Stubs for functions of another libc, whose callers look for the error number in an `errno` of its own.
#![allow(unsafe_code)]

use crate::sys::{is_error, syscall};

/// What a function of another libc leads to: code, and what that needs to know.
#[repr(C)]
pub struct Stub {
    code: unsafe extern "C" fn(),
    hook: *const (),
    errno_location: *const (),
}

/// Stubs for one other libc, in memory of their own, which stays: nobody says when that libc is unloaded.
pub struct Stubs {
    errno_location: *const (),
    room: *mut Stub,
    used: usize,
    count: usize,
}

impl Stubs {
    /// Room for `count` stubs that copy to the `errno` that the function at `errno_location` finds.
    pub fn new(errno_location: *const (), count: usize) -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let bytes = count * size_of::<Stub>();
        // SAFETY: a new private anonymous mapping.
        let room = unsafe { syscall!(libc::SYS_mmap, 0, bytes, protection, flags, -1i32, 0) };
        let count = if is_error(room) { 0 } else { count };
        Self { errno_location, room: room as *mut Stub, used: 0, count }
    }

    /// A new stub for this hook; `None` when there is no room.
    pub fn add(&mut self, hook: *const ()) -> Option<*const Stub> {
        if self.used >= self.count {
            return None;
        }
        // SAFETY: the mapping holds `count` stubs.
        let stub = unsafe { self.room.add(self.used) };
        self.used += 1;
        // SAFETY: as above, and nobody else knows this place yet.
        unsafe { stub.write(Stub { code: call_and_copy_errno, hook, errno_location: self.errno_location }) };
        Some(stub)
    }
}

unsafe extern "C" {
    /// Calls the hook of the stub whose address is in r11 (x16), and copies `errno` when that returns -1.
    #[link_name = "lockstep_call_and_copy_errno"]
    fn call_and_copy_errno();
}

// The hooks have six arguments at most, so none lies on the stack. A call that returns 2^32 - 1 copies `errno` too,
// which does no harm.
#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".globl lockstep_call_and_copy_errno",
    ".hidden lockstep_call_and_copy_errno",
    ".type lockstep_call_and_copy_errno, @function",
    "lockstep_call_and_copy_errno:",
    ".cfi_startproc",
    "sub rsp, 24",
    ".cfi_adjust_cfa_offset 24",
    "mov [rsp + 16], r11",
    "call [r11 + 8]",
    "cmp eax, -1",
    "jne 2f",
    "mov [rsp], rax",
    "call [rip + __errno_location@GOTPCREL]",
    "mov eax, [rax]",
    "mov [rsp + 8], eax",
    "mov r11, [rsp + 16]",
    "call [r11 + 16]",
    "mov ecx, [rsp + 8]",
    "mov [rax], ecx",
    "mov rax, [rsp]",
    "2:",
    "add rsp, 24",
    ".cfi_adjust_cfa_offset -24",
    "ret",
    ".cfi_endproc",
    ".size lockstep_call_and_copy_errno, . - lockstep_call_and_copy_errno",
);

#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(
    ".globl lockstep_call_and_copy_errno",
    ".hidden lockstep_call_and_copy_errno",
    ".type lockstep_call_and_copy_errno, @function",
    "lockstep_call_and_copy_errno:",
    ".cfi_startproc",
    "hint 34",
    "stp x29, x30, [sp, -48]!",
    ".cfi_def_cfa_offset 48",
    ".cfi_offset x29, -48",
    ".cfi_offset x30, -40",
    "str x16, [sp, 16]",
    "ldr x17, [x16, 8]",
    "blr x17",
    "cmn w0, 1",
    "b.ne 2f",
    "str x0, [sp, 24]",
    "bl __errno_location",
    "ldr w1, [x0]",
    "str w1, [sp, 32]",
    "ldr x16, [sp, 16]",
    "ldr x17, [x16, 16]",
    "blr x17",
    "ldr w1, [sp, 32]",
    "str w1, [x0]",
    "ldr x0, [sp, 24]",
    "2:",
    "ldp x29, x30, [sp], 48",
    ".cfi_restore x29",
    ".cfi_restore x30",
    ".cfi_def_cfa_offset 0",
    "ret",
    ".cfi_endproc",
    ".size lockstep_call_and_copy_errno, . - lockstep_call_and_copy_errno",
);
