//! Durable writes with `pwritev2` and `RWF_DSYNC`: works on every kernel and in every container.
//!
//! One in flight is written on the spot, by the calling thread. For more there is a thread each, since the call waits. On a block device with a
//! volatile cache and no FUA each write costs two flushes, where io_uring needs one.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};
use std::thread;
use std::time::Duration;

use rustix::io::ReadWriteFlags;

use super::{Completion, Write, WriteQueue};

/// How long the end of the writes in flight is waited for when a queue is dropped. After that the threads are left to a device that hangs.
const DROP_PATIENCE: Duration = Duration::from_secs(30);

/// Writes once. Not repeated when it is short or fails: that is for the log to judge.
pub(super) fn write(file: &File, write: Write) -> Completion {
    let result = loop {
        let bytes = [IoSlice::new(write.buf.as_slice())];
        match rustix::io::pwritev2(file, &bytes, write.offset, ReadWriteFlags::DSYNC) {
            // Nothing was written: a signal came before it began.
            Err(rustix::io::Errno::INTR) => {}
            outcome => break outcome.map_err(io::Error::from),
        }
    };
    Completion {
        token: write.token,
        result,
        buf: write.buf,
    }
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Write>,
    done: Vec<Completion>,
    in_flight: usize,
    woken: bool,
    closed: bool,
}

/// What the queue shares with its threads and its wakers.
struct Shared {
    state: Mutex<State>,
    job_came: Condvar,
    /// A completion, or a wake.
    news: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.lock().woken = true;
        self.news.notify_one();
    }
}

pub(super) struct PwriteQueue {
    file: Arc<File>,
    shared: Arc<Shared>,
    threads: usize,
}

impl PwriteQueue {
    pub(super) fn new(file: &Arc<File>, depth: usize) -> io::Result<PwriteQueue> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::default()),
            job_came: Condvar::new(),
            news: Condvar::new(),
        });
        let mut queue = PwriteQueue {
            file: Arc::clone(file),
            shared,
            threads: 0,
        };
        if depth > 1 {
            for number in 0..depth {
                let (file, shared) = (Arc::clone(file), Arc::clone(&queue.shared));
                thread::Builder::new()
                    .name(format!("wal-write-{number}"))
                    .spawn(move || work(&file, &shared))?;
                queue.threads += 1;
            }
        }
        Ok(queue)
    }
}

fn work(file: &File, shared: &Shared) {
    let mut state = shared.lock();
    loop {
        if let Some(job) = state.jobs.pop_front() {
            drop(state);
            let completion = write(file, job);
            state = shared.lock();
            state.in_flight -= 1;
            state.done.push(completion);
            shared.news.notify_one();
        } else if state.closed {
            return;
        } else {
            state = shared
                .job_came
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl WriteQueue for PwriteQueue {
    fn submit(&mut self, job: Write) {
        if self.threads == 0 {
            let completion = write(&self.file, job);
            self.shared.lock().done.push(completion);
        } else {
            let mut state = self.shared.lock();
            state.in_flight += 1;
            state.jobs.push_back(job);
            drop(state);
            self.shared.job_came.notify_one();
        }
    }

    fn wait(&mut self, timeout: Option<Duration>, done: &mut Vec<Completion>) -> io::Result<()> {
        let state = self.shared.lock();
        let nothing = |state: &mut State| state.done.is_empty() && !state.woken;
        let mut state = match timeout {
            None => self
                .shared
                .news
                .wait_while(state, nothing)
                .unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                self.shared
                    .news
                    .wait_timeout_while(state, timeout, nothing)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
        state.woken = false;
        done.append(&mut state.done);
        Ok(())
    }

    fn waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.shared))
    }
}

impl Drop for PwriteQueue {
    /// Whoever drops the queue may open the device again: nothing of ours should still be on its way.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        self.shared.job_came.notify_all();
        let (state, _) = self
            .shared
            .news
            .wait_timeout_while(state, DROP_PATIENCE, |state| state.in_flight > 0)
            .unwrap_or_else(PoisonError::into_inner);
        if state.in_flight > 0 {
            tracing::warn!(
                in_flight = state.in_flight,
                "writes are still in flight, the device seems to hang"
            );
        }
    }
}
