//! Record batches: any bytes, and any bytes under a right checksum.
#![no_main]

use everlog_format::{BATCH_HEADER_LEN, Offset, decode_batches, with_last_offset};
use everlog_fuzz::{Bounded, DECODER_ALLOCATION_MAX};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded(DECODER_ALLOCATION_MAX);

fuzz_target!(|data: &[u8]| {
    for batch in decode_batches(data) {
        drop(batch);
    }
    let mut batch = data.to_vec();
    batch.resize(data.len().max(BATCH_HEADER_LEN), 0);
    let length = i32::try_from(batch.len() - 12).expect("small");
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    batch[16] = 2;
    let checksum = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&checksum.to_be_bytes());
    let Some(Ok(decoded)) = decode_batches(&batch).next() else {
        return;
    };
    if let Ok(further) = Offset::new(decoded.last_offset.saturating_add(9))
        && let Some(longer) = with_last_offset(&batch, further)
    {
        let again = decode_batches(&longer)
            .next()
            .expect("a batch")
            .expect("whole");
        assert_eq!(again.last_offset, further.get());
        assert_eq!(again.records, decoded.records);
    }
});
