//! Records of contents: bytes, sizes, holes, and what has to be read again.

use std::ops::Range;

use journal::record::{FLAG_WITHIN, FileId, Record};
use rustix::fd::OwnedFd;
use rustix::fs::{FallocateFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{Applied, Applier};
use crate::content::{Size, write_at};
use crate::error::{ReplayError, in_mirror, in_primary, is_divergence};
use crate::ledger::Entry;
use crate::paths;
use crate::repair::Ranges;
use crate::tree;

/// FALLOC_FL_WRITE_ZEROES of Linux 6.17: as ZERO_RANGE, but with the zeros on disk.
const WRITE_ZEROES: FallocateFlags = FallocateFlags::from_bits_retain(0x80);

/// What was decided about an fallocate(2) that can't be done in the mirror.
enum Fallback {
    None,
    Zeros,
    Reread,
}

impl Applier {
    pub(super) fn write(&mut self, record: &Record, offset: u64, data: &[u8]) -> Result<Applied, ReplayError> {
        let fd = match self.open(record)? {
            Ok(fd) => fd,
            Err(applied) => return Ok(applied),
        };
        let mut data = data;
        if record.header.flags & FLAG_WITHIN != 0 {
            let stat = rustix::fs::fstat(&*fd).map_err(|errno| self.failed("stat", record.file(), errno))?;
            let within = (stat.st_size as u64).saturating_sub(offset);
            data = &data[..data.len().min(usize::try_from(within).unwrap_or(usize::MAX))];
        }
        write_at(&*fd, data, offset).map_err(|errno| self.failed("write", record.file(), errno))?;
        self.ledger.touch(record.file());
        Ok(Applied::Done)
    }

    pub(super) fn truncate(&mut self, record: &Record, size: u64) -> Result<Applied, ReplayError> {
        let fd = match self.open(record)? {
            Ok(fd) => fd,
            Err(applied) => return Ok(applied),
        };
        rustix::fs::ftruncate(&*fd, size).map_err(|errno| self.failed("truncate", record.file(), errno))?;
        self.ledger.touch(record.file());
        Ok(Applied::Done)
    }

    pub(super) fn allocate(&mut self, record: &Record) -> Result<Applied, ReplayError> {
        let fd = match self.open(record)? {
            Ok(fd) => fd,
            Err(applied) => return Ok(applied),
        };
        let file = record.file();
        let (offset, length) = (record.header.a, record.header.b);
        let mode = FallocateFlags::from_bits_retain(record.header.c as u32);
        // Record::parse has checked the length.
        let size_after = record.data.try_into().map_or(0, u64::from_le_bytes);
        let failed = |errno| self.failed("allocate in", file, errno);
        let size = rustix::fs::fstat(&*fd).map_err(failed)?.st_size as u64;
        let fallback = if mode.contains(FallocateFlags::COLLAPSE_RANGE) || mode.contains(FallocateFlags::INSERT_RANGE) {
            if self.ledger.is_file_ahead(file) || self.ledger.pending().ranges(file).is_some() {
                // What was read from the primary may have been moved already, and what waits to be read has moved.
                return self.read_now(file, Ranges::WHOLE);
            }
            let removes = mode.contains(FallocateFlags::COLLAPSE_RANGE);
            let expected = if removes { size.checked_sub(length) } else { size.checked_add(length) };
            if size == size_after {
                // It was done before.
                Fallback::None
            } else if expected != Some(size_after) || rustix::fs::fallocate(&*fd, mode, offset, length).is_err() {
                Fallback::Reread
            } else {
                Fallback::None
            }
        } else {
            match rustix::fs::fallocate(&*fd, mode, offset, length) {
                Ok(()) => Fallback::None,
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                    let zeros = FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE | WRITE_ZEROES;
                    if mode.intersects(zeros) { Fallback::Zeros } else { Fallback::None }
                }
                Err(errno) => return Err(failed(errno)),
            }
        };
        self.ledger.touch(file);
        match fallback {
            Fallback::None => {}
            Fallback::Zeros => {
                let zeros = offset..offset.saturating_add(length).min(size_after);
                self.buffers.write_zeros(&fd, zeros).map_err(|errno| self.failed("write", file, errno))?;
            }
            Fallback::Reread => return self.read_now(file, (offset, u64::MAX)),
        }
        if rustix::fs::fstat(&*fd).is_ok_and(|stat| stat.st_size as u64 != size_after) {
            rustix::fs::ftruncate(&*fd, size_after).map_err(|errno| self.failed("truncate", file, errno))?;
        }
        Ok(Applied::Done)
    }

    pub(super) fn reread(&mut self, record: &Record) -> Result<Applied, ReplayError> {
        let file = record.file();
        if !self.ledger.bindings.has(file) {
            return Ok(self.unknown(record));
        }
        if record.header.b == 0 {
            self.ledger.touch(file);
            return Ok(Applied::Done);
        }
        self.read_now(file, (record.header.a, record.header.b))
    }

    /// Reads a range of a bound file from the primary, or puts it on the list.
    fn read_now(&mut self, file: FileId, range: (u64, u64)) -> Result<Applied, ReplayError> {
        self.ledger.touch(file);
        self.primary.forget(b"");
        self.ledger.read_ahead(file);
        if self.read_ranges(file, &[range])? {
            return Ok(Applied::Done);
        }
        self.ledger.enter(Entry::RepairFile(file, range.0, range.1));
        Ok(Applied::Repair)
    }

    /// Makes ranges of a bound file equal to the primary's; false if no name of it leads to that file there now.
    pub(crate) fn read_ranges(&mut self, file: FileId, ranges: &[(u64, u64)]) -> Result<bool, ReplayError> {
        let names: Vec<Vec<u8>> = self.ledger.bindings.names(file).map(<[u8]>::to_vec).collect();
        for name in names {
            if let Some(primary) = self.open_in_primary(&name, file)? {
                let Some(mirror) = self.open_bound(file)? else { return Ok(false) };
                self.equalize(&primary, &mirror, ranges, &name)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// As [`Self::read_ranges`], for what has waited: bits that a write takes away were dealt with in their order.
    pub(crate) fn read_ranges_late(&mut self, file: FileId, ranges: &[(u64, u64)]) -> Result<bool, ReplayError> {
        let Some(mirror) = self.open_bound(file)? else { return Ok(false) };
        let mode = rustix::fs::fstat(&*mirror).map_err(|errno| self.failed("stat", file, errno))?.st_mode & 0o7777;
        let is_done = self.read_ranges(file, ranges)?;
        if is_done && mode & 0o6000 != 0 {
            rustix::fs::fchmod(&*mirror, Mode::from_raw_mode(mode))
                .map_err(|errno| self.failed("change the mode of", file, errno))?;
        }
        Ok(is_done)
    }

    /// As [`Self::read_ranges`], by one name, which must be the file's on both sides.
    pub(crate) fn read_ranges_by(
        &mut self,
        name: &[u8],
        file: FileId,
        ranges: &[(u64, u64)],
    ) -> Result<bool, ReplayError> {
        let Some(primary) = self.open_in_primary(name, file)? else { return Ok(false) };
        let mirror = self.mirror.open_to_write(name).map_err(in_mirror("open", name))?;
        self.equalize(&primary, &mirror, ranges, name)?;
        Ok(true)
    }

    fn equalize(
        &mut self,
        primary: &OwnedFd,
        mirror: &OwnedFd,
        ranges: &[(u64, u64)],
        name: &[u8],
    ) -> Result<(), ReplayError> {
        for (offset, length) in ranges {
            let (range, size): (Range<u64>, Size) = if *length == u64::MAX {
                (*offset..u64::MAX, Size::Same)
            } else {
                (*offset..offset.saturating_add(*length), Size::Keep)
            };
            self.buffers.equalize(primary, mirror, range, size, name)?;
        }
        Ok(())
    }

    /// Opens `name` in the primary, if it is that file there.
    fn open_in_primary(&mut self, name: &[u8], file: FileId) -> Result<Option<OwnedFd>, ReplayError> {
        if paths::is_reserved(name) {
            return Ok(None);
        }
        let opened = self.primary.place(name).and_then(|(directory, last)| {
            let stat = tree::lstat_at(&directory, last)?;
            if tree::id_of(&stat) != file || tree::file_type(&stat) != FileType::RegularFile {
                return Err(Errno::NOENT);
            }
            tree::open_to_read(&directory, last, OFlags::empty())
        });
        match opened {
            Ok(fd) => {
                let stat = rustix::fs::fstat(&fd).map_err(in_primary("stat", name))?;
                Ok((tree::id_of(&stat) == file).then_some(fd))
            }
            Err(errno) if is_divergence(errno) || errno == Errno::ACCESS => Ok(None),
            Err(errno) => Err(in_primary("open", name)(errno)),
        }
    }

    /// Copies a file of the mirror to another name, because its file system has no hard links.
    pub(crate) fn copy_within_mirror(&mut self, from: &[u8], to: &[u8]) -> Result<(), ReplayError> {
        let source = self.mirror.open_to_write(from).map_err(in_mirror("open", from))?;
        let mode = Mode::from_raw_mode(rustix::fs::fstat(&source).map_err(in_mirror("stat", from))?.st_mode & 0o7777);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let made = self.mirror.with_access(&[paths::parent(to)], |mirror| mirror.open_at(to, flags, mode));
        let target = match made {
            Err(Errno::EXIST) => self.mirror.open_to_write(to),
            result => result,
        };
        let target = target.map_err(in_mirror("create", to))?;
        self.buffers.equalize(&source, &target, 0..u64::MAX, Size::Same, to)?;
        Ok(())
    }

    fn failed(&self, operation: &'static str, file: FileId, errno: Errno) -> ReplayError {
        let name = self.ledger.bindings.name(file).unwrap_or_default();
        in_mirror(operation, name)(errno)
    }
}
