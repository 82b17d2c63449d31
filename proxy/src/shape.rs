//! A first walk over a message that proves its lengths before the codec believes them.
//!
//! The codec reserves memory for as many elements as an array claims to have. So twelve hostile bytes could ask for
//! gigabytes. The walk knows no values, only where each field ends; a message that it accepts can't make the codec
//! reserve more than a small multiple of the message's own size.

/// What a field looks like on the wire.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// So many bytes.
    Fixed(usize),
    /// A string, null or not.
    Text,
    /// A byte string with a length of four bytes (one more for compact), null or not.
    Blob,
    /// Elements that are structures.
    List(&'static Structure),
    /// Elements of so many bytes.
    FixedList(usize),
    /// One structure, without a count.
    Nested(&'static Structure),
}

/// A field and the versions that have it.
#[derive(Clone, Copy, Debug)]
struct Field {
    kind: Kind,
    since: i16,
    until: i16,
}

/// Fields in order; in flexible versions tagged fields follow.
#[derive(Debug)]
struct Structure {
    fields: &'static [Field],
    tagged: &'static [(u32, Kind)],
}

/// The whole body of a request or response.
#[derive(Debug)]
pub(crate) struct Shape {
    flexible_since: i16,
    body: Structure,
}

/// The message does not hold what it claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message's lengths contradict its size")]
pub(crate) struct Malformed;

/// Deepest nesting of any message here is 5; the walk is recursive over static tables only.
struct Walk<'a> {
    rest: &'a [u8],
    version: i16,
    flexible: bool,
}

impl Shape {
    /// Walks over `body`, which is encoded as `version`. Bytes behind the last field are let be, as brokers do.
    pub(crate) fn check(&self, body: &[u8], version: i16) -> Result<(), Malformed> {
        let flexible = version >= self.flexible_since;
        Walk {
            rest: body,
            version,
            flexible,
        }
        .structure(&self.body)
    }
}

impl Walk<'_> {
    fn structure(&mut self, structure: &Structure) -> Result<(), Malformed> {
        for field in structure.fields {
            if field.since <= self.version && self.version <= field.until {
                self.field(field.kind)?;
            }
        }
        if self.flexible {
            self.tags(structure.tagged)
        } else {
            Ok(())
        }
    }

    fn field(&mut self, kind: Kind) -> Result<(), Malformed> {
        match kind {
            Kind::Fixed(len) => self.skip(len),
            Kind::Text => {
                let len = if self.flexible {
                    self.compact()?
                } else {
                    self.short()?
                };
                self.skip(len.unwrap_or(0))
            }
            Kind::Blob => {
                let len = self.count()?;
                self.skip(len.unwrap_or(0))
            }
            Kind::List(element) => self.elements(|walk| walk.structure(element)),
            Kind::FixedList(len) => self.elements(|walk| walk.skip(len)),
            Kind::Nested(structure) => self.structure(structure),
        }
    }

    fn elements(
        &mut self,
        mut one: impl FnMut(&mut Self) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        // Each element takes at least a byte, so the loop ends with the message however large the claim is.
        for _ in 0..self.count()?.unwrap_or(0) {
            one(self)?;
        }
        Ok(())
    }

    fn tags(&mut self, known: &[(u32, Kind)]) -> Result<(), Malformed> {
        for _ in 0..self.varint()? {
            let (tag, len) = (self.varint()?, self.varint()? as usize);
            if self.rest.len() < len {
                return Err(Malformed);
            }
            let (value, behind) = self.rest.split_at(len);
            if let Some((_, kind)) = known.iter().find(|(number, _)| *number == tag) {
                let mut inside = Walk {
                    rest: value,
                    version: self.version,
                    flexible: self.flexible,
                };
                inside.field(*kind)?;
                // The codec reads on from where the value ends, so a wrong length would shift everything behind it.
                if !inside.rest.is_empty() {
                    return Err(Malformed);
                }
            }
            self.rest = behind;
        }
        Ok(())
    }

    fn count(&mut self) -> Result<Option<usize>, Malformed> {
        if self.flexible {
            return self.compact();
        }
        let (bytes, behind) = self.rest.split_first_chunk::<4>().ok_or(Malformed)?;
        self.rest = behind;
        nullable(i64::from(i32::from_be_bytes(*bytes)))
    }

    fn short(&mut self) -> Result<Option<usize>, Malformed> {
        let (bytes, behind) = self.rest.split_first_chunk::<2>().ok_or(Malformed)?;
        self.rest = behind;
        nullable(i64::from(i16::from_be_bytes(*bytes)))
    }

    /// A compact length is stored with one added; 0 is null.
    fn compact(&mut self) -> Result<Option<usize>, Malformed> {
        Ok((self.varint()? as usize).checked_sub(1))
    }

    fn varint(&mut self) -> Result<u32, Malformed> {
        let (value, len) = unsigned_varint(self.rest).ok_or(Malformed)?;
        self.skip(len)?;
        Ok(value)
    }

    fn skip(&mut self, len: usize) -> Result<(), Malformed> {
        self.rest = self.rest.get(len..).ok_or(Malformed)?;
        Ok(())
    }
}

