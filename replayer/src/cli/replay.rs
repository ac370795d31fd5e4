//! `lockstep replay`: the replayer in the foreground, for a systemd user unit; `run` starts it detached.

use super::run::Outer;
use super::{Global, select, supervisor};
use crate::exit::Exit;
use crate::replay::{self, Lifetime};
use anyhow::Context;
use std::os::unix::process::CommandExt;
use std::process::Command;

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
        if Outer::from_environment().is_some() {
            // A replayer that is itself wrapped would count as a program that lives, and wait for itself.
            let mut command = Command::new("/proc/self/exe");
            command.arg0("lockstep").arg("--state-dir").arg(set.state_dir()).args(["--set", set.name()]);
            command.args(global.verbosity()).arg("replay").args(self.detached.then_some("--detached"));
            command.env_remove("LD_PRELOAD").env_remove("LOCKSTEP_SET").env_remove("LOCKSTEP_STATE_DIR");
            return Err(command.exec()).context("cannot start the replayer outside of the set");
        }
        if !self.detached {
            supervisor::clear_stopped(&set);
        }
        replay::main(set, if self.detached { Lifetime::WhileNeeded } else { Lifetime::UntilStopped })
    }
}
