//! Where the command under test and the small C programs come from.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The command under test, in a directory that every user can read.
///
/// `LOCKSTEP_BIN` names one that is built already; otherwise cargo builds it beside this test.
pub fn lockstep() -> &'static Path {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let find = || {
        let built = match std::env::var_os("LOCKSTEP_BIN") {
            Some(path) => PathBuf::from(path),
            None => build()?,
        };
        let copy = shared_directory().join("lockstep");
        std::fs::copy(&built, &copy).map_err(|error| format!("cannot copy {}: {error}", built.display()))?;
        Ok(copy)
    };
    // A build that failed once is not tried again for each test.
    FOUND.get_or_init(find).as_ref().unwrap_or_else(|why| panic!("{why}"))
}

/// The folder of a C program's source, in this crate.
pub fn source(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)
}

/// Compiles `programs/NAME.c` once, or says why it cannot.
pub fn program(name: &str) -> Result<PathBuf, String> {
    static COMPILED: OnceLock<std::sync::Mutex<std::collections::HashMap<String, Result<PathBuf, String>>>> =
        OnceLock::new();
    let mut compiled = COMPILED.get_or_init(Default::default).lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    compiled.entry(name.to_owned()).or_insert_with(|| compile(name, &[])).clone()
}

/// Compiles `programs/NAME.c` without dynamic linking.
pub fn static_program(name: &str) -> Result<PathBuf, String> {
    compile(name, &["-static"])
}

/// A directory of this test run that every user can enter; removed at the end of the process.
pub fn shared_directory() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        remove_left_behind();
        let path = std::env::temp_dir().join(format!("{SHARED_PREFIX}{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("the temporary directory is writable");
        path
    })
}

const SHARED_PREFIX: &str = "lockstep-tests-";

/// Statics are not dropped, so the directory of a test run that has ended is removed by the next one.
fn remove_left_behind() {
    let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix(SHARED_PREFIX).and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if !Path::new(&format!("/proc/{pid}")).exists() {
            let _gone_or_not_ours = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn build() -> Result<PathBuf, String> {
    let this = std::env::current_exe().expect("the test binary has a path");
    let profile_directory = this.parent().and_then(Path::parent).expect("cargo puts tests into PROFILE/deps");
    let target_directory = profile_directory.parent().expect("PROFILE lies in the target directory");
    let profile = match profile_directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(other) => other,
    };
    eprintln!("building the command under test: cargo build -p lockstep --profile {profile}");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "-p", "lockstep", "--profile", profile, "--target-dir"])
        .arg(target_directory)
        .current_dir(source(".."))
        .status()
        .map_err(|error| format!("cannot start cargo: {error}"))?;
    if status.success() { Ok(profile_directory.join("lockstep")) } else { Err("cargo build -p lockstep failed".into()) }
}

fn compile(name: &str, flags: &[&str]) -> Result<PathBuf, String> {
    let suffix = if flags.contains(&"-static") { "-static" } else { "" };
    let output = shared_directory().join(format!("{name}{suffix}"));
    let status = Command::new("gcc")
        .args(["-std=gnu11", "-O1", "-w", "-pthread"])
        .args(flags)
        .arg("-o")
        .arg(&output)
        .arg(source("programs").join(format!("{name}.c")))
        .args(["-ldl", "-lrt"])
        .status();
    match status {
        Ok(status) if status.success() => Ok(output),
        Ok(_) => panic!("gcc refuses programs/{name}.c"),
        Err(error) => Err(format!("gcc: {error}")),
    }
}
