//! What `status` says: the types behind `status --json`, and the text for people.
//!
//! The JSON is a contract (SPEC.md, "`status --json`"): fields are only ever added. The replayer fills the types from
//! what its workers publish; without a replayer they are filled from the set's directory and its ring.

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use journal::Ring;
use journal::claims::{CELL_BYTES, Fate, Peek, Position};
use serde::{Deserialize, Serialize};

use crate::coverage::realtime_seconds;
use crate::cursor::{self, Place, SharedCursor};
use crate::mirror::Mirror;
use crate::replay::Replayer;
use crate::ring_file::RingFile;
use crate::set::{MirrorSettings, Set};

/// Everything that `status` answers.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// One a set.
    pub sets: Vec<SetStatus>,
}

/// One set.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct SetStatus {
    /// Its name.
    pub name: String,
    /// Path of the primary, with replacement characters for what is not UTF-8.
    pub primary: String,
    /// Generation, from 1.
    pub generation: u64,
    /// Last sequence number given out.
    pub newest_seq: u64,
    /// Who replays.
    pub replayer: ReplayerStatus,
    /// Fill of the ring.
    pub ring: RingStatus,
    /// Fill of the journal on disk.
    pub journal: JournalStatus,
    /// What was followed and what was not.
    pub coverage: CoverageStatus,
    /// One a mirror.
    pub mirrors: Vec<MirrorStatus>,
}

/// The replayer of a set.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ReplayerStatus {
    /// Its process number, none when no replayer runs.
    pub pid: Option<u32>,
    /// Since when, RFC 3339.
    pub since: Option<String>,
}

/// The ring of a set.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct RingStatus {
    /// Bytes of its cells.
    pub bytes: u64,
    /// Bytes that are claimed and not released.
    pub used_bytes: u64,
}

/// The journal of a set on disk.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct JournalStatus {
    /// Files.
    pub segments: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// First sequence number in them.
    pub oldest_seq: Option<u64>,
}

/// What was followed and what was not, since the ring was made.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct CoverageStatus {
    /// Processes that have attached.
    pub processes: u64,
    /// Records that were given a sequence number.
    pub records: u64,
    /// Re-reads after a death, a revocation or a change that was not followed.
    pub repairs: u64,
    /// Programs that could not be followed.
    pub not_followed: Vec<NotFollowed>,
}

/// A program that could not be followed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NotFollowed {
    /// Why.
    pub reason: String,
    /// Its name.
    pub program: String,
    /// How often it was started.
    pub count: u64,
}

/// The state of a mirror (SPEC.md, "Mirror states").
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MirrorState {
    /// Has applied all that the ring held when asked.
    Current,
    /// Reachable, behind, order kept.
    #[default]
    CatchingUp,
    /// Unreachable, hung, full or read-only; tried again.
    Away,
    /// Being filled or rebuilt; not a prefix until done.
    Resyncing,
    /// A person is needed.
    Broken,
    /// Paused by a person.
    Paused,
}

impl fmt::Display for MirrorState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Current => "current",
            Self::CatchingUp => "catching-up",
            Self::Away => "away",
            Self::Resyncing => "resyncing",
            Self::Broken => "broken",
            Self::Paused => "paused",
        })
    }
}

/// One mirror.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct MirrorStatus {
    /// Its name.
    pub name: String,
    /// What the user gave.
    pub spec: String,
    /// State.
    pub state: MirrorState,
    /// False from the moment that something may be missing until a repair or verify has passed.
    pub complete: bool,
    /// Re-reads whose place in the order has not been reached yet.
    pub pending_repairs: u64,
    /// Last sequence number applied.
    pub applied_seq: u64,
    /// Last sequence number known to be on stable storage.
    pub durable_seq: u64,
    /// Records behind.
    pub lag_records: u64,
    /// Bytes of the ring behind.
    pub lag_bytes: u64,
    /// Age of the oldest record that is not applied.
    pub lag_seconds: f64,
    /// What the mirror's file system can't hold.
    pub limits: Vec<String>,
    /// What went wrong last, with what to do about it.
    pub last_error: Option<String>,
    /// Since when the state is what it is, RFC 3339.
    pub since: String,
}

impl Replayer {
    /// The status of the set, from what the threads publish. Never waits for a mirror or a disk.
    pub fn status(&self) -> SetStatus {
        let ring = &self.backlog.ring;
        let ready = self.backlog.ready.load();
        let mirrors = self.backlog.mirrors();
        let (name, generation) = {
            let set = self.set();
            (set.name().to_owned(), set.settings.generation)
        };
        SetStatus {
            name,
            primary: self.primary.display().to_string(),
            generation,
            newest_seq: ready.seq,
            replayer: ReplayerStatus { pid: Some(std::process::id()), since: Some(rfc3339(self.since)) },
            ring: ring_status(ring),
            journal: JournalStatus::default(),
            coverage: CoverageStatus {
                processes: ring.header().attached.load(Ordering::Relaxed),
                records: self.records_before + ready.seq.saturating_sub(self.ring_first_seq),
                repairs: ring.header().repairs.load(Ordering::Relaxed),
                not_followed: self.coverage.not_followed(),
            },
            mirrors: mirrors.iter().map(|mirror| mirror_status(ring, ready, mirror)).collect(),
        }
    }
}

