//! What was stored through shared mappings, recorded under the lock of the file: what the pages hold when it is asked.
//!
//! Which pages that are the kernel tells (`tracking.rs`), or a whole range is recorded or read again. What is mapped is
//! kept in `mapped.rs`.

use journal::Ring;
use journal::locks::StripeIndex;
use journal::mappings::{MappingState, Range};
use journal::record::{DATA_BYTES_MAX, FLAG_WITHIN, Kind};
use journal::sys::process_id;

use crate::mapped::{self, Mapped, Table, any};
use crate::operation::{Draft, Operation, lose};
use crate::state;
use crate::sys::is_error;
use crate::tracking::{self, page_bytes, read_own};

/// Where stores are found by comparing, ranges up to this size are recorded with what they hold.
const UNTRACKED_BYTES_MAX: usize = 1 << 20;
/// Larger ranges aren't tracked: the kernel keeps two thousandths of their size to note which pages were stored to.
const TRACKED_BYTES_MAX: usize = 64 << 30;

/// What this process has mapped, if anything.
#[inline(always)]
pub fn mine() -> Option<(&'static Ring, &'static Table)> {
    if any() { found() } else { None }
}

#[cold]
fn found() -> Option<(&'static Ring, &'static Table)> {
    let (ring, table) = (state::ring()?, mapped::table()?);
    if !mapped::is_mine() {
        // A child that was made without the handlers of fork(3): it may have stored already.
        inherit(ring, table, Since::Unknown);
    }
    Some((ring, table))
}

/// When a child may have stored through what it has inherited.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// Not yet.
    Now,
    /// Any time.
    Unknown,
}

/// Enters what a child has inherited under its own number.
#[cold]
pub fn inherit(ring: &Ring, table: &Table, since: Since) {
    mapped::take_over();
    let pid = process_id();
    for inherited in table.all() {
        let Some(mut mapped) = table.enter_again(ring, pid, &inherited) else {
            lose(ring);
            continue;
        };
        match mapped.state {
            MappingState::Preparing => table.leave(ring, &mapped),
            MappingState::Readable => {}
            MappingState::Writable | MappingState::Tracked => {
                let size = tracking::reach(mapped.start(), mapped.range.bytes as usize);
                watch(ring, table, &mut mapped, size);
                if since == Since::Unknown {
                    under_lock(ring, table, &mapped, |operation, mapped| {
                        record_unknown(operation, &mapped, mapped.start(), mapped.end());
                    });
                }
            }
        }
    }
}

/// Enters a mapping that is about to be made.
pub fn add(ring: &Ring, range: &Range) -> Option<(&'static Table, Mapped)> {
    found();
    let entered = mapped::table_or_new().and_then(|table| Some((table, table.enter(ring, process_id(), range)?)));
    if entered.is_none() {
        lose(ring);
    }
    entered
}

/// Enters a mapping that is there already.
pub fn add_mapped(ring: &Ring, range: &Range, like: MappingState) {
    let Some((table, mut mapped)) = add(ring, range) else { return };
    match like {
        MappingState::Preparing | MappingState::Readable => {
            mapped.state = MappingState::Readable;
            table.set(ring, &mapped);
        }
        MappingState::Writable | MappingState::Tracked => {
            // Stores may be made by another thread already.
            under_lock(ring, table, &mapped, |operation, mapped| {
                let mut mapped = mapped;
                let size = tracking::reach(mapped.start(), mapped.range.bytes as usize);
                watch(ring, table, &mut mapped, size);
                record_unknown(operation, &mapped, mapped.start(), mapped.end());
            });
        }
    }
}

