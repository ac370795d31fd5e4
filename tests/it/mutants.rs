//! Tests of the tests: a call that goes unseen must show as a difference of the mirrors.
//!
//! Each call is made once by an instruction of the program's own, which no library can intercept, and once through
//! libc with the hook behind it switched off (`LOCKSTEP_TEST_DISABLE`). A comparison that misses either proves nothing.

use std::collections::BTreeSet;

use crate::binary;
use crate::harness::{Job, Sandbox};
use crate::place::{Place, is_root, skip};

/// Calls, and the hook whose absence must show.
const CALLS: [(&str, &str); 43] = [
    ("write", "write"),
    ("pwrite64", "pwrite"),
    ("writev", "writev"),
    ("pwritev", "pwritev"),
    ("pwritev2", "pwritev2"),
    ("openat", "openat"),
    ("open", "openat"),
    ("creat", "openat"),
    ("rename", "renameat2"),
    ("renameat", "renameat2"),
    ("renameat2", "renameat2"),
    ("unlink", "unlinkat"),
    ("unlinkat", "unlinkat"),
    ("rmdir", "unlinkat"),
    ("mkdir", "mkdirat"),
    ("mkdirat", "mkdirat"),
    ("link", "linkat"),
    ("linkat", "linkat"),
    ("symlink", "symlinkat"),
    ("symlinkat", "symlinkat"),
    ("mknod", "mknodat"),
    ("mknodat", "mknodat"),
    ("bind", "bind"),
    ("truncate", "truncate"),
    ("ftruncate", "ftruncate"),
    ("fallocate", "fallocate"),
    ("chmod", "fchmodat"),
    ("fchmod", "fchmod"),
    ("fchmodat", "fchmodat"),
    ("setxattr", "setxattr"),
    ("lsetxattr", "setxattr"),
    ("fsetxattr", "setxattr"),
    ("removexattr", "removexattr"),
    ("fremovexattr", "removexattr"),
    ("utimensat", "utimensat"),
    ("futimens", "utimensat"),
    ("copy_file_range", "copy_file_range"),
    ("sendfile", "sendfile"),
    ("splice", "splice"),
    // Only root may.
    ("chown", "fchownat"),
    ("fchown", "fchown"),
    ("lchown", "fchownat"),
    ("fchownat", "fchownat"),
];

fn calls() -> impl Iterator<Item = (&'static str, &'static str)> {
    CALLS.into_iter().filter(|(call, _)| is_root() || !call.contains("chown"))
}

fn job(mode: &str, calls: &[&str]) -> Option<Job> {
    match binary::program("blind") {
        Ok(program) => Some(Job::new([program.to_str().expect("a plain path"), mode].iter().chain(calls).copied())),
        Err(why) => {
            skip("mutants", &why);
            None
        }
    }
}

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new(Place::everyday()).expect("the disk can be used");
    sandbox.start();
    sandbox
}

/// The calls whose directory differs from at least one mirror's.
fn different(sandbox: &Sandbox) -> BTreeSet<String> {
    let differences = sandbox.differences();
    let directory = |line: &String| {
        let path = line.split('\t').nth(1)?.strip_prefix("work/")?;
        path.split('/').next().map(str::to_owned)
    };
    differences.iter().filter_map(directory).collect()
}

fn all_said_ok(calls: &[&str], stdout: &str) {
    for call in calls {
        assert!(stdout.contains(&format!("{call}: ok\n")), "{call} did not work: {stdout}");
    }
}

#[test]
fn calls_that_are_seen_leave_no_difference() {
    let calls: Vec<_> = calls().map(|(call, _)| call).collect();
    let Some(job) = job("seen", &calls) else { return };
    let sandbox = sandbox();
    let (outcome, _) = sandbox.mirrored(|| sandbox.wrapped(&job));
    assert_eq!(outcome.status, 0, "{}{}", outcome.stdout, outcome.stderr);
    all_said_ok(&calls, &outcome.stdout);
}

#[test]
fn each_call_that_goes_unseen_shows_as_a_difference() {
    let calls: Vec<_> = calls().map(|(call, _)| call).collect();
    let Some(job) = job("unseen", &calls) else { return };
    let sandbox = sandbox();
    let outcome = sandbox.wrapped(&job);
    assert_eq!(outcome.status, 0, "{}{}", outcome.stdout, outcome.stderr);
    all_said_ok(&calls, &outcome.stdout);
    sandbox.settled();
    let found = different(&sandbox);
    let missed: Vec<_> = calls.iter().filter(|call| !found.contains(**call)).collect();
    assert!(missed.is_empty(), "these went unseen and left no difference: {missed:?}");
    let verify = sandbox.answer(["verify"]);
    assert_eq!(verify.status, 1, "verify: {}", verify.stderr);
    for call in calls {
        assert!(verify.stdout.contains(&format!("\twork/{call}")), "verify misses {call}: {}", verify.stdout);
    }
}

#[test]
fn each_hook_that_is_switched_off_shows_as_a_difference() {
    let hooks: BTreeSet<_> = calls().map(|(_, hook)| hook).collect();
    for hook in hooks {
        let calls: Vec<_> = calls().filter(|(_, behind)| *behind == hook).map(|(call, _)| call).collect();
        let Some(job) = job("seen", &calls) else { return };
        let sandbox = sandbox();
        let before = sandbox.status();
        let outcome = sandbox.wrapped(&job.with("LOCKSTEP_TEST_DISABLE", hook));
        // Without the hook the program itself must work all the same.
        all_said_ok(&calls, &outcome.stdout);
        let after = sandbox.settled();
        // What went unseen may have been noticed and mended, by which the status says that it was not the normal way.
        let noticed = after.repairs() > before.repairs() || !after.is_level() || after.resyncs() > before.resyncs();
        let found = different(&sandbox);
        let missed: Vec<_> = calls.iter().filter(|call| !found.contains(**call)).collect();
        assert!(noticed || missed.is_empty(), "without the hook {hook} these left no difference: {missed:?}");
    }
}