fn nullable(len: i64) -> Result<Option<usize>, Malformed> {
    match len {
        -1 => Ok(None),
        len => usize::try_from(len).map(Some).map_err(|_| Malformed),
    }
}

/// Value and length of the varint that `bytes` begin with; `None` if it is cut off or longer than 32 bits.
pub(crate) fn unsigned_varint(bytes: &[u8]) -> Option<(u32, usize)> {
    let mut value = 0u64;
    for (index, byte) in bytes.iter().take(5).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((u32::try_from(value).ok()?, index + 1));
        }
    }
    None
}

const fn f(kind: Kind, since: i16) -> Field {
    Field {
        kind,
        since,
        until: i16::MAX,
    }
}

const fn between(kind: Kind, since: i16, until: i16) -> Field {
    Field { kind, since, until }
}

const fn plain(fields: &'static [Field]) -> Structure {
    Structure {
        fields,
        tagged: &[],
    }
}

use Kind::{Blob, Fixed, FixedList, List, Nested, Text};

/// A broker's address beside an answer about a partition.
static NODE_ENDPOINT: Structure = plain(&[f(Fixed(4), 0), f(Text, 0), f(Fixed(4), 0), f(Text, 0)]);

pub(crate) static PRODUCE_RESPONSE: Shape = Shape {
    flexible_since: 9,
    body: Structure {
        fields: &[
            f(
                List(&plain(&[
                    between(Text, 0, 12),
                    f(Fixed(16), 13),
                    f(
                        List(&Structure {
                            fields: &[
                                f(Fixed(4 + 2 + 8 + 8), 0),
                                f(Fixed(8), 5),
                                f(List(&plain(&[f(Fixed(4), 0), f(Text, 0)])), 8),
                                f(Text, 8),
                            ],
                            tagged: &[(0, Nested(&plain(&[f(Fixed(4 + 4), 0)])))],
                        }),
                        0,
                    ),
                ])),
                0,
            ),
            f(Fixed(4), 0),
        ],
        tagged: &[(0, List(&NODE_ENDPOINT))],
    },
};

pub(crate) static FETCH_REQUEST: Shape = Shape {
    flexible_since: 12,
    body: Structure {
        fields: &[
            between(Fixed(4), 0, 14),
            f(Fixed(4 + 4 + 4 + 1), 0),
            f(Fixed(4 + 4), 7),
            f(
                List(&plain(&[
                    between(Text, 0, 12),
                    f(Fixed(16), 13),
                    f(
                        List(&Structure {
                            fields: &[
                                f(Fixed(4), 0),
                                f(Fixed(4), 9),
                                f(Fixed(8), 0),
                                f(Fixed(4), 12),
                                f(Fixed(8), 5),
                                f(Fixed(4), 0),
                            ],
                            tagged: &[(0, Fixed(16)), (1, Fixed(8))],
                        }),
                        0,
                    ),
                ])),
                0,
            ),
            f(
                List(&plain(&[
                    between(Text, 0, 12),
                    f(Fixed(16), 13),
                    f(FixedList(4), 0),
                ])),
                7,
            ),
            f(Text, 11),
        ],
        tagged: &[(0, Text), (1, Nested(&plain(&[f(Fixed(4 + 8), 0)])))],
    },
};

