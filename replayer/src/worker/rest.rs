//! What a worker does when there is nothing to apply: settles times, finishes repairs, tells that the mirror is current,
//! and lets the mirror and its disk know how far it is.

use std::time::{Duration, Instant};

use super::{PLACE_EVERY, Phase, SETTLE_EVERY, Worker};
use crate::coverage::monotonic_ns;
use crate::cursor::{MirrorCursor, reached};
use crate::settle::Rest;
use crate::status::MirrorState;

/// How long nothing must come before times are settled unasked.
const QUIET: Duration = Duration::from_millis(10);
/// Objects that are settled at a time while records keep coming.
const SETTLED_BUSY_MAX: usize = 4096;
/// How long a mirror must have been at rest before it is written into it how far it is.
const CURSOR_AFTER: Duration = Duration::from_secs(1);
/// How long a mirror must have been at rest before its file system is asked to store everything.
const SYNC_AFTER: Duration = Duration::from_secs(5);

impl Worker {
    /// Looks whether the mirror is still where it was; if not, it is away from now on.
    pub(super) fn is_in_place(&mut self) -> bool {
        self.looked_at = Instant::now();
        let settings = &self.mirror.settings;
        let in_place = self.site.as_ref().is_some_and(|site| site.is_in_place(settings));
        if !in_place {
            let reason = format!("{:?} is no longer where it was", settings.path);
            self.go_away(MirrorState::Away, reason);
        }
        in_place
    }

    /// Brings times level, and finishes repairs that can be finished. A mirror is never called current that is not
    /// found where it should be.
    pub(super) fn settle(&mut self) {
        if !self.is_in_place() {
            return;
        }
        let Some(site) = &mut self.site else { return };
        self.settled_at = Instant::now();
        let position = self.place.position;
        let claims = self.replayer.backlog.ring.claims();
        let rests = || claims.end() == position;
        let (rest, objects_max) = if rests() { (Rest::AtRest, usize::MAX) } else { (Rest::Busy, SETTLED_BUSY_MAX) };
        self.mirror.set_busy_since(monotonic_ns());
        let repaired = site.applier.repair_pending(rest);
        let result = repaired.and_then(|_| site.applier.settle(rest, objects_max, rests));
        self.mirror.set_busy_since(0);
        if let Err(error) = result {
            self.take_trouble(&error, self.place.seq + 1);
            if self.phase == Phase::Serving {
                // Something of the primary can't be read: it is tried again, but not at once.
                self.sleep(SETTLE_EVERY);
            }
            return;
        }
        self.tell_repairs();
        self.settled = Some(self.place);
        self.mirror.set_settled(Some(self.place.position));
        if self.settle_for.is_some_and(|goal| reached(self.place.position, goal)) {
            self.settle_for = None;
        }
        self.replayer.backlog.changes.ring();
    }

    /// What is done when there is nothing to apply.
    pub(super) fn rest(&mut self) {
        let since = *self.dry_since.get_or_insert_with(Instant::now);
        let resting = since.elapsed();
        if self.settled != Some(self.place) {
            let waited_for = self.settle_for.is_some() || self.replayer.backlog.changes.is_watched();
            if !waited_for && resting < QUIET {
                return self.sleep(QUIET - resting);
            }
            self.settle();
            self.replayer.backlog.release();
            return self.tell_current();
        }
        if self.mirror.facts().state == MirrorState::CatchingUp {
            // Settled before it came to rest, because somebody waited.
            self.tell_current();
        }
        if self.settle_for.take().is_some() {
            // Asked again for what is settled already; times may have been set without a record since.
            return self.settle();
        }
        if !self.forget_others() {
            return;
        }
        let pending = self.site.as_ref().is_some_and(|site| site.applier.pending_repairs() > 0);
        if pending && self.settled_at.elapsed() >= QUIET * 10 {
            self.settle();
            return self.tell_current();
        }
        let is_written = self.written_seq == Some(self.place.seq);
        if !is_written && resting >= CURSOR_AFTER {
            return self.write_cursor();
        }
        let is_durable = self.mirror.facts().durable_seq >= self.place.seq;
        if !is_durable && resting >= SYNC_AFTER {
            return self.sync();
        }
        let next = if pending {
            QUIET * 10
        } else if !is_written {
            CURSOR_AFTER.saturating_sub(resting)
        } else if !is_durable {
            SYNC_AFTER.saturating_sub(resting)
        } else {
            PLACE_EVERY
        };
        self.sleep(next.max(Duration::from_millis(1)));
    }

    /// Tells that the mirror is current, if it is: level, settled, and nothing left to repair.
    fn tell_current(&mut self) {
        let pending = self.site.as_ref().is_none_or(|site| site.applier.pending_repairs() > 0);
        if !pending && self.phase == Phase::Serving && self.settled == Some(self.place) {
            self.tell(MirrorState::Current, None);
        }
    }

    /// Writes into the mirror how far it is.
    pub(super) fn write_cursor(&mut self) {
        let Some(site) = &self.site else { return };
        let consistent = !self.mirror.facts().needs_resync;
        let generation = self.replayer.set().settings.generation;
        let seq = self.place.seq;
        let cursor = MirrorCursor { generation, applied_seq: seq, consistent };
        self.mirror.set_busy_since(monotonic_ns());
        let written = site.write_cursor(&cursor);
        self.mirror.set_busy_since(0);
        // What has failed is not tried again before the mirror has moved on.
        self.written_seq = Some(seq);
        match written {
            Ok(()) => self.remember(|known| known.written_seq = seq),
            Err(error) => log::warn!("cannot write the cursor of mirror {}: {error}", self.mirror.settings.name),
        }
    }

    fn sync(&mut self) {
        let Some(site) = &self.site else { return };
        let seq = self.place.seq;
        if let Err(error) = site.sync() {
            return self.go_away(MirrorState::Away, format!("cannot sync {:?}: {error}", self.mirror.settings.path));
        }
        self.mirror.tell(|facts| facts.durable_seq = seq);
    }
}
