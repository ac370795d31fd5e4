//! The guard of exec: the next program finds our library and our settings in its environment, whatever its caller
//! passes, or is spared a library that its loader couldn't load.
//!
//! Everything is built in the caller's frame: the caller may be a child that borrows its parent's memory (vfork,
//! posix_spawn), on a stack of 32 KiB, and must leave nothing behind there.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_char};
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::readable::{is_readable, string};
use crate::state;
use crate::sys::{error, is_error, syscall};

/// The variable that the loader reads.
const PRELOAD: &[u8] = b"LD_PRELOAD=";

/// Names of our settings, each with the `=` that follows it in an environment.
const SETTINGS: [&[u8]; 3] = [b"LOCKSTEP_SET=", b"LOCKSTEP_STATE_DIR=", b"LOCKSTEP_ROOT="];

/// The values that our settings must have; an empty one is left as it is.
fn values() -> [&'static [u8]; 3] {
    [state::SET.get().to_bytes(), state::STATE_DIR.get().to_bytes(), state::ROOT.get().to_bytes()]
}

/// Whether the next program shall have our library.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Library {
    /// It is put first among the preloads, unless it is there.
    Wanted,
    /// It is taken out: the loader would fail on it, or complain.
    Unwanted,
}

/// An environment as execve(2) takes it; null is an empty one.
pub type Environment = *const *const c_char;

/// Makes `call` with a repaired environment, or with the given one where that is right as it is, and returns its
/// result. An environment that can't be read is handed on too: the kernel has the right error for it.
///
/// # Safety
/// `environment` is what the program has passed for an environment; nobody changes it during the call.
pub unsafe fn with_environment(
    environment: Environment,
    library: Library,
    call: &mut dyn FnMut(Environment) -> isize,
) -> isize {
    // SAFETY: the caller's promise.
    let plan = unsafe { Plan::of(environment, library) }.filter(|plan| plan.is_needed);
    match plan.map(|plan| plan.carry_out(call)) {
        // What we add may be what was too much: the program runs, and isn't followed.
        Some(result) if result != error(libc::E2BIG) => result,
        _ => call(environment),
    }
}

/// What an environment has, and what it lacks.
struct Plan {
    environment: Environment,
    /// Entries of the environment.
    count: usize,
    /// Index and value of the entry that the loader will heed: the last.
    preload: Option<(usize, &'static [u8])>,
    library: Library,
    is_needed: bool,
    /// Bytes that the new strings take at most.
    text_bytes: usize,
}

impl Plan {
    /// `None` when some of it can't be read.
    ///
    /// # Safety
    /// As for [`with_environment`].
    unsafe fn of(environment: Environment, library: Library) -> Option<Self> {
        let mut plan = Self { environment, count: 0, preload: None, library, is_needed: false, text_bytes: 0 };
        let mut right = [false; SETTINGS.len()];
        let values = values();
        while !environment.is_null() {
            let place = environment.wrapping_add(plan.count);
            if !is_readable(place.cast(), size_of::<usize>()) {
                return None;
            }
            // SAFETY: the place was just found readable.
            let entry = unsafe { place.read_unaligned() };
            if entry.is_null() {
                break;
            }
            if !is_readable(entry.cast(), 1) {
                return None;
            }
            // SAFETY: readable, see above.
            if unsafe { *entry } == b'L' as c_char {
                // SAFETY: the caller's promise.
                let entry = unsafe { string(entry) }?;
                if let Some(value) = entry.strip_prefix(PRELOAD) {
                    plan.is_needed |= plan.preload.is_some();
                    plan.preload = Some((plan.count, value));
                }
                for ((name, value), right) in SETTINGS.iter().zip(&values).zip(&mut right) {
                    if let Some(found) = entry.strip_prefix(*name) {
                        *right = found == *value;
                        plan.is_needed |= !*right && !value.is_empty();
                    }
                }
            }
            plan.count += 1;
        }
        plan.is_needed |= right.iter().zip(&values).any(|(right, value)| !right && !value.is_empty());
        let ours = state::LIBRARY.get().to_bytes();
        let found = plan.preload.is_some_and(|(_, value)| entries(value).any(|entry| entry == ours));
        let sister = plan.preload.is_some_and(|(_, value)| entries(value).any(|entry| is_sister(entry, ours)));
        plan.is_needed |= sister || found != (library == Library::Wanted);
        let settings: usize = SETTINGS.iter().zip(&values).map(|(name, value)| name.len() + value.len() + 1).sum();
        let preloads = plan.preload.map_or(0, |(_, value)| value.len());
        plan.text_bytes = settings + PRELOAD.len() + ours.len() + 1 + preloads + 1;
        Some(plan)
    }

    /// Words that the new environment takes: pointers first, then text.
    fn words(&self) -> usize {
        // Our settings, the preloads and the final null may come to what is there.
        self.count + SETTINGS.len() + 2 + self.text_bytes.div_ceil(size_of::<usize>())
    }

    fn carry_out(&self, call: &mut dyn FnMut(Environment) -> isize) -> isize {
        match self.words() {
            0..=256 => self.in_frame::<256>(call),
            257..=1280 => self.in_frame::<1280>(call),
            words => self.in_mapping(words, call),
        }
    }

