//! The store's contract on a real S3 server, also when answers get lost and the server says 503: of any number of writers at most one
//! puts a key, and what it put stays as it is.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use everlog_store::contract::{Rounds, check_all};
use everlog_store::{S3Credentials, Store, StoreOptions, open, probe};
use everlog_tests::{Case, FaultProxy, Faults, S3, soak};

fn rounds(small: usize, large: usize) -> Rounds {
    let factor = if soak() { 5 } else { 1 };
    Rounds {
        small: small * factor,
        large: large * factor,
    }
}

async fn store(s3: &S3, port: u16) -> Result<Arc<dyn Store>> {
    let environment: std::collections::BTreeMap<String, String> =
        S3::environment(port).into_iter().collect();
    let options = StoreOptions {
        region: Some("us-east-1".to_owned()),
        endpoint_url: Some(environment["AWS_ENDPOINT_URL"].clone()),
        credentials: Some(S3Credentials {
            access_key_id: environment["AWS_ACCESS_KEY_ID"].clone(),
            secret_access_key: environment["AWS_SECRET_ACCESS_KEY"].clone(),
            session_token: None,
        }),
        ..StoreOptions::default()
    };
    open(&s3.url("contract"), options).await.context("opening")
}

fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()?
        .block_on(future)
}

#[test]
fn s3_keeps_the_contract() {
    Case::run("contract", |case| {
        let s3 = S3::start(case)?;
        block_on(async {
            let store = store(&s3, s3.port()).await?;
            probe(store.as_ref()).await?;
            check_all(&store, rounds(50, 10))
                .await
                .map_err(|broken| anyhow!("{broken}"))
        })
    });
}

#[test]
fn s3_keeps_the_contract_while_answers_get_lost() {
    Case::run("contract-lost", |case| {
        under(case, Faults::LoseAnswers(0.05))
    });
}

#[test]
fn s3_keeps_the_contract_while_it_throttles() {
    Case::run("contract-503", |case| under(case, Faults::Unavailable(0.1)));
}

fn under(case: &Case, faults: Faults) -> Result<()> {
    let s3 = S3::start(case)?;
    let relay = FaultProxy::start(s3.port())?;
    relay.set(faults);
    block_on(async {
        let store = store(&s3, relay.port()).await?;
        let suite = check_all(&store, rounds(5, 2));
        let outcome = tokio::time::timeout(Duration::from_secs(300), suite)
            .await
            .context("it takes too long")?;
        outcome.map_err(|broken| anyhow!("{broken}"))
    })?;
    let (requests, failed) = relay.counts();
    case.note(&format!(
        "{failed} of {requests} requests were made to fail"
    ));
    ensure!(
        failed > 20,
        "only {failed} of {requests} requests were made to fail"
    );
    Ok(())
}
