//! From the operator's settings and the AWS chain to a client.

use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    Builder, Credentials, RequestChecksumCalculation, ResponseChecksumValidation,
};

use crate::{OpenError, StoreOptions};

pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) in_key_order: bool,
}

/// What stores that know no regions are signed for.
const REGION_OF_OTHERS: &str = "us-east-1";

pub(super) async fn connect(
    url: &str,
    bucket: &str,
    options: &StoreOptions,
) -> Result<Connection, OpenError> {
    let policy = &options.retry;
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .retry_config(RetryConfig::disabled())
        // An upload has its deadline by its size: no fixed one here but for the connection itself.
        .timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(policy.answer_max.min(std::time::Duration::from_secs(5)))
                .disable_read_timeout()
                .build(),
        )
        // Downloads are watched in `receive`, uploads in `upload`: the SDK's own watch does not notice a server that
        // takes no byte at all.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        // Ours is given with each put, and readers check against the archive's own hashes. Many stores
        // of other makers do not know the checksums that the SDK would add by itself.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    let named = options
        .endpoint_url
        .clone()
        .or_else(|| endpoint_of(|name| std::env::var(name).ok()));
    if let Some(endpoint) = &named {
        check_endpoint(url, endpoint)?;
        loader = loader.endpoint_url(endpoint);
    }
    if let Some(own) = &options.credentials {
        let (id, secret) = (&own.access_key_id, &own.secret_access_key);
        loader = loader.credentials_provider(Credentials::new(
            id,
            secret,
            own.session_token.clone(),
            None,
            "everlog",
        ));
    }
    let shared = Box::pin(loader.region(region(options, named.is_some())).load()).await;
    if shared.region().is_none() {
        return Err(OpenError::Setup {
            url: url.to_owned(),
            remedy: "give the bucket's region (AWS_REGION, the profile, or the region option)"
                .to_owned(),
            source: "no AWS region is configured".into(),
        });
    }
    let endpoint = named.as_deref().or(shared.endpoint_url());
    let path_style = options
        .path_style
        .unwrap_or_else(|| endpoint.is_some_and(|endpoint| !is_amazons(endpoint)));
    let in_key_order = match options.lists_in_key_order {
        Some(known) => known,
        // Directory buckets list in no order. Of other makers' stores nothing is known.
        None => !bucket.ends_with("--x-s3") && endpoint.is_none_or(is_amazons),
    };
    let config = Builder::from(&shared).force_path_style(path_style).build();
    Ok(Connection {
        client: Client::from_conf(config),
        in_key_order,
    })
}

/// Where to look for the region. `named`: an endpoint is given.
fn region(options: &StoreOptions, named: bool) -> RegionProviderChain {
    let given = options.region.clone().map(Region::new);
    // Asking the instance's metadata for a region makes sense only for Amazon's own S3.
    if named && given.is_none() && std::env::var_os("AWS_REGION").is_none() {
        RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
            .or_else(aws_config::profile::region::Builder::default().build())
            .or_else(Region::from_static(REGION_OF_OTHERS))
    } else {
        RegionProviderChain::first_try(given).or_default_provider()
    }
}

/// The endpoint by the environment, in the SDK's order.
fn endpoint_of(variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    let ignored = variable("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")
        .is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let set = |name| variable(name).filter(|value| !value.is_empty());
    if ignored {
        None
    } else {
        set("AWS_ENDPOINT_URL_S3").or_else(|| set("AWS_ENDPOINT_URL"))
    }
}

fn host_of(endpoint: &str) -> Option<&str> {
    let (scheme, rest) = endpoint.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority
        .rsplit_once(':')
        .map_or(authority, |(host, port)| {
            if port.chars().all(|c| c.is_ascii_digit()) {
                host
            } else {
                authority
            }
        });
    (matches!(scheme, "http" | "https") && !host.is_empty() && !host.contains(['@', ' ']))
        .then_some(host)
}

/// Amazon's own, private endpoints of a VPC included.
fn is_amazons(endpoint: &str) -> bool {
    host_of(endpoint)
        .is_some_and(|host| host.ends_with(".amazonaws.com") || host.ends_with(".amazonaws.com.cn"))
}

fn check_endpoint(url: &str, endpoint: &str) -> Result<(), OpenError> {
    if host_of(endpoint).is_some() {
        return Ok(());
    }
    Err(OpenError::Setup {
        url: url.to_owned(),
        remedy: "write it like http://127.0.0.1:9000".to_owned(),
        source: "the endpoint URL is malformed".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amazon_and_others_are_told_apart() {
        for amazons in [
            "https://s3.eu-west-1.amazonaws.com",
            "https://bucket.vpce-1a2b-3c.s3.us-east-1.vpce.amazonaws.com:443/x",
            "https://s3.cn-north-1.amazonaws.com.cn",
        ] {
            assert!(is_amazons(amazons), "{amazons}");
        }
        for other in [
            "http://127.0.0.1:9000",
            "http://[::1]:9000",
            "https://amazonaws.com.example",
            "https://minio",
        ] {
            assert!(!is_amazons(other) && host_of(other).is_some(), "{other}");
        }
        for malformed in ["127.0.0.1:9000", "ftp://x", "http://", "https://user@host"] {
            assert_eq!(host_of(malformed), None, "{malformed}");
        }
    }

    #[test]
    fn the_service_endpoint_comes_before_the_general_one() {
        let both = |name: &str| match name {
            "AWS_ENDPOINT_URL_S3" => Some("http://s3".to_owned()),
            "AWS_ENDPOINT_URL" => Some("http://all".to_owned()),
            _ => None,
        };
        assert_eq!(endpoint_of(both).as_deref(), Some("http://s3"));
        let ignored = |name: &str| both(name).or_else(|| Some("true".to_owned()));
        assert_eq!(endpoint_of(ignored), None);
        let general = |name: &str| (name == "AWS_ENDPOINT_URL").then(|| "http://all".to_owned());
        assert_eq!(endpoint_of(general).as_deref(), Some("http://all"));
    }
}
