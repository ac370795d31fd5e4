//! Stores through shared mappings, and asynchronous writes: what changes the primary without a call that could be
//! recorded. A thread of its own records once a second, on demand, and when a process has ended.
//!
//! Where the kernel tracks stores, the program hands over the userfaultfd by which it does; it is kept here for as long
//! as the mapping lasts. Elsewhere contents are compared. While nothing is mapped, the thread sleeps.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use journal::Ring;
use journal::claims::Owner;
use journal::locks::{Operation, StripeIndex};
use journal::mappings::{ANNOUNCEMENT_BYTES, MappingState, MappingView, MarkView, announced};
use journal::record::{DATA_BYTES_MAX, FileId, Header, Kind};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg, sockopt::socket_peercred};

use crate::pagemap::{self, Area};
use crate::replay::Replayer;
use crate::set::SocketAddress;

/// How often is looked while anything is mapped.
const EVERY: Duration = Duration::from_secs(1);
/// How long a program may take to say what it has connected for.
const ANNOUNCEMENT_MAX: Duration = Duration::from_secs(1);
/// How long [`Mappings::flush`] waits.
const FLUSH_MAX: Duration = Duration::from_secs(10);
/// Pages that are asked for under one hold of a file's lock.
const PAGES_AT_ONCE: u64 = 1024;
/// Ranges that can't be tracked are compared each second up to this size; of larger ones as much a second.
const COMPARED_BYTES: u64 = 64 << 20;
/// Larger ranges are read again by the mirrors instead.
const HASHED_BYTES_MAX: u64 = 64 << 30;
/// A range that is compared for the first time is recorded with what it holds up to this size.
const NEW_BYTES_MAX: u64 = 16 << 20;
/// Larger ranges whose end in the file isn't known are not scanned: the kernel would note every page of them.
const SCANNED_BYTES_MAX: u64 = 1 << 30;

/// What the thread is told.
pub enum Command {
    /// Look now, at everything.
    Flush {
        /// Told when all that had changed by then is recorded.
        done: Sender<()>,
    },
    /// There may be something to look at.
    Look,
    /// A program has made a mapping.
    Announced(Announcement),
    /// End.
    Stop,
}

/// What a program has said about an entry of the table of mappings.
#[derive(Debug)]
pub struct Announcement {
    index: u16,
    turn: u32,
    /// Its number as this process sees it.
    pid: u32,
    /// Keeps the kernel tracking.
    _uffd: Option<OwnedFd>,
}

/// How other threads talk to the one that looks.
#[derive(Clone, Debug)]
pub struct Mappings {
    commands: Sender<Command>,
    is_idle: Arc<AtomicBool>,
}

impl Mappings {
    /// The two ends: the second is for [`Server::start`].
    pub fn new() -> (Self, Receiver<Command>) {
        let (commands, received) = crossbeam_channel::unbounded();
        (Self { commands, is_idle: Arc::new(AtomicBool::new(true)) }, received)
    }

    /// Has everything recorded that was stored through mappings until now. Not for a thread that keeps the ring frozen.
    pub fn flush(&self, ring: &Ring) {
        if ring.has_mappings_or_marks() {
            let (done, is_done) = crossbeam_channel::bounded(1);
            if self.commands.send(Command::Flush { done }).is_ok() && is_done.recv_timeout(FLUSH_MAX).is_err() {
                log::warn!("stores through mappings could not be recorded within {} s", FLUSH_MAX.as_secs());
            }
        }
    }

    /// Wakes the thread for mappings that were made without an announcement. Cheap; called once a second.
    pub fn wake(&self, ring: &Ring) {
        if self.is_idle.load(Ordering::SeqCst) && ring.has_mappings_or_marks() {
            let _ = self.commands.send(Command::Look);
        }
    }
}

/// The socket on which programs announce mappings, and the thread that looks at them.
pub struct Server {
    address: SocketAddress,
    is_closed: Arc<AtomicBool>,
    commands: Sender<Command>,
}

