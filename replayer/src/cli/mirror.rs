//! `lockstep mirror` and `lockstep resync`: mirrors come, go, pause and are rebuilt, while programs run.

use super::mirrors::{self, Wanted};
use super::{Global, adopt, select, status};
use crate::client::{self, ClientError};
use crate::control::Question;
use crate::exit::Exit;
use crate::set::{IDENTITY_DIR, Identity, MirrorSettings, Set, SetError, StateDir};
use crate::status::MirrorStatus;
use anyhow::Context;
use clap::Subcommand;
use std::ffi::OsString;
use std::io::Write;
use std::time::Duration;

/// Adds, removes, lists, pauses and resumes mirrors, while programs run
#[derive(clap::Args, Debug)]
#[command(
    disable_help_subcommand = true,
    before_long_help = "Examples:
  lockstep mirror list
  lockstep mirror add /mnt/nas/data
  lockstep mirror pause data && tar -C /mnt/nas/data -cf copy.tar . && lockstep mirror resume data"
)]
pub struct Mirror {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Adds mirrors and has them filled
    Add(Add),
    /// Takes a mirror out of the set; its content stays
    Remove(Named),
    /// Lists the mirrors
    List(List),
    /// Applies nothing to a mirror any more, so that it can be copied
    Pause(Named),
    /// Goes on with a mirror
    Resume(Named),
}

#[derive(clap::Args, Debug)]
struct Add {
    /// Directories to keep equal to the primary
    #[arg(required = true, value_name = "SPEC")]
    specs: Vec<OsString>,
    /// Take over mirrors that are not empty: keep what is equal, overwrite or delete the rest
    #[arg(long)]
    adopt: bool,
    /// Don't ask
    #[arg(long, short)]
    yes: bool,
}

#[derive(clap::Args, Debug)]
struct Named {
    /// Name, spec or path of the mirror
    #[arg(value_name = "MIRROR")]
    mirror: String,
}

#[derive(clap::Args, Debug)]
struct List {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Rebuilds a mirror while programs run
#[derive(clap::Args, Debug)]
#[command(before_long_help = "Examples:
  lockstep resync backup")]
pub struct Resync {
    #[command(flatten)]
    named: Named,
}

/// How long the replayer may take to do as it is told; a mirror that hangs does not keep it from answering.
const ANSWER_MAX: Duration = Duration::from_secs(30);

impl Mirror {
    /// Runs it.
    ///
    /// # Errors
    /// What kept it from being done.
    pub fn main(&self, global: &Global) -> anyhow::Result<Exit> {
        match &self.action {
            Action::Add(add) => add.main(global),
            Action::List(list) => list.main(global),
            Action::Remove(named) => remove(global, &named.mirror),
            Action::Pause(named) => set_paused(global, &named.mirror, Activity::Paused),
            Action::Resume(named) => set_paused(global, &named.mirror, Activity::Applying),
        }
    }
}

impl Resync {
    /// Runs it.
    ///
    /// # Errors
    /// If no replayer runs, or it refuses.
    pub fn main(&self, global: &Global) -> anyhow::Result<Exit> {
        let set = select::one_set(global)?;
        let mirror = select::mirror(&set, &self.named.mirror)?.name.clone();
        client::ask(&set, &Question::Resync { mirror: mirror.clone() }, ANSWER_MAX)?;
        log::info!("mirror {mirror} is being rebuilt; lockstep wait returns when it is done");
        Ok(Exit::Done)
    }
}

impl Add {
    fn main(&self, global: &Global) -> anyhow::Result<Exit> {
        let set = select::one_set(global)?;
        let wanted = Wanted {
            set: Some(set.name().to_owned()),
            mirrors: self.specs.clone(),
            adopt: self.adopt,
            ..Wanted::default()
        };
        let state = StateDir::open_or_make(global.state_dir())?;
        adopt::confirm(&mirrors::plan(Some(&state), state.path(), &wanted)?, self.yes)?;
        let _lock = state.lock()?;
        let plan = mirrors::plan(Some(&state), state.path(), &wanted)?;
        let names: Vec<String> = plan.additions().iter().map(|addition| addition.mirror.name.clone()).collect();
        let set = plan.carry_out(&state)?;
        let replayer = tell_replayer(&set, &Question::Reload)?;
        let mut out = std::io::stdout().lock();
        if names.is_empty() {
            writeln!(out, "the set {} has these mirrors already", set.name())?;
        }
        for name in names {
            let name = name.escape_debug();
            match replayer {
                Replayer::Told => writeln!(out, "mirror {name} is being filled; lockstep wait returns when it is")?,
                Replayer::None => writeln!(out, "mirror {name} will be filled when a replayer runs")?,
            }
        }
        Ok(Exit::Done)
    }
}

impl List {
    fn main(&self, global: &Global) -> anyhow::Result<Exit> {
        let mut mirrors = Vec::new();
        for set in select::sets(global)? {
            mirrors.extend(status::of_set(&set)?.mirrors);
        }
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::json!({ "mirrors": mirrors }))?;
            return Ok(Exit::Done);
        }
        let width = mirrors.iter().map(|mirror| mirror.name.escape_debug().count()).max().unwrap_or(0);
        for MirrorStatus { name, state, complete, lag_records, spec, .. } in &mirrors {
            let name = name.escape_debug().to_string();
            let complete = if *complete { "complete" } else { "not complete" };
            writeln!(out, "{name:width$}  {state:11}  {complete:12}  lag {lag_records:<8}  {}", spec.escape_debug())?;
        }
        Ok(Exit::Done)
    }
}