fn mirror_status(ring: &Ring, ready: Place, mirror: &Mirror) -> MirrorStatus {
    let facts = mirror.facts();
    let place = mirror.place.load();
    let whole = !facts.needs_resync && !mirror.is_overrun() && facts.state != MirrorState::Resyncing;
    let applied_seq = if whole { place.seq } else { facts.prefix_seq };
    let lag_records = ready.seq.saturating_sub(applied_seq);
    let (lag_bytes, oldest) = match whole {
        true => (bytes_since(ring, place.position), time_of(ring, place)),
        false => (bytes_since(ring, ring.claims().head()), None),
    };
    // A mirror whose oldest record can't be looked at is at least as old as its trouble.
    let waited = || SystemTime::now().duration_since(facts.since).unwrap_or_default().as_secs_f64();
    let age = oldest.map_or_else(waited, |seconds| realtime_seconds().saturating_sub(u64::from(seconds)) as f64);
    // The worker looks up from its records now and then; what the ring holds is asked here and now.
    let is_level = mirror.has_settled(ring.claims().end()) && facts.pending_repairs == 0;
    let state = match facts.state {
        MirrorState::Current | MirrorState::CatchingUp if whole && is_level => MirrorState::Current,
        MirrorState::Current => MirrorState::CatchingUp,
        state => state,
    };
    MirrorStatus {
        name: mirror.settings.name.clone(),
        spec: mirror.settings.spec.clone(),
        state,
        complete: whole && facts.incomplete_since == 0 && facts.unreadable == 0,
        pending_repairs: facts.pending_repairs,
        applied_seq,
        durable_seq: facts.durable_seq.min(applied_seq),
        lag_records,
        lag_bytes: if lag_records == 0 { 0 } else { lag_bytes },
        lag_seconds: if lag_records == 0 { 0.0 } else { age },
        limits: facts.limits,
        last_error: facts.last_error,
        since: rfc3339(facts.since),
    }
}

/// The status of a set for which no replayer runs: what its directory and its ring tell.
///
/// # Errors
/// What kept them from being read.
pub fn without_replayer(set: &Set) -> anyhow::Result<SetStatus> {
    let progress = cursor::read(&set.file("progress.json"))?;
    let ring = RingFile::open(set)?;
    let ring = ring.as_deref();
    let made_ns = ring.map_or(0, |ring| ring.header().made_ns.load(Ordering::Relaxed));
    let known = ring.filter(|_| made_ns == progress.ring_made_ns);
    let sequenced = known.and_then(|ring| place_of(ring, cursor::SEQUENCER));
    let newest_seq = sequenced.map_or(progress.newest_seq, |place| place.seq);
    let changed = set.file("progress.json").metadata().and_then(|data| data.modified());
    let since = rfc3339(changed.unwrap_or(UNIX_EPOCH));
    let mirror = |mirror: &MirrorSettings| {
        let stored = progress.mirrors.get(&mirror.id).cloned();
        let place = known.and_then(|ring| place_of(ring, mirror.id));
        let resync = stored.as_ref().is_none_or(|stored| stored.resync);
        let stored = stored.unwrap_or_default();
        let applied_seq = if resync { stored.applied_seq } else { place.map_or(stored.applied_seq, |place| place.seq) };
        let start = place.map(|place| place.position).or_else(|| ring.map(|ring| ring.claims().head()));
        let lag_bytes = ring.zip(start).map_or(0, |(ring, start)| bytes_since(ring, start));
        let lag_records = newest_seq.saturating_sub(applied_seq);
        MirrorStatus {
            name: mirror.name.clone(),
            spec: mirror.spec.clone(),
            state: match (mirror.paused, resync) {
                (true, _) => MirrorState::Paused,
                (false, true) => MirrorState::Resyncing,
                (false, false) if lag_bytes == 0 && lag_records == 0 => MirrorState::Current,
                (false, false) => MirrorState::CatchingUp,
            },
            complete: !resync && stored.incomplete_since == 0,
            pending_repairs: 0,
            applied_seq,
            durable_seq: stored.durable_seq.min(applied_seq),
            lag_records,
            lag_bytes,
            lag_seconds: match known.zip(place).and_then(|(ring, place)| time_of(ring, place)) {
                Some(seconds) => realtime_seconds().saturating_sub(u64::from(seconds)) as f64,
                None => 0.0,
            },
            limits: Vec::new(),
            last_error: None,
            since: since.clone(),
        }
    };
    let not_followed = progress.not_followed.iter().cloned();
    Ok(SetStatus {
        name: set.name().to_owned(),
        primary: set.settings.primary.display().to_string(),
        generation: set.settings.generation,
        newest_seq,
        replayer: ReplayerStatus::default(),
        ring: ring.map_or_else(RingStatus::default, ring_status),
        journal: JournalStatus::default(),
        coverage: CoverageStatus {
            processes: ring.map_or(0, |ring| ring.header().attached.load(Ordering::Relaxed)),
            records: progress.records_before + newest_seq.saturating_sub(progress.ring_first_seq),
            repairs: ring.map_or(0, |ring| ring.header().repairs.load(Ordering::Relaxed)),
            not_followed: not_followed.map(|(reason, program, count)| NotFollowed { reason, program, count }).collect(),
        },
        mirrors: set.settings.mirrors.iter().map(mirror).collect(),
    })
}