impl Server {
    /// Listens and looks, from two threads of its own.
    ///
    /// # Errors
    /// What kept the socket from being made.
    pub fn start(replayer: &Arc<Replayer>, commands: Receiver<Command>) -> anyhow::Result<Self> {
        let address = SocketAddress::new(replayer.set().dir(), "mappings")?;
        let listener = address.listen()?;
        let is_closed = Arc::new(AtomicBool::new(false));
        let teller = replayer.mappings.commands.clone();
        let (closed, thread) = (Arc::clone(&is_closed), std::thread::Builder::new().name("announced".into()));
        thread.spawn(move || listen(&listener, &teller, &closed)).context("cannot start a thread")?;
        let (shared, thread) = (Arc::clone(replayer), std::thread::Builder::new().name("mappings".into()));
        thread.spawn(move || Looker::run(&shared, &commands)).context("cannot start a thread")?;
        Ok(Self { address, is_closed, commands: replayer.mappings.commands.clone() })
    }

    /// Takes no more announcements and looks no more.
    pub fn close(self) {
        self.is_closed.store(true, Ordering::SeqCst);
        // The listener is blocked in accept: this connection lets it see that it is closed.
        let _ = UnixStream::connect(self.address.path());
        let _ = std::fs::remove_file(self.address.path());
        let _ = self.commands.send(Command::Stop);
    }
}

