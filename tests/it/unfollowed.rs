//! Programs that no preloaded library can follow: they are named, the mirrors say that they are not complete, and what
//! was written is found and repaired by itself.

use std::time::{Duration, Instant};

use crate::binary;
use crate::harness::{Job, Sandbox, Status, missing_programs, program_path, shared};
use crate::place::{FileSystem, Place, User, is_root, set_mode, skip};
use crate::process::Outcome;

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new(Place::everyday()).expect("the disk can be used");
    sandbox.start();
    sandbox
}

/// Runs `job`, asserts that `program` is named with a reason while the mirrors say that they are not complete, and that
/// both equal the primary after the repair that nobody asked for.
fn found_and_repaired(sandbox: &Sandbox, job: &Job, program: &str) -> Outcome {
    let outcome = sandbox.wrapped(job);
    let named = |status: &Status| {
        let list = status.not_followed();
        list.iter().any(|(reason, name)| name.contains(program) && !reason.is_empty() && reason != "?")
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let status = sandbox.status();
        assert!(named(&status), "{program} is not named: {}", status.json);
        if status.is_level() {
            break;
        }
        assert!(Instant::now() < deadline, "no repair came: {}", status.json);
        std::thread::sleep(Duration::from_millis(50));
    }
    let found = sandbox.differences();
    assert!(found.is_empty(), "after the repair: {found:#?}");
    assert_eq!(sandbox.answer(["verify"]).status, 0);
    assert!(sandbox.status().repairs() > 0, "re-reading after an unfollowed program is a repair");
    outcome
}

const PREPARE: &str = "echo before > before; echo same size > same-size; echo doomed > doomed";

