//! Footers made by hand: what would keep a reader busy, or run it out of memory or stack, ends at the first walk.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::*;
use crate::segment::tests::hostile::sample;
use crate::{Segment, SegmentError};

fn number(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

fn zigzag(value: i64, out: &mut Vec<u8>) {
    number(((value << 1) ^ (value >> 63)).cast_unsigned(), out);
}

/// The real footer of a segment with all that a segment can have.
fn real() -> Vec<u8> {
    let (_, summary, bytes) = sample();
    bytes[bytes.len() - summary.footer_len as usize..bytes.len() - 8].to_vec()
}

/// A real footer with `field` put in front of its end.
fn with(field: &[u8]) -> Vec<u8> {
    let mut footer = real();
    assert_eq!(footer.pop(), Some(0), "the end of a structure");
    footer.extend_from_slice(field);
    footer.push(0);
    footer
}

/// A footer whose schema has these elements.
fn with_schema(count: usize, elements: &[u8]) -> Vec<u8> {
    let mut footer = vec![0x15, 2, 0x19, 0xfc];
    number(count as u64, &mut footer);
    footer.extend_from_slice(elements);
    footer.extend_from_slice(&[0x16, 0, 0x19, 0x0c, 0]);
    footer
}

/// Within the time that a linear walk takes, however slow the machine is.
#[track_caller]
fn parse(footer: &[u8]) -> Result<Segment, SegmentError> {
    let mut tail = footer.to_vec();
    tail.extend_from_slice(&u32::try_from(footer.len()).expect("small").to_le_bytes());
    tail.extend_from_slice(b"PAR1");
    #[expect(
        clippy::disallowed_methods,
        reason = "a limit of seconds on what takes milliseconds"
    )]
    let start = Instant::now();
    let parsed = Segment::parse(&Bytes::from(tail), 1 << 40);
    assert!(start.elapsed() < Duration::from_secs(5), "it took too long");
    parsed
}

#[track_caller]
fn refused(footer: &[u8]) {
    assert!(!is_sound(footer), "the walk let it through");
    assert!(parse(footer).is_err());
}

#[test]
fn real_footers_pass_and_no_byte_may_be_missing_or_follow() {
    let footer = real();
    assert!(is_sound(&footer));
    for len in 0..footer.len() {
        assert!(!is_sound(&footer[..len]), "cut at {len}");
    }
    let mut longer = footer;
    longer.push(0);
    refused(&longer);
}

/// Found by the fuzzer: an unknown field that is a list of lists of booleans kept the crate busy for seconds.
#[test]
fn the_footer_that_the_fuzzer_found_is_refused_at_once() {
    let found = "013b3b3b3b3b3b3bcc3b3b3b013b3b3b3bffffffffff03226f3b3b3b3b000000000000000000000000000000\
                 000000000000000000000000ff2f2f2f2f2f2f2f2f2f2f2f2f2f2f2f2f2f2f2f2f2f2f2f2f2f2f2f2f3b27";
    let bytes: Vec<u8> = (0..found.len())
        .step_by(2)
        .filter_map(|at| u8::from_str_radix(&found[at..at + 2], 16).ok())
        .collect();
    refused(&bytes);
}

#[test]
fn lists_of_booleans_that_nobody_knows_are_refused() {
    // Field 30, as a list, a set, and in a list of lists; as a map's keys and its values.
    for kinds in [[0xf1, 0x09], [0xf2, 0x09], [0xf2, 0x0a]] {
        let mut field = vec![0xf0 | kinds[1], kinds[0]];
        number((1 << 31) - 1, &mut field);
        refused(&with(&field));
        // Not even as many as there are bytes: the crate would take none of them.
        refused(&with(&[0xf0 | kinds[1], (kinds[0] & 0x0f) | 0x20, 1, 1]));
        assert!(is_sound(&with(&[0xf0 | kinds[1], kinds[0] & 0x0f])), "none");
    }
    for kinds in [0x11, 0x15, 0x51, 0x22] {
        let mut field = vec![0xfb];
        number((1 << 31) - 1, &mut field);
        field.push(kinds);
        refused(&with(&field));
        refused(&with(&[0xfb, 1, kinds, 1, 1]));
    }
}

