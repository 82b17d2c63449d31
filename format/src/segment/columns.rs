//! The columns of one row group, each read page by page as far as records are wanted.

use bytes::Bytes;
use zstd::bulk::Decompressor;

use super::SegmentError;
use super::encodings::{delta_length_bytes, delta_packed, levels, plain_bytes, plain_numbers};
use super::pages::{DELTA_BINARY_PACKED, DELTA_LENGTH_BYTE_ARRAY, PLAIN, page_header};

/// The pages of a column chunk that are still to come. Their headers have been checked to fit the footer.
#[derive(Clone)]
struct Pages {
    leaf: usize,
    rest: Bytes,
}

/// A decompressed page.
struct Page {
    payload: Bytes,
    values: usize,
    encoding: i64,
}

/// zstd's memory, shared by all columns.
pub(super) struct Inflater(Decompressor<'static>);

impl Inflater {
    pub(super) fn new() -> Result<Inflater, SegmentError> {
        Decompressor::new().map(Inflater).map_err(SegmentError::Io)
    }
}

impl Pages {
    fn malformed(&self) -> SegmentError {
        SegmentError::corrupt(format!("column {} has a malformed page", self.leaf))
    }

    /// The next page, or `None` behind the last one.
    fn next(&mut self, inflater: &mut Inflater) -> Result<Option<Page>, SegmentError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let mut input = &self.rest[..];
        let header = page_header(&mut input).ok_or_else(|| self.malformed())?;
        let stored = input
            .get(..header.compressed_len)
            .ok_or_else(|| self.malformed())?;
        let len = usize::try_from(header.uncompressed_len).map_err(|_| self.malformed())?;
        let mut payload = Vec::with_capacity(len);
        if len > 0 {
            inflater
                .0
                .decompress_to_buffer(stored, &mut payload)
                .map_err(|_| self.malformed())?;
        }
        let values = usize::try_from(header.values).map_err(|_| self.malformed())?;
        if payload.len() != len {
            return Err(self.malformed());
        }
        let behind = self.rest.len() - input.len() + header.compressed_len;
        self.rest = self.rest.slice(behind..);
        Ok(Some(Page {
            payload: payload.into(),
            values,
            encoding: header.encoding,
        }))
    }

    /// Passes over pages while they hold no more than `values`. Gives how many values were passed over.
    fn skip(&mut self, values: usize) -> Result<usize, SegmentError> {
        let mut passed = 0;
        while !self.rest.is_empty() {
            let mut input = &self.rest[..];
            let header = page_header(&mut input).ok_or_else(|| self.malformed())?;
            let Some(sum) = usize::try_from(header.values)
                .ok()
                .and_then(|count| count.checked_add(passed))
                .filter(|&sum| sum <= values)
            else {
                break;
            };
            passed = sum;
            let behind = self.rest.len() - input.len() + header.compressed_len;
            if behind > self.rest.len() {
                return Err(self.malformed());
            }
            self.rest = self.rest.slice(behind..);
        }
        Ok(passed)
    }
}

/// A column of numbers, one for each record.
pub(super) struct Numbers {
    pages: Pages,
    kind: NumberKind,
    ready: Vec<i64>,
}

#[derive(Clone, Copy)]
pub(super) enum NumberKind {
    /// 64 bits, never null.
    Long,
    /// 32 bits, never null.
    Int,
    /// 32 bits, not negative; null becomes -1.
    NullableInt,
}

impl Numbers {
    pub(super) fn new(leaf: usize, chunk: Bytes, kind: NumberKind) -> Numbers {
        Numbers {
            pages: Pages { leaf, rest: chunk },
            kind,
            ready: Vec::new(),
        }
    }

    /// Passes over `count` values in front of which none has been read.
    pub(super) fn skip(
        &mut self,
        count: usize,
        inflater: &mut Inflater,
    ) -> Result<(), SegmentError> {
        let passed = self.pages.skip(count)?;
        self.take(count - passed, inflater).map(drop)
    }

    /// The next `count` values.
    pub(super) fn take(
        &mut self,
        count: usize,
        inflater: &mut Inflater,
    ) -> Result<Vec<i64>, SegmentError> {
        while self.ready.len() < count {
            self.read_page(inflater)?;
        }
        let rest = self.ready.split_off(count);
        Ok(std::mem::replace(&mut self.ready, rest))
    }

    /// The values of the next page; `None` behind the last one. Not to be mixed with [`Numbers::take`].
    pub(super) fn next_page(
        &mut self,
        inflater: &mut Inflater,
    ) -> Result<Option<Vec<i64>>, SegmentError> {
        if self.pages.rest.is_empty() {
            return Ok(None);
        }
        self.read_page(inflater)?;
        Ok(Some(std::mem::take(&mut self.ready)))
    }

    fn read_page(&mut self, inflater: &mut Inflater) -> Result<(), SegmentError> {
        let Some(page) = self.pages.next(inflater)? else {
            return Err(SegmentError::corrupt(format!(
                "column {} ends too early",
                self.pages.leaf
            )));
        };
        let values = decode_numbers(&page, self.kind).ok_or_else(|| self.pages.malformed())?;
        self.ready.extend(values);
        Ok(())
    }
}