    #[inline(never)]
    fn in_frame<const WORDS: usize>(&self, call: &mut dyn FnMut(Environment) -> isize) -> isize {
        let mut room = [0usize; WORDS];
        self.write(&mut room);
        call(room.as_ptr().cast())
    }

    /// For environments that are too large for a small stack.
    #[cold]
    fn in_mapping(&self, words: usize, call: &mut dyn FnMut(Environment) -> isize) -> isize {
        let Some(mapping) = Mapping::new(words * size_of::<usize>()) else { return call(self.environment) };
        // SAFETY: the mapping is that large, zeroed, and this thread's alone.
        self.write(unsafe { core::slice::from_raw_parts_mut(mapping.address as *mut usize, words) });
        call(mapping.address as Environment)
    }

    /// Writes the new environment into zeroed room of at least [`Self::words`] words.
    fn write(&self, room: &mut [usize]) {
        let pointers = (self.count + SETTINGS.len() + 2).min(room.len());
        let (pointers, text) = room.split_at_mut(pointers);
        let mut text = Text::new(text);
        let mut places = pointers.iter_mut();
        let values = values();
        let mut written = [false; SETTINGS.len()];
        let mut preload = self.preload.is_none().then(|| self.preload(b"", &mut text)).flatten();
        for index in 0..self.count {
            // SAFETY: `Plan::of` has found the entries readable.
            let mut entry = unsafe { self.environment.add(index).read_unaligned() };
            // SAFETY: as above.
            let is_named_alike = unsafe { *entry } == b'L' as c_char;
            // SAFETY: entries that begin with this letter were read to their end.
            let spelled = if is_named_alike { unsafe { CStr::from_ptr(entry) }.to_bytes() } else { b"" };
            if spelled.starts_with(PRELOAD) {
                match self.preload {
                    Some((last, value)) if last == index => match self.preload(value, &mut text) {
                        Some(new) => entry = new,
                        None => continue,
                    },
                    // The loader heeds the last one only.
                    _ => continue,
                }
            }
            for ((name, value), written) in SETTINGS.iter().zip(&values).zip(&mut written) {
                if spelled.starts_with(name) && !value.is_empty() {
                    if *written {
                        continue;
                    }
                    *written = true;
                    entry = text.add(&[*name, *value]);
                }
            }
            if let Some(place) = places.next() {
                *place = entry as usize;
            }
        }
        for ((name, value), written) in SETTINGS.iter().zip(&values).zip(&written) {
            if !written
                && !value.is_empty()
                && let Some(place) = places.next()
            {
                *place = text.add(&[*name, *value]) as usize;
            }
        }
        if let Some(entry) = preload.take()
            && let Some(place) = places.next()
        {
            *place = entry as usize;
        }
    }

    /// The new entry for the preloads, made from the old value; `None` when there is nothing to preload.
    fn preload(&self, value: &[u8], text: &mut Text) -> Option<*const c_char> {
        let ours = state::LIBRARY.get().to_bytes();
        let there = entries(value).any(|entry| entry == ours);
        let start = text.add(&[PRELOAD]);
        let mut count = 0;
        let mut push = |text: &mut Text, entry: &[u8]| {
            text.extend(if count == 0 { b"" } else { b":" });
            text.extend(entry);
            count += 1;
        };
        if self.library == Library::Wanted && !there {
            push(text, ours);
        }
        for entry in entries(value) {
            let is_ours = entry == ours || is_sister(entry, ours);
            if !is_ours || (entry == ours && self.library == Library::Wanted) {
                push(text, entry);
            }
        }
        (count > 0).then_some(start)
    }
}

/// The names in a value of `LD_PRELOAD`, which spaces and colons part (ld.so(8)).
fn entries(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| matches!(byte, b' ' | b':')).filter(|entry| !entry.is_empty())
}

/// True for another copy of our library, which must not be loaded together with this one.
fn is_sister(entry: &[u8], ours: &[u8]) -> bool {
    let name = |path: &'_ [u8]| path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    entry != ours && entry.get(name(entry)..) == ours.get(name(ours)..)
}

/// Zero-terminated strings, one behind the other, in zeroed room.
struct Text<'a> {
    room: &'a mut [u8],
    used: usize,
}

impl<'a> Text<'a> {
    fn new(words: &'a mut [usize]) -> Self {
        let bytes = size_of_val(words);
        // SAFETY: the same memory as bytes, borrowed for as long.
        Self { room: unsafe { core::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), bytes) }, used: 0 }
    }

    /// Begins a new string with these parts; what `extend` adds comes behind them.
    fn add(&mut self, parts: &[&[u8]]) -> *const c_char {
        if self.used > 0 {
            self.used += 1;
        }
        let start = self.room.as_ptr().wrapping_add(self.used).cast();
        for part in parts {
            self.extend(part);
        }
        start
    }

    fn extend(&mut self, part: &[u8]) {
        let end = self.used.saturating_add(part.len());
        if let Some(place) = self.room.get_mut(self.used..end) {
            place.copy_from_slice(part);
            self.used = end;
        }
    }
}

