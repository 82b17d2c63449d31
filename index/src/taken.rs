//! What a commit number that may be taken means.
//!
//! Commit n+1 is put if nothing has its name. The answer to the put alone proves nothing unless it is "created": a
//! store says 412 or 409 also for our own repeated request, or for a rival's that then fails, and a request without an
//! answer may have arrived, or may arrive later. What lies under the number decides. *Ours* are the bytes of this very
//! attempt; *own* are other bytes with this writer's id: an attempt that was given up for other entries and arrived
//! late. *Unsure* means that nothing has been sent by this call yet, but an earlier call ended without knowing, or was
//! dropped in the middle: it reads before it writes.
//!
//! | row | put said  | get said   | whose bytes | decision |
//! |-----|-----------|------------|-------------|----------|
//! | A   | created   | not asked  |             | won |
//! | B   | refused   | bytes      | ours        | won: an earlier request of ours arrived |
//! | C   | refused   | bytes      | a rival's   | lost: rebase, count it |
//! | D   | refused   | bytes      | a sweep's   | lost, and what is uploaded but not committed is void |
//! | E   | refused   | bytes      | own         | lost to ourselves: rebase, count nothing |
//! | F   | refused   | not there  |             | the same key again |
//! | G   | refused   | no answer  |             | unknown: keep the attempt, give the error |
//! | H   | any       | bytes      | unreadable, or they do not follow our base | stop: nothing is written behind damage |
//! | I   | no answer | bytes      | ours        | won |
//! | J   | no answer | bytes      | a rival's   | as C |
//! | K   | no answer | bytes      | a sweep's   | as D |
//! | L   | no answer | bytes      | own         | as E |
//! | M   | no answer | not there  |             | unknown, it may arrive yet: keep the attempt, give the error |
//! | N   | no answer | no answer  |             | as M |
//! | O   | unsure    | bytes      | ours        | won |
//! | P   | unsure    | bytes      | a rival's   | as C |
//! | Q   | unsure    | bytes      | a sweep's   | as D |
//! | R   | unsure    | bytes      | own         | as E |
//! | S   | unsure    | not there  |             | put: for the same entries the same bytes |
//! | T   | unsure    | no answer  |             | as M |
//!
//! "No answer" is any failure but "not found": a refusal for want of permission may follow a repeated request of which
//! the first arrived. *Won* holds for the entries of the attempt; a caller that has changed them meanwhile is told that
//! it lost (to itself), and goes on at the new end.
//!
//! A free number means something only to who knows the chain: commits are pruned. A writer that has not read it for a
//! day finds the newest by listing first:
//!
//! | row | newest | between base and newest | decision |
//! |-----|--------|-------------------------|----------|
//! | U   | the base    |                       | go on |
//! | V   | a later one | every commit readable | the first one decides as B to E, a sweep among the others voids |
//! | W   | a later one | one is pruned         | lost, and taken for swept: nobody can tell any more |
//! | X   | an earlier one, none, or other bytes | | stop: the store shows less than it had |

/// What came of a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Created,
    Refused,
    NoAnswer,
    /// Nothing was put by this call, an earlier attempt is unsure.
    Unsure,
}

/// What lies under the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    NotAsked,
    Ours,
    Rivals,
    Sweeps,
    Own,
    Unreadable,
    NotThere,
    NoAnswer,
}

/// A row of the tables above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    A,
    B,
    C,
    D,
    E,
    F,
    G,
    H,
    I,
    J,
    K,
    L,
    M,
    N,
    O,
    P,
    Q,
    R,
    S,
    T,
    U,
    V,
    W,
    X,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Won,
    Lost,
    LostToSweep,
    LostToOurselves,
    /// Put, the first time or once more.
    Put,
    /// Keep the attempt and give the error.
    Unknown,
    /// Give the error of what cannot be read.
    Stop,
    /// Go on from the base.
    GoOn,
    /// Wrong everywhere: what a test puts in a row's place to see that the row matters.
    #[cfg(test)]
    Forget,
    /// Wrong everywhere, whatever the row: every row decides as it should, but no sweep makes anything void.
    #[cfg(test)]
    Unvoided,
}

/// What a listing shows of a chain that has not been read for a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Newest {
    /// What the writer stands on, also if both are none.
    TheBase,
    /// A higher number.
    Later,
    /// A lower number, none, or other bytes under the same number.
    NotAfter,
}

