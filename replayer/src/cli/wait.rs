//! `lockstep wait`: returns when mirrors have applied something.

use super::{Global, select};
use crate::client::{Asked, ClientError};
use crate::control::{Purpose, Question};
use crate::exit::Exit;
use anyhow::bail;
use std::time::{Duration, Instant};

/// Returns when the mirrors have applied everything up to now
#[derive(clap::Args, Debug)]
#[command(before_long_help = "Examples:
  lockstep wait
  lockstep wait --mirror backup --timeout 30
  lockstep wait --seq 4711")]
pub struct Wait {
    /// Wait for this mirror only: its name, spec or path
    #[arg(long, value_name = "MIRROR")]
    mirror: Option<String>,
    /// Wait for this sequence number
    #[arg(long, value_name = "N")]
    seq: Option<u64>,
    /// Give up after S seconds, with exit status 1
    #[arg(long, value_name = "S", value_parser = seconds, env = "LOCKSTEP_TIMEOUT", hide_env = true)]
    timeout: Option<Duration>,
}

/// How much later than its deadline a replayer may answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

impl Wait {
    /// Runs it.
    ///
    /// # Errors
    /// If there is nothing to wait for, or no replayer.
    pub fn main(&self, global: &Global) -> anyhow::Result<Exit> {
        let deadline = self.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut sets = select::sets(global)?;
        if let Some(which) = &self.mirror {
            if let [set] = sets.as_slice() {
                select::mirror(set, which)?;
            }
            sets.retain(|set| set.mirror(which).is_some());
            if sets.is_empty() {
                bail!("no set has a mirror {which:?}\n`lockstep mirror list` lists those there are");
            }
            if sets.len() > 1 {
                bail!("several sets have a mirror {which:?}\nsay which: --set NAME");
            }
        }
        if sets.is_empty() {
            select::one_set(global)?;
        }
        if self.seq.is_some() && sets.len() > 1 {
            // A sequence number means something in one set only.
            select::one_set(global)?;
        }
        let mut exit = Exit::Done;
        for set in &sets {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let question = Question::Wait {
                mirror: self.mirror.as_deref().and_then(|which| set.mirror(which)).map(|mirror| mirror.name.clone()),
                seq: self.seq,
                timeout_ms: left.map(|left| left.as_millis() as u64),
                purpose: Purpose::Wait,
            };
            let asked = Asked::new(set, &question);
            match asked.and_then(|mut asked| asked.answer(set, left.map(|left| left + ANSWER_MAX))) {
                Ok(answer) if answer.ok => {}
                Ok(answer) => {
                    let reason = answer.reason.unwrap_or_default();
                    eprintln!("lockstep: the mirrors of the set {} are not level: {reason}", set.name());
                    exit = Exit::No;
                }
                Err(error @ ClientError::BrokenOff { .. }) => {
                    bail!(
                        "{error}\nwhat was left is applied when a replayer runs again: lockstep --set {} replay",
                        set.name()
                    )
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(exit)
    }
}
