//! Arguments and help of every command; each has a file of its own below `cli/`.

mod adopt;
mod check;
mod config;
mod launch;
mod mirror;
mod mirrors;
mod program;
mod replay;
mod run;
mod select;
mod status;
mod stop;
mod supervisor;

mod verify;
mod wait;

use crate::exit::Exit;
use clap::{Args, ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand};
use config::Config;
use program::ProgramError;
use select::FromEnvironment;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Keeps mirror directories in step with a primary directory, for the programs you choose, without root
#[derive(Parser, Debug)]
#[command(
    name = "lockstep",
    version,
    disable_help_subcommand = true,
    before_long_help = "Examples:
  lockstep run --primary /srv/data --mirror /backup/data -- ./server
  lockstep status
  lockstep verify",
    after_help = "Exit status: 0 done, 1 the answer is no, 2 trouble; `run` has the program's own, or 125, 126, 127."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options that every command takes.
#[derive(Args, Debug)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// Configuration file [default: lockstep/config.toml in XDG_CONFIG_HOME or ~/.config]
    #[arg(long, global = true, value_name = "FILE", env = "LOCKSTEP_CONFIG", hide_env = true)]
    config: Option<PathBuf>,
    /// The set that is meant [default: the only one there is]
    #[arg(long, global = true, value_name = "NAME")]
    set: Option<String>,
    /// Where sets are kept [default: LOCKSTEP_STATE_DIR, or lockstep in XDG_STATE_HOME or ~/.local/state]
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Say more on stderr; twice: still more
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Say less on stderr
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// When to use colour
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", env = "LOCKSTEP_COLOR", hide_env = true)]
    color: ColorChoice,
    #[arg(skip)]
    loaded: Config,
    #[arg(skip)]
    environment: Option<FromEnvironment>,
}

#[derive(Subcommand, Debug)]
enum Command {
    Run(run::Run),
    Replay(replay::Replay),
    Stop(stop::Stop),
    Status(status::Status),
    Wait(wait::Wait),
    Mirror(mirror::Mirror),
    Verify(verify::Verify),
    Resync(mirror::Resync),
    /// Lists, shows, prunes, replays or exports the journal (comes with a later version)
    #[command(hide = true)]
    Journal(Later),
    /// Shows the status live (comes with a later version)
    #[command(hide = true)]
    Top(Later),
    /// Raises alarms (comes with a later version)
    #[command(hide = true)]
    Monitor(Later),
    /// Makes a mirror the new primary (comes with a later version)
    #[command(hide = true)]
    Promote(Later),
    /// Says what works on this machine (comes with a later version)
    #[command(hide = true)]
    Doctor(Later),
    /// Prints completions for a shell (comes with a later version)
    #[command(hide = true)]
    Completions(Later),
    /// Prints the manual page (comes with a later version)
    #[command(hide = true)]
    Man(Later),
}

/// Arguments of a command that there is not yet.
#[derive(Args, Debug)]
struct Later {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _arguments: Vec<OsString>,
}

/// Runs the command that `arguments`, the program's own name first, ask for.
pub fn main(arguments: Vec<OsString>) -> Exit {
    let matches = match Cli::command().try_get_matches_from(&arguments) {
        Ok(matches) => matches,
        Err(error) => return refuse_usage(&error, &arguments),
    };
    let mut cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return refuse_usage(&error, &arguments),
    };
    cli.global.start_log(matches!(cli.command, Command::Replay(_)));
    let result = cli.global.load().and_then(|()| cli.command.main(&cli.global));
    let trouble = if matches!(cli.command, Command::Run(_)) { Exit::RunTrouble } else { Exit::Trouble };
    match result {
        Ok(exit) => exit,
        Err(error) if is_closed_pipe(&error) => Exit::Done,
        Err(error) => {
            complain(&error);
            match error.downcast_ref::<ProgramError>() {
                Some(ProgramError::NotFound { .. }) => Exit::NotFound,
                Some(ProgramError::CannotExecute { .. }) => Exit::CannotExecute,
                None => trouble,
            }
        }
    }
}

