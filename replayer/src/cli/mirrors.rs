//! Which set and which mirrors a command means: checks that touch nothing, then the change itself.
//!
//! [`plan`] only looks. [`Plan::carry_out`] makes directories, identities and settings, and takes back what it has made
//! if a later step fails, so that a command that is refused leaves everything as it was.

use crate::ring_file::RING_BYTES_DEFAULT;
use crate::set::{
    IDENTITY_DIR, Identity, MirrorSettings, OwnerPolicy, Set, SetError, Settings, StateDir, default_name,
};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What the user asks for.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// `--set`.
    pub set: Option<String>,
    /// `--primary`.
    pub primary: Option<PathBuf>,
    /// `--mirror`, each.
    pub mirrors: Vec<OsString>,
    /// `--adopt`: a mirror may have content.
    pub adopt: bool,
    /// Size of the ring, for a set that is made now.
    pub ring_bytes: Option<u64>,
    /// Owner policy, for a set that is made now.
    pub owner: Option<OwnerPolicy>,
}

/// What has to be done to have it.
#[derive(Debug)]
pub struct Plan {
    existing: Option<Set>,
    settings: Settings,
    additions: Vec<Addition>,
}

/// A mirror to be added.
#[derive(Clone, Debug)]
pub struct Addition {
    /// Its settings.
    pub mirror: MirrorSettings,
    /// True when its directory has to be made.
    pub missing: bool,
    /// True when it has content that is not known to be this set's: the user must agree to losing it.
    pub needs_consent: bool,
}

/// Why the user can't have it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Neither a primary nor a set is named.
    #[error(
        "cannot tell which directory to mirror: no --primary is given and no set is named\nname one: --primary DIR"
    )]
    NoPrimary,
    /// More than one set could be meant.
    #[error("there are several sets:\n{0}\nsay which: --set NAME")]
    SeveralSets(String),
    /// The primary can't be one.
    #[error("cannot use {path:?} as primary: {reason}\nname an existing directory: --primary DIR")]
    Primary {
        /// As given.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A new set needs a mirror.
    #[error("cannot make a set for {0:?} without a mirror\nname at least one: --mirror DIR")]
    NoMirror(PathBuf),
    /// There is no set of this name.
    #[error("there is no set {0}\n`lockstep status` lists those there are; --primary DIR --mirror DIR makes a new one")]
    NoSuchSet(String),
    /// The primary has a set already.
    #[error(
        "cannot make the set {wanted} for {primary:?}: it is the primary of the set {existing} already\nleave out --set, or name that set: --set {existing}"
    )]
    OtherName {
        /// The primary.
        primary: PathBuf,
        /// The set it has.
        existing: String,
        /// The name asked for.
        wanted: String,
    },
    /// The set has another primary.
    #[error(
        "cannot use the set {set} for {wanted:?}: its primary is {existing:?}\nchoose another name, or leave out --set"
    )]
    OtherPrimary {
        /// The set.
        set: String,
        /// Its primary.
        existing: PathBuf,
        /// The primary asked for.
        wanted: PathBuf,
    },
    /// The primary overlaps something that it must not.
    #[error("cannot use {primary:?} as primary: {overlap}\n{hint}")]
    PrimaryOverlap {
        /// The primary.
        primary: PathBuf,
        /// What it overlaps, and how.
        overlap: String,
        /// What to do.
        hint: &'static str,
    },
    /// The mirror overlaps something that it must not.
    #[error("cannot use {mirror:?} as a mirror: {overlap}\nname a directory outside it: --mirror DIR")]
    MirrorOverlap {
        /// The mirror.
        mirror: PathBuf,
        /// What it overlaps, and how.
        overlap: String,
    },
    /// The mirror can't be one.
    #[error("cannot use {mirror:?} as a mirror: {reason}\n{hint}")]
    Mirror {
        /// As given, or its path.
        mirror: PathBuf,
        /// Why.
        reason: String,
        /// What to do.
        hint: String,
    },
    /// The set is full.
    #[error(
        "cannot add a mirror to the set {0}: it has {max} already, the most there can be\nremove one: lockstep mirror remove MIRROR",
        max = journal::layout::MIRRORS
    )]
    TooManyMirrors(String),
    /// State on disk.
    #[error(transparent)]
    Set(#[from] SetError),
}

