//! Writes jumps to our hooks over the entry of libc's own functions, so that libc's calls of itself are seen too.
//!
//! No trampoline and no disassembler: a hook issues the system call itself and never needs the function that it
//! replaces. Relies on the tables that the loader left in memory (`DT_GNU_HASH`, symbols, versions). Runs in the
//! constructor, and when `dlmopen` has loaded another libc; never on the hook path.
//!
//! # Safety
//! Everything read here was mapped and relocated by the dynamic loader, and stays as long as its library.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_int, c_void};
use core::sync::atomic::{AtomicU64, Ordering};

use crate::sys::{is_error, syscall};

/// A function of libc and the hook that takes its place.
pub struct Patch {
    /// Name of the exported function. Aliases of it share its address, so one of them is enough.
    pub name: &'static CStr,
    /// The hook, with the same signature, in libc's style: -1 and `errno`.
    pub target: *const (),
}

// SAFETY: the pointer is the address of a function, which anybody may know.
unsafe impl Sync for Patch {}

/// How the jumps were written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Method {
    /// Not at all: only calls through the exported names are seen.
    Failed,
    /// By making the pages writable for a moment.
    InPlace,
    /// Through /proc/self/mem, where pages can't be made writable (PR_SET_MDWE, a filter on mprotect).
    ThroughProc,
    /// By mapping patched copies of the pages over them.
    Remapped,
}

/// What [`install`] has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Installed {
    /// Functions that now lead to our hooks; aliases count once each.
    pub patched: usize,
    /// Names that this libc doesn't have.
    pub missing: usize,
    /// Functions too short for a jump.
    pub too_small: usize,
    /// The weakest method that was needed.
    pub method: Method,
}

/// Most patches that a table can hold.
pub const PATCHES_MAX: usize = 256;

/// Patches the libc of the namespace that this library lives in, and its threads library where that is another file
/// (glibc before 2.34).
///
/// Patching twice changes nothing.
///
/// # Safety
/// Each target has the signature of the function it replaces, and stays for as long as the process lives. No other
/// thread calls one of these functions for the first time just now: the constructor is early enough.
pub unsafe fn install(table: &[Patch]) -> Installed {
    let mut libraries = Libraries::default();
    // SAFETY: the callback takes what it is given, during this call only.
    unsafe { libc::dl_iterate_phdr(Some(note_library), (&raw mut libraries).cast()) };
    let mut done = Installed { patched: 0, missing: table.len(), too_small: 0, method: Method::Failed };
    if let Some(libc) = &libraries.libc {
        // SAFETY: the caller's promise.
        done = unsafe { libc.patch(table, None) };
    }
    if let Some(threads) = &libraries.threads {
        // SAFETY: the caller's promise. What is missing there is in libc.so.6.
        let more = unsafe { threads.patch(table, None) };
        if more.missing < table.len() {
            done.patched += more.patched;
            done.too_small += more.too_small;
            done.method = done.method.min(more.method);
        }
    }
    done
}

/// Patches every other libc in the namespace of `handle`, which dlmopen(3) has returned.
///
/// Such a libc has an `errno` of its own, so its functions lead to the hooks by a stub that copies ours there.
///
/// # Safety
/// As for [`install`]; `handle` is one that the loader gave out and that has not been closed.
pub unsafe fn install_in(handle: *mut c_void, table: &[Patch]) -> Installed {
    let mut done = Installed { patched: 0, missing: 0, too_small: 0, method: Method::InPlace };
    let mut map = handle.cast::<LinkMap>().cast_const();
    // SAFETY: a handle of glibc is the address of a `struct link_map`, whose first fields are public (link.h); the
    // chain holds all objects of one namespace.
    while let Some(before) = unsafe { map.as_ref() }.map(|map| map.previous).filter(|before| !before.is_null()) {
        map = before;
    }
    // SAFETY: as above.
    while let Some(object) = unsafe { map.as_ref() } {
        map = object.next;
        // SAFETY: the loader keeps the name as long as the object.
        let name = unsafe { name_of(object.name) };
        if !matches!(Role::of(name), Some(Role::Libc | Role::Threads)) {
            continue;
        }
        // SAFETY: base and dynamic section of a loaded object.
        let Some(library) = (unsafe { Library::new(object.base, object.dynamic) }) else { continue };
        if library.is_ours() {
            continue;
        }
        // SAFETY: the caller's promise.
        let more = unsafe { library.patch(table, library.address_of(c"__errno_location")) };
        done.patched += more.patched;
        done.missing += more.missing;
        done.too_small += more.too_small;
        done.method = done.method.min(more.method);
    }
    done
}

