//! Which pages of a mapping were stored to: asked of the kernel (userfaultfd with asynchronous write protection and
//! PAGEMAP_SCAN, Linux 6.7), without a thread, a handler or a descriptor that stays.
//!
//! The pages are write-protected; the kernel lifts that by itself at the first store, and a scan tells which pages
//! that were and protects them again. It does so for as long as somebody has the userfaultfd, so that is handed to
//! the replayer.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicBool, Ordering};

use journal::mappings::{ANNOUNCEMENT_BYTES, announcement};

use crate::buffer::Buffer;
use crate::state;
use crate::sys::{HERE, close, descriptor_path, is_error, syscall};

/// userfaultfd(2): faults of the kernel's own are not to be handled, which needs no privilege.
const USER_MODE_ONLY: i32 = 1;
const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_WRITEPROTECT: u64 = 0xc018_aa06;
const API: u64 = 0xaa;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const REGISTER_MODE_WP: u64 = 2;
const WRITEPROTECT_MODE_WP: u64 = 1;

const PAGEMAP_SCAN: u64 = 0xc060_6610;
const SCAN_WP_MATCHING: u64 = 1;
const SCAN_CHECK_WPASYNC: u64 = 2;
const PAGE_IS_WRITTEN: u64 = 2;
/// Runs of pages that one scan can tell.
const RUNS: usize = 64;

/// Ranges up to this size are scanned as they are. Beyond the end of the file there is nothing to find, but the
/// kernel would note every page of it.
const SCAN_BYTES_MAX: usize = 16 << 20;

/// The kernel doesn't have it, or the process may not use it.
static IMPOSSIBLE: AtomicBool = AtomicBool::new(false);

/// Bytes of a page.
pub fn page_bytes() -> usize {
    if cfg!(target_arch = "x86_64") {
        4096
    } else {
        // SAFETY: reads what the kernel has put on the stack of the process.
        unsafe { libc::getauxval(libc::AT_PAGESZ) as usize }
    }
}

/// False when it is known that the kernel won't tell.
pub fn is_possible() -> bool {
    !IMPOSSIBLE.load(Ordering::Relaxed)
}

/// Has the stores to a mapping tracked from now on, those to its first `armed` bytes exactly, and announces entry
/// `index` to the replayer. False when stores must be found by comparing.
pub fn track(index: u16, turn: u32, address: usize, bytes: usize, armed: usize) -> bool {
    let uffd = open_uffd().filter(|uffd| {
        let done = register(*uffd, address, bytes) && (armed == 0 || protect(*uffd, address, armed));
        if !done {
            close(*uffd);
        }
        done
    });
    let announced = announce(index, turn, uffd);
    if let Some(uffd) = uffd {
        close(uffd);
    }
    announced && uffd.is_some()
}

fn open_uffd() -> Option<i32> {
    if IMPOSSIBLE.load(Ordering::Relaxed) {
        return None;
    }
    // SAFETY: a descriptor of ours.
    let opened = unsafe { syscall!(libc::SYS_userfaultfd, libc::O_CLOEXEC | USER_MODE_ONLY) };
    if is_error(opened) {
        let passing = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EINTR].contains(&(-opened as i32));
        IMPOSSIBLE.store(!passing, Ordering::Relaxed);
        return None;
    }
    let uffd = opened as i32;
    let mut api = [API, FEATURE_WP_UNPOPULATED | FEATURE_WP_ASYNC, 0];
    // SAFETY: `struct uffdio_api`, three words.
    let agreed = unsafe { syscall!(libc::SYS_ioctl, uffd, UFFDIO_API, api.as_mut_ptr()) };
    if is_error(agreed) {
        IMPOSSIBLE.store(true, Ordering::Relaxed);
        close(uffd);
        return None;
    }
    Some(uffd)
}

fn register(uffd: i32, address: usize, bytes: usize) -> bool {
    let mut range = [address as u64, bytes as u64, REGISTER_MODE_WP, 0];
    // SAFETY: `struct uffdio_register`, four words; the kernel checks the range.
    !is_error(unsafe { syscall!(libc::SYS_ioctl, uffd, UFFDIO_REGISTER, range.as_mut_ptr()) })
}

fn protect(uffd: i32, address: usize, bytes: usize) -> bool {
    let mut range = [address as u64, bytes as u64, WRITEPROTECT_MODE_WP];
    // SAFETY: `struct uffdio_writeprotect`, three words. Stores go on: the kernel lifts the protection by itself.
    !is_error(unsafe { syscall!(libc::SYS_ioctl, uffd, UFFDIO_WRITEPROTECT, range.as_mut_ptr()) })
}

/// Tells the replayer of an entry, and hands it the userfaultfd. Never waits.
pub fn announce(index: u16, turn: u32, uffd: Option<i32>) -> bool {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: a descriptor of ours.
    let opened = unsafe { syscall!(libc::SYS_socket, libc::AF_UNIX, kind, 0) };
    if is_error(opened) {
        return false;
    }
    let socket = opened as i32;
    let sent = connect(socket) && send(socket, &announcement(index, turn), uffd);
    close(socket);
    sent
}