/// Has the stores to a mapping found from now on; none has been made so far. `size` is what the file has of it.
pub fn watch(ring: &Ring, table: &Table, mapped: &mut Mapped, size: usize) {
    let (start, bytes) = (mapped.start(), mapped.range.bytes as usize);
    let armed = size.min(bytes).next_multiple_of(page_bytes()).min(bytes);
    // Said first, so that the announcement finds what is announced; and once more when the kernel tells.
    mapped.state = MappingState::Writable;
    table.set(ring, mapped);
    if armed > TRACKED_BYTES_MAX {
        tracking::announce(mapped.index, mapped.turn, None);
    } else if tracking::track(mapped.index, mapped.turn, start, bytes, armed) {
        mapped.state = MappingState::Tracked;
        table.set(ring, mapped);
    }
}

/// Records what may have been stored to a mapping while the kernel did not tell, and tries to have it tell from now
/// on; if it doesn't, only the part that is asked for.
fn watch_again(operation: &Operation<'_>, table: &Table, mapped: &Mapped, start: usize, end: usize) {
    let mut mapped = *mapped;
    let size = tracking::reach(mapped.start(), mapped.range.bytes as usize);
    watch(operation.ring, table, &mut mapped, size);
    if mapped.state == MappingState::Tracked {
        record_unknown(operation, &mapped, mapped.start(), mapped.end());
    } else {
        record_unknown(operation, &mapped, start, end);
    }
}

/// First and last address of the pages that a range touches.
pub fn span(address: usize, bytes: usize) -> (usize, usize) {
    let mask = page_bytes() - 1;
    (address & !mask, address.saturating_add(bytes).saturating_add(mask) & !mask)
}

