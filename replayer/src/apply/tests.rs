//! What the applier, the ledger, settling, resync and verify do together, on real directories.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Duration;

use journal::record::{FileId, Header, Kind};
use proptest::prelude::*;
use rustix::fs::{FallocateFlags, FileType, IFlags, RenameFlags};

use super::Applied;
use super::model::{Mirror, On, Owned, Primary};
use crate::resync::{Progress, Resync};
use crate::settle::Rest;
use crate::verify::{DifferenceKind, recheck};

const PLAIN: RenameFlags = RenameFlags::empty();

/// Does something to a primary and checks three mirrors: one that applies each record, one that applies each twice with
/// a crash between, and one that applies them all at the end, when the primary is ahead.
fn check(steps: impl FnOnce(&mut Primary)) {
    let mut primary = Primary::new();
    steps(&mut primary);
    let records = std::mem::take(&mut primary.records);
    let mut once = Mirror::new(&primary, "once");
    once.apply_all(&records);
    once.assert_equal();
    let mut twice = Mirror::new(&primary, "twice");
    for record in &records {
        twice.apply(record);
        twice.crash();
        twice.apply(record);
    }
    twice.assert_equal();
    let mut torn = Mirror::new(&primary, "torn");
    for record in &records {
        torn.apply_torn(record);
    }
    torn.assert_equal();
}

fn done(outcome: std::io::Result<()>) {
    outcome.expect("the primary takes it");
}

#[test]
fn ordinary_changes_arrive() {
    check(|p| {
        done(p.make_directory(b"d", 0o750));
        done(p.create(1, b"d/f", 0o640));
        done(p.write(1, 0, b"hello"));
        done(p.write(1, 1 << 20, b"far"));
        done(p.truncate(1, 1 << 19));
        done(p.symbolic_link(b"d/l", b"/etc/../nowhere"));
        done(p.make_node(b"d/p", FileType::Fifo, 0o600, 0));
        done(p.make_node(b"d/s", FileType::Socket, 0o755, 0));
        done(p.link(b"d/f", b"g"));
        done(p.write(1, 3, b"both"));
        done(p.chmod(On::Open(1), 0o4755));
        done(p.set_times(On::Path(b"d/l"), (1, 2), (3, 4)));
        done(p.set_xattr(On::Path(b"d"), b"user.a", b"\0\xff"));
        done(p.set_xattr(On::Open(1), b"user.b", b"x"));
        done(p.remove_xattr(On::Open(1), b"user.b"));
        done(p.chmod(On::Path(b""), 0o711));
        done(p.unlink(b"d/f"));
        done(p.write(1, 0, b"HELLO"));
    });
}

#[test]
fn a_reused_inode_number_does_not_write_into_the_old_name() {
    let mut primary = Primary::new();
    done(primary.create(1, b"old", 0o600));
    done(primary.link(b"old", b"kept"));
    let mut mirror = Mirror::new(&primary, "m");
    mirror.apply_all(&primary.records);
    // The same identity, as a new file elsewhere.
    let file = primary.open[&1].1;
    let header = Header { a: 0o100600, b: owner(), ..Header::default() };
    primary.forget_records();
    primary.push(Kind::Create, header, b"new", b"", b"");
    primary.push(Kind::Bind, header_at(file, 0), b"new", b"", b"");
    primary.push(Kind::Write, header_at(file, 0), b"", b"", b"data");
    mirror.apply_all(&primary.records);
    assert_eq!(std::fs::read(mirror.path(b"kept")).expect("there"), b"");
    assert_eq!(std::fs::read(mirror.path(b"new")).expect("there"), b"data");
}

#[test]
fn rename_over_an_open_file_keeps_both_inodes() {
    check(|p| {
        done(p.create(1, b"a", 0o600));
        done(p.create(2, b"b", 0o600));
        done(p.link(b"b", b"c"));
        done(p.rename(b"a", b"b", PLAIN));
        done(p.write(1, 0, b"first"));
        done(p.write(2, 0, b"second"));
        done(p.create(3, b"a", 0o600));
        done(p.rename(b"a", b"c", PLAIN));
        done(p.write(2, 0, b"nowhere"));
    });
}

#[test]
fn open_files_follow_a_renamed_directory() {
    check(|p| {
        done(p.make_directory(b"d", 0o755));
        done(p.make_directory(b"d/e", 0o755));
        done(p.create(1, b"d/e/f", 0o600));
        done(p.make_directory(b"x", 0o755));
        done(p.rename(b"d", b"x/y", PLAIN));
        done(p.write(1, 0, b"moved"));
        done(p.create(2, b"x/y/e/g", 0o600));
        done(p.make_directory(b"d", 0o755));
        done(p.create(3, b"d/f", 0o600));
        done(p.write(3, 0, b"another"));
        done(p.rename(b"x/y", b"d2", PLAIN));
        done(p.write(1, 5, b" again"));
    });
}

