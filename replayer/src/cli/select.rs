//! Which sets and which mirror a command means (SPEC.md, "Fine print").

use super::Global;
use super::mirrors::{Refusal, list};
use crate::set::{MirrorSettings, Set, StateDir};
use anyhow::bail;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// What `LOCKSTEP_SET` means: the name of a set, or the path of its directory where that can't be found by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FromEnvironment {
    /// The set.
    pub name: String,
    /// The state directory, if it is known from the environment.
    pub state_dir: Option<PathBuf>,
}

impl FromEnvironment {
    /// Reads `LOCKSTEP_SET` and `LOCKSTEP_STATE_DIR`.
    pub fn read() -> Option<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        Self::parse(&variable("LOCKSTEP_SET")?, variable("LOCKSTEP_STATE_DIR"))
    }

    fn parse(set: &OsStr, state_dir: Option<OsString>) -> Option<Self> {
        let path = Path::new(set);
        if path.is_absolute() {
            // <state>/sets/<NAME>
            let name = path.file_name()?.to_str()?.to_owned();
            return Some(Self { name, state_dir: path.parent()?.parent().map(Path::to_path_buf) });
        }
        Some(Self { name: set.to_str()?.to_owned(), state_dir: state_dir.map(PathBuf::from) })
    }
}

/// What `LOCKSTEP_SET` is for programs of `set`: enough to find its ring, with or without `LOCKSTEP_STATE_DIR`.
pub fn variable(set: &Set) -> OsString {
    let usual = StateDir::usual().and_then(|path| path.canonicalize().ok());
    if usual.as_deref() == Some(set.state_dir()) { set.name().into() } else { set.dir().as_os_str().to_owned() }
}

/// The canonical form of a path of which only the beginning may exist.
pub fn resolve(path: &Path) -> PathBuf {
    let mut rest = Vec::new();
    for ancestor in path.ancestors() {
        if let Ok(real) = ancestor.canonicalize() {
            return rest.iter().rev().fold(real, |path, name: &OsString| path.join(name));
        }
        rest.extend(ancestor.file_name().map(OsStr::to_owned));
    }
    path.to_path_buf()
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_is_a_name_or_a_path() {
        let parse = |set: &str, dir: Option<&str>| FromEnvironment::parse(set.as_ref(), dir.map(OsString::from));
        let expected = |name: &str, dir: Option<&str>| {
            Some(FromEnvironment { name: name.to_owned(), state_dir: dir.map(PathBuf::from) })
        };
        assert_eq!(parse("a", None), expected("a", None));
        assert_eq!(parse("a", Some("/s")), expected("a", Some("/s")));
        assert_eq!(parse("/t/sets/a", Some("/s")), expected("a", Some("/t")));
    }

    #[test]
    fn a_path_of_which_only_the_beginning_exists_is_resolved() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let real = dir.path().canonicalize().expect("there");
        std::os::unix::fs::symlink(&real, dir.path().join("link")).expect("made");
        assert_eq!(resolve(&dir.path().join("link/a/b")), real.join("a/b"));
    }
}
