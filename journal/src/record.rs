//! Records: one change each, as they lie in the ring.
//!
//! A record is a [`Header`] of one cell and a payload: first path, second path, data, one after the other. Records
//! are state, not procedure (absolute offsets, resulting attributes, names with the inode they are expected to
//! name), so that applying one twice changes nothing. Paths are relative to the primary, in the spelling without
//! `.`, `..` or symbolic links that held when the record was claimed; names are bytes.

use crate::claims::{CELL_BYTES, RECORD_CELLS_MAX};

/// Most payload bytes of a record.
pub const PAYLOAD_BYTES_MAX: usize = (RECORD_CELLS_MAX as usize - 1) * CELL_BYTES;

/// Most data bytes that a shim puts into one record; longer writes become several.
pub const DATA_BYTES_MAX: usize = 128 * 1024;

/// Identity of a file while anybody holds it: device and inode number.
///
/// The kernel reuses inode numbers; the order of the ring tells one user of a number from the next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Default)]
pub struct FileId {
    /// `st_dev`, as the kernel packs it into 32 bits.
    pub dev: u32,
    /// `st_ino`.
    pub ino: u64,
}

impl FileId {
    /// No file.
    pub const NONE: Self = Self { dev: 0, ino: 0 };

    /// From the fields of stat(2). The kernel's device numbers have 32 significant bits (12 major, 20 minor).
    pub const fn new(dev: u64, ino: u64) -> Self {
        Self { dev: ((dev >> 32) as u32).rotate_left(8) ^ dev as u32, ino }
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)*) => {
        /// What a record says. The meaning of `a`, `b`, `c` and the payload is that of each kind; `P1` and `P2` are
        /// the paths, `file` the identity in the header.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        #[non_exhaustive]
        pub enum Kind { $($(#[$doc])* $name = $value,)* }

        impl Kind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The kind with this number.
            pub const fn from_u8(value: u8) -> Option<Self> {
                match value { $($value => Some(Self::$name),)* _ => None }
            }
        }
    };
}

kinds! {
    /// Data of `file`: at offset `a`, the data bytes. In the intent of an append, whose place only the outcome tells, `a`
    /// is `u64::MAX`.
    Write = 1,
    /// Size of `file` becomes `a`.
    Truncate = 2,
    /// fallocate(2) on `file`: offset `a`, length `b`, mode `c`; the data is the size afterwards, u64 LE.
    Allocate = 3,
    /// Regular file P1 was made: mode `a`, owner `b` (see [`pack_owner`]). `file` is none; the [`Kind::Bind`] that follows
    /// tells it. What lies between the two with the same inode number is about an earlier file, which was closed
    /// while this one was being made.
    Create = 4,
    /// `file` was found under the name P1, or has just been made there, and may be changed through a descriptor.
    Bind = 5,
    /// Directory P1 was made: mode `a`, owner `b`.
    MakeDirectory = 6,
    /// Symbolic link P1 with target P2 was made: owner `b`.
    SymbolicLink = 7,
    /// P1 was made by mknod(2), mkfifo(3) or bind(2): mode with type `a`, owner `b`, device number `c`.
    MakeNode = 8,
    /// P2 became another name of `file`. P1 is the name it was linked from, empty if it had none (O_TMPFILE).
    Link = 9,
    /// P1 became P2, renameat2(2) flags `a`. `file` is what P1 named; `b` its mode. With RENAME_EXCHANGE, `c` is the
    /// inode number that P2 named. There is no record where both named one file, because rename(2) then does nothing.
    Rename = 10,
    /// Name P1 of `file` was removed.
    Unlink = 11,
    /// Directory P1 was removed.
    RemoveDirectory = 12,
    /// Attributes of `file`, or of P1 itself (never followed) when given: `a` mode, `b` owner, `c` a mask of `ATTRIBUTE_…`; data is
    /// atime and mtime, each i64 seconds and u32 nanoseconds LE (24 bytes), when the mask has one of them.
    Attributes = 13,
    /// Extended attribute P2 of `file`, or of P1 when given, became the data.
    SetXattr = 14,
    /// Extended attribute P2 of `file`, or of P1 when given, was removed.
    RemoveXattr = 15,
    /// Inode flags of `file`, or of P1 when given, became `a` (FS_IOC_SETFLAGS).
    Flags = 16,
    /// Bytes `a` to `a + b` of `file` changed in a way that carries no data here; they are re-read from the primary.
    /// `b` of u64::MAX means to the end, size included; 0 that only its times may have changed.
    Reread = 17,
    /// `file` came in from outside as P1, or left P1 for there, with everything below it: what was at P1 is no more, and
    /// what is there now is re-read from the primary. `file` is none where it isn't known.
    Import = 18,
    /// An unnamed file was made (O_TMPFILE) as `file`, somewhere in directory P1: mode `a`, owner `b`.
    CreateUnnamed = 19,
    /// Program P1 can't be followed, for reason `a` (see `processes.rs`), in process `b`.
    NotFollowed = 20,
    /// fsync(2) or a sibling returned for `file`; inode 0 for sync(2) and syncfs(2).
    Sync = 21,
    /// Names in directory P1 may have changed in a way that carries no data here; it is compared with the primary.
    RereadNames = 22,
}

/// [`Kind::Attributes`]: the mode is meant.
pub const ATTRIBUTE_MODE: u64 = 1;
/// [`Kind::Attributes`]: the owner is meant.
pub const ATTRIBUTE_OWNER: u64 = 2;
/// [`Kind::Attributes`]: the access time is meant.
pub const ATTRIBUTE_ATIME: u64 = 4;
/// [`Kind::Attributes`]: the modification time is meant.
pub const ATTRIBUTE_MTIME: u64 = 8;

/// [`Header::flags`]: the record stands for a re-read that is a repair (it counts in `repairs`).
pub const FLAG_REPAIR: u8 = 1;
/// [`Header::flags`]: `file` may lie outside the primary; unknown to the replayer, it is ignored.
pub const FLAG_MAYBE_OUTSIDE: u8 = 2;
/// [`Header::flags`], of [`Kind::Write`]: data beyond the end that the file has at this place in the order is not the
/// file's (it lay in the last page of a mapping).
pub const FLAG_WITHIN: u8 = 4;

/// Owner and group in one word.
pub const fn pack_owner(uid: u32, gid: u32) -> u64 {
    ((uid as u64) << 32) | gid as u64
}

/// The user and group of [`pack_owner`].
pub const fn unpack_owner(owner: u64) -> (u32, u32) {
    ((owner >> 32) as u32, owner as u32)
}

/// The first cell of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C, align(64))]
pub struct Header {
    /// [`Kind`], checked by [`Record::parse`].
    pub kind: u8,
    /// `FLAG_…`.
    pub flags: u8,
    /// Bytes of the first path.
    pub path1_bytes: u16,
    /// Bytes of the second path.
    pub path2_bytes: u16,
    /// Keeps the offsets.
    pub reserved: u16,
    /// Given by the sequencer; 0 before.
    pub seq: u64,
    /// Inode number of [`Header::file`].
    pub ino: u64,
    /// Device of [`Header::file`].
    pub dev: u32,
    /// Bytes of data after the paths.
    pub data_bytes: u32,
    /// By kind.
    pub a: u64,
    /// By kind.
    pub b: u64,
    /// By kind.
    pub c: u64,
    /// Process number of who did it, in the upper half; seconds of CLOCK_REALTIME when it was sequenced, in the lower.
    pub pid_and_time: u64,
}

const _: () = assert!(size_of::<Header>() == CELL_BYTES);

impl Header {
    /// The file that is meant.
    pub const fn file(&self) -> FileId {
        FileId { dev: self.dev, ino: self.ino }
    }

    /// Bytes of the payload.
    pub const fn payload_bytes(&self) -> usize {
        self.path1_bytes as usize + self.path2_bytes as usize + self.data_bytes as usize
    }
}

/// Cells that a record with this payload takes.
pub const fn cells_for(payload_bytes: usize) -> u64 {
    1 + payload_bytes.div_ceil(CELL_BYTES) as u64
}

/// Why bytes are not a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Malformed {
    /// The kind is none of [`Kind`].
    Kind(u8),
    /// The lengths don't fit into the cells.
    Length,
    /// A path is absolute, empty where it must not be, or holds an empty, `.` or `..` component or a zero byte.
    Path,
    /// The data has another length than the kind demands.
    Data,
}

