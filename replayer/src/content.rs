//! Makes the content of one file equal to that of another, writing only what differs and leaving holes holes.

use std::ops::Range;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::{Errno, Result};

use crate::error::{ReplayError, in_mirror, in_primary};

const BLOCK_BYTES: usize = 128 * 1024;
const PAGE_BYTES: usize = 4096;

/// Two blocks, kept so that they are not allocated for every file.
#[derive(Debug)]
pub struct Buffers {
    ours: Vec<u8>,
    theirs: Vec<u8>,
}

impl Default for Buffers {
    fn default() -> Self {
        Self { ours: vec![0; BLOCK_BYTES], theirs: vec![0; BLOCK_BYTES] }
    }
}

/// Whether the size belongs to what is made equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Only bytes; the mirror's file may grow to hold them.
    Keep,
    /// The file ends where the primary's ends.
    Same,
}

impl Buffers {
    /// Makes the bytes `range` of `mirror` equal to those of `primary`, as far as the primary's file reaches.
    /// Returns how many bytes were written.
    ///
    /// # Errors
    /// Those of reading and writing, with `path`.
    pub fn equalize(
        &mut self,
        primary: &OwnedFd,
        mirror: &OwnedFd,
        range: Range<u64>,
        size: Size,
        path: &[u8],
    ) -> core::result::Result<u64, ReplayError> {
        let end = rustix::fs::fstat(primary).map_err(in_primary("stat", path))?;
        let is_sparse = (end.st_blocks as u64) * 512 < end.st_size as u64;
        let primary_size = end.st_size as u64;
        let end = range.end.min(primary_size);
        let mut at = range.start;
        let mut written = 0;
        while at < end {
            let data = if is_sparse { next_data(primary, at, end).map_err(in_primary("read", path))? } else { at..end };
            written += self.clear(mirror, at..data.start).map_err(in_mirror("write", path))?;
            let copied = self.copy(primary, mirror, data.clone(), path)?;
            written += copied.written;
            if copied.end < data.end {
                // The file became shorter meanwhile, which is a change of its own that follows.
                break;
            }
            at = data.end;
        }
        let now = rustix::fs::fstat(mirror).map_err(in_mirror("stat", path))?.st_size as u64;
        let wanted = match size {
            Size::Same => primary_size,
            // A range that ends in a hole still reaches as far.
            Size::Keep if range.start < end => now.max(end),
            Size::Keep => now,
        };
        if now != wanted {
            rustix::fs::ftruncate(mirror, wanted).map_err(in_mirror("truncate", path))?;
        }
        Ok(written)
    }

    fn copy(
        &mut self,
        primary: &OwnedFd,
        mirror: &OwnedFd,
        data: Range<u64>,
        path: &[u8],
    ) -> core::result::Result<Copied, ReplayError> {
        let mut copied = Copied { end: data.start, written: 0 };
        while copied.end < data.end {
            let want = BLOCK_BYTES.min((data.end - copied.end) as usize);
            let ours = read_at(primary, &mut self.ours[..want], copied.end).map_err(in_primary("read", path))?;
            let theirs = read_at(mirror, &mut self.theirs[..ours], copied.end).map_err(in_mirror("read", path))?;
            let (ours, theirs) = (&self.ours[..ours], &self.theirs[..theirs]);
            if ours != theirs {
                for run in differing(ours, theirs) {
                    let at = copied.end + run.start as u64;
                    write_at(mirror, &ours[run.clone()], at).map_err(in_mirror("write", path))?;
                    copied.written += run.len() as u64;
                }
            }
            copied.end += ours.len() as u64;
            if ours.len() < want {
                break;
            }
        }
        Ok(copied)
    }

    /// Makes `range` read as zeros as far as the file reaches, as a hole where the file system has them.
    ///
    /// # Errors
    /// Those of reading and writing.
    pub fn clear(&mut self, file: &OwnedFd, range: Range<u64>) -> Result<u64> {
        let size = rustix::fs::fstat(file)?.st_size as u64;
        let end = range.end.min(size);
        let mut at = range.start;
        let mut written = 0;
        while at < end {
            let data = next_data(file, at, end)?;
            if data.is_empty() {
                break;
            }
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match rustix::fs::fallocate(file, punch, data.start, data.end - data.start) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::PERM) => {
                    written += self.write_zeros(file, data.clone())?;
                }
                Err(errno) => return Err(errno),
            }
            at = data.end;
        }
        Ok(written)
    }

    /// Writes zeros over what is not zero in `range`, and beyond the end of the file.
    ///
    /// # Errors
    /// Those of reading and writing.
    pub fn write_zeros(&mut self, file: &OwnedFd, range: Range<u64>) -> Result<u64> {
        self.ours.fill(0);
        let mut at = range.start;
        let mut written = 0;
        while at < range.end {
            let want = BLOCK_BYTES.min((range.end - at) as usize);
            let there = read_at(file, &mut self.theirs[..want], at)?;
            for run in differing(&self.ours[..want], &self.theirs[..there]) {
                write_at(file, &self.ours[run.clone()], at + run.start as u64)?;
                written += run.len() as u64;
            }
            at += want as u64;
        }
        Ok(written)
    }

    /// The first byte from which two files differ, if they do, within `size` bytes.
    ///
    /// # Errors
    /// Those of reading, with `path`.
    pub fn first_difference(
        &mut self,
        primary: &OwnedFd,
        mirror: &OwnedFd,
        size: u64,
        path: &[u8],
    ) -> core::result::Result<Option<u64>, ReplayError> {
        let mut at = 0;
        while at < size {
            // Where both have a hole there is nothing to compare.
            let ours = next_data(primary, at, size).map_err(in_primary("read", path))?;
            if ours.start > at {
                let theirs = next_data(mirror, at, size).map_err(in_mirror("read", path))?;
                at = ours.start.min(theirs.start);
                if at >= size {
                    break;
                }
            }
            let want = BLOCK_BYTES.min((size - at) as usize);
            let ours = read_at(primary, &mut self.ours[..want], at).map_err(in_primary("read", path))?;
            let theirs = read_at(mirror, &mut self.theirs[..want], at).map_err(in_mirror("read", path))?;
            let (ours, theirs) = (&self.ours[..ours], &self.theirs[..theirs]);
            if ours != theirs {
                let same = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
                return Ok(Some(at + same as u64));
            }
            if ours.len() < want {
                break;
            }
            at += want as u64;
        }
        Ok(None)
    }
}