/// Runs `work` on a mapping under the lock of its file, if it is still there; on what it is then.
pub fn under_lock<R>(
    ring: &Ring,
    table: &Table,
    mapped: &Mapped,
    work: impl FnOnce(&Operation<'_>, Mapped) -> R,
) -> Option<R> {
    let mut operation = Operation::on_contents(ring)?;
    operation.lock(&mut [StripeIndex::of_file(mapped.range.file)]);
    let now = table.get(mapped.slot)?;
    (now.index == mapped.index && now.turn == mapped.turn).then(|| work(&operation, now))
}

/// Runs `work` on every mapping that a range of addresses touches, under its file's lock, with the part that is touched.
pub fn each_part(address: usize, bytes: usize, mut work: impl FnMut(&Operation<'_>, Mapped, (usize, usize))) {
    let Some((ring, table)) = mine() else { return };
    let (start, end) = span(address, bytes);
    for mapped in table.all().filter(|mapped| mapped.part(start, end).is_some()) {
        under_lock(ring, table, &mapped, |operation, mapped| {
            if let Some(part) = mapped.part(start, end) {
                work(operation, mapped, part);
            }
        });
    }
}

/// Records what was stored to a range of addresses.
pub fn record(address: usize, bytes: usize) {
    if any() {
        let (start, end) = span(address, bytes);
        record_where(|mapped| mapped.part(start, end));
    }
}

/// Records what was stored to those parts of mappings that are chosen.
#[cold]
#[inline(never)]
pub fn record_where(choose: impl Fn(&Mapped) -> Option<(usize, usize)>) {
    let Some((ring, table)) = mine() else { return };
    for mapped in table.all().filter(|mapped| choose(mapped).is_some()) {
        under_lock(ring, table, &mapped, |operation, mapped| {
            if let Some((start, end)) = choose(&mapped) {
                record_part(operation, table, &mapped, start, end);
            }
        });
    }
}

/// Records what was stored to a part of a mapping.
fn record_part(operation: &Operation<'_>, table: &Table, mapped: &Mapped, start: usize, end: usize) {
    match mapped.state {
        MappingState::Preparing | MappingState::Readable => {}
        MappingState::Tracked => {
            let end = start + tracking::reach(start, end - start);
            if !tracking::scan(start, end, |from, to| record_run(operation, mapped, from, to)) {
                // The replayer that had the userfaultfd has ended, say.
                watch_again(operation, table, mapped, start, end);
            }
        }
        // What has kept the kernel from telling may have passed.
        MappingState::Writable if tracking::is_possible() => watch_again(operation, table, mapped, start, end),
        MappingState::Writable => record_unknown(operation, mapped, start, end),
    }
}

/// Records a range of which isn't known what was stored to it.
fn record_unknown(operation: &Operation<'_>, mapped: &Mapped, start: usize, end: usize) {
    if end - start <= UNTRACKED_BYTES_MAX {
        record_run(operation, mapped, start, end);
    } else {
        reread(operation, mapped, start, end);
    }
}

pub fn reread(operation: &Operation<'_>, mapped: &Mapped, start: usize, end: usize) {
    operation.reread(mapped.range.file, mapped.offset_of(start), (end - start) as u64, mapped.range.flags);
}

/// Records what a range of addresses holds, as far as it lies in the file.
fn record_run(operation: &Operation<'_>, mapped: &Mapped, start: usize, end: usize) {
    let mut at = start;
    while at < end {
        let wanted = (end - at).min(DATA_BYTES_MAX);
        let draft = Draft {
            file: mapped.range.file,
            a: mapped.offset_of(at),
            b: wanted as u64,
            flags: mapped.range.flags | FLAG_WITHIN,
            ..Draft::new(Kind::Write)
        };
        let Some(pending) = operation.prepare(&draft, wanted) else { return reread(operation, mapped, at, end) };
        let (data, _) = operation.data(&pending);
        let copied = read_own(at, data, wanted);
        operation.declare(&pending);
        if is_error(copied) || copied == 0 {
            // Beyond the end of the file, or not to be read by this process.
            operation.abort(&pending);
            return reread(operation, mapped, at, end);
        }
        operation.commit(pending, |header| {
            header.b = copied as u64;
            header.data_bytes = copied as u32;
        });
        at += copied as usize;
    }
}

/// Parts of mappings that have been taken out, for when the call that was to end them fails.
#[derive(Default)]
pub struct Taken {
    parts: [Option<(Range, MappingState)>; Self::PARTS],
    more: bool,
}

impl Taken {
    const PARTS: usize = 8;

    fn add(&mut self, part: (Range, MappingState)) {
        match self.parts.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(part),
            None => self.more = true,
        }
    }

    /// Enters them again.
    pub fn give_back(self, ring: &Ring) {
        for (range, state) in self.parts.iter().flatten() {
            add_mapped(ring, range, *state);
        }
        if self.more {
            lose(ring);
        }
    }
}

/// Records what was stored to a range that is about to be unmapped, and takes it out. Before the call: another thread
/// may get the same addresses the moment that they are free, for another file.
pub fn take(address: usize, bytes: usize) -> Taken {
    let mut taken = Taken::default();
    let Some((ring, table)) = mine() else { return taken };
    let (start, end) = span(address, bytes);
    for mapped in table.all().filter(|mapped| mapped.part(start, end).is_some()) {
        under_lock(ring, table, &mapped, |operation, mapped| {
            let Some((from, to)) = mapped.part(start, end).filter(|_| mapped.state != MappingState::Preparing) else {
                return;
            };
            record_part(operation, table, &mapped, from, to);
            let mapped = table.get(mapped.slot).unwrap_or(mapped);
            taken.add((mapped.between(from, to), mapped.state));
            match (mapped.start() < from, to < mapped.end()) {
                (false, false) => table.leave(ring, &mapped),
                (false, true) => table.set(ring, &Mapped { range: mapped.between(to, mapped.end()), ..mapped }),
                (true, false) => table.set(ring, &Mapped { range: mapped.between(mapped.start(), from), ..mapped }),
                (true, true) => {
                    // Entered before the first part shrinks, so that no moment knows of neither.
                    match table.enter(ring, process_id(), &mapped.between(to, mapped.end())) {
                        Some(part) => table.set(ring, &Mapped { state: mapped.state, ..part }),
                        None => lose(ring),
                    }
                    table.set(ring, &Mapped { range: mapped.between(mapped.start(), from), ..mapped });
                }
            }
        });
    }
    taken
}
