//! Any bytes on a device are read without a panic, without asking for memory that the device can't justify, and in bounded
//! time. Seeded and short; `tests/fuzz` looks for more with coverage as its guide, through the same images.
#![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

// The images of the fuzz targets.
#[path = "../../fuzz/src/image.rs"]
#[expect(unreachable_pub, reason = "the fuzz targets are another crate")]
mod image;

use std::collections::BTreeSet;

use everlog_wal::Lsn;
use everlog_wal::blank::look;
use everlog_wal::block::{Block, BlockHeader, HEADER_BYTES};
use everlog_wal::export::{SurveyOptions, Totals, survey};
use everlog_wal::geometry::Slot;
use everlog_wal::header::Header;
use everlog_wal::recovery::{ScanOptions, scan};
use image::{ID, Source, ring, sealed_block};

const ROUNDS: u64 = 4_000;

/// A small generator with a state that can be printed (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn bytes(&mut self, max: u64) -> Vec<u8> {
        let len = self.next() % (max + 1);
        (0..len).map(|_| self.next().to_le_bytes()[3]).collect()
    }
}

/// Runs `check` on bytes from one seed after the other; `EVERLOG_SEED` runs one alone.
fn with_seeds(check: impl Fn(&mut Random)) {
    let one = std::env::var("EVERLOG_SEED").ok();
    let one = one.map(|text| text.parse::<u64>().unwrap());
    let seeds = one.map_or(1..=ROUNDS, |seed| seed..=seed);
    for seed in seeds {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // Zero is the one state that xorshift never leaves.
            check(&mut Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1));
        }));
        assert!(outcome.is_ok(), "EVERLOG_SEED={seed}");
    }
}

#[test]
fn hostile_header_copies() {
    with_seeds(|random| {
        let bytes = random.bytes(1024);
        let _ = Header::decode(Slot::A, 0, &bytes);
        let header = image::header(&mut Source(&bytes));
        let mut copy = vec![0; 512];
        header.encode(Slot::B, 4096, &mut copy);
        if let Ok(read) = Header::decode(Slot::B, 4096, &copy) {
            assert_eq!(read, header);
        }
    });
}

#[test]
fn hostile_blocks() {
    with_seeds(|random| {
        let mut bytes = random.bytes(8192);
        bytes.resize(bytes.len().max(HEADER_BYTES), 0);
        let mut raw = [0; HEADER_BYTES];
        raw.copy_from_slice(&bytes[..HEADER_BYTES]);
        // Fields that can be, now and then.
        if random.next() % 2 == 0 {
            raw[12..16].fill(0);
            raw[40..60].fill(0);
            raw[49] = 16 * (raw[60] % 3 + 1);
            raw[56] = raw[61] % 40;
            raw[90..96].fill(0);
        }
        bytes[..HEADER_BYTES].copy_from_slice(&sealed_block(raw));
        if let Ok(header) = BlockHeader::decode(ring(), ID, &bytes)
            && let Some(block) = Block::open(header, &bytes)
        {
            assert_eq!(block.records().count(), block.entries.len());
        }
    });
}

#[test]
fn hostile_devices_are_looked_at_recovered_and_rescued() {
    with_seeds(|random| {
        let bytes = random.bytes(600);
        let device = image::image(&mut Source(&bytes));
        assert!(!look(&device).is_empty(), "two headers are on it");
        let recovered = scan(&device, &ScanOptions::default());
        let mut seen = BTreeSet::new();
        let mut totals = Totals::default();
        // With what was let go of: blocks behind the end may have trimmed what recovery still calls live.
        let all = SurveyOptions {
            include_released: true,
            ..SurveyOptions::default()
        };
        if let Ok(survey) = survey(&device, &all, &mut |_, _| {}) {
            let mut sink = |record: everlog_wal::export::FoundRecord<'_>| {
                if record.is_intact && !record.is_conflict {
                    assert!(seen.insert((record.stream, record.seq)), "twice");
                }
                Ok(())
            };
            survey
                .records(&device, Lsn::ZERO, &mut totals, &mut sink)
                .unwrap();
        }
        if let Ok(recovered) = recovered {
            assert!(totals.records >= recovered.recovery.live_records);
        }
    });
}
