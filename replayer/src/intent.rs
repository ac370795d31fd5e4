//! Records whose outcome is unknown: the owner died, or was stopped, between intent and commit.
//!
//! The intent says what may have happened, so it says what has to be read again from the primary. That is newer than
//! the record's place in the order; the mirror is level again once everything that the ring held then is applied.

use journal::record::{FLAG_REPAIR, Header, Kind, Record};

use crate::apply::{Applied, Applier};
use crate::error::ReplayError;
use crate::paths;
use crate::replay::Replayer;

/// Applies what an intent of unknown outcome stands for.
///
/// # Errors
/// As [`Applier::apply`].
pub fn apply(applier: &mut Applier, replayer: &Replayer, record: &Record<'_>) -> Result<Applied, ReplayError> {
    for again in rereads(record, || replayer.rename_happened(record)).into_iter().flatten() {
        applier.apply(&again)?;
    }
    Ok(Applied::Repair)
}

/// The records that, applied in this order, make a mirror level with whatever became of `record`.
pub fn rereads<'a>(record: &Record<'a>, renamed: impl FnOnce() -> bool) -> [Option<Record<'a>>; 3] {
    let a = record.header.a;
    match record.kind {
        // An append, whose place only its outcome tells.
        Kind::Write if a == u64::MAX => [Some(contents(record, 0, u64::MAX)), None, None],
        Kind::Write => [Some(contents(record, a, record.data.len() as u64)), None, None],
        Kind::Truncate | Kind::Allocate => [Some(contents(record, a, u64::MAX)), None, None],
        Kind::Attributes | Kind::SetXattr | Kind::RemoveXattr | Kind::Flags => {
            let again =
                if record.path1.is_empty() { contents(record, 0, u64::MAX) } else { tree(record, record.path1) };
            [Some(again), None, None]
        }
        Kind::Create
        | Kind::MakeDirectory
        | Kind::SymbolicLink
        | Kind::MakeNode
        | Kind::Unlink
        | Kind::RemoveDirectory => [Some(names_beside(record, record.path1)), None, None],
        Kind::Link => [Some(names_beside(record, record.path2)), None, None],
        Kind::Rename => [
            renamed().then_some(*record),
            Some(names_beside(record, record.path1)),
            Some(names_beside(record, record.path2)),
        ],
        Kind::Reread | Kind::Import | Kind::RereadNames | Kind::Bind => [Some(*record), None, None],
        // An unnamed file went with its process; the others change nothing.
        Kind::CreateUnnamed | Kind::NotFollowed | Kind::Sync => [None, None, None],
        kind => unreachable!("{kind:?} is listed above"),
    }
}

fn contents<'a>(record: &Record<'a>, from: u64, bytes: u64) -> Record<'a> {
    build(record, Kind::Reread, record.path1, from, bytes)
}

fn names_beside<'a>(record: &Record<'a>, path: &'a [u8]) -> Record<'a> {
    build(record, Kind::RereadNames, paths::parent(path), 0, 0)
}

fn tree<'a>(record: &Record<'a>, path: &'a [u8]) -> Record<'a> {
    build(record, Kind::Import, path, 0, 0)
}

fn build<'a>(record: &Record<'a>, kind: Kind, path1: &'a [u8], a: u64, b: u64) -> Record<'a> {
    let flags = record.header.flags | FLAG_REPAIR;
    let path1_bytes = path1.len() as u16;
    let header =
        Header { kind: kind as u8, flags, path1_bytes, path2_bytes: 0, data_bytes: 0, a, b, c: 0, ..record.header };
    Record { kind, header, path1, path2: b"", data: b"" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rename_of_unknown_outcome_compares_both_directories() {
        let header = Header { kind: Kind::Rename as u8, path1_bytes: 3, path2_bytes: 3, ..Header::default() };
        let record = Record::parse(header, b"a/xb/y").expect("well formed");
        let [first, second, third] = rereads(&record, || false);
        assert_eq!(first, None);
        assert_eq!(second.map(|record| (record.kind, record.path1)), Some((Kind::RereadNames, &b"a"[..])));
        assert_eq!(third.map(|record| (record.kind, record.path1)), Some((Kind::RereadNames, &b"b"[..])));
        assert_eq!(rereads(&record, || true)[0].map(|record| record.kind), Some(Kind::Rename));
    }

    #[test]
    fn a_write_of_unknown_outcome_reads_its_range_again() {
        let header = Header { kind: Kind::Write as u8, ino: 7, data_bytes: 5, a: 100, ..Header::default() };
        let record = Record::parse(header, b"bytes").expect("well formed");
        let again = rereads(&record, || unreachable!("no rename"))[0].expect("one record");
        assert_eq!((again.kind, again.header.ino, again.header.a, again.header.b), (Kind::Reread, 7, 100, 5));
        let header = Header { a: u64::MAX, ..header };
        let record = Record::parse(header, b"bytes").expect("well formed");
        let again = rereads(&record, || unreachable!("no rename"))[0].expect("one record");
        assert_eq!((again.header.a, again.header.b), (0, u64::MAX), "an append may be anywhere");
        for kind in Kind::ALL {
            let header = Header { kind: *kind as u8, ..header };
            rereads(&Record { kind: *kind, header, path1: b"p", path2: b"q", data: b"" }, || false);
        }
    }
}
