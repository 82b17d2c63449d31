//! The blocks that were written or read last, so that a drain close behind the head reads memory.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;

use crate::{
    AlignedBuf, LogId, Lsn,
    block::BlockHeader,
    geometry::Ring,
    reader::{ReadBlock, take_apart},
};

/// Blocks up to a budget, the oldest go first.
#[derive(Debug)]
pub(crate) struct Cache {
    budget: usize,
    held: usize,
    blocks: HashMap<Lsn, Held>,
    order: VecDeque<Lsn>,
}

#[derive(Debug)]
enum Held {
    /// As it was written; taken apart when it is first asked for.
    Written(Arc<AlignedBuf>),
    Read(Arc<ReadBlock>, usize),
}

/// Lets several readers share one buffer.
struct Shared(Arc<AlignedBuf>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl Held {
    fn bytes(&self) -> usize {
        match self {
            Held::Written(buf) => buf.capacity(),
            Held::Read(_, bytes) => *bytes,
        }
    }
}

impl Cache {
    /// A cache of at most `budget` bytes of blocks.
    pub(crate) fn new(budget: usize) -> Cache {
        Cache {
            budget,
            held: 0,
            blocks: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Takes a block as it was written. Buffers that nobody needs any more go to `free`.
    pub(crate) fn put_written(&mut self, lsn: Lsn, buf: AlignedBuf, free: &mut Vec<AlignedBuf>) {
        if buf.capacity() > self.budget {
            free.push(buf);
        } else {
            self.put(lsn, Held::Written(Arc::new(buf)), free);
        }
    }

    /// Takes a block that was read.
    pub(crate) fn put_read(&mut self, block: Arc<ReadBlock>) {
        let bytes = usize::try_from(block.bytes).unwrap_or(usize::MAX);
        if bytes <= self.budget && !self.blocks.contains_key(&block.lsn) {
            let lsn = block.lsn;
            self.put(lsn, Held::Read(block, bytes), &mut Vec::new());
        }
    }

    fn put(&mut self, lsn: Lsn, held: Held, free: &mut Vec<AlignedBuf>) {
        self.held += held.bytes();
        if let Some(old) = self.blocks.insert(lsn, held) {
            self.held -= old.bytes();
        } else {
            self.order.push_back(lsn);
        }
        while self.held > self.budget {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            if let Some(old) = self.blocks.remove(&oldest) {
                self.held -= old.bytes();
                if let Held::Written(buf) = old {
                    free.extend(Arc::try_unwrap(buf).ok());
                }
            }
        }
    }

    pub(crate) fn get(&mut self, ring: Ring, id: LogId, lsn: Lsn) -> Option<Arc<ReadBlock>> {
        let held = self.blocks.get_mut(&lsn)?;
        match held {
            Held::Read(block, _) => Some(Arc::clone(block)),
            Held::Written(buf) => {
                let header = BlockHeader::decode(ring, id, buf.as_slice()).ok()?;
                let bytes = Bytes::from_owner(Shared(Arc::clone(buf)));
                let block = Arc::new(take_apart(header, &bytes, false)?);
                let size = buf.capacity();
                *held = Held::Read(Arc::clone(&block), size);
                Some(block)
            }
        }
    }
}
