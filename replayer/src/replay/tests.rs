//! A real ring, real directories, and a producer that does what the library does: change the primary, record it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use journal::claims::Owner;
use journal::locks::Operation;
use journal::record::{FileId, Header, Kind, pack_owner};
use serde_json::json;

use super::*;
use crate::client::Asked;
use crate::control::{Answer, Purpose, Question};
use crate::cursor;
use crate::ring_file::RING_BYTES_MIN;
use crate::set::{IDENTITY_DIR, MirrorSettings, SetError, Settings, StateDir};
use crate::status::{MirrorStatus, SetStatus};

/// A set with two mirrors in a temporary directory.
struct World {
    dir: tempfile::TempDir,
    set: Set,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let root = dir.path().canonicalize().expect("there");
        fs::create_dir(root.join("primary")).expect("made");
        let state = StateDir::open_or_make(Some(&root.join("state"))).expect("a state directory");
        let settings = Settings::new("test".into(), root.join("primary"), RING_BYTES_MIN);
        let mut world = Self { set: state.make_set(settings).expect("made"), dir };
        for name in ["one", "two"] {
            world.add_mirror(name);
        }
        world
    }

    fn root(&self) -> PathBuf {
        self.dir.path().canonicalize().expect("there")
    }

    fn primary(&self) -> PathBuf {
        self.root().join("primary")
    }

    fn mirror(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    fn add_mirror(&mut self, name: &str) {
        let path = self.mirror(name);
        fs::create_dir(&path).expect("made");
        let mirror = MirrorSettings::new(path.display().to_string(), path.clone(), &self.set.settings.mirrors);
        self.set.identity(&mirror).write(&path).expect("written");
        let added: Result<(), SetError> = self.set.change(|settings| {
            settings.mirrors.push(mirror);
            Ok(())
        });
        added.expect("stored");
    }

    fn start(&self) -> Replay {
        let lock = self.set.lock_replayer().expect("no trouble").expect("nobody else");
        let running = Running::start(self.set.clone(), lock).expect("it starts");
        Replay {
            set: self.set.clone(),
            thread: Some(std::thread::spawn(move || running.serve(Lifetime::UntilStopped))),
        }
    }

    fn producer(&self) -> Producer {
        let ring = RingFile::open_or_make(&self.set).expect("a ring");
        let me = ring.register().expect("a free slot");
        Producer { ring, me, primary: self.primary(), open: BTreeMap::new() }
    }

    fn remove_ring(&self) {
        let link = self.set.file("ring");
        if let Ok(ring) = fs::read_link(&link) {
            fs::remove_file(ring).expect("removed");
            fs::remove_file(link).expect("removed");
        }
    }

    /// Compares a mirror with the primary: names, types, contents, modes, times.
    fn assert_equal(&self, name: &str) {
        let (primary, mirror) = (listing(&self.primary()), listing(&self.mirror(name)));
        for (path, entry) in &primary {
            assert_eq!(Some(entry), mirror.get(path), "{name}: {path:?}");
        }
        let extra: Vec<_> = mirror.keys().filter(|path| !primary.contains_key(*path)).collect();
        assert!(extra.is_empty(), "{name} has {extra:?}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // It lies in shared memory, not in the temporary directory.
        self.remove_ring();
    }
}

/// A replayer in a thread of the test.
struct Replay {
    set: Set,
    thread: Option<JoinHandle<Exit>>,
}

impl Replay {
    fn ask(&self, question: &Question) -> Answer {
        let mut asked = Asked::new(&self.set, question).expect("it listens");
        asked.answer(&self.set, Some(Duration::from_secs(60))).expect("it answers")
    }

    fn wait(&self) -> Answer {
        let purpose = Purpose::Run;
        self.ask(&Question::Wait { mirror: None, seq: None, timeout_ms: Some(30_000), purpose })
    }

    fn wait_current(&self) {
        let answer = self.wait();
        assert!(answer.ok && answer.skipped.is_empty(), "{answer:?} {:?}", self.status());
    }

    fn status(&self) -> SetStatus {
        self.ask(&Question::Status).set.expect("a status")
    }

    fn mirror(&self, name: &str) -> MirrorStatus {
        self.status().mirrors.into_iter().find(|mirror| mirror.name == name).expect("it is in the set")
    }

    fn until(&self, name: &str, what: impl Fn(&MirrorStatus) -> bool) -> MirrorStatus {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let mirror = self.mirror(name);
            if what(&mirror) {
                return mirror;
            }
            assert!(Instant::now() < deadline, "{mirror:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn stop(mut self, now: bool) {
        assert!(self.ask(&Question::Stop { now }).ok);
        let thread = self.thread.take().expect("stopped once");
        assert_eq!(thread.join().expect("it doesn't panic"), Exit::Done);
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // The test has failed already; the threads must not outlive its directories.
            if let Ok(mut asked) = Asked::new(&self.set, &Question::Stop { now: true }) {
                let _ = asked.answer(&self.set, Some(Duration::from_secs(10)));
                let _ = thread.join();
            }
        }
    }
}

/// Does what a wrapped program and the library in it do.
struct Producer {
    ring: RingFile,
    me: Owner,
    primary: PathBuf,
    open: BTreeMap<String, fs::File>,
}

impl Producer {
    fn record(&self, header: Header, parts: &[&[u8]], act: impl FnOnce()) {
        let payload = parts.concat();
        self.ring.enter(self.me, Operation::Names);
        let claim = self.ring.claim(self.me, payload.len()).expect("a replayer lives or there is room");
        let pid_and_time = u64::from(std::process::id()) << 32;
        self.ring.write_header(&claim, &Header { pid_and_time, ..header });
        let (address, room) = self.ring.payload(&claim);
        assert!(room >= payload.len());
        #[allow(unsafe_code)]
        // SAFETY: the claim is ours and has room for the payload.
        unsafe {
            std::ptr::copy_nonoverlapping(payload.as_ptr(), address, payload.len());
        }
        assert!(self.ring.intend(&claim));
        act();
        assert!(self.ring.commit(&claim));
        self.ring.leave(self.me, Operation::Names);
    }

    /// The inode number of a new file is known only once it is made, so the file is made before its record here; the
    /// test's producer is alone.
    fn create(&mut self, path: &str) {
        let file = fs::File::options().write(true).create_new(true).open(self.primary.join(path)).expect("made");
        let data = file.metadata().expect("open");
        let id = FileId::new(data.dev(), data.ino());
        let header = Header {
            kind: Kind::Create as u8,
            path1_bytes: path.len() as u16,
            ino: id.ino,
            dev: id.dev,
            a: u64::from(data.mode()),
            b: pack_owner(data.uid(), data.gid()),
            ..Header::default()
        };
        self.record(header, &[path.as_bytes()], || {});
        self.open.insert(path.to_owned(), file);
    }

    fn write(&self, path: &str, offset: u64, data: &[u8]) {
        let file = &self.open[path];
        let meta = file.metadata().expect("open");
        let id = FileId::new(meta.dev(), meta.ino());
        let data_bytes = data.len() as u32;
        let header =
            Header { kind: Kind::Write as u8, ino: id.ino, dev: id.dev, data_bytes, a: offset, ..Header::default() };
        self.record(header, &[data], || file.write_all_at(data, offset).expect("written"));
    }

    fn rename(&mut self, old: &str, new: &str) {
        let data = fs::symlink_metadata(self.primary.join(old)).expect("there");
        let id = FileId::new(data.dev(), data.ino());
        let header = Header {
            kind: Kind::Rename as u8,
            path1_bytes: old.len() as u16,
            path2_bytes: new.len() as u16,
            ino: id.ino,
            dev: id.dev,
            b: u64::from(data.mode()),
            ..Header::default()
        };
        let (from, to) = (self.primary.join(old), self.primary.join(new));
        self.record(header, &[old.as_bytes(), new.as_bytes()], || fs::rename(from, to).expect("renamed"));
        if let Some(file) = self.open.remove(old) {
            self.open.insert(new.to_owned(), file);
        }
    }

    fn make_directory(&self, path: &str) {
        let full = self.primary.join(path);
        fs::create_dir(&full).expect("made");
        let data = full.metadata().expect("there");
        let header = Header {
            kind: Kind::MakeDirectory as u8,
            path1_bytes: path.len() as u16,
            a: u64::from(data.mode()),
            b: pack_owner(data.uid(), data.gid()),
            ..Header::default()
        };
        self.record(header, &[path.as_bytes()], || {});
    }

    fn unlink(&mut self, path: &str) {
        let data = fs::symlink_metadata(self.primary.join(path)).expect("there");
        let id = FileId::new(data.dev(), data.ino());
        let path1_bytes = path.len() as u16;
        let header = Header { kind: Kind::Unlink as u8, path1_bytes, ino: id.ino, dev: id.dev, ..Header::default() };
        let full = self.primary.join(path);
        self.record(header, &[path.as_bytes()], || fs::remove_file(full).expect("removed"));
        self.open.remove(path);
    }

    /// A bit of everything, the same for the same numbers.
    fn work(&mut self, numbers: std::ops::Range<u64>) {
        for number in numbers {
            let name = format!("f{}", number % 7);
            if !self.open.contains_key(&name) {
                self.create(&name);
            }
            let data = vec![number as u8; (number as usize * 977) % 5000 + 1];
            self.write(&name, (number * 131) % 20_000, &data);
            match number % 11 {
                3 => {
                    let other = format!("f{}", (number + 1) % 7);
                    self.rename(&name, &other);
                }
                7 => self.unlink(&name),
                _ => {}
            }
        }
    }
}

type Entry = (u32, u64, i64, i64, Vec<u8>);

fn listing(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut found = BTreeMap::new();
    let mut left = vec![root.to_path_buf()];
    while let Some(path) = left.pop() {
        let data = path.symlink_metadata().expect("there");
        let relative = path.strip_prefix(root).expect("below").to_path_buf();
        let content = if data.is_file() { fs::read(&path).expect("readable") } else { Vec::new() };
        if data.is_dir() {
            let entries = fs::read_dir(&path).expect("readable").map(|entry| entry.expect("readable").path());
            left.extend(entries.filter(|entry| *entry != root.join(IDENTITY_DIR)));
        }
        let size = if data.is_file() { data.size() } else { 0 };
        // The root's own times change with `.lockstep`, which the primary has not.
        let (mtime, nsec) = if relative.as_os_str().is_empty() { (0, 0) } else { (data.mtime(), data.mtime_nsec()) };
        found.insert(relative, (data.mode(), size, mtime, nsec, content));
    }
    found
}

#[test]
fn new_mirrors_are_filled_and_then_follow() {
    let world = World::new();
    fs::create_dir(world.primary().join("before")).expect("made");
    fs::write(world.primary().join("before/x"), b"was there").expect("written");
    let replay = world.start();
    replay.wait_current();
    for name in ["one", "two"] {
        world.assert_equal(name);
        assert!(replay.mirror(name).complete);
    }
    let mut producer = world.producer();
    producer.work(0..500);
    replay.wait_current();
    let status = replay.status();
    assert_eq!(status.coverage.repairs, 0);
    assert!(status.newest_seq > 500, "{status:?}");
    for name in ["one", "two"] {
        world.assert_equal(name);
        let mirror = replay.until(name, |mirror| mirror.state == MirrorState::Current);
        assert_eq!((mirror.applied_seq, mirror.lag_records, mirror.lag_bytes), (status.newest_seq, 0, 0));
        assert_eq!(mirror.last_error, None);
    }
    replay.stop(false);
}

#[test]
fn a_second_replayer_is_refused() {
    let world = World::new();
    let replay = world.start();
    let exit = main(world.set.clone(), Lifetime::UntilStopped).expect("an answer");
    assert_eq!(exit, Exit::Trouble);
    replay.stop(true);
}

#[test]
fn records_left_in_the_ring_are_applied_by_the_next_replayer() {
    let world = World::new();
    let replay = world.start();
    replay.wait_current();
    let mut producer = world.producer();
    producer.work(0..50);
    replay.stop(true);
    producer.work(50..100);
    let offline = crate::status::without_replayer(&world.set).expect("a status");
    assert_eq!(offline.replayer.pid, None);
    assert!(offline.ring.used_bytes > 0);
    let replay = world.start();
    replay.wait_current();
    for name in ["one", "two"] {
        world.assert_equal(name);
        assert_eq!(replay.mirror(name).last_error, None);
    }
    let newest = replay.status().newest_seq;
    replay.stop(false);
    // Ring lost after an orderly end: numbers go on, and nothing has to be compared.
    drop(producer);
    world.remove_ring();
    let replay = world.start();
    replay.wait_current();
    let status = replay.status();
    assert!(status.newest_seq >= newest, "{status:?}");
    let mut producer = world.producer();
    producer.create("after");
    replay.wait_current();
    assert!(replay.status().newest_seq > newest);
    world.assert_equal("two");
    replay.stop(false);
}

#[test]
fn a_mirror_added_while_a_program_writes_becomes_equal() {
    let mut world = World::new();
    let replay = world.start();
    replay.wait_current();
    let mut producer = world.producer();
    producer.make_directory("d");
    producer.create("d/open");
    producer.write("d/open", 0, b"first");
    producer.rename("d", "e");
    let open = producer.open.remove("d/open").expect("open");
    producer.open.insert("e/open".into(), open);
    world.add_mirror("three");
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            for number in 0..2000u64 {
                producer.write("e/open", number * 10, format!("{number:010}").as_bytes());
                producer.work(number..number + 1);
            }
            producer
        });
        assert!(replay.ask(&Question::Reload).ok);
        writer.join().expect("it doesn't panic")
    });
    replay.wait_current();
    for name in ["one", "two", "three"] {
        world.assert_equal(name);
    }
    replay.stop(false);
}