/// The address of a function of libc (or of its former parts) by name, past all preloaded libraries.
pub fn libc_function(name: &CStr) -> Option<*const ()> {
    let mut libraries = Libraries::default();
    // SAFETY: as in `install`.
    unsafe { libc::dl_iterate_phdr(Some(note_library), (&raw mut libraries).cast()) };
    [libraries.libc, libraries.threads, libraries.loading].iter().flatten().find_map(|library| library.address_of(name))
}

#[derive(Default)]
struct Libraries {
    libc: Option<Library>,
    threads: Option<Library>,
    loading: Option<Library>,
}

enum Role {
    Libc,
    Threads,
    Loading,
}

impl Role {
    fn of(name: &[u8]) -> Option<Self> {
        let start = name.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        match name.get(start..)? {
            b"libc.so.6" => Some(Self::Libc),
            b"libpthread.so.0" => Some(Self::Threads),
            b"libdl.so.2" => Some(Self::Loading),
            _ => None,
        }
    }
}

unsafe extern "C" fn note_library(info: *mut libc::dl_phdr_info, _bytes: usize, found: *mut c_void) -> c_int {
    // SAFETY: dl_iterate_phdr(3) passes a valid description, and our own pointer back.
    let (info, found) = unsafe { (&*info, &mut *found.cast::<Libraries>()) };
    // SAFETY: the name is zero-terminated or null.
    let Some(role) = Role::of(unsafe { name_of(info.dlpi_name) }) else { return 0 };
    for index in 0..info.dlpi_phnum as usize {
        // SAFETY: the table has `dlpi_phnum` entries.
        let header = unsafe { &*info.dlpi_phdr.add(index) };
        if header.p_type == libc::PT_DYNAMIC {
            let base = info.dlpi_addr as usize;
            // SAFETY: base and dynamic section of a loaded object.
            let library = unsafe { Library::new(base, base.wrapping_add(header.p_vaddr as usize) as *const Dynamic) };
            match role {
                Role::Libc => found.libc = library,
                Role::Threads => found.threads = library,
                Role::Loading => found.loading = library,
            }
        }
    }
    0
}

/// # Safety
/// `name` is null or zero-terminated, and lives as long as the result is used.
unsafe fn name_of<'a>(name: *const libc::c_char) -> &'a [u8] {
    if name.is_null() {
        return b"";
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(name) }.to_bytes()
}

/// The public part of glibc's `struct link_map` (link.h).
#[repr(C)]
struct LinkMap {
    base: usize,
    name: *const libc::c_char,
    dynamic: *const Dynamic,
    next: *const LinkMap,
    previous: *const LinkMap,
}

/// `Elf64_Dyn`.
#[repr(C)]
struct Dynamic {
    tag: i64,
    value: usize,
}

const DT_STRTAB: i64 = 5;
const DT_SYMTAB: i64 = 6;
const DT_GNU_HASH: i64 = 0x6fff_fef5;
const DT_VERSYM: i64 = 0x6fff_fff0;
/// In a version number: the symbol is not the default one of its name.
const VERSION_HIDDEN: u16 = 0x8000;
const STT_FUNC: u8 = 2;

