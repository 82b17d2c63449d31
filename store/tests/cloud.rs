//! The contract suite on servers that speak Google's and Azure's protocols. Not run by itself.
//!
//! `gs`: `EVERLOG_TEST_GS_BUCKET` and, for another server than Google's, `EVERLOG_TEST_GS_ENDPOINT`. `az`: `EVERLOG_TEST_AZ_ENDPOINT` (with the account as its path where the server wants
//! it there, as Azurite does), `EVERLOG_TEST_AZ_CONTAINER`, `AZURE_STORAGE_ACCOUNT_NAME`, `AZURE_STORAGE_ACCOUNT_KEY`.
//! Bucket and container have to be there.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use everlog_store::contract::{Rounds, check_all};
use everlog_store::{StoreOptions, open, probe, probe_read_only};

async fn check(scheme: &str, endpoint: &str, bucket: &str) {
    let bucket = std::env::var(bucket).unwrap();
    for url in [
        format!("{scheme}://{bucket}"),
        format!("{scheme}://{bucket}/some/prefix"),
    ] {
        let options = StoreOptions {
            endpoint_url: std::env::var(endpoint).ok(),
            ..StoreOptions::default()
        };
        let store = open(&url, options).await.unwrap();
        let report = probe(store.as_ref()).await.unwrap();
        assert!(report.warnings.is_empty(), "{:?}", report.warnings);
        probe_read_only(store.as_ref()).await.unwrap();
        check_all(&store, Rounds::default()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a bucket: EVERLOG_TEST_GS_BUCKET"]
async fn google_keeps_the_contract() {
    check("gs", "EVERLOG_TEST_GS_ENDPOINT", "EVERLOG_TEST_GS_BUCKET").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a container: EVERLOG_TEST_AZ_CONTAINER"]
async fn azure_keeps_the_contract() {
    check(
        "az",
        "EVERLOG_TEST_AZ_ENDPOINT",
        "EVERLOG_TEST_AZ_CONTAINER",
    )
    .await;
}
