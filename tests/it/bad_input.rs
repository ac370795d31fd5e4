//! What `run` refuses: one clear message each, the right exit status, and nothing touched.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use crate::compare;
use crate::harness::Sandbox;
use crate::place::{FileSystem, Place, User, set_mode};
use crate::process::Outcome;

fn sandbox() -> Sandbox {
    Sandbox::new(Place::everyday()).expect("the disk can be used")
}

/// A sandbox of a user whom permissions bind.
fn ordinary_sandbox() -> Sandbox {
    Sandbox::new(Place { file_system: FileSystem::Disk, user: User::Ordinary }).expect("the disk can be used")
}

fn words<const N: usize>(words: [&dyn AsRef<std::ffi::OsStr>; N]) -> Vec<OsString> {
    words.iter().map(|word| word.as_ref().to_owned()).collect()
}

/// Everything below the sandbox but what the tests themselves keep there.
fn all_below(sandbox: &Sandbox) -> Vec<String> {
    let ours = |line: &String| !line.starts_with("output") && !line.starts_with("state") && !line.starts_with("home");
    compare::outline(&sandbox.path("")).expect("a readable tree").into_iter().filter(ours).collect()
}

/// Runs `arguments` and asserts the refusal.
fn refused(sandbox: &Sandbox, arguments: &[OsString], status: i32, says: &[&str]) -> Outcome {
    let before = all_below(sandbox);
    let outcome = sandbox.answer(arguments);
    assert_eq!(outcome.status, status, "{arguments:?}: {}{}", outcome.stdout, outcome.stderr);
    assert_eq!(outcome.stdout, "", "{arguments:?}: the answer to a mistake goes to stderr");
    for word in says {
        assert!(outcome.stderr.contains(word), "{arguments:?}: no {word:?} in: {}", outcome.stderr);
    }
    assert!(outcome.stderr.starts_with("lockstep: "), "{arguments:?}: {}", outcome.stderr);
    // What and why on the first line, what to do on the second.
    let lines: Vec<_> = outcome.stderr.lines().collect();
    assert!(lines.len() == 2 && lines[0] != lines[1], "{arguments:?}: not one message: {}", outcome.stderr);
    assert!(lines[1].starts_with("lockstep: "), "{arguments:?}: {}", outcome.stderr);
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    assert_eq!(all_below(sandbox), before, "{arguments:?}: something was touched");
    outcome
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

#[test]
fn a_missing_primary_is_refused() {
    let sandbox = sandbox();
    let nowhere = sandbox.path("nowhere");
    let mirror = sandbox.path("mirr1");
    let arguments = words([&"run", &"--primary", &nowhere, &"--mirror", &mirror, &"--", &"true"]);
    refused(&sandbox, &arguments, 125, &[text(&nowhere), "No such file"]);
}

#[test]
fn a_primary_that_is_a_file_is_refused() {
    let sandbox = sandbox();
    let file = sandbox.path("file");
    fs::write(&file, "x").expect("write");
    let arguments = words([&"run", &"--primary", &file, &"--mirror", &sandbox.path("mirr1"), &"--", &"true"]);
    refused(&sandbox, &arguments, 125, &[text(&file), "director"]);
}

#[test]
fn a_mirror_inside_the_primary_is_refused() {
    let sandbox = sandbox();
    let inside = sandbox.primary().join("work/mirror");
    let arguments = words([&"run", &"--primary", &sandbox.primary(), &"--mirror", &inside, &"--", &"true"]);
    refused(&sandbox, &arguments, 125, &[text(&inside), text(&sandbox.primary())]);
}

#[test]
fn a_primary_inside_the_mirror_is_refused() {
    let sandbox = sandbox();
    let inside = sandbox.primary().join("work");
    let arguments = words([&"run", &"--primary", &inside, &"--mirror", &sandbox.primary(), &"--", &"true"]);
    refused(&sandbox, &arguments, 125, &[text(&inside), text(&sandbox.primary())]);
}

#[test]
fn a_mirror_inside_the_primary_by_a_symlink_is_refused() {
    let sandbox = sandbox();
    std::os::unix::fs::symlink(sandbox.primary(), sandbox.path("way")).expect("symlink");
    let inside = sandbox.path("way/work/mirror");
    let arguments = words([&"run", &"--primary", &sandbox.primary(), &"--mirror", &inside, &"--", &"true"]);
    refused(&sandbox, &arguments, 125, &[text(&sandbox.primary())]);
}

#[test]
fn a_mirror_that_is_the_primary_is_refused() {
    let sandbox = sandbox();
    let arguments = words([&"run", &"--primary", &sandbox.primary(), &"--mirror", &sandbox.primary(), &"--", &"true"]);
    refused(&sandbox, &arguments, 125, &[text(&sandbox.primary())]);
}

#[test]
fn one_directory_is_one_mirror_however_it_is_named() {
    let sandbox = sandbox();
    let mut arguments = words([&"run", &"--primary", &sandbox.primary(), &"--mirror", &sandbox.path("mirr1")]);
    arguments.extend(words([&"--mirror", &sandbox.path("home/../mirr1"), &"--", &"true"]));
    sandbox.done(arguments);
    assert_eq!(sandbox.status().mirrors().len(), 1);
}

#[test]
fn a_mirror_inside_another_sets_primary_is_refused() {
    let sandbox = sandbox();
    sandbox.make_directory("other");
    let first = words([&"run", &"--primary", &sandbox.primary(), &"--mirror", &sandbox.path("mirr1"), &"--", &"true"]);
    sandbox.done(first);
    let inside = sandbox.primary().join("work/mirror");
    let arguments = words([&"run", &"--primary", &sandbox.path("other"), &"--mirror", &inside, &"--", &"true"]);
    refused(&sandbox, &arguments, 125, &[text(&inside), text(&sandbox.primary())]);
}

#[test]
fn another_set_name_for_the_same_primary_is_refused() {
    let sandbox = sandbox();
    let first = words([&"run", &"--primary", &sandbox.primary(), &"--mirror", &sandbox.path("mirr1"), &"--", &"true"]);
    sandbox.done(first);
    let mut arguments = words([&"--set", &"another", &"run", &"--primary", &sandbox.primary()]);
    arguments.extend(words([&"--mirror", &sandbox.path("mirr1"), &"--", &"true"]));
    refused(&sandbox, &arguments, 125, &["another", text(&sandbox.primary())]);
}

#[test]
fn a_mirror_that_cannot_be_written_is_refused() {
    let sandbox = ordinary_sandbox();
    sandbox.make_directory("closed");
    set_mode(&sandbox.path("closed"), 0o555);
    for mirror in [sandbox.path("closed"), sandbox.path("closed/new")] {
        let arguments = words([&"run", &"--primary", &sandbox.primary(), &"--mirror", &mirror, &"--", &"true"]);
        refused(&sandbox, &arguments, 125, &[text(&mirror), "ermission denied"]);
    }
    set_mode(&sandbox.path("closed"), 0o755);
}

#[test]
fn a_mirror_whose_parent_is_missing_is_refused() {
    let sandbox = sandbox();
    let mirror = sandbox.path("no/such/parent");
    let arguments = words([&"run", &"--primary", &sandbox.primary(), &"--mirror", &mirror, &"--", &"true"]);
    refused(&sandbox, &arguments, 125, &[text(&mirror)]);
}

#[test]
fn a_directory_with_strange_files_is_refused_as_a_mirror() {
    let sandbox = sandbox();
    sandbox.make_directory("full");
    fs::write(sandbox.path("full/precious"), "do not touch").expect("write");
    let mirror = sandbox.path("full");
    let arguments = words([&"run", &"--primary", &sandbox.primary(), &"--mirror", &mirror, &"--", &"true"]);
    refused(&sandbox, &arguments, 125, &[text(&mirror), "--adopt"]);
    assert_eq!(fs::read_to_string(sandbox.path("full/precious")).expect("still there"), "do not touch");
    assert!(!sandbox.path("full/.lockstep").exists());
}

#[test]
fn run_without_a_program_is_refused() {
    let sandbox = sandbox();
    let arguments = words([&"run", &"--primary", &sandbox.primary(), &"--mirror", &sandbox.path("mirr1")]);
    let before = all_below(&sandbox);
    let outcome = sandbox.answer(&arguments);
    assert_eq!(outcome.status, 125, "{}", outcome.stderr);
    assert_eq!(outcome.stdout, "");
    assert!(!outcome.stderr.is_empty());
    assert_eq!(all_below(&sandbox), before);
}

#[test]
fn a_program_that_is_not_there_is_127() {
    let sandbox = sandbox();
    sandbox.start();
    for program in ["no-such-program-anywhere", "/no/such/program"] {
        let mut arguments = sandbox.run_arguments();
        arguments.extend(words([&"--", &program]));
        let outcome = sandbox.answer(&arguments);
        assert_eq!(outcome.status, 127, "{}", outcome.stderr);
        assert!(outcome.stderr.contains(program), "{}", outcome.stderr);
        assert_eq!(outcome.stderr.lines().count(), 2, "{}", outcome.stderr);
    }
}

#[test]
fn a_program_that_cannot_be_executed_is_126() {
    let sandbox = sandbox();
    sandbox.start();
    let file = sandbox.path("home/not-a-program");
    fs::write(&file, "text").expect("write");
    set_mode(&file, 0o644);
    let mut arguments = sandbox.run_arguments();
    arguments.extend(words([&"--", &file]));
    let outcome = sandbox.answer(&arguments);
    assert_eq!(outcome.status, 126, "{}", outcome.stderr);
    assert!(outcome.stderr.contains(text(&file)), "{}", outcome.stderr);
}

#[test]
fn a_wrong_flag_or_command_is_trouble() {
    let sandbox = sandbox();
    for (arguments, status) in [
        (words([&"run", &"--no-such-flag", &"--", &"true"]), 125),
        (words([&"statsu"]), 2),
        (words([&"status", &"--no-such-flag"]), 2),
        (words([&"verify", &"no-such-mirror"]), 2),
        (words([&"--set", &"no-such-set", &"wait"]), 2),
    ] {
        let outcome = sandbox.answer(&arguments);
        assert_eq!(outcome.status, status, "{arguments:?}: {}{}", outcome.stdout, outcome.stderr);
        assert!(!outcome.stderr.is_empty(), "{arguments:?}");
        assert!(!outcome.stderr.contains("panicked"), "{arguments:?}: {}", outcome.stderr);
    }
}

#[test]
fn what_is_promised_for_later_says_so() {
    let sandbox = sandbox();
    let outcome = sandbox.answer(["promote", "/nowhere"]);
    assert_eq!(outcome.status, 2, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("later"), "{}", outcome.stderr);
}

#[test]
fn the_primary_gets_nothing_of_ours() {
    let sandbox = sandbox();
    sandbox.start();
    let names: Vec<_> = fs::read_dir(sandbox.primary()).expect("readable").flatten().collect();
    assert_eq!(names.len(), 1, "only the directory that the test made: {names:?}");
    assert!(sandbox.mirrors().iter().all(|mirror| mirror.join(".lockstep").is_dir()));
}