#[test]
fn counts_and_lengths_beyond_the_footer_are_refused() {
    for element in [3, 5, 8, 9, 12, 13] {
        let mut field = vec![0xf9, 0xf0 | element];
        number(1 << 20, &mut field);
        field.resize(field.len() + 64, 0);
        refused(&with(&field));
    }
    // A byte string, and a map.
    for kind in [0xf8, 0xfb] {
        for len in [1 << 20, u64::from(u32::MAX), u64::MAX] {
            let mut field = vec![kind];
            number(len, &mut field);
            field.push(0x33);
            field.resize(field.len() + 64, 0);
            refused(&with(&field));
        }
    }
}

#[test]
fn fields_that_nobody_knows_are_passed_over() {
    let fields: [&[u8]; 8] = [
        &[0xf1],
        &[0xf3, 7],
        &[0xf6, 0xff, 1],
        &[0xf8, 2, 1, 1],
        &[0xf9, 0x28, 1, 7, 0],
        &[0xfb, 1, 0x85, 1, 7, 9],
        &[0xfc, 0x11, 0x1c, 0, 0],
        &[0xfd, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    ];
    for field in fields {
        let footer = with(field);
        assert!(is_sound(&footer), "{field:x?}");
        parse(&footer).expect("Parquet may have learnt a field");
    }
}

#[test]
fn a_known_field_of_another_kind_is_refused() {
    // The crate would take the bytes of `version` where there are none.
    let mut footer = real();
    assert_eq!(footer[0], 0x15);
    footer[0] = 0x11;
    footer.remove(1);
    refused(&footer);
}

#[test]
fn no_field_comes_twice_or_out_of_order() {
    // Field 3, the number of rows, in full behind all others.
    refused(&with(&[0x06, 0x06, 0]));
    // Field 40, twice.
    refused(&with(&[0x05, 80, 0, 0x05, 80, 0]));
    assert!(is_sound(&with(&[0x05, 80, 0, 0x05, 82, 0])));
}

#[test]
fn encrypted_and_signed_footers_are_refused() {
    refused(&with(&[0x1c, 0]));
    refused(&with(&[0x28, 0]));
}

#[test]
fn structures_are_not_nested_without_end() {
    let nested = |depth: usize| {
        let mut field = vec![0xfc];
        field.resize(depth, 0x1c);
        field.resize(depth * 2, 0);
        field
    };
    assert!(is_sound(&with(&nested(15))));
    refused(&with(&nested(16)));
    refused(&with(&nested(1 << 20)));
    let mut lists = vec![0xf9];
    lists.resize(1 << 20, 0x19);
    refused(&with(&lists));
}

/// The crate calls itself once for each group inside of a group.
#[test]
fn a_schema_of_a_million_groups_in_each_other_does_not_use_up_the_stack() {
    // Required, no name, one child.
    let group = [0x35, 0, 0x18, 0, 0x15, 2, 0];
    let count = 1 << 20;
    refused(&with_schema(count, &group.repeat(count)));
}

/// The crate sets memory aside for all children that a group claims: 16 GiB here.
#[test]
fn a_group_has_no_more_children_than_a_schema_has_elements() {
    for children in [257, i64::from(i32::MAX), -1] {
        let mut element = vec![0x48, 0, 0x15];
        zigzag(children, &mut element);
        element.push(0);
        refused(&with_schema(1, &element));
    }
}

/// The crate sets memory aside for all row groups before it has read one, a hundred times what an empty one takes.
#[test]
fn empty_row_groups_are_refused_before_they_are_counted() {
    let mut footer = vec![0x15, 2, 0x19, 0x1c, 0x48, 0, 0, 0x16, 0, 0x19, 0xfc];
    let count = 1 << 20;
    number(count as u64, &mut footer);
    footer.resize(footer.len() + count, 0);
    footer.push(0);
    refused(&footer);
}