#[test]
fn a_paused_mirror_catches_up_when_it_is_resumed() {
    let world = World::new();
    let replay = world.start();
    replay.wait_current();
    let mut producer = world.producer();
    assert!(replay.ask(&Question::Pause { mirror: "two".into() }).ok);
    replay.until("two", |mirror| mirror.state == MirrorState::Paused);
    producer.work(0..20);
    let answer = replay.wait();
    assert!(answer.ok);
    assert_eq!(answer.skipped.iter().map(|skipped| &*skipped.mirror).collect::<Vec<_>>(), ["two"]);
    world.assert_equal("one");
    assert!(replay.mirror("two").lag_records > 0);
    let question = Question::Wait { mirror: None, seq: None, timeout_ms: None, purpose: Purpose::Wait };
    assert!(!replay.ask(&question).ok, "a paused mirror is a no at once");
    assert!(replay.ask(&Question::Resume { mirror: "two".into() }).ok);
    replay.wait_current();
    world.assert_equal("two");
    // Much more than the ring holds: the paused mirror loses its place and is rebuilt.
    assert!(replay.ask(&Question::Pause { mirror: "two".into() }).ok);
    replay.until("two", |mirror| mirror.state == MirrorState::Paused);
    producer.work(20..1500);
    assert!(replay.wait().ok);
    assert!(!replay.mirror("two").complete);
    assert!(replay.ask(&Question::Resume { mirror: "two".into() }).ok);
    replay.until("two", |mirror| mirror.state == MirrorState::Current && mirror.complete);
    replay.wait_current();
    world.assert_equal("one");
    world.assert_equal("two");
    replay.stop(false);
}

