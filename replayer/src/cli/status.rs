//! `lockstep status`: how every set and every mirror is.

use super::{Global, check, select};
use crate::client::{self, ClientError};
use crate::control::Question;
use crate::exit::Exit;
use crate::set::Set;
use crate::status::{MirrorState, Report, SetStatus, without_replayer};
use anyhow::{Context, anyhow};
use std::io::Write;
use std::time::Duration;

/// Shows how every set and every mirror is
#[derive(clap::Args, Debug)]
#[command(before_long_help = "Examples:
  lockstep status
  lockstep status --json
  lockstep status --check        (for Nagios, Icinga and others that run plugins)")]
pub struct Status {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// One line, and exit 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN
    #[arg(long, conflicts_with = "json")]
    check: bool,
}

/// How long a replayer may take to say how it is: it never waits for a mirror to do so.
const ANSWER_MAX: Duration = Duration::from_secs(10);

impl Status {
    /// Runs it.
    ///
    /// # Errors
    /// If a set can't be looked at.
    pub fn main(&self, global: &Global) -> anyhow::Result<Exit> {
        if self.check {
            return check::main(report(global));
        }
        let report = report(global)?;
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string(&report)?)?;
            return Ok(Exit::Done);
        }
        if report.sets.is_empty() {
            writeln!(out, "no sets; make one: lockstep run --primary DIR --mirror DIR -- PROGRAM")?;
        }
        for (number, set) in report.sets.iter().enumerate() {
            let text = set.to_string();
            let text = if global.colours_stdout() { coloured(&text, set) } else { text };
            write!(out, "{}{text}", if number > 0 { "\n" } else { "" })?;
        }
        Ok(Exit::Done)
    }
}

/// The status of all sets that are meant.
fn report(global: &Global) -> anyhow::Result<Report> {
    let sets = select::sets(global)?;
    Ok(Report { sets: sets.iter().map(of_set).collect::<anyhow::Result<_>>()? })
}

/// The status of one set: from its replayer, else from what is on disk.
///
/// # Errors
/// If neither can be had.
pub fn of_set(set: &Set) -> anyhow::Result<SetStatus> {
    match client::ask(set, &Question::Status, ANSWER_MAX) {
        Ok(answer) => answer.set.ok_or_else(|| anyhow!("the replayer of the set {} gave no status", set.name())),
        Err(ClientError::NoReplayer { .. } | ClientError::BrokenOff { .. }) => {
            without_replayer(set).with_context(|| format!("cannot look at the set {}", set.name()))
        }
        Err(error) => Err(error.into()),
    }
}

/// The text with the mirrors' states in colour.
fn coloured(text: &str, set: &SetStatus) -> String {
    const RESET: &str = "\x1b[0m";
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for mirror in &set.mirrors {
        let colour = match mirror.state {
            MirrorState::Current if mirror.complete => "\x1b[32m",
            MirrorState::Away | MirrorState::Broken => "\x1b[31m",
            MirrorState::Current | MirrorState::CatchingUp | MirrorState::Resyncing | MirrorState::Paused => "\x1b[33m",
        };
        let state = mirror.state.to_string();
        let head = format!("mirror    {} {state}", mirror.name.escape_debug());
        if let Some(line) = lines.iter_mut().find(|line| line.trim_start().starts_with(&head))
            && let Some(at) = line.find(&head).map(|at| at + head.len() - state.len())
        {
            line.insert_str(at + state.len(), RESET);
            line.insert_str(at, colour);
        }
    }
    lines.into_iter().map(|line| line + "\n").collect()
}