/// Connects to the socket `mappings` in the set's directory.
fn connect(socket: i32) -> bool {
    let mut path = Buffer::new();
    let set = state::SET.get().to_bytes();
    let named = if set.contains(&b'/') {
        path.push(set)
    } else {
        path.push(state::STATE_DIR.get().to_bytes()) && path.push(b"/sets/") && path.push(set)
    };
    if !named {
        return false;
    }
    // SAFETY: zero is a valid address of this family: one without a name.
    let mut address: libc::sockaddr_un = unsafe { core::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as u16;
    let name = b"/mappings";
    if path.bytes().len() + name.len() < address.sun_path.len() {
        return path.push(name) && connect_to(socket, &mut address, path.bytes());
    }
    // Too long a path for a socket's address: through a descriptor of the directory.
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: a zero-terminated path of ours.
    let opened = unsafe { syscall!(libc::SYS_openat, HERE, path.as_ptr(), flags, 0) };
    if is_error(opened) {
        return false;
    }
    let directory = descriptor_path(opened as i32);
    let end = directory.iter().position(|byte| *byte == 0).unwrap_or(directory.len());
    let mut path = Buffer::new();
    let connected = path.push(&directory[..end]) && path.push(name) && connect_to(socket, &mut address, path.bytes());
    close(opened as i32);
    connected
}

fn connect_to(socket: i32, address: &mut libc::sockaddr_un, path: &[u8]) -> bool {
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = *from as libc::c_char;
    }
    // SAFETY: an address that lives in the caller's frame, zero-terminated since the path is shorter than its room.
    let result = unsafe { syscall!(libc::SYS_connect, socket, &raw const *address, size_of::<libc::sockaddr_un>()) };
    !is_error(result)
}

/// One control message with one descriptor, as sendmsg(2) takes it.
#[repr(C)]
struct Passed {
    header: libc::cmsghdr,
    fd: i32,
    padding: i32,
}

fn send(socket: i32, bytes: &[u8; ANNOUNCEMENT_BYTES], fd: Option<i32>) -> bool {
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: integers, for which zero is valid.
    let mut passed: Passed = unsafe { core::mem::zeroed() };
    passed.header.cmsg_len = (size_of::<libc::cmsghdr>() + size_of::<i32>()) as _;
    passed.header.cmsg_level = libc::SOL_SOCKET;
    passed.header.cmsg_type = libc::SCM_RIGHTS;
    passed.fd = fd.unwrap_or(-1);
    // SAFETY: integers and pointers, for which zero is valid.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if fd.is_some() {
        message.msg_control = (&raw mut passed).cast();
        message.msg_controllen = size_of::<Passed>() as _;
    }
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the message and all that it points to lives in this frame.
    let sent = unsafe { syscall!(libc::SYS_sendmsg, socket, &raw const message, flags) };
    sent == bytes.len() as isize
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// Tells the runs of pages between two addresses that were stored to since they were last told; each is protected
/// again before `run` sees it. False when the kernel can't tell: then anything may have been missed.
pub fn scan(start: usize, end: usize, mut run: impl FnMut(usize, usize)) -> bool {
    // SAFETY: a zero-terminated path.
    let opened = unsafe {
        syscall!(libc::SYS_openat, HERE, c"/proc/self/pagemap".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC, 0)
    };
    if is_error(opened) {
        return false;
    }
    let done = scan_by(opened as i32, start as u64, end as u64, &mut run);
    close(opened as i32);
    done
}

fn scan_by(pagemap: i32, start: u64, end: u64, run: &mut dyn FnMut(usize, usize)) -> bool {
    const WALK_END: usize = 4;
    let mut regions = [Region { start: 0, end: 0, categories: 0 }; RUNS];
    let mut at = start;
    while at < end {
        // `struct pm_scan_arg`: size, flags, start, end, walk_end, vec, vec_len, max_pages, and four masks.
        let mut ask = [
            96,
            SCAN_WP_MATCHING | SCAN_CHECK_WPASYNC,
            at,
            end,
            0,
            regions.as_mut_ptr() as u64,
            RUNS as u64,
            0,
            0,
            PAGE_IS_WRITTEN,
            0,
            PAGE_IS_WRITTEN,
        ];
        // SAFETY: the structure and the array live in this frame.
        let told = unsafe { syscall!(libc::SYS_ioctl, pagemap, PAGEMAP_SCAN, ask.as_mut_ptr()) };
        if is_error(told) {
            return false;
        }
        for region in regions.iter().take(told as usize) {
            run(region.start as usize, region.end as usize);
        }
        if ask[WALK_END] <= at {
            return false;
        }
        at = ask[WALK_END];
    }
    true
}

/// How many of the first `bytes` bytes at `address` lie before the end of the mapped file, in whole pages; exact only
/// for large ranges, where it matters.
pub fn reach(address: usize, bytes: usize) -> usize {
    if bytes <= SCAN_BYTES_MAX {
        return bytes;
    }
    let page = page_bytes();
    let is_there = |number: usize| {
        let mut byte = 0u8;
        read_own(address + number * page, &raw mut byte, 1) == 1
    };
    if !is_there(0) {
        // Not to be read at all, so this is no way to find the end.
        return bytes;
    }
    // Pages below `there` can be read, those from `gone` on can't.
    let (mut there, mut gone) = (0, bytes.div_ceil(page));
    while there < gone {
        let middle = there + (gone - there) / 2;
        if is_there(middle) { there = middle + 1 } else { gone = middle }
    }
    (there * page).min(bytes)
}

/// Copies memory of this process as far as it can be read, without a fault: the bytes copied, or the kernel's error.
pub fn read_own(address: usize, to: *mut u8, bytes: usize) -> isize {
    let into = libc::iovec { iov_base: to.cast(), iov_len: bytes };
    let from = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: bytes };
    let me = journal::sys::process_id();
    // SAFETY: the caller has `bytes` writable bytes at `to`; the kernel checks the other side.
    unsafe { syscall!(libc::SYS_process_vm_readv, me, &raw const into, 1, &raw const from, 1, 0) }
}
