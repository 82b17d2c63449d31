//! For tests: a store that loses answers, refuses, hides and delays, as real ones do under load.
//!
//! [`FaultyStore`] wraps any store. What happens to an operation is decided, in this order, by the queue of
//! [`FaultyStore::next`], by the closure of [`FaultyStore::on_operation`], and by chance ([`FaultyStore::random`]),
//! so that a test can script one fault exactly or run thousands of seeded programs. The same seed and the same order of
//! operations give the same faults. [`LaggingReader`] is a copy of a store in another region: it never
//! lies, it is only behind, and not in the order in which things were written.
//!
//! Nothing here runs in production.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Semaphore;

use crate::body::read_body;
use crate::{Body, Digest, Key, ListPage, Put, Store, StoreError, Usage};

/// What the caller wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OperationKind {
    /// [`Store::get`]
    Get,
    /// [`Store::get_range`]
    GetRange,
    /// [`Store::put_if_absent`]
    Put,
    /// [`Store::list`] and [`Store::list_first`]
    List,
    /// [`Store::delete`]
    Delete,
}

/// One call, as the hooks see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Counts from 0 over the life of the wrapper.
    pub number: u64,
    /// What.
    pub kind: OperationKind,
    /// The key, for listings the prefix.
    pub name: String,
}

/// What goes wrong.
#[derive(Clone, Debug, Default)]
pub enum Fault {
    /// Nothing: the operation reaches the store and its answer the caller.
    #[default]
    None,
    /// 503: nothing is done, [`StoreError::Unavailable`].
    Unavailable,
    /// The operation is done and its answer lost: [`StoreError::Unavailable`].
    AnswerLost,
    /// [`StoreError::Unavailable`] now; a put or delete arrives at the store after this many later operations (0: just
    /// before the next one), or at [`FaultyStore::settle`]. A read is simply lost.
    DoneLater {
        /// How many operations overtake it.
        operations: u64,
    },
    /// A put is [`Put::Refused`] (409 or 412) although nothing is there and nothing is done. Others: as `None`.
    RefusedForNothing,
    /// A put is done, its answer lost, repeated below, and refused because of itself: [`Put::Refused`] whatever was
    /// there. Others: as `None`.
    RefusedByItself,
    /// A reader that is behind: reads find nothing ([`StoreError::NotFound`], an empty listing). Others: as `None`.
    Stale,
    /// A reader that is behind: a listing lacks each name with a chance of one half. Others: as `None`.
    HalfListed,
    /// 403: nothing is done, [`StoreError::Refused`].
    Denied,
    /// The operation is done after a pause (tokio's clock, so a test may stop it).
    Delayed(Duration),
    /// The operation waits until the gate is opened, and is done then.
    HeldBefore(Gate),
    /// The operation is done, its answer waits until the gate is opened.
    HeldAfter(Gate),
}

/// Holds one operation until the test says so.
#[derive(Clone)]
pub struct Gate {
    reached: Arc<Semaphore>,
    open: Arc<Semaphore>,
}

impl Gate {
    /// A closed one.
    pub fn new() -> Gate {
        Gate {
            reached: Arc::new(Semaphore::new(0)),
            open: Arc::new(Semaphore::new(0)),
        }
    }

    /// Waits until an operation stands before it.
    pub async fn reached(&self) {
        if let Ok(permit) = self.reached.acquire().await {
            permit.forget();
        }
    }

    /// Lets all through, now and later.
    pub fn open(&self) {
        self.open.close();
    }

    async fn pass(&self) {
        self.reached.add_permits(1);
        // The only way for this to end is the gate's closing of the semaphore, which is an error here.
        let _opened = self.open.acquire().await;
    }
}

impl Default for Gate {
    fn default() -> Gate {
        Gate::new()
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("open", &self.open.is_closed())
            .finish()
    }
}

/// How often what goes wrong, in operations out of 1,000. The sum is at most 1,000; all 0 by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultRates {
    /// [`Fault::Unavailable`]
    pub unavailable: u32,
    /// [`Fault::AnswerLost`]
    pub answer_lost: u32,
    /// [`Fault::DoneLater`], overtaken by up to 20 operations
    pub done_later: u32,
    /// [`Fault::RefusedForNothing`]
    pub refused_for_nothing: u32,
    /// [`Fault::RefusedByItself`]
    pub refused_by_itself: u32,
    /// [`Fault::Stale`]
    pub stale: u32,
    /// [`Fault::HalfListed`]
    pub half_listed: u32,
}

impl FaultRates {
    /// Every fault that a store with strong consistency can show, at a few per cent each.
    pub fn consistent() -> FaultRates {
        FaultRates {
            unavailable: 40,
            answer_lost: 40,
            done_later: 20,
            refused_for_nothing: 20,
            refused_by_itself: 20,
            ..FaultRates::default()
        }
    }
}

type Hook = Box<dyn FnMut(&Operation) -> Fault + Send>;

/// A put or delete that is still on its way.
struct Late {
    due: u64,
    name: Key,
    /// `None` deletes.
    body: Option<(Bytes, Digest)>,
}

#[derive(Default)]
struct State {
    operations: Vec<Operation>,
    queue: VecDeque<(OperationKind, String, Fault)>,
    hook: Option<Hook>,
    chance: Option<(StdRng, FaultRates)>,
    late: Vec<Late>,
    /// For [`Fault::HalfListed`] without `chance`.
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

