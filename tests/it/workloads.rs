//! Everyday programs at work: each script runs twice bare, then wrapped, and the mirrors must equal the primary.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use crate::binary;
use crate::harness::{Job, Sandbox, assert_same_words, missing_programs, shared};
use crate::place::{FileSystem, Place, User, everything, is_root, skip};
use crate::process;

/// A script, what it needs, and the fewest records that show that its work was really recorded.
struct Workload {
    name: &'static str,
    programs: &'static str,
    records_min: u64,
    only: Only,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Only {
    Everyone,
    Root,
    Ordinary,
}

const fn workload(name: &'static str, programs: &'static str, records_min: u64, only: Only) -> Workload {
    Workload { name, programs, records_min, only }
}

use Only::{Everyone, Ordinary, Root};

/// Our own scripts, in `workloads/`.
const OWN: [Workload; 21] = [
    workload("shells", "bash dash sort uniq", 40, Everyone),
    workload("files", "cp fallocate csplit shred", 120, Everyone),
    workload("owners", "chown mknod", 12, Root),
    workload("attributes", "setfattr setfacl chattr", 14, Everyone),
    workload("editors", "ed sed vim.tiny diff patch perl awk", 100, Everyone),
    workload("archives", "tar zip unzip gzip bzip2 xz", 150, Everyone),
    workload("git", "git", 800, Everyone),
    workload("sqlite", "sqlite3", 150, Everyone),
    workload("compile", "gcc make ar strip objcopy", 150, Everyone),
    workload("perl", "perl", 60, Everyone),
    workload("python", "python3", 700, Everyone),
    workload("node", "node", 80, Everyone),
    workload("rsync", "rsync", 120, Everyone),
    workload("packages", "dpkg dpkg-deb", 60, Everyone),
    workload("sorting", "sort shuf join paste", 400, Everyone),
    workload("blocks", "fio", 250, Everyone),
    workload("lmdb", "mdb_load mdb_copy mdb_dump mdb_stat", 10, Everyone),
    workload("redis", "redis-server redis-cli", 40, Everyone),
    workload("postgres", "initdb pg_ctl psql", 4000, Ordinary),
    workload("cleared", "env python3 perl", 10, Everyone),
    workload("overlay", "dd truncate", 12, Everyone),
];

/// The scripts that lie beside the project where it is developed. Half of the file-changing system calls that were
/// counted when each of them ran bare (successful ones, on file system objects) must become records.
const SHARED: [(Workload, &str); 29] = [
    (workload("bash_echo", "bash", 12 / 2, Everyone), ""),
    (workload("dash", "dash", 9 / 2, Everyone), ""),
    (workload("coreutils", "cp mknod fallocate csplit", 186 / 2, Root), ""),
    (workload("cp_reflink", "cp git", 44 / 2, Everyone), ""),
    (workload("sed_i", "sed", 39 / 2, Everyone), ""),
    (workload("ed", "ed", 13 / 2, Everyone), ""),
    (workload("patch", "patch diff sed", 29 / 2, Everyone), ""),
    (workload("perl", "perl", 29 / 2, Everyone), ""),
    (workload("python", "python3", 153 / 2, Everyone), ""),
    (workload("node", "node", 27 / 2, Everyone), ""),
    (workload("vim", "vim.tiny", 38 / 2, Everyone), ""),
    (workload("git", "git", 696 / 2, Everyone), ""),
    (workload("tar", "tar gzip", 365 / 2, Everyone), ""),
    (workload("zips", "zip unzip gzip bzip2 xz", 43 / 2, Everyone), ""),
    (workload("rsync", "rsync", 135 / 2, Everyone), ""),
    (workload("dpkg", "dpkg dpkg-deb", 184 / 2, Everyone), "p.deb"),
    (workload("gcc", "gcc ar strip objcopy", 188 / 2, Everyone), ""),
    (workload("make", "make gcc ar", 84 / 2, Everyone), ""),
    (workload("sort_big", "sort shuf gawk comm", 2729 / 2, Everyone), ""),
    (workload("sqlite", "sqlite3", 254 / 2, Everyone), ""),
    (workload("lmdb", "mdb_load mdb_copy mdb_stat", 15 / 2, Everyone), ""),
    (workload("redis", "redis-server redis-cli", 86 / 2, Everyone), ""),
    (workload("initdb", "initdb", 6964 / 2, Ordinary), ""),
    (workload("fio_psync_mmap", "fio", 21 / 2, Everyone), ""),
    (workload("fio_libaio", "fio", 19 / 2, Everyone), ""),
    (workload("fio_posixaio", "fio", 19 / 2, Everyone), ""),
    (workload("misc_c", "gcc", 39 / 2, Everyone), "misc"),
    (workload("env_i", "env", 6 / 2, Everyone), ""),
    (workload("gobin", "go", 0, Everyone), "gobin"),
];

/// Scripts of the shared folder with tests of their own: static programs, and an inline system call.
const ELSEWHERE: [&str; 3] = ["busybox", "gobin", "misc_c"];

/// Workloads that use one port: not two at a time.
static ONE_PORT: Mutex<()> = Mutex::new(());

fn check_at(place: Place, workloads: &[(&Workload, PathBuf)]) {
    // Wall-clock time is what an everyday run has least of: the workloads of a place share one sandbox each in turn.
    for (workload, script) in workloads {
        let what = format!("workload {} on {place}", script.display());
        let fits = match workload.only {
            Only::Everyone => true,
            Only::Root => place.user == User::Root,
            Only::Ordinary => place.user == User::Ordinary,
        };
        let missing = missing_programs(workload.programs);
        if !missing.is_empty() {
            skip(&what, &format!("not installed: {}", missing.join(" ")));
        } else if fits {
            match Sandbox::new(place) {
                Ok(sandbox) => check(&sandbox, workload, script),
                Err(why) => skip(&what, &why),
            }
        }
    }
}

fn check(sandbox: &Sandbox, workload: &Workload, script: &Path) {
    let what = format!("workload {} on {}", workload.name, sandbox.place);
    eprintln!("{what}");
    // On an overlay the ground has files in the lower layer; elsewhere the script makes them.
    let below = sandbox.path("below");
    let job = Job::script(script)
        .with("SRC", shared("workloads/src").unwrap_or_default())
        .with("BIN", shared_helpers().unwrap_or_default())
        .with("BELOW", "below");
    if below.exists() && workload.name == "overlay" {
        // Moved into the primary, not copied: there these files still lie in the lower layer.
        for (command, side) in [("cp", "bare1"), ("cp", "bare2"), ("mv", "prime")] {
            let target = sandbox.path(side).join("work/below");
            let flag = if command == "cp" { "-a" } else { "-T" };
            let placed = std::process::Command::new(command).arg(flag).arg(&below).arg(&target).status();
            assert!(placed.is_ok_and(|status| status.success()), "{command} {} failed", below.display());
            sandbox.give(&target);
            for entry in std::fs::read_dir(&target).into_iter().flatten().flatten() {
                sandbox.give(&entry.path());
            }
        }
    }
    let _port = script.ends_with("redis.sh").then(|| ONE_PORT.lock().unwrap_or_else(|held| held.into_inner()));
    let (first, _) = sandbox.bare(&job);
    let (second, _) = sandbox.bare_again(&job);
    assert_eq!(first.status, second.status, "{what}: two bare runs end differently");
    sandbox.start();
    let (wrapped, records) = sandbox.mirrored(|| sandbox.wrapped(&job));
    assert_eq!(wrapped.status, first.status, "{what}: {}", wrapped.stderr);
    assert_same_words(&format!("{what}, stdout"), &first.stdout, &second.stdout, &wrapped.stdout);
    assert_same_words(&format!("{what}, stderr"), &first.stderr, &second.stderr, &wrapped.stderr);
    eprintln!("{what}: {records} records");
    assert!(records >= workload.records_min, "{what}: {records} records, at least {} expected", workload.records_min);
}

fn own(place: Place, wanted: impl Fn(&str) -> bool) {
    let found: Vec<_> = OWN
        .iter()
        .filter(|workload| wanted(workload.name))
        .map(|workload| (workload, binary::source("workloads").join(format!("{}.sh", workload.name))))
        .collect();
    check_at(place, &found);
}

fn shared_ones(place: Place, wanted: impl Fn(&str) -> bool) {
    // The project is whole without them, so that their absence is no skip.
    let Some(folder) = shared("workloads") else { return };
    let helpers = shared_helpers();
    let mut found = Vec::new();
    for (workload, helper) in SHARED.iter().filter(|(workload, _)| !ELSEWHERE.contains(&workload.name)) {
        let has_helper = helper.is_empty() || helpers.as_ref().is_some_and(|bin| bin.join(helper).exists());
        if !wanted(workload.name) {
            continue;
        }
        if has_helper {
            found.push((workload, folder.join(format!("{}.sh", workload.name))));
        } else {
            skip(workload.name, &format!("{helper} was not built"));
        }
    }
    check_at(place, &found);
}

/// The folder of the helper programs that some shared scripts need, prepared once.
pub fn shared_helpers() -> Option<PathBuf> {
    static PREPARED: OnceLock<Option<PathBuf>> = OnceLock::new();
    let prepare = || {
        let script = shared("workloads/prepare")?;
        let folder = binary::shared_directory().join("helpers");
        let mut command = std::process::Command::new("bash");
        command.env("PATH", crate::harness::program_path()).env("GOCACHE", binary::shared_directory().join("go"));
        command.arg(script).arg(&folder);
        let outcome = process::run(&mut command, binary::shared_directory(), crate::harness::LIMIT);
        assert_eq!(outcome.status, 0, "prepare: {}", outcome.stderr);
        Some(folder)
    };
    PREPARED.get_or_init(prepare).clone()
}

/// Half of the scripts, so that two cores have one each.
fn half(names: &[&str], name: &str, which: usize) -> bool {
    names.iter().position(|&other| other == name).is_some_and(|at| at % 2 == which)
}

fn own_names() -> Vec<&'static str> {
    OWN.iter().map(|workload| workload.name).collect()
}

