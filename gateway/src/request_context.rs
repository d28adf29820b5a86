//! What the gateway knows about every request from its first byte: its id and when it arrived.

use std::time::Instant;

use actix_web::{HttpMessage as _, HttpRequest};
use stage0_contract::RequestId;

/// Stored in the request's extensions by the middleware, before any handler runs.
#[derive(Clone, Copy)]
pub(crate) struct RequestContext {
    pub(crate) id: RequestId,
    pub(crate) started: Instant,
}

impl RequestContext {
    /// INVARIANT: the middleware wraps every route, so a handler always finds one.
    pub(crate) fn of(request: &HttpRequest) -> Option<Self> {
        request.extensions().get::<Self>().copied()
    }

    pub(crate) fn id_of(request: &HttpRequest) -> Option<RequestId> {
        Self::of(request).map(|context| context.id)
    }
}
