//! Reads the ring in large pieces, and around sectors that can't be read.

use std::{
    io,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::Scope,
};

use crate::{AlignedBuf, Device, Lsn, geometry::Ring};

/// Errors that speak of a place on the medium, not of the device as a whole.
const MEDIUM_ERRORS: [i32; 4] = [libc::EIO, libc::ENODATA, libc::EILSEQ, libc::EREMOTEIO];

/// No more is read at a time, in bytes.
const PIECE_MAX: u64 = 64 << 20;

/// Fills `buf` from `offset`. What can't be read is narrowed to sectors, which read as zero and are added to `unreadable` as offsets. An
/// error is one of the device as a whole.
pub(crate) fn read_around(
    device: &dyn Device,
    offset: u64,
    buf: &mut [u8],
    unreadable: &mut Vec<u64>,
) -> io::Result<()> {
    match device.read_at(offset, buf) {
        Err(error) if is_medium(&error) => {}
        done => return done,
    }
    let sector = usize::try_from(device.geometry().logical_sector.max(512)).unwrap_or(512);
    // Halves down to one sector: a bad sector costs some ten reads and not one for each sector.
    let half = (buf.len() / 2).next_multiple_of(sector);
    if half >= buf.len() {
        buf.fill(0);
        unreadable.push(offset);
        return Ok(());
    }
    let (front, back) = buf.split_at_mut(half);
    read_around(device, offset, front, unreadable)?;
    read_around(device, offset + half as u64, back, unreadable)
}

fn is_medium(error: &io::Error) -> bool {
    error
        .raw_os_error()
        .is_some_and(|errno| MEDIUM_ERRORS.contains(&errno))
}

/// A stretch of the ring in memory. With a helper, the next one is read while this one is looked at.
pub(crate) struct Window<'a> {
    device: &'a dyn Device,
    ring: Ring,
    /// How much is read at a time, in bytes.
    piece: u64,
    /// Nothing behind this position is read.
    limit: Lsn,
    helper: Option<Helper>,
    buf: AlignedBuf,
    /// What is held: `len` bytes from `start` on, at `at` in the buffer.
    start: Lsn,
    at: usize,
    len: usize,
    /// Offsets of sectors that could not be read since the last [`Window::forget`].
    unreadable: Vec<u64>,
    /// Those before it.
    once_unreadable: Vec<u64>,
}

/// A read under way in the helper's thread.
struct Request {
    offset: u64,
    /// Where in the buffer.
    at: usize,
    buf: AlignedBuf,
}

type Reply = (AlignedBuf, io::Result<()>);

/// The end of the window's side of the helper's thread, which ends with it.
pub(crate) struct Helper {
    requests: SyncSender<Request>,
    replies: Receiver<Reply>,
    /// What was asked for last: where, and how many bytes.
    pending: Option<(Lsn, usize)>,
    spare: Option<AlignedBuf>,
}

impl Helper {
    /// Starts the thread.
    pub(crate) fn start<'scope, 'env>(
        scope: &'scope Scope<'scope, 'env>,
        device: &'env dyn Device,
    ) -> Helper {
        let (requests, inbox) = sync_channel::<Request>(1);
        let (outbox, replies) = sync_channel(1);
        scope.spawn(move || {
            for mut request in inbox {
                let buf = &mut request.buf.as_mut_slice()[request.at..];
                let read = device.read_at(request.offset, buf);
                if outbox.send((request.buf, read)).is_err() {
                    return;
                }
            }
        });
        Helper {
            requests,
            replies,
            pending: None,
            spare: None,
        }
    }

    /// What was asked for, if it is what follows `end`; else it is dropped.
    fn take(&mut self, end: Lsn) -> Option<(AlignedBuf, usize)> {
        let (from, len) = self.pending.take()?;
        let (buf, read) = self.replies.recv().ok()?;
        if read.is_ok() && from == end {
            Some((buf, len))
        } else {
            // Read again where a bad sector can be narrowed down.
            self.spare = Some(buf);
            None
        }
    }
}