fn remove(global: &Global, which: &str) -> anyhow::Result<Exit> {
    let state = StateDir::open_or_make(global.state_dir())?;
    let _lock = state.lock()?;
    let mut set = select::one_set(global)?;
    let mirror = select::mirror(&set, which)?.clone();
    set.change::<_, SetError>(|settings| {
        settings.mirrors.retain(|it| it.id != mirror.id);
        Ok(())
    })?;
    tell_replayer(&set, &Question::Reload)?;
    forget_identity(&set, &mirror)
        .with_context(|| format!("mirror {:?} is removed from the set, but not its identity", mirror.name))?;
    Ok(Exit::Done)
}

/// Removes the identity of a mirror that was removed, so that its directory is a plain copy again. One that can't be
/// reached keeps it, and is known again by it.
fn forget_identity(set: &Set, mirror: &MirrorSettings) -> anyhow::Result<()> {
    match Identity::read(&mirror.path) {
        Ok(Some(identity)) if identity == set.identity(mirror) => {
            std::fs::remove_dir_all(mirror.path.join(IDENTITY_DIR))
                .with_context(|| format!("cannot remove {:?}", mirror.path.join(IDENTITY_DIR)))
        }
        _ => Ok(()),
    }
}

/// Whether records are applied to a mirror.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Activity {
    Paused,
    Applying,
}

fn set_paused(global: &Global, which: &str, activity: Activity) -> anyhow::Result<Exit> {
    let mut set = select::one_set(global)?;
    let mirror = select::mirror(&set, which)?.clone();
    let name = mirror.name.clone();
    let question = match activity {
        Activity::Paused => Question::Pause { mirror: name },
        Activity::Applying => Question::Resume { mirror: name },
    };
    if let Replayer::None = tell_replayer(&set, &question)? {
        set.change::<_, SetError>(|settings| {
            for it in settings.mirrors.iter_mut().filter(|it| it.id == mirror.id) {
                it.paused = activity == Activity::Paused;
            }
            Ok(())
        })?;
    }
    Ok(Exit::Done)
}

/// Whether there was somebody to tell.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Replayer {
    Told,
    None,
}

fn tell_replayer(set: &Set, question: &Question) -> anyhow::Result<Replayer> {
    match client::ask(set, question, ANSWER_MAX) {
        Ok(_) => Ok(Replayer::Told),
        // One that ends now reads the settings when it starts again.
        Err(ClientError::NoReplayer { .. } | ClientError::BrokenOff { .. }) => Ok(Replayer::None),
        Err(error) => Err(error.into()),
    }
}
