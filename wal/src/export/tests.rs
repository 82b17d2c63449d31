//! Whatever is damaged, the rest comes out, once and in order.

use super::*;
use crate::block::{NewEntry, encode, encode_pad};
use crate::device::DeviceGeometry;
use crate::device::ram::RamDevice;
use crate::geometry::Slot;
use crate::header::COPY_BYTES;

const ID: LogId = LogId::new([9; 16]);
const DEVICE_BYTES: u64 = 4 << 20;

/// A log written by hand: block after block, with a header when asked for.
struct Image {
    device: RamDevice,
    ring: Ring,
    at: Lsn,
    chain: u32,
    epoch: u64,
    tail: Lsn,
    placed: Vec<(Lsn, u64)>,
    gaps: Vec<Gap>,
}

fn stream(number: u8) -> StreamId {
    StreamId::new([number; 32])
}

fn payload(number: u8, seq: u64) -> Vec<u8> {
    let len = 100 + seq % 5 * 1500;
    (seq..seq + len)
        .map(|at| number ^ u8::try_from(at % 251).expect("small"))
        .collect()
}

fn record(number: u8, seq: u64) -> NewEntry<Vec<u8>> {
    NewEntry {
        kind: EntryKind::Record,
        stream: stream(number),
        seq: Seq::new(seq),
        payload: payload(number, seq),
    }
}

impl Image {
    fn new() -> Image {
        let device = RamDevice::new(usize::try_from(DEVICE_BYTES).expect("small"));
        Image {
            ring: Ring::of(device.geometry()).expect("large enough"),
            device,
            at: Lsn::ZERO,
            chain: 0,
            epoch: 1,
            tail: Lsn::ZERO,
            placed: Vec::new(),
            gaps: Vec::new(),
        }
    }

    /// Writes a block and gives its LSN.
    fn block(&mut self, entries: &[NewEntry<Vec<u8>>]) -> Lsn {
        let mut buf = AlignedBuf::zeroed(1 << 20);
        let base = BlockHeader {
            durable: self.at,
            tail: self.tail,
            ..BlockHeader::gap_pad(ID, self.epoch, self.at, self.at.plus(4096), self.chain)
        };
        let (header, checksum) = encode(self.ring, base, entries, &mut buf);
        let left = self.ring.left_in_lap(self.at);
        if header.bytes > left {
            let pad = BlockHeader {
                kind: BlockKind::LapPad,
                bytes: left,
                ..base
            };
            let mut unit = AlignedBuf::zeroed(4096);
            self.chain = encode_pad(self.ring, &pad, &mut unit);
            self.write(self.ring.physical(self.at), unit.as_slice());
            self.at = self.at.plus(left);
            return self.block(entries);
        }
        self.write(self.ring.physical(self.at), buf.as_slice());
        self.placed.push((self.at, header.bytes));
        (self.chain, self.at) = (checksum, header.end());
        header.lsn
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        self.device
            .damage(offset, |place| place[..bytes.len()].copy_from_slice(bytes));
    }

    fn flip(&self, offset: u64) {
        self.device.damage(offset, |bytes| bytes[0] ^= 1);
    }

    fn headers(&self) {
        let header = Header {
            id: ID,
            generation: 1,
            epoch: self.epoch,
            device: self.device.geometry(),
            unit: 4096,
            clean: false,
            tail: self.tail,
            tail_chain: 0,
            limit: self.at,
            durable: self.at,
            record_bytes_max: 1 << 20,
            reservation_key: 0,
            wall_ms: 0,
            formatted_ms: 0,
            gaps: self.gaps.clone(),
        };
        for slot in Slot::BOTH {
            let mut copy = vec![0; COPY_BYTES];
            header.encode(slot, self.ring.header(slot), &mut copy);
            self.write(self.ring.header(slot), &copy);
        }
    }

    /// What comes out as intact: stream, number, and that the payload is the right one.
    fn rescued(&self, options: &SurveyOptions) -> (Survey, Totals, Vec<(StreamId, u64)>) {
        let survey = survey(&self.device, options, &mut |_, _| {}).expect("a log");
        let (mut totals, mut out) = (Totals::default(), Vec::new());
        let mut sink = |record: FoundRecord<'_>| {
            if record.is_intact && !record.is_conflict {
                let number = record.stream.as_bytes()[0];
                assert_eq!(record.payload, payload(number, record.seq.get()));
                out.push((record.stream, record.seq.get()));
            }
            Ok(())
        };
        survey
            .records(&self.device, Lsn::ZERO, &mut totals, &mut sink)
            .expect("the sink takes all");
        (survey, totals, out)
    }
}

/// Forty blocks of three records, of streams 0, 1 and 2.
fn filled() -> Image {
    let mut image = Image::new();
    for seq in 0..40 {
        image.block(&[record(0, seq), record(1, seq), record(2, seq)]);
    }
    image
}

fn all() -> Vec<(StreamId, u64)> {
    (0..40)
        .flat_map(|seq| (0..3).map(move |number| (stream(number), seq)))
        .collect()
}

