//! A first walk over a footer that proves its lengths and counts before the parquet crate believes them.
//!
//! That crate sets memory aside for as many children as a group of the schema claims to have, calls itself once for each
//! group inside of a group, and passes over a list of booleans in a field that it does not know without taking a byte,
//! two thousand million times if the list says so (version 60). And it reads a field that it knows without a look at the
//! field's kind, so bytes can mean one thing to a walk that knows nothing but the protocol and another to the crate.
//! Therefore this walk knows the structures of `FileMetaData`: what it accepts, the crate reads in the same way.
//!
//! Fields that are not listed are passed over: a later version of Parquet may have added them. Fields that a later
//! version of the crate reads belong into the tables here, too.

use super::thrift::{field, int, kind, list, signed, skip, skip_binary, take, varint};

/// No schema that is read has more elements; version 1 has 15.
const SCHEMA_ELEMENTS_MAX: usize = 256;

/// Structures, lists, sets and maps inside of each other, the footer itself counted. Version 1 goes 8 deep.
const DEPTH_MAX: u8 = 16;

/// What a field is read as.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Bool,
    Byte,
    I16,
    I32,
    I64,
    Double,
    Binary,
    /// A 32-bit number of schema elements: memory is set aside for as many.
    Children,
    Struct(&'static Structure),
    Structs(Elements),
    /// Elements that are no structures.
    List(&'static Kind),
    /// No segment has such a field.
    Refused,
}

/// A list of structures.
#[derive(Clone, Copy, Debug)]
struct Elements {
    of: &'static Structure,
    count_max: usize,
    /// The smallest that can be right, in bytes: memory is set aside for all that are claimed before one is read.
    bytes_min: usize,
}

/// The fields that are read, by id.
#[derive(Debug)]
struct Structure(&'static [(i16, Kind)]);

/// Whether `footer`, without its length and the magic bytes, is one `FileMetaData` and nothing behind it, and no count
/// or length in there passes what is there.
pub(super) fn is_sound(footer: &[u8]) -> bool {
    let mut rest = footer;
    structure(&mut rest, &FILE_METADATA, DEPTH_MAX).is_some() && rest.is_empty()
}

fn structure(input: &mut &[u8], shape: &Structure, depth: u8) -> Option<()> {
    let depth = depth.checked_sub(1)?;
    let mut last_id = 0;
    while let Some((id, found)) = field(input, &mut last_id)? {
        let Some((_, listed)) = shape.0.iter().find(|(listed, _)| *listed == id) else {
            unlisted(input, found, depth)?;
            continue;
        };
        match listed {
            // The value stands in the field's kind.
            Kind::Bool if matches!(found, kind::BOOL_TRUE | kind::BOOL_FALSE) => {}
            listed if listed.wire() == Some(found) => value(input, *listed, depth)?,
            _ => return None,
        }
    }
    Some(())
}

impl Kind {
    /// As what it has to be announced; `None` for what can't be, or not as one kind.
    fn wire(self) -> Option<u8> {
        match self {
            Kind::Bool | Kind::Refused => None,
            Kind::Byte => Some(kind::BYTE),
            Kind::I16 => Some(kind::I16),
            Kind::I32 | Kind::Children => Some(kind::I32),
            Kind::I64 => Some(kind::I64),
            Kind::Double => Some(kind::DOUBLE),
            Kind::Binary => Some(kind::BINARY),
            Kind::Struct(_) => Some(kind::STRUCT),
            Kind::Structs(_) | Kind::List(_) => Some(kind::LIST),
        }
    }
}

fn value(input: &mut &[u8], listed: Kind, depth: u8) -> Option<()> {
    match listed {
        // Neither is announced as one kind, so neither comes here.
        Kind::Bool | Kind::Refused => None,
        Kind::Byte => skip(input, 1),
        Kind::I16 => i16::try_from(signed(input)?).ok().map(drop),
        Kind::I32 => int(input).map(drop),
        Kind::I64 => signed(input).map(drop),
        Kind::Double => skip(input, 8),
        Kind::Binary => skip_binary(input),
        Kind::Children => {
            let count = usize::try_from(int(input)?).ok()?;
            (count <= SCHEMA_ELEMENTS_MAX).then_some(())
        }
        Kind::Struct(shape) => structure(input, shape, depth),
        Kind::Structs(elements) => {
            let depth = depth.checked_sub(1)?;
            let (count, found) = list(input)?;
            let fits = count <= elements.count_max
                && count.checked_mul(elements.bytes_min)? <= input.len()
                && (count == 0 || found == kind::STRUCT);
            fits.then_some(())?;
            (0..count).try_for_each(|_| structure(input, elements.of, depth))
        }
        Kind::List(element) => {
            let depth = depth.checked_sub(1)?;
            let (count, found) = list(input)?;
            (count == 0 || element.wire() == Some(found)).then_some(())?;
            (0..count).try_for_each(|_| value(input, *element, depth))
        }
    }
}

/// Passes over what is not listed, as the crate does.
fn unlisted(input: &mut &[u8], found: u8, depth: u8) -> Option<()> {
    match found {
        kind::BOOL_TRUE | kind::BOOL_FALSE => Some(()),
        kind::BYTE => skip(input, 1),
        kind::I16 | kind::I32 | kind::I64 => varint(input).map(drop),
        kind::DOUBLE => skip(input, 8),
        kind::BINARY => skip_binary(input),
        kind::LIST | kind::SET => {
            let depth = depth.checked_sub(1)?;
            let (count, element) = list(input)?;
            (count == 0 || is_element(element)).then_some(())?;
            (0..count).try_for_each(|_| unlisted(input, element, depth))
        }
        kind::MAP => {
            let depth = depth.checked_sub(1)?;
            let count = usize::try_from(varint(input)?).ok()?;
            if count == 0 {
                return Some(());
            }
            let kinds = take(input)?;
            let (key, value) = (kinds >> 4, kinds & 0x0f);
            // A key and a value take a byte each at least.
            let fits = count <= input.len() / 2 && is_element(key) && is_element(value);
            fits.then_some(())?;
            (0..count).try_for_each(|_| {
                unlisted(input, key, depth)?;
                unlisted(input, value, depth)
            })
        }
        kind::STRUCT => structure(input, &NOTHING_LISTED, depth),
        kind::UUID => skip(input, 16),
        _ => None,
    }
}

/// Whether an unlisted list may hold this. Booleans may not: each takes a byte there, and the crate takes none.
fn is_element(kind: u8) -> bool {
    (kind::BYTE..=kind::UUID).contains(&kind)
}

const fn structs(of: &'static Structure, bytes_min: usize) -> Kind {
    Kind::Structs(Elements {
        of,
        count_max: usize::MAX,
        bytes_min,
    })
}

use Kind::{Binary, Bool, Byte, Children, Double, I16, I32, I64, List, Refused, Struct, Structs};

static NOTHING_LISTED: Structure = Structure(&[]);

static FILE_METADATA: Structure = Structure(&[
    (1, I32),
    (
        2,
        Structs(Elements {
            of: &SCHEMA_ELEMENT,
            count_max: SCHEMA_ELEMENTS_MAX,
            // An empty name.
            bytes_min: 3,
        }),
    ),
    (3, I64),
    // The chunks of eleven columns take far more.
    (4, structs(&ROW_GROUP, 100)),
    (5, structs(&KEY_VALUE, 3)),
    (6, Binary),
    (7, structs(&COLUMN_ORDER, 3)),
    // Encryption and signature.
    (8, Refused),
    (9, Refused),
]);

static SCHEMA_ELEMENT: Structure = Structure(&[
    (1, I32),
    (2, I32),
    (3, I32),
    (4, Binary),
    (5, Children),
    (6, I32),
    (7, I32),
    (8, I32),
    (9, I32),
    (10, Struct(&LOGICAL_TYPE)),
]);

static LOGICAL_TYPE: Structure = Structure(&[
    (1, Struct(&NOTHING_LISTED)),
    (2, Struct(&NOTHING_LISTED)),
    (3, Struct(&NOTHING_LISTED)),
    (4, Struct(&NOTHING_LISTED)),
    // Decimal.
    (5, Struct(&Structure(&[(1, I32), (2, I32)]))),
    (6, Struct(&NOTHING_LISTED)),
    (7, Struct(&TIME)),
    (8, Struct(&TIME)),
    // Integer.
    (10, Struct(&Structure(&[(1, Byte), (2, Bool)]))),
    (11, Struct(&NOTHING_LISTED)),
    (12, Struct(&NOTHING_LISTED)),
    (13, Struct(&NOTHING_LISTED)),
    (14, Struct(&NOTHING_LISTED)),
    (15, Struct(&NOTHING_LISTED)),
    // Variant, Geometry, Geography.
    (16, Struct(&Structure(&[(1, Byte)]))),
    (17, Struct(&Structure(&[(1, Binary)]))),
    (18, Struct(&Structure(&[(1, Binary), (2, I32)]))),
    (19, Struct(&NOTHING_LISTED)),
]);

/// Time and Timestamp.
static TIME: Structure = Structure(&[
    (1, Bool),
    (
        2,
        Struct(&Structure(&[
            (1, Struct(&NOTHING_LISTED)),
            (2, Struct(&NOTHING_LISTED)),
            (3, Struct(&NOTHING_LISTED)),
        ])),
    ),
]);

static ROW_GROUP: Structure = Structure(&[
    (1, structs(&COLUMN_CHUNK, 20)),
    (2, I64),
    (3, I64),
    (4, structs(&SORTING_COLUMN, 5)),
    (5, I64),
    (6, I64),
    (7, I16),
]);

static SORTING_COLUMN: Structure = Structure(&[(1, I32), (2, Bool), (3, Bool)]);

static COLUMN_CHUNK: Structure = Structure(&[
    (1, Binary),
    (2, I64),
    (3, Struct(&COLUMN_METADATA)),
    (4, I64),
    (5, I32),
    (6, I64),
    (7, I32),
    // Encryption.
    (8, Refused),
    (9, Refused),
]);

static COLUMN_METADATA: Structure = Structure(&[
    (1, I32),
    (2, List(&I32)),
    (3, List(&Binary)),
    (4, I32),
    (5, I64),
    (6, I64),
    (7, I64),
    (8, structs(&KEY_VALUE, 3)),
    (9, I64),
    (10, I64),
    (11, I64),
    (12, Struct(&STATISTICS)),
    // Encoding statistics.
    (13, structs(&Structure(&[(1, I32), (2, I32), (3, I32)]), 7)),
    (14, I64),
    (15, I32),
    (16, Struct(&SIZE_STATISTICS)),
    (17, Struct(&GEOSPATIAL_STATISTICS)),
]);

static STATISTICS: Structure = Structure(&[
    (1, Binary),
    (2, Binary),
    (3, I64),
    (4, I64),
    (5, Binary),
    (6, Binary),
    (7, Bool),
    (8, Bool),
    (9, I64),
]);

static SIZE_STATISTICS: Structure = Structure(&[(1, I64), (2, List(&I64)), (3, List(&I64))]);

static GEOSPATIAL_STATISTICS: Structure = Structure(&[
    (
        1,
        Struct(&Structure(&[
            (1, Double),
            (2, Double),
            (3, Double),
            (4, Double),
            (5, Double),
            (6, Double),
            (7, Double),
            (8, Double),
        ])),
    ),
    (2, List(&I32)),
]);

static KEY_VALUE: Structure = Structure(&[(1, Binary), (2, Binary)]);

static COLUMN_ORDER: Structure = Structure(&[
    (1, Struct(&NOTHING_LISTED)),
    (2, Struct(&NOTHING_LISTED)),
    (3, Struct(&NOTHING_LISTED)),
]);

#[cfg(test)]
mod tests;