impl Command {
    fn main(&self, global: &Global) -> anyhow::Result<Exit> {
        match self {
            Self::Run(run) => run.main(global),
            Self::Replay(replay) => replay.main(global),
            Self::Stop(stop) => stop.main(global),
            Self::Status(status) => status.main(global),
            Self::Wait(wait) => wait.main(global),
            Self::Mirror(mirror) => mirror.main(global),
            Self::Verify(verify) => verify.main(global),
            Self::Resync(resync) => resync.main(global),
            Self::Journal(_) => later("journal"),
            Self::Top(_) => later("top"),
            Self::Monitor(_) => later("monitor"),
            Self::Promote(_) => later("promote"),
            Self::Doctor(_) => later("doctor"),
            Self::Completions(_) => later("completions"),
            Self::Man(_) => later("man"),
        }
    }
}

impl Global {
    /// The set that is meant, if one is named: by flag, else by environment.
    pub fn set(&self) -> Option<&str> {
        let environment =
            self.environment.as_ref().filter(|environment| match (&self.state_dir, &environment.state_dir) {
                // A set of one state directory says nothing about another.
                (Some(flag), Some(other)) => select::resolve(flag) == select::resolve(other),
                _ => true,
            });
        self.set.as_deref().or(environment.map(|environment| environment.name.as_str()))
    }

    /// The set named by flag.
    pub fn set_flag(&self) -> Option<&str> {
        self.set.as_deref()
    }

    /// The state directory, if anything names one: flag, environment or configuration.
    pub fn state_dir(&self) -> Option<&Path> {
        let environment = self.environment.as_ref().filter(|_| self.set.is_none());
        // Left to `StateDir::locate`, which knows where to look.
        let variable = std::env::var_os("LOCKSTEP_STATE_DIR").is_some_and(|value| !value.is_empty());
        self.state_dir.as_deref().or_else(|| environment?.state_dir.as_deref()).or(self
            .loaded
            .state_dir
            .as_deref()
            .filter(|_| !variable))
    }

    /// The state directory named by flag.
    pub fn state_dir_flag(&self) -> Option<&Path> {
        self.state_dir.as_deref()
    }

    /// What the configuration file says.
    pub fn config(&self) -> &Config {
        &self.loaded
    }

    /// The flags that make another lockstep as talkative as this one.
    pub fn verbosity(&self) -> &'static [&'static str] {
        match (self.quiet, self.verbose) {
            (true, _) => &["--quiet"],
            (_, 0) => &[],
            (_, 1) => &["-v"],
            _ => &["-vv"],
        }
    }

    /// Whether what goes to stdout is coloured.
    pub fn colours_stdout(&self) -> bool {
        use std::io::IsTerminal;
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        match self.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => {
                let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
                std::io::stdout().is_terminal() && !dumb && !set("NO_COLOR")
            }
        }
    }

    fn load(&mut self) -> anyhow::Result<()> {
        self.loaded = Config::load(self.config.as_deref())?;
        self.environment = FromEnvironment::read();
        Ok(())
    }

    fn start_log(&self, is_replayer: bool) {
        use log::LevelFilter::{Debug, Error, Info, Trace, Warn};
        let level = match (self.quiet, self.verbose, is_replayer) {
            (true, _, _) => Error,
            (_, 0, false) => Warn,
            (_, 0, true) | (_, 1, false) => Info,
            (_, 1, true) | (_, 2, false) => Debug,
            _ => Trace,
        };
        let mut builder = env_logger::Builder::new();
        builder.filter_level(level);
        if is_replayer {
            builder.format(|out, record| {
                writeln!(out, "{} {:5} {}", out.timestamp_millis(), record.level(), record.args())
            });
        } else {
            builder.format(|out, record| writeln!(out, "lockstep: {}", record.args()));
        }
        builder.init();
    }
}

fn later(command: &str) -> anyhow::Result<Exit> {
    eprintln!("lockstep: `lockstep {command}` is not available yet: it comes with a later version");
    Ok(Exit::Trouble)
}