#[test]
fn a_mirror_that_is_moved_away_is_never_written_to_and_comes_back() {
    let world = World::new();
    let replay = world.start();
    replay.wait_current();
    let mut producer = world.producer();
    let (here, there) = (world.mirror("one"), world.root().join("elsewhere"));
    fs::rename(&here, &there).expect("moved");
    fs::create_dir(&here).expect("an empty mount point");
    let away = replay.until("one", |mirror| mirror.state == MirrorState::Away);
    assert!(away.last_error.is_some());
    producer.work(0..50);
    let answer = replay.wait();
    assert!(answer.ok, "{answer:?}");
    assert_eq!(answer.skipped.len(), 1);
    world.assert_equal("two");
    assert_eq!(fs::read_dir(&here).expect("readable").count(), 0, "written to");
    fs::remove_dir(&here).expect("still empty");
    fs::rename(&there, &here).expect("moved back");
    replay.until("one", |mirror| mirror.state == MirrorState::Current);
    replay.wait_current();
    world.assert_equal("one");
    replay.stop(false);
}

#[test]
fn another_mirror_in_its_place_is_left_alone() {
    let world = World::new();
    let replay = world.start();
    replay.wait_current();
    replay.stop(false);
    let (one, two) = (world.mirror("one"), world.mirror("two"));
    fs::rename(&one, world.root().join("x")).expect("moved");
    fs::rename(&two, &one).expect("moved");
    fs::rename(world.root().join("x"), &two).expect("moved");
    let replay = world.start();
    for name in ["one", "two"] {
        let mirror = replay.until(name, |mirror| mirror.state == MirrorState::Broken);
        assert!(mirror.last_error.expect("a reason").contains("another mirror"));
    }
    replay.stop(false);
}

