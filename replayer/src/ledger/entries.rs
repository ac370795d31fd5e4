//! Entries of the ledger as bytes: length, checksum, kind, fields.

use journal::record::FileId;

use super::Entry;
use crate::repair::PathRepair;

/// Appends length, checksum and body of an entry.
pub fn encode(bytes: &mut Vec<u8>, entry: &Entry) {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; 8]);
    let mut body = Body(bytes);
    match *entry {
        Entry::Bind(file, path) => body.op(1).file(file).rest(path),
        Entry::AddName(file, path) => body.op(2).file(file).rest(path),
        Entry::Remove(path) => body.op(3).rest(path),
        Entry::Rename(old, new) => body.op(4).pair(old, new),
        Entry::Exchange(a, b) => body.op(5).pair(a, b),
        Entry::Forget(file) => drop(body.op(6).file(file)),
        Entry::Gone(file) => drop(body.op(7).file(file)),
        Entry::ForgetGone => drop(body.op(21)),
        Entry::Touch(file) => drop(body.op(8).file(file)),
        Entry::TouchPath(path) => body.op(9).rest(path),
        Entry::Settled => drop(body.op(10)),
        Entry::Intent(seq, ino) => drop(body.op(11).number(seq).number(ino)),
        Entry::Absent(path) => body.op(12).rest(path),
        Entry::RepairFile(file, offset, length) => drop(body.op(13).file(file).number(offset).number(length)),
        Entry::RepairPath(path, what) => body.op(14).number(what as u64).rest(path),
        Entry::MendedFile(file) => drop(body.op(15).file(file)),
        Entry::MendedPath(path) => body.op(16).rest(path),
        Entry::Ahead(path) => body.op(18).rest(path),
        Entry::CaughtUp => drop(body.op(19)),
        Entry::AheadFile(file) => drop(body.op(20).file(file)),
        Entry::Unnamed(file, pid) => drop(body.op(17).file(file).number(u64::from(pid))),
    }
    let length = (bytes.len() - start - 8) as u32;
    let sum = checksum(&bytes[start + 8..]);
    bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
    bytes[start + 4..start + 8].copy_from_slice(&sum.to_le_bytes());
}

struct Body<'a>(&'a mut Vec<u8>);

impl Body<'_> {
    fn op(&mut self, op: u8) -> &mut Self {
        self.0.push(op);
        self
    }

    fn number(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn file(&mut self, file: FileId) -> &mut Self {
        self.0.extend_from_slice(&file.dev.to_le_bytes());
        self.number(file.ino)
    }

    fn pair(&mut self, a: &[u8], b: &[u8]) {
        self.number(a.len() as u64).0.extend_from_slice(a);
        self.rest(b);
    }

    fn rest(&mut self, path: &[u8]) {
        self.0.extend_from_slice(path);
    }
}

/// The first entry, if it is whole, and what follows it.
pub fn decode(bytes: &[u8]) -> Option<(Entry<'_>, &[u8])> {
    let length = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let sum = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?);
    let body = bytes.get(8..8usize.checked_add(length)?)?;
    if checksum(body) != sum {
        return None;
    }
    let (op, mut rest) = body.split_first()?;
    let cursor = &mut rest;
    let entry = match op {
        1 => Entry::Bind(take_file(cursor)?, rest),
        2 => Entry::AddName(take_file(cursor)?, rest),
        3 => Entry::Remove(rest),
        4 | 5 => {
            let length = take_number(cursor)?;
            let (a, b) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            if *op == 4 { Entry::Rename(a, b) } else { Entry::Exchange(a, b) }
        }
        6 => Entry::Forget(take_file(cursor)?),
        7 => Entry::Gone(take_file(cursor)?),
        8 => Entry::Touch(take_file(cursor)?),
        9 => Entry::TouchPath(rest),
        10 => Entry::Settled,
        11 => Entry::Intent(take_number(cursor)?, take_number(cursor)?),
        12 => Entry::Absent(rest),
        13 => Entry::RepairFile(take_file(cursor)?, take_number(cursor)?, take_number(cursor)?),
        14 => {
            let what =
                if take_number(cursor)? == PathRepair::Names as u64 { PathRepair::Names } else { PathRepair::Tree };
            Entry::RepairPath(rest, what)
        }
        15 => Entry::MendedFile(take_file(cursor)?),
        16 => Entry::MendedPath(rest),
        17 => Entry::Unnamed(take_file(cursor)?, take_number(cursor)? as u32),
        18 => Entry::Ahead(rest),
        19 => Entry::CaughtUp,
        21 => Entry::ForgetGone,
        20 => Entry::AheadFile(take_file(cursor)?),
        _ => return None,
    };
    Some((entry, &bytes[8 + length..]))
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    take(bytes).map(u64::from_le_bytes)
}

fn take_file(bytes: &mut &[u8]) -> Option<FileId> {
    Some(FileId { dev: u32::from_le_bytes(take(bytes)?), ino: take_number(bytes)? })
}

/// FNV-1a: entries are short, and only a torn end has to be noticed.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}