    /// Faults by chance. Replaces the rates and the seed of before.
    pub fn random(&self, seed: u64, rates: FaultRates) {
        self.state().chance = Some((StdRng::seed_from_u64(seed), rates));
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

    /// All operations so far.
    pub fn operations(&self) -> Vec<Operation> {
        self.state().operations.clone()
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
            let number = state.operations.len() as u64;
            let operation = Operation {
                number,
                kind,
                name: name.to_owned(),
            };
            state.operations.push(operation.clone());
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

impl FaultRates {
    fn draw(&self, rng: &mut StdRng) -> Fault {
        let mut point = rng.random_range(0..1_000_u32);
        // Drawn each time, so that a rate changed does not shift the meaning of all that follows.
        let operations = rng.random_range(0..20);
        let faults = [
            (self.unavailable, Fault::Unavailable),
            (self.answer_lost, Fault::AnswerLost),
            (self.done_later, Fault::DoneLater { operations }),
            (self.refused_for_nothing, Fault::RefusedForNothing),
            (self.refused_by_itself, Fault::RefusedByItself),
            (self.stale, Fault::Stale),
            (self.half_listed, Fault::HalfListed),
        ];
        for (rate, fault) in faults {
            if point < rate {
                return fault;
            }
            point -= rate;
        }
        Fault::None
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

/// A read-only copy that is behind: it shows only the keys that have arrived. Puts and deletes are refused.
///
/// Objects never change, so a copy that is behind can lack keys but never show other bytes.
#[derive(Debug)]
pub struct LaggingReader {
    source: Arc<dyn Store>,
    arrived: Mutex<BTreeSet<Key>>,
}

impl LaggingReader {
    /// Nothing has arrived yet.
    pub fn new(source: Arc<dyn Store>) -> LaggingReader {
        LaggingReader {
            source,
            arrived: Mutex::new(BTreeSet::new()),
        }
    }

    /// `key` has arrived.
    pub fn arrive(&self, key: Key) {
        self.arrived().insert(key);
    }

    /// Each key that is there and has not arrived does so with `chance` (0.0 to 1.0), one by one, in any order.
    ///
    /// Fails as the source's listing does.
    pub async fn arrive_some(
        &self,
        rng: &mut (dyn rand::RngCore + Send),
        chance: f64,
    ) -> Result<(), StoreError> {
        let mut token = None;
        loop {
            let page = self.source.list("", true, token).await?;
            for (key, _) in page.objects {
                if rng.random_bool(chance) {
                    self.arrive(key);
                }
            }
            token = page.next;
            if token.is_none() {
                return Ok(());
            }
        }
    }

    fn arrived(&self) -> MutexGuard<'_, BTreeSet<Key>> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, key: &Key) -> Result<(), StoreError> {
        if self.arrived().contains(key) {
            Ok(())
        } else {
            Err(StoreError::NotFound { key: key.clone() })
        }
    }

    fn shown(&self, prefix: &str, mut page: ListPage) -> ListPage {
        let arrived = self.arrived();
        let root = crate::listing::with_slash(prefix);
        page.objects.retain(|(key, _)| arrived.contains(key));
        page.folders.retain(|folder| {
            let start = format!("{root}{folder}/");
            arrived.iter().any(|key| key.as_str().starts_with(&start))
        });
        page
    }

    fn read_only(name: &Key) -> StoreError {
        StoreError::Refused {
            what: format!("change of {name}"),
            remedy: "write to the archive's own region".to_owned(),
            source: "a lagging reader takes no writes".into(),
        }
    }
}

#[async_trait]
impl Store for LaggingReader {
    fn url(&self) -> &str {
        self.source.url()
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StoreError> {
        self.check(key)?;
        self.source.get(key).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.check(key)?;
        self.source.get_range(key, range).await
    }

    async fn put_if_absent(
        &self,
        key: &Key,
        _body: Body,
        _digest: Digest,
    ) -> Result<Put, StoreError> {
        Err(LaggingReader::read_only(key))
    }

    async fn list(
        &self,
        prefix: &str,
        recursive: bool,
        token: Option<String>,
    ) -> Result<ListPage, StoreError> {
        Ok(self.shown(prefix, self.source.list(prefix, recursive, token).await?))
    }

    async fn list_first(&self, prefix: &str, limit: u16) -> Result<ListPage, StoreError> {
        // Pages of the source, until enough of what has arrived is found.
        let (mut found, mut token) = (ListPage::default(), None);
        loop {
            let page = self.source.list(prefix, true, token).await?;
            token = page.next.clone();
            found.objects.extend(self.shown(prefix, page).objects);
            let wanted = usize::from(limit).max(1);
            if found.objects.len() > wanted || token.is_none() {
                let more = found.objects.len() > wanted || token.is_some();
                found.objects.truncate(wanted);
                found.next = found
                    .objects
                    .last()
                    .filter(|_| more)
                    .map(|(key, _)| key.to_string());
                return Ok(found);
            }
        }
    }

    async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        Err(LaggingReader::read_only(key))
    }

    fn lists_in_key_order(&self) -> bool {
        self.source.lists_in_key_order()
    }

    fn usage(&self) -> Usage {
        self.source.usage()
    }
}
