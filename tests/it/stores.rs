//! Stores through shared mappings reach the mirrors while the program runs and makes no call, whatever becomes of the
//! replayer meanwhile.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::binary;
use crate::harness::{Job, Sandbox};
use crate::place::{Place, skip};

/// Number of the last store that a mirror has.
fn last_store(mirror: &Path) -> u32 {
    let content = std::fs::read(mirror.join("work/lasting")).unwrap_or_default();
    let numbers = content.chunks(16384).filter_map(|page| {
        let text = page.split(|byte| *byte == b'\n').next()?;
        std::str::from_utf8(text).ok()?.strip_prefix("store ")?.parse().ok()
    });
    numbers.max().unwrap_or(0)
}

/// Waits until every mirror has a store later than any had before; returns the first of their last ones.
fn wait_for_more(sandbox: &Sandbox, before: u32) -> u32 {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let last = sandbox.mirrors().iter().map(|mirror| last_store(mirror)).min().unwrap_or(0);
        if last > before {
            return last;
        }
        assert!(Instant::now() < deadline, "no store after {before} has come: {}", sandbox.status().json);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn stores_reach_the_mirrors_while_the_program_runs() {
    let program = match binary::program("lasting") {
        Ok(program) => program,
        Err(why) => return skip("a program that stores for long", &why),
    };
    let sandbox = Sandbox::new(Place::everyday()).expect("the disk can be used");
    sandbox.start();
    let enough = sandbox.path("enough");
    let job = Job::new([program.as_path(), enough.as_path()]);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| sandbox.wrapped(&job));
        let first = wait_for_more(&sandbox, 0);
        let begun = Instant::now();
        let second = wait_for_more(&sandbox, first);
        assert!(begun.elapsed() < Duration::from_secs(10), "stores take {:?}", begun.elapsed());
        let replayer = sandbox.status().json["replayer"]["pid"].as_u64().expect("a replayer runs");
        let killed = Command::new("kill").args(["-9", &replayer.to_string()]).status();
        assert!(killed.is_ok_and(|status| status.success()));
        let third = wait_for_more(&sandbox, second + 100);
        wait_for_more(&sandbox, third);
        std::fs::write(&enough, "").expect("the sandbox can be written to");
        let outcome = running.join().expect("no panic");
        assert_eq!(outcome.status, 0, "{}", outcome.stderr);
    });
    let status = sandbox.settled();
    assert!(status.is_level(), "{}", status.json);
    assert_eq!(sandbox.differences(), Vec::<String>::new());
}
