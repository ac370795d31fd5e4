//! Tests of the tests: a call that goes unseen must show as a difference of the mirrors.
//!
//! Each call is made once by an instruction of the program's own, which no library can intercept, and once through
//! libc with the hook behind it switched off (`LOCKSTEP_TEST_DISABLE`). A comparison that misses either proves nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::binary;
use crate::harness::{Job, Sandbox};
use crate::place::{Place, is_root, skip};
use crate::process::Outcome;

/// Calls, each named as the symbol of libc that makes it.
const CALLS: [&str; 43] = [
    "write",
    "pwrite64",
    "writev",
    "pwritev",
    "pwritev2",
    "openat",
    "open",
    "creat",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "rmdir",
    "mkdir",
    "mkdirat",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "mknod",
    "mknodat",
    "bind",
    "truncate",
    "ftruncate",
    "fallocate",
    "chmod",
    "fchmod",
    "fchmodat",
    "setxattr",
    "lsetxattr",
    "fsetxattr",
    "removexattr",
    "fremovexattr",
    "utimensat",
    "futimens",
    "copy_file_range",
    "sendfile",
    "splice",
    "chown",
    "fchown",
    "lchown",
    "fchownat",
];

fn calls() -> Vec<&'static str> {
    CALLS.into_iter().filter(|call| is_root() || !call.contains("chown")).collect()
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

/// A sandbox in which each call has its directory, at rest.
fn prepared() -> Option<Sandbox> {
    let job = job("prepare", &calls())?;
    let sandbox = Sandbox::new(Place::everyday()).expect("the disk can be used");
    sandbox.start();
    let (outcome, _) = sandbox.mirrored(|| sandbox.wrapped(&job));
    assert_eq!(outcome.status, 0, "{}{}", outcome.stdout, outcome.stderr);
    // Times are read from the primary when an object has come to rest. What is prepared must have rested before, or the
    // times that an unseen call sets would be taken along.
    std::thread::sleep(Duration::from_secs(3));
    Some(sandbox)
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

#[test]
fn calls_that_are_seen_leave_no_difference() {
    let Some(sandbox) = prepared() else { return };
    let Some(job) = job("seen", &calls()) else { return };
    let (outcome, _) = sandbox.mirrored(|| sandbox.wrapped(&job));
    all_said_ok(&calls(), &outcome);
}

#[test]
fn each_call_that_goes_unseen_shows_as_a_difference() {
    let Some(sandbox) = prepared() else { return };
    let Some(job) = job("unseen", &calls()) else { return };
    all_said_ok(&calls(), &sandbox.wrapped(&job));
    all_show(&sandbox, &calls());
}

#[test]
fn each_hook_that_is_switched_off_shows_as_a_difference() {
    let Some(sandbox) = prepared() else { return };
    // glibc's mknod calls its mknodat, which is another hook.
    let calls: Vec<_> = calls().into_iter().filter(|call| *call != "mknod").collect();
    for call in &calls {
        let Some(job) = job("seen", &[call]) else { return };
        // Without the hook the program itself must work all the same.
        all_said_ok(&[call], &sandbox.wrapped(&job.with("LOCKSTEP_TEST_DISABLE", call)));
    }
    all_show(&sandbox, &calls);
}

fn all_said_ok(calls: &[&str], outcome: &Outcome) {
    assert_eq!(outcome.status, 0, "{}{}", outcome.stdout, outcome.stderr);
    for call in calls {
        assert!(outcome.stdout.contains(&format!("{call}: ok\n")), "{call} did not work: {}", outcome.stdout);
    }
}

/// Asserts that the directory of each call differs, to our eye and to that of `verify`.
fn all_show(sandbox: &Sandbox, calls: &[&str]) {
    sandbox.settled();
    let found = different(sandbox);
    let missed: Vec<_> = calls.iter().filter(|call| !found.contains(**call)).collect();
    assert!(missed.is_empty(), "these went unseen and left no difference: {missed:?}");
    let verify = sandbox.answer(["verify"]);
    assert_eq!(verify.status, 1, "verify: {}", verify.stderr);
    let below = |call: &str| verify.stdout.lines().any(|line| line.contains(&format!("\twork/{call}/")));
    let missed: Vec<_> = calls.iter().filter(|call| !below(call)).collect();
    assert!(missed.is_empty(), "verify misses {missed:?}: {}", verify.stdout);
}