fn decode_numbers(page: &Page, kind: NumberKind) -> Option<Vec<i64>> {
    let mut input = &page.payload[..];
    let defined = match kind {
        NumberKind::NullableInt => Some(levels(&mut input, page.values, 1)?),
        NumberKind::Long | NumberKind::Int => None,
    };
    let count = defined.as_ref().map_or(page.values, |levels| {
        levels.iter().filter(|&&level| level == 1).count()
    });
    let mut values = match (page.encoding, kind) {
        // A page without values may have nothing for them.
        _ if count == 0 && input.is_empty() => Vec::new(),
        (PLAIN, NumberKind::Long) => plain_numbers(input, count, i64::from_le_bytes)?,
        (PLAIN, _) => plain_numbers(input, count, |bytes| i64::from(i32::from_le_bytes(bytes)))?,
        (DELTA_BINARY_PACKED, _) => delta_packed(&mut input, count).filter(|_| input.is_empty())?,
        _ => return None,
    };
    if !matches!(kind, NumberKind::Long) {
        for value in &mut values {
            // Sums of 32-bit differences wrap around at 32 bits.
            #[expect(
                clippy::cast_possible_truncation,
                reason = "the low half is the number"
            )]
            let low = *value as i32;
            *value = i64::from(low);
        }
    }
    let Some(defined) = defined else {
        return Some(values);
    };
    if values.iter().any(|&value| value < 0) {
        return None;
    }
    let mut values = values.into_iter();
    Some(
        defined
            .into_iter()
            .map(|level| {
                if level == 1 {
                    values.next().unwrap_or(-1)
                } else {
                    -1
                }
            })
            .collect(),
    )
}

/// Byte strings that lie in decompressed pages.
#[derive(Default)]
pub(super) struct Views {
    views: Vec<View>,
    pages: Vec<Bytes>,
}

/// Invariant, kept by `decode_views`: unless null, `start + len` lies inside of page number `page`.
#[derive(Clone, Copy)]
struct View {
    page: u32,
    start: u32,
    len: u32,
}

/// The length of a null. No page is as long.
const NULL: u32 = u32::MAX;

impl Views {
    pub(super) fn len(&self) -> usize {
        self.views.len()
    }

    /// Byte string number `index`, or `None` if it is null.
    pub(super) fn get(&self, index: usize) -> Option<&[u8]> {
        let View { page, start, len } = self.views[index];
        if len == NULL {
            return None;
        }
        Some(&self.pages[page as usize][start as usize..start as usize + len as usize])
    }

    /// Its length; a null has none.
    pub(super) fn byte_count(&self, index: usize) -> u64 {
        match self.views[index].len {
            NULL => 0,
            len => u64::from(len),
        }
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        let pages: usize = self.pages.iter().map(Bytes::len).sum();
        (pages + self.views.len() * size_of::<View>()) as u64
    }

    /// Takes the first `count` off. Pages in which both parts lie are shared.
    fn split_front(&mut self, count: usize) -> Views {
        let rest = self.views.split_off(count);
        let front = Views {
            views: std::mem::replace(&mut self.views, rest),
            pages: self.pages.clone(),
        };
        match self.views.first() {
            None => self.pages.clear(),
            Some(&View { page: first, .. }) => {
                // Pages are in the order of the views, nulls included.
                self.pages.drain(..first as usize);
                self.views.iter_mut().for_each(|view| view.page -= first);
            }
        }
        front
    }

    fn push_page(&mut self, payload: Bytes) -> Option<u32> {
        let page = u32::try_from(self.pages.len()).ok()?;
        self.pages.push(payload);
        Some(page)
    }
}

/// Finds the values of a page. `defined` has an entry for each value that is there or null: whether it is there.
fn decode_views(
    page: &Page,
    at: usize,
    defined: impl Iterator<Item = bool> + Clone,
    out: &mut Views,
) -> Option<()> {
    let number = out.push_page(page.payload.clone())?;
    let count = defined.clone().filter(|&is_there| is_there).count();
    if count == page.values {
        // Nothing is null, as in most pages: no need to look for where.
        let views = &mut out.views;
        views.reserve(count);
        let each = |start, len| {
            views.push(View {
                page: number,
                start,
                len,
            })
        };
        return match page.encoding {
            PLAIN => plain_bytes(&page.payload, at, count, each),
            DELTA_LENGTH_BYTE_ARRAY => delta_length_bytes(&page.payload, at, count, each),
            _ => None,
        };
    }
    let null = View {
        page: number,
        start: 0,
        len: NULL,
    };
    let mut defined = defined;
    out.views.reserve(page.values);
    let views = &mut out.views;
    let each = |start, len| {
        // The nulls in front of it first.
        views.extend(
            defined
                .by_ref()
                .take_while(|&is_there| !is_there)
                .map(|_| null),
        );
        views.push(View {
            page: number,
            start,
            len,
        });
    };
    match page.encoding {
        // A page without values may have nothing for them.
        _ if count == 0 && at == page.payload.len() => {}
        PLAIN => plain_bytes(&page.payload, at, count, each)?,
        DELTA_LENGTH_BYTE_ARRAY => delta_length_bytes(&page.payload, at, count, each)?,
        _ => return None,
    }
    out.views.extend(defined.map(|_| null));
    Some(())
}

