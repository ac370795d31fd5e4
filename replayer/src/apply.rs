//! `Applier`: applies records to one mirror, in order, each as exactly the change that it stands for.
//!
//! Applying a record twice in a row leaves the same mirror, so a replayer that was killed begins again with the last
//! one. Where the mirror is not as a record expects it, or the bytes are to be had from the primary alone, the object
//! is put on the list of repairs and read again as soon as its name in the primary is the mirror's.

mod attributes;
mod data;
#[cfg(test)]
mod model;
mod names;
#[cfg(test)]
mod random;
mod renames;
#[cfg(test)]
mod tests;
mod unnamed;

use std::path::Path;
use std::sync::Arc;

use journal::record::{FLAG_MAYBE_OUTSIDE, FileId, Kind, Record};
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use crate::content::Buffers;
use crate::error::{ReplayError, in_mirror, in_primary, is_divergence};
use crate::ledger::{Entry, Ledger};
use crate::limits::Limits;
use crate::paths;
use crate::repair::PathRepair;
use crate::tree::{self, Tree};

pub use attributes::{FLAGS, OwnerPolicy};

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The mirror is as the record says.
    Done,
    /// The record is about a file that has no name any more, or lies outside the primary.
    Dropped,
    /// No name is known of the file; what was written to it is not in the mirror.
    UnknownFile(FileId),
    /// The object is on the list of repairs.
    Repair,
}

/// Directories of the primary that are kept open within one pass over it, and forgotten before the next, because
/// programs move them.
const PRIMARY_DIRECTORIES_MAX: usize = 64;

/// Applies records to one mirror.
#[derive(Debug)]
pub struct Applier {
    pub(crate) primary: Tree,
    pub(crate) mirror: Tree,
    pub(crate) ledger: Ledger,
    pub(crate) limits: Limits,
    pub(crate) owner: OwnerPolicy,
    pub(crate) buffers: Buffers,
    primary_root: FileId,
    /// Whether the mirror was seen to keep times to the nanosecond, or not to.
    times_are_checked: bool,
    /// The file that a `Create` record has made, open, until the `Bind` record that tells its identity.
    newborn: Option<(Vec<u8>, std::sync::Arc<rustix::fd::OwnedFd>)>,
}

impl Applier {
    /// Opens primary and mirror; `bindings_file` keeps what must survive the death of the replayer and belongs to this
    /// mirror alone.
    ///
    /// # Errors
    /// [`ReplayError`] if one of the three can't be opened.
    pub fn new(primary: &Path, mirror: &Path, bindings_file: &Path, owner: OwnerPolicy) -> Result<Self, ReplayError> {
        let mut primary = Tree::open(primary, PRIMARY_DIRECTORIES_MAX).map_err(in_primary("open", b""))?;
        let mirror = Tree::open(mirror, tree::directories_max()).map_err(in_mirror("open", b""))?;
        let primary_root = tree::id_of(&primary.lstat(b"").map_err(in_primary("stat", b""))?);
        let ledger = Ledger::open(bindings_file)?;
        let limits = Limits::default();
        let buffers = Buffers::default();
        let mut applier = Self {
            primary,
            mirror,
            ledger,
            limits,
            owner,
            buffers,
            primary_root,
            times_are_checked: false,
            newborn: None,
        };
        applier.remove_stray_unnamed()?;
        Ok(applier)
    }

    /// True when nothing was known of earlier records: unless the mirror is new as well, it needs a resync.
    pub const fn is_fresh(&self) -> bool {
        self.ledger.is_fresh()
    }

    /// What this mirror can't hold, as far as it was met.
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// How many repairs wait. Those of files without a name are of no account until they get one.
    pub fn pending_repairs(&self) -> usize {
        let files = self.ledger.pending().file_ids();
        let named =
            files.into_iter().filter(|file| self.ledger.bindings.names(*file).any(|name| !paths::is_reserved(name)));
        self.ledger.pending().paths().count() + named.count()
    }

    /// False when the mirror's directory is not where it was, so that nothing written to it would be found.
    pub fn is_in_place(&self) -> bool {
        self.mirror.is_in_place()
    }

    /// Applies one record. Blocks on the mirror, and for those that carry no data on the primary.
    ///
    /// # Errors
    /// [`ReplayError`]; the record may then have been applied or not, and is to be applied again. After
    /// [`ReplayError::Reserved`] it is left out.
    pub fn apply(&mut self, record: &Record) -> Result<Applied, ReplayError> {
        let applied = self.perform(record);
        self.ledger.flush()?;
        applied
    }

    fn perform(&mut self, record: &Record) -> Result<Applied, ReplayError> {
        let Record { kind, header, path1, path2, data } = *record;
        self.refuse_reserved(record)?;
        let file = record.file();
        match kind {
            Kind::Write => self.write(record, header.a, data),
            Kind::Truncate => self.truncate(record, header.a),
            Kind::Allocate => self.allocate(record),
            Kind::Create => self.create(path1, file, header.a, header.b),
            Kind::Bind => self.bind(path1, file),
            Kind::MakeDirectory => self.make_directory(path1, header.a, header.b),
            Kind::SymbolicLink => self.symbolic_link(path1, path2, header.b),
            Kind::MakeNode => self.make_node(path1, header.a, header.b, header.c),
            Kind::Link => self.link(path1, path2, file),
            Kind::Rename => self.rename(record),
            Kind::Unlink => self.unlink(path1, file),
            Kind::RemoveDirectory => self.remove_directory(path1),
            Kind::Attributes => self.attributes(record),
            Kind::SetXattr => self.set_xattr(record, Some(data)),
            Kind::RemoveXattr => self.set_xattr(record, None),
            Kind::Flags => self.flags(record),
            Kind::Reread => self.reread(record),
            Kind::Import => self.import(path1, file),
            Kind::CreateUnnamed => self.create_unnamed(record),
            Kind::NotFollowed | Kind::Sync => Ok(Applied::Done),
            Kind::RereadNames => self.reread_names(path1),
            kind => unreachable!("{kind:?} is listed above"),
        }
    }

