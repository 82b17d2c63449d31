//! `/metrics` for Prometheus and `/healthz` for whoever supervises the process, over plain HTTP.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::health::Health;

/// Scrapers are few. Whoever holds more connections than this waits.
const CONNECTION_COUNT_MAX: usize = 64;

/// A connection lives no longer, so that an idle one gives its place back.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(300);

/// A bound socket.
#[derive(Debug)]
pub(crate) struct MetricsServer {
    listener: TcpListener,
    registry: Registry,
    health: Health,
}

impl MetricsServer {
    /// Takes the port.
    pub(crate) async fn bind(
        address: SocketAddr,
        registry: Registry,
        health: Health,
    ) -> std::io::Result<MetricsServer> {
        Ok(MetricsServer {
            listener: TcpListener::bind(address).await?,
            registry,
            health,
        })
    }

    /// Serves until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let MetricsServer {
            listener,
            registry,
            health,
        } = self;
        let places = Arc::new(Semaphore::new(CONNECTION_COUNT_MAX));
        loop {
            let accept = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (place, listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = accept => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(err) => {
                    // Mostly: no file descriptor is free. A pause keeps this from spinning.
                    warn!(
                        error = &err as &dyn std::error::Error,
                        "a connection for metrics could not be accepted"
                    );
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            };
            let (registry, health, shutdown) = (registry.clone(), health.clone(), shutdown.clone());
            tokio::spawn(async move {
                let _place = place;
                let service = service_fn(move |request| {
                    let response = answer(&request, &registry, &health);
                    async move { Ok::<_, Infallible>(response) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                let served = tokio::select! {
                    () = shutdown.cancelled() => return,
                    served = tokio::time::timeout(CONNECTION_AGE_MAX, connection) => served,
                };
                if let Ok(Err(err)) = served {
                    debug!(
                        error = &err as &dyn std::error::Error,
                        "a connection for metrics ended"
                    );
                }
            });
        }
    }
}

fn answer(
    request: &Request<Incoming>,
    registry: &Registry,
    health: &Health,
) -> Response<Full<Bytes>> {
    const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
    let (status, content_type, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            let encoder = TextEncoder::new();
            let mut body = Vec::new();
            match encoder.encode(&registry.gather(), &mut body) {
                Ok(()) => {
                    let format = HeaderValue::from_str(encoder.format_type()).unwrap_or(TEXT);
                    (StatusCode::OK, format, body)
                }
                Err(err) => (
                    StatusCode::INTERNAL_SERVER_ERROR,
                    TEXT,
                    format!("{err}\n").into_bytes(),
                ),
            }
        }
        (&Method::GET | &Method::HEAD, "/healthz") => {
            let (ready, mut text) = health.report();
            text.push_str(&health.troubles(&registry.gather()));
            let status = if ready {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            (status, TEXT, text.into_bytes())
        }
        (&Method::GET | &Method::HEAD, _) => (
            StatusCode::NOT_FOUND,
            TEXT,
            b"there are /metrics and /healthz\n".to_vec(),
        ),
        _ => (StatusCode::METHOD_NOT_ALLOWED, TEXT, Vec::new()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::health::State;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address)
            .await
            .expect("it listens");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream
            .write_all(request.as_bytes())
            .await
            .expect("it reads");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("it answers");
        text
    }

    #[tokio::test]
    async fn metrics_and_health_are_served() {
        let (registry, health) = (Registry::new(), Health::default());
        let counter =
            prometheus::IntCounter::new("everlog_test_total", "a test").expect("a valid name");
        registry
            .register(Box::new(counter.clone()))
            .expect("registered once");
        counter.inc();
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = MetricsServer::bind(address, registry, health.clone())
            .await
            .expect("a free port");
        let address = server.listener.local_addr().expect("bound");
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(server.run(shutdown.clone()));

        assert!(
            get(address, "/metrics")
                .await
                .contains("\neverlog_test_total 1\n")
        );
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 503"));
        health.set("archive", State::Ready);
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/").await.starts_with("HTTP/1.1 404"));

        shutdown.cancel();
        running.await.expect("it ends");
    }
}
