//! What the applier, the ledger, settling, resync and verify do together, on real directories.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use journal::record::{FLAG_WITHIN, FileId, Header, Kind};
use rustix::fs::{FallocateFlags, FileType, IFlags, RenameFlags};

use super::Applied;
use super::model::{Mirror, On, PLAIN, Primary, first_pass, resync};
use crate::resync::Resync;
use crate::settle::Rest;
use crate::verify::{DifferenceKind, recheck};

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

#[test]
fn what_lay_behind_the_end_of_a_mapped_file_is_left_out() {
    let mut primary = Primary::new();
    done(primary.create(1, b"mapped", 0o600));
    done(primary.write(1, 0, &[b'.'; 5000]));
    let file = primary.open[&1].1;
    let within = Header { flags: FLAG_WITHIN, ..header_at(file, 4096) };
    primary.push(Kind::Write, within, b"", b"", &[b'p'; 4096]);
    let beyond = Header { flags: FLAG_WITHIN, ..header_at(file, 8192) };
    primary.push(Kind::Write, beyond, b"", b"", &[b'q'; 4096]);
    let mut mirror = Mirror::new(&primary, "m");
    mirror.apply_all(&primary.records);
    let content = std::fs::read(mirror.path(b"mapped")).expect("there");
    assert_eq!(content, [[b'.'; 4096].as_slice(), &[b'p'; 904]].concat());
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
