//! Holds a store to the contract: `contract URL [ENDPOINT]`, for example `contract az://lake http://127.0.0.1:10000/account`.
//!
//! For services that no test can start. Credentials come from where `everlog` takes them. Bucket or container have to
//! be there; what is put below the URL is left there.

use everlog_store::contract::{Rounds, check_all};
use everlog_store::{StoreOptions, open, probe, probe_read_only};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let url = words.next().ok_or("contract URL [ENDPOINT]")?;
    let options = StoreOptions {
        endpoint_url: words.next(),
        ..StoreOptions::default()
    };
    let store = open(&url, options).await?;
    let report = probe(store.as_ref()).await?;
    if !report.warnings.is_empty() {
        return Err(format!("{:?}", report.warnings).into());
    }
    probe_read_only(store.as_ref()).await?;
    check_all(&store, Rounds::default()).await?;
    Ok(())
}
