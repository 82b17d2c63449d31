//! A buffer that direct I/O accepts: its first byte lies on a multiple of [`ALIGN`].

use std::fmt;

/// What the address of a buffer is a multiple of, in bytes. No device in use asks for more.
pub const ALIGN: usize = 4096;

/// Bytes whose address is a multiple of [`ALIGN`]. Its length may be set anywhere up to what it was made for, so one
/// buffer serves for blocks of many sizes.
pub struct AlignedBuf {
    // Never grows, so that `start` stays right: a vector that is moved keeps its place on the heap.
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// A buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> AlignedBuf {
        let bytes = vec![0; len + ALIGN];
        // `align_offset` is allowed to give up with usize::MAX, on no machine we run on. Then direct I/O refuses the address,
        // which is an error and not a fault.
        let start = bytes.as_ptr().align_offset(ALIGN).min(ALIGN);
        AlignedBuf { bytes, start, len }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The largest length that [`AlignedBuf::set_len`] takes.
    pub fn capacity(&self) -> usize {
        self.bytes.len() - ALIGN
    }

    /// Makes the buffer `len` bytes long. What comes to light is whatever was there before.
    ///
    /// # Panics
    ///
    /// If `len` is beyond [`AlignedBuf::capacity`].
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "a buffer does not grow");
        self.len = len;
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuf")
            .field("len", &self.len)
            .field("capacity", &self.capacity())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_is_aligned_also_after_a_move() {
        for len in [0, 1, 512, 4096, 1 << 20] {
            let buf = AlignedBuf::zeroed(len);
            let moved = Box::new(buf);
            assert_eq!(moved.as_slice().as_ptr().align_offset(ALIGN), 0);
            assert_eq!(moved.len(), len);
        }
    }
}