#[test]
fn what_a_dead_program_may_have_written_is_read_again() {
    let world = World::new();
    let replay = world.start();
    replay.wait_current();
    let mut producer = world.producer();
    producer.create("f");
    producer.write("f", 0, b"recorded");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let me = producer.ring.register().expect("a free slot");
            let file = &producer.open["f"];
            let meta = file.metadata().expect("open");
            let id = FileId::new(meta.dev(), meta.ino());
            producer.ring.enter(me, Operation::Contents);
            let claim = producer.ring.claim(me, 4).expect("room");
            let header =
                Header { kind: Kind::Write as u8, ino: id.ino, dev: id.dev, data_bytes: 4, a: 2, ..Header::default() };
            producer.ring.write_header(&claim, &header);
            producer.ring.intend(&claim);
            file.write_all_at(b"dead", 2).expect("written");
            // The thread ends between the call and the commit.
        });
    });
    replay.wait_current();
    assert_eq!(replay.status().coverage.repairs, 1);
    assert_eq!(fs::read(world.mirror("one").join("f")).expect("there"), b"redeaded");
    world.assert_equal("one");
    world.assert_equal("two");
    replay.stop(false);
}

#[test]
fn freezing_holds_programs_and_brings_mirrors_level() {
    let world = World::new();
    let replay = world.start();
    replay.wait_current();
    let mut producer = world.producer();
    producer.create("f");
    let frozen = Asked::new(&world.set, &Question::Freeze { ms: 2000 });
    let mut frozen = frozen.expect("it listens");
    let answer = frozen.answer(&world.set, Some(Duration::from_secs(10))).expect("it answers");
    assert!(answer.ok, "{answer:?}");
    world.assert_equal("one");
    let (begun, ended) = crossbeam_channel::bounded(1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            producer.write("f", 0, b"x");
            begun.send(()).expect("the test waits");
        });
        assert!(ended.recv_timeout(Duration::from_millis(100)).is_err(), "kept out");
        drop(frozen);
        ended.recv_timeout(Duration::from_secs(5)).expect("let in again");
    });
    replay.wait_current();
    world.assert_equal("two");
    replay.stop(false);
}

