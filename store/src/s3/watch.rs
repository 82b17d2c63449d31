//! Puts the watch over an upload between the SDK and its connection.

use std::sync::Arc;

use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::SdkBody;

use crate::upload::{Progress, Watched};

/// Wraps the body when all is signed: a body that is in memory keeps the signature over its bytes, which one wrapped
/// earlier would lose.
#[derive(Debug)]
pub(super) struct WatchUpload {
    progress: Arc<Progress>,
}

impl WatchUpload {
    pub(super) fn new(progress: &Arc<Progress>) -> WatchUpload {
        WatchUpload {
            progress: Arc::clone(progress),
        }
    }
}

impl Intercept for WatchUpload {
    fn name(&self) -> &'static str {
        "WatchUpload"
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let body = context.request_mut().body_mut();
        // There is nothing to watch, and the connection sends "no body" in a way of its own.
        if body.content_length() == Some(0) {
            return Ok(());
        }
        let inner = std::mem::replace(body, SdkBody::taken());
        *body = SdkBody::from_body_1_x(Watched::new(inner, Arc::clone(&self.progress)));
        Ok(())
    }
}