#[test]
fn a_static_program_is_named_and_repaired() {
    let program = match binary::static_program("apart") {
        Ok(program) => program,
        Err(why) => return skip("a static program", &why),
    };
    let sandbox = sandbox();
    let program = program.to_str().expect("a plain path");
    let (prepared, _) = sandbox.mirrored(|| sandbox.wrapped(&Job::new(["bash", "-c", PREPARE])));
    assert_eq!(prepared.status, 0);
    // Looked at while it still runs.
    let mut incomplete = false;
    std::thread::scope(|scope| {
        let running = scope.spawn(|| found_and_repaired(&sandbox, &Job::new([program, "3"]), "apart"));
        let deadline = Instant::now() + Duration::from_secs(60);
        while !running.is_finished() && Instant::now() < deadline {
            incomplete |= sandbox.status().complete() == [false, false];
            if incomplete {
                let check = sandbox.answer(["status", "--check"]);
                assert!([0, 1, 2].contains(&check.status), "{}", check.stdout);
                assert_eq!(check.stdout.lines().count(), 1, "{}", check.stdout);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let outcome = running.join().expect("no panic");
        assert_eq!((outcome.status, outcome.stdout.as_str()), (4, "half\n"));
    });
    assert!(incomplete, "the mirrors called themselves complete while a static program wrote");
}

#[test]
fn a_static_child_of_a_followed_program_is_named_and_repaired() {
    let Ok(program) = binary::static_program("apart") else { return };
    let sandbox = sandbox();
    let script = format!("{PREPARE}; {}; echo later > later; mv after again", program.display());
    let outcome = found_and_repaired(&sandbox, &Job::new(["bash", "-c", &script]), "apart");
    assert_eq!((outcome.status, outcome.stdout.as_str(), outcome.stderr.as_str()), (0, "half\n", ""));
}

#[test]
fn strict_refuses_to_start_a_static_program() {
    let Ok(program) = binary::static_program("apart") else { return };
    let sandbox = sandbox();
    let mut arguments = sandbox.run_arguments();
    arguments.extend(["--strict".into(), "--".into(), program.clone().into()]);
    let outcome = sandbox.answer(arguments);
    assert_eq!(outcome.status, 125, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("static") && outcome.stderr.contains("apart"), "{}", outcome.stderr);
    assert!(outcome.stdout.is_empty() && !sandbox.primary().join("work/by-static").exists());
}

#[test]
fn a_setuid_program_is_named_and_prints_nothing() {
    if !is_root() {
        return skip("a setuid program", "needs root");
    }
    // Run by an ordinary user, so that the loader drops what is preloaded.
    let sandbox =
        Sandbox::new(Place { file_system: FileSystem::Disk, user: User::Ordinary }).expect("the disk can be used");
    sandbox.start();
    let touch = sandbox.path("home/setuid-touch");
    std::fs::copy("/usr/bin/touch", &touch).expect("copy");
    std::os::unix::fs::chown(&touch, Some(0), Some(0)).expect("chown");
    set_mode(&touch, 0o4755);
    let script = format!("{} made; echo done", touch.display());
    let outcome = sandbox.wrapped(&Job::new(["bash", "-c", &script]));
    assert_eq!((outcome.status, outcome.stdout.as_str(), outcome.stderr.as_str()), (0, "done\n", ""));
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let status = sandbox.status();
        let list = status.not_followed();
        assert!(list.iter().any(|(_, program)| program.contains("setuid-touch")), "{}", status.json);
        if sandbox.mirrors().iter().all(|mirror| mirror.join("work/made").exists()) {
            break;
        }
        assert!(Instant::now() < deadline, "the file was not found: {}", status.json);
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_program_of_another_user_is_named_or_followed() {
    if !is_root() {
        return skip("a program of another user", "needs root");
    }
    let sandbox = sandbox();
    set_mode(&sandbox.primary().join("work"), 0o777);
    let script =
        "setpriv --reuid=65534 --regid=65534 --clear-groups sh -c 'echo nobody > by-nobody'; echo root > by-root";
    let outcome = sandbox.wrapped(&Job::new(["bash", "-c", script]));
    assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""));
    let deadline = Instant::now() + Duration::from_secs(30);
    while !sandbox.status().is_level() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    let found = sandbox.differences();
    assert!(found.is_empty(), "{found:#?}");
}

/// Whether a 64-bit ELF file asks for a dynamic linker.
fn has_interpreter(elf: &[u8]) -> bool {
    const PT_INTERP: u64 = 3;
    let word = |at: u64, bytes: u64| {
        let place = usize::try_from(at).unwrap_or(0)..usize::try_from(at + bytes).unwrap_or(0);
        elf.get(place).unwrap_or_default().iter().rev().fold(0u64, |value, byte| (value << 8) | u64::from(*byte))
    };
    let (table, size, count) = (word(32, 8), word(54, 2), word(56, 2));
    (0..count).any(|index| word(table + index * size, 4) == PT_INTERP)
}

#[test]
fn busybox_is_named_and_repaired() {
    if !missing_programs("busybox").is_empty() {
        return skip("busybox", "not installed: busybox");
    }
    // Debian has a static busybox and a dynamic one; only the static one is not followed.
    let busybox = std::env::split_paths(&program_path()).map(|path| path.join("busybox")).find(|path| path.exists());
    if busybox.is_some_and(|path| has_interpreter(&std::fs::read(path).unwrap_or_default())) {
        return skip("busybox", "it is linked dynamically: install busybox-static");
    }
    let sandbox = sandbox();
    let script =
        "busybox seq 500 > s; busybox cp s t; busybox sed -i s/1/one/ t; busybox mkdir -p d/e; busybox mv s d/e/";
    assert_eq!(found_and_repaired(&sandbox, &Job::new(["bash", "-c", script]), "busybox").status, 0);
    if let Some(folder) = shared("workloads") {
        let job = Job::script(&folder.join("busybox.sh"));
        let bare = sandbox.bare(&job).0;
        let outcome = found_and_repaired(&sandbox, &job, "busybox");
        assert_eq!((outcome.status, outcome.stdout), (bare.status, bare.stdout));
    }
}

#[test]
fn a_go_program_is_named_and_repaired() {
    let Some(helpers) = crate::workloads::shared_helpers() else { return };
    let program = helpers.join("gobin");
    if !program.exists() {
        return skip("a Go program", "not installed: go");
    }
    let sandbox = sandbox();
    let outcome = found_and_repaired(&sandbox, &Job::new([program.as_os_str()]), "gobin");
    assert_eq!(outcome.status, 0);
}

#[test]
fn one_inline_system_call_is_found_by_verify() {
    let Some(helpers) = crate::workloads::shared_helpers() else { return };
    let sandbox = sandbox();
    let outcome = sandbox.wrapped(&Job::new([helpers.join("misc").as_os_str()]));
    assert_eq!(outcome.status, 0, "{}", outcome.stderr);
    sandbox.settled();
    let found = sandbox.differences();
    let only_that = found.iter().all(|line| line.contains("content\twork/aio\t"));
    assert!(only_that && found.len() == 2, "all but the one instruction's bytes must be the same: {found:#?}");
    let verify = sandbox.answer(["verify"]);
    assert_eq!(verify.status, 1, "{}", verify.stderr);
    let lines: Vec<_> = verify.stdout.lines().collect();
    assert_eq!(lines, ["content\tmirr1\twork/aio", "content\tmirr2\twork/aio"]);
}