pub(crate) static FETCH_RESPONSE: Shape = Shape {
    flexible_since: 12,
    body: Structure {
        fields: &[
            f(Fixed(4), 0),
            f(Fixed(2 + 4), 7),
            f(
                List(&plain(&[
                    between(Text, 0, 12),
                    f(Fixed(16), 13),
                    f(
                        List(&Structure {
                            fields: &[
                                f(Fixed(4 + 2 + 8 + 8), 0),
                                f(Fixed(8), 5),
                                f(List(&plain(&[f(Fixed(8 + 8), 0)])), 0),
                                f(Fixed(4), 11),
                                f(Blob, 0),
                            ],
                            tagged: &[
                                (0, Nested(&plain(&[f(Fixed(4 + 8), 0)]))),
                                (1, Nested(&plain(&[f(Fixed(4 + 4), 0)]))),
                                (2, Nested(&plain(&[f(Fixed(8 + 4), 0)]))),
                            ],
                        }),
                        0,
                    ),
                ])),
                0,
            ),
        ],
        tagged: &[(0, List(&NODE_ENDPOINT))],
    },
};

pub(crate) static LIST_OFFSETS_REQUEST: Shape = Shape {
    flexible_since: 6,
    body: plain(&[
        f(Fixed(4), 0),
        f(Fixed(1), 2),
        f(
            List(&plain(&[
                f(Text, 0),
                f(
                    List(&plain(&[f(Fixed(4), 0), f(Fixed(4), 4), f(Fixed(8), 0)])),
                    0,
                ),
            ])),
            0,
        ),
        f(Fixed(4), 10),
    ]),
};

pub(crate) static LIST_OFFSETS_RESPONSE: Shape = Shape {
    flexible_since: 6,
    body: plain(&[
        f(Fixed(4), 2),
        f(
            List(&plain(&[
                f(Text, 0),
                f(
                    List(&plain(&[f(Fixed(4 + 2 + 8 + 8), 0), f(Fixed(4), 4)])),
                    0,
                ),
            ])),
            0,
        ),
    ]),
};

pub(crate) static METADATA_RESPONSE: Shape = Shape {
    flexible_since: 9,
    body: plain(&[
        f(Fixed(4), 3),
        f(
            List(&plain(&[
                f(Fixed(4), 0),
                f(Text, 0),
                f(Fixed(4), 0),
                f(Text, 1),
            ])),
            0,
        ),
        f(Text, 2),
        f(Fixed(4), 1),
        f(
            List(&plain(&[
                f(Fixed(2), 0),
                f(Text, 0),
                f(Fixed(16), 10),
                f(Fixed(1), 1),
                f(
                    List(&plain(&[
                        f(Fixed(2 + 4 + 4), 0),
                        f(Fixed(4), 7),
                        f(FixedList(4), 0),
                        f(FixedList(4), 0),
                        f(FixedList(4), 5),
                    ])),
                    0,
                ),
                f(Fixed(4), 8),
            ])),
            0,
        ),
        between(Fixed(4), 8, 10),
        f(Fixed(2), 13),
    ]),
};

pub(crate) static FIND_COORDINATOR_RESPONSE: Shape = Shape {
    flexible_since: 3,
    body: plain(&[
        f(Fixed(4), 1),
        between(Fixed(2), 0, 3),
        between(Text, 1, 3),
        between(Fixed(4), 0, 3),
        between(Text, 0, 3),
        between(Fixed(4), 0, 3),
        f(
            List(&plain(&[
                f(Text, 0),
                f(Fixed(4), 0),
                f(Text, 0),
                f(Fixed(4), 0),
                f(Fixed(2), 0),
                f(Text, 0),
            ])),
            4,
        ),
    ]),
};

