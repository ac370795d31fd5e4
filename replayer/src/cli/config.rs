//! The configuration file: sets by name, so that `lockstep run --set NAME -- PROGRAM` is enough.

use crate::set::OwnerPolicy;
use anyhow::Context;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// What the file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// State directory, if neither flag nor environment name one.
    pub state_dir: Option<PathBuf>,
    /// Sets by name.
    #[serde(default)]
    pub sets: BTreeMap<String, ConfiguredSet>,
}

/// A set, as it is to be made when it is first run.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfiguredSet {
    /// The primary.
    pub primary: PathBuf,
    /// Specs of its mirrors.
    #[serde(default)]
    pub mirrors: Vec<String>,
    /// Size of the ring.
    pub ring_bytes: Option<u64>,
    /// Owner policy.
    pub owner: Option<OwnerPolicy>,
}

impl Config {
    /// Reads the file that the user names, else the one in the usual place if there is one.
    ///
    /// # Errors
    /// With the file's name, and where in it something is wrong.
    pub fn load(named: Option<&Path>) -> anyhow::Result<Self> {
        let from = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let usual = || from("XDG_CONFIG_HOME").or_else(|| from("HOME").map(|home| home.join(".config")));
        let Some(path) = named.map(Path::to_path_buf).or_else(|| Some(usual()?.join("lockstep/config.toml"))) else {
            return Ok(Self::default());
        };
        let text = match std::fs::read_to_string(&path) {
            Err(error) if named.is_none() && is_missing(&error) => return Ok(Self::default()),
            result => result.with_context(|| format!("cannot read the configuration file {path:?}"))?,
        };
        toml::from_str(&text).with_context(|| format!("cannot use the configuration file {path:?}"))
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_read_and_a_mistyped_key_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("config.toml");
        std::fs::write(&file, "[sets.db]\nprimary = '/srv/db'\nmirrors = ['/a', '/b']\nowner = 'strict'\n")
            .expect("written");
        let config = Config::load(Some(&file)).expect("sound");
        assert_eq!(config.sets["db"].mirrors, ["/a", "/b"]);
        assert_eq!(config.sets["db"].owner, Some(OwnerPolicy::Strict));
        std::fs::write(&file, "[sets.db]\nprimray = '/srv/db'\n").expect("written");
        let error = Config::load(Some(&file)).expect_err("mistyped");
        assert!(format!("{error:#}").contains("primray"), "{error:#}");
        assert!(Config::load(Some(&dir.path().join("missing"))).is_err());
    }
}