#[test]
fn exchanged_objects_change_places_once() {
    check(|p| {
        done(p.create(1, b"a", 0o600));
        done(p.make_directory(b"d", 0o755));
        done(p.create(2, b"d/b", 0o600));
        done(p.rename(b"a", b"d", RenameFlags::EXCHANGE));
        done(p.write(1, 0, b"one"));
        done(p.write(2, 0, b"two"));
        done(p.rename(b"a/b", b"d", RenameFlags::EXCHANGE));
        done(p.write(1, 3, b"more"));
    });
}

#[test]
fn hard_links_stay_one_file() {
    check(|p| {
        done(p.create(1, b"a", 0o600));
        done(p.link(b"a", b"b"));
        done(p.link(b"b", b"c"));
        done(p.rename(b"a", b"b", PLAIN));
        done(p.unlink(b"c"));
        done(p.write(1, 0, b"x"));
        done(p.symbolic_link(b"l", b"t"));
        done(p.link(b"l", b"l2"));
    });
}

#[test]
fn unnamed_files_get_their_name_with_their_content() {
    check(|p| {
        done(p.create_unnamed(1, b"", 0o644));
        done(p.write(1, 0, b"before"));
        done(p.link_open(1, b"named"));
        done(p.write(1, 6, b" and after"));
        done(p.create_unnamed(2, b"", 0o600));
        done(p.write(2, 0, b"never named"));
    });
}

#[test]
fn ranges_collapse_and_are_inserted_once() {
    check(|p| {
        done(p.create(1, b"a", 0o600));
        for block in 0..8u8 {
            done(p.write(1, u64::from(block) * 4096, &[block + 1; 4096]));
        }
        for (mode, offset, length) in [
            (FallocateFlags::COLLAPSE_RANGE, 4096, 8192),
            (FallocateFlags::INSERT_RANGE, 8192, 4096),
            (FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 100, 5000),
            (FallocateFlags::ZERO_RANGE, 20_000, 20_000),
            (FallocateFlags::KEEP_SIZE, 0, 1 << 20),
            (FallocateFlags::empty(), 0, 1 << 17),
        ] {
            // Not every file system has every mode.
            let _ = p.allocate(1, mode, offset, length);
        }
    });
}

#[test]
fn names_are_bytes_and_paths_may_be_longer_than_the_kernel_takes() {
    let mut primary = Primary::new();
    let mut mirror = Mirror::new(&primary, "m");
    done(primary.make_directory(b"\xff\n \\", 0o755));
    done(primary.create(1, b"\xff\n \\/\x01", 0o600));
    // The primary's own calls go one directory at a time.
    let mut directory =
        rustix::fs::open(primary.path(), rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).expect("opened");
    let mut path = Vec::new();
    for _ in 0..40 {
        let name = [b'd'; 250];
        rustix::fs::mkdirat(&directory, &name[..], rustix::fs::Mode::RWXU).expect("made");
        directory = rustix::fs::openat(&directory, &name[..], rustix::fs::OFlags::PATH, rustix::fs::Mode::empty())
            .expect("opened");
        path = crate::paths::join(&path, &name);
        primary.push(Kind::MakeDirectory, Header { a: 0o40700, b: owner(), ..Header::default() }, &path, b"", b"");
    }
    let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::RDWR;
    let file = rustix::fs::openat(&directory, "f", flags, rustix::fs::Mode::RUSR).expect("made");
    rustix::io::write(&file, b"deep").expect("written");
    let file_id = crate::tree::id_of(&rustix::fs::fstat(&file).expect("open"));
    path.extend_from_slice(b"/f");
    assert!(path.len() > 8192);
    let header = Header { a: 0o100400, b: owner(), ..Header::default() };
    primary.push(Kind::Create, header, &path, b"", b"");
    primary.push(Kind::Bind, header_at(file_id, 0), &path, b"", b"");
    primary.push(Kind::Write, header_at(file_id, 0), b"", b"", b"deep");
    mirror.apply_all(&primary.records);
    mirror.assert_equal();
    let mut resynced = Mirror::new(&primary, "r");
    resync(&mut resynced);
    assert_eq!(resynced.differences(), []);
    for mirror in [&mut mirror, &mut resynced] {
        mirror.applier.mirror.remove(&[b'd'; 250]).expect("removed");
    }
    let mut tree = crate::tree::Tree::open(&primary.path(), 8).expect("opened");
    tree.remove(&[b'd'; 250]).expect("removed");
}

fn header_at(file: FileId, offset: u64) -> Header {
    Header { a: offset, dev: file.dev, ino: file.ino, ..Header::default() }
}

