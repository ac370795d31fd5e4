//! One operation on the primary: entered, locked, recorded, left. The frame of every hook body.
#![allow(unsafe_code)]

use core::sync::atomic::Ordering;

use journal::Ring;
use journal::claims::{Claim, Owner};
use journal::locks::{Operation as Kind, StripeIndex};
use journal::record::{FileId, Header, Kind as RecordKind};

use crate::sys::{SignalsBlocked, syscall};

/// Most locks that one operation takes: two directories, a victim directory, two files.
const LOCKS_MAX: usize = 5;

/// What to write into a record.
#[derive(Clone, Copy)]
pub struct Draft<'a> {
    /// Its kind.
    pub kind: RecordKind,
    /// The file that is meant.
    pub file: FileId,
    /// First path.
    pub path1: &'a [u8],
    /// Second path.
    pub path2: &'a [u8],
    /// Data that is known before the call.
    pub data: &'a [u8],
    /// By kind, see `journal::record::Kind`.
    pub a: u64,
    /// By kind.
    pub b: u64,
    /// By kind.
    pub c: u64,
    /// `FLAG_…`.
    pub flags: u8,
}

impl Draft<'_> {
    /// A record of this kind about nothing yet.
    pub const fn new(kind: RecordKind) -> Self {
        Self { kind, file: FileId::NONE, path1: b"", path2: b"", data: b"", a: 0, b: 0, c: 0, flags: 0 }
    }

    fn header(&self, pid: u32, data_bytes: usize) -> Header {
        Header {
            kind: self.kind as u8,
            flags: self.flags,
            path1_bytes: self.path1.len() as u16,
            path2_bytes: self.path2.len() as u16,
            seq: 0,
            reserved: 0,
            ino: self.file.ino,
            dev: self.file.dev,
            data_bytes: data_bytes as u32,
            a: self.a,
            b: self.b,
            c: self.c,
            pid_and_time: u64::from(pid) << 32,
        }
    }
}

enum Entered {
    Inside(Kind),
    Moving,
}

/// An operation in flight. Leaves it, with all its locks, when dropped.
pub struct Operation<'r> {
    /// The ring.
    pub ring: &'r Ring,
    /// The calling thread's slot.
    pub me: Owner,
    held: [Option<StripeIndex>; LOCKS_MAX],
    /// The file whose contents or attributes change, and the flags of its records.
    subject: Option<(FileId, u8)>,
    entered: Entered,
    /// Restored last: fields are dropped after `Operation::drop` has run.
    _signals: Option<SignalsBlocked>,
}

impl<'r> Operation<'r> {
    fn begin(ring: &'r Ring, entered: Entered) -> Option<Self> {
        let Some(me) = crate::thread::slot(ring) else {
            lose(ring);
            return None;
        };
        note_stack(ring, me);
        let signals = match entered {
            Entered::Inside(Kind::Contents) => {
                ring.enter(me, Kind::Contents);
                None
            }
            Entered::Inside(Kind::Names) => {
                let signals = SignalsBlocked::new();
                ring.enter(me, Kind::Names);
                Some(signals)
            }
            Entered::Moving => {
                let signals = SignalsBlocked::new();
                ring.begin_move(me);
                Some(signals)
            }
        };
        Some(Self { ring, me, held: [None; LOCKS_MAX], subject: None, entered, _signals: signals })
    }

    /// Enters an operation on the contents or attributes of files that are known by their inode.
    #[inline(always)]
    pub fn on_contents(ring: &'r Ring) -> Option<Self> {
        Self::begin(ring, Entered::Inside(Kind::Contents))
    }

    /// Enters an operation on names. Signals are blocked until it is left.
    pub fn on_names(ring: &'r Ring) -> Option<Self> {
        Self::begin(ring, Entered::Inside(Kind::Names))
    }

    /// Enters an operation that may change where a path leads; all other operations on names are kept out.
    pub fn moving(ring: &'r Ring) -> Option<Self> {
        Self::begin(ring, Entered::Moving)
    }

