//! Starts a process in a group of its own, waits for its end, and never leaves it behind.

use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// How a process ended and what it said.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The exit code, or 128 + N if signal N ended it, as `lockstep run` answers it.
    pub status: i32,
    /// All of stdout.
    pub stdout: String,
    /// All of stderr.
    pub stderr: String,
}

/// A process that is ended, with its group, when this is dropped before its end.
pub struct Running {
    child: Child,
    ended: bool,
}

impl Running {
    /// Starts `command` in a process group of its own.
    pub fn start(command: &mut Command) -> Self {
        let child = command.process_group(0).spawn();
        Self { child: child.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}")), ended: false }
    }

    /// The exit status if the process has ended within `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                self.ended = true;
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // What it started and left behind goes on: that is for the test to look at.
        if self.ended {
            return;
        }
        if let Some(group) = Pid::from_raw(self.child.id().cast_signed()) {
            let _gone_already = kill_process_group(group, Signal::KILL);
        }
        let _reaped = self.child.wait();
    }
}

/// Runs `command` to its end, with its output kept in files below `directory`.
///
/// Files rather than pipes: what the command leaves running in the background must not keep this waiting.
pub fn run(command: &mut Command, directory: &Path, limit: Duration) -> Outcome {
    let keep = tempfile::tempdir_in(directory).expect("a directory for output");
    let (out, err) = (keep.path().join("stdout"), keep.path().join("stderr"));
    command.stdin(Stdio::null());
    command.stdout(File::create(&out).expect("a file for output"));
    command.stderr(File::create(&err).expect("a file for output"));
    let mut running = Running::start(command);
    let status = running.wait(limit);
    let read = |path| String::from_utf8_lossy(&std::fs::read(path).expect("the output can be read")).into_owned();
    let (stdout, stderr) = (read(&out), read(&err));
    let Some(status) = status else {
        panic!("{command:?} has not ended within {limit:?}\nstdout: {stdout}\nstderr: {stderr}");
    };
    let status = status.code().or(status.signal().map(|signal| 128 + signal)).expect("an exit or a signal");
    Outcome { status, stdout, stderr }
}
