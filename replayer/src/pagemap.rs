//! What /proc tells of another process's mappings: which there are, and which of their pages were stored to.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A file mapping that is shared, or the ring of an asynchronous I/O context.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Area {
    /// First address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
    /// The file's name, as the kernel spells it.
    pub path: PathBuf,
}

impl Area {
    /// True for the memory through which asynchronous writes tell that they have ended.
    pub fn is_aio(&self) -> bool {
        self.path.as_os_str().as_encoded_bytes().starts_with(b"/[aio]")
    }
}

/// The shared mappings of a process; none when it is about to end.
///
/// # Errors
/// Those of reading /proc/PID/maps: there is no such process, or it is hidden.
pub fn shared_areas(pid: u32) -> io::Result<Vec<Area>> {
    let text = std::fs::read(format!("/proc/{pid}/maps"))?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(area).collect())
}

/// A line of /proc/PID/maps: `start-end rwxs offset device inode  path`.
fn area(line: &[u8]) -> Option<Area> {
    let mut fields = line.splitn(6, |byte| *byte == b' ');
    let (range, protection) = (fields.next()?, fields.next()?);
    if protection.get(3) != Some(&b's') {
        return None;
    }
    let range = std::str::from_utf8(range).ok()?;
    let (start, end) = range.split_once('-')?;
    let path = fields.nth(3)?;
    let begin = path.iter().position(|byte| *byte == b'/')?;
    Some(Area {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        path: PathBuf::from(std::ffi::OsString::from_vec(unescaped(&path[begin..]))),
    })
}

/// A name without the one escape that the kernel uses, for the end of a line.
fn unescaped(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((byte, after)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(b"\\012") {
            plain.push(b'\n');
            rest = after;
        } else {
            plain.push(*byte);
            rest = after;
        }
    }
    plain
}

/// `struct pm_scan_arg`.
#[repr(C)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_max: u64,
    pages_max: u64,
    inverted: u64,
    all_of: u64,
    any_of: u64,
    told: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
const WP_MATCHING: u64 = 1;
const CHECK_WPASYNC: u64 = 2;
const PAGE_IS_WRITTEN: u64 = 2;
const REGIONS: usize = 256;

/// Pages that were stored to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Written {
    /// Addresses, from and up to.
    pub runs: Vec<(u64, u64)>,
    /// Where to go on.
    pub end: u64,
}

/// Tells pages from `start` to `end` that were stored to since they were told last, by whomever; about `pages_max` at
/// most. They count as not stored to from now on.
///
/// # Errors
/// `PermissionDenied` when the kernel doesn't track these pages.
pub fn written(pagemap: &File, start: u64, end: u64, pages_max: u64) -> io::Result<Written> {
    let mut regions = [Region::default(); REGIONS];
    let mut scan = Scan {
        size: size_of::<Scan>() as u64,
        flags: WP_MATCHING | CHECK_WPASYNC,
        start,
        end,
        walk_end: start,
        regions: regions.as_mut_ptr() as u64,
        regions_max: REGIONS as u64,
        pages_max,
        inverted: 0,
        all_of: PAGE_IS_WRITTEN,
        any_of: 0,
        told: PAGE_IS_WRITTEN,
    };
    // SAFETY: the structure and the array that it points to live in this frame.
    let told = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut scan) };
    let Ok(told) = usize::try_from(told) else { return Err(io::Error::last_os_error()) };
    let runs = regions.iter().take(told).map(|region| (region.start, region.end)).collect();
    Ok(Written { runs, end: scan.walk_end })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_maps_are_read() {
        let line = b"7f0a1000-7f0a3000 rw-s 00002000 fe:00 1234                       /srv/a b\\012c (deleted)";
        let wanted = Area { start: 0x7f0a_1000, end: 0x7f0a_3000, path: "/srv/a b\nc (deleted)".into() };
        assert_eq!(area(line), Some(wanted));
        assert_eq!(area(b"7f0a1000-7f0a3000 rw-p 00002000 fe:00 1234                       /srv/a"), None);
        assert_eq!(area(b"7f0a1000-7f0a3000 rw-s 00000000 00:01 7 "), None);
        let aio = area(b"7ffff7ff0000-7ffff7ff1000 rw-s 00000000 00:0e 99          /[aio] (deleted)");
        assert!(aio.is_some_and(|area| area.is_aio()));
        assert_eq!(area(b""), None);
    }

    #[test]
    fn a_process_that_is_not_there_has_no_maps() {
        let error = shared_areas(u32::MAX).expect_err("no such process");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(shared_areas(std::process::id()).is_ok());
    }
}
