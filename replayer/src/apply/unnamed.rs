//! Files that have no name yet (O_TMPFILE): hidden below `.lockstep` until a link names them.

use journal::record::{FileId, Record};
use rustix::fs::Mode;
use rustix::io::Errno;

use super::{Applied, Applier};
use crate::error::{ReplayError, in_mirror};
use crate::ledger::Entry;
use crate::paths;

/// Where files without a name wait for one.
pub(super) const UNNAMED: &[u8] = b".lockstep/unnamed";

/// Unnamed files from which on those of ended processes are looked for.
const UNNAMED_MANY: usize = 64;

impl Applier {
    pub(super) fn create_unnamed(&mut self, record: &Record) -> Result<Applied, ReplayError> {
        if self.ledger.unnamed().len() >= UNNAMED_MANY {
            self.sweep_unnamed()?;
        }
        self.make_hidden_directory()?;
        let file = record.file();
        let path = unnamed_path(file);
        // One of that number is of an earlier file, or was made by this record and not written to since.
        self.discard(&path)?;
        let applied = self.create(&path, file, record.header.a, record.header.b)?;
        self.ledger.enter(Entry::Unnamed(file, record.pid()));
        Ok(applied)
    }

    /// Removes unnamed files whose makers have ended. Should another process still hold one and give it a name, its
    /// content is read from the primary.
    fn sweep_unnamed(&mut self) -> Result<(), ReplayError> {
        let ended = |pid: u32| !std::path::Path::new(&format!("/proc/{pid}")).exists();
        let files: Vec<FileId> =
            self.ledger.unnamed().iter().filter(|(_, pid)| ended(**pid)).map(|(file, _)| *file).collect();
        for file in files {
            let path = unnamed_path(file);
            self.discard(&path)?;
            self.ledger.enter(Entry::Remove(&path));
        }
        Ok(())
    }

    /// Removes hidden files that nothing in the ledger stands for.
    pub(super) fn remove_stray_unnamed(&mut self) -> Result<(), ReplayError> {
        if self.mirror.look(UNNAMED).map_err(in_mirror("stat", UNNAMED))?.is_none() {
            return Ok(());
        }
        for (name, _) in self.mirror.list(UNNAMED).map_err(in_mirror("list", UNNAMED))? {
            let path = paths::join(UNNAMED, &name);
            if self.ledger.bindings.file(&path).is_none() {
                self.mirror.remove(&path).map_err(in_mirror("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Removes every unnamed file, before a resync.
    pub(crate) fn remove_unnamed(&mut self) -> Result<(), ReplayError> {
        self.mirror.remove(UNNAMED).map_err(in_mirror("remove", UNNAMED))
    }

    pub(super) fn make_hidden_directory(&mut self) -> Result<(), ReplayError> {
        for path in [paths::RESERVED, UNNAMED] {
            let (directory, name) = self.mirror.place(path).map_err(in_mirror("open", path))?;
            match rustix::fs::mkdirat(&directory, name, Mode::RWXU) {
                Ok(()) => self.ledger.touch_path(b""),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(in_mirror("make directory", path)(errno)),
            }
        }
        Ok(())
    }
}

fn unnamed_path(file: FileId) -> Vec<u8> {
    paths::join(UNNAMED, format!("{}-{}", file.dev, file.ino).as_bytes())
}
