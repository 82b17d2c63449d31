//! The rules of the failure checklist, each with a switch, so that a test can show that it is missed when it is off.
//!
//! In a normal build all rules hold and the compiler sees a constant. Under `cfg(test)` or the feature `mutations` a thread may run
//! with other ones (`with`).

/// Which rules hold. `docs/wal.md` has the table from rule to test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each field is a switch of its own"
)]
pub struct Rules {
    /// Torn write: a block counts only if header, directory and every record match their checksums.
    pub torn_write: bool,
    /// Stale lap: a block counts only if it carries the LSN of the place where it is read.
    pub stale_lap: bool,
    /// Adjacency: a block counts only if it carries the checksum of the block before it.
    pub chain: bool,
    /// Another log's block on the same device counts as nothing.
    pub identity: bool,
    /// Bad middle: the log is cut only where nothing says that the missing block had been acknowledged.
    pub bad_middle: bool,
    /// The mark of the acknowledged end in the header, written when the log falls idle, is evidence as well.
    pub idle_mark: bool,
    /// A block of this log in a place that is not its own is a misdirected write: the log is not opened.
    pub misdirected: bool,
    /// A header older than the blocks it describes is a lost write: the log is not opened.
    pub header_rolled_back: bool,
    /// Header: two copies.
    pub header_two_copies: bool,
    /// Header: the second copy is written only after the first is durable.
    pub header_one_by_one: bool,
    /// Header: after a crash the copy that is not the newest is written first.
    pub header_spares_newest: bool,
    /// Header: the newest by epoch and generation counts.
    pub header_generation: bool,
    /// Header: a copy counts only if its checksum matches.
    pub header_checksum: bool,
    /// Replaced device: a header with another size, sector or layout is refused.
    pub device_identity: bool,
    /// Ordering: a record is acknowledged only after all blocks before its own are durable.
    pub ack_in_order: bool,
    /// Volatile cache: a record is acknowledged only after its write completed as durable.
    pub ack_after_durable: bool,
    /// Failed write: poison, no retry, nobody is acknowledged any more.
    pub poison: bool,
    /// Short write: treated as a failure.
    pub short_write: bool,
    /// Fenced out (EBADE): stop and say so.
    pub fenced: bool,
    /// Ring full: nothing is overwritten that the durable header still calls part of the log.
    pub no_overwrite: bool,
    /// Ring full: ordinary records leave room for relocation and state.
    pub reserve: bool,
    /// The window of writes in flight is durable before it is used.
    pub window_persisted: bool,
    /// Space is used again only after both header copies that give it up are durable.
    pub reuse_after_both_copies: bool,
    /// The tail never passes a record that has not been trimmed.
    pub tail_keeps_live: bool,
    /// The tail passes a relocated record only after its copy is durable.
    pub relocate_before_tail: bool,
    /// A record met twice counts once, at its later place.
    pub dedupe: bool,
    /// What has been trimmed and how far a stream was numbered is written again before the tail passes its last mention.
    pub state_carried: bool,
    /// `sync_trim` resolves only after its state is durable.
    pub sync_trim_durable: bool,
    /// A stream with a gap in its numbers has lost a record: the log is not opened.
    pub dense: bool,
    /// New epoch: the next process writes beyond everything the dead one may still have in flight.
    pub epoch_gap: bool,
    /// A block never wraps around the end of the ring.
    pub no_wrap: bool,
    /// `fsync` before the first read.
    pub sync_before_read: bool,
    /// Read back: a record's checksum is checked each time it is read from the device.
    pub verify_reads: bool,
    /// Read back: what recovery judges bad it reads a second time.
    pub read_again: bool,
    /// The epoch never goes down along the log.
    pub epoch_order: bool,
    /// Clock: no decision by a clock that is on the device.
    pub no_clock: bool,
    /// 512 vs 4096: everything is aligned to the physical sector, and to 4096 bytes at least.
    pub physical_sector: bool,
    /// Second instance, same host: the device is claimed and locked while it is open.
    pub exclusive: bool,
    /// Second instance, other host: the old owner is thrown out before anything is read.
    pub preempt: bool,
    /// Second instance, other host: its writes in flight have ended by then.
    pub preempt_aborts: bool,
    /// Partial batch: a record counts as a whole or not at all; its checksum covers every byte.
    pub whole_record: bool,
    /// Double replay: a number that was given out is not taken a second time.
    pub once: bool,
}

impl Rules {
    /// All rules hold.
    pub const ALL: Rules = Rules {
        torn_write: true,
        stale_lap: true,
        chain: true,
        identity: true,
        bad_middle: true,
        idle_mark: true,
        misdirected: true,
        header_rolled_back: true,
        header_two_copies: true,
        header_one_by_one: true,
        header_spares_newest: true,
        header_generation: true,
        header_checksum: true,
        device_identity: true,
        ack_in_order: true,
        ack_after_durable: true,
        poison: true,
        short_write: true,
        fenced: true,
        no_overwrite: true,
        reserve: true,
        window_persisted: true,
        reuse_after_both_copies: true,
        tail_keeps_live: true,
        relocate_before_tail: true,
        dedupe: true,
        state_carried: true,
        sync_trim_durable: true,
        dense: true,
        epoch_gap: true,
        no_wrap: true,
        sync_before_read: true,
        verify_reads: true,
        read_again: true,
        epoch_order: true,
        no_clock: true,
        physical_sector: true,
        exclusive: true,
        preempt: true,
        preempt_aborts: true,
        whole_record: true,
        once: true,
    };
}

/// The rules that hold here and now.
#[cfg(not(any(test, feature = "mutations")))]
#[inline]
pub(crate) const fn rules() -> Rules {
    Rules::ALL
}

#[cfg(any(test, feature = "mutations"))]
pub(crate) use switched::rules;
#[cfg(any(test, feature = "mutations"))]
pub use switched::with;

#[cfg(any(test, feature = "mutations"))]
mod switched {
    use std::cell::Cell;

    use super::Rules;

    thread_local! {
        static RULES: Cell<Rules> = const { Cell::new(Rules::ALL) };
    }

    /// The rules that hold in this thread.
    #[inline]
    pub(crate) fn rules() -> Rules {
        RULES.get()
    }

    /// Runs `act` in this thread under other rules. What a log's own thread does is not touched: drive [`crate::core::Core`] for that.
    pub fn with<T>(rules: Rules, act: impl FnOnce() -> T) -> T {
        struct Restore(Rules);
        impl Drop for Restore {
            fn drop(&mut self) {
                RULES.set(self.0);
            }
        }
        let _restore = Restore(RULES.replace(rules));
        act()
    }
}
