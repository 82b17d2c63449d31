//! The newest known commit of one partition, and when it was looked for.
//!
//! All callers share one look at a time, and its failure too: while the store is away, a hundred readers must not wait
//! for a hundred deadlines one after the other.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use everlog_store::StoreError;

use crate::chain::Chain;
use crate::shared::CHAIN_MEMORY;
use crate::{Freshness, IndexError, Snapshot};

/// Looks at one partition are at least this far apart, except [`Freshness::Now`].
pub(crate) const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// "No commit" is looked at again after this long even by who is content with what is known: a chain begins some day.
pub(crate) const NONE_MAX_AGE: Duration = Duration::from_secs(10);

/// One partition's.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    state: Mutex<State>,
    /// Held by who looks.
    looking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    newest: Option<Arc<Snapshot>>,
    /// When the last look that succeeded began; `None` before the first.
    looked_at: Option<Duration>,
    /// Looks begun.
    attempts: u64,
    /// When the last one began, and why it failed.
    last: Option<(Duration, Option<IndexError>)>,
}

type Answer = Result<Option<Arc<Snapshot>>, IndexError>;

impl State {
    /// What can be said without a look; `None`: look.
    fn answer(&self, freshness: Freshness, now: Duration) -> Option<Answer> {
        let known = || Some(Ok(self.newest.clone()));
        let age = self.looked_at.map(|at| now.saturating_sub(at));
        let wanted = match freshness {
            Freshness::Now => return None,
            Freshness::Known if self.newest.is_some() => Duration::MAX,
            Freshness::Known => NONE_MAX_AGE,
            Freshness::Within(wanted) => wanted,
        };
        if age.is_some_and(|age| age <= wanted) {
            return known();
        }
        match &self.last {
            Some((at, failure)) if now.saturating_sub(*at) < LOOK_PAUSE => match failure {
                Some(error) => Some(Err(again(error))),
                None => known(),
            },
            _ => None,
        }
    }
}

impl Slot {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // No step below leaves the state half written, so a panic elsewhere harms nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest complete commit as far as `freshness` asks.
    pub(crate) async fn snapshot(&self, chain: &Chain, freshness: Freshness) -> Answer {
        let clock = &chain.shared.tuning.clock;
        let begun = {
            let state = self.state();
            if let Some(answer) = state.answer(freshness, clock.now()) {
                return answer;
            }
            state.attempts
        };
        let _looking = self.looking.lock().await;
        let now = clock.now();
        let (known, looked_at) = {
            let mut state = self.state();
            // Whoever began after we asked has looked for us as well.
            if begun < state.attempts {
                match &state.last {
                    Some((_, Some(error))) => return Err(again(error)),
                    Some((_, None)) => return Ok(state.newest.clone()),
                    None => {}
                }
            }
            if let Some(answer) = state.answer(freshness, now) {
                return answer;
            }
            state.attempts += 1;
            // Until it ends: a caller that is dropped in the middle leaves a look that said nothing.
            state.last = None;
            (state.newest.clone(), state.looked_at)
        };
        let looked = look(chain, known, looked_at, now).await;
        self.note(now, looked)
    }

    /// A commit that this process has just made or met. `newest_at`: a time at which nothing newer existed, if one is
    /// known; who finds its commit in the store later may find it behind others.
    pub(crate) fn publish(&self, snapshot: &Arc<Snapshot>, newest_at: Option<Duration>) {
        let mut state = self.state();
        state.take(Some(Arc::clone(snapshot)));
        state.looked_at = state.looked_at.max(newest_at);
    }

    fn note(&self, begun_at: Duration, looked: Answer) -> Answer {
        let mut state = self.state();
        match looked {
            Ok(found) => {
                state.take(found);
                state.looked_at = state.looked_at.max(Some(begun_at));
                state.last = Some((begun_at, None));
                Ok(state.newest.clone())
            }
            Err(error) => {
                let answer = Err(again(&error));
                state.last = Some((begun_at, Some(error)));
                answer
            }
        }
    }
}

impl State {
    /// Keeps the newer one: a look that began before a commit may end after it.
    fn take(&mut self, found: Option<Arc<Snapshot>>) {
        let known = self.newest.as_ref().map(|s| s.number());
        if known < found.as_ref().map(|s| s.number()) {
            self.newest = found;
        }
    }
}

async fn look(
    chain: &Chain,
    known: Option<Arc<Snapshot>>,
    looked_at: Option<Duration>,
    now: Duration,
) -> Answer {
    match known {
        None => chain.newest_complete().await,
        Some(known) => {
            let remembered = looked_at.is_some_and(|at| now.saturating_sub(at) < CHAIN_MEMORY);
            if remembered {
                chain.newest_complete_after(&known).await.map(Some)
            } else {
                chain.newest_complete_past(&known).await.map(Some)
            }
        }
    }
}

/// An error once more, for another caller that it concerns. The cause travels as text.
pub(crate) fn again(error: &IndexError) -> IndexError {
    let text = |source: &everlog_store::BoxError| source.to_string().into();
    match error {
        IndexError::Store(StoreError::NotFound { key }) => {
            StoreError::NotFound { key: key.clone() }.into()
        }
        IndexError::Store(StoreError::Unavailable { what, source }) => StoreError::Unavailable {
            what: what.clone(),
            source: text(source),
        }
        .into(),
        IndexError::Store(StoreError::Refused {
            what,
            remedy,
            source,
        }) => StoreError::Refused {
            what: what.clone(),
            remedy: remedy.clone(),
            source: text(source),
        }
        .into(),
        IndexError::Corrupt { what, why } => IndexError::Corrupt {
            what: what.clone(),
            why: why.clone(),
        },
        IndexError::Unsupported { what, features } => IndexError::Unsupported {
            what: what.clone(),
            features: features.clone(),
        },
        IndexError::Missing { what } => IndexError::Missing { what: what.clone() },
        IndexError::NoArchive { url } => IndexError::NoArchive { url: url.clone() },
    }
}
