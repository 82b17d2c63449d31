//! The contract suite on a real S3 server named by `EVERLOG_TEST_S3_ENDPOINT` (bucket `EVERLOG_TEST_S3_BUCKET`, keys as
//! AWS's own variables). Not run by itself: the crate `everlog-tests` starts a server and runs the same suite.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use everlog_store::contract::{Rounds, check_all};
use everlog_store::{StoreOptions, open, probe, probe_read_only};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an S3 server: EVERLOG_TEST_S3_ENDPOINT, EVERLOG_TEST_S3_BUCKET"]
async fn s3_keeps_the_contract() {
    let endpoint = std::env::var("EVERLOG_TEST_S3_ENDPOINT").unwrap();
    let bucket = std::env::var("EVERLOG_TEST_S3_BUCKET").unwrap();
    for url in [
        format!("s3://{bucket}"),
        format!("s3://{bucket}/some/prefix"),
    ] {
        let options = StoreOptions {
            endpoint_url: Some(endpoint.clone()),
            ..StoreOptions::default()
        };
        let store = open(&url, options).await.unwrap();
        assert!(probe(store.as_ref()).await.unwrap().warnings.is_empty());
        probe_read_only(store.as_ref()).await.unwrap();
        check_all(&store, Rounds::default()).await.unwrap();
    }
}