fn listen(listener: &UnixListener, commands: &Sender<Command>, is_closed: &AtomicBool) {
    for stream in listener.incoming() {
        if is_closed.load(Ordering::SeqCst) {
            return;
        }
        match stream.and_then(|stream| receive(&stream)) {
            Ok(Some(announcement)) => {
                if commands.send(Command::Announced(announcement)).is_err() {
                    return;
                }
            }
            Ok(None) => log::debug!("something that is no announcement came over the socket for mappings"),
            Err(error) => {
                log::debug!("an announcement of a mapping was lost: {error}");
                // Out of descriptors, say: others will be given back.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

fn receive(stream: &UnixStream) -> io::Result<Option<Announcement>> {
    stream.set_read_timeout(Some(ANNOUNCEMENT_MAX))?;
    let mut bytes = [0; ANNOUNCEMENT_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut passed = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut passed, RecvFlags::CMSG_CLOEXEC)?;
    let uffd = passed.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    if received.bytes != ANNOUNCEMENT_BYTES {
        return Ok(None);
    }
    let pid = socket_peercred(stream)?.pid.as_raw_nonzero().get() as u32;
    Ok(announced(bytes).map(|(index, turn)| Announcement { index, turn, pid, _uffd: uffd }))
}

/// A process, as far as it can be seen.
enum Seen {
    /// Its shared mappings, and which of their pages were stored to if that may be asked.
    Areas(Vec<Area>, Option<File>),
    /// It is there and can't be looked into.
    Hidden,
    /// It has ended, or is about to.
    Gone,
}

impl Seen {
    fn of(pid: u32) -> Self {
        match pagemap::shared_areas(pid) {
            Ok(areas) => Self::Areas(areas, File::open(format!("/proc/{pid}/pagemap")).ok()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Self::Hidden,
            Err(_) => Self::Gone,
        }
    }
}

/// What a range held when it was compared last, a hash a block.
struct Compared {
    turn: u32,
    due: Instant,
    blocks: Vec<Option<u64>>,
}

/// The thread that looks.
struct Looker<'a> {
    ring: &'a Ring,
    me: Owner,
    announced: HashMap<u16, Announcement>,
    compared: HashMap<u16, Compared>,
    /// Asynchronous writes that were in flight at the last look.
    in_flight: HashSet<(u16, u32)>,
    buffer: Vec<u8>,
}

impl Looker<'_> {
    fn run(replayer: &Replayer, commands: &Receiver<Command>) {
        let ring: &Ring = &replayer.backlog.ring;
        let Some(me) = ring.register() else {
            log::error!("stores through mappings are not recorded: every slot of the ring is taken");
            return;
        };
        let mut looker = Looker {
            ring,
            me,
            announced: HashMap::new(),
            compared: HashMap::new(),
            in_flight: HashSet::new(),
            buffer: vec![0; DATA_BYTES_MAX],
        };
        let is_idle = &replayer.mappings.is_idle;
        // What programs have mapped while no replayer lived.
        looker.look(false);
        let mut next = Instant::now() + EVERY;
        loop {
            let idle = !ring.has_mappings_or_marks();
            is_idle.store(idle, Ordering::SeqCst);
            // A mapping may have been entered before the word was set; who has entered it announces it later.
            let command = if idle {
                commands.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                commands.recv_deadline(next)
            };
            is_idle.store(false, Ordering::SeqCst);
            match command {
                Ok(Command::Announced(announcement)) => {
                    if idle {
                        next = Instant::now() + EVERY;
                    }
                    looker.announced.insert(announcement.index, announcement);
                }
                Ok(Command::Flush { done }) => {
                    looker.look(true);
                    // Who asked may have given up.
                    let _ = done.send(());
                }
                Ok(Command::Look) => {}
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    looker.look(false);
                    next = Instant::now() + EVERY;
                }
            }
        }
    }

    /// Records what has changed. `all`: also what was looked at a moment ago, and writes that have only begun.
    fn look(&mut self, all: bool) {
        let mut processes: HashMap<u32, Seen> = HashMap::new();
        let views: Vec<_> = self.ring.mapping_views().collect();
        self.announced.retain(|index, known| {
            let same = |view: &&MappingView| view.index == *index && view.turn == known.turn;
            views.iter().any(|view| same(&view))
        });
        for view in &views {
            let pid = self.announced.get(&view.index).map_or(view.pid, |known| known.pid);
            self.look_at(view, processes.entry(pid).or_insert_with(|| Seen::of(pid)), all);
        }
        let marks: Vec<_> = self.ring.mark_views().collect();
        for mark in &marks {
            self.look_at_mark(mark, processes.entry(mark.pid).or_insert_with(|| Seen::of(mark.pid)), all);
        }
        self.in_flight = marks.iter().map(|mark| (mark.index, mark.turn)).collect();
    }

    fn look_at(&mut self, view: &MappingView, process: &Seen, all: bool) {
        let range = view.range;
        let overlaps = |area: &&Area| area.start < range.address + range.bytes && range.address < area.end;
        let area = match process {
            Seen::Areas(areas, _) => areas.iter().find(overlaps),
            Seen::Hidden | Seen::Gone => None,
        };
        let is_gone = match (process, view.state) {
            (Seen::Gone, _) => true,
            (Seen::Hidden, _) => false,
            // Its address isn't known yet; only a process without any memory has given it up.
            (Seen::Areas(areas, _), MappingState::Preparing) => areas.is_empty() && !has_memory(view.pid),
            (Seen::Areas(..), _) => area.is_none(),
        };
        // A process in a namespace of its own numbers itself otherwise: the one that was looked at may be another.
        let is_gone = is_gone && (self.announced.contains_key(&view.index) || !self.ring.has_live_thread(view.pid));
        if is_gone {
            return self.bury(view);
        }
        if matches!(view.state, MappingState::Preparing | MappingState::Readable) {
            return;
        }
        let file = area.and_then(|area| open(&area.path, range.file));
        let size = file.as_ref().and_then(|file| file.metadata().ok()).map(|data| data.len());
        // Beyond the end of the file there is nothing to find.
        let bytes = size.map_or(range.bytes, |size| {
            range.bytes.min(size.saturating_sub(range.offset).saturating_add(4095) & !4095)
        });
        if let (MappingState::Tracked, Seen::Areas(_, Some(pagemap))) = (view.state, process)
            && (file.is_some() || bytes <= SCANNED_BYTES_MAX)
            && self.record_written(view, pagemap, file.as_ref(), bytes)
        {
            self.compared.remove(&view.index);
            return;
        }
        self.compare(view, file.as_ref(), bytes, all);
    }

    /// The process has ended, or runs another program: what it has stored last was not told.
    fn bury(&mut self, view: &MappingView) {
        let range = view.range;
        self.under_lock(range.file, |this| {
            if this.ring.mapping(view.index).is_some_and(|now| now.turn == view.turn) {
                if range.file != FileId::NONE && view.state != MappingState::Readable {
                    this.reread(range.file, range.offset, range.bytes, range.flags);
                }
                this.ring.release_mapping(view.index, view.turn);
            }
        });
        self.announced.remove(&view.index);
        self.compared.remove(&view.index);
    }

    /// Records the pages that the kernel says were stored to; false if it doesn't say.
    fn record_written(&mut self, view: &MappingView, pagemap: &File, file: Option<&File>, bytes: u64) -> bool {
        let range = view.range;
        let (mut at, end) = (range.address, range.address + bytes);
        while at < end {
            let told = self.under_lock(range.file, |this| {
                if this.ring.mapping(view.index) != Some(*view) {
                    // Unmapped, or in parts: whoever did that has recorded it.
                    return Ok(None);
                }
                let written = pagemap::written(pagemap, at, end, PAGES_AT_ONCE)?;
                for (from, to) in written.runs {
                    let offset = range.offset + (from - range.address);
                    this.record(range.file, range.flags, file, offset, to - from);
                }
                Ok::<_, io::Error>(Some(written.end))
            });
            match told {
                Ok(Some(next)) if next > at => at = next,
                Ok(None) => return true,
                Ok(Some(_)) | Err(_) => return false,
            }
        }
        true
    }

    /// Records what a range of a file holds.
    fn record(&mut self, file: FileId, flags: u8, opened: Option<&File>, offset: u64, bytes: u64) {
        let Some(opened) = opened else { return self.reread(file, offset, bytes, flags) };
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut at = offset;
        while at < offset + bytes {
            let wanted = ((offset + bytes - at) as usize).min(DATA_BYTES_MAX);
            match crate::content::read_at(opened, &mut buffer[..wanted], at) {
                Ok(0) => break,
                Ok(read) => {
                    let header =
                        Header { b: read as u64, data_bytes: read as u32, ..self.header(Kind::Write, file, at, flags) };
                    self.ring.append(self.me, &header, &buffer[..read]);
                    at += read as u64;
                }
                Err(_) => {
                    self.reread(file, at, offset + bytes - at, flags);
                    break;
                }
            }
        }
        self.buffer = buffer;
    }

    fn reread(&self, file: FileId, offset: u64, bytes: u64, flags: u8) {
        let header = Header { b: bytes, ..self.header(Kind::Reread, file, offset, flags) };
        self.ring.append(self.me, &header, b"");
    }

    fn header(&self, kind: Kind, file: FileId, offset: u64, flags: u8) -> Header {
        let pid_and_time = u64::from(std::process::id()) << 32;
        Header { kind: kind as u8, flags, dev: file.dev, ino: file.ino, a: offset, pid_and_time, ..Header::default() }
    }

    /// Records the blocks of a range that hold something else than at the last look.
    fn compare(&mut self, view: &MappingView, file: Option<&File>, bytes: u64, all: bool) {
        let (range, now) = (view.range, Instant::now());
        let known = self.compared.remove(&view.index).filter(|known| known.turn == view.turn);
        let mut known = known.unwrap_or(Compared { turn: view.turn, due: now, blocks: Vec::new() });
        if known.due <= now || all {
            known.due = now + EVERY.mul_f64((bytes as f64 / COMPARED_BYTES as f64).max(0.9));
            match file {
                Some(file) if bytes <= HASHED_BYTES_MAX => self.compare_blocks(view, file, bytes, &mut known.blocks),
                Some(_) | None => {
                    self.under_lock(range.file, |this| this.reread(range.file, range.offset, bytes, range.flags))
                }
            }
        }
        self.compared.insert(view.index, known);
    }

    fn compare_blocks(&mut self, view: &MappingView, file: &File, bytes: u64, blocks: &mut Vec<Option<u64>>) {
        let range = view.range;
        let block = DATA_BYTES_MAX as u64;
        let count = bytes.div_ceil(block) as usize;
        // Much of it at once is better read again by the mirrors, which write only what differs.
        let is_all_new = blocks.is_empty() && bytes > NEW_BYTES_MAX;
        // What is new has no hash: what it held when it was mapped is in the mirrors, or on its way, but stores may
        // have been made since.
        blocks.resize(count, None);
        for (number, known) in blocks.iter_mut().enumerate() {
            let begin = number as u64 * block;
            let length = block.min(bytes - begin);
            let live = self.under_lock(range.file, |this| {
                if this.ring.mapping(view.index) != Some(*view) {
                    return false;
                }
                let offset = range.offset + begin;
                let mut buffer = std::mem::take(&mut this.buffer);
                match crate::content::read_at(file, &mut buffer[..length as usize], offset) {
                    Ok(read) => {
                        let mut hasher = DefaultHasher::new();
                        hasher.write(&buffer[..read]);
                        let hash = Some(hasher.finish());
                        if *known != hash && read > 0 && !is_all_new {
                            let header = this.header(Kind::Write, range.file, offset, range.flags);
                            let header = Header { b: read as u64, data_bytes: read as u32, ..header };
                            this.ring.append(this.me, &header, &buffer[..read]);
                        }
                        *known = hash;
                    }
                    Err(_) => this.reread(range.file, offset, length, range.flags),
                }
                this.buffer = buffer;
                true
            });
            if !live {
                return;
            }
        }
        if is_all_new {
            self.under_lock(range.file, |this| this.reread(range.file, range.offset, bytes, range.flags));
        }
    }

    fn look_at_mark(&mut self, mark: &MarkView, process: &Seen, all: bool) {
        let write = mark.write;
        let is_gone = match process {
            Seen::Gone => true,
            Seen::Hidden => false,
            Seen::Areas(areas, _) => !areas.iter().any(|area| area.is_aio() && area.start == write.context),
        };
        let is_gone = is_gone && !self.ring.has_live_thread(mark.pid);
        let is_old = all || self.in_flight.contains(&(mark.index, mark.turn));
        if !is_gone && !is_old {
            return;
        }
        self.under_lock(write.file, |this| {
            if this.ring.mark(mark.index) == Some(*mark) {
                if write.file != FileId::NONE {
                    this.reread(write.file, write.offset, write.bytes, write.flags);
                }
                if is_gone {
                    this.ring.release_mark(mark.index, mark.turn);
                }
            }
        });
    }

    /// Runs `work` as an operation on the contents of `file`, under its lock.
    fn under_lock<R>(&mut self, file: FileId, work: impl FnOnce(&mut Self) -> R) -> R {
        let stripe = StripeIndex::of_file(file);
        self.ring.enter(self.me, Operation::Contents);
        self.ring.lock(stripe, self.me);
        let result = work(self);
        self.ring.unlock(stripe);
        self.ring.leave(self.me, Operation::Contents);
        result
    }
}

/// Opens a file of the primary to read it, if the name still leads to it.
fn open(path: &Path, file: FileId) -> Option<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    let data = opened.metadata().ok()?;
    (FileId::new(data.dev(), data.ino()) == file).then_some(opened)
}

/// True while a process has memory of its own: not when it is a zombie.
fn has_memory(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/maps")).is_ok_and(|text| !text.is_empty())
}
