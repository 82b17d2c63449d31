//! Zigzag numbers of variable length, as records use them.

/// How many bytes `value` takes: 1 to 10.
pub(super) fn len(value: i64) -> usize {
    // Seven bits go into each byte; zero takes one all the same.
    let bits = 64 - (zigzag(value) | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Appends `value`.
pub(super) fn put(out: &mut Vec<u8>, value: i64) {
    let mut rest = zigzag(value);
    let mut bytes = [0_u8; 10];
    let mut used = 0;
    for byte in &mut bytes {
        used += 1;
        let [low, ..] = rest.to_le_bytes();
        rest >>= 7;
        if rest == 0 {
            *byte = low & 0x7f;
            break;
        }
        *byte = low | 0x80;
    }
    out.extend_from_slice(&bytes[..used]);
}

/// How many bytes a length takes.
pub(super) fn len_of_length(length: usize) -> usize {
    len(as_number(length))
}

/// Appends a length.
pub(super) fn put_length(out: &mut Vec<u8>, length: usize) {
    put(out, as_number(length));
}

fn as_number(length: usize) -> i64 {
    // Nothing in memory is longer than `isize::MAX` bytes.
    i64::try_from(length).unwrap_or(i64::MAX)
}

/// Takes a number of up to 64 bits off the front of `input`; `None` if it ends early or is longer.
pub(super) fn take(input: &mut &[u8]) -> Option<i64> {
    let mut raw = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = input.split_first()?;
        *input = rest;
        // Only one bit is left for the tenth byte.
        if shift == 63 && byte > 1 {
            return None;
        }
        raw |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed());
        }
    }
    None
}

/// Takes a number of up to 32 bits.
pub(super) fn take_i32(input: &mut &[u8]) -> Option<i32> {
    take(input).and_then(|value| i32::try_from(value).ok())
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_back_and_have_the_announced_length() {
        let edges = [
            0,
            1,
            -1,
            63,
            64,
            -64,
            -65,
            8191,
            8192,
            i64::from(i32::MAX),
            i64::from(i32::MIN),
            i64::MAX,
            i64::MIN,
        ];
        for value in edges {
            let mut out = Vec::new();
            put(&mut out, value);
            assert_eq!(out.len(), len(value), "{value}");
            let mut input = out.as_slice();
            assert_eq!(take(&mut input), Some(value));
            assert!(input.is_empty());
        }
    }

    #[test]
    fn numbers_that_are_cut_or_too_long_are_refused() {
        assert_eq!(take(&mut [0x80].as_slice()), None);
        assert_eq!(take(&mut [0xff; 11].as_slice()), None);
        assert_eq!(
            take(&mut [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2].as_slice()),
            None
        );
        assert_eq!(
            take_i32(&mut [0xff, 0xff, 0xff, 0xff, 0x1f].as_slice()),
            None
        );
    }
}
