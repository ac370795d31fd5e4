//! `lockstep replay`: the replayer in the foreground, for a systemd user unit; `run` starts it detached.

use super::{Global, select, supervisor};
use crate::exit::Exit;
use crate::replay::{self, Lifetime};

/// Runs the replayer in the foreground, until it is told to stop
#[derive(clap::Args, Debug)]
#[command(before_long_help = "Examples:
  lockstep replay
  lockstep --set data replay        (ExecStart= of a systemd user unit)")]
pub struct Replay {
    /// End when no wrapped program lives and every mirror is current
    #[arg(long, hide = true)]
    detached: bool,
}

impl Replay {
    /// Runs it.
    ///
    /// # Errors
    /// What keeps it from starting.
    pub fn main(&self, global: &Global) -> anyhow::Result<Exit> {
        let set = select::one_set(global)?;
        if !self.detached {
            supervisor::clear_stopped(&set);
        }
        replay::main(set, if self.detached { Lifetime::WhileNeeded } else { Lifetime::UntilStopped })
    }
}