/// Memory of its own for a large environment.
///
/// A child that borrows its parent's memory leaves it there when its exec succeeds. So one mapping is kept for the next
/// time: it is free again as soon as the same thread pointer comes by, since a parent sleeps until its borrower is gone.
struct Mapping {
    address: usize,
    bytes: usize,
}

/// Thread pointer of the last user of [`KEPT_ADDRESS`]; 0 when there is none.
static KEPT_BY: AtomicUsize = AtomicUsize::new(0);
static KEPT_ADDRESS: AtomicUsize = AtomicUsize::new(0);
static KEPT_BYTES: AtomicUsize = AtomicUsize::new(0);

impl Mapping {
    fn new(bytes: usize) -> Option<Self> {
        let me = crate::thread::thread_pointer() as usize;
        if KEPT_BY.load(Ordering::Acquire) == me {
            // SAFETY: the mapping was this thread's, or its borrower's, and is not used any more.
            unsafe {
                syscall!(libc::SYS_munmap, KEPT_ADDRESS.load(Ordering::Relaxed), KEPT_BYTES.load(Ordering::Relaxed))
            };
            KEPT_BY.store(0, Ordering::Release);
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new private anonymous mapping.
        let address = unsafe { syscall!(libc::SYS_mmap, 0, bytes, protection, flags, -1i32, 0) };
        if is_error(address) {
            return None;
        }
        let address = address as usize;
        if KEPT_BY.compare_exchange(0, me, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            KEPT_ADDRESS.store(address, Ordering::Relaxed);
            KEPT_BYTES.store(bytes, Ordering::Relaxed);
        }
        Some(Self { address, bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if KEPT_ADDRESS.load(Ordering::Relaxed) == self.address {
            KEPT_ADDRESS.store(0, Ordering::Relaxed);
            KEPT_BY.store(0, Ordering::Release);
        }
        // SAFETY: the mapping is ours and not used any more.
        unsafe { syscall!(libc::SYS_munmap, self.address, self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "/lib/liblockstep_shim.so";

    /// The environment that a program gets, for one that its caller has passed.
    fn repaired(environment: &[&str], library: Library) -> Vec<String> {
        state::LIBRARY.set(OURS.as_bytes());
        state::SET.set(b"set");
        state::STATE_DIR.set(b"/state");
        let strings: Vec<_> =
            environment.iter().map(|entry| std::ffi::CString::new(*entry).expect("no zero inside")).collect();
        let mut pointers: Vec<_> = strings.iter().map(|entry| entry.as_ptr()).collect();
        pointers.push(core::ptr::null());
        let mut seen = Vec::new();
        let mut call = |environment: Environment| {
            let mut place = environment;
            // SAFETY: a null-terminated array of strings.
            while let Some(entry) = unsafe { (*place).as_ref() } {
                // SAFETY: as above.
                seen.push(unsafe { CStr::from_ptr(entry) }.to_str().expect("text of this test").to_owned());
                place = place.wrapping_add(1);
            }
            0
        };
        // SAFETY: an environment that lives until the end.
        unsafe { with_environment(pointers.as_ptr(), library, &mut call) };
        seen
    }

    #[test]
    fn environment_gets_what_it_lacks_and_keeps_the_rest() {
        let settings = ["LOCKSTEP_SET=set", "LOCKSTEP_STATE_DIR=/state"];
        let preload = format!("LD_PRELOAD={OURS}");
        assert_eq!(repaired(&[], Library::Wanted), [settings[0], settings[1], &preload]);
        assert_eq!(repaired(&["A=1", "LOCKSTEP_SET=x"], Library::Wanted), ["A=1", settings[0], settings[1], &preload]);
        let right = ["LOCKSTEP_STATE_DIR=/state", "LANG=C", &preload, "LOCKSTEP_SET=set"];
        assert_eq!(repaired(&right, Library::Wanted), right);
    }

    #[test]
    fn other_preloads_keep_place_and_order() {
        let settings = ["LOCKSTEP_SET=set", "LOCKSTEP_STATE_DIR=/state"];
        let preload = |given: &str, library| {
            let given = format!("LD_PRELOAD={given}");
            repaired(&[&given, settings[0], settings[1]], library)
        };
        let first = |environment: Vec<String>| environment.first().cloned().unwrap_or_default();
        assert_eq!(first(preload("a.so b.so", Library::Wanted)), format!("LD_PRELOAD={OURS}:a.so:b.so"));
        assert_eq!(first(preload(&format!("a.so {OURS}"), Library::Wanted)), format!("LD_PRELOAD=a.so {OURS}"));
        assert_eq!(first(preload(&format!("a.so {OURS}:b.so"), Library::Unwanted)), "LD_PRELOAD=a.so:b.so");
        assert_eq!(preload(&format!(" {OURS}:"), Library::Unwanted), settings);
        assert_eq!(first(preload("/old/liblockstep_shim.so:a.so", Library::Wanted)), format!("LD_PRELOAD={OURS}:a.so"));
        assert_eq!(first(preload("a.so", Library::Unwanted)), "LD_PRELOAD=a.so");
    }
}