/// A loaded library, with the tables that find its symbols.
struct Library {
    base: usize,
    symbols: *const libc::Elf64_Sym,
    strings: *const u8,
    hash: *const u32,
    versions: *const u16,
}

impl Library {
    /// # Safety
    /// `dynamic` is the dynamic section of an object that is loaded at `base`.
    unsafe fn new(base: usize, dynamic: *const Dynamic) -> Option<Self> {
        let mut library = Self {
            base,
            symbols: core::ptr::null(),
            strings: core::ptr::null(),
            hash: core::ptr::null(),
            versions: core::ptr::null(),
        };
        let mut entry = dynamic;
        // SAFETY: the section ends with an entry whose tag is 0.
        while let Some(Dynamic { tag, value }) = unsafe { entry.as_ref() }.filter(|entry| entry.tag != 0) {
            // glibc writes addresses into the section when it loads an object; musl leaves offsets there.
            let address = if *value < base { base + value } else { *value };
            match *tag {
                DT_SYMTAB => library.symbols = address as *const libc::Elf64_Sym,
                DT_STRTAB => library.strings = address as *const u8,
                DT_GNU_HASH => library.hash = address as *const u32,
                DT_VERSYM => library.versions = address as *const u16,
                _ => {}
            }
            entry = entry.wrapping_add(1);
        }
        let complete = !library.symbols.is_null() && !library.strings.is_null() && !library.hash.is_null();
        complete.then_some(library)
    }

    /// The symbol of this name: its default version, or else the first one.
    fn symbol(&self, name: &CStr) -> Option<&libc::Elf64_Sym> {
        let hash =
            name.to_bytes().iter().fold(5381u32, |hash, byte| hash.wrapping_mul(33).wrapping_add(u32::from(*byte)));
        // SAFETY: the table of DT_GNU_HASH: bucket count, first hashed symbol, words of the Bloom filter, its shift;
        // the filter; the buckets; for each hashed symbol its hash, the lowest bit set at the end of a bucket.
        unsafe {
            let (buckets_count, first) = (*self.hash, *self.hash.add(1));
            let buckets = self.hash.add(4 + 2 * *self.hash.add(2) as usize);
            let chain = buckets.add(buckets_count as usize);
            let mut index = *buckets.add(hash.checked_rem(buckets_count)? as usize);
            let mut found = None;
            while index >= first {
                let entry = *chain.add((index - first) as usize);
                if entry | 1 == hash | 1 {
                    let symbol = &*self.symbols.add(index as usize);
                    let spelled = CStr::from_ptr(self.strings.add(symbol.st_name as usize).cast());
                    if symbol.st_shndx != 0 && symbol.st_info & 0xf == STT_FUNC && spelled == name {
                        if self.versions.is_null() || *self.versions.add(index as usize) & VERSION_HIDDEN == 0 {
                            return Some(symbol);
                        }
                        found = found.or(Some(symbol));
                    }
                }
                if entry & 1 != 0 {
                    break;
                }
                index += 1;
            }
            found
        }
    }

    fn address_of(&self, name: &CStr) -> Option<*const ()> {
        self.symbol(name).map(|symbol| self.base.wrapping_add(symbol.st_value as usize) as *const ())
    }

    /// True for the libc that this library itself is bound to.
    fn is_ours(&self) -> bool {
        let ours: unsafe extern "C" fn() -> *mut c_int = libc::__errno_location;
        self.address_of(c"__errno_location") == Some(ours as *const ())
    }