impl Newest {
    /// Compares number and hash of the base with those of the newest commit of the listing.
    pub(crate) fn of<H: PartialEq>(base: Option<(u64, H)>, found: Option<(u64, H)>) -> Newest {
        if base == found {
            Newest::TheBase
        } else if base.map(|b| b.0) < found.map(|f| f.0) {
            Newest::Later
        } else {
            Newest::NotAfter
        }
    }
}

/// What is left between the base and the newest commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Between {
    /// Every commit, each following the one before.
    Readable,
    /// One is pruned, does not follow, or they are too many to read.
    Gone,
}

/// The row of the second table that applies.
pub(crate) fn recalled_row(newest: Newest, between: Between) -> Row {
    match (newest, between) {
        (Newest::TheBase, _) => Row::U,
        (Newest::Later, Between::Readable) => Row::V,
        (Newest::Later, Between::Gone) => Row::W,
        (Newest::NotAfter, _) => Row::X,
    }
}

/// The row that applies. Total: a combination that cannot come is answered by the most careful row.
pub(crate) fn row(said: Said, seen: Seen) -> Row {
    match (said, seen) {
        (Said::Created, _) => Row::A,
        (_, Seen::Unreadable) => Row::H,
        (Said::Refused, Seen::Ours) => Row::B,
        (Said::Refused, Seen::Rivals) => Row::C,
        (Said::Refused, Seen::Sweeps) => Row::D,
        (Said::Refused, Seen::Own) => Row::E,
        (Said::Refused, Seen::NotThere) => Row::F,
        (Said::Refused, Seen::NoAnswer | Seen::NotAsked) => Row::G,
        (Said::NoAnswer, Seen::Ours) => Row::I,
        (Said::NoAnswer, Seen::Rivals) => Row::J,
        (Said::NoAnswer, Seen::Sweeps) => Row::K,
        (Said::NoAnswer, Seen::Own) => Row::L,
        (Said::NoAnswer, Seen::NotThere) => Row::M,
        (Said::NoAnswer, Seen::NoAnswer | Seen::NotAsked) => Row::N,
        (Said::Unsure, Seen::Ours) => Row::O,
        (Said::Unsure, Seen::Rivals) => Row::P,
        (Said::Unsure, Seen::Sweeps) => Row::Q,
        (Said::Unsure, Seen::Own) => Row::R,
        (Said::Unsure, Seen::NotThere) => Row::S,
        (Said::Unsure, Seen::NoAnswer | Seen::NotAsked) => Row::T,
    }
}