/// Finds out what has to be done so that the user has what is `wanted`. Looks only.
///
/// # Errors
/// [`Refusal`].
pub fn plan(state: Option<&StateDir>, state_path: &Path, wanted: &Wanted) -> Result<Plan, Refusal> {
    let sets = state.map_or_else(|| Ok(Vec::new()), StateDir::sets)?;
    let primary = wanted.primary.as_deref().map(canonical_primary).transpose()?;
    let named = match (&wanted.set, state) {
        (Some(name), Some(state)) => state.set(name)?,
        (Some(name), None) => crate::set::check_name(name).map(|()| None)?,
        (None, _) => None,
    };
    let existing = match (named, &primary) {
        (Some(set), Some(primary)) if !same_directory(&set.settings.primary, primary) => {
            return Err(Refusal::OtherPrimary {
                set: set.name().to_owned(),
                existing: set.settings.primary,
                wanted: primary.clone(),
            });
        }
        (Some(set), _) => {
            canonical_primary(&set.settings.primary)?;
            Some(set)
        }
        (None, Some(primary)) => {
            let other = sets.iter().find(|set| same_directory(&set.settings.primary, primary));
            if let (Some(set), Some(wanted)) = (other, &wanted.set) {
                return Err(Refusal::OtherName {
                    primary: primary.clone(),
                    existing: set.name().to_owned(),
                    wanted: wanted.clone(),
                });
            }
            other.cloned()
        }
        (None, None) => match (&wanted.set, sets.as_slice()) {
            (Some(name), _) => return Err(Refusal::NoSuchSet(name.clone())),
            (None, [only]) => Some(only.clone()),
            (None, []) => return Err(Refusal::NoPrimary),
            (None, several) => return Err(Refusal::SeveralSets(list(several))),
        },
    };
    let mut settings = match (&existing, primary) {
        (Some(set), _) => set.settings.clone(),
        (None, primary) => new_settings(wanted, primary.expect("matched above"), &sets)?,
    };
    check_primary(&settings, state_path, &sets)?;
    let mut additions = Vec::new();
    for spec in &wanted.mirrors {
        if let Some(addition) = plan_mirror(spec, &settings, wanted, state_path, &sets)? {
            settings.mirrors.push(addition.mirror.clone());
            additions.push(addition);
        }
    }
    if settings.mirrors.is_empty() {
        return Err(Refusal::NoMirror(settings.primary));
    }
    if settings.mirrors.len() > journal::layout::MIRRORS {
        return Err(Refusal::TooManyMirrors(settings.name));
    }
    Ok(Plan { existing, settings, additions })
}

impl Plan {
    /// The settings as they will be.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Mirrors that will be added.
    pub fn additions(&self) -> &[Addition] {
        &self.additions
    }

    /// Makes it so. The caller holds the lock of `state` since before the plan was made.
    ///
    /// # Errors
    /// `SetError::Io`; what had been made is taken back.
    pub fn carry_out(self, state: &StateDir) -> Result<Set, SetError> {
        let mut made = Made::default();
        let result = self.carry_out_noting(state, &mut made);
        if result.is_err() {
            made.take_back();
        }
        result
    }

    fn carry_out_noting(self, state: &StateDir, made: &mut Made) -> Result<Set, SetError> {
        let Self { existing, settings, additions } = self;
        for Addition { mirror, missing, .. } in &additions {
            if *missing {
                std::fs::create_dir(&mirror.path).map_err(|source| SetError::Io {
                    what: "make the mirror",
                    path: mirror.path.clone(),
                    source,
                })?;
                made.directories.push(mirror.path.clone());
            }
            let identity = Identity {
                set: settings.name.clone(),
                uuid: settings.uuid.clone(),
                generation: settings.generation,
                mirror: mirror.id,
            };
            let before = Identity::read(&mirror.path).ok().flatten();
            made.identities.push((mirror.path.clone(), before));
            identity.write(&mirror.path)?;
        }
        match existing {
            None => state.make_set(settings),
            Some(mut set) => {
                set.change::<_, SetError>(|current| {
                    current.mirrors.extend(additions.into_iter().map(|addition| addition.mirror));
                    Ok(())
                })?;
                Ok(set)
            }
        }
    }
}

