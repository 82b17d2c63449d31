//! Why the archiver has had no answer from the cluster yet: its Kafka library keeps that to itself, or that no waiting will
//! help. Asks beside it until it is up; what comes of it is a line in `/healthz` and in the log.

use std::error::Error;
use std::time::Duration;

use everlog_proxy::{ReachError, Unanswered, reach};
use tokio::time::{Instant, sleep};
use tracing::warn;

use crate::config::ServiceConfig;

/// Where the cluster is, and how it is spoken to.
#[derive(Clone, Debug)]
pub(super) struct Address {
    servers: String,
    /// librdkafka's `security.protocol`.
    protocol: Option<String>,
}

impl Address {
    pub(super) fn of(config: &ServiceConfig) -> Address {
        Address {
            servers: config.bootstrap_servers.clone(),
            protocol: config.properties.get("security.protocol").cloned(),
        }
    }
}

/// How patient it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// From question to question.
    every: Duration,
    /// Where a server answers, the archiver has so long to get through as well.
    grace: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            every: Duration::from_secs(10),
            // It may be in the middle of a pause, of 5 s at most, or of a question.
            grace: Duration::from_secs(15),
        }
    }
}

/// The same is told again in the log after so long.
const TELL_AGAIN: Duration = Duration::from_secs(60);

const NOT_THROUGH: &str = "a bootstrap server answers, but the archiver's Kafka client does not get through: look at `security.protocol` \
     and the credentials in [kafka.properties], and at the brokers' logs";

/// The line for the health of who waits for a bootstrap server.
pub(super) fn unanswered(why: &Unanswered) -> String {
    format!("no bootstrap server answers: {why}")
}

/// Asks until it is dropped, and hands `tell` what there is to say; gives what no waiting mends.
pub(super) async fn ask(cluster: &Address, pace: Pace, tell: impl Fn(String)) -> ReachError {
    // Whether somebody answered, when that was told last.
    let mut told: Option<(bool, Instant)> = None;
    loop {
        let asked = Instant::now();
        let reached = reach(&cluster.servers, cluster.protocol.as_deref()).await;
        let is_due = told
            .is_none_or(|(answered, at)| answered != reached.is_ok() || TELL_AGAIN <= at.elapsed());
        if is_due {
            told = Some((reached.is_ok(), asked));
        }
        match reached {
            Ok(()) => {
                sleep(pace.grace).await;
                tell(NOT_THROUGH.to_owned());
                if is_due {
                    warn!("{NOT_THROUGH}");
                }
            }
            Err(ReachError::Unanswered(why)) if !why.is_controllers_only() => {
                tell(unanswered(&why));
                if is_due {
                    warn!(
                        error = &why as &dyn Error,
                        "no bootstrap server answers, the archiver goes on asking"
                    );
                }
            }
            Err(hopeless) => return hopeless,
        }
        sleep(pace.every.saturating_sub(asked.elapsed())).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const PACE: Pace = Pace {
        every: Duration::from_millis(20),
        grace: Duration::from_millis(5),
    };

    /// Answers ApiVersions with these APIs, and nothing else.
    async fn serve(listener: TcpListener, keys: &[u8]) {
        loop {
            let (mut client, _) = listener.accept().await.expect("a client");
            let len = client.read_u32().await.expect("a length");
            let mut request = vec![0; usize::try_from(len).expect("a length")];
            client.read_exact(&mut request).await.expect("a request");
            let mut answer = request.get(4..8).expect("a correlation id").to_vec();
            answer.extend([0, 0, 0, 0, 0, u8::try_from(keys.len()).expect("few")]);
            for key in keys {
                answer.extend([0, *key, 0, 0, 0, 9]);
            }
            let len = u32::try_from(answer.len()).expect("short");
            client.write_u32(len).await.expect("taken");
            client.write_all(&answer).await.expect("taken");
        }
    }

    /// What is told until it is `wanted`, or what cannot be mended.
    async fn told(address: &Address, wanted: impl Fn(&str) -> bool) -> Result<(), ReachError> {
        let lines = Mutex::new(Vec::new());
        let tell = |line| lines.lock().expect("whole").push(line);
        let reached = async {
            while !lines
                .lock()
                .expect("whole")
                .iter()
                .any(|line: &String| wanted(line))
            {
                sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::select! {
            hopeless = ask(address, PACE, tell) => Err(hopeless),
            () = reached => Ok(()),
            () = sleep(Duration::from_secs(20)) => panic!("{lines:?}"),
        }
    }

    /// `/healthz` said that the archiver waits, and for as long as it did nobody learned why.
    #[tokio::test]
    async fn the_reason_is_told_and_asked_for_anew() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let bound = listener.local_addr().expect("bound");
        drop(listener);
        let address = Address {
            servers: bound.to_string(),
            protocol: None,
        };
        let refused = format!("no bootstrap server answers: {bound}: Connection refused");
        let refused = told(&address, |line| line.starts_with(&refused)).await;
        assert!(refused.is_ok());

        // A broker that answers this, and lets nobody in.
        let listener = TcpListener::bind(bound).await.expect("the port");
        let broker = tokio::spawn(serve(listener, &[0, 1, 3, 18]));
        let not_through = |line: &str| line.contains("security.protocol");
        assert!(told(&address, not_through).await.is_ok());
        broker.abort();
        assert!(broker.await.is_err());

        let listener = TcpListener::bind(bound).await.expect("the port");
        tokio::spawn(serve(listener, &[1, 18, 52]));
        let hopeless = told(&address, |_| false).await;
        let hopeless = hopeless.expect_err("no waiting helps").to_string();
        assert!(hopeless.contains("KRaft controller"), "{hopeless}");
    }
}
