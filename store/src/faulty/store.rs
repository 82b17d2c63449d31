//! The store that fails as it is told to.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::fault::{Fault, FaultRates, Operation, OperationKind};
use crate::body::read_body;
use crate::{Body, Digest, Key, ListPage, Put, Store, StoreError, Usage};

type Hook = Box<dyn FnMut(&Operation) -> Fault + Send>;

/// A put or delete that is still on its way.
struct Late {
    due: u64,
    name: Key,
    /// `None` deletes.
    body: Option<(Bytes, Digest)>,
}

/// The oldest are forgotten.
const OPERATIONS_KEPT: usize = 100_000;

#[derive(Default)]
struct State {
    /// The number of the next operation.
    number: u64,
    /// The last ones.
    operations: VecDeque<Operation>,
    queue: VecDeque<(OperationKind, String, Fault)>,
    hook: Option<Hook>,
    chance: Option<(StdRng, FaultRates)>,
    late: Vec<Late>,
    /// For [`Fault::HalfListed`]. From seed 0 without `chance`.
    coin: Option<StdRng>,
}

/// A store with faults, see the module.
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    state: Mutex<State>,
}

impl fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyStore")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl FaultyStore {
    /// Without faults so far.
    pub fn new(inner: Arc<dyn Store>) -> FaultyStore {
        FaultyStore {
            inner,
            state: Mutex::new(State::default()),
        }
    }

    /// Faults by chance. Replaces the rates and the seed of before; the seed also decides what [`Fault::HalfListed`]
    /// leaves out.
    pub fn random(&self, seed: u64, rates: FaultRates) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut state = self.state();
        // One of its own, so that the number of names listed does not shift the faults that follow.
        state.coin = Some(StdRng::from_rng(&mut rng));
        state.chance = Some((rng, rates));
    }

    /// The next operation of this kind whose name contains `name_part` meets `fault`. Several calls queue up: each operation
    /// takes the first entry that fits it.
    pub fn next(&self, kind: OperationKind, name_part: &str, fault: Fault) {
        self.state()
            .queue
            .push_back((kind, name_part.to_owned(), fault));
    }

    /// Asks `hook` about every operation that the queue says nothing of. [`Fault::None`] leaves it to chance. The hook
    /// must not call this store.
    pub fn on_operation(&self, hook: impl FnMut(&Operation) -> Fault + Send + 'static) {
        self.state().hook = Some(Box::new(hook));
    }

    /// No more faults: empties the queue, drops hook and chance. Late operations stay on their way.
    pub fn heal(&self) {
        let mut state = self.state();
        state.queue.clear();
        state.hook = None;
        state.chance = None;
    }

    /// Carries out all that is still on its way, in a deterministic order.
    pub async fn settle(&self) {
        let late = std::mem::take(&mut self.state().late);
        self.arrive(late).await;
    }

    /// The operations so far, of more than 100,000 the last ones.
    pub fn operations(&self) -> Vec<Operation> {
        self.state().operations.iter().cloned().collect()
    }

    /// What is behind.
    pub fn inner(&self) -> &Arc<dyn Store> {
        &self.inner
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the operation, lets late ones arrive, and decides.
    async fn begin(&self, kind: OperationKind, name: &str) -> (Operation, Fault) {
        let (operation, fault, due) = {
            let mut state = self.state();
            let number = state.number;
            state.number += 1;
            let operation = Operation {
                number,
                kind,
                name: name.to_owned(),
            };
            if state.operations.len() == OPERATIONS_KEPT {
                state.operations.pop_front();
            }
            state.operations.push_back(operation.clone());
            let (due, late) = std::mem::take(&mut state.late)
                .into_iter()
                .partition(|late| late.due <= number);
            state.late = late;
            let fault = state.decide(&operation);
            (operation, fault, due)
        };
        self.arrive(due).await;
        match &fault {
            Fault::Delayed(pause) => tokio::time::sleep(*pause).await,
            Fault::HeldBefore(gate) => gate.pass().await,
            _ => {}
        }
        (operation, fault)
    }

    async fn arrive(&self, late: Vec<Late>) {
        for Late { name, body, .. } in late {
            // Nobody waits for the answer any more, whatever it is.
            match body {
                Some((bytes, digest)) => drop(
                    self.inner
                        .put_if_absent(&name, Body::Bytes(bytes), digest)
                        .await,
                ),
                None => drop(self.inner.delete(&name).await),
            }
        }
    }

    /// Reads share all of this: `read` is the true answer, `nothing` that of a reader behind.
    async fn read<T: Send>(
        &self,
        kind: OperationKind,
        name: &str,
        read: impl Future<Output = Result<T, StoreError>> + Send,
        nothing: impl FnOnce() -> Result<T, StoreError> + Send,
    ) -> Result<(T, Fault), StoreError> {
        let (operation, fault) = self.begin(kind, name).await;
        match &fault {
            Fault::Unavailable | Fault::AnswerLost | Fault::DoneLater { .. } => {
                return Err(unavailable(&operation));
            }
            Fault::Denied => return Err(denied(&operation)),
            Fault::Stale => return nothing().map(|value| (value, fault)),
            _ => {}
        }
        let value = read.await;
        if let Fault::HeldAfter(gate) = &fault {
            gate.pass().await;
        }
        value.map(|value| (value, fault))
    }

    async fn listing(
        &self,
        prefix: &str,
        read: impl Future<Output = Result<ListPage, StoreError>> + Send,
    ) -> Result<ListPage, StoreError> {
        let (mut page, fault) = self
            .read(
                OperationKind::List,
                prefix,
                read,
                || Ok(ListPage::default()),
            )
            .await?;
        if matches!(fault, Fault::HalfListed) {
            let mut state = self.state();
            let coin = state.coin.get_or_insert_with(|| StdRng::seed_from_u64(0));
            page.objects.retain(|_| coin.random_bool(0.5));
            page.folders.retain(|_| coin.random_bool(0.5));
        }
        Ok(page)
    }

    fn put_off(&self, due: u64, name: Key, body: Option<(Bytes, Digest)>) {
        self.state().late.push(Late { due, name, body });
    }
}