/// What a plan has made so far.
#[derive(Default)]
struct Made {
    directories: Vec<PathBuf>,
    identities: Vec<(PathBuf, Option<Identity>)>,
}

impl Made {
    /// As far as it goes: the error that led here is the one to tell.
    fn take_back(self) {
        for (root, before) in self.identities {
            let _ = match before {
                Some(identity) => identity.write(&root),
                None => {
                    let _ = std::fs::remove_dir_all(root.join(IDENTITY_DIR));
                    Ok(())
                }
            };
        }
        for directory in self.directories {
            let _ = std::fs::remove_dir(directory);
        }
    }
}

/// Names and primaries of sets, a line each.
pub fn list(sets: &[Set]) -> String {
    let lines: Vec<_> = sets.iter().map(|set| format!("  {}: {:?}", set.name(), set.settings.primary)).collect();
    lines.join("\n")
}

fn new_settings(wanted: &Wanted, primary: PathBuf, sets: &[Set]) -> Result<Settings, Refusal> {
    let name = match &wanted.set {
        Some(name) => name.clone(),
        None => {
            let name = default_name(&primary);
            let taken = |name: &str| sets.iter().any(|set| set.name() == name);
            // Two paths with one hash: as good as never, but then both must work.
            std::iter::once(name.clone())
                .chain((2u32..).map(|number| format!("{name}-{number}")))
                .find(|name| !taken(name))
                .expect("there are fewer sets than numbers")
        }
    };
    crate::set::check_name(&name)?;
    let mut settings = Settings::new(name, primary, wanted.ring_bytes.unwrap_or(RING_BYTES_DEFAULT));
    settings.owner = wanted.owner.unwrap_or_default();
    Ok(settings)
}

fn canonical_primary(path: &Path) -> Result<PathBuf, Refusal> {
    let fail = |reason: String| Refusal::Primary { path: path.to_path_buf(), reason };
    let canonical = path.canonicalize().map_err(|error| fail(error.to_string()))?;
    let data = canonical.metadata().map_err(|error| fail(error.to_string()))?;
    if data.is_dir() { Ok(canonical) } else { Err(fail("it is not a directory".into())) }
}

fn check_primary(settings: &Settings, state_path: &Path, sets: &[Set]) -> Result<(), Refusal> {
    let primary = &settings.primary;
    let refuse = |overlap, hint| Err(Refusal::PrimaryOverlap { primary: primary.clone(), overlap, hint });
    if matches!(relation(state_path, primary), Relation::Same | Relation::Inside) {
        return refuse(
            format!("the state directory {state_path:?} lies inside it, and nothing of lockstep's own may"),
            "name another state directory: --state-dir DIR",
        );
    }
    for set in sets {
        for mirror in &set.settings.mirrors {
            if matches!(relation(primary, &mirror.path), Relation::Same | Relation::Inside) {
                return refuse(
                    format!("it belongs to the mirror {:?} of the set {}", mirror.path, set.name()),
                    "only lockstep may write to a mirror: name another directory, or remove that mirror first",
                );
            }
        }
    }
    Ok(())
}

/// Checks one `--mirror`; `None` if the set has it already.
fn plan_mirror(
    spec: &OsStr,
    settings: &Settings,
    wanted: &Wanted,
    state_path: &Path,
    sets: &[Set],
) -> Result<Option<Addition>, Refusal> {
    let absolute = parse_spec(spec)?;
    let spelled = absolute.to_string_lossy().into_owned();
    let (path, missing) = locate_mirror(&absolute)?;
    let known = |mirror: &&MirrorSettings| mirror.path == path || same_directory(&mirror.path, &path);
    if settings.mirrors.iter().any(|mirror| mirror.spec == spelled || known(&mirror)) {
        return Ok(None);
    }
    check_overlaps(&path, settings, state_path, sets)?;
    check_writable(&path, missing)?;
    let mut mirror = MirrorSettings::new(spelled, path, &settings.mirrors);
    let content = if missing { Content::None } else { check_content(&mirror.path, settings, wanted.adopt)? };
    mirror.adopted = content != Content::None;
    Ok(Some(Addition { mirror, missing, needs_consent: content == Content::Unknown }))
}

