//! The bytes of a simulated device, shared until they are changed: a million crash states differ from each other in a few sectors.

use std::{fmt, sync::Arc};

use super::Landed;

/// The unit in which a write lands or is lost, in bytes.
pub(super) const SECTOR_LEN: usize = 512;
const PAGE_LEN: usize = 4096;

type Page = [u8; PAGE_LEN];

/// All bytes of a device. A clone costs a counter per page of 4096 bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    pages: Vec<Arc<Page>>,
}

impl Image {
    /// # Panics
    ///
    /// If `bytes` is no multiple of 4096 or does not fit in memory.
    pub fn zeroed(bytes: u64) -> Image {
        assert!(
            bytes.is_multiple_of(PAGE_LEN as u64),
            "simulated devices consist of whole pages"
        );
        let count = index(bytes) / PAGE_LEN;
        Image {
            // One page of zeros for all: it is copied when one is written.
            pages: std::iter::repeat_n(Arc::new([0; PAGE_LEN]), count).collect(),
        }
    }

    /// The size in bytes.
    pub fn bytes(&self) -> u64 {
        (self.pages.len() * PAGE_LEN) as u64
    }

    /// The same bytes on a smaller or larger device; what is new is zero.
    #[must_use]
    pub fn resized(&self, bytes: u64) -> Image {
        let mut image = Image::zeroed(bytes);
        for (new, old) in image.pages.iter_mut().zip(&self.pages) {
            *new = Arc::clone(old);
        }
        image
    }

    /// Fills `buf` from `offset`; beyond the end there is nothing but zeros.
    pub fn read(&self, offset: u64, buf: &mut [u8]) {
        let mut at = index(offset);
        let mut rest = buf;
        while !rest.is_empty() {
            let within = at % PAGE_LEN;
            let len = rest.len().min(PAGE_LEN - within);
            let (now, later) = rest.split_at_mut(len);
            match self.pages.get(at / PAGE_LEN) {
                Some(page) => now.copy_from_slice(&page[within..within + len]),
                None => now.fill(0),
            }
            at += len;
            rest = later;
        }
    }

    /// The bytes `[offset, offset + len)`.
    pub fn to_vec(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(offset, &mut bytes);
        bytes
    }

    /// Writes those sectors of `bytes` that `landed` names. What lies beyond the end of the device is dropped.
    pub fn write(&mut self, offset: u64, bytes: &[u8], landed: Landed) {
        let count = bytes.len().div_ceil(SECTOR_LEN);
        for (sector, part) in bytes.chunks(SECTOR_LEN).enumerate() {
            if landed.contains(sector, count) {
                self.write_within_page(index(offset) + sector * SECTOR_LEN, part);
            }
        }
    }

    fn write_within_page(&mut self, at: usize, part: &[u8]) {
        let within = at % PAGE_LEN;
        if let Some(page) = self.pages.get_mut(at / PAGE_LEN)
            && page[within..within + part.len()] != *part
        {
            Arc::make_mut(page)[within..within + part.len()].copy_from_slice(part);
        }
    }

    /// Flips one bit of the byte at `offset`.
    pub fn flip(&mut self, offset: u64, bit: u32) {
        let at = index(offset);
        if let Some(page) = self.pages.get_mut(at / PAGE_LEN) {
            Arc::make_mut(page)[at % PAGE_LEN] ^= 1 << (bit % 8);
        }
    }

    /// Whether some byte of the page at `offset` differs from `other`'s.
    pub fn page_differs(&self, other: &Image, offset: u64) -> bool {
        let page = index(offset) / PAGE_LEN;
        match (self.pages.get(page), other.pages.get(page)) {
            (Some(ours), Some(theirs)) => !Arc::ptr_eq(ours, theirs) && ours != theirs,
            (ours, theirs) => ours.is_some() != theirs.is_some(),
        }
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Image({} bytes)", self.bytes())
    }
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a simulated device fits in memory")
}
