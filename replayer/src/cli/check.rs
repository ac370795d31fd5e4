//! `lockstep status --check`: one line and an exit status, as the Monitoring Plugins Development Guidelines ask for.

use crate::exit::Exit;
use crate::status::{MirrorState, MirrorStatus, Report, SetStatus};
use std::io::Write;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Level {
    Ok,
    Warning,
    Critical,
    Unknown,
}

impl Level {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
            Self::Unknown => "UNKNOWN",
        }
    }

    const fn exit(self) -> Exit {
        match self {
            Self::Ok => Exit::Done,
            Self::Warning => Exit::No,
            Self::Critical => Exit::Trouble,
            Self::Unknown => Exit::Unknown,
        }
    }
}

/// A mirror that is behind by more than this is worth a look.
const LAG_SECONDS_MAX: f64 = 60.0;

/// Prints the line.
///
/// # Errors
/// If stdout can't be written to.
pub fn main(report: anyhow::Result<Report>) -> anyhow::Result<Exit> {
    let (level, text) = match &report {
        Ok(report) => judge(report),
        Err(error) => (Level::Unknown, super::describe(error).replace('\n', "; ")),
    };
    writeln!(std::io::stdout(), "LOCKSTEP {} - {text}", level.word())?;
    Ok(level.exit())
}

fn judge(report: &Report) -> (Level, String) {
    if report.sets.is_empty() {
        return (Level::Unknown, "there is no set".to_owned());
    }
    let mut findings: Vec<(Level, String)> = report.sets.iter().flat_map(judge_set).collect();
    let level = findings.iter().map(|(level, _)| *level).max().unwrap_or(Level::Ok);
    // The worst first: pagers cut lines off.
    findings.sort_by_key(|(level, _)| std::cmp::Reverse(*level));
    let mirrors: usize = report.sets.iter().map(|set| set.mirrors.len()).sum();
    let text = match findings.is_empty() {
        true => format!("{mirrors} mirrors of {} sets are in step", report.sets.len()),
        false => findings.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join("; "),
    };
    (level, format!("{text} | {}", performance(report)))
}

fn judge_set(set: &SetStatus) -> Vec<(Level, String)> {
    let mut findings = Vec::new();
    if set.mirrors.is_empty() {
        findings.push((Level::Warning, format!("{}: it has no mirrors", set.name)));
    }
    let behind = set.mirrors.iter().any(|mirror| mirror.lag_records > 0 || mirror.lag_bytes > 0);
    if set.replayer.pid.is_none() && behind {
        findings.push((Level::Critical, format!("{}: no replayer runs and records wait", set.name)));
    }
    for program in &set.coverage.not_followed {
        // It counts as long as a mirror may lack what it wrote, which `complete` says.
        if set.mirrors.iter().any(|mirror| !mirror.complete) {
            let name = program.program.escape_debug();
            findings.push((Level::Warning, format!("{}: {name} was not followed ({})", set.name, program.reason)));
        }
    }
    findings.extend(set.mirrors.iter().filter_map(|mirror| {
        let (level, text) = judge_mirror(mirror)?;
        Some((level, format!("{}/{}: {text}", set.name, mirror.name.escape_debug())))
    }));
    findings
}

fn judge_mirror(mirror: &MirrorStatus) -> Option<(Level, String)> {
    let because =
        mirror.last_error.as_deref().map(|error| format!(": {}", error.replace('\n', ", "))).unwrap_or_default();
    match mirror.state {
        MirrorState::Broken => Some((Level::Critical, format!("broken{because}"))),
        MirrorState::Away => Some((Level::Critical, format!("away since {}{because}", mirror.since))),
        MirrorState::Paused => Some((Level::Warning, format!("paused since {}", mirror.since))),
        MirrorState::Resyncing => Some((Level::Warning, format!("resyncing since {}", mirror.since))),
        MirrorState::Current | MirrorState::CatchingUp if !mirror.complete => {
            Some((Level::Warning, "not complete".to_owned()))
        }
        MirrorState::CatchingUp if mirror.lag_seconds > LAG_SECONDS_MAX => {
            Some((Level::Warning, format!("{:.0} s behind", mirror.lag_seconds)))
        }
        MirrorState::Current | MirrorState::CatchingUp => None,
    }
}

/// `label=value[unit];warn`, one pair a mirror.
fn performance(report: &Report) -> String {
    let mirrors = report.sets.iter().flat_map(|set| set.mirrors.iter().map(move |mirror| (set, mirror)));
    let pairs = mirrors.map(|(set, mirror)| {
        let label = format!("{}/{}", set.name, mirror.name).replace(['\'', '='], "_");
        let (seconds, records) = (mirror.lag_seconds, mirror.lag_records);
        format!("'{label} lag'={seconds:.0}s;{LAG_SECONDS_MAX:.0} '{label} records'={records}")
    });
    pairs.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::NotFollowed;

    fn report(state: MirrorState, complete: bool) -> Report {
        let mirror = MirrorStatus { name: "m".into(), state, complete, ..MirrorStatus::default() };
        let mut set = SetStatus { name: "s".into(), mirrors: vec![mirror], ..SetStatus::default() };
        set.replayer.pid = Some(1);
        Report { sets: vec![set] }
    }

    #[test]
    fn the_worst_decides() {
        assert_eq!(judge(&Report::default()).0, Level::Unknown);
        for (state, level) in [
            (MirrorState::Current, Level::Ok),
            (MirrorState::CatchingUp, Level::Ok),
            (MirrorState::Resyncing, Level::Warning),
            (MirrorState::Paused, Level::Warning),
            (MirrorState::Away, Level::Critical),
            (MirrorState::Broken, Level::Critical),
        ] {
            assert_eq!(judge(&report(state, true)).0, level, "{state}");
            assert!(judge(&report(state, false)).0 >= Level::Warning, "{state}, not complete");
        }
    }

    #[test]
    fn records_that_wait_for_a_replayer_are_critical() {
        let mut report = report(MirrorState::CatchingUp, true);
        report.sets[0].mirrors[0].lag_records = 7;
        assert_eq!(judge(&report).0, Level::Ok);
        report.sets[0].replayer.pid = None;
        assert_eq!(judge(&report).0, Level::Critical);
    }

    #[test]
    fn a_program_that_was_not_followed_is_named_until_repaired() {
        let program = NotFollowed { reason: "static".into(), program: "/bin/busybox".into(), count: 1 };
        let mut before = report(MirrorState::Current, false);
        before.sets[0].coverage.not_followed.push(program.clone());
        let (level, text) = judge(&before);
        assert!(level == Level::Warning && text.contains("busybox"), "{text}");
        let mut after = report(MirrorState::Current, true);
        after.sets[0].coverage.not_followed.push(program);
        assert_eq!(judge(&after).0, Level::Ok);
    }
}