/// Makes a mirror's spec an absolute path. SPEC.md, "Mirror specs".
///
/// # Errors
/// `Mirror`, for kinds of mirrors that there are not, or not yet.
pub fn parse_spec(spec: &OsStr) -> Result<PathBuf, Refusal> {
    let bytes = spec.as_bytes();
    let refuse = |reason: String, hint: &str| {
        Err(Refusal::Mirror { mirror: PathBuf::from(spec), reason, hint: hint.to_owned() })
    };
    if bytes.is_empty() {
        return refuse("it is empty".into(), "name a directory: --mirror DIR");
    }
    if let Some(end) = bytes.windows(3).position(|window| window == b"://")
        && end > 0
        && bytes[..end].iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'+')
    {
        let scheme = String::from_utf8_lossy(&bytes[..end]).into_owned();
        return if matches!(&*scheme, "ssh" | "nats") {
            refuse(
                format!("mirrors by {scheme}:// come with a later version"),
                "name a directory; it may lie on a mount (NFS, sshfs)",
            )
        } else {
            refuse(format!("{scheme}:// is no kind of mirror"), "name a directory; it may lie on a mount (NFS, sshfs)")
        };
    }
    // Collected from its components, it loses trailing slashes.
    std::path::absolute(spec)
        .map(|path| path.components().collect())
        .or_else(|error| refuse(error.to_string(), "name it by an absolute path"))
}

/// The canonical path of a mirror, and whether it has to be made.
fn locate_mirror(absolute: &Path) -> Result<(PathBuf, bool), Refusal> {
    let refuse = |reason: String, hint: String| Refusal::Mirror { mirror: absolute.to_path_buf(), reason, hint };
    match absolute.canonicalize() {
        Ok(path) if path.is_dir() => return Ok((path, false)),
        Ok(_) => return Err(refuse("it is not a directory".into(), "name a directory: --mirror DIR".into())),
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(refuse(error.to_string(), "name a directory that you can reach: --mirror DIR".into()));
        }
        Err(_) => {}
    }
    if absolute.is_symlink() {
        return Err(refuse(
            "it is a symbolic link that leads nowhere".into(),
            "make the directory that it leads to".into(),
        ));
    }
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Err(refuse("it does not exist".into(), "name a directory: --mirror DIR".into()));
    };
    match parent.canonicalize() {
        Ok(parent) if parent.is_dir() => Ok((parent.join(name), true)),
        _ => Err(refuse(
            "neither it nor the directory that it would be made in exists".into(),
            format!("mount what belongs there, or run: mkdir -p {}", parent.display()),
        )),
    }
}

fn check_overlaps(path: &Path, settings: &Settings, state_path: &Path, sets: &[Set]) -> Result<(), Refusal> {
    let refuse = |overlap| Err(Refusal::MirrorOverlap { mirror: path.to_path_buf(), overlap });
    match relation(path, &settings.primary) {
        Relation::Same => return refuse("it is the primary".to_owned()),
        Relation::Inside => return refuse(format!("it lies inside the primary {:?}", settings.primary)),
        Relation::Around => return refuse(format!("the primary {:?} lies inside it", settings.primary)),
        Relation::Apart => {}
    }
    match relation(path, state_path) {
        Relation::Same | Relation::Inside => {
            return refuse(format!("it belongs to the state directory {state_path:?}"));
        }
        Relation::Around => return refuse(format!("the state directory {state_path:?} lies inside it")),
        Relation::Apart => {}
    }
    let others = sets.iter().filter(|set| set.name() != settings.name).map(|set| &set.settings);
    for set in others.clone() {
        match relation(path, &set.primary) {
            Relation::Same => return refuse(format!("it is the primary of the set {}", set.name)),
            Relation::Inside => {
                return refuse(format!("it lies inside {:?}, the primary of the set {}", set.primary, set.name));
            }
            Relation::Around => {
                return refuse(format!("{:?}, the primary of the set {}, lies inside it", set.primary, set.name));
            }
            Relation::Apart => {}
        }
    }
    for set in std::iter::once(settings).chain(others) {
        for mirror in &set.mirrors {
            let other = format!("the mirror {:?} of the set {}", mirror.path, set.name);
            match relation(path, &mirror.path) {
                Relation::Same => return refuse(format!("it is {other}")),
                Relation::Inside => return refuse(format!("it lies inside {other}")),
                Relation::Around => return refuse(format!("{other} lies inside it")),
                Relation::Apart => {}
            }
        }
    }
    Ok(())
}

