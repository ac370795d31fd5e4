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

mod jump;
mod stub;

use jump::{Jump, Jumps};
use stub::Stubs;

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
                Some(new) if new.bytes() as u64 <= symbol.st_size => *jump = Some(new),
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
