//! A byte string that lives in the frame while it is short, and in a mapping of its own when it is not.
#![allow(unsafe_code)]

use crate::sys::{is_error, syscall};

const INLINE_BYTES: usize = 512;
/// Room for any path that a record can hold, and for the longest answer of readlink(2).
const MAPPED_BYTES: usize = 128 * 1024;

/// A growing byte string, always followed by a zero byte. No allocation; at most one system call, when it gets long.
///
/// A handler that jumps out of a frame with a long one leaks its mapping; nothing else.
pub struct Buffer {
    inline: [u8; INLINE_BYTES],
    mapped: *mut u8,
    length: usize,
}

impl Buffer {
    /// An empty one.
    pub const fn new() -> Self {
        Self { inline: [0; INLINE_BYTES], mapped: core::ptr::null_mut(), length: 0 }
    }

    /// One with these bytes, or `None` when they are too many.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let mut buffer = Self::new();
        buffer.push(bytes).then_some(buffer)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.room().get(..self.length).unwrap_or_default()
    }

    /// The bytes as a C string: they have a zero behind them.
    pub fn as_ptr(&self) -> *const libc::c_char {
        self.room().as_ptr().cast()
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Cuts it to `length` bytes, if it is longer.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
        let end = self.length;
        if let Some(byte) = self.room_mut().get_mut(end) {
            *byte = 0;
        }
    }

    /// Appends; false, and unchanged, when there is no room.
    #[must_use]
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        let end = self.length + bytes.len();
        if end >= self.room().len() && !self.grow(end) {
            return false;
        }
        let start = self.length;
        match self.room_mut().get_mut(start..end) {
            Some(place) => place.copy_from_slice(bytes),
            None => return false,
        }
        self.length = end;
        self.truncate(end);
        true
    }

    /// Puts `bytes` before what is there; false when there is no room.
    #[must_use]
    pub fn push_front(&mut self, bytes: &[u8]) -> bool {
        let before = self.length;
        if !self.push(bytes) {
            return false;
        }
        let length = self.length;
        if let Some(all) = self.room_mut().get_mut(..length) {
            all.copy_within(..before, bytes.len());
            if let Some(front) = all.get_mut(..bytes.len()) {
                front.copy_from_slice(bytes);
            }
        }
        true
    }

    /// Fills it by `read`, which gets room for at least 4,096 bytes and says how many it has written.
    pub fn fill<E>(&mut self, read: impl Fn(&mut [u8]) -> Result<usize, E>) -> Result<(), E> {
        // Most answers are short: the mapping is made only for those that fill the frame's room.
        let mut length = read(self.room_mut())?;
        if length >= self.room().len() && self.grow(length) {
            length = read(self.room_mut())?;
        }
        self.length = length;
        self.truncate(length.min(self.room().len() - 1));
        Ok(())
    }

    fn room(&self) -> &[u8] {
        if self.mapped.is_null() {
            &self.inline
        } else {
            // SAFETY: the mapping has this size and belongs to `self`.
            unsafe { core::slice::from_raw_parts(self.mapped, MAPPED_BYTES) }
        }
    }

    fn room_mut(&mut self) -> &mut [u8] {
        if self.mapped.is_null() {
            &mut self.inline
        } else {
            // SAFETY: as above.
            unsafe { core::slice::from_raw_parts_mut(self.mapped, MAPPED_BYTES) }
        }
    }

    #[cold]
    fn grow(&mut self, wanted: usize) -> bool {
        if !self.mapped.is_null() || wanted >= MAPPED_BYTES {
            return false;
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new private anonymous mapping.
        let mapped = unsafe {
            syscall!(libc::SYS_mmap, 0, MAPPED_BYTES, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1i32, 0)
        };
        if is_error(mapped) {
            return false;
        }
        self.mapped = mapped as *mut u8;
        let length = self.length;
        // SAFETY: both areas are at least `length` bytes long and apart.
        unsafe { core::ptr::copy_nonoverlapping(self.inline.as_ptr(), self.mapped, length) };
        true
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if !self.mapped.is_null() {
            // SAFETY: the mapping is ours and not used any more.
            unsafe { syscall!(libc::SYS_munmap, self.mapped, MAPPED_BYTES) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_strings_are_kept_whole() {
        let mut buffer = Buffer::new();
        let mut expected = Vec::new();
        for number in 0..3000 {
            let piece = format!("/{number}");
            assert!(buffer.push(piece.as_bytes()));
            expected.extend_from_slice(piece.as_bytes());
            assert_eq!(buffer.bytes(), expected);
        }
        // SAFETY: the buffer says that it ends in a zero.
        assert_eq!(unsafe { core::ffi::CStr::from_ptr(buffer.as_ptr()) }.to_bytes(), expected);
        assert!(buffer.push_front(b"front"));
        assert_eq!(buffer.bytes(), [b"front", expected.as_slice()].concat());
        assert!(!buffer.push(&vec![0; MAPPED_BYTES]), "there is an end");
        buffer.truncate(5);
        assert_eq!(buffer.bytes(), b"front");
    }

    #[test]
    fn an_answer_longer_than_the_frame_is_asked_for_again() {
        let answer = vec![b'x'; 4000];
        let mut buffer = Buffer::new();
        let read = |room: &mut [u8]| {
            let length = room.len().min(answer.len());
            room[..length].copy_from_slice(&answer[..length]);
            Ok::<_, ()>(length)
        };
        buffer.fill(read).expect("it can be read");
        assert_eq!(buffer.bytes(), answer);
    }
}
