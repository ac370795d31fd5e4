//! The audit: under strace, every call that changes the primary must come from the code of our library.
//!
//! What strace saw is independent of what the library believes. A dynamic program's call from any other address means
//! a way past the hooks that no comparison may have met yet.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::ops::Range;
use std::path::Path;

use crate::binary;
use crate::harness::{Job, Sandbox, missing_programs, shared};
use crate::place::{Place, is_root, skip};

const CHANGING: &str = "write,pwrite64,writev,pwritev,pwritev2,open,openat,openat2,creat,rename,renameat,renameat2,\
    link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir,mknod,mknodat,truncate,ftruncate,fallocate,\
    chmod,fchmod,fchmodat,chown,fchown,lchown,fchownat,utime,utimes,futimesat,utimensat,setxattr,lsetxattr,fsetxattr,\
    removexattr,lremovexattr,fremovexattr,sendfile,splice,copy_file_range,bind,io_submit";
/// What is needed to know whose code lies where.
const MAPPING: &str = "mmap,execve,execveat,clone,clone3,fork,vfork";

/// One line of strace, put together again if it was interrupted by another process's.
#[derive(Debug)]
struct Call {
    pid: u32,
    from: u64,
    name: String,
    arguments: Vec<String>,
    result: String,
}

impl Call {
    fn succeeded(&self) -> bool {
        !self.result.starts_with('-') && !self.result.starts_with('?')
    }

    /// Whether the call is about something below `primary`. Relative paths with an unknown base count.
    fn is_below(&self, primary: &str) -> bool {
        if self.name.starts_with("open") || self.name == "creat" {
            return descriptor_path(&self.result).is_some_and(|path| path.starts_with(primary));
        }
        let mut base = None;
        for argument in &self.arguments {
            let path = descriptor_path(argument);
            let named = argument.strip_prefix('"').map(|text| text.trim_end_matches('"'));
            let below = match named {
                Some(text) if text.starts_with('/') => text.starts_with(primary),
                Some(_) if CALLS_WITH_DATA.contains(&self.name.as_str()) => false,
                Some(_) => base.is_none_or(|base: &str| base.starts_with(primary)),
                None => {
                    path.is_some_and(|path| path.starts_with(primary))
                        && CALLS_ON_DESCRIPTORS.contains(&self.name.as_str())
                }
            };
            if below {
                return true;
            }
            base = path;
        }
        false
    }

    /// Whether an open can change anything.
    fn opens_to_read(&self) -> bool {
        let writes = ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_TMPFILE"];
        self.name.starts_with("open")
            && !self.arguments.iter().any(|text| writes.iter().any(|flag| text.contains(flag)))
    }
}

/// Calls whose quoted argument is data, not a path.
const CALLS_WITH_DATA: [&str; 7] = ["write", "pwrite64", "writev", "pwritev", "pwritev2", "fsetxattr", "io_submit"];
/// Calls that change what a descriptor stands for.
const CALLS_ON_DESCRIPTORS: [&str; 17] = [
    "write",
    "pwrite64",
    "writev",
    "pwritev",
    "pwritev2",
    "ftruncate",
    "fallocate",
    "fchmod",
    "fchown",
    "fsetxattr",
    "fremovexattr",
    "sendfile",
    "splice",
    "copy_file_range",
    "io_submit",
    "utimensat",
    "fchownat",
];

/// The path in `3</path>` or `AT_FDCWD</path>`.
fn descriptor_path(text: &str) -> Option<&str> {
    let begin = text.find("</")? + 1;
    let end = text.rfind('>')?;
    text.get(begin..end)
}

/// The arguments between the outermost parentheses, and what stands after them.
fn split_arguments(text: &str) -> (Vec<String>, &str) {
    let (mut arguments, mut current) = (Vec::new(), String::new());
    let (mut depth, mut quoted, mut escaped, mut angle) = (0, false, false, false);
    for (at, c) in text.char_indices() {
        if quoted {
            current.push(c);
            quoted = escaped || c != '"';
            escaped = c == '\\' && !escaped;
            continue;
        }
        match c {
            '"' => quoted = true,
            '<' => angle = true,
            '>' => angle = false,
            '(' | '[' | '{' if !angle => depth += 1,
            ')' if depth == 0 && !angle => {
                arguments.push(current.trim().to_owned());
                return (arguments, &text[at + 1..]);
            }
            ')' | ']' | '}' if !angle => depth -= 1,
            ',' if depth == 0 && !angle => {
                arguments.push(current.trim().to_owned());
                current.clear();
                continue;
            }
            _ => {}
        }
        current.push(c);
    }
    arguments.push(current.trim().to_owned());
    (arguments, "")
}

