//! Asks a set's replayer over its control socket: one JSON object a line each way, one question a connection.
//!
//! Whether a replayer lives is asked of the socket too: the kernel refuses connections to a socket whose listener is
//! gone, however it went.

use crate::control::{Answer, Question};
use crate::set::{Set, SetError};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A question that has been asked, or the connection that it holds open.
#[derive(Debug)]
pub struct Asked {
    stream: BufReader<UnixStream>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No replayer runs for this set.
    #[error("no replayer runs for the set {set}\nstart one: lockstep run … or lockstep replay --set {set}")]
    NoReplayer {
        /// Name of the set.
        set: String,
    },
    /// The replayer says why it can't.
    #[error("{0}")]
    Refused(String),
    /// It ended, or something else answers there.
    #[error("the replayer of the set {set} broke off: {reason}\nsee its log: {log}")]
    BrokenOff {
        /// Name of the set.
        set: String,
        /// What was seen.
        reason: String,
        /// Path of its log.
        log: String,
    },
    /// It takes too long.
    #[error("the replayer of the set {set} does not answer within {seconds} s\nsee its log: {log}")]
    Silent {
        /// Name of the set.
        set: String,
        /// How long was waited.
        seconds: u64,
        /// Path of its log.
        log: String,
    },
    /// The set's directory is unreachable.
    #[error(transparent)]
    Set(#[from] SetError),
}

/// True when a replayer listens for this set. Never blocks.
pub fn replayer_listens(set: &Set) -> bool {
    let Ok(address) = set.control_address() else { return false };
    let connected = SocketAddrUnix::new(address.path()).and_then(|address| {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &address)
    });
    // A listener that is too busy to accept is a listener.
    matches!(connected, Ok(()) | Err(rustix::io::Errno::AGAIN))
}

/// Asks and waits for the answer, for at most `limit`.
///
/// # Errors
/// [`ClientError`]; `Refused` with the replayer's own words if the answer is an error.
pub fn ask(set: &Set, question: &Question, limit: Duration) -> Result<Answer, ClientError> {
    Asked::new(set, question)?.answer(set, Some(limit))
}

impl Asked {
    /// Connects and sends `question`.
    ///
    /// # Errors
    /// `NoReplayer` when nobody listens, `BrokenOff`, `Set`.
    pub fn new(set: &Set, question: &Question) -> Result<Self, ClientError> {
        let address = set.control_address()?;
        let mut stream = UnixStream::connect(address.path()).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NoReplayer { set: set.name().to_owned() }
            }
            _ => broken_off(set, &error),
        })?;
        let mut line = serde_json::to_string(question).expect("questions are text and numbers");
        line.push('\n');
        stream.write_all(line.as_bytes()).map_err(|error| broken_off(set, &error))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Waits for the answer, for at most `limit`; the connection stays open while `self` lives.
    ///
    /// # Errors
    /// As [`ask`].
    pub fn answer(&mut self, set: &Set, limit: Option<Duration>) -> Result<Answer, ClientError> {
        self.stream.get_ref().set_read_timeout(limit).map_err(|error| broken_off(set, &error))?;
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(_) if line.ends_with('\n') => {}
            Ok(_) => return Err(broken_off(set, &"it closed the connection")),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                let seconds = limit.unwrap_or_default().as_secs();
                return Err(ClientError::Silent { set: set.name().to_owned(), seconds, log: log(set) });
            }
            Err(error) => return Err(broken_off(set, &error)),
        }
        let mut answer: Answer = serde_json::from_str(&line).map_err(|error| broken_off(set, &error))?;
        match answer.error.take() {
            Some(reason) => Err(ClientError::Refused(reason)),
            None => Ok(answer),
        }
    }
}

impl AsFd for Asked {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.get_ref().as_fd()
    }
}

fn broken_off(set: &Set, reason: &dyn std::fmt::Display) -> ClientError {
    ClientError::BrokenOff { set: set.name().to_owned(), reason: reason.to_string(), log: log(set) }
}

fn log(set: &Set) -> String {
    set.file("replayer.log").display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::{Settings, StateDir};
    use std::os::unix::net::UnixListener;

    fn set() -> (tempfile::TempDir, Set) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let state = StateDir::open_or_make(Some(&dir.path().join("state"))).expect("a state directory");
        let set = state.make_set(Settings::new("s".into(), "/p".into(), 1 << 20)).expect("made");
        (dir, set)
    }

    fn answering(set: &Set, answer: &'static str) -> std::thread::JoinHandle<String> {
        let address = set.control_address().expect("there");
        let listener = UnixListener::bind(address.path()).expect("bound");
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("asked");
            let mut question = String::new();
            BufReader::new(&stream).read_line(&mut question).expect("a line");
            stream.write_all(answer.as_bytes()).expect("taken");
            question
        })
    }

    #[test]
    fn a_question_is_a_line_and_so_is_the_answer() {
        let (_dir, set) = set();
        let server = answering(&set, "{\"ok\":true}\n");
        let answer = ask(&set, &Question::Reload, Duration::from_secs(5)).expect("answered");
        assert!(answer.ok);
        assert_eq!(server.join().expect("no panic"), "{\"do\":\"reload\"}\n");
    }

    #[test]
    fn an_error_is_told_in_the_replayers_words() {
        let (_dir, set) = set();
        let server = answering(&set, "{\"ok\":false,\"error\":\"no such mirror\"}\n");
        let error = ask(&set, &Question::Pause { mirror: "m".into() }, Duration::from_secs(5)).expect_err("refused");
        assert_eq!(error.to_string(), "no such mirror");
        server.join().expect("no panic");
    }

    #[test]
    fn half_an_answer_is_none() {
        let (_dir, set) = set();
        let server = answering(&set, "{\"ok\":tr");
        let error = ask(&set, &Question::Reload, Duration::from_secs(5)).expect_err("broken off");
        assert!(matches!(error, ClientError::BrokenOff { .. }), "{error}");
        server.join().expect("no panic");
    }

    #[test]
    fn a_socket_without_a_listener_means_no_replayer() {
        let (_dir, set) = set();
        assert!(!replayer_listens(&set));
        let listener = UnixListener::bind(set.control_address().expect("there").path()).expect("bound");
        assert!(replayer_listens(&set));
        drop(listener);
        assert!(!replayer_listens(&set));
        let error = ask(&set, &Question::Status, Duration::from_secs(5)).expect_err("nobody there");
        assert!(matches!(error, ClientError::NoReplayer { .. }));
    }
}