    /// Takes locks, in the order that all threads agree on. Call once an operation.
    pub fn lock(&mut self, stripes: &mut [StripeIndex]) {
        stripes.sort_unstable();
        let mut last = None;
        let mut held = self.held.iter_mut();
        for stripe in stripes.iter() {
            if last != Some(*stripe)
                && self.ring.lock(*stripe, self.me)
                && let Some(place) = held.next()
            {
                *place = Some(*stripe);
            }
            last = Some(*stripe);
        }
    }

    /// Takes the lock of the file that the operation is about. If a signal handler changes the same file meanwhile, it is
    /// re-read in the end: the order of the two records may not be that of the effects.
    pub fn lock_file(&mut self, file: FileId, flags: u8) {
        self.subject = Some((file, flags));
        self.lock(&mut [StripeIndex::of_file(file)]);
    }

    /// [`Operation::lock`] for what is there of `stripes`.
    pub fn lock_some(&mut self, stripes: &mut [Option<StripeIndex>; 3]) {
        stripes.sort_unstable();
        for stripe in stripes.iter().flatten() {
            self.lock_also(*stripe);
        }
    }

    /// Gives back what is held and takes these instead, in the order that all threads agree on. Nothing that was
    /// found out under the old locks is certain any more, except what names can't change: other operations on names
    /// go on, but none moves a directory.
    pub fn relock(&mut self, stripes: &mut [StripeIndex]) {
        for held in self.held.iter_mut().rev() {
            if let Some(stripe) = held.take() {
                self.ring.unlock(stripe);
            }
        }
        self.lock(stripes);
    }

    /// Takes one more lock, which must come after those that are held.
    pub fn lock_also(&mut self, stripe: StripeIndex) {
        let mine = self.held.contains(&Some(stripe));
        if !mine
            && self.ring.lock(stripe, self.me)
            && let Some(place) = self.held.iter_mut().find(|place| place.is_none())
        {
            *place = Some(stripe);
        }
    }

    /// Claims a record with room for `data_bytes` of data, writes what is known and declares the intent.
    pub fn intend(&self, draft: &Draft<'_>, data_bytes: usize) -> Option<Pending> {
        let pending = self.prepare(draft, data_bytes)?;
        self.ring.intend(&pending.claim);
        Some(pending)
    }

    /// Claims a record and writes its header and paths; the data is the caller's to fill before [`Operation::declare`].
    pub fn prepare(&self, draft: &Draft<'_>, data_bytes: usize) -> Option<Pending> {
        let data_bytes = data_bytes.max(draft.data.len());
        if draft.path1.len() > usize::from(u16::MAX) || draft.path2.len() > usize::from(u16::MAX) {
            lose(self.ring);
            return None;
        }
        let payload_bytes = draft.path1.len() + draft.path2.len() + data_bytes;
        if payload_bytes > journal::record::PAYLOAD_BYTES_MAX {
            lose(self.ring);
            return None;
        }
        let claim = self.ring.claim(self.me, payload_bytes)?;
        let pid = self.ring.slot(self.me).map_or(0, |slot| slot.pid.load(Ordering::Relaxed));
        let pending = Pending { claim, header: draft.header(pid, data_bytes) };
        self.ring.write_header(&pending.claim, &pending.header);
        let (payload, room) = self.ring.payload(&pending.claim);
        let mut at = 0;
        for part in [draft.path1, draft.path2, draft.data] {
            if at + part.len() <= room {
                // SAFETY: inside the claim's payload, checked above; the parts are the caller's memory, not the ring.
                unsafe { core::ptr::copy_nonoverlapping(part.as_ptr(), payload.add(at), part.len()) };
                at += part.len();
            }
        }
        Some(pending)
    }

    /// Declares the intent of a prepared record.
    pub fn declare(&self, pending: &Pending) {
        self.ring.intend(&pending.claim);
    }

    /// Address and size of the data area of a pending record.
    pub fn data(&self, pending: &Pending) -> (*mut u8, usize) {
        let (payload, room) = self.ring.payload(&pending.claim);
        let paths = usize::from(pending.header.path1_bytes) + usize::from(pending.header.path2_bytes);
        // SAFETY: `prepare` claimed room for the paths, so this stays inside the claim.
        (unsafe { payload.add(paths.min(room)) }, room.saturating_sub(paths))
    }