#[test]
fn a_link_put_into_the_mirror_is_not_followed() {
    let mut primary = Primary::new();
    done(primary.make_directory(b"d", 0o755));
    let mut mirror = Mirror::new(&primary, "m");
    mirror.apply_all(&primary.records);
    let bait = primary.beside("bait");
    std::fs::create_dir(&bait).expect("made");
    std::fs::remove_dir(mirror.path(b"d")).expect("removed");
    symlink(&bait, mirror.path(b"d")).expect("made");
    mirror.crash();
    primary.forget_records();
    done(primary.create(1, b"d/f", 0o600));
    done(primary.write(1, 0, b"secret"));
    mirror.apply_all(&primary.records);
    assert_eq!(std::fs::read_dir(&bait).expect("there").count(), 0);
    mirror.assert_equal();
    assert_eq!(std::fs::read_dir(&bait).expect("there").count(), 0);
}

#[test]
fn our_own_name_is_left_alone() {
    let mut primary = Primary::new();
    let mut mirror = Mirror::new(&primary, "m");
    std::fs::create_dir(mirror.path(b".lockstep")).expect("made");
    std::fs::write(mirror.path(b".lockstep/identity"), "x").expect("written");
    done(primary.make_directory(b".lockstep", 0o700));
    done(primary.create(1, b".lockstep/f", 0o600));
    done(primary.rename(b".lockstep/f", b"out", PLAIN));
    for record in &primary.records {
        let error = mirror.applier.apply(&record.record()).expect_err("reserved");
        assert!(error.is_reserved());
    }
    mirror.assert_equal();
    assert_eq!(std::fs::read(mirror.path(b".lockstep/identity")).expect("there"), b"x");
    resync(&mut mirror);
    assert_eq!(std::fs::read(mirror.path(b".lockstep/identity")).expect("there"), b"x");
    assert!(mirror.path(b"out").exists());
}

#[test]
fn imports_bring_their_content_and_open_files() {
    check(|p| {
        done(p.make_directory(b"d", 0o755));
        done(p.create(1, b"d/f", 0o600));
        done(p.write(1, 0, b"inside"));
        done(p.link(b"d/f", b"d/g"));
        done(p.move_out(b"d", "d"));
        done(p.write(1, 0, b"OUT"));
        done(p.move_in("d", b"e"));
        done(p.write(1, 6, b" and in again"));
        done(p.rename(b"e/f", b"f", PLAIN));
        done(p.create(2, b"e/f", 0o600));
        done(p.write(2, 0, b"new"));
        done(p.rename(b"e", b"h", PLAIN));
        done(p.make_directory(b"e", 0o755));
    });
}

#[test]
fn data_of_unknown_files_is_reported() {
    let mut primary = Primary::new();
    done(primary.create(1, b"f", 0o600));
    primary.forget_records();
    let mut mirror = Mirror::new(&primary, "m");
    done(primary.write(1, 0, b"x"));
    let record = primary.records[0].clone();
    assert_eq!(mirror.apply(&record), Applied::UnknownFile(primary.open[&1].1));
}

#[test]
fn a_reread_waits_until_the_names_agree() {
    let mut primary = Primary::new();
    done(primary.create(1, b"f", 0o600));
    done(primary.write_unseen(1, 0, b"unseen"));
    done(primary.rename(b"f", b"g", PLAIN));
    let mut mirror = Mirror::new(&primary, "m");
    let applied: Vec<Applied> = primary.records.iter().map(|record| mirror.apply(record)).collect();
    assert_eq!(applied, [Applied::Done, Applied::Done, Applied::Repair, Applied::Done]);
    assert_eq!(mirror.applier.pending_repairs(), 1);
    mirror.crash();
    assert_eq!(mirror.applier.repair_pending(Rest::Busy).expect("repaired"), 0);
    mirror.assert_equal();
}

#[test]
fn what_was_touched_is_settled_after_a_crash() {
    let mut primary = Primary::new();
    done(primary.create(1, b"f", 0o600));
    done(primary.make_directory(b"d", 0o755));
    let mut mirror = Mirror::new(&primary, "m");
    mirror.apply_all(&primary.records);
    mirror.rest();
    primary.forget_records();
    done(primary.write(1, 0, b"x"));
    done(primary.symbolic_link(b"d/l", b"t"));
    mirror.apply_all(&primary.records);
    mirror.crash();
    assert!(mirror.applier.touched() >= 3);
    mirror.assert_equal();
}