fn check_writable(path: &Path, missing: bool) -> Result<(), Refusal> {
    let asked = if missing { path.parent().unwrap_or(path) } else { path };
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    rustix::fs::accessat(rustix::fs::CWD, asked, access, rustix::fs::AtFlags::EACCESS).map_err(|error| {
        let reason = if missing {
            format!("it does not exist, and {asked:?} cannot be written to: {}", io::Error::from(error))
        } else {
            format!("it cannot be written to: {}", io::Error::from(error))
        };
        Refusal::Mirror {
            mirror: path.to_path_buf(),
            reason,
            hint: "give yourself write permission there, or name another directory".into(),
        }
    })
}

/// What lies in a directory that shall be a mirror.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Content {
    /// Nothing.
    None,
    /// What this set once put there.
    Ours,
    /// Anything, and the user has said `--adopt`.
    Unknown,
}

fn check_content(path: &Path, settings: &Settings, adopt: bool) -> Result<Content, Refusal> {
    let refuse = |reason: String, hint: String| Err(Refusal::Mirror { mirror: path.to_path_buf(), reason, hint });
    match Identity::read(path) {
        Ok(Some(identity)) if identity.uuid == settings.uuid && identity.generation <= settings.generation => {
            // A mirror that was removed and comes back: its content was made by this set, and is compared in full.
            return Ok(Content::Ours);
        }
        Ok(Some(identity)) if identity.uuid == settings.uuid => {
            return refuse(
                format!(
                    "it belongs to generation {} of this set, which is at {}",
                    identity.generation, settings.generation
                ),
                "use the state directory in which that generation lives".into(),
            );
        }
        Ok(Some(identity)) => {
            return refuse(
                format!("it belongs to another set ({}, {})", identity.set, identity.uuid),
                format!(
                    "name another directory; or, if that set is no more, run: rm -r {}",
                    path.join(IDENTITY_DIR).display()
                ),
            );
        }
        Ok(None) => {}
        Err(error) => return refuse(error.to_string(), "name another directory, or repair that file".into()),
    }
    let mut entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) => return refuse(error.to_string(), "give yourself read permission there".into()),
    };
    match entries.next() {
        None => Ok(Content::None),
        Some(Err(error)) => refuse(error.to_string(), "name another directory".into()),
        Some(Ok(_)) if adopt => Ok(Content::Unknown),
        Some(Ok(entry)) => refuse(
            format!("it is not empty (it has {:?}) and carries no identity of a mirror", entry.file_name()),
            "name an empty directory; or, to make its content equal to the primary's, deleting the rest: --adopt"
                .into(),
        ),
    }
}

/// How one directory lies to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Relation {
    /// They are one.
    Same,
    /// The first lies inside the second.
    Inside,
    /// The second lies inside the first.
    Around,
    /// Neither.
    Apart,
}

/// Compares by spelling and by identity, so that bind mounts and links don't hide anything. Either may be missing.
fn relation(one: &Path, other: &Path) -> Relation {
    let one_inside = lies_inside(one, other);
    let other_inside = lies_inside(other, one);
    match (one_inside, other_inside) {
        (true, true) => Relation::Same,
        (true, false) => Relation::Inside,
        (false, true) => Relation::Around,
        (false, false) => Relation::Apart,
    }
}

