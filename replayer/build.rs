//! Builds the preload library, so that it can travel inside the binary.
//!
//! The library is a cdylib with a profile of its own, which cargo can't express as a dependency of a binary. A nested
//! cargo with a target directory of its own builds it: no lock is shared with the cargo that runs this script.

use std::path::{Path, PathBuf};
use std::process::Command;

const LIBRARY: &str = "liblockstep_shim.so";

fn main() {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let root = root.parent().expect("the package lies in the workspace");
    for input in ["shim", "journal", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    println!("cargo::rerun-if-env-changed=LOCKSTEP_SHIM_LIBRARY");
    // For packagers, who build the library in a step of its own.
    let library = std::env::var_os("LOCKSTEP_SHIM_LIBRARY").map_or_else(|| build(root), PathBuf::from);
    println!("cargo::rerun-if-changed={}", library.display());
    println!("cargo::rustc-env=LOCKSTEP_LIBRARY={}", library.display());
}

fn build(root: &Path) -> PathBuf {
    let target = variable("TARGET");
    let target_dir = PathBuf::from(variable("OUT_DIR")).join("shim");
    let mut cargo = Command::new(variable("CARGO"));
    cargo.current_dir(root).args(["build", "--quiet", "--package", "lockstep-shim", "--profile", "shim"]);
    cargo.arg("--target").arg(&target).arg("--target-dir").arg(&target_dir);
    // What is meant for the outer build only: flags (coverage, sanitizers), wrappers (clippy), another target.
    for name in [
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTFLAGS",
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "RUSTC_WORKSPACE_WRAPPER",
        "CLIPPY_ARGS",
        "__CARGO_DEFAULT_LIB_METADATA",
    ] {
        cargo.env_remove(name);
    }
    let status = cargo.status().expect("cargo, which runs this script, can be run");
    assert!(
        status.success(),
        "cannot build the preload library (package lockstep-shim): see the errors above\n\
         a library that is already built can be named instead: LOCKSTEP_SHIM_LIBRARY=PATH"
    );
    target_dir.join(target).join("shim").join(LIBRARY)
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}