#[test]
fn a_replayer_that_is_not_needed_ends_by_itself() {
    let world = World::new();
    let lock = world.set.lock_replayer().expect("no trouble").expect("nobody else");
    let running = Running::start(world.set.clone(), lock).expect("it starts");
    let ring = RingFile::open_or_make(&world.set).expect("a ring");
    let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep exists");
    ring.attach_process(child.id(), b"/bin/sleep", monotonic_ns());
    let thread = std::thread::spawn(move || running.serve(Lifetime::WhileNeeded));
    std::thread::sleep(Duration::from_millis(2500));
    assert!(!thread.is_finished(), "a wrapped process lives");
    child.kill().expect("ours");
    child.wait().expect("ours");
    assert_eq!(thread.join().expect("it doesn't panic"), Exit::Done);
    assert!(cursor::read(&world.set.file("progress.json")).expect("readable").at_rest);
    assert_eq!(ring.header().replayer_pid.load(Ordering::SeqCst), 0);
}

#[test]
fn what_an_unfollowed_program_wrote_is_found_when_it_has_ended() {
    use journal::processes::Reason;
    let world = World::new();
    let replay = world.start();
    replay.wait_current();
    let ring = RingFile::open_or_make(&world.set).expect("a ring");
    let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep exists");
    ring.announce_exec(child.id(), b"/bin/busybox", Reason::Static, monotonic_ns());
    fs::write(world.primary().join("unseen"), b"x").expect("written");
    replay.until("one", |mirror| !mirror.complete);
    let answer = replay.wait();
    assert!(answer.ok, "what lives on is not waited for: {answer:?}");
    assert!(!world.mirror("one").join("unseen").exists());
    child.kill().expect("ours");
    child.wait().expect("ours");
    replay.wait_current();
    for name in ["one", "two"] {
        world.assert_equal(name);
        assert!(replay.mirror(name).complete);
    }
    let coverage = replay.status().coverage;
    assert_eq!(coverage.not_followed.len(), 1);
    assert_eq!((&*coverage.not_followed[0].reason, coverage.not_followed[0].count), ("static", 1));
    replay.stop(false);
}

#[test]
fn questions_that_make_no_sense_are_answered_with_an_error() {
    let world = World::new();
    let replay = world.start();
    let answer = Asked::new(&world.set, &Question::Pause { mirror: "nobody".into() });
    assert!(answer.expect("it listens").answer(&world.set, Some(Duration::from_secs(5))).is_err());
    let question: Result<Question, _> = serde_json::from_value(json!({"do": "wait", "for": "run"}));
    let expected = Question::Wait { mirror: None, seq: None, timeout_ms: None, purpose: Purpose::Run };
    assert_eq!(question.expect("a question"), expected);
    replay.stop(true);
}
