//! `lockstep stop`: ends the replayer.

use super::{Global, select, supervisor};
use crate::client::{Asked, ClientError, replayer_listens};
use crate::control::Question;
use crate::exit::Exit;
use anyhow::{Context, bail};
use std::time::{Duration, Instant};

/// Ends the replayer, when everything is applied
#[derive(clap::Args, Debug)]
#[command(before_long_help = "Examples:
  lockstep stop
  lockstep --set data stop --now")]
pub struct Stop {
    /// At once, leaving the rest in the journal
    #[arg(long)]
    now: bool,
}

/// How long a replayer that has said that it ends may take to be gone.
const GONE_MAX: Duration = Duration::from_secs(30);

impl Stop {
    /// Runs it.
    ///
    /// # Errors
    /// If the replayer can't end.
    pub fn main(&self, global: &Global) -> anyhow::Result<Exit> {
        let set = select::one_set(global)?;
        // First, so that a `run` that looks after the replayer lets it go.
        supervisor::set_stopped(&set).with_context(|| format!("cannot write in {:?}", set.dir()))?;
        // Drained, it may take as long as a mirror does.
        match Asked::new(&set, &Question::Stop { now: self.now }).and_then(|mut asked| asked.answer(&set, None)) {
            Ok(answer) if answer.ok => {}
            Ok(answer) => bail!("cannot stop the replayer: {}", answer.reason.unwrap_or_default()),
            Err(ClientError::NoReplayer { .. }) => {
                log::info!("no replayer runs for the set {}", set.name());
            }
            // It may be gone before its answer is.
            Err(ClientError::BrokenOff { .. }) => {}
            Err(error) => return Err(error).context("cannot stop the replayer"),
        }
        let begun = Instant::now();
        // The lock tells that it has ended altogether; the socket goes earlier.
        // Or somebody wants a new one already.
        while (replayer_listens(&set) || !set.has_no_replayer()?) && supervisor::is_stopped(&set) {
            if begun.elapsed() > GONE_MAX {
                bail!(
                    "the replayer of the set {} was told to stop and has not ended\nsee its log: {:?}",
                    set.name(),
                    set.file("replayer.log")
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Exit::Done)
    }
}