fn parse(trace: &str) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut unfinished: HashMap<u32, (u64, String)> = HashMap::new();
    for line in trace.lines() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let Ok(pid) = pid.parse() else { continue };
        let Some((address, text)) = rest.trim_start().strip_prefix('[').and_then(|rest| rest.split_once("] ")) else {
            continue;
        };
        let from = u64::from_str_radix(address.trim(), 16).unwrap_or(0);
        if let Some(begun) = text.strip_suffix(" <unfinished ...>") {
            unfinished.insert(pid, (from, begun.to_owned()));
            continue;
        }
        let (from, whole) = match text.strip_prefix("<... ").and_then(|text| text.split_once(" resumed>")) {
            Some((_, end)) => match unfinished.remove(&pid) {
                Some((from, begun)) => (from, format!("{begun}{end}")),
                None => continue,
            },
            None => (from, text.to_owned()),
        };
        let Some((name, arguments)) = whole.split_once('(') else { continue };
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            continue;
        }
        let (arguments, after) = split_arguments(arguments);
        let result = after.trim_start().strip_prefix("= ").unwrap_or_default().to_owned();
        calls.push(Call { pid, from, name: name.to_owned(), arguments, result });
    }
    calls
}

/// Which addresses are our library's, process by process.
#[derive(Default)]
struct Code {
    of: HashMap<u32, Vec<Range<u64>>>,
    parents: HashMap<u32, u32>,
}

impl Code {
    /// Children may be heard before the call that made them returns, so parents are looked up ahead.
    fn new(calls: &[Call]) -> Self {
        let children = calls.iter().filter(|call| ["clone", "clone3", "fork", "vfork"].contains(&call.name.as_str()));
        let pair = |call: &Call| Some((call.result.split([' ', '<']).next()?.parse().ok()?, call.pid));
        Self { of: HashMap::new(), parents: children.filter_map(pair).collect() }
    }

    fn follow(&mut self, call: &Call) {
        if !self.of.contains_key(&call.pid) {
            let inherited = self.parents.get(&call.pid).and_then(|parent| self.of.get(parent)).cloned();
            self.of.insert(call.pid, inherited.unwrap_or_default());
        }
        let ranges = self.of.entry(call.pid).or_default();
        if call.name.starts_with("exec") && call.succeeded() {
            ranges.clear();
        }
        let ours = call.arguments.iter().any(|text| text.contains("liblockstep_shim"));
        if call.name == "mmap" && ours && call.arguments.iter().any(|text| text.contains("PROT_EXEC")) {
            let start = call.result.strip_prefix("0x").and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
            let bytes = call.arguments.get(1).and_then(|text| text.parse::<u64>().ok());
            if let (Some(start), Some(bytes)) = (start, bytes) {
                ranges.push(start..start + bytes);
            }
        }
    }

    fn is_ours(&self, call: &Call) -> bool {
        self.of.get(&call.pid).is_some_and(|ranges| ranges.iter().any(|range| range.contains(&call.from)))
    }
}

/// Counts the calls that change something below `primary`, and lists those that did not come from our code.
fn audit(trace: &str, primary: &str) -> (u64, BTreeMap<String, u64>) {
    let calls = parse(trace);
    let mut code = Code::new(&calls);
    let (mut ours, mut others) = (0, BTreeMap::new());
    for call in &calls {
        code.follow(call);
        let changes = !MAPPING.split(',').any(|name| name == call.name) && !call.opens_to_read();
        if changes && call.succeeded() && call.is_below(primary) {
            if code.is_ours(call) {
                ours += 1;
            } else {
                let what = format!("{}({})", call.name, call.arguments.join(", "));
                *others.entry(what).or_default() += 1;
            }
        }
    }
    (ours, others)
}

/// Runs `scripts`, each in a directory of its own, under strace; returns the trace.
fn traced(sandbox: &Sandbox, scripts: &[(String, std::path::PathBuf)]) -> String {
    let driver = sandbox.path("home/driver.sh");
    let mut text = String::new();
    for (name, script) in scripts {
        text.push_str(&format!("mkdir {name}; (cd {name}; bash {} > /dev/null 2>&1)\n", script.display()));
    }
    fs::write(&driver, text + "true\n").expect("write");
    let out = sandbox.path("output/trace");
    let trace = format!("trace={CHANGING},{MAPPING}");
    let before = ["strace", "-f", "-i", "-y", "-s", "0", "-e", "signal=none", "-e", &trace, "-o"];
    let mut before: Vec<_> = before.iter().map(std::ffi::OsString::from).collect();
    before.push(out.clone().into());
    let job = Job::script(&driver)
        .with("SRC", shared("workloads/src").unwrap_or_default())
        .with("BIN", crate::workloads::shared_helpers().unwrap_or_default())
        .with("BELOW", "below");
    let outcome = sandbox.wrapped_below(&job, Some(&before));
    assert_eq!(outcome.status, 0, "{}", outcome.stderr);
    fs::read_to_string(&out).expect("strace has written its file")
}