/// A record that has been checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// What it says.
    pub kind: Kind,
    /// Its first cell.
    pub header: Header,
    /// First path; empty means the primary itself, or none (by kind).
    pub path1: &'a [u8],
    /// Second path, link target or attribute name.
    pub path2: &'a [u8],
    /// Data.
    pub data: &'a [u8],
}

impl<'a> Record<'a> {
    /// Checks what a producer has written. Whoever can map the ring can write anything there, so nothing is believed:
    /// not the kind, not a length, not a path.
    ///
    /// # Errors
    /// [`Malformed`] says what is wrong; such a record must not be applied.
    pub fn parse(header: Header, payload: &'a [u8]) -> Result<Self, Malformed> {
        let kind = Kind::from_u8(header.kind).ok_or(Malformed::Kind(header.kind))?;
        let used = payload.get(..header.payload_bytes()).ok_or(Malformed::Length)?;
        let (path1, rest) = used.split_at(header.path1_bytes as usize);
        let (path2, data) = rest.split_at(header.path2_bytes as usize);
        // A program that can't be followed lies anywhere; its path is only ever shown.
        if kind != Kind::NotFollowed && !is_relative(path1) {
            return Err(Malformed::Path);
        }
        let named = !path1.is_empty();
        let ok = match kind {
            Kind::Create | Kind::Bind | Kind::MakeDirectory | Kind::MakeNode | Kind::Unlink | Kind::RemoveDirectory => {
                named
            }
            Kind::Link => is_relative(path2) && !path2.is_empty(),
            Kind::Rename => named && is_relative(path2) && !path2.is_empty(),
            Kind::SymbolicLink => named && !path2.is_empty() && !path2.contains(&0),
            Kind::SetXattr | Kind::RemoveXattr => !path2.is_empty() && !path2.contains(&0),
            _ => true,
        };
        if !ok {
            return Err(Malformed::Path);
        }
        let data_ok = match kind {
            Kind::Allocate => data.len() == 8,
            Kind::Attributes if header.c & (ATTRIBUTE_ATIME | ATTRIBUTE_MTIME) != 0 => data.len() == 24,
            _ => true,
        };
        if !data_ok {
            return Err(Malformed::Data);
        }
        Ok(Self { kind, header, path1, path2, data })
    }