/// Says what went wrong, a line of it at a time, each with our name before it.
fn complain(error: &anyhow::Error) {
    for line in describe(error).lines() {
        eprintln!("lockstep: {line}");
    }
}

/// An error and its causes in one line, then what they advise, a line each.
fn describe(error: &anyhow::Error) -> String {
    let (mut what, mut advice) = (String::new(), Vec::new());
    for cause in error.chain().map(ToString::to_string) {
        let (head, rest) = cause.split_once('\n').unwrap_or((&cause, ""));
        // Errors of our own have said what their cause says.
        if !what.contains(head) {
            if !what.is_empty() {
                what.push_str(": ");
            }
            what.push_str(head);
        }
        advice.extend(rest.lines().map(str::to_owned).filter(|line| !advice.contains(line)).collect::<Vec<_>>());
    }
    std::iter::once(what).chain(advice).collect::<Vec<_>>().join("\n")
}

/// Somebody who has read enough, `lockstep status | head`, has done nothing wrong.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Prints help and version, or what is wrong with the arguments. `run` has an exit status of its own for that.
fn refuse_usage(error: &clap::Error, arguments: &[OsString]) -> Exit {
    if !error.use_stderr() {
        let _ = error.print();
        return Exit::Done;
    }
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    eprintln!("lockstep: {}", text.trim_end());
    if first_command(arguments).is_some_and(|command| command == "run") { Exit::RunTrouble } else { Exit::Trouble }
}

/// The first argument that is neither an option nor an option's value.
fn first_command(arguments: &[OsString]) -> Option<&OsString> {
    let mut rest = arguments.iter().skip(1);
    while let Some(argument) = rest.next() {
        let text = argument.to_string_lossy();
        if matches!(&*text, "--config" | "--set" | "--state-dir" | "--color") {
            rest.next();
        } else if !text.starts_with('-') {
            return Some(argument);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_of_the_program_are_the_programs() {
        let cli =
            Cli::try_parse_from(["lockstep", "run", "--primary", "/p", "--mirror", "/m", "--", "ls", "--set", "-v"]);
        assert_eq!(cli.expect("sound").global.set, None);
        let cli = Cli::try_parse_from(["lockstep", "--set", "a", "run", "--primary", "/p", "ls", "-l", "--yes"]);
        assert_eq!(cli.expect("sound").global.set.as_deref(), Some("a"));
    }

    #[test]
    fn the_command_is_found_among_options() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        let command = |line: &str| first_command(&words(line)).map(|word| word.to_string_lossy().into_owned());
        assert_eq!(command("lockstep --set run --color=never status"), Some("status".into()));
        assert_eq!(command("lockstep -v run --bad"), Some("run".into()));
        assert_eq!(command("lockstep --version"), None);
    }

    #[test]
    fn an_unknown_option_of_run_is_not_taken_for_a_program() {
        assert!(Cli::try_parse_from(["lockstep", "run", "--primray", "/p", "--", "ls"]).is_err());
        assert!(Cli::try_parse_from(["lockstep", "run", "--primary", "/p", "--", "--odd-name", "-x"]).is_ok());
    }

    #[test]
    fn an_error_is_told_once_with_its_advice_last() {
        let inner = std::io::Error::from_raw_os_error(2);
        let error = ProgramError::CannotExecute { program: "x".into(), source: inner };
        let text = describe(&anyhow::Error::new(error).context("cannot do it"));
        let (first, advice) = text.split_once('\n').expect("there is advice");
        assert_eq!(first, "cannot do it: cannot run \"x\": No such file or directory (os error 2)");
        assert!(!advice.contains("No such file"), "{advice}");
    }

    #[test]
    fn help_begins_with_examples() {
        for command in Cli::command().get_subcommands_mut().filter(|command| !command.is_hide_set()) {
            let help = command.render_long_help().to_string();
            assert!(help.starts_with("Examples:"), "{}: {help}", command.get_name());
        }
    }
}