#[test]
fn verify_names_each_difference() {
    let mut primary = Primary::new();
    done(primary.create(1, b"f", 0o600));
    done(primary.write(1, 0, b"content"));
    done(primary.create(2, b"h", 0o600));
    done(primary.link(b"h", b"h2"));
    done(primary.symbolic_link(b"l", b"t"));
    done(primary.create(3, b"gone", 0o600));
    done(primary.create(4, b"type", 0o600));
    let mut mirror = Mirror::new(&primary, "m");
    mirror.apply_all(&primary.records);
    mirror.assert_equal();
    std::fs::write(mirror.path(b"f"), "CONTENT+").expect("written");
    std::fs::set_permissions(mirror.path(b"f"), std::fs::Permissions::from_mode(0o644)).expect("set");
    std::fs::remove_file(mirror.path(b"h2")).expect("removed");
    std::fs::write(mirror.path(b"h2"), "").expect("written");
    std::fs::remove_file(mirror.path(b"l")).expect("removed");
    symlink("u", mirror.path(b"l")).expect("made");
    std::fs::remove_file(mirror.path(b"gone")).expect("removed");
    std::fs::remove_file(mirror.path(b"type")).expect("removed");
    std::fs::create_dir(mirror.path(b"type")).expect("made");
    std::fs::write(mirror.path(b"extra"), "").expect("written");
    rustix::fs::setxattr(mirror.path(b"h"), "user.x", b"1", rustix::fs::XattrFlags::empty()).expect("set");
    let differences = mirror.differences();
    let mut found: Vec<(DifferenceKind, &[u8])> =
        differences.iter().map(|difference| (difference.kind, &difference.path[..])).collect();
    found.retain(|(kind, _)| !matches!(kind, DifferenceKind::Mtime | DifferenceKind::Mode) || found_mode(*kind));
    for expected in [
        (DifferenceKind::Content, &b"f"[..]),
        (DifferenceKind::Size, b"f"),
        (DifferenceKind::Mode, b"f"),
        (DifferenceKind::Hardlink, b"h"),
        (DifferenceKind::Hardlink, b"h2"),
        (DifferenceKind::Target, b"l"),
        (DifferenceKind::Missing, b"gone"),
        (DifferenceKind::Type, b"type"),
        (DifferenceKind::Extra, b"extra"),
        (DifferenceKind::Xattr, b"h"),
    ] {
        assert!(found.contains(&expected), "{expected:?} in {found:?}");
    }
    let paths: Vec<Vec<u8>> = differences.iter().map(|difference| difference.path.clone()).collect();
    let super::Applier { primary: ours, mirror: theirs, limits, .. } = &mut mirror.applier;
    let again = recheck(ours, theirs, paths.iter().map(|path| &path[..]), limits).expect("read");
    assert_eq!(again.differences.len(), differences.len());
    resync(&mut mirror);
    assert_eq!(mirror.differences(), []);
}

fn found_mode(kind: DifferenceKind) -> bool {
    kind == DifferenceKind::Mode
}

#[test]
fn access_lists_arrive_and_are_compared() {
    // user::rwx user:1234:r-- group::r-- mask::r-- other::---, as setfacl(1) writes it.
    let mut acl = vec![2, 0, 0, 0];
    for (tag, permissions, who) in
        [(1u16, 7u16, u32::MAX), (2, 4, 1234), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]
    {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&permissions.to_le_bytes());
        acl.extend_from_slice(&who.to_le_bytes());
    }
    let mut primary = Primary::new();
    done(primary.make_directory(b"d", 0o755));
    if primary.set_xattr(On::Path(b"d"), b"system.posix_acl_default", &acl).is_err() {
        return;
    }
    done(primary.create(1, b"d/f", 0o666));
    done(primary.make_directory(b"d/e", 0o777));
    done(primary.create(2, b"d/e/g", 0o600));
    done(primary.set_xattr(On::Open(2), b"system.posix_acl_access", &acl));
    let mut mirror = Mirror::new(&primary, "m");
    mirror.apply_all(&primary.records);
    mirror.assert_equal();
    let mut resynced = Mirror::new(&primary, "r");
    resync(&mut resynced);
    assert_eq!(resynced.differences(), []);
    rustix::fs::lremovexattr(resynced.path(b"d/e/g"), "system.posix_acl_access").expect("removed");
    assert!(resynced.differences().iter().any(|difference| difference.kind == DifferenceKind::Acl));
    resync(&mut resynced);
    assert_eq!(resynced.differences(), []);
}

