//! `lockstep verify`: compares mirrors with their primary while programs run.
//!
//! What differs may only be on its way. So differences are looked at again once the mirror has applied everything up
//! to then, and those that are left once more while the wrapped programs are held up for a moment.

use super::{Global, select, status};
use crate::client::{Asked, ClientError};
use crate::control::{Purpose, Question};
use crate::exit::Exit;
use crate::limits::Limits;
use crate::set::{Identity, MirrorSettings, Set};
use crate::status::MirrorState;
use crate::tree::Tree;
use crate::verify::{Difference, DifferenceKind, Verified, recheck, verify};
use anyhow::{Context, bail};
use serde_json::json;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Compares mirrors with the primary by content, while programs run
#[derive(clap::Args, Debug)]
#[command(before_long_help = "Examples:
  lockstep verify
  lockstep verify backup
  lockstep verify backup some/directory
  lockstep verify --json")]
pub struct Verify {
    /// Mend what differs (not available yet)
    #[arg(long, hide = true)]
    repair: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Mirrors to compare, by name, spec or path [default: all], then a path below the primary [default: all of it]
    #[arg(value_name = "MIRROR|PATH")]
    arguments: Vec<OsString>,
}

/// How often differences are looked at again before programs are held up for them.
const ROUNDS_MAX: u32 = 3;
/// Programs are held up for this long at a time, and left alone for as long in between.
const HOLD_UP: Duration = Duration::from_millis(200);
/// How long the replayer is asked to hold them up: longer, because one file may take a while.
const FREEZE_MS: u64 = 2_000;
/// How often that may fail.
const FAILURES_MAX: u32 = 10;
/// How long it may take to begin to.
const FREEZE_ANSWER_MAX: Duration = Duration::from_secs(30);
/// Directories are opened anew each time: programs move them while they are compared.
const DIRECTORIES_KEPT: usize = 0;

impl Verify {
    /// Runs it.
    ///
    /// # Errors
    /// If the arguments name nothing, or stdout can't be written to. What is wrong with one mirror is told and
    /// doesn't keep the others from being compared.
    pub fn main(&self, global: &Global) -> anyhow::Result<Exit> {
        if self.repair {
            eprintln!(
                "lockstep: `lockstep verify --repair` is not available yet: `lockstep resync MIRROR` mends a whole mirror"
            );
            return Ok(Exit::Trouble);
        }
        let sets = select::sets(global)?;
        if sets.is_empty() {
            select::one_set(global)?;
        }
        let chosen = choose(&sets, &self.arguments)?;
        let mut exit = Exit::Done;
        let mut objects = Vec::new();
        for (set, mirror, below) in chosen {
            let found = match compare(set, mirror, &below) {
                Ok(found) => found,
                Err(error) => {
                    super::complain(&error.context(format!("cannot compare mirror {}", mirror.name)));
                    exit = Exit::Trouble;
                    continue;
                }
            };
            for (path, error) in &found.unreadable {
                eprintln!("lockstep: cannot read \"{}\" for mirror {}: {error}", escaped(path), mirror.name);
                exit = Exit::Trouble;
            }
            if !found.differences.is_empty() && exit == Exit::Done {
                exit = Exit::No;
            }
            let mut out = std::io::stdout().lock();
            for Difference { kind, path, detail } in &found.differences {
                let kind = kind.word();
                if self.json {
                    // JSON escapes by itself what is text.
                    let text = std::str::from_utf8(path).ok().filter(|path| !path.is_empty());
                    let path = text.map_or_else(|| escaped(path), str::to_owned);
                    objects.push(json!({"kind": kind, "mirror": mirror.name, "path": path, "detail": detail}));
                } else {
                    writeln!(out, "{kind}\t{}\t{}", escaped(mirror.name.as_bytes()), escaped(path))?;
                }
            }
            log::info!("mirror {}: {} objects compared", mirror.name, found.objects);
        }
        if self.json {
            writeln!(std::io::stdout(), "{}", serde_json::Value::Array(objects))?;
        }
        Ok(exit)
    }
}