/// True when `inner` is `outer` or lies below it, by spelling or by identity.
pub fn lies_inside(inner: &Path, outer: &Path) -> bool {
    if inner.starts_with(outer) {
        return true;
    }
    let Some(outer) = directory_id(outer) else { return false };
    inner.ancestors().any(|ancestor| directory_id(ancestor) == Some(outer))
}

/// True when both names lead to one directory.
pub fn same_directory(one: &Path, other: &Path) -> bool {
    one == other || (directory_id(one).is_some() && directory_id(one) == directory_id(other))
}

fn directory_id(path: &Path) -> Option<(u64, u64)> {
    path.metadata().ok().map(|data| (data.dev(), data.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place {
        dir: tempfile::TempDir,
        state: PathBuf,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let root = dir.path().canonicalize().expect("there");
            std::fs::create_dir(root.join("primary")).expect("made");
            std::fs::create_dir(root.join("mirror")).expect("made");
            Self { state: root.join("state"), dir }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().canonicalize().expect("there").join(name)
        }

        fn wanted(&self, mirrors: &[&str]) -> Wanted {
            Wanted {
                primary: Some(self.path("primary")),
                mirrors: mirrors.iter().map(|name| self.path(name).into_os_string()).collect(),
                ..Wanted::default()
            }
        }

        fn plan(&self, wanted: &Wanted) -> Result<Plan, Refusal> {
            let state = StateDir::open(Some(&self.state)).expect("no trouble");
            plan(state.as_ref(), &self.state, wanted)
        }

        fn make(&self, wanted: &Wanted) -> Set {
            let state = StateDir::open_or_make(Some(&self.state)).expect("made");
            plan(Some(&state), &self.state, wanted).expect("allowed").carry_out(&state).expect("done")
        }

        fn refused(&self, wanted: &Wanted) -> String {
            let before = self.listing();
            let refusal = self.plan(wanted).expect_err("refused").to_string();
            assert_eq!(self.listing(), before, "a refusal touches nothing");
            assert!(refusal.contains('\n'), "a refusal says what to do: {refusal}");
            refusal
        }

        fn listing(&self) -> Vec<PathBuf> {
            fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
                for entry in std::fs::read_dir(dir).expect("readable").flatten() {
                    found.push(entry.path());
                    if entry.path().is_dir() && !entry.path().is_symlink() {
                        walk(&entry.path(), found);
                    }
                }
            }
            let mut found = Vec::new();
            walk(self.dir.path(), &mut found);
            found.sort();
            found
        }
    }

    #[test]
    fn a_new_set_gets_identities_and_a_missing_mirror_is_made() {
        let place = Place::new();
        let set = place.make(&place.wanted(&["mirror", "new"]));
        assert_eq!(set.settings.mirrors.len(), 2);
        for mirror in &set.settings.mirrors {
            let identity = Identity::read(&mirror.path).expect("readable").expect("there");
            assert_eq!(identity, set.identity(mirror));
            assert!(!mirror.adopted);
        }
        let plan = place.plan(&place.wanted(&["new", "mirror"])).expect("known");
        assert!(plan.additions().is_empty());
    }

    #[test]
    fn overlaps_are_refused() {
        let place = Place::new();
        std::fs::create_dir(place.path("primary/inside")).expect("made");
        std::os::unix::fs::symlink(place.path("primary"), place.path("link")).expect("made");
        for (mirror, word) in [
            ("primary", "is the primary"),
            ("link", "is the primary"),
            ("link/inside", "inside the primary"),
            ("primary/inside", "inside the primary"),
            ("primary/new", "inside the primary"),
            ("", "lies inside it"),
            ("state", "state directory"),
        ] {
            let refusal = place.refused(&place.wanted(&[mirror]));
            assert!(refusal.contains(word), "{mirror}: {refusal}");
        }
    }

    #[test]
    fn another_sets_directories_are_refused() {
        let place = Place::new();
        place.make(&place.wanted(&["mirror"]));
        std::fs::create_dir(place.path("other")).expect("made");
        let other = |mirrors: &[&str]| Wanted { primary: Some(place.path("other")), ..place.wanted(mirrors) };
        for (mirror, word) in [
            ("primary", "primary of the set"),
            ("primary/x", "lies inside"),
            ("mirror", "is the mirror"),
            ("mirror/x", "lies inside the mirror"),
        ] {
            let refusal = place.refused(&other(&[mirror]));
            assert!(refusal.contains(word), "{mirror}: {refusal}");
        }
        let refusal = place.refused(&Wanted { primary: Some(place.path("mirror")), ..place.wanted(&["m"]) });
        assert!(refusal.contains("belongs to the mirror"), "{refusal}");
    }

    #[test]
    fn another_name_for_the_same_primary_is_refused() {
        let place = Place::new();
        let set = place.make(&place.wanted(&["mirror"]));
        let refusal = place.refused(&Wanted { set: Some("other".into()), ..place.wanted(&[]) });
        assert!(refusal.contains(set.name()), "{refusal}");
        std::fs::create_dir(place.path("elsewhere")).expect("made");
        let wanted =
            Wanted { set: Some(set.name().into()), primary: Some(place.path("elsewhere")), ..place.wanted(&["m"]) };
        assert!(place.refused(&wanted).contains("its primary is"));
        let named = Wanted { set: Some(set.name().into()), ..Wanted::default() };
        place.plan(&named).expect("the set's name is enough");
    }

    #[test]
    fn a_directory_with_content_needs_adopt() {
        let place = Place::new();
        std::fs::write(place.path("mirror/file"), "x").expect("written");
        assert!(place.refused(&place.wanted(&["mirror"])).contains("--adopt"));
        let plan = place.plan(&Wanted { adopt: true, ..place.wanted(&["mirror"]) }).expect("allowed");
        assert!(plan.additions()[0].mirror.adopted && plan.additions()[0].needs_consent);
    }

    #[test]
    fn the_mirror_of_another_set_is_never_adopted() {
        let place = Place::new();
        let identity = Identity { set: "x".into(), uuid: "y".into(), generation: 1, mirror: 1 };
        identity.write(&place.path("mirror")).expect("written");
        let refusal = place.refused(&Wanted { adopt: true, ..place.wanted(&["mirror"]) });
        assert!(refusal.contains("another set"), "{refusal}");
    }

    #[test]
    fn specs_that_are_not_directories_are_refused() {
        let place = Place::new();
        std::fs::write(place.path("file"), "x").expect("written");
        std::os::unix::fs::symlink("/nowhere/at/all", place.path("dangling")).expect("made");
        for name in ["file", "dangling", "no/such/parent", "file/below"] {
            place.refused(&place.wanted(&[name]));
        }
        for spec in ["ssh://host/path", "nats://host", "s3://bucket", ""] {
            let wanted = Wanted { mirrors: vec![spec.into()], ..place.wanted(&[]) };
            place.refused(&wanted);
        }
        assert!(parse_spec(OsStr::new("relative/x")).expect("a path").is_absolute());
        assert_eq!(parse_spec(OsStr::new("/a/./b/")).expect("a path"), Path::new("/a/b/"));
    }

    #[test]
    fn a_primary_that_is_missing_or_a_file_is_refused() {
        let place = Place::new();
        std::fs::write(place.path("file"), "x").expect("written");
        for name in ["missing", "file"] {
            place.refused(&Wanted { primary: Some(place.path(name)), ..place.wanted(&["mirror"]) });
        }
        place.refused(&place.wanted(&[]));
        place.refused(&Wanted { mirrors: vec!["/m".into()], ..Wanted::default() });
        place.refused(&Wanted { set: Some("none".into()), ..Wanted::default() });
    }

    #[test]
    fn a_step_that_fails_takes_the_others_back() {
        let place = Place::new();
        let state = StateDir::open_or_make(Some(&place.state)).expect("made");
        let plan = plan(Some(&state), &place.state, &place.wanted(&["mirror", "new"])).expect("allowed");
        // Somebody is faster.
        std::fs::write(place.path("new"), "").expect("written");
        plan.carry_out(&state).expect_err("in the way");
        assert!(!place.path("mirror/.lockstep").exists());
        assert!(state.sets().expect("readable").is_empty());
    }
}