#[test]
fn inode_flags_arrive_and_do_not_stand_in_the_way() {
    let mut primary = Primary::new();
    done(primary.create(1, b"f", 0o600));
    done(primary.write(1, 0, b"x"));
    let file = File::open(primary.path().join("f")).expect("there");
    let Ok(before) = rustix::fs::ioctl_getflags(&file) else { return };
    let mut mirror = Mirror::new(&primary, "m");
    let locked = if rustix::process::geteuid().is_root() { IFlags::IMMUTABLE } else { IFlags::empty() };
    for flags in [before | IFlags::NODUMP | locked, before | IFlags::NOATIME, before | locked] {
        if rustix::fs::ioctl_setflags(&file, flags).is_err() {
            break;
        }
        primary.push(Kind::Flags, Header { a: u64::from(flags.bits()), ..Header::default() }, b"f", b"", b"");
        let records = std::mem::take(&mut primary.records);
        mirror.apply_all(&records);
        let copy = File::open(mirror.path(b"f")).expect("there");
        let wanted = flags & IFlags::from_bits_retain(super::FLAGS);
        let got = rustix::fs::ioctl_getflags(&copy).expect("as in the primary");
        assert_eq!(got & IFlags::from_bits_retain(super::FLAGS), wanted);
        mirror.applier.ledger.touch_path(b"f");
        mirror.rest();
    }
    // A resync passes a flag that forbids it, and leaves it behind.
    let mut resynced = Mirror::new(&primary, "r");
    resync(&mut resynced);
    std::fs::write(mirror.path(b"g"), "extra").expect("written");
    let extra = File::open(mirror.path(b"g")).expect("there");
    let _ = rustix::fs::ioctl_setflags(&extra, locked);
    resync(&mut mirror);
    for path in [primary.path().join("f"), mirror.path(b"f"), resynced.path(b"f")] {
        let file = File::open(path).expect("there");
        let _ = rustix::fs::ioctl_setflags(&file, before);
    }
    assert_eq!(mirror.differences(), []);
    assert_eq!(resynced.differences(), []);
}

#[test]
fn sparse_files_stay_sparse_in_a_resync() {
    let mut primary = Primary::new();
    done(primary.create(1, b"f", 0o600));
    done(primary.write(1, 50 << 20, b"end"));
    done(primary.truncate(1, 100 << 20));
    let mut mirror = Mirror::new(&primary, "m");
    resync(&mut mirror);
    assert_eq!(mirror.differences(), []);
    assert!(std::fs::metadata(mirror.path(b"f")).expect("there").blocks() < 1000);
}

/// Brings a mirror level while nothing happens.
fn resync(mirror: &mut Mirror) {
    let mut resync = Resync::new();
    resync.begin(&mut mirror.applier).expect("begun");
    first_pass(&mut resync, mirror);
    assert_eq!(resync.finish(&mut mirror.applier).expect("finished"), []);
}

fn first_pass(resync: &mut Resync, mirror: &mut Mirror) {
    while resync.step(&mut mirror.applier, Duration::from_millis(20)).expect("walked") == Progress::Walking {}
}

/// One random call.
#[derive(Debug, Clone)]
enum Step {
    Create(u8, u8, u32),
    Open(u8, u8),
    Write(u8, u16, u16, u8),
    WriteUnseen(u8, u16, u8),
    Truncate(u8, u16),
    Allocate(u8, u8, u8, u8),
    MakeDirectory(u8),
    SymbolicLink(u8, u8),
    MakeNode(u8, u8),
    Link(u8, u8),
    Unnamed(u8),
    LinkOpen(u8, u8),
    Rename(u8, u8, u8),
    Unlink(u8),
    RemoveDirectory(u8),
    Chmod(u8, u32),
    ChmodOpen(u8, u32),
    Chown(u8, u32),
    Times(u8, i64),
    SetXattr(u8, u8, u8),
    RemoveXattr(u8, u8),
    MoveOut(u8, u8),
    MoveIn(u8, u8),
}

/// Few names, so that calls meet: four at the root, four in each of two of them, four in one below.
fn name(number: u8) -> Vec<u8> {
    let leaf = [b'a' + number % 4];
    match number / 4 % 4 {
        0 => leaf.to_vec(),
        1 => [b"a/", &leaf[..]].concat(),
        2 => [b"b/", &leaf[..]].concat(),
        _ => [b"a/b/", &leaf[..]].concat(),
    }
}

