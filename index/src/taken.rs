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