struct Copied {
    end: u64,
    written: u64,
}

/// Reads until `buffer` is full or the file ends.
///
/// # Errors
/// Those of pread(2).
pub fn read_at(file: impl AsFd, buffer: &mut [u8], offset: u64) -> Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match rustix::io::pread(&file, &mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(bytes) => done += bytes,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

/// Writes all of `data` at `offset`.
///
/// # Errors
/// Those of pwrite(2).
pub fn write_at(file: impl AsFd, mut data: &[u8], mut offset: u64) -> Result<()> {
    while !data.is_empty() {
        match rustix::io::pwrite(&file, data, offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(bytes) => {
                data = &data[bytes..];
                offset += bytes as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The next stretch of data at or after `at`; empty and at `end` when there is none.
fn next_data(file: &OwnedFd, at: u64, end: u64) -> Result<Range<u64>> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start.min(end),
        Err(Errno::NXIO) => return Ok(end..end),
        // The file system does not tell.
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(at..end),
        Err(errno) => return Err(errno),
    };
    if start == end {
        return Ok(end..end);
    }
    match rustix::fs::seek(file, SeekFrom::Hole(start)) {
        Ok(hole) if hole > start => Ok(start..hole.min(end)),
        Ok(_) | Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(start..end),
        Err(errno) => Err(errno),
    }
}

/// The stretches of `ours` in which whole pages differ from `theirs`, which may be shorter.
fn differing<'a>(ours: &'a [u8], theirs: &'a [u8]) -> impl Iterator<Item = Range<usize>> + 'a {
    let mut at = 0;
    let page = move |from: usize| from..(from + PAGE_BYTES).min(ours.len());
    let differs = move |from: usize| {
        let page = page(from);
        theirs.get(page.clone()) != Some(&ours[page])
    };
    std::iter::from_fn(move || {
        while at < ours.len() && !differs(at) {
            at += PAGE_BYTES;
        }
        if at >= ours.len() {
            return None;
        }
        let start = at;
        while at < ours.len() && differs(at) {
            at += PAGE_BYTES;
        }
        Some(start..at.min(ours.len()))
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom as From, Write};
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn file(parts: &[(u64, &[u8])], size: u64) -> OwnedFd {
        let mut file = tempfile::tempfile().expect("a temporary file");
        for (at, bytes) in parts {
            file.seek(From::Start(*at)).expect("sought");
            file.write_all(bytes).expect("written");
        }
        file.set_len(size).expect("sized");
        file.into()
    }

    fn content(fd: &OwnedFd) -> Vec<u8> {
        let size = rustix::fs::fstat(fd).expect("open").st_size as usize;
        let mut bytes = vec![0; size];
        assert_eq!(read_at(fd, &mut bytes, 0), Ok(size));
        bytes
    }

    #[test]
    fn only_what_differs_is_written() {
        let mut ours = vec![7u8; 1 << 20];
        let theirs = file(&[(0, &ours)], 1 << 20);
        ours[500_000] = 8;
        let primary = file(&[(0, &ours)], 1 << 20);
        let mut buffers = Buffers::default();
        assert_eq!(buffers.first_difference(&primary, &theirs, 1 << 20, b"x").expect("read"), Some(500_000));
        let written = buffers.equalize(&primary, &theirs, 0..u64::MAX, Size::Same, b"x").expect("done");
        assert_eq!(written, 4096);
        assert_eq!(content(&theirs), ours);
        assert_eq!(buffers.first_difference(&primary, &theirs, 1 << 20, b"x").expect("read"), None);
    }

    #[test]
    fn holes_stay_holes_and_old_data_in_them_goes() {
        let primary = file(&[(8 << 20, b"end")], 16 << 20);
        let mirror = file(&[(0, &[9; 100_000]), (17 << 20, b"beyond")], 18 << 20);
        Buffers::default().equalize(&primary, &mirror, 0..u64::MAX, Size::Same, b"x").expect("done");
        assert_eq!(content(&mirror), content(&primary));
        let copy = std::fs::File::from(mirror);
        assert!(copy.metadata().expect("open").blocks() < 64, "stays sparse");
    }

    #[test]
    fn a_range_leaves_the_rest_alone() {
        let primary = file(&[(0, &[1; 10_000])], 10_000);
        let mirror = file(&[(0, &[2; 20_000])], 20_000);
        Buffers::default().equalize(&primary, &mirror, 4096..8192, Size::Keep, b"x").expect("done");
        let got = content(&mirror);
        assert_eq!(got.len(), 20_000);
        assert!(got[..4096].iter().all(|b| *b == 2) && got[4096..8192].iter().all(|b| *b == 1));
        assert!(got[8192..].iter().all(|b| *b == 2));
    }
}