fn step() -> impl Strategy<Value = Step> {
    let n = 0u8..16;
    let slot = 0u8..4;
    let modes = prop_oneof![Just(0o600u32), Just(0o644), Just(0o444), Just(0o755), Just(0o4755), Just(0o640)];
    prop_oneof![
        4 => (slot.clone(), n.clone(), modes.clone()).prop_map(|(s, n, m)| Step::Create(s, n, m)),
        2 => (slot.clone(), n.clone()).prop_map(|(s, n)| Step::Open(s, n)),
        5 => (slot.clone(), any::<u16>(), 1u16..9000, any::<u8>()).prop_map(|(s, o, l, b)| Step::Write(s, o, l, b)),
        1 => (slot.clone(), any::<u16>(), any::<u8>()).prop_map(|(s, o, b)| Step::WriteUnseen(s, o, b)),
        2 => (slot.clone(), any::<u16>()).prop_map(|(s, l)| Step::Truncate(s, l)),
        2 => (slot.clone(), 0u8..6, 0u8..16, 1u8..8).prop_map(|(s, m, o, l)| Step::Allocate(s, m, o, l)),
        4 => n.clone().prop_map(Step::MakeDirectory),
        1 => (n.clone(), any::<u8>()).prop_map(|(n, t)| Step::SymbolicLink(n, t)),
        1 => (n.clone(), any::<u8>()).prop_map(|(n, t)| Step::MakeNode(n, t)),
        3 => (n.clone(), n.clone()).prop_map(|(a, b)| Step::Link(a, b)),
        1 => slot.clone().prop_map(Step::Unnamed),
        2 => (slot.clone(), n.clone()).prop_map(|(s, n)| Step::LinkOpen(s, n)),
        6 => (n.clone(), n.clone(), 0u8..5).prop_map(|(a, b, f)| Step::Rename(a, b, f)),
        3 => n.clone().prop_map(Step::Unlink),
        1 => n.clone().prop_map(Step::RemoveDirectory),
        1 => (n.clone(), modes.clone()).prop_map(|(n, m)| Step::Chmod(n, m)),
        1 => (slot.clone(), modes).prop_map(|(s, m)| Step::ChmodOpen(s, m)),
        1 => (n.clone(), 0u32..3).prop_map(|(n, u)| Step::Chown(n, u)),
        1 => (n.clone(), any::<i32>()).prop_map(|(n, t)| Step::Times(n, i64::from(t))),
        1 => (n.clone(), 0u8..2, any::<u8>()).prop_map(|(n, x, v)| Step::SetXattr(n, x, v)),
        1 => (n.clone(), 0u8..2).prop_map(|(n, x)| Step::RemoveXattr(n, x)),
        1 => (n.clone(), 0u8..2).prop_map(|(n, o)| Step::MoveOut(n, o)),
        2 => (0u8..2, n).prop_map(|(o, n)| Step::MoveIn(o, n)),
    ]
}

/// Makes the call; that it fails is as good, and leaves no record.
fn perform(p: &mut Primary, step: &Step) {
    let xattr = |x: u8| [b"user.", &[b'a' + x][..]].concat();
    let outside = |o: u8| format!("o{o}");
    if !(0..16).all(|n| p.is_plain(&name(n))) {
        // The only call that is made then takes a link away.
        let link = (0..16).map(name).find(|name| p.path().join(std::ffi::OsStr::from_bytes(name)).is_symlink());
        return p.unlink(&link.expect("one is in the way")).expect("removed");
    }
    let _ = match *step {
        Step::Create(s, n, m) => p.create(s, &name(n), m),
        Step::Open(s, n) => p.open(s, &name(n)),
        Step::Write(s, o, l, b) => p.write(s, u64::from(o), &vec![b; usize::from(l)]),
        Step::WriteUnseen(s, o, b) => p.write_unseen(s, u64::from(o), &[b; 300]),
        Step::Truncate(s, l) => p.truncate(s, u64::from(l)),
        Step::Allocate(s, m, o, l) => {
            let mode = [
                FallocateFlags::empty(),
                FallocateFlags::KEEP_SIZE,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                FallocateFlags::ZERO_RANGE,
                FallocateFlags::COLLAPSE_RANGE,
                FallocateFlags::INSERT_RANGE,
            ][usize::from(m)];
            p.allocate(s, mode, u64::from(o) * 4096, u64::from(l) * 4096)
        }
        Step::MakeDirectory(n) => p.make_directory(&name(n), 0o755),
        Step::SymbolicLink(n, t) => p.symbolic_link(&name(n), &name(t)),
        Step::MakeNode(n, t) => {
            let kind = [FileType::Fifo, FileType::Socket][usize::from(t % 2)];
            p.make_node(&name(n), kind, 0o640, 0)
        }
        Step::Link(a, b) => p.link(&name(a), &name(b)),
        Step::Unnamed(s) => p.create_unnamed(s, b"", 0o600),
        Step::LinkOpen(s, n) => p.link_open(s, &name(n)),
        Step::Rename(a, b, f) => {
            let flags =
                [PLAIN, PLAIN, RenameFlags::EXCHANGE, RenameFlags::NOREPLACE, RenameFlags::WHITEOUT][usize::from(f)];
            p.rename(&name(a), &name(b), flags)
        }
        Step::Unlink(n) => p.unlink(&name(n)),
        Step::RemoveDirectory(n) => p.remove_directory(&name(n)),
        // A directory stays open to its owner, so that an ordinary user can go on.
        Step::Chmod(n, m) => p.chmod(On::Path(&name(n)), m | 0o700),
        Step::ChmodOpen(s, m) => p.chmod(On::Open(s), m),
        Step::Chown(n, u) if rustix::process::geteuid().is_root() => p.chown(On::Path(&name(n)), u, u),
        Step::Chown(..) => Ok(()),
        Step::Times(n, t) => p.set_times(On::Path(&name(n)), (t, 1), (t, 999_999_999)),
        Step::SetXattr(n, x, v) => p.set_xattr(On::Path(&name(n)), &xattr(x), &[v; 20]),
        Step::RemoveXattr(n, x) => p.remove_xattr(On::Path(&name(n)), &xattr(x)),
        Step::MoveOut(n, o) => p.move_out(&name(n), &outside(o)),
        Step::MoveIn(o, n) => p.move_in(&outside(o), &name(n)),
    };
}

