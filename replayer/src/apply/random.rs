//! Random calls on a primary, with mirrors that apply them at once, twice, torn, late, or find them in a resync.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use proptest::prelude::*;
use rustix::fs::{FallocateFlags, FileType, RenameFlags};

use super::model::{Mirror, On, Owned, PLAIN, Primary, first_pass, resync};
use crate::resync::Resync;
use crate::settle::Rest;

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
        for (name, mirror) in [("once", &mut once), ("twice", &mut twice), ("torn", &mut torn), ("late", &mut late)] {
            mirror.rest();
            prop_assert_eq!(mirror.differences(), [], "{}", name);
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
