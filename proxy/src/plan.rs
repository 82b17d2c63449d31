//! Where the records at one offset come from: archive, cluster, or nowhere yet.

use everlog_format::{Offset, OffsetRange};

/// What is known of the cluster's side when a plan is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Live {
    /// Nobody asked for this offset yet; `end` is the last known high watermark.
    Unasked { end: Option<Offset> },
    /// The leader has just answered OFFSET_OUT_OF_RANGE. `start` is its log's start, asked for after that.
    OutOfRange { start: Offset },
}

/// Where the next records for a client come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FetchPlan {
    /// Read from the archive. Holes are met while reading: only the tree below knows them.
    Archive,
    /// What the cluster says goes to the client: the cluster alone knows, or nobody ever had it.
    Live,
    /// The cluster has let it go and no commit covers it yet: look for a newer commit, then ask the client to try
    /// again. Not a hole: the archiver may still be holding it.
    NotYet,
}

/// Prefers the archive wherever the two overlap: replays are to cost the bucket and not the brokers.
///
/// Offsets at or above the high watermark are the cluster's even if the archive covers them: after an unclean election
/// the cluster may have lost records that were archived, and what it lost must not come back.
pub(crate) fn plan(wanted: Offset, archived: Option<OffsetRange>, live: Live) -> FetchPlan {
    let covered = archived.is_some_and(|range| range.contains(wanted));
    match live {
        Live::Unasked { end } if covered && end.is_none_or(|end| wanted < end) => {
            FetchPlan::Archive
        }
        Live::Unasked { .. } => FetchPlan::Live,
        // Out of range also means "above the log's end": only below the log's start may the archive step in.
        Live::OutOfRange { start } if start <= wanted => FetchPlan::Live,
        Live::OutOfRange { .. } if covered => FetchPlan::Archive,
        Live::OutOfRange { .. } if archived.is_some_and(|range| range.end() <= wanted) => {
            FetchPlan::NotYet
        }
        Live::OutOfRange { .. } => FetchPlan::Live,
    }
}

/// How the bytes of one response are parted between archive and cluster, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shares {
    /// The whole response.
    pub(crate) total: usize,
    /// What the cluster is asked for. At least 1: the broker's first partition may exceed it by a batch.
    pub(crate) live: usize,
}

/// By the number of partitions on each side, so that a backfill that always fills its share leaves the tail its own,
/// and the reverse. What the cluster leaves over goes to the archive.
pub(crate) fn shares(
    max_bytes: usize,
    live_partitions: usize,
    archived_partitions: usize,
) -> Shares {
    let all = (live_partitions + archived_partitions).max(1);
    // Parts of a response of at most 100 MiB and counts bounded by a request's size: no overflow in 128 bits.
    let live = max_bytes as u128 * live_partitions as u128 / all as u128;
    Shares {
        total: max_bytes,
        live: usize::try_from(live).unwrap_or(max_bytes).max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(raw: usize) -> Offset {
        Offset::new(i64::try_from(raw).expect("small")).expect("not negative")
    }

    fn run(picture: &str, letter: char) -> Option<OffsetRange> {
        let start = picture.find(letter)?;
        OffsetRange::new(at(start), at(picture.rfind(letter)? + 1))
    }

    /// Archive, cluster and wanted offset as a picture; column = offset. The plan before anybody asked, and the one
    /// after the cluster answered "out of range" (where it would).
    #[track_caller]
    fn check(
        archive: &str,
        cluster: &str,
        wanted: &str,
        unasked: FetchPlan,
        out_of_range: Option<FetchPlan>,
    ) {
        let (archived, live) = (run(archive, 'A'), run(cluster, 'L'));
        let wanted = at(wanted.find('^').expect("an offset"));
        let end = live.map(OffsetRange::end);
        assert_eq!(
            plan(wanted, archived, Live::Unasked { end }),
            unasked,
            "unasked"
        );
        // At the log's end a fetch waits; beyond it, or below its start, it is out of range.
        let refused = live.is_none_or(|live| wanted < live.start() || live.end() < wanted);
        assert_eq!(refused, out_of_range.is_some(), "the picture is wrong");
        if let Some(expected) = out_of_range {
            let start = live.map_or(at(0), OffsetRange::start);
            assert_eq!(
                plan(wanted, archived, Live::OutOfRange { start }),
                expected,
                "out of range"
            );
        }
    }

    use FetchPlan::{Archive, Live as Cluster, NotYet};

    #[test]
    fn below_the_archived_end_the_archive_answers() {
        check("AAAAAA", "    LLLLLL", "^", Archive, Some(Archive));
        check("AAAAAA", "    LLLLLL", "   ^", Archive, Some(Archive));
        check("AAAAAA", "    LLLLLL", "    ^", Archive, None);
        check("AAAAAA", "    LLLLLL", "     ^", Archive, None);
    }

    #[test]
    fn from_the_archived_end_on_the_cluster_answers() {
        check("AAAAAA", "    LLLLLL", "      ^", Cluster, None);
        check("AAAAAA", "    LLLLLL", "          ^", Cluster, None);
        check(
            "AAAAAA",
            "    LLLLLL",
            "           ^",
            Cluster,
            Some(Cluster),
        );
    }

    #[test]
    fn before_the_archive_began_the_cluster_has_its_say() {
        check("   AAA", "     LLL", " ^", Cluster, Some(Cluster));
    }

    #[test]
    fn between_archive_and_cluster_the_client_waits_for_a_commit() {
        check("AAA", "      LLL", "   ^", Cluster, Some(NotYet));
        check("AAA", "      LLL", "     ^", Cluster, Some(NotYet));
        check("AAA", "      LLL", "      ^", Cluster, None);
    }

    #[test]
    fn without_an_archive_everything_is_the_clusters() {
        check("", "   LLL", " ^", Cluster, Some(Cluster));
        check("", "   LLL", "    ^", Cluster, None);
    }

    #[test]
    fn what_the_cluster_lost_does_not_come_back() {
        // An unclean election cut the log below what was archived.
        check("AAAAAAAA", "  LLL", "    ^", Archive, None);
        check("AAAAAAAA", "  LLL", "     ^", Cluster, None);
        check("AAAAAAAA", "  LLL", "      ^", Cluster, Some(Cluster));
    }

    #[test]
    fn an_unknown_watermark_does_not_hide_history() {
        assert_eq!(
            plan(
                at(1),
                OffsetRange::new(at(0), at(5)),
                Live::Unasked { end: None }
            ),
            Archive
        );
    }

    #[test]
    fn both_sides_have_a_share() {
        assert_eq!(
            shares(1000, 1, 3),
            Shares {
                total: 1000,
                live: 250
            }
        );
        assert_eq!(
            shares(1000, 0, 3),
            Shares {
                total: 1000,
                live: 1
            }
        );
        assert_eq!(
            shares(1000, 2, 0),
            Shares {
                total: 1000,
                live: 1000
            }
        );
        assert_eq!(shares(1, 1, 1), Shares { total: 1, live: 1 });
    }
}