    /// Commits what happened: the header as `change` leaves it. If somebody has decided the record meanwhile, because
    /// this thread was stopped for long, what it touched is recorded as to be re-read.
    pub fn commit(&self, mut pending: Pending, change: impl FnOnce(&mut Header)) {
        change(&mut pending.header);
        self.ring.write_header(&pending.claim, &pending.header);
        if !self.ring.commit(&pending.claim) {
            lose(self.ring);
        }
    }

    /// Drops a record whose call had no effect.
    pub fn abort(&self, pending: &Pending) {
        self.ring.abort(&pending.claim);
    }

    /// Records that a call on `file` has failed. The kernel may have changed the file's times all the same: it does so
    /// before it looks at what the call asks for (`file_modified` in ext4's fallocate and in all writes).
    pub fn failed(&self, file: FileId, flags: u8) {
        self.reread(file, 0, 0, flags);
    }

    /// Records that a range of `file` is to be re-read from the primary.
    pub fn reread(&self, file: FileId, offset: u64, bytes: u64, flags: u8) {
        let draft = Draft { file, a: offset, b: bytes, flags, ..Draft::new(RecordKind::Reread) };
        if let Some(pending) = self.intend(&draft, 0) {
            self.commit(pending, |_| {});
        }
    }
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        if let Some((file, flags)) = self.subject
            && self.ring.was_nested(self.me)
        {
            self.reread(file, 0, u64::MAX, flags);
        }
        for stripe in self.held.iter().rev().flatten() {
            self.ring.unlock(*stripe);
        }
        match self.entered {
            Entered::Inside(kind) => self.ring.leave(self.me, kind),
            Entered::Moving => self.ring.end_move(self.me),
        }
    }
}

/// A record that is claimed and not yet decided.
pub struct Pending {
    /// Its place.
    pub claim: Claim,
    /// Its header as written.
    pub header: Header,
}

/// Commits an optional record, or drops it when the call failed; without one, only the loss was counted.
pub fn conclude(
    operation: &Operation<'_>,
    pending: Option<Pending>,
    succeeded: bool,
    change: impl FnOnce(&mut Header),
) {
    match pending {
        Some(pending) if succeeded => operation.commit(pending, change),
        Some(pending) => operation.abort(&pending),
        None => {}
    }
}

/// What the kernel puts on the stack for a signal handler is larger than this: red zone, `ucontext_t`, `siginfo_t` and
/// the registers of the floating-point unit.
const SIGNAL_FRAME_BYTES_MIN: u64 = 1024;

/// Notes where the stack stands when the outermost operation begins.
///
/// A handler that interrupts an operation runs below its frame. So if one is on record and the stack doesn't stand below
/// it, a handler has jumped out of it; what it left is settled.
#[inline(always)]
fn note_stack(ring: &Ring, me: Owner) {
    let Some(slot) = ring.slot(me) else { return };
    let marker = 0u8;
    let here = (&raw const marker) as u64;
    if slot.inside.load(Ordering::Relaxed) == 0 {
        slot.stack.store(here, Ordering::Relaxed);
    } else if here + SIGNAL_FRAME_BYTES_MIN > slot.stack.load(Ordering::Relaxed) && !on_alternate_stack() {
        ring.settle_own(me);
        slot.stack.store(here, Ordering::Relaxed);
    }
}

/// True on the stack that sigaltstack(2) has set up, which lies anywhere.
#[cold]
fn on_alternate_stack() -> bool {
    let mut stack = libc::stack_t { ss_sp: core::ptr::null_mut(), ss_flags: 0, ss_size: 0 };
    // SAFETY: the kernel writes one structure.
    unsafe { syscall!(libc::SYS_sigaltstack, 0, &raw mut stack) };
    stack.ss_flags & libc::SS_ONSTACK != 0
}

/// Counts a change of which no record could be made: the mirrors will be compared.
#[cold]
pub fn lose(ring: &Ring) {
    ring.lose();
}