#[test]
fn a_sound_log_comes_out_whole_also_without_headers() {
    let image = filled();
    let (_, totals, out) = image.rescued(&SurveyOptions::default());
    assert_eq!(out, all(), "without headers");
    assert_eq!(totals.records, 120);
    image.headers();
    let (survey, _, out) = image.rescued(&SurveyOptions::default());
    assert_eq!(out, all());
    assert!(newest(&survey.headers).is_some());
    assert!(survey.blocks.iter().all(|block| block.is_intact));
}

#[test]
fn one_flipped_bit_costs_at_most_what_it_hits() {
    let image = filled();
    image.headers();
    for (index, (lsn, bytes)) in image.placed.iter().enumerate().take(6) {
        let place = image.ring.physical(*lsn);
        for at in (0..*bytes).step_by(97) {
            image.flip(place + at);
            let (survey, totals, out) = image.rescued(&SurveyOptions::default());
            let lost: Vec<_> = all().into_iter().filter(|one| !out.contains(one)).collect();
            let kept: Vec<_> = all().into_iter().filter(|one| out.contains(one)).collect();
            assert_eq!(out, kept, "in order, nothing twice");
            let own = u64::try_from(index).expect("small");
            assert!(lost.iter().all(|(_, seq)| *seq == own), "{lost:?} at {at}");
            // In the first 128 + 192 bytes are header and directory: with them their block is lost. Behind, one record or none.
            assert!(
                lost.len() <= if at < 320 { 3 } else { 1 },
                "{lost:?} at {at}"
            );
            for (stream, seq) in lost {
                let hit = Seq::new(seq)..Seq::new(seq + 1);
                // Of the first block nothing tells the number of its records once its directory is gone.
                assert!(
                    survey.missing(&stream, &totals) == [hit] || (index == 0 && at < 320),
                    "{stream} {seq} at {at}"
                );
            }
            image.flip(place + at);
        }
    }
}

#[test]
fn a_copy_stands_in_for_a_damaged_original_and_comes_out_once() {
    let mut image = filled();
    let copy = |seq| NewEntry {
        kind: EntryKind::Relocated,
        ..record(1, seq)
    };
    image.block(&[copy(4), copy(5)]);
    image.headers();
    let (lsn, bytes) = image.placed[5];
    // The last byte of the first payload of stream 1: payloads of seq 5 are 100 bytes long.
    assert_eq!(bytes, 4096);
    image.flip(image.ring.physical(lsn) + 128 + 3 * 64 + 199);
    let (_, totals, out) = image.rescued(&SurveyOptions::default());
    assert_eq!(out.len(), 120, "all of it, nothing twice");
    assert_eq!(out.last(), Some(&(stream(1), 5)));
    assert_eq!(totals.damaged, [], "an intact copy was found");
}

#[test]
fn trimmed_records_and_earlier_laps_stay_out_unless_asked_for() {
    let mut image = Image::new();
    for seq in 0..1500 {
        image.block(&[record(0, seq), record(1, seq)]);
        // The ring holds about 480 of them.
        if seq > 300 {
            image.tail = image.placed[usize::try_from(seq).expect("small") - 300].0;
        }
    }
    let state = NewEntry {
        kind: EntryKind::State {
            next: Seq::new(1500),
        },
        stream: stream(1),
        seq: Seq::new(1490),
        payload: Vec::new(),
    };
    image.block(&[state]);
    let tail_seq = 1499 - 300;
    for with_headers in [false, true] {
        if with_headers {
            image.headers();
        }
        let (survey, totals, out) = image.rescued(&SurveyOptions::default());
        let of = |number| {
            let seqs = out.iter().filter(move |(of, _)| *of == stream(number));
            seqs.map(|(_, seq)| *seq).collect::<Vec<_>>()
        };
        assert_eq!(of(0), (tail_seq..1500).collect::<Vec<_>>());
        assert_eq!(of(1), (1490..1500).collect::<Vec<_>>());
        assert!(survey.missing(&stream(1), &totals).is_empty());
        let everything = SurveyOptions {
            include_released: true,
            ..SurveyOptions::default()
        };
        let (_, _, more) = image.rescued(&everything);
        assert!(more.len() > out.len() + 250, "{}", more.len());
    }
}

#[test]
fn what_an_opening_had_cut_does_not_displace_what_was_acknowledged_later() {
    for (pad_survives, header_survives) in [(true, true), (true, false), (false, true)] {
        let mut image = Image::new();
        image.block(&[record(0, 0)]);
        let cut_from = image.at;
        // In flight when the first process died; it lands late, behind the place of the pad.
        image.at = image.at.plus(4096);
        let late = NewEntry {
            payload: b"never acknowledged".to_vec(),
            ..record(0, 1)
        };
        image.block(&[late]);
        image.epoch = 2;
        let to = cut_from.plus(40960);
        let pad = BlockHeader::gap_pad(ID, 2, cut_from, to, 0);
        let mut unit = AlignedBuf::zeroed(4096);
        encode_pad(image.ring, &pad, &mut unit);
        if pad_survives {
            image.write(image.ring.physical(cut_from), unit.as_slice());
        }
        image.at = to;
        image.block(&[record(0, 1)]);
        image.gaps = vec![Gap {
            from: cut_from,
            to,
            epoch: 2,
        }];
        if header_survives {
            image.headers();
        }
        let (_, totals, out) = image.rescued(&SurveyOptions::default());
        assert_eq!(out, [(stream(0), 0), (stream(0), 1)]);
        assert_eq!(totals.conflicts, 0);
    }
}