    /// A name of ours is never touched; the other side of a link or rename across it still is what the primary says.
    fn refuse_reserved(&mut self, record: &Record) -> Result<(), ReplayError> {
        let has_second = matches!(record.kind, Kind::Link | Kind::Rename);
        let reserved = [Some(record.path1), has_second.then_some(record.path2)];
        let Some(path) = reserved.into_iter().flatten().find(|path| paths::is_reserved(path)) else { return Ok(()) };
        if record.kind == Kind::NotFollowed {
            return Ok(());
        }
        if has_second {
            for other in [record.path1, record.path2] {
                if !other.is_empty() && !paths::is_reserved(other) {
                    self.ledger.enter(Entry::RepairPath(other, PathRepair::Tree));
                }
            }
        }
        Err(ReplayError::Reserved { path: path.to_vec() })
    }

    /// What a record is about: a path, or a bound file by one of its names.
    pub(crate) fn target(&self, record: &Record) -> Result<Vec<u8>, Applied> {
        let file = record.file();
        if !record.path1.is_empty() || file.ino == 0 || file == self.primary_root {
            return Ok(record.path1.to_vec());
        }
        match self.ledger.bindings.name(file) {
            Some(name) => Ok(name.to_vec()),
            None => Err(self.unknown(record)),
        }
    }

    /// What becomes of a record on a file of which no name is known.
    fn unknown(&self, record: &Record) -> Applied {
        let file = record.file();
        if self.ledger.bindings.is_gone(file) || record.header.flags & FLAG_MAYBE_OUTSIDE != 0 {
            Applied::Dropped
        } else {
            Applied::UnknownFile(file)
        }
    }

    /// The mirror's file for a record of contents, open for reading and writing.
    fn open(&mut self, record: &Record) -> Result<Result<Arc<OwnedFd>, Applied>, ReplayError> {
        let file = record.file();
        if let Some(fd) = self.ledger.bindings.open(file) {
            return Ok(Ok(fd));
        }
        if !self.ledger.bindings.has(file) {
            return Ok(Err(self.unknown(record)));
        }
        match self.open_bound(file)? {
            Some(fd) => Ok(Ok(fd)),
            None => {
                let name = self.ledger.bindings.name(file).unwrap_or_default().to_vec();
                self.missing(&name).map(Err)
            }
        }
    }

    /// Opens a bound file of the mirror by the first of its names that is there.
    pub(crate) fn open_bound(&mut self, file: FileId) -> Result<Option<Arc<OwnedFd>>, ReplayError> {
        if let Some(fd) = self.ledger.bindings.open(file) {
            return Ok(Some(fd));
        }
        let names: Vec<Vec<u8>> = self.ledger.bindings.names(file).map(<[u8]>::to_vec).collect();
        for name in names {
            match self.mirror.open_to_write(&name) {
                Ok(fd) => {
                    let stat = rustix::fs::fstat(&fd).map_err(in_mirror("stat", &name))?;
                    if tree::file_type(&stat) == FileType::RegularFile {
                        let fd = Arc::new(fd);
                        self.ledger.bindings.keep_open(file, fd.clone());
                        return Ok(Some(fd));
                    }
                }
                Err(errno) if is_divergence(errno) || errno == Errno::NXIO => {}
                Err(errno) => return Err(in_mirror("open", &name)(errno)),
            }
        }
        Ok(None)
    }

    /// Called where `path` is not in the mirror as a record expects it.
    fn missing(&mut self, path: &[u8]) -> Result<Applied, ReplayError> {
        if self.ledger.is_absent(path) {
            return Ok(Applied::Done);
        }
        if !self.mirror.is_in_place() {
            return Err(in_mirror("find", b"")(Errno::NOENT));
        }
        self.ledger.enter(Entry::RepairPath(path, PathRepair::Tree));
        Ok(Applied::Repair)
    }

    /// Turns an error that says that names are not as expected into a repair of `path`.
    fn outcome(
        &mut self,
        result: rustix::io::Result<()>,
        operation: &'static str,
        path: &[u8],
    ) -> Result<Applied, ReplayError> {
        match result {
            Ok(()) => Ok(Applied::Done),
            Err(errno) if is_divergence(errno) => self.missing(path),
            Err(errno) => Err(in_mirror(operation, path)(errno)),
        }
    }

    /// Removes `path` from the mirror with all below, because something else takes its place.
    pub(crate) fn discard(&mut self, path: &[u8]) -> Result<(), ReplayError> {
        let mut bound: Vec<FileId> = self.ledger.bindings.below(path).map(|(_, file)| file).collect();
        bound.extend(self.ledger.bindings.file(path));
        for file in bound {
            self.ledger.bindings.close(file);
        }
        self.mirror.remove(path).map_err(in_mirror("remove", path))
    }

    /// stat(2) of a path of the mirror, nothing if it is not there.
    pub(crate) fn look(&mut self, path: &[u8]) -> Result<Option<Stat>, ReplayError> {
        let result = self.mirror.with_access(&[paths::parent(path)], |mirror| mirror.look(path));
        result.map_err(in_mirror("stat", path))
    }

    fn touch_parent(&mut self, path: &[u8]) {
        self.ledger.touch_path(paths::parent(path));
    }
}