fn cases(count: u32) -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(count) }
}

proptest! {
    #![proptest_config(cases(48))]

    /// Each record is exactly its change, and applying it again, after a crash or not, is none.
    #[test]
    fn mirrors_equal_the_primary_after_every_record(steps in prop::collection::vec((step(), any::<bool>()), 1..80)) {
        let mut primary = Primary::new();
        let mut once = Mirror::new(&primary, "once");
        let mut twice = Mirror::new(&primary, "twice");
        let mut torn = Mirror::new(&primary, "torn");
        let mut late = Mirror::new(&primary, "late");
        let mut waiting: Vec<Owned> = Vec::new();
        for (step, crash) in &steps {
            perform(&mut primary, step);
            for record in std::mem::take(&mut primary.records) {
                once.apply(&record);
                twice.apply(&record);
                if *crash {
                    twice.crash();
                }
                twice.apply(&record);
                torn.apply_torn(&record);
                if once.applier.pending_repairs() == 0 {
                    prop_assert_eq!(once.differences_in_flight(), [], "after {:?}", record.record());
                }
                waiting.push(record);
            }
            if *crash {
                once.crash();
                once.rest();
                // This one stays behind, and reads from a primary that is ahead of it.
                for record in waiting.drain(..waiting.len() / 2) {
                    late.apply(&record);
                }
                late.applier.repair_pending(Rest::Busy).expect("repaired");
                late.applier.settle(Rest::Busy, 5, || true).expect("settled");
                late.crash();
            }
        }
        late.apply_all(&waiting);
        for mirror in [&mut once, &mut twice, &mut torn, &mut late] {
            mirror.rest();
            prop_assert_eq!(mirror.differences(), []);
        }
    }

    /// Whatever a mirror holds, a resync makes it equal, and records apply from there.
    #[test]
    fn a_resync_makes_any_two_trees_equal(
        ours in prop::collection::vec(step(), 1..60),
        theirs in prop::collection::vec(step(), 1..60),
        after in prop::collection::vec(step(), 1..30),
    ) {
        let mut other = Primary::new();
        for step in &theirs {
            perform(&mut other, step);
        }
        other.open.clear();
        let mut primary = Primary::new();
        for step in &ours {
            perform(&mut primary, step);
        }
        primary.forget_records();
        let mut mirror = Mirror::over(&primary, &other.path());
        resync(&mut mirror);
        prop_assert_eq!(mirror.differences(), []);
        primary.bind_again();
        primary.open.retain(|_, (file, _)| file.metadata().is_ok_and(|meta| meta.nlink() > 0));
        for step in &after {
            perform(&mut primary, step);
        }
        mirror.apply_all(&primary.records);
        mirror.rest();
        prop_assert_eq!(mirror.differences(), []);
    }

    /// What happens while the tree is walked is found by the passes that follow.
    #[test]
    fn a_resync_catches_what_happens_meanwhile(
        before in prop::collection::vec(step(), 1..60),
        during in prop::collection::vec((step(), 0usize..3), 1..60),
        after in prop::collection::vec(step(), 1..20),
    ) {
        let mut primary = Primary::new();
        for step in &before {
            perform(&mut primary, step);
        }
        primary.forget_records();
        let mut mirror = Mirror::new(&primary, "m");
        let mut resync = Resync::new();
        resync.begin(&mut mirror.applier).expect("begun");
        // Records are noted late: `lag` of them wait.
        let mut noted = 0;
        for (step, choice) in &during {
            perform(&mut primary, step);
            match choice {
                0 => drop(resync.step(&mut mirror.applier, Duration::ZERO).expect("walked")),
                1 => {
                    for record in &primary.records[noted..] {
                        resync.note(&mut mirror.applier, &record.record()).expect("noted");
                    }
                    noted = primary.records.len();
                }
                _ => resync.dirty_pass(&mut mirror.applier).expect("compared"),
            }
        }
        first_pass(&mut resync, &mut mirror);
        for record in &primary.records[noted..] {
            resync.note(&mut mirror.applier, &record.record()).expect("noted");
        }
        prop_assert_eq!(resync.finish(&mut mirror.applier).expect("finished"), []);
        prop_assert_eq!(mirror.differences(), []);
        primary.forget_records();
        primary.bind_again();
        primary.open.retain(|_, (file, _)| file.metadata().is_ok_and(|meta| meta.nlink() > 0));
        for step in &after {
            perform(&mut primary, step);
        }
        mirror.apply_all(&primary.records);
        mirror.rest();
        prop_assert_eq!(mirror.differences(), []);
    }
}

