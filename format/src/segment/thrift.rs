//! The primitives of Thrift's compact protocol, read without trusting them: whatever does not add up is `None`.
//!
//! Parquet's page headers and its footer are written in it. Who reads which structure is told in `pages` and in
//! `footer_shape`.

/// What follows the id of a field, or is an element of a list.
pub(super) mod kind {
    pub(in super::super) const BOOL_TRUE: u8 = 1;
    pub(in super::super) const BOOL_FALSE: u8 = 2;
    pub(in super::super) const BYTE: u8 = 3;
    pub(in super::super) const I16: u8 = 4;
    pub(in super::super) const I32: u8 = 5;
    pub(in super::super) const I64: u8 = 6;
    pub(in super::super) const DOUBLE: u8 = 7;
    pub(in super::super) const BINARY: u8 = 8;
    pub(in super::super) const LIST: u8 = 9;
    pub(in super::super) const SET: u8 = 10;
    pub(in super::super) const MAP: u8 = 11;
    pub(in super::super) const STRUCT: u8 = 12;
    pub(in super::super) const UUID: u8 = 13;
}

/// The next field's id and kind; `Some(None)` at the end of the structure. Ids must ascend, so no field comes twice.
pub(super) fn field(input: &mut &[u8], last_id: &mut i16) -> Option<Option<(i16, u8)>> {
    let byte = take(input)?;
    if byte == 0 {
        return Some(None);
    }
    let delta = i16::from(byte >> 4);
    let id = if delta == 0 {
        // The id follows in full.
        i16::try_from(signed(input)?).ok()?
    } else {
        last_id.checked_add(delta)?
    };
    let kind = byte & 0x0f;
    if id <= *last_id || !(kind::BOOL_TRUE..=kind::UUID).contains(&kind) {
        return None;
    }
    *last_id = id;
    Some(Some((id, kind)))
}

/// The number of elements of a list or set, and their kind. Each takes a byte at least, so no list has more than there
/// are bytes left.
pub(super) fn list(input: &mut &[u8]) -> Option<(usize, u8)> {
    let byte = take(input)?;
    let kind = byte & 0x0f;
    let count = match byte >> 4 {
        15 => usize::try_from(varint(input)?).ok()?,
        count => usize::from(count),
    };
    // Some writers give an empty list no kind.
    let has_kind = (kind::BOOL_TRUE..=kind::UUID).contains(&kind) || byte == 0;
    (has_kind && count <= input.len()).then_some((count, kind))
}

/// A 32-bit number in zigzag form.
pub(super) fn int(input: &mut &[u8]) -> Option<i64> {
    let value = signed(input)?;
    i32::try_from(value).ok().map(i64::from)
}

/// A 64-bit number in zigzag form.
pub(super) fn signed(input: &mut &[u8]) -> Option<i64> {
    let raw = varint(input)?;
    Some((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed())
}

/// An unsigned number of variable length, up to 64 bits.
pub(super) fn varint(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..63).step_by(7) {
        let byte = take(input)?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    // The tenth byte holds one bit more.
    let byte = take(input)?;
    (byte < 2).then_some(value | u64::from(byte) << 63)
}

/// Passes over a byte string.
pub(super) fn skip_binary(input: &mut &[u8]) -> Option<()> {
    let len = usize::try_from(varint(input)?).ok()?;
    skip(input, len)
}

/// Passes over `len` bytes.
pub(super) fn skip(input: &mut &[u8], len: usize) -> Option<()> {
    *input = input.get(len..)?;
    Some(())
}

/// One byte.
pub(super) fn take(input: &mut &[u8]) -> Option<u8> {
    let (&first, rest) = input.split_first()?;
    *input = rest;
    Some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_at_most_64_bits() {
        let max = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(varint(&mut &max[..]), Some(u64::MAX));
        assert_eq!(signed(&mut &max[..]), Some(i64::MIN));
        assert_eq!(int(&mut &max[..]), None);
        assert_eq!(varint(&mut &[0xff; 11][..]), None);
        assert_eq!(varint(&mut &[0x80; 9][..]), None);
    }

    #[test]
    fn ids_ascend_in_both_spellings() {
        let ids = |mut input: &[u8]| {
            let (mut ids, mut last) = (Vec::new(), 0);
            loop {
                match field(&mut input, &mut last) {
                    Some(Some((id, kind))) => ids.push((id, kind)),
                    Some(None) => return Some(ids),
                    None => return None,
                }
            }
        };
        let both = Some(vec![(1, kind::I32), (4, kind::I64)]);
        assert_eq!(ids(&[0x15, 0x36, 0]), both);
        assert_eq!(ids(&[0x15, 0x06, 0x08, 0]), both);
        assert_eq!(ids(&[0x15, 0x06, 0x02, 0]), None, "id 1 twice");
        assert_eq!(ids(&[0x06, 0x01, 0]), None, "id -1");
        assert_eq!(ids(&[0x1e, 0]), None, "a kind that is none");
        assert_eq!(ids(&[0x10, 0]), None, "an end with an id");
        assert_eq!(ids(&[0x15]), None, "no end");
    }

    #[test]
    fn a_list_has_no_more_elements_than_bytes() {
        assert_eq!(list(&mut &[0x00][..]), Some((0, 0)));
        assert_eq!(list(&mut &[0x25, 1, 1][..]), Some((2, kind::I32)));
        assert_eq!(list(&mut &[0x35, 1, 1][..]), None);
        assert_eq!(list(&mut &[0xf2, 0xff, 0xff, 0xff, 0xff, 0x07][..]), None);
        assert_eq!(list(&mut &[0x10, 1][..]), None, "elements without a kind");
    }
}