fn scripts_in(folder: &Path, not: &[&str]) -> Vec<(String, std::path::PathBuf)> {
    let mut found: Vec<_> = fs::read_dir(folder)
        .expect("a readable folder")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sh"))
        .map(|path| (path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), path))
        .filter(|(name, _)| !not.contains(&name.as_str()))
        .collect();
    found.sort();
    found
}

fn check(scripts: &[(String, std::path::PathBuf)], calls_min: u64) {
    if !missing_programs("strace").is_empty() {
        return skip("the audit", "not installed: strace");
    }
    let sandbox = Sandbox::new(Place::everyday()).expect("the disk can be used");
    sandbox.start();
    let (trace, _) = sandbox.mirrored(|| traced(&sandbox, scripts));
    let (ours, others) = audit(&trace, sandbox.primary().to_str().expect("a plain path"));
    eprintln!("audit: {ours} file-changing calls came from our code, {} kinds of others", others.len());
    assert!(others.is_empty(), "calls past our code: {others:#?}");
    assert!(ours >= calls_min, "only {ours} file-changing calls were traced");
}

#[test]
fn every_call_of_our_scripts_comes_from_our_code() {
    let not: &[&str] = if is_root() { &["postgres"] } else { &["owners"] };
    check(&scripts_in(&binary::source("workloads"), not), 3000);
}

#[test]
fn every_call_of_the_shared_scripts_comes_from_our_code() {
    // Static programs make their own calls, and misc_c's one instruction is audited below. redis sleeps for long.
    let not = ["busybox", "gobin", "misc_c", "initdb", "redis"];
    let Some(folder) = shared("workloads") else { return };
    check(&scripts_in(&folder, &not), 3000);
}

#[test]
fn the_one_inline_system_call_is_the_only_other() {
    let Some(folder) = shared("workloads") else { return };
    if !missing_programs("strace").is_empty() {
        return skip("the audit", "not installed: strace");
    }
    let sandbox = Sandbox::new(Place::everyday()).expect("the disk can be used");
    sandbox.start();
    let trace = traced(&sandbox, &[("misc".to_owned(), folder.join("misc_c.sh"))]);
    let (ours, others) = audit(&trace, sandbox.primary().to_str().expect("a plain path"));
    assert_eq!(others.values().sum::<u64>(), 1, "{others:#?}");
    assert!(ours >= 35, "only {ours} file-changing calls were traced");
}

#[test]
fn the_audit_finds_calls_from_elsewhere() {
    let library = "3</cache/liblockstep_shim.so>";
    let trace = format!(
        "7 [00007f0000000010] mmap(NULL, 4096, PROT_READ|PROT_EXEC, MAP_PRIVATE, {library}, 0x1000) = 0x7f1000000000\n\
         7 [00007f1000000020] openat(AT_FDCWD</p/w>, \"a\", O_WRONLY|O_CREAT, 0644) = 4</p/w/a>\n\
         7 [00007f1000000020] write(4</p/w/a>, \"\"..., 3) = 3\n\
         8 [00007f1000000020] write(4</p/w/a>, \"\"..., 3 <unfinished ...>\n\
         7 [00007f0000000099] clone(child_stack=NULL, flags=SIGCHLD) = 8\n\
         8 [????????????????] <... write resumed>) = 3\n\
         7 [00007f0000000010] write(4</p/w/a>, \"\"..., 3) = 3\n\
         7 [00007f0000000010] write(5</dev/null>, \"\"..., 3) = 3\n\
         7 [00007f0000000010] unlink(\"relative, (odd) name\") = 0\n\
         7 [00007f0000000010] mkdirat(AT_FDCWD</p/w>, \"/elsewhere\", 0755) = 0\n\
         7 [00007f0000000010] mkdirat(AT_FDCWD</p/w>, \"d\", 0755) = 0\n\
         7 [00007f0000000010] mkdirat(AT_FDCWD</p/w>, \"e\", 0755) = -1 EEXIST (File exists)\n\
         8 [00007f0000000010] execve(\"/bin/x\", [...], 0x0 /* 0 vars */) = 0\n\
         8 [00007f1000000020] rename(\"/p/w/a\", \"/p/w/b\") = 0\n"
    );
    let (ours, others) = audit(&trace, "/p");
    assert_eq!(ours, 3);
    assert_eq!(others.values().sum::<u64>(), 4, "{others:#?}");
}