#[test]
fn two_records_with_one_number_both_come_out_and_one_is_marked() {
    let mut image = Image::new();
    image.block(&[record(0, 0)]);
    image.block(&[record(0, 0)]);
    let (_, totals, out) = image.rescued(&SurveyOptions::default());
    assert_eq!(out.len(), 1);
    assert_eq!(totals.conflicts, 1);
}

#[test]
fn a_misplaced_block_is_still_worth_its_records() {
    let image = filled();
    image.headers();
    let (from, _) = image.placed[0];
    let to = image.at.plus(1 << 20);
    let mut block = AlignedBuf::zeroed(4096);
    let place = image.ring.physical(from);
    image
        .device
        .read_at(place, block.as_mut_slice())
        .expect("memory");
    image.write(image.ring.physical(to), block.as_slice());
    image.device.damage(place, |bytes| bytes[..4096].fill(0));
    let (survey, _, out) = image.rescued(&SurveyOptions::default());
    assert_eq!(out, all());
    assert_eq!(survey.blocks.iter().filter(|b| b.is_misplaced).count(), 1);
}

#[test]
fn an_interrupted_rescue_goes_on_where_it_was() {
    let image = filled();
    let survey = survey(&image.device, &SurveyOptions::default(), &mut |_, _| {}).expect("a log");
    let mut totals = Totals::default();
    let mut out = Vec::new();
    let mut room = 50;
    let stopped = survey.records(&image.device, Lsn::ZERO, &mut totals, &mut |record| {
        if room == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        room -= 1;
        out.push((record.stream, record.seq, record.lsn));
        Ok(())
    });
    assert_eq!(
        stopped.expect_err("full").kind(),
        io::ErrorKind::StorageFull
    );
    // Whoever goes on knows what was written, not what was handed out.
    let last = out.last().expect("some").2;
    out.retain(|(_, _, lsn)| *lsn < last);
    let mut totals = Totals::default();
    for (stream, seq, _) in &out {
        totals.streams.entry(*stream).or_default().insert(*seq);
    }
    let mut sink = |record: FoundRecord<'_>| {
        out.push((record.stream, record.seq, record.lsn));
        Ok(())
    };
    let went_on = survey.records(&image.device, last, &mut totals, &mut sink);
    went_on.expect("the sink takes all");
    let seen: Vec<_> = out.iter().map(|(of, seq, _)| (*of, seq.get())).collect();
    assert_eq!(seen, all());
}

#[test]
fn an_empty_device_has_no_log() {
    let device = RamDevice::new(1 << 20);
    let outcome = survey(&device, &SurveyOptions::default(), &mut |_, _| {});
    assert!(matches!(outcome, Err(SurveyError::NoLog)));
    let tiny = RamDevice::with_geometry(DeviceGeometry {
        bytes: 4096,
        logical_sector: 512,
        physical_sector: 512,
    });
    let outcome = survey(&tiny, &SurveyOptions::default(), &mut |_, _| {});
    assert!(matches!(outcome, Err(SurveyError::Geometry(_))));
}

/// A device of which some sectors can't be read.
#[derive(Debug)]
struct Holed {
    inner: RamDevice,
    bad: Vec<u64>,
}

impl Device for Holed {
    fn geometry(&self) -> DeviceGeometry {
        self.inner.geometry()
    }

    fn info(&self) -> crate::device::DeviceInfo {
        self.inner.info()
    }

    fn reservation_key(&self) -> u64 {
        self.inner.reservation_key()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        assert_eq!(buf.as_ptr().align_offset(512), 0, "direct I/O");
        let end = offset + u64::try_from(buf.len()).expect("small");
        if self.bad.iter().any(|bad| (offset..end).contains(bad)) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.inner.read_at(offset, buf)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn queue(&self, _depth: usize) -> io::Result<Box<dyn crate::device::WriteQueue>> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

#[test]
fn a_sector_that_can_not_be_read_costs_one_sector() {
    let image = filled();
    image.headers();
    let (lsn, _) = image.placed[7];
    let bad = image.ring.physical(lsn) + 1024;
    let holed = Holed {
        inner: image.device.clone(),
        bad: vec![bad],
    };
    let survey = survey(&holed, &SurveyOptions::default(), &mut |_, _| {}).expect("a log");
    let sector = bad..bad + 512;
    assert_eq!(survey.unreadable, [sector]);
    let mut totals = Totals::default();
    survey
        .records(&holed, Lsn::ZERO, &mut totals, &mut |_| Ok(()))
        .expect("the sink takes all");
    assert!((118..=119).contains(&totals.records), "{}", totals.records);
    assert!(!totals.damaged.is_empty());
}
