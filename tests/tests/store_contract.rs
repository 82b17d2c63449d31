//! The store's contract on a real S3 server and on Azure's emulator, also when answers get lost and the server says 503: of any number
//! of writers at most one puts a key, and what it put stays as it is.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use everlog_store::contract::{Rounds, check_all};
use everlog_store::{S3Credentials, Store, StoreOptions, open, probe};
use everlog_tests::{Azure, Case, FaultProxy, Faults, Process, S3, soak};

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

/// For the process that [`azure`] starts: where the store is.
const AZURE_ENDPOINT: &str = "EVERLOG_TEST_AZURE_ENDPOINT";

#[test]
fn azure_keeps_the_contract() {
    azure("azure_keeps_the_contract", Faults::None, rounds(50, 10));
}

#[test]
fn azure_keeps_the_contract_while_answers_get_lost() {
    let name = "azure_keeps_the_contract_while_answers_get_lost";
    azure(name, Faults::LoseAnswers(0.05), rounds(5, 2));
}

#[test]
fn azure_keeps_the_contract_while_it_throttles() {
    let name = "azure_keeps_the_contract_while_it_throttles";
    azure(name, Faults::Unavailable(0.1), rounds(5, 2));
}

/// `az://` takes its account from the environment and from nowhere else. So the suite runs in a process of its own: this
/// test again, by its `name`, beside an emulator that is there already.
fn azure(name: &str, faults: Faults, rounds: Rounds) {
    if let Ok(endpoint) = std::env::var(AZURE_ENDPOINT) {
        let outcome = block_on(async {
            let options = StoreOptions {
                endpoint_url: Some(endpoint),
                ..StoreOptions::default()
            };
            let store = open(&Azure::url("contract"), options).await?;
            probe(store.as_ref()).await?;
            check_all(&store, rounds)
                .await
                .map_err(|broken| anyhow!("{broken}"))
        });
        return outcome.expect("the contract is kept");
    }
    Case::run(name, |case| {
        let azure = Azure::start(case)?;
        let relay = FaultProxy::start(azure.port())?;
        relay.set(faults);
        let port = match faults {
            Faults::None => azure.port(),
            _ => relay.port(),
        };
        let mut suite = Command::new(std::env::current_exe()?);
        suite
            .args(["--exact", name, "--nocapture"])
            .env(AZURE_ENDPOINT, Azure::endpoint(port))
            .envs(Azure::environment());
        let mut suite = Process::start("suite", &suite, &case.path("suite.log"))?;
        suite.wait_success(Duration::from_secs(300))?;
        let said = suite.log_text();
        ensure!(said.contains("1 passed"), "no test was run:\n{said}");
        match faults {
            Faults::None => Ok(()),
            _ => expect_faults(case, &relay),
        }
    });
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
    expect_faults(case, &relay)
}

fn expect_faults(case: &Case, relay: &FaultProxy) -> Result<()> {
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