    /// The file that is meant.
    pub const fn file(&self) -> FileId {
        self.header.file()
    }

    /// Process number of who did it.
    pub const fn pid(&self) -> u32 {
        (self.header.pid_and_time >> 32) as u32
    }

    /// Access and modification time of [`Kind::Attributes`], as (seconds, nanoseconds).
    pub fn times(&self) -> Option<[(i64, u32); 2]> {
        let word = |at: usize| {
            Some((
                i64::from_le_bytes(self.data.get(at..at + 8)?.try_into().ok()?),
                u32::from_le_bytes(self.data.get(at + 8..at + 12)?.try_into().ok()?),
            ))
        };
        Some([word(0)?, word(12)?])
    }
}

/// True for a path below the primary in the one spelling that records use; the empty path is the primary itself.
pub fn is_relative(path: &[u8]) -> bool {
    path.is_empty()
        || path
            .split(|byte| *byte == b'/')
            .all(|name| !name.is_empty() && name != b"." && name != b".." && name.len() <= 255 && !name.contains(&0))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn header(kind: Kind, path1: usize, path2: usize, data: usize) -> Header {
        Header {
            kind: kind as u8,
            path1_bytes: path1 as u16,
            path2_bytes: path2 as u16,
            data_bytes: data as u32,
            ..Header::default()
        }
    }

    #[test]
    fn every_kind_has_its_number() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_u8(*kind as u8), Some(*kind));
        }
        assert_eq!(Kind::from_u8(0), None);
        assert_eq!(Kind::from_u8(Kind::ALL.len() as u8 + 1), None);
    }

    #[test]
    fn a_record_is_split_into_its_parts() {
        let record = Record::parse(header(Kind::Rename, 3, 1, 0), b"a/bc-rest").expect("well formed");
        assert_eq!((record.path1, record.path2, record.data), (&b"a/b"[..], &b"c"[..], &b""[..]));
    }

    #[test]
    fn lengths_beyond_the_payload_are_refused() {
        assert_eq!(Record::parse(header(Kind::Write, 0, 0, 10), b"short"), Err(Malformed::Length));
        assert_eq!(
            Record::parse(header(Kind::Write, 0xffff, 0xffff, u32::MAX as usize), b"short"),
            Err(Malformed::Length)
        );
    }

    #[test]
    fn paths_that_could_leave_the_mirror_are_refused() {
        for path in [&b"/etc"[..], b"..", b"a/../b", b"a//b", b"./a", b"a/", b"a\0b"] {
            let refused = Record::parse(header(Kind::Unlink, path.len(), 0, 0), path);
            assert_eq!(refused, Err(Malformed::Path), "{}", path.escape_ascii());
        }
        assert_eq!(Record::parse(header(Kind::Unlink, 0, 0, 0), b""), Err(Malformed::Path));
        assert_eq!(Record::parse(header(Kind::Rename, 1, 2, 0), b"a.."), Err(Malformed::Path));
        assert!(Record::parse(header(Kind::SymbolicLink, 1, 9, 0), b"a/etc/../x").is_ok(), "a target is only text");
        assert!(Record::parse(header(Kind::NotFollowed, 8, 0, 0), b"/bin/apt").is_ok(), "a program lies anywhere");
    }

    #[test]
    fn times_come_back_as_they_went_in() {
        let mut data = [0; 24];
        data[..8].copy_from_slice(&(-5i64).to_le_bytes());
        data[8..12].copy_from_slice(&7u32.to_le_bytes());
        data[12..20].copy_from_slice(&9i64.to_le_bytes());
        data[20..].copy_from_slice(&999_999_999u32.to_le_bytes());
        let header = Header { c: ATTRIBUTE_MTIME, ..header(Kind::Attributes, 0, 0, 24) };
        let record = Record::parse(header, &data).expect("well formed");
        assert_eq!(record.times(), Some([(-5, 7), (9, 999_999_999)]));
        assert_eq!(Record::parse(Header { data_bytes: 23, ..header }, &data[..23]), Err(Malformed::Data));
    }

    #[test]
    fn device_numbers_of_stat_keep_their_significant_bits() {
        // makedev(259, 5) and makedev(0, 0x12345): glibc's 64-bit form of the kernel's 32-bit numbers.
        assert_ne!(FileId::new(0x10305, 1), FileId::new(0x305, 1));
        assert_eq!(FileId::new(0xfd00, 1).dev, 0xfd00);
    }
}