fn ring_status(ring: &Ring) -> RingStatus {
    let claims = ring.claims();
    RingStatus {
        bytes: ring.cells() * CELL_BYTES as u64,
        used_bytes: (ring.cells() - claims.free().min(ring.cells())) * CELL_BYTES as u64,
    }
}

fn place_of(ring: &Ring, identity: u64) -> Option<Place> {
    let claims = ring.claims();
    SharedCursor::find(ring, identity)?.load(claims.head(), claims.end())
}

fn bytes_since(ring: &Ring, position: Position) -> u64 {
    ring.claims().end().since(position).min(ring.cells()) * CELL_BYTES as u64
}

/// When the first record after `place` was sequenced, in seconds of CLOCK_REALTIME. The space may be given back and
/// used anew while it is looked at, so the record must carry the number that is expected.
fn time_of(ring: &Ring, place: Place) -> Option<u32> {
    const SKIPPED_MAX: usize = 1000;
    let claims = ring.claims();
    let mut position = place.position;
    for _ in 0..SKIPPED_MAX {
        let Peek::Decided(claim, fate) = claims.peek(position) else { return None };
        if matches!(fate, Fate::Committed | Fate::Repair) {
            let (header, _) = ring.record(&claim)?;
            return (header.seq == place.seq + 1).then_some(header.pid_and_time as u32);
        }
        position = position.plus(claim.cells);
    }
    None
}

/// A time as RFC 3339 has it, in UTC, to the second.
pub fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days are counted in eras of 400 years that begin on 1 March, so that leap days come last (Howard Hinnant,
    // "chrono-Compatible Low-Level Date Algorithms").
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

impl fmt::Display for SetStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "set {}  generation {}", self.name, self.generation)?;
        writeln!(f, "  primary   {}", self.primary.escape_debug())?;
        match (self.replayer.pid, &self.replayer.since) {
            (Some(pid), Some(since)) => writeln!(f, "  replayer  process {pid} since {since}")?,
            _ => writeln!(f, "  replayer  none runs")?,
        }
        writeln!(f, "  newest    {}", self.newest_seq)?;
        writeln!(f, "  ring      {} of {} used", bytes(self.ring.used_bytes), bytes(self.ring.bytes))?;
        let coverage = &self.coverage;
        let counts = (coverage.processes, coverage.records, coverage.repairs);
        writeln!(f, "  coverage  {} processes, {} records, {} repairs", counts.0, counts.1, counts.2)?;
        for it in &coverage.not_followed {
            writeln!(f, "            not followed: {} ({}), {} times", it.program.escape_debug(), it.reason, it.count)?;
        }
        for mirror in &self.mirrors {
            write!(f, "  mirror    {} {}", mirror.name.escape_debug(), mirror.state)?;
            writeln!(f, "{}", if mirror.complete { "" } else { ", not complete" })?;
            writeln!(f, "            {}", mirror.spec.escape_debug())?;
            write!(f, "            applied {}", mirror.applied_seq)?;
            let lag = (mirror.lag_records, bytes(mirror.lag_bytes), mirror.lag_seconds);
            writeln!(f, ", lag {} records, {}, {:.0} s; since {}", lag.0, lag.1, lag.2, mirror.since)?;
            if mirror.pending_repairs > 0 {
                writeln!(f, "            {} repairs pending", mirror.pending_repairs)?;
            }
            if !mirror.limits.is_empty() {
                writeln!(f, "            can't hold: {}", mirror.limits.join(", "))?;
            }
            if let Some(error) = &mirror.last_error {
                writeln!(f, "            last error: {}", error.replace('\n', "; "))?;
            }
        }
        Ok(())
    }
}

/// A number of bytes for people.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (0..UNITS.len()).rev().find(|unit| count >> (10 * unit) > 0).unwrap_or(0);
    match unit {
        0 => format!("{count} B"),
        _ => format!("{:.1} {}", count as f64 / (1u64 << (10 * unit)) as f64, UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_date() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn states_are_the_words_of_the_contract() {
        for (state, word) in [
            (MirrorState::Current, "current"),
            (MirrorState::CatchingUp, "catching-up"),
            (MirrorState::Away, "away"),
            (MirrorState::Resyncing, "resyncing"),
            (MirrorState::Broken, "broken"),
            (MirrorState::Paused, "paused"),
        ] {
            assert_eq!(serde_json::to_value(state).expect("a word"), word);
            assert_eq!(state.to_string(), word);
        }
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(16 << 20), "16.0 MiB");
    }
}