/// As an ordinary user, files and directories that forbid their own writer are written all the same.
#[test]
fn what_forbids_its_writer_is_written() {
    if rustix::process::geteuid().is_root() {
        return as_ordinary_user("apply::tests::what_forbids_its_writer_is_written");
    }
    let mut primary = Primary::new();
    let mut mirror = Mirror::new(&primary, "m");
    done(primary.make_directory(b"d", 0o755));
    done(primary.create(1, b"d/f", 0o444));
    done(primary.write(1, 0, b"first"));
    done(primary.create(2, b"d/secret", 0o000));
    done(primary.chmod(On::Path(b"d"), 0o555));
    mirror.apply_all(&primary.records);
    mirror.crash();
    primary.forget_records();
    done(primary.write(1, 5, b" and second"));
    done(primary.write_unseen(1, 100, b"third"));
    mirror.apply_all(&primary.records);
    std::fs::set_permissions(primary.path().join("d/secret"), std::fs::Permissions::from_mode(0o400)).expect("set");
    std::fs::set_permissions(mirror.path(b"d/secret"), std::fs::Permissions::from_mode(0o400)).expect("set");
    mirror.assert_equal();
    // A resync into a directory that may not be written.
    std::fs::write(mirror.path(b"d/f"), b"").expect_err("0444");
    let mut resynced = Mirror::new(&primary, "r");
    resync(&mut resynced);
    assert_eq!(resynced.differences(), []);
    resync(&mut resynced);
    assert_eq!(resynced.differences(), []);
    for path in [primary.path().join("d"), mirror.path(b"d"), resynced.path(b"d")] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("set");
    }
}

/// As an ordinary user, what can't be had is a limit and what can't be read is listed.
#[test]
fn what_an_ordinary_user_may_not_do_is_said() {
    if rustix::process::geteuid().is_root() {
        return as_ordinary_user("apply::tests::what_an_ordinary_user_may_not_do_is_said");
    }
    let mut primary = Primary::new();
    let mut mirror = Mirror::new(&primary, "m");
    mirror.applier.owner = super::OwnerPolicy::Warn;
    let header = Header { a: 0o20666, b: 0, c: 0x103, ..Header::default() };
    primary.push(Kind::MakeNode, header, b"null", b"", b"");
    primary.push(Kind::Rename, Header { b: 0o20666, ..Header::default() }, b"null", b"zero", b"");
    primary.push(
        Kind::Attributes,
        Header { a: 0o600, c: journal::record::ATTRIBUTE_MODE, ..Header::default() },
        b"zero",
        b"",
        b"",
    );
    done(primary.make_directory(b"d", 0o755));
    let header = Header { b: 0, c: journal::record::ATTRIBUTE_OWNER, ..Header::default() };
    primary.push(Kind::Attributes, header, b"d", b"", b"");
    let records = primary.records.clone();
    for record in &records {
        assert_eq!(mirror.apply(record), Applied::Done);
    }
    assert_eq!(mirror.applier.limits().words().collect::<Vec<_>>(), ["owner", "device"]);
    std::fs::write(primary.path().join("secret"), "x").expect("written");
    std::fs::set_permissions(primary.path().join("secret"), std::fs::Permissions::from_mode(0o000)).expect("set");
    let mut resync = Resync::new();
    resync.begin(&mut mirror.applier).expect("begun");
    first_pass(&mut resync, &mut mirror);
    let unreadable = resync.finish(&mut mirror.applier).expect("finished");
    assert_eq!(unreadable, [(b"secret".to_vec(), rustix::io::Errno::ACCESS)]);
}

/// Runs one test of this program as another user.
fn as_ordinary_user(test: &str) {
    use std::os::unix::process::CommandExt;
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).expect("set");
    // The test program may lie where that user has no business.
    let program = directory.path().join("tests");
    std::fs::copy(std::env::current_exe().expect("known"), &program).expect("copied");
    let mut command = std::process::Command::new(&program);
    command.args(["--exact", test, "--nocapture"]).env("TMPDIR", directory.path()).current_dir("/");
    let output = command.uid(65534).gid(65534).output().expect("started");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "{text}");
}

fn owner() -> u64 {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    journal::record::pack_owner(uid.as_raw(), gid.as_raw())
}
