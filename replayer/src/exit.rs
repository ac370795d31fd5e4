//! What lockstep exits with (SPEC.md, "Exit status").

use std::process::ExitCode;

/// An exit status of lockstep itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// Done; for `status --check`: OK.
    Done,
    /// The answer is no; for `status --check`: WARNING.
    No,
    /// Trouble or usage; for `status --check`: CRITICAL.
    Trouble,
    /// `status --check`: UNKNOWN.
    Unknown,
    /// `run`: trouble or usage of lockstep's own.
    RunTrouble,
    /// `run`: the program can't be executed.
    CannotExecute,
    /// `run`: there is no such program.
    NotFound,
    /// `run`: the program's own status, or 128 + N when signal N ended it.
    Program(u8),
}

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::No => 1,
            Self::Trouble => 2,
            Self::Unknown => 3,
            Self::RunTrouble => 125,
            Self::CannotExecute => 126,
            Self::NotFound => 127,
            Self::Program(status) => status,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
