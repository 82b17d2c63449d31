//! Proves the log by crashing it: every moment of a workload, every class of what may have landed, again and again. For tests only.
//!
//! `session` drives [`crate::core::Core`] on a [`crate::device::sim::SimDevice`] and keeps `model` beside it; `states` derives what a crash may
//! have left; `check` recovers that and holds it against the model; `explore` does so for seed after seed.

pub mod check;
pub mod corruption;
pub mod crafted;
pub mod explore;
pub mod faults;
pub mod model;
pub mod mutations;
pub mod owners;
pub mod rescue;
pub mod rng;
pub mod session;
pub mod states;

#[cfg(test)]
mod tests;
