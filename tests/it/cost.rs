//! What a program pays for calls that do not concern the primary.

use crate::binary;
use crate::harness::{Job, Sandbox};
use crate::place::{Place, skip};
use crate::process::Outcome;

/// Instructions and system calls of a hundred writes, as `programs/steps.c` prints them.
fn counted(outcome: &Outcome) -> (i64, i64) {
    let mut numbers = outcome.stdout.split_whitespace().filter_map(|word| word.parse::<i64>().ok());
    let pair = numbers.next().zip(numbers.next());
    pair.unwrap_or_else(|| panic!("no numbers in: {}{}", outcome.stdout, outcome.stderr))
}

#[test]
fn a_write_outside_costs_no_system_call_and_few_instructions() {
    let program = match binary::program("steps") {
        Ok(program) => program,
        Err(why) => return skip("the cost of a write outside", &why),
    };
    let sandbox = Sandbox::new(Place::everyday()).expect("the disk can be used");
    sandbox.start();
    for target in ["/dev/null", "{outside}/file"] {
        let job = Job::new([program.to_str().expect("a plain path"), target]);
        let (instructions_bare, calls_bare) = counted(&sandbox.bare(&job).0);
        let (instructions, calls) = counted(&sandbox.wrapped(&job));
        let more = (instructions - instructions_bare) as f64 / 100.0;
        eprintln!("a write to {target}: {more} instructions more, {calls} system calls in a hundred writes");
        assert_eq!((calls_bare, calls), (100, 100), "system calls of a hundred writes to {target}");
        assert!(more <= 40.0, "a write to {target} costs {more} instructions more");
        assert!(more > 0.0, "a write to {target} did not pass through the library");
    }
}