impl Row {
    /// The last column.
    pub(crate) fn decision(self) -> Decision {
        match self {
            Row::A | Row::B | Row::I | Row::O => Decision::Won,
            Row::C | Row::J | Row::P => Decision::Lost,
            Row::D | Row::K | Row::Q => Decision::LostToSweep,
            Row::E | Row::L | Row::R => Decision::LostToOurselves,
            Row::F | Row::S => Decision::Put,
            Row::G | Row::M | Row::N | Row::T => Decision::Unknown,
            Row::H | Row::X => Decision::Stop,
            Row::U => Decision::GoOn,
            Row::V => Decision::Lost,
            Row::W => Decision::LostToSweep,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SAID: [Said; 4] = [Said::Created, Said::Refused, Said::NoAnswer, Said::Unsure];
    const SEEN: [Seen; 8] = [
        Seen::NotAsked,
        Seen::Ours,
        Seen::Rivals,
        Seen::Sweeps,
        Seen::Own,
        Seen::Unreadable,
        Seen::NotThere,
        Seen::NoAnswer,
    ];
    const NEWEST: [Newest; 3] = [Newest::TheBase, Newest::Later, Newest::NotAfter];
    const BETWEEN: [Between; 2] = [Between::Readable, Between::Gone];

    /// The first table by hand, one test for each row: what leads to it, and what it decides.
    macro_rules! table {
        ($($name:ident: $row:ident = $said:pat, $seen:pat => $decision:ident;)*) => {
            $(#[test]
            fn $name() {
                let mut reached = 0;
                for said in SAID {
                    for seen in SEEN {
                        let listed = matches!((said, seen), ($said, $seen));
                        reached += u32::from(listed);
                        assert_eq!(row(said, seen) == Row::$row, listed, "{said:?}, {seen:?}");
                    }
                }
                assert_ne!(reached, 0, "nothing leads to the row");
                assert_eq!(Row::$row.decision(), Decision::$decision);
            })*

            /// Which rows' lines name this combination.
            fn listed(said: Said, seen: Seen) -> Vec<Row> {
                let mut rows = Vec::new();
                $(if matches!((said, seen), ($said, $seen)) {
                    rows.push(Row::$row);
                })*
                rows
            }
        };
    }

    table! {
        row_a: A = Said::Created, _ => Won;
        row_b: B = Said::Refused, Seen::Ours => Won;
        row_c: C = Said::Refused, Seen::Rivals => Lost;
        row_d: D = Said::Refused, Seen::Sweeps => LostToSweep;
        row_e: E = Said::Refused, Seen::Own => LostToOurselves;
        row_f: F = Said::Refused, Seen::NotThere => Put;
        row_g: G = Said::Refused, Seen::NoAnswer | Seen::NotAsked => Unknown;
        row_h: H = Said::Refused | Said::NoAnswer | Said::Unsure, Seen::Unreadable => Stop;
        row_i: I = Said::NoAnswer, Seen::Ours => Won;
        row_j: J = Said::NoAnswer, Seen::Rivals => Lost;
        row_k: K = Said::NoAnswer, Seen::Sweeps => LostToSweep;
        row_l: L = Said::NoAnswer, Seen::Own => LostToOurselves;
        row_m: M = Said::NoAnswer, Seen::NotThere => Unknown;
        row_n: N = Said::NoAnswer, Seen::NoAnswer | Seen::NotAsked => Unknown;
        row_o: O = Said::Unsure, Seen::Ours => Won;
        row_p: P = Said::Unsure, Seen::Rivals => Lost;
        row_q: Q = Said::Unsure, Seen::Sweeps => LostToSweep;
        row_r: R = Said::Unsure, Seen::Own => LostToOurselves;
        row_s: S = Said::Unsure, Seen::NotThere => Put;
        row_t: T = Said::Unsure, Seen::NoAnswer | Seen::NotAsked => Unknown;
    }

    #[test]
    fn every_combination_belongs_to_exactly_one_row() {
        let mut rows = BTreeSet::new();
        for said in SAID {
            for seen in SEEN {
                assert_eq!(listed(said, seen), [row(said, seen)], "{said:?}, {seen:?}");
                rows.insert(format!("{:?}", row(said, seen)));
            }
        }
        for newest in NEWEST {
            for between in BETWEEN {
                rows.insert(format!("{:?}", recalled_row(newest, between)));
            }
        }
        let all: BTreeSet<String> = ('A'..='X').map(String::from).collect();
        assert_eq!(rows, all, "a row that nothing leads to");
    }

    fn leads_to(wanted: Row) -> Vec<(Newest, Between)> {
        let all = NEWEST.iter().flat_map(|n| BETWEEN.map(|b| (*n, b)));
        all.filter(|(n, b)| recalled_row(*n, *b) == wanted)
            .collect()
    }

    #[test]
    fn row_u() {
        let both = BETWEEN.map(|between| (Newest::TheBase, between));
        assert_eq!(leads_to(Row::U), both);
        assert_eq!(Row::U.decision(), Decision::GoOn);
        assert_eq!(Newest::of::<u8>(None, None), Newest::TheBase);
        assert_eq!(Newest::of(Some((3, 'a')), Some((3, 'a'))), Newest::TheBase);
    }

    #[test]
    fn row_v() {
        assert_eq!(leads_to(Row::V), [(Newest::Later, Between::Readable)]);
        assert_eq!(Row::V.decision(), Decision::Lost);
        assert_eq!(Newest::of(None, Some((0, 'a'))), Newest::Later);
        assert_eq!(Newest::of(Some((3, 'a')), Some((4, 'a'))), Newest::Later);
    }

    #[test]
    fn row_w() {
        assert_eq!(leads_to(Row::W), [(Newest::Later, Between::Gone)]);
        assert_eq!(Row::W.decision(), Decision::LostToSweep);
    }

    #[test]
    fn row_x() {
        let both = BETWEEN.map(|between| (Newest::NotAfter, between));
        assert_eq!(leads_to(Row::X), both);
        assert_eq!(Row::X.decision(), Decision::Stop);
        for found in [None, Some((2, 'a')), Some((3, 'b'))] {
            assert_eq!(Newest::of(Some((3, 'a')), found), Newest::NotAfter);
        }
    }
}