impl<'a> Window<'a> {
    pub(crate) fn new(
        device: &'a dyn Device,
        ring: Ring,
        piece: u64,
        limit: Lsn,
        helper: Option<Helper>,
    ) -> Window<'a> {
        Window {
            device,
            ring,
            piece: ring.round_up(piece.min(PIECE_MAX)).min(ring.bytes()),
            limit,
            helper,
            buf: AlignedBuf::zeroed(0),
            start: Lsn::ZERO,
            at: 0,
            len: 0,
            unreadable: Vec::new(),
            once_unreadable: Vec::new(),
        }
    }

    fn end(&self) -> Lsn {
        self.start.plus(self.len as u64)
    }

    /// The `bytes` from `lsn` on, a multiple of the unit that does not go beyond the end of the lap.
    pub(crate) fn get(&mut self, lsn: Lsn, bytes: u64) -> io::Result<&[u8]> {
        let held = lsn >= self.start && lsn.plus(bytes) <= self.end();
        if !held && !self.go_on(lsn, bytes)? {
            self.fill(lsn, bytes)?;
        }
        let at = self.at + in_memory(lsn.since(self.start))?;
        let len = in_memory(bytes)?;
        self.buf
            .as_slice()
            .get(at..at + len)
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
    }

    /// What is held is read again when it is next asked for, and what could not be read gets another chance.
    pub(crate) fn forget(&mut self) {
        self.len = 0;
        self.once_unreadable.append(&mut self.unreadable);
    }

    /// How much would be read at `lsn`.
    fn piece_at(&self, lsn: Lsn, bytes: u64) -> io::Result<usize> {
        let ahead = self.limit.plus(self.ring.unit()).since(lsn);
        let wanted = self.piece.min(ahead).max(bytes);
        in_memory(wanted.min(self.ring.left_in_lap(lsn)))
    }

    /// Takes what the helper has read, if that is what is missing, with what is left of the stretch before it in front.
    fn go_on(&mut self, lsn: Lsn, bytes: u64) -> io::Result<bool> {
        let end = self.end();
        let follows = self.len > 0 && self.start <= lsn && lsn <= end;
        let Some(helper) = &mut self.helper else {
            return Ok(false);
        };
        let Some((mut buf, len)) = helper.take(end) else {
            return Ok(false);
        };
        let front = in_memory(end.since(lsn))?;
        let room = in_memory(self.piece)?;
        if !follows || front > room || in_memory(bytes)? > front + len {
            helper.spare = Some(buf);
            return Ok(false);
        }
        let left = self.at + self.len - front..self.at + self.len;
        buf.as_mut_slice()[room - front..room].copy_from_slice(&self.buf.as_slice()[left]);
        helper.spare = Some(std::mem::replace(&mut self.buf, buf));
        (self.start, self.at, self.len) = (lsn, room - front, front + len);
        self.ask_ahead()?;
        Ok(true)
    }

    fn fill(&mut self, lsn: Lsn, bytes: u64) -> io::Result<()> {
        let len = self.piece_at(lsn, bytes)?;
        if self.buf.capacity() < len {
            self.buf = AlignedBuf::zeroed(len);
        }
        self.buf.set_len(len);
        (self.start, self.at, self.len) = (lsn, 0, len);
        let offset = self.ring.physical(lsn);
        let buf = self.buf.as_mut_slice();
        read_around(self.device, offset, buf, &mut self.unreadable)?;
        self.ask_ahead()
    }

    /// Lets the helper read what follows.
    fn ask_ahead(&mut self) -> io::Result<()> {
        let from = self.end();
        if self.helper.is_none() || from > self.limit {
            return Ok(());
        }
        let len = self.piece_at(from, 0)?;
        let room = in_memory(self.piece)?;
        let offset = self.ring.physical(from);
        if let Some(helper) = &mut self.helper {
            let mut buf = match helper.spare.take() {
                Some(buf) if buf.capacity() >= 2 * room => buf,
                _ => AlignedBuf::zeroed(2 * room),
            };
            buf.set_len(room + len);
            let request = Request {
                offset,
                at: room,
                buf,
            };
            let sent = len > 0 && helper.requests.send(request).is_ok();
            helper.pending = sent.then_some((from, len));
        }
        Ok(())
    }

    /// Offsets of all sectors that could not be read, each once, in their order.
    pub(crate) fn all_unreadable(&self) -> Vec<u64> {
        let mut all = [self.once_unreadable.as_slice(), &self.unreadable].concat();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Whether a sector of this stretch could not be read.
    pub(crate) fn is_unreadable(&self, lsn: Lsn, bytes: u64) -> bool {
        let offset = self.ring.physical(lsn);
        self.unreadable
            .iter()
            .any(|sector| (offset..offset + bytes).contains(sector))
    }
}

fn in_memory(bytes: u64) -> io::Result<usize> {
    usize::try_from(bytes).map_err(|_too_large| io::Error::from(io::ErrorKind::OutOfMemory))
}