/// A name for a terminal and for a field between tabs: control characters, backslashes and what is no text escaped.
pub fn escaped(name: &[u8]) -> String {
    if name.is_empty() {
        return ".".to_owned();
    }
    let mut text = String::new();
    for chunk in name.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                character if character.is_control() => text.extend(character.escape_default()),
                character => text.push(character),
            }
        }
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text
}

type Chosen<'a> = Vec<(&'a Set, &'a MirrorSettings, Vec<u8>)>;

/// Which mirrors of which sets, and what below them. All arguments name mirrors, but the last may be a path.
fn choose<'a>(sets: &'a [Set], arguments: &[OsString]) -> anyhow::Result<Chosen<'a>> {
    let named = |argument: &OsString| {
        let which = argument.to_str()?;
        let found: Vec<_> = sets.iter().filter_map(|set| Some((set, set.mirror(which)?))).collect();
        (!found.is_empty()).then_some(found)
    };
    let mut mirrors = Vec::new();
    let mut path = None;
    for (number, argument) in arguments.iter().enumerate() {
        match named(argument) {
            Some(found) => mirrors.extend(found),
            None if number + 1 == arguments.len() => path = Some(PathBuf::from(argument)),
            None => bail!("no set has a mirror {argument:?}\n`lockstep mirror list` lists those there are"),
        }
    }
    if mirrors.is_empty() {
        mirrors = sets.iter().flat_map(|set| set.settings.mirrors.iter().map(move |mirror| (set, mirror))).collect();
    }
    let Some(path) = path else {
        return Ok(mirrors.into_iter().map(|(set, mirror)| (set, mirror, Vec::new())).collect());
    };
    let mut chosen = Vec::new();
    for (set, mirror) in mirrors {
        if let Some(below) = below_primary(&set.settings.primary, &path) {
            let either = |root: &Path| root.join(std::ffi::OsStr::from_bytes(&below)).symlink_metadata().is_ok();
            if either(&set.settings.primary) || either(&mirror.path) {
                chosen.push((set, mirror, below));
            }
        }
    }
    if chosen.is_empty() {
        bail!(
            "{path:?} is neither a mirror nor a path that a primary or its mirror has\ngive a path below the primary"
        );
    }
    Ok(chosen)
}

/// `path` relative to the primary: from the working directory if that leads inside, else from the primary.
fn below_primary(primary: &Path, path: &Path) -> Option<Vec<u8>> {
    let resolved = |path: &Path| {
        let (parent, name) = (path.parent()?, path.file_name());
        let parent = parent.canonicalize().ok()?;
        let whole = name.map_or_else(|| parent.clone(), |name| parent.join(name));
        whole.strip_prefix(primary).ok().map(Path::to_path_buf)
    };
    let here = std::path::absolute(path).ok().map(|path| path.components().collect::<PathBuf>());
    // The primary itself has its name outside of itself.
    if here.as_deref().and_then(|here| here.canonicalize().ok()).as_deref() == Some(primary) {
        return Some(Vec::new());
    }
    let inside = here.as_deref().and_then(resolved).or_else(|| {
        let relative = path.is_relative().then(|| primary.join(path))?;
        resolved(&relative)
    })?;
    Some(inside.as_os_str().as_bytes().to_vec())
}

/// The two trees of a comparison.
struct Pair<'a> {
    set: &'a Set,
    mirror: &'a MirrorSettings,
    trees: [Tree; 2],
    limits: Limits,
}

