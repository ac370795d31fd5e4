//! How a replayer begins: where in the ring, with which numbers, and which mirrors can go on from where they were.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use anyhow::Context;
use crossbeam_channel::Receiver;

use super::Replayer;
use crate::cursor::{self, MirrorProgress, Place, Progress, ProgressFile, SharedCursor};
use crate::names::Names;
use crate::ring_file::RingFile;
use crate::sequencer::{Request, Sequencer};
use crate::set::{MirrorSettings, Set};
use crate::worker::Worker;

/// Name of the file in the set's directory that remembers the set-wide bindings.
const NAMES: &str = "bindings-set";

/// Where a replayer begins.
pub(super) struct Start {
    pub(super) place: Place,
    /// The ring is the one that the last replayer used, and its place in it is known.
    pub(super) same_ring: bool,
    /// Mirrors that are level although the ring is another: nothing was lost with the old one.
    level: bool,
}

impl Start {
    pub(super) fn find(set: &Set, ring: &RingFile, progress: &Progress) -> Self {
        let header = ring.header();
        let claims = ring.claims();
        let made_ns = header.made_ns.load(Ordering::Relaxed);
        let known = made_ns == progress.ring_made_ns && set.settings.generation == progress.generation;
        let cursor =
            SharedCursor::find(ring, cursor::SEQUENCER).and_then(|cursor| cursor.load(claims.head(), claims.end()));
        match cursor {
            Some(place) if known => Self { place, same_ring: true, level: true },
            _ => {
                let newest = if known { header.newest_seq.load(Ordering::Relaxed) } else { 0 };
                let place = Place { position: claims.head(), seq: progress.ceiling_seq.max(newest) };
                Self { place, same_ring: false, level: progress.at_rest && !known }
            }
        }
    }

    /// Puts on disk and into the ring what this start means, before anything is done.
    pub(super) fn store(&self, set: &Set, ring: &RingFile, progress: &ProgressFile) -> anyhow::Result<()> {
        let header = ring.header();
        progress.update(|progress| {
            if !self.same_ring {
                progress.records_before += progress.newest_seq.saturating_sub(progress.ring_first_seq);
                progress.ring_first_seq = self.place.seq;
                progress.lost_seen = 0;
                for mirror in progress.mirrors.values_mut() {
                    let missed = mirror.applied_seq != progress.newest_seq;
                    mirror.resync |= !self.level || missed;
                }
            }
            progress.generation = set.settings.generation;
            progress.ring_made_ns = header.made_ns.load(Ordering::Relaxed);
            progress.newest_seq = self.place.seq;
            progress.at_rest = false;
        })?;
        header.generation.store(set.settings.generation, Ordering::Relaxed);
        header.newest_seq.store(self.place.seq, Ordering::Release);
        let cursor = SharedCursor::find_or_make(ring, cursor::SEQUENCER, self.place);
        cursor.context("cannot keep a cursor in the ring: all entries are taken")?.store(self.place);
        Ok(())
    }

    pub(super) fn names(&self, set: &Set) -> anyhow::Result<Names> {
        let path = set.file(NAMES);
        if !self.same_ring {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", path.display()));
                }
                _ => {}
            }
        }
        Ok(Names::open(&path, self.place.seq)?)
    }
}

/// Starts the worker of a mirror, at the place where the last one left off if it can be known.
pub(super) fn start_worker(
    replayer: &Arc<Replayer>,
    settings: MirrorSettings,
    same_ring: bool,
) -> std::io::Result<JoinHandle<()>> {
    let backlog = &replayer.backlog;
    let claims = backlog.ring.claims();
    let ready = backlog.ready.load();
    let known: Option<MirrorProgress> = replayer.progress.get().mirrors.get(&settings.id).cloned();
    let cursor = SharedCursor::find(&backlog.ring, settings.id).filter(|_| same_ring);
    let found = cursor.and_then(|cursor| cursor.load(claims.head(), ready.position));
    let place = match &known {
        Some(known) if !known.resync => found.or((!same_ring).then_some(ready)),
        _ => None,
    };
    Worker::start(replayer, settings, place, known)
}

pub(super) fn start_sequencer(
    replayer: &Arc<Replayer>,
    requests: Receiver<Request>,
    names: Names,
) -> anyhow::Result<JoinHandle<()>> {
    let (registered, is_registered) = crossbeam_channel::bounded(1);
    let shared = Arc::clone(replayer);
    let thread = std::thread::Builder::new().name("sequencer".into()).spawn(move || {
        let me = shared.backlog.ring.register();
        if let Some(me) = me {
            // The slot's life word is this thread's: programs see by it that a replayer lives.
            shared.backlog.ring.header().replayer_slot.store(u32::from(me.0) + 1, Ordering::SeqCst);
        }
        let _ = registered.send(me.is_some());
        if let Some(me) = me {
            Sequencer::run(shared, requests, me, names);
        }
    });
    let thread = thread.context("cannot start a thread")?;
    anyhow::ensure!(
        is_registered.recv().unwrap_or(false),
        "cannot take part in the ring: every slot is taken by a thread that lives"
    );
    Ok(thread)
}