pub(crate) static API_VERSIONS_REQUEST: Shape = Shape {
    flexible_since: 3,
    body: plain(&[f(Text, 3), f(Text, 3)]),
};

static FEATURE: Structure = plain(&[f(Text, 0), f(Fixed(2 + 2), 0)]);

pub(crate) static API_VERSIONS_RESPONSE: Shape = Shape {
    flexible_since: 3,
    body: Structure {
        fields: &[
            f(Fixed(2), 0),
            f(List(&plain(&[f(Fixed(2 + 2 + 2), 0)])), 0),
            f(Fixed(4), 1),
        ],
        tagged: &[
            (0, List(&FEATURE)),
            (1, Fixed(8)),
            (2, List(&FEATURE)),
            (3, Fixed(1)),
        ],
    },
};

pub(crate) static OFFSET_FOR_LEADER_EPOCH_REQUEST: Shape = Shape {
    flexible_since: 4,
    body: plain(&[
        f(Fixed(4), 3),
        f(
            List(&plain(&[
                f(Text, 0),
                f(
                    List(&plain(&[f(Fixed(4), 0), f(Fixed(4), 2), f(Fixed(4), 0)])),
                    0,
                ),
            ])),
            0,
        ),
    ]),
};

pub(crate) static OFFSET_FOR_LEADER_EPOCH_RESPONSE: Shape = Shape {
    flexible_since: 4,
    body: plain(&[
        f(Fixed(4), 2),
        f(
            List(&plain(&[
                f(Text, 0),
                f(
                    List(&plain(&[
                        f(Fixed(2 + 4), 0),
                        f(Fixed(4), 1),
                        f(Fixed(8), 0),
                    ])),
                    0,
                ),
            ])),
            0,
        ),
    ]),
};

pub(crate) static DESCRIBE_CLUSTER_REQUEST: Shape = Shape {
    flexible_since: 0,
    body: plain(&[f(Fixed(1), 0), f(Fixed(1), 1), f(Fixed(1), 2)]),
};

pub(crate) static DESCRIBE_CLUSTER_RESPONSE: Shape = Shape {
    flexible_since: 0,
    body: plain(&[
        f(Fixed(4 + 2), 0),
        f(Text, 0),
        f(Fixed(1), 1),
        f(Text, 0),
        f(Fixed(4), 0),
        f(
            List(&plain(&[
                f(Fixed(4), 0),
                f(Text, 0),
                f(Fixed(4), 0),
                f(Text, 0),
                f(Fixed(1), 2),
            ])),
            0,
        ),
        f(Fixed(4), 0),
    ]),
};

pub(crate) static SHARE_FETCH_RESPONSE: Shape = Shape {
    flexible_since: 0,
    body: plain(&[
        f(Fixed(4 + 2), 0),
        f(Text, 0),
        f(Fixed(4), 1),
        f(
            List(&plain(&[
                f(Fixed(16), 0),
                f(
                    List(&plain(&[
                        f(Fixed(4 + 2), 0),
                        f(Text, 0),
                        f(Fixed(2), 0),
                        f(Text, 0),
                        f(Nested(&plain(&[f(Fixed(4 + 4), 0)])), 0),
                        f(Blob, 0),
                        f(List(&plain(&[f(Fixed(8 + 8 + 2), 0)])), 0),
                    ])),
                    0,
                ),
            ])),
            0,
        ),
        f(List(&NODE_ENDPOINT), 0),
    ]),
};

pub(crate) static SHARE_ACKNOWLEDGE_RESPONSE: Shape = Shape {
    flexible_since: 0,
    body: plain(&[
        f(Fixed(4 + 2), 0),
        f(Text, 0),
        f(
            List(&plain(&[
                f(Fixed(16), 0),
                f(
                    List(&plain(&[
                        f(Fixed(4 + 2), 0),
                        f(Text, 0),
                        f(Nested(&plain(&[f(Fixed(4 + 4), 0)])), 0),
                    ])),
                    0,
                ),
            ])),
            0,
        ),
        f(List(&NODE_ENDPOINT), 0),
    ]),
};

#[cfg(test)]
mod tests;