    /// Writes the jumps; through a stub for the `errno` at `errno_location` when that is given.
    ///
    /// # Safety
    /// As for [`install`].
    unsafe fn patch(&self, table: &[Patch], errno_location: Option<*const ()>) -> Installed {
        let mut done = Installed { patched: 0, missing: 0, too_small: 0, method: Method::InPlace };
        let mut jumps = [const { None::<Jump> }; PATCHES_MAX];
        let mut stubs = errno_location.map(|location| Stubs::new(location, table.len()));
        for (patch, jump) in table.iter().zip(&mut jumps) {
            let Some(symbol) = self.symbol(patch.name) else {
                done.missing += 1;
                continue;
            };
            let from = self.base.wrapping_add(symbol.st_value as usize);
            let new = match &mut stubs {
                None => Some(Jump::direct(from, patch.target as usize)),
                Some(stubs) => stubs.add(patch.target).map(|stub| Jump::by_stub(from, stub)),
            };
            match new {
                Some(new) if new.length as u64 <= symbol.st_size => *jump = Some(new),
                _ => done.too_small += 1,
            }
        }
        done.missing += table.len().saturating_sub(PATCHES_MAX);
        let jumps = Jumps(&jumps);
        done.patched = jumps.iter().count();
        // SAFETY: the jumps were made for these places, which are functions of this library and long enough.
        done.method = unsafe { jumps.write() };
        if done.method == Method::Failed {
            done.patched = 0;
        }
        done
    }
}

/// The bytes that lead from a function to its hook.
struct Jump {
    from: usize,
    length: usize,
    bytes: [u8; 24],
}

impl Jump {
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
    fn direct(from: usize, to: usize) -> Self {
        let distance = (to as i64).wrapping_sub(from as i64).wrapping_sub(5);
        match i32::try_from(distance) {
            Ok(near) => Self::new(from, &[&[0xe9], &near.to_le_bytes()]),
            Err(_) => Self::new(from, &[&[0xff, 0x25, 0, 0, 0, 0], &to.to_le_bytes()]),
        }
    }

    /// `movabs $stub, %r11; jmp *(%r11)`: r11 is nobody's at a function's entry.
    fn by_stub(from: usize, stub: *const Stub) -> Self {
        Self::new(from, &[&[0x49, 0xbb], &(stub as usize).to_le_bytes(), &[0x41, 0xff, 0x23]])
    }
}

#[cfg(target_arch = "aarch64")]
impl Jump {
    /// `bti c`: a landing place for indirect calls where the page asks for one, nothing elsewhere.
    const LANDING: [u8; 4] = 0xd503_245f_u32.to_le_bytes();

    /// A relative jump where it reaches, else `ldr x16, .+8; br x16` and the address.
    fn direct(from: usize, to: usize) -> Self {
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
    fn by_stub(from: usize, stub: *const Stub) -> Self {
        let load = 0x5800_0070_u32.to_le_bytes();
        let follow = 0xf940_0211_u32.to_le_bytes();
        let branch = 0xd61f_0220_u32.to_le_bytes();
        Self::new(from, &[&Self::LANDING, &load, &follow, &branch, &(stub as usize).to_le_bytes()])
    }
}

/// The jumps of one library.
struct Jumps<'a>(&'a [Option<Jump>; PATCHES_MAX]);

impl Jumps<'_> {
    fn iter(&self) -> impl Iterator<Item = &Jump> {
        self.0.iter().flatten()
    }

    /// # Safety
    /// Each jump lies within a function that nobody executes just now.
    unsafe fn write(&self) -> Method {
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

/// What a function of another libc leads to: code, and what that needs to know.
#[repr(C)]
struct Stub {
    code: unsafe extern "C" fn(),
    hook: *const (),
    errno_location: *const (),
}

/// Stubs for one other libc, in memory of their own, which stays: nobody says when that libc is unloaded.
struct Stubs {
    errno_location: *const (),
    room: *mut Stub,
    used: usize,
    count: usize,
}

impl Stubs {
    fn new(errno_location: *const (), count: usize) -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let bytes = count * size_of::<Stub>();
        // SAFETY: a new private anonymous mapping.
        let room = unsafe { syscall!(libc::SYS_mmap, 0, bytes, protection, flags, -1i32, 0) };
        let count = if is_error(room) { 0 } else { count };
        Self { errno_location, room: room as *mut Stub, used: 0, count }
    }

    fn add(&mut self, hook: *const ()) -> Option<*const Stub> {
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
    "hint 36",
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