fn compare(set: &Set, mirror: &MirrorSettings, below: &[u8]) -> anyhow::Result<Verified> {
    let identity = Identity::read(&mirror.path)?;
    if identity.is_none_or(|identity| identity != set.identity(mirror)) {
        bail!(
            "{:?} does not carry its identity: it is not mounted, or was replaced\nmount it; or see: lockstep --set {} status",
            mirror.path,
            set.name()
        );
    }
    let report = status::of_set(set)?;
    let known = report.mirrors.iter().find(|known| known.name == mirror.name);
    let state = known.map(|known| known.state);
    if let Some(MirrorState::Away | MirrorState::Broken) = state {
        let reason = known.and_then(|known| known.last_error.clone()).unwrap_or_default();
        bail!("it is {}: {reason}\nsee: lockstep --set {} status", state.unwrap_or_default(), set.name());
    }
    let limits = Limits::from_words(known.iter().flat_map(|known| known.limits.iter().map(String::as_str)));
    let open = |root: &Path| Tree::open(root, DIRECTORIES_KEPT).with_context(|| format!("cannot open {root:?}"));
    let trees = [open(&set.settings.primary)?, open(&mirror.path)?];
    let mut pair = Pair { set, mirror, trees, limits };
    // A paused mirror, and one without a replayer, is compared as it is: nothing is on its way to it.
    let applies = report.replayer.pid.is_some() && state != Some(MirrorState::Paused);
    if applies {
        pair.wait()?;
    }
    let mut found = pair.whole(below)?;
    if !applies {
        return Ok(found);
    }
    for _ in 0..ROUNDS_MAX {
        let suspects = Suspect::of(&mut found);
        if suspects.is_empty() {
            return Ok(found);
        }
        pair.wait()?;
        pair.again(&suspects, &mut found)?;
    }
    pair.again_while_held_up(&mut found)?;
    Ok(found)
}

/// A path at which something differed, or could not be looked at.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Suspect {
    path: Vec<u8>,
    /// True where a whole object came or went, so that what is below it has not been looked at.
    whole: bool,
    /// True where the names of one file differ: such are only seen together.
    linked: bool,
}

impl Suspect {
    /// Takes what differs out of `found`.
    fn of(found: &mut Verified) -> Vec<Self> {
        let is_whole = |kind| matches!(kind, DifferenceKind::Missing | DifferenceKind::Extra | DifferenceKind::Type);
        let differing = std::mem::take(&mut found.differences).into_iter().map(|Difference { kind, path, .. }| Self {
            path,
            whole: is_whole(kind),
            linked: kind == DifferenceKind::Hardlink,
        });
        // Names that went away while they were looked at are among these.
        let unreadable = std::mem::take(&mut found.unreadable).into_iter();
        let unreadable = unreadable.map(|(path, _)| Self { path, whole: true, linked: false });
        let mut suspects: Vec<_> = differing.chain(unreadable).collect();
        suspects.sort();
        suspects.dedup_by(|later, first| {
            let same = later.path == first.path;
            if same {
                first.whole |= later.whole;
                first.linked |= later.linked;
            }
            same
        });
        // Those that are looked at together come last, where they are taken first.
        suspects.sort_by_key(|suspect| suspect.linked);
        suspects
    }
}

