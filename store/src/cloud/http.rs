//! The HTTP client below `object_store`: as its own, but that an upload can be watched.
//!
//! The library hands a body to its client as a whole, and nothing above can see whether it moves.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use reqwest::{Body, Client, Request, Url};

use crate::upload::{Progress, Watched};

/// Makes the clients. What the library knows of proxies comes from the environment here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Connector {
    pub(super) connect_max: Duration,
}

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        // No deadline for the whole: the caller keeps it, by the size of the body. Nor is TLS demanded: the services
        // that give out an instance's tokens have none.
        let client = Client::builder()
            .user_agent(concat!("everlog/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.connect_max)
            .build();
        match client {
            Ok(client) => Ok(HttpClient::new(Service { client })),
            Err(error) => Err(object_store::Error::Generic {
                store: "HTTP client",
                source: Box::new(error),
            }),
        }
    }
}

#[derive(Debug)]
struct Service {
    client: Client,
}

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let url = Url::parse(&parts.uri.to_string())
            .map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        let mut request = Request::new(parts.method, url);
        *request.headers_mut() = parts.headers;
        *request.body_mut() = Some(match parts.extensions.get::<Arc<Progress>>() {
            Some(progress) => Body::wrap(Watched::new(body, Arc::clone(progress))),
            // In one piece, as the library's own client sends it.
            None => match body.as_bytes() {
                Some(bytes) => Body::from(bytes.clone()),
                None => Body::wrap(body),
            },
        });
        let response = self.client.execute(request).await.map_err(failed)?;
        let mut answer = HttpResponse::new(HttpResponseBody::from(Bytes::new()));
        *answer.status_mut() = response.status();
        *answer.headers_mut() = response.headers().clone();
        *answer.body_mut() = HttpResponseBody::new(Body::from(response).map_err(failed));
        Ok(answer)
    }
}

fn failed(error: reqwest::Error) -> HttpError {
    let kind = if error.is_connect() {
        HttpErrorKind::Connect
    } else {
        HttpErrorKind::Request
    };
    // Its text would name the whole address, and the query of a signed one is as good as a password.
    HttpError::new(kind, error.without_url())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a store says goes to the log, and to whoever asks for the health.
    #[tokio::test]
    async fn a_signed_address_is_not_told() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let url = format!("http://127.0.0.1:{port}/container?sig=hunter2");
        let request = Client::new().get(url).send().await;
        let told = crate::chain(&failed(request.expect_err("nobody listens")));
        assert!(!told.contains("hunter2"), "{told}");
        assert!(told.to_lowercase().contains("connect"), "{told}");
    }
}
