//! Consent to `--adopt`: shows what would be lost in a mirror that has content, and asks.

use super::mirrors::Plan;
use super::verify::escaped;
use crate::limits::Limits;
use crate::tree::Tree;
use crate::verify::{DifferenceKind, verify};
use anyhow::{Context, bail};
use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;

/// What happens to an object of the mirror.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Loss {
    Overwritten,
    Deleted,
}

/// Shows what lies in the mirrors of `plan` and would be lost, and has the user agree to it.
///
/// # Errors
/// If the user doesn't agree or can't be asked, or the trees can't be compared.
pub fn confirm(plan: &Plan, yes: bool) -> anyhow::Result<()> {
    let mut lost = 0;
    for addition in plan.additions().iter().filter(|addition| addition.needs_consent) {
        let mirror = &addition.mirror.path;
        let losses = losses(&plan.settings().primary, mirror)
            .with_context(|| format!("cannot compare {mirror:?} with the primary"))?;
        lost += losses.len();
        let mut err = std::io::stderr().lock();
        for (path, loss) in losses {
            let word = if loss == Loss::Deleted { "delete" } else { "overwrite" };
            writeln!(err, "lockstep: would {word} {}/{}", mirror.display(), escaped(&path))?;
        }
    }
    if lost == 0 || yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        bail!(
            "cannot adopt: {lost} objects would be deleted or overwritten, and there is no terminal to ask on\nif that is what you want: --adopt --yes"
        );
    }
    eprint!("lockstep: {lost} objects would be deleted or overwritten. Go on? [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => bail!("not adopted; nothing was changed"),
    }
}

fn losses(primary: &Path, mirror: &Path) -> anyhow::Result<BTreeMap<Vec<u8>, Loss>> {
    // No directory is kept open: programs may move them meanwhile.
    let mut trees = [Tree::open(primary, 0)?, Tree::open(mirror, 0)?];
    let [primary, mirror] = &mut trees;
    let found = verify(primary, mirror, b"", &Limits::default())?;
    if let Some((path, error)) = found.unreadable.first() {
        bail!("cannot read {:?}: {error}", escaped(path));
    }
    let mut losses = BTreeMap::new();
    for difference in found.differences {
        let loss = match difference.kind {
            DifferenceKind::Extra => Loss::Deleted,
            DifferenceKind::Type
            | DifferenceKind::Content
            | DifferenceKind::Size
            | DifferenceKind::Target
            | DifferenceKind::Device => Loss::Overwritten,
            // Nothing is lost with these but what the primary says better.
            DifferenceKind::Missing
            | DifferenceKind::Mode
            | DifferenceKind::Owner
            | DifferenceKind::Mtime
            | DifferenceKind::Xattr
            | DifferenceKind::Acl
            | DifferenceKind::Hardlink => continue,
        };
        let entry = losses.entry(difference.path).or_insert(loss);
        *entry = (*entry).max(loss);
    }
    Ok(losses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_equal_or_missing_is_no_loss() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (primary, mirror) = (dir.path().join("primary"), dir.path().join("mirror"));
        for (root, name, content) in [
            (&primary, "same", "1"),
            (&mirror, "same", "1"),
            (&primary, "other", "1"),
            (&mirror, "other", "2"),
            (&primary, "new", "1"),
            (&mirror, "old", "1"),
        ] {
            std::fs::create_dir_all(root).expect("made");
            std::fs::write(root.join(name), content).expect("written");
        }
        let found = losses(&primary, &mirror).expect("comparable");
        let expected = [(b"old".to_vec(), Loss::Deleted), (b"other".to_vec(), Loss::Overwritten)];
        assert_eq!(found, BTreeMap::from(expected));
    }
}
