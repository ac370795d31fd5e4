//! The small programs of `programs/`: equal output and tree, bare and wrapped, and mirrors equal to the primary.

use crate::binary;
use crate::harness::{Job, Repairs, Sandbox, assert_same_words};
use crate::place::{FileSystem, Place, User, everything, is_root, skip};

/// Whether two runs of a program leave the same names and sizes behind.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tree {
    Same,
    /// It ends in the middle of something, at a moment that differs.
    Varies,
}

struct Program {
    name: &'static str,
    arguments: &'static [&'static str],
    tree: Tree,
    as_whom: Whom,
    records_min: u64,
    deaths: Deaths,
}

/// Whether a change is left in the middle, by a death or a jump, or can't be recorded. It is repaired.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Deaths {
    None,
    InTheMiddle,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Whom {
    Anyone,
    Root,
}

const fn program(name: &'static str, tree: Tree, records_min: u64) -> Program {
    Program { name, arguments: &[], tree, as_whom: Whom::Anyone, records_min, deaths: Deaths::None }
}

const OPENING: Program = program("opening", Tree::Same, 40);
const WRITING: Program = program("writing", Tree::Same, 640);
const POINTERS: Program = program("pointers", Tree::Same, 15);
const NAMES: Program = program("names", Tree::Same, 120);
const ATTRIBUTES: Program = program("attributes", Tree::Same, 60);
const SIZES: Program = Program { deaths: Deaths::InTheMiddle, ..program("sizes", Tree::Same, 25) };
const OUTSIDE: Program = Program { arguments: &["{outside}"], ..program("outside", Tree::Same, 30) };
// Without a free descriptor the place of a name cannot always be found out, which is repaired.
const DESCRIPTORS: Program = Program { deaths: Deaths::InTheMiddle, ..program("descriptors", Tree::Same, 30) };
const PROCESSES: Program = Program { deaths: Deaths::InTheMiddle, ..program("processes", Tree::Varies, 50) };
const THREADS: Program = Program { deaths: Deaths::InTheMiddle, ..program("threads", Tree::Varies, 8000) };
const LOADING: Program = program("loading", Tree::Same, 20);
const SCRIBBLE: Program = program("scribble", Tree::Same, 8000);
const MAPPING: Program = Program { deaths: Deaths::InTheMiddle, ..program("mapping", Tree::Varies, 40) };
const UNTRACKED: Program = Program { deaths: Deaths::InTheMiddle, ..program("untracked", Tree::Varies, 500) };
const AIO: Program = Program { deaths: Deaths::InTheMiddle, ..program("aio", Tree::Varies, 40) };
const ROOT: Program = Program { as_whom: Whom::Root, ..program("root", Tree::Same, 15) };
const UNLINKED: Program = program("unlinked", Tree::Same, 400);
const VISIBLE: Program = program("visible", Tree::Same, 2);
const SANDBOXED: Program = program("sandboxed", Tree::Same, 200);

fn check(program: &Program) {
    let everyday = Place::everyday();
    check_at(program, everyday);
    let elsewhere = [
        (FileSystem::Disk, User::Ordinary),
        (FileSystem::Tmpfs, User::Root),
        (FileSystem::Overlay, User::Root),
        (FileSystem::Tmpfs, User::Ordinary),
        (FileSystem::Overlay, User::Ordinary),
    ];
    // In everyday runs one other place, and each program another one.
    let turn = program.name.len() % elsewhere.len();
    for (at, (file_system, user)) in elsewhere.into_iter().enumerate() {
        let place = Place { file_system, user };
        if place != everyday && (everything() || at == turn) {
            check_at(program, place);
        }
    }
}

fn check_at(program: &Program, place: Place) {
    let what = format!("program {} on {place}", program.name);
    if program.as_whom == Whom::Root && (place.user != User::Root || !is_root()) {
        if !is_root() {
            skip(&what, "needs root");
        }
        return;
    }
    let compiled = match binary::program(program.name) {
        Ok(compiled) => compiled,
        Err(why) => return skip(&what, &why),
    };
    let sandbox = match Sandbox::new(place) {
        Ok(sandbox) => sandbox,
        Err(why) => return skip(&what, &why),
    };
    eprintln!("{what}");
    let mut words = vec![compiled.to_str().expect("a plain path")];
    words.extend(program.arguments);
    let job = Job::new(words);
    let (first, first_tree) = sandbox.bare(&job);
    let (second, second_tree) = sandbox.bare_again(&job);
    assert_eq!(first.status, second.status, "{what}: two bare runs end differently");
    sandbox.start();
    let repairs = if program.deaths == Deaths::None { Repairs::None } else { Repairs::Allowed };
    let (wrapped, records) = sandbox.mirrored_with(repairs, || sandbox.wrapped(&job));
    assert_eq!(wrapped.status, first.status, "{what}: {}{}", wrapped.stdout, wrapped.stderr);
    assert_same_words(&format!("{what}, stdout"), &first.stdout, &second.stdout, &wrapped.stdout);
    assert_same_words(&format!("{what}, stderr"), &first.stderr, &second.stderr, &wrapped.stderr);
    if program.tree == Tree::Same {
        assert_eq!(first_tree, second_tree, "{what}: two bare runs leave different trees");
        assert_eq!(sandbox.outline(), first_tree, "{what}: the wrapped run (left) leaves another tree");
    }
    eprintln!("{what}: {records} records");
    assert!(records >= program.records_min, "{what}: {records} records, at least {} expected", program.records_min);
}

#[test]
fn all_ways_to_open() {
    check(&OPENING);
}

#[test]
fn all_ways_to_write() {
    check(&WRITING);
}

#[test]
fn bad_pointers_get_the_kernels_answer() {
    check(&POINTERS);
}

#[test]
fn everything_that_changes_names() {
    check(&NAMES);
}

#[test]
fn everything_that_changes_attributes() {
    check(&ATTRIBUTES);
}

#[test]
fn sizes_holes_and_limits() {
    check(&SIZES);
}

#[test]
fn into_the_primary_and_out_of_it() {
    check(&OUTSIDE);
}

#[test]
fn descriptors_by_every_way() {
    check(&DESCRIPTORS);
}

#[test]
fn children_of_every_kind() {
    check(&PROCESSES);
}

#[test]
fn threads_signals_and_cancellation() {
    check(&THREADS);
}

#[test]
fn calls_that_the_dynamic_linker_does_not_bind() {
    check(&LOADING);
}

#[test]
fn a_buffer_that_changes_during_the_write() {
    check(&SCRIBBLE);
}

#[test]
fn stores_through_shared_mappings() {
    check(&MAPPING);
}

#[test]
fn stores_that_the_kernel_does_not_tell() {
    check(&UNTRACKED);
}

#[test]
fn asynchronous_writes() {
    check(&AIO);
}

#[test]
fn chroot_and_other_users() {
    check(&ROOT);
}

#[test]
fn files_without_a_name() {
    check(&UNLINKED);
}

#[test]
fn a_program_sees_nothing_of_us() {
    check(&VISIBLE);
}

#[test]
fn a_write_makes_no_system_call_that_was_not_asked_for() {
    check(&SANDBOXED);
}