impl Pair<'_> {
    fn whole(&mut self, below: &[u8]) -> anyhow::Result<Verified> {
        let [primary, mirror] = &mut self.trees;
        Ok(verify(primary, mirror, below, &self.limits)?)
    }

    /// Looks again at what was suspect, and adds to `found` what still is.
    fn again(&mut self, suspects: &[Suspect], found: &mut Verified) -> anyhow::Result<()> {
        let [primary, mirror] = &mut self.trees;
        let below = |suspect: &&Suspect| suspect.whole && !suspect.linked;
        let (whole, single): (Vec<_>, Vec<_>) = suspects.iter().partition(below);
        let mut add = |again: Verified| {
            found.differences.extend(again.differences);
            found.unreadable.extend(again.unreadable);
        };
        for suspect in whole {
            add(verify(primary, mirror, &suspect.path, &self.limits)?);
        }
        add(recheck(primary, mirror, single.iter().map(|suspect| &*suspect.path), &self.limits)?);
        Ok(())
    }

    /// Waits until the mirror has applied everything up to now.
    fn wait(&self) -> anyhow::Result<()> {
        let name = Some(self.mirror.name.clone());
        let question = Question::Wait { mirror: name, seq: None, timeout_ms: None, purpose: Purpose::Wait };
        match Asked::new(self.set, &question).and_then(|mut asked| asked.answer(self.set, None)) {
            Ok(answer) if answer.ok => Ok(()),
            Ok(answer) => bail!("it does not come level: {}", answer.reason.unwrap_or_default()),
            // It ended for want of work, so nothing is on its way.
            Err(ClientError::NoReplayer { .. } | ClientError::BrokenOff { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Looks again at what is left while wrapped programs are held up and everything is applied, a moment at a time.
    fn again_while_held_up(&mut self, found: &mut Verified) -> anyhow::Result<()> {
        let mut left = Suspect::of(found);
        let mut failures = 0;
        while !left.is_empty() {
            let mut asked = match Asked::new(self.set, &Question::Freeze { ms: FREEZE_MS }) {
                Ok(asked) => asked,
                // It ended because nobody writes any more: nobody has to be held up.
                Err(ClientError::NoReplayer { .. }) => return self.again(&left, found),
                Err(error) => return Err(error.into()),
            };
            let answer = asked.answer(self.set, Some(FREEZE_ANSWER_MAX))?;
            let held = Instant::now();
            while let Some(suspect) = left.last().filter(|_| answer.ok)
                && held.elapsed() < HOLD_UP
            {
                let first = match suspect.linked {
                    true => left.partition_point(|suspect| !suspect.linked),
                    false => left.len() - 1,
                };
                let mut again = Verified::default();
                self.again(&left[first..], &mut again)?;
                if held.elapsed().as_millis() >= u128::from(FREEZE_MS) && !again.differences.is_empty() {
                    // Programs went on before the comparison was over.
                    failures += 1;
                    break;
                }
                found.differences.append(&mut again.differences);
                found.unreadable.append(&mut again.unreadable);
                left.truncate(first);
            }
            drop(asked);
            failures += u32::from(!answer.ok);
            if failures > FAILURES_MAX {
                // No answer is better than one that names what is only on its way.
                bail!(
                    "{} objects differ or are on their way, which cannot be told apart{}\ntry again when the programs write less",
                    left.len(),
                    answer.reason.map(|reason| format!(": {reason}")).unwrap_or_default()
                );
            }
            if !left.is_empty() {
                std::thread::sleep(HOLD_UP);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::{Settings, StateDir};

    #[test]
    fn names_cannot_break_a_line_or_a_terminal() {
        assert_eq!(escaped(b"plain/\xc3\xa9"), "plain/é");
        assert_eq!(escaped(b"a\tb\nc\\d\x1b[0m\xff"), "a\\tb\\nc\\\\d\\u{1b}[0m\\xff");
        assert_eq!(escaped(b""), ".");
    }

    #[test]
    fn arguments_are_mirrors_and_at_last_a_path() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let root = dir.path().canonicalize().expect("there");
        let state = StateDir::open_or_make(Some(&root.join("state"))).expect("made");
        for name in ["primary/sub", "m", "n"] {
            std::fs::create_dir_all(root.join(name)).expect("made");
        }
        let mut settings = Settings::new("s".into(), root.join("primary"), 1 << 20);
        for name in ["m", "n"] {
            let mirror = MirrorSettings::new(name.into(), root.join(name), &settings.mirrors);
            settings.mirrors.push(mirror);
        }
        let sets = [state.make_set(settings).expect("made")];
        let chosen = |arguments: &[&str]| {
            let arguments: Vec<_> = arguments.iter().map(OsString::from).collect();
            let chosen = choose(&sets, &arguments).map_err(|error| error.to_string())?;
            Ok::<_, String>(
                chosen
                    .into_iter()
                    .map(|(_, mirror, below)| (mirror.name.clone(), String::from_utf8(below).expect("text")))
                    .collect::<Vec<_>>(),
            )
        };
        let pair = |name: &str, below: &str| (name.to_owned(), below.to_owned());
        assert_eq!(chosen(&[]).expect("all"), [pair("m", ""), pair("n", "")]);
        assert_eq!(chosen(&["n"]).expect("one"), [pair("n", "")]);
        assert_eq!(chosen(&["n", "sub"]).expect("a path"), [pair("n", "sub")]);
        assert_eq!(chosen(&["sub"]).expect("a path"), [pair("m", "sub"), pair("n", "sub")]);
        let absolute = root.join("primary/sub");
        assert_eq!(chosen(&["m", absolute.to_str().expect("text")]).expect("a path"), [pair("m", "sub")]);
        let whole = root.join("primary");
        assert_eq!(chosen(&["m", whole.to_str().expect("text")]).expect("a path"), [pair("m", "")]);
        assert!(chosen(&["nothing"]).is_err());
        assert!(chosen(&["nothing", "sub"]).is_err());
        assert!(chosen(&["/etc"]).is_err());
    }
}
