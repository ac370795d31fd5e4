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

/// A process that is ended, with its group, when this is dropped.
pub struct Running {
    child: Child,
}

impl Running {
    /// Starts `command` in a process group of its own.
    pub fn start(command: &mut Command) -> Self {
        let child = command.process_group(0).spawn();
        Self { child: child.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}")) }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The exit status if the process has ended within `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
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
    // What the command started in the background and outlived it (a replayer is a session of its own) goes on; only
    // the group of a command that is still running is ended by the drop.
    let status = status.code().or(status.signal().map(|signal| 128 + signal)).expect("an exit or a signal");
    Outcome { status, stdout, stderr }
}