impl State {
    fn decide(&mut self, operation: &Operation) -> Fault {
        let fits = |(kind, part, _): &(OperationKind, String, Fault)| {
            *kind == operation.kind && operation.name.contains(part.as_str())
        };
        if let Some(at) = self.queue.iter().position(fits) {
            return self
                .queue
                .remove(at)
                .map_or(Fault::None, |(_, _, fault)| fault);
        }
        if let Some(hook) = &mut self.hook {
            let fault = hook(operation);
            if !matches!(fault, Fault::None) {
                return fault;
            }
        }
        self.chance
            .as_mut()
            .map_or(Fault::None, |(rng, rates)| rates.draw(rng))
    }
}

fn unavailable(operation: &Operation) -> StoreError {
    StoreError::Unavailable {
        what: format!("{:?} of {}", operation.kind, operation.name),
        source: format!("injected fault at operation {}", operation.number).into(),
    }
}

fn denied(operation: &Operation) -> StoreError {
    StoreError::Refused {
        what: format!("{:?} of {}", operation.kind, operation.name),
        remedy: "this is a test".to_owned(),
        source: format!("injected fault at operation {}", operation.number).into(),
    }
}

#[async_trait]
impl Store for FaultyStore {
    fn url(&self) -> &str {
        self.inner.url()
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StoreError> {
        let nothing = || Err(StoreError::NotFound { key: key.clone() });
        let read = self.read(
            OperationKind::Get,
            key.as_str(),
            self.inner.get(key),
            nothing,
        );
        read.await.map(|(bytes, _)| bytes)
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StoreError> {
        let nothing = || Err(StoreError::NotFound { key: key.clone() });
        let read = self.read(
            OperationKind::GetRange,
            key.as_str(),
            self.inner.get_range(key, range),
            nothing,
        );
        read.await.map(|(bytes, _)| bytes)
    }

    async fn put_if_absent(
        &self,
        key: &Key,
        body: Body,
        digest: Digest,
    ) -> Result<Put, StoreError> {
        let (operation, fault) = self.begin(OperationKind::Put, key.as_str()).await;
        match &fault {
            Fault::Unavailable => return Err(unavailable(&operation)),
            Fault::Denied => return Err(denied(&operation)),
            Fault::RefusedForNothing => return Ok(Put::Refused),
            Fault::DoneLater { operations } => {
                let bytes = read_body(key, body).await?;
                self.put_off(
                    operation.number + 1 + operations,
                    key.clone(),
                    Some((bytes, digest)),
                );
                return Err(unavailable(&operation));
            }
            _ => {}
        }
        let done = self.inner.put_if_absent(key, body, digest).await;
        match &fault {
            Fault::AnswerLost => done.and_then(|_| Err(unavailable(&operation))),
            Fault::RefusedByItself => done.map(|_| Put::Refused),
            Fault::HeldAfter(gate) => {
                gate.pass().await;
                done
            }
            _ => done,
        }
    }

    async fn list(
        &self,
        prefix: &str,
        recursive: bool,
        token: Option<String>,
    ) -> Result<ListPage, StoreError> {
        self.listing(prefix, self.inner.list(prefix, recursive, token))
            .await
    }

    async fn list_first(&self, prefix: &str, limit: u16) -> Result<ListPage, StoreError> {
        self.listing(prefix, self.inner.list_first(prefix, limit))
            .await
    }

    async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        let (operation, fault) = self.begin(OperationKind::Delete, key.as_str()).await;
        match &fault {
            Fault::Unavailable => return Err(unavailable(&operation)),
            Fault::Denied => return Err(denied(&operation)),
            Fault::DoneLater { operations } => {
                self.put_off(operation.number + 1 + operations, key.clone(), None);
                return Err(unavailable(&operation));
            }
            _ => {}
        }
        let done = self.inner.delete(key).await;
        match &fault {
            Fault::AnswerLost => done.and_then(|()| Err(unavailable(&operation))),
            Fault::HeldAfter(gate) => {
                gate.pass().await;
                done
            }
            _ => done,
        }
    }

    fn lists_in_key_order(&self) -> bool {
        self.inner.lists_in_key_order()
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }
}
