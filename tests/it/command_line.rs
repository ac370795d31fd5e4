//! What the commands answer: exit statuses, streams, `status`, `wait`, `verify`, and how the replayer comes and goes.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{Job, LIMIT, Sandbox};
use crate::place::Place;
use crate::process::Running;

fn sandbox() -> Sandbox {
    Sandbox::new(Place::everyday()).expect("the disk can be used")
}

fn started() -> Sandbox {
    let sandbox = sandbox();
    sandbox.start();
    sandbox
}

fn bash(script: &str) -> Job {
    Job::new(["bash", "-c", script])
}

#[test]
fn one_command_fills_and_follows_two_mirrors() {
    let sandbox = sandbox();
    fs::write(sandbox.primary().join("work/before"), "was there").expect("write");
    sandbox.give(&sandbox.primary().join("work/before"));
    let outcome =
        sandbox.wrapped(&bash("echo new > new; mkdir d; mv before d/after; echo said; echo told >&2; exit 7"));
    assert_eq!((outcome.status, outcome.stdout.as_str(), outcome.stderr.as_str()), (7, "said\n", "told\n"));
    let found = sandbox.differences();
    assert!(found.is_empty(), "{found:#?}");
    assert_eq!(sandbox.done(["verify"]).stdout, "");
}

#[test]
fn run_answers_the_exit_status_of_the_program() {
    let sandbox = started();
    assert_eq!(sandbox.wrapped(&bash("exit 0")).status, 0);
    assert_eq!(sandbox.wrapped(&bash("exit 41")).status, 41);
    assert_eq!(sandbox.wrapped(&bash("kill -TERM $$")).status, 128 + 15);
    assert_eq!(sandbox.wrapped(&bash("kill -KILL $$")).status, 128 + 9);
}

#[test]
fn a_pipe_from_run_ends_with_the_program() {
    let sandbox = sandbox();
    let mut command = sandbox.lockstep(sandbox.run_arguments());
    command.args(["--", "bash", "-c", "echo piped; echo x > x"]).current_dir(sandbox.primary());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("lockstep starts");
    let (mut out, mut err) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    // The replayer that run has started must not hold the other ends of the pipes.
    let began = Instant::now();
    let (mut said, mut told) = (String::new(), String::new());
    out.read_to_string(&mut said).expect("UTF-8");
    err.read_to_string(&mut told).expect("UTF-8");
    assert!(child.wait().expect("waited").success());
    assert!(began.elapsed() < LIMIT);
    assert_eq!((said.as_str(), told.as_str()), ("piped\n", ""));
}

#[test]
fn input_reaches_the_program() {
    let sandbox = started();
    let mut command = sandbox.lockstep(sandbox.run_arguments());
    command.args(["--", "tee", "teed"]).current_dir(sandbox.primary().join("work"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("lockstep starts");
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), b"typed\n").expect("written");
    let output = child.wait_with_output().expect("waited");
    assert_eq!(output.stdout, b"typed\n");
    for mirror in sandbox.mirrors() {
        assert_eq!(fs::read_to_string(mirror.join("work/teed")).expect("mirrored"), "typed\n");
    }
}

#[test]
fn the_replayer_that_run_started_ends_by_itself() {
    let sandbox = sandbox();
    assert_eq!(sandbox.wrapped(&bash("echo x > x")).status, 0);
    let deadline = Instant::now() + Duration::from_secs(30);
    while sandbox.status().json["replayer"]["pid"].is_number() {
        assert!(Instant::now() < deadline, "the replayer stays: {}", sandbox.status().json);
        std::thread::sleep(Duration::from_millis(50));
    }
    // And a later run goes on where the first one ended, without another first copy.
    let outcome = sandbox.wrapped(&bash("echo y > y; rm x"));
    assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""));
    let found = sandbox.differences();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn descendants_that_outlive_the_program_are_followed() {
    let sandbox = started();
    let script = "(sleep 1; for i in 1 2 3; do echo $i >> late; done; mkdir later) > /dev/null 2>&1 & echo now > now";
    assert_eq!(sandbox.wrapped(&bash(script)).status, 0);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !sandbox.primary().join("work/later").exists() {
        assert!(Instant::now() < deadline, "the child did not go on");
        std::thread::sleep(Duration::from_millis(20));
    }
    sandbox.done(["wait", "--timeout", "30"]);
    sandbox.settled();
    let found = sandbox.differences();
    assert!(found.is_empty(), "{found:#?}");
    assert_eq!(sandbox.status().repairs(), 0);
}

