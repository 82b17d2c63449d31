//! For tests: a store that loses answers, refuses, hides and delays, as real ones do under load.
//!
//! [`FaultyStore`] wraps any store. What happens to an operation is decided, in this order, by the queue of
//! [`FaultyStore::next`], by the closure of [`FaultyStore::on_operation`], and by chance ([`FaultyStore::random`]),
//! so that a test can script one fault exactly or run thousands of seeded programs. The same seed and the same order of
//! operations give the same faults. [`LaggingReader`] is a copy of a store in another region: it never
//! lies, it is only behind, and not in the order in which things were written.
//!
//! Nothing here runs in production.

mod fault;
mod lagging;
mod store;
#[cfg(test)]
mod tests;

pub use fault::{Fault, FaultRates, Gate, Operation, OperationKind};
pub use lagging::LaggingReader;
pub use store::FaultyStore;