/// A column of byte strings, one or null for each record.
pub(super) struct Strings {
    pages: Pages,
    ready: Views,
}

impl Strings {
    pub(super) fn new(leaf: usize, chunk: Bytes) -> Strings {
        Strings {
            pages: Pages { leaf, rest: chunk },
            ready: Views::default(),
        }
    }

    /// Passes over `count` values in front of which none has been read.
    pub(super) fn skip(
        &mut self,
        count: usize,
        inflater: &mut Inflater,
    ) -> Result<(), SegmentError> {
        let passed = self.pages.skip(count)?;
        while self.ready.len() < count - passed {
            self.read_page(inflater)?;
        }
        self.ready.split_front(count - passed);
        Ok(())
    }

    /// Reads one more page.
    pub(super) fn read_page(&mut self, inflater: &mut Inflater) -> Result<(), SegmentError> {
        let Some(page) = self.pages.next(inflater)? else {
            return Err(SegmentError::corrupt(format!(
                "column {} ends too early",
                self.pages.leaf
            )));
        };
        let mut input = &page.payload[..];
        let defined = levels(&mut input, page.values, 1).ok_or_else(|| self.pages.malformed())?;
        let at = page.payload.len() - input.len();
        decode_views(
            &page,
            at,
            defined.iter().map(|&level| level == 1),
            &mut self.ready,
        )
        .ok_or_else(|| self.pages.malformed())
    }

    /// What has been read and not been taken.
    pub(super) fn ready(&self) -> &Views {
        &self.ready
    }

    /// Takes the first `count` of what is ready.
    pub(super) fn take(&mut self, count: usize) -> Views {
        self.ready.split_front(count)
    }
}

/// One of the two columns of headers: a list of byte strings for each record.
pub(super) struct Lists {
    pages: Pages,
    /// 1 for keys, which are never null, 2 for values.
    level_max: u8,
    /// How many strings each record that is ready has.
    counts: Vec<u32>,
    ready: Views,
}

impl Lists {
    pub(super) fn keys(leaf: usize, chunk: Bytes) -> Lists {
        Lists {
            pages: Pages { leaf, rest: chunk },
            level_max: 1,
            counts: Vec::new(),
            ready: Views::default(),
        }
    }

    pub(super) fn values(leaf: usize, chunk: Bytes) -> Lists {
        Lists {
            level_max: 2,
            ..Lists::keys(leaf, chunk)
        }
    }

    /// Passes over `count` records. Where a record starts only the page itself knows, so pages are decompressed.
    pub(super) fn skip(
        &mut self,
        count: usize,
        inflater: &mut Inflater,
    ) -> Result<(), SegmentError> {
        let mut left = count;
        loop {
            let here = left.min(self.counts.len());
            self.take(here);
            left -= here;
            if left == 0 {
                return Ok(());
            }
            self.read_page(inflater)?;
        }
    }

    /// Reads one more page.
    pub(super) fn read_page(&mut self, inflater: &mut Inflater) -> Result<(), SegmentError> {
        let Some(page) = self.pages.next(inflater)? else {
            return Err(SegmentError::corrupt(format!(
                "column {} ends too early",
                self.pages.leaf
            )));
        };
        self.decode(&page).ok_or_else(|| self.pages.malformed())
    }

    fn decode(&mut self, page: &Page) -> Option<()> {
        let mut input = &page.payload[..];
        let repeated = levels(&mut input, page.values, 1)?;
        let defined = levels(&mut input, page.values, self.level_max)?;
        let at = page.payload.len() - input.len();
        // A page starts with a record.
        let mut is_empty = true;
        let mut open = None;
        for (&repeat, &define) in repeated.iter().zip(&defined) {
            match (repeat, define) {
                // A record without headers: nothing may follow in it.
                (0, 0) => {
                    self.counts.extend(open.take());
                    self.counts.push(0);
                    is_empty = true;
                }
                (0, _) => {
                    self.counts.extend(open.replace(1));
                    is_empty = false;
                }
                (_, 0) => return None,
                _ if is_empty => return None,
                _ => open = open.map(|count: u32| count.saturating_add(1)),
            }
        }
        self.counts.extend(open);
        let there = self.level_max;
        let elements = defined
            .iter()
            .filter(|&&level| level > 0)
            .map(|&level| level == there);
        decode_views(page, at, elements, &mut self.ready)
    }

    /// How many strings each record has that has been read and not been taken.
    pub(super) fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// What has been read and not been taken.
    pub(super) fn ready(&self) -> &Views {
        &self.ready
    }

    /// Takes what belongs to the first `count` records that are ready.
    pub(super) fn take(&mut self, count: usize) -> (Vec<u32>, Views) {
        let rest = self.counts.split_off(count);
        let counts = std::mem::replace(&mut self.counts, rest);
        let strings = counts.iter().map(|&count| count as usize).sum();
        (counts, self.ready.split_front(strings))
    }
}
