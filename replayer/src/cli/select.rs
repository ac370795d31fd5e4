//! Which sets and which mirror a command means (SPEC.md, "Fine print").

use super::Global;
use super::mirrors::{Refusal, list};
use crate::set::{MirrorSettings, Set, StateDir};
use anyhow::bail;

/// The sets that a command that only reads means: the one that is named, else all.
///
/// # Errors
/// If the named one doesn't exist, or the state directory can't be read.
pub fn sets(global: &Global) -> anyhow::Result<Vec<Set>> {
    let state = StateDir::open(global.state_dir())?;
    match (state, global.set()) {
        (None, None) => Ok(Vec::new()),
        (Some(state), None) => Ok(state.sets()?),
        (state, Some(name)) => match state.map(|state| state.set(name)).transpose()?.flatten() {
            Some(set) => Ok(vec![set]),
            None => bail!(
                "there is no set {name} in {:?}\n`lockstep status` lists those there are",
                StateDir::locate(global.state_dir())?
            ),
        },
    }
}

/// The set that a command that changes something means: the one that is named, else the only one.
///
/// # Errors
/// As [`sets`], and if there is none, or more than one to choose from.
pub fn one_set(global: &Global) -> anyhow::Result<Set> {
    let mut sets = sets(global)?;
    match sets.len() {
        1 => Ok(sets.remove(0)),
        0 => bail!(
            "there is no set in {:?}\nmake one: lockstep run --primary DIR --mirror DIR -- PROGRAM",
            StateDir::locate(global.state_dir())?
        ),
        _ => Err(Refusal::SeveralSets(list(&sets)).into()),
    }
}

/// The mirror that `which` names in `set`.
///
/// # Errors
/// With the names that there are.
pub fn mirror<'a>(set: &'a Set, which: &str) -> anyhow::Result<&'a MirrorSettings> {
    match set.mirror(which) {
        Some(mirror) => Ok(mirror),
        None => {
            let names: Vec<_> = set.settings.mirrors.iter().map(|mirror| mirror.name.as_str()).collect();
            bail!("the set {} has no mirror {which:?}\nit has: {}", set.name(), names.join(", "))
        }
    }
}
