//! Whether the process is fit to be used, as `/healthz` tells it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What the parts of the process say of themselves. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Health {
    parts: Arc<Mutex<BTreeMap<&'static str, State>>>,
}

/// What one part says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It works.
    Ready,
    /// It does not work yet, or no more, and why.
    NotReady(String),
}

impl Health {
    pub(crate) fn set(&self, part: &'static str, state: State) {
        // A map of states is whole at any time, also after a panic elsewhere.
        self.parts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(part, state);
    }

    /// Whether all parts are ready, and a line for each.
    pub(crate) fn report(&self) -> (bool, String) {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = !parts.is_empty() && parts.values().all(|state| *state == State::Ready);
        let mut text = String::from(if ready { "ready\n" } else { "not ready\n" });
        for (part, state) in parts.iter() {
            let line = match state {
                State::Ready => format!("{part}: ready\n"),
                State::NotReady(why) => format!("{part}: {why}\n"),
            };
            text.push_str(&line);
        }
        (ready, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_once_every_part_is() {
        let health = Health::default();
        assert!(!health.report().0, "nobody has said anything yet");
        health.set("archive", State::Ready);
        health.set("proxy", State::NotReady("starting".to_owned()));
        assert_eq!(
            health.report(),
            (
                false,
                "not ready\narchive: ready\nproxy: starting\n".to_owned()
            )
        );
        health.set("proxy", State::Ready);
        assert!(health.report().0);
    }
}
