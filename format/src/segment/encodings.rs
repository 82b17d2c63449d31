//! The encodings of a page's payload, read.
//!
//! Our own, because the ones in the parquet crate trust what they read: with version 60, changed pages made it index
//! out of bounds, fail assertions and ask for 17 TB. Here every count is known before (from the page's header, which
//! the footer bounds), and whatever does not add up is `None`. It is faster as well.

/// Takes `n` bytes off the front of `input`.
fn take<'a>(input: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (front, rest) = input.split_at_checked(n)?;
    *input = rest;
    Some(front)
}

/// A little-endian 32-bit length.
fn take_len(input: &mut &[u8]) -> Option<usize> {
    let bytes = take(input, 4)?.first_chunk()?;
    usize::try_from(u32::from_le_bytes(*bytes)).ok()
}

/// An unsigned number of variable length, up to 64 bits.
fn take_varint(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = input.split_first()?;
        *input = rest;
        // Only one bit is left for the tenth byte.
        if shift == 63 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take_zigzag(input: &mut &[u8]) -> Option<i64> {
    let raw = take_varint(input)?;
    Some((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed())
}

/// Reads `count` levels of at most `max` (1 or 2) off the front of a page's payload: a length, then runs and groups of
/// bits.
pub(super) fn levels(input: &mut &[u8], count: usize, max: u8) -> Option<Vec<u8>> {
    let len = take_len(input)?;
    let mut runs = take(input, len)?;
    let width = if max == 1 { 1 } else { 2 };
    let mut levels = Vec::with_capacity(count);
    while levels.len() < count {
        let left = count - levels.len();
        let header = take_varint(&mut runs)?;
        let run = usize::try_from(header >> 1).ok().filter(|&run| run > 0)?;
        if header & 1 == 0 {
            let (&level, rest) = runs.split_first()?;
            runs = rest;
            levels.resize(levels.len() + run.min(left), level);
        } else {
            let bytes = take(&mut runs, run.checked_mul(width)?)?;
            let per_byte = 8 / width;
            let all = bytes.iter().flat_map(|&byte| {
                (0..per_byte).map(move |at| (byte >> (at * width)) & ((1 << width) - 1))
            });
            levels.extend(all.take(left));
        }
    }
    (runs.is_empty() && levels.iter().all(|&level| level <= max)).then_some(levels)
}

/// Reads `count` numbers in DELTA_BINARY_PACKED off the front of `input`.
pub(super) fn delta_packed(input: &mut &[u8], count: usize) -> Option<Vec<i64>> {
    let block_len = usize::try_from(take_varint(input)?).ok()?;
    let mini_blocks = usize::try_from(take_varint(input)?).ok()?;
    let total = usize::try_from(take_varint(input)?).ok()?;
    let first = take_zigzag(input)?;
    // The specification's own rules; the upper limit only keeps the products below small.
    let shape_fits = (1..=1 << 10).contains(&mini_blocks)
        && (128..=1 << 20).contains(&block_len)
        && block_len.is_multiple_of(128)
        && block_len.is_multiple_of(mini_blocks)
        && (block_len / mini_blocks).is_multiple_of(32);
    if !shape_fits || total != count {
        return None;
    }
    let mut values = Vec::with_capacity(count);
    if count > 0 {
        values.push(first);
    }
    let mut value = first;
    while values.len() < count {
        let min_delta = take_zigzag(input)?;
        let widths = take(input, mini_blocks)?;
        for &width in widths {
            if values.len() == count {
                // Widths of what is not needed any more may be anything, and nothing is stored for them.
                break;
            }
            let width = usize::from(width);
            let in_block = block_len / mini_blocks;
            let packed = take(input, (width <= 64).then_some(in_block * width / 8)?)?;
            let wanted = in_block.min(count - values.len());
            // Differences wrap: that is how the encoding writes those that do not fit.
            if width == 0 {
                values.extend((0..wanted).map(|_| {
                    value = value.wrapping_add(min_delta);
                    value
                }));
            } else {
                unpack(packed, width, wanted, |delta| {
                    value = value
                        .wrapping_add(min_delta)
                        .wrapping_add(delta.cast_signed());
                    values.push(value);
                });
            }
        }
    }
    Some(values)
}

/// Hands the first `count` numbers of `width` bits (1 to 64) in `packed` to `each`. `packed` holds at least as many.
fn unpack(packed: &[u8], width: usize, count: usize, mut each: impl FnMut(u64)) {
    let mask = u64::MAX >> (64 - width);
    let (mut bits, mut bit_count) = (0_u128, 0);
    let mut rest = packed;
    for _ in 0..count {
        if bit_count < width {
            let loaded = match rest.split_first_chunk::<8>() {
                Some((bytes, behind)) => {
                    rest = behind;
                    u64::from_le_bytes(*bytes)
                }
                None => {
                    let mut bytes = [0; 8];
                    bytes[..rest.len()].copy_from_slice(rest);
                    rest = &[];
                    u64::from_le_bytes(bytes)
                }
            };
            bits |= u128::from(loaded) << bit_count;
            bit_count += 64;
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the low half is what is wanted"
        )]
        each(bits as u64 & mask);
        bits >>= width;
        bit_count -= width;
    }
}

/// Reads `count` numbers of `LEN` bytes, which are all that is left.
pub(super) fn plain_numbers<const LEN: usize>(
    input: &[u8],
    count: usize,
    read: fn([u8; LEN]) -> i64,
) -> Option<Vec<i64>> {
    let (numbers, rest) = input.as_chunks::<LEN>();
    (rest.is_empty() && numbers.len() == count)
        .then(|| numbers.iter().map(|&bytes| read(bytes)).collect())
}

/// Where `count` byte strings lie in `payload`, from position `at` on to its very end, each after its length.
pub(super) fn plain_bytes(
    payload: &[u8],
    at: usize,
    count: usize,
    mut each: impl FnMut(u32, u32),
) -> Option<()> {
    let mut at = at;
    for _ in 0..count {
        let len = u32::from_le_bytes(*payload.get(at..)?.first_chunk()?);
        let start = u32::try_from(at + 4).ok()?;
        at = (at + 4)
            .checked_add(usize::try_from(len).ok()?)
            .filter(|&end| end <= payload.len())?;
        each(start, len);
    }
    (at == payload.len()).then_some(())
}

/// Where `count` byte strings lie in `payload`, from position `at` on to its very end: first all lengths, then all bytes.
pub(super) fn delta_length_bytes(
    payload: &[u8],
    at: usize,
    count: usize,
    mut each: impl FnMut(u32, u32),
) -> Option<()> {
    let mut input = payload.get(at..)?;
    let lengths = delta_packed(&mut input, count)?;
    let mut at = payload.len() - input.len();
    for len in lengths {
        let len = u32::try_from(len).ok()?;
        let start = u32::try_from(at).ok()?;
        at = at
            .checked_add(usize::try_from(len).ok()?)
            .filter(|&end| end <= payload.len())?;
        each(start, len);
    }
    (at == payload.len()).then_some(())
}