fn shared_names() -> Vec<&'static str> {
    SHARED.iter().map(|(workload, _)| workload.name).collect()
}

#[test]
fn our_scripts_first_half_on_disk() {
    own(Place::everyday(), |name| half(&own_names(), name, 0));
}

#[test]
fn our_scripts_second_half_on_disk() {
    own(Place::everyday(), |name| half(&own_names(), name, 1));
}

#[test]
fn shared_scripts_first_half_on_disk() {
    shared_ones(Place::everyday(), |name| half(&shared_names(), name, 0));
}

#[test]
fn shared_scripts_second_half_on_disk() {
    shared_ones(Place::everyday(), |name| half(&shared_names(), name, 1));
}

/// What differs between file systems and users shows in few scripts; the rest runs there with `LOCKSTEP_FULL=1`.
const SUBSET: [&str; 7] = ["files", "attributes", "python", "overlay", "sqlite", "archives", "postgres"];

fn elsewhere(file_system: FileSystem, user: User) {
    let place = Place { file_system, user };
    if place == Place::everyday() {
        return;
    }
    if user == User::Root && !is_root() {
        return skip(&format!("workloads on {place}"), "needs root");
    }
    own(place, |name| everything() || SUBSET.contains(&name));
    shared_ones(place, |name| everything() || name == "initdb" && file_system == FileSystem::Disk);
}

#[test]
fn scripts_of_an_ordinary_user_on_disk() {
    elsewhere(FileSystem::Disk, User::Ordinary);
}

#[test]
fn scripts_of_root_on_tmpfs() {
    elsewhere(FileSystem::Tmpfs, User::Root);
}

#[test]
fn scripts_of_an_ordinary_user_on_tmpfs() {
    elsewhere(FileSystem::Tmpfs, User::Ordinary);
}

#[test]
fn scripts_of_root_on_an_overlay() {
    elsewhere(FileSystem::Overlay, User::Root);
}

#[test]
fn scripts_of_an_ordinary_user_on_an_overlay() {
    elsewhere(FileSystem::Overlay, User::Ordinary);
}
