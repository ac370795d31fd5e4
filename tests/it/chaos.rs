//! Random work by several processes on the same few names.
//!
//! The seed is printed; `LOCKSTEP_SEED=N` runs that one alone. `LOCKSTEP_FULL=1` runs forty.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use crate::binary;
use crate::harness::{Job, Repairs, Sandbox, missing_programs, shared};
use crate::place::{Place, everything, skip};

fn seeds() -> Vec<u32> {
    if let Ok(seed) = std::env::var("LOCKSTEP_SEED") {
        return vec![seed.parse().expect("LOCKSTEP_SEED is a number")];
    }
    // A new place in the space of seeds each time.
    let first = u32::try_from(RandomState::new().build_hasher().finish() % 1_000_000_000).expect("below 2^32");
    (first..first + if everything() { 40 } else { 5 }).collect()
}

fn mirrored(what: &str, seed: u32, repairs: Repairs, job: &Job) {
    eprintln!("{what}: seed {seed}");
    let sandbox = Sandbox::new(Place::everyday()).expect("the disk can be used");
    sandbox.start();
    let (outcome, records) = sandbox.mirrored_with(repairs, || sandbox.wrapped(job));
    assert_eq!(outcome.status, 0, "{what}, seed {seed}: {}{}", outcome.stdout, outcome.stderr);
    assert!(records > 500, "{what}, seed {seed}: only {records} records");
}

#[test]
fn a_crowd_at_random_work_is_mirrored() {
    let program = match binary::program("crowd") {
        Ok(program) => program,
        Err(why) => return skip("a crowd at random work", &why),
    };
    for seed in seeds() {
        mirrored(
            "crowd",
            seed,
            Repairs::None,
            &Job::new([program.to_str().expect("a plain path"), &seed.to_string(), "4", "3000"]),
        );
    }
}

#[test]
fn a_crowd_of_one_is_mirrored() {
    let Ok(program) = binary::program("crowd") else { return };
    for seed in seeds() {
        mirrored(
            "crowd of 1",
            seed,
            Repairs::None,
            &Job::new([program.to_str().expect("a plain path"), &seed.to_string(), "1", "6000"]),
        );
    }
}

#[test]
fn the_shared_random_work_is_mirrored() {
    let Some(script) = shared("oracle/chaosfs.py") else { return };
    if !missing_programs("python3").is_empty() {
        return skip("the shared random work", "not installed: python3");
    }
    let script = script.to_str().expect("a plain path").to_owned();
    // One of its operations kills a child in the middle of its writes.
    for seed in seeds() {
        let job = Job::new(["python3", &script, ".", "-p", "4", "-s", &seed.to_string()]);
        mirrored("chaosfs", seed, Repairs::Allowed, &job);
    }
}
