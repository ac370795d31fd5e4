//! What can go wrong between a record and a mirror.

use std::path::PathBuf;

use rustix::io::Errno;

/// Why a record could not be applied, or a mirror not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The mirror's file system refused.
    #[error("cannot {operation} {} in the mirror: {source}", Quoted(.path))]
    Mirror {
        /// What was tried, as a verb.
        operation: &'static str,
        /// On what, relative to the mirror's root.
        path: Vec<u8>,
        /// Why it failed.
        source: Errno,
    },
    /// The primary could not be read.
    #[error("cannot {operation} {} in the primary: {source}", Quoted(.path))]
    Primary {
        /// What was tried, as a verb.
        operation: &'static str,
        /// On what, relative to the primary's root.
        path: Vec<u8>,
        /// Why it failed.
        source: Errno,
    },
    /// A record names `.lockstep` at the root, which belongs to lockstep.
    #[error("{} is a reserved name and is not mirrored", Quoted(.path))]
    Reserved {
        /// The name.
        path: Vec<u8>,
    },
    /// The file that remembers bindings over a crash could not be read or written.
    #[error("cannot {operation} {}: {source}", .path.display())]
    Ledger {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl ReplayError {
    /// The kernel's error number, where there is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Mirror { source, .. } | Self::Primary { source, .. } => Some(*source),
            Self::Ledger { source, .. } => Errno::from_io_error(source),
            Self::Reserved { .. } => None,
        }
    }

    /// True when the mirror as a whole is unwell (full, read-only, gone, failing) and it is worth trying again later.
    pub fn is_mirror_trouble(&self) -> bool {
        matches!(self, Self::Mirror { source, .. } if is_trouble(*source))
    }

    /// True when the record may be left out, because it is about a name that is never mirrored.
    pub const fn is_reserved(&self) -> bool {
        matches!(self, Self::Reserved { .. })
    }
}

/// For `map_err`: an error of the mirror.
pub fn in_mirror(operation: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> ReplayError {
    move |source| ReplayError::Mirror { operation, path: path.to_vec(), source }
}

/// For `map_err`: an error of the primary.
pub fn in_primary(operation: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> ReplayError {
    move |source| ReplayError::Primary { operation, path: path.to_vec(), source }
}

/// Errors that say that names are not as they were expected, rather than that the file system is unwell.
pub fn is_divergence(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::EXIST | Errno::ISDIR | Errno::NOTEMPTY | Errno::LOOP)
}

fn is_trouble(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::NOSPC
            | Errno::DQUOT
            | Errno::ROFS
            | Errno::IO
            | Errno::NOENT
            | Errno::NODEV
            | Errno::NXIO
            | Errno::STALE
            | Errno::NOTCONN
            | Errno::CONNABORTED
            | Errno::TIMEDOUT
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::REMOTEIO
            | Errno::SHUTDOWN
            | Errno::NOMEM
            | Errno::MFILE
            | Errno::NFILE
            | Errno::ACCESS
            | Errno::PERM
            | Errno::FBIG
            | Errno::AGAIN
            | Errno::BUSY
            | Errno::TXTBSY
    )
}

struct Quoted<'a>(&'a [u8]);

impl std::fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_operation_path_and_cause() {
        let error = in_mirror("write", b"a/x\n")(Errno::NOSPC);
        assert_eq!(error.to_string(), r#"cannot write "a/x\n" in the mirror: No space left on device (os error 28)"#);
        assert!(error.is_mirror_trouble());
        assert!(!in_primary("read", b"x")(Errno::NOSPC).is_mirror_trouble());
    }
}