#[test]
fn a_second_run_shares_the_replayer() {
    let sandbox = started();
    let pid = sandbox.status().json["replayer"]["pid"].clone();
    std::thread::scope(|scope| {
        for name in ["one", "two", "three"] {
            let sandbox = &sandbox;
            scope.spawn(move || {
                let script = format!("for i in $(seq 50); do echo {name} $i >> {name}; echo {name} >> all; done");
                assert_eq!(sandbox.wrapped(&bash(&script)).status, 0);
            });
        }
    });
    sandbox.settled();
    assert_eq!(sandbox.status().json["replayer"]["pid"], pid);
    let found = sandbox.differences();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn run_inside_run_of_the_same_set_just_runs() {
    let sandbox = started();
    let mut inner: Vec<OsString> =
        vec![crate::binary::lockstep().into(), "--state-dir".into(), sandbox.path("state").into()];
    inner.extend(sandbox.run_arguments());
    inner.extend(["--".into(), "bash".into(), "-c".into(), "echo inner > inner; exit 3".into()]);
    let outcome = sandbox.wrapped(&Job::new(inner));
    assert_eq!((outcome.status, outcome.stderr.as_str()), (3, ""));
    for mirror in sandbox.mirrors() {
        assert_eq!(fs::read_to_string(mirror.join("work/inner")).expect("mirrored"), "inner\n");
    }
}

#[test]
fn no_wait_returns_and_leaves_the_replayer_draining() {
    let sandbox = sandbox();
    let mut arguments = sandbox.run_arguments();
    arguments.extend(["--no-wait", "--", "bash", "-c", "echo x > x"].map(OsString::from));
    let mut command = sandbox.lockstep(arguments);
    command.current_dir(sandbox.primary()).stdin(Stdio::null()).stdout(Stdio::null());
    let status = Running::start(&mut command).wait(LIMIT).expect("run ends");
    assert!(status.success());
    let status = sandbox.settled();
    assert!(status.is_current(), "{}", status.json);
    let found = sandbox.differences();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn status_has_every_field_of_the_contract() {
    let sandbox = started();
    sandbox.wrapped(&bash("echo x > x"));
    let json = sandbox.settled().json;
    assert_eq!(json["primary"].as_str(), sandbox.primary().to_str());
    for key in ["name", "generation", "newest_seq"] {
        assert!(!json[key].is_null(), "{key}: {json}");
    }
    assert_eq!(json["generation"], 1);
    for (group, keys) in [
        ("replayer", &["pid", "since"][..]),
        ("ring", &["bytes", "used_bytes"]),
        ("journal", &["segments", "bytes"]),
        ("coverage", &["processes", "records", "repairs", "not_followed"]),
    ] {
        for key in keys {
            assert!(!json[group][key].is_null(), "{group}.{key}: {json}");
        }
    }
    assert!(json["journal"].as_object().is_some_and(|journal| journal.contains_key("oldest_seq")), "{json}");
    let mirrors = json["mirrors"].as_array().expect("an array");
    assert_eq!(mirrors.len(), 2);
    for mirror in mirrors {
        for key in ["name", "spec", "state", "complete", "pending_repairs", "applied_seq", "durable_seq"] {
            assert!(!mirror[key].is_null(), "{key}: {mirror}");
        }
        for key in ["lag_records", "lag_bytes", "lag_seconds", "limits", "since"] {
            assert!(!mirror[key].is_null(), "{key}: {mirror}");
        }
        assert!(mirror["last_error"].is_null() && mirror.as_object().is_some_and(|m| m.contains_key("last_error")));
        assert_eq!(mirror["applied_seq"], json["newest_seq"]);
        assert_eq!(mirror["lag_records"], 0);
    }
    let text = sandbox.done(["status"]).stdout;
    assert!(text.contains(sandbox.primary().to_str().expect("plain")) && text.contains("current"), "{text}");
}

#[test]
fn status_without_a_set_is_an_empty_answer() {
    let sandbox = sandbox();
    assert_eq!(sandbox.done(["status", "--json"]).stdout.split_whitespace().collect::<String>(), r#"{"sets":[]}"#);
}

#[test]
fn sequence_numbers_never_go_back() {
    let sandbox = sandbox();
    sandbox.wrapped(&bash("echo x > x"));
    let first = sandbox.status().json["newest_seq"].as_u64().expect("a number");
    assert!(first > 0);
    sandbox.answer(["stop"]);
    sandbox.wrapped(&bash("echo y > y"));
    let second = sandbox.status().json["newest_seq"].as_u64().expect("a number");
    assert!(second > first, "{second} after {first}");
}

#[test]
fn verify_names_each_difference() {
    let sandbox = started();
    sandbox.wrapped(&bash("echo text > f; mkdir d; ln -s f s; echo 12345678 > sized"));
    sandbox.settled();
    let [first, second] = sandbox.mirrors();
    fs::write(first.join("work/f"), "tEXT\n").expect("write");
    fs::write(first.join("work/new"), "").expect("write");
    fs::remove_file(second.join("work/s")).expect("remove");
    fs::write(second.join("work/sized"), "123").expect("write");
    crate::place::set_mode(&second.join("work/d"), 0o700);
    let outcome = sandbox.answer(["verify"]);
    assert_eq!(outcome.status, 1, "{}{}", outcome.stdout, outcome.stderr);
    for line in ["content\tmirr1\twork/f", "extra\tmirr1\twork/new", "missing\tmirr2\twork/s", "mode\tmirr2\twork/d"] {
        assert!(outcome.stdout.lines().any(|found| found == line), "no {line:?} in: {}", outcome.stdout);
    }
    assert!(outcome.stdout.lines().any(|found| found.starts_with("size\tmirr2\twork/sized")), "{}", outcome.stdout);
    let one = sandbox.answer(["verify", "mirr2"]);
    assert!(one.status == 1 && !one.stdout.contains("mirr1"), "{}", one.stdout);
    let json = sandbox.answer(["verify", "--json"]);
    let list: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
    let found = list
        .as_array()
        .expect("an array")
        .iter()
        .any(|item| item["kind"] == "content" && item["mirror"] == "mirr1" && item["path"] == "work/f");
    assert!(found && json.status == 1, "{}", json.stdout);
}

#[test]
fn wait_without_a_replayer_is_trouble_and_with_one_returns() {
    let sandbox = started();
    assert_eq!(sandbox.answer(["wait", "--timeout", "10"]).status, 0);
    sandbox.done(["stop"]);
    assert_eq!(sandbox.answer(["wait", "--timeout", "1"]).status, 2);
}

#[test]
fn a_killed_replayer_is_replaced_and_nothing_is_lost() {
    let sandbox = started();
    let pid = sandbox.status().json["replayer"]["pid"].as_i64().expect("a pid");
    let script =
        "for i in $(seq 400); do echo $i > f$i; mv f$i g$i; [ $((i % 2)) = 0 ] && rm g$i; echo $i >> log; done; true";
    std::thread::scope(|scope| {
        let wrapped = scope.spawn(|| sandbox.wrapped(&bash(script)));
        let deadline = Instant::now() + LIMIT;
        while !sandbox.primary().join("work/g101").exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("not 0");
        rustix::process::kill_process(pid, Signal::KILL).expect("the replayer lives");
        assert_eq!(wrapped.join().expect("no panic").status, 0);
    });
    let status = sandbox.settled();
    assert!(status.is_current(), "{}", status.json);
    let found = sandbox.differences();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn killed_programs_lose_nothing() {
    let sandbox = started();
    let script = "n=0; while :; do n=$((n + 1)); echo $n > a$n; echo $n >> log; mv a$n b$((n % 7)); done";
    for round in 0..6 {
        let mut command = sandbox.lockstep(sandbox.run_arguments());
        command.args(["--", "timeout", "-s", "KILL", &format!("0.{}", 2 + round), "bash", "-c", script]);
        command.current_dir(sandbox.primary().join("work")).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Running::start(&mut command).wait(LIMIT).expect("run ends");
        let status = sandbox.settled();
        assert!(status.is_level(), "{}", status.json);
        let found = sandbox.differences();
        assert!(found.is_empty(), "round {round}: {found:#?}");
    }
}

#[test]
fn the_library_works_by_hand_too() {
    // The set and the library are those of a wrapped shell, handed to a program started without `run`.
    let sandbox = started();
    let outcome = sandbox.wrapped(&bash("printf '%s\\n%s\\n' \"$LD_PRELOAD\" \"$LOCKSTEP_SET\""));
    let mut lines = outcome.stdout.lines();
    let (library, set) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    assert!(library.ends_with(".so") && !set.is_empty(), "{}", outcome.stdout);
    let (result, records) = sandbox.mirrored(|| {
        let mut command: Command = sandbox.command("bash");
        command.args(["-c", "echo by hand > byhand"]).current_dir(sandbox.primary().join("work"));
        command.env("LD_PRELOAD", library).env("LOCKSTEP_SET", set);
        crate::process::run(&mut command, &sandbox.path("output"), LIMIT)
    });
    assert_eq!((result.status, result.stderr.as_str()), (0, ""));
    assert!(records > 0);
}
