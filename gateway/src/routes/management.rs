//! What the calls of the control API share: who may call, their bodies, and how they reach their service.
//!
//! Only shapes and scopes are checked here. The keystore authorizes every management call itself, by the key that the
//! caller presented, which goes along with the call.

use std::error::Error;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::dev::Payload;
use actix_web::http::header::ContentType;
use actix_web::web::Data;
use actix_web::{FromRequest, HttpMessage as _, HttpRequest, HttpResponse};
use serde::Serialize;
use serde_json::Map;
use stage0_backplane::{RequestError, Requests};
use stage0_contract::{
    AccountId, Caller, ClientRequestId, FieldError, KeyIdentity, ManageReply, Request, RequestId, Scope,
};

use super::fields::Fields;
use crate::auth::{authenticate, presented_key};
use crate::body::{self, Body};
use crate::errors::{ApiError, How, Part};
use crate::idempotency::{Answer, CallError, IDEMPOTENCY_KEY, IdempotentCreate, MAX_BODY_BYTES};
use crate::key_cache::VerifiedCaller;
use crate::middleware::RequestContext;
use crate::request_memory::MemoryPermit;
use crate::state::AppState;
use crate::throttle::ManagementCall;

/// A request and what its handler needs. The caller is authenticated before the body is read.
pub(super) struct Call {
    pub(super) state: Data<AppState>,
    pub(super) request: HttpRequest,
    payload: Payload,
    /// The memory of the body, which is held until the request is answered.
    memory: Option<MemoryPermit>,
}

type CreateFields = (Fields, Option<IdempotentCreate>);

impl FromRequest for Call {
    type Error = actix_web::Error;
    type Future = Ready<Result<Self, Self::Error>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let state = Data::from_request(request, payload).into_inner();
        ready(state.map(|state| Self { state, request: request.clone(), payload: payload.take(), memory: None }))
    }
}

impl Call {
    /// A request whose body has been read already.
    pub(super) fn of(request: &HttpRequest) -> Result<Self, ApiError> {
        let state = request.app_data::<Data<AppState>>().cloned().ok_or(ApiError::Unavailable)?;
        Ok(Self { state, request: request.clone(), payload: Payload::None, memory: None })
    }

    /// The caller, if its key has a management call left in this minute.
    pub(super) async fn caller(&self) -> Result<Caller, ApiError> {
        self.authorize(ManagementCall::Other, None).await
    }

    /// As [`Call::caller`], with this scope. An operator needs no scope.
    pub(super) async fn caller_with_scope(&self, scope: Scope) -> Result<Caller, ApiError> {
        self.authorize(ManagementCall::Other, Some(scope)).await
    }

    /// As [`Call::caller`]; revocations have a rate limit of their own.
    pub(super) async fn revoking_caller(&self) -> Result<Caller, ApiError> {
        self.authorize(ManagementCall::Revocation, None).await
    }

    async fn authorize(&self, call: ManagementCall, scope: Option<Scope>) -> Result<Caller, ApiError> {
        let identity = authenticate(&self.state, &self.request).await?;
        if let Some(scope) = scope
            && !identity.scopes.contains(&Scope::Operator)
            && !identity.scopes.contains(&scope)
        {
            return Err(ApiError::ScopeMissing(scope));
        }
        if let Some(calls) = &self.state.management_calls {
            calls.admit(&identity, call, Instant::now()).map_err(ApiError::TooManyCalls)?;
        }
        self.caller_of(&identity)
    }

    /// The identity of the caller, which has been authenticated.
    pub(super) fn identity(&self) -> Result<Arc<KeyIdentity>, ApiError> {
        self.verified_caller().map(|caller| Arc::clone(caller.identity()))
    }

    pub(super) fn verified_caller(&self) -> Result<VerifiedCaller, ApiError> {
        self.request.extensions().get::<VerifiedCaller>().cloned().ok_or(ApiError::Unavailable)
    }

    /// Lets a call that ended its own caller's key be answered nevertheless.
    pub(super) fn release_without_key(&self) {
        self.request.extensions_mut().remove::<VerifiedCaller>();
    }

    /// The id under which the request's log entries are found.
    pub(super) fn request_id(&self) -> Result<RequestId, ApiError> {
        RequestContext::id_of(&self.request).ok_or(ApiError::Unavailable)
    }

    /// For the identity that the request was authenticated as.
    pub(super) fn caller_of(&self, identity: &KeyIdentity) -> Result<Caller, ApiError> {
        let key = presented_key(&self.request).ok_or(ApiError::Unauthorized)?;
        Ok(Caller::new(identity, &key))
    }

    pub(super) fn query_fields(&self) -> Fields {
        Fields::of_query(&self.request)
    }

    /// The members of the body of a request of `account`.
    pub(super) async fn json_fields(&mut self, account: &AccountId) -> Result<Fields, ApiError> {
        let body = self.body(account).await?;
        Ok(self.fields_of(body, Vec::new()))
    }

    /// As [`Call::json_fields`], where a missing body means an empty object.
    pub(super) async fn optional_json_fields(&mut self, account: &AccountId) -> Result<Fields, ApiError> {
        let body = self.optional_body(account).await?;
        Ok(self.fields_of(body, Vec::new()))
    }

    /// As [`Call::json_fields`], of a call that needs no key.
    pub(super) async fn json_fields_without_key(&mut self) -> Result<Fields, ApiError> {
        let received = body::receive(&self.state, &self.request, self.payload.take(), None).await?;
        let deadline = tokio::time::Instant::now() + self.state.config.request_budget;
        let body = received.parse(&self.state.request_memory, None, deadline).await?;
        Ok(self.fields_of(body, Vec::new()))
    }

    /// Refuses a body that has members; none is needed.
    pub(super) async fn no_fields(&mut self, account: &AccountId) -> Result<(), ApiError> {
        let body = self.optional_body(account).await?;
        self.fields_of(body, Vec::new()).finish()
    }

    /// The members of the body of a call that creates, and its `Idempotency-Key`; `call` is its method and path.
    pub(super) async fn create_fields(&mut self, caller: &Caller, call: &str) -> Result<CreateFields, ApiError> {
        let body = self.body(&caller.account).await?;
        Ok(self.idempotent_fields(caller, call, body))
    }

    /// As [`Call::create_fields`], where a missing body means an empty object.
    pub(super) async fn optional_create_fields(
        &mut self,
        caller: &Caller,
        call: &str,
    ) -> Result<CreateFields, ApiError> {
        let body = self.optional_body(&caller.account).await?;
        Ok(self.idempotent_fields(caller, call, body))
    }

    async fn body(&mut self, account: &AccountId) -> Result<Body, ApiError> {
        let received = body::receive(&self.state, &self.request, self.payload.take(), Some(account)).await?;
        let deadline = tokio::time::Instant::now() + self.state.config.request_budget;
        received.parse(&self.state.request_memory, Some(account), deadline).await
    }

    async fn optional_body(&mut self, account: &AccountId) -> Result<Body, ApiError> {
        if body::has_body(self.request.headers()) {
            self.body(account).await
        } else {
            Ok(Body { object: Map::new(), bytes: 0, permit: None })
        }
    }

    fn idempotent_fields(&mut self, caller: &Caller, call: &str, body: Body) -> CreateFields {
        let mut errors = Vec::new();
        let header = visible_header(&self.request, IDEMPOTENCY_KEY, &mut errors);
        if header.is_some() && body.bytes > MAX_BODY_BYTES {
            let message = format!("serves calls with a body of at most {MAX_BODY_BYTES} bytes");
            errors.push(FieldError::new(IDEMPOTENCY_KEY, message));
        }
        let create = header.zip(caller.key.as_ref());
        let create = create.map(|(header, key)| IdempotentCreate::new(caller, key, &header, call, &body.object));
        (self.fields_of(body, errors), create)
    }

    fn fields_of(&mut self, body: Body, errors: Vec<FieldError>) -> Fields {
        self.memory = body.permit;
        Fields::of_body(body.object, errors)
    }

    pub(super) async fn send<T>(&self, message: &impl Request<Reply = ManageReply<T>>) -> Result<T, ApiError> {
        send_within(self.state.requests(), message, self.state.config.request_budget).await
    }

    /// Creates something, only once if the call has an `Idempotency-Key`. The flag says whether this call created it.
    pub(super) async fn create<T: Serialize + 'static>(
        &self,
        idempotent: Option<IdempotentCreate>,
        message: impl Request<Reply = ManageReply<T>> + 'static,
    ) -> Result<(HttpResponse, bool), ApiError> {
        let state = self.state.clone();
        self.create_by(
            idempotent,
            async move { try_send(state.requests(), &message, state.config.request_budget).await },
        )
        .await
    }

    /// As [`Call::create`], in several steps.
    pub(super) async fn create_by<T: Serialize + 'static>(
        &self,
        idempotent: Option<IdempotentCreate>,
        create: impl Future<Output = Result<T, CallError>> + 'static,
    ) -> Result<(HttpResponse, bool), ApiError> {
        let state = self.state.clone();
        let answer = to_the_end(async move {
            match idempotent {
                Some(idempotent) => idempotent.run(state.state_store(), state.config.request_budget, create).await,
                None => {
                    let made = create.await.map_err(CallError::into_api_error)?;
                    let json = serde_json::to_vec(&made).map_err(|_| ApiError::Unavailable)?;
                    Ok(Answer { json, is_new: true })
                }
            }
        });
        let answer = answer.await?;
        Ok((HttpResponse::Created().content_type(ContentType::json()).body(answer.json), answer.is_new))
    }
}

/// Does work in a task of its own: actix drops the handler of a client that disconnects, and then something would be
/// done by half, or a retry would not find the answer.
pub(super) async fn to_the_end<T: 'static>(
    work: impl Future<Output = Result<T, ApiError>> + 'static,
) -> Result<T, ApiError> {
    actix_web::rt::spawn(work).await.map_err(|error| {
        tracing::error!(error = &error as &dyn Error, "a call ended early");
        ApiError::Unavailable
    })?
}

/// As [`Call::send`], with another connection or timeout.
pub(super) async fn send_within<T>(
    requests: &dyn Requests,
    message: &impl Request<Reply = ManageReply<T>>,
    timeout: Duration,
) -> Result<T, ApiError> {
    try_send(requests, message, timeout).await.map_err(CallError::into_api_error)
}

pub(super) async fn try_send<M, T>(requests: &dyn Requests, message: &M, timeout: Duration) -> Result<T, CallError>
where
    M: Request<Reply = ManageReply<T>>,
{
    match requests.request(message, timeout).await {
        Ok(ManageReply::Done(done)) => Ok(done),
        Ok(ManageReply::Refused(refusal)) => Err(CallError::NotDone(refusal.into())),
        Ok(ManageReply::Failed) => {
            tracing::error!(subject = M::SUBJECT, "management call failed");
            Err(CallError::OutcomeUnknown(ApiError::Missing(Part::answered::<M>(How::Failed))))
        }
        Ok(ManageReply::Busy) => {
            tracing::debug!(subject = M::SUBJECT, "too many management calls wait for the keystore");
            Err(CallError::NotDone(ApiError::Missing(Part::answered::<M>(How::Busy))))
        }
        Err(error) => {
            tracing::error!(subject = M::SUBJECT, error = &error as &dyn Error, "management call was not answered");
            let missing = ApiError::Missing(Part::asked::<M>(&error));
            Err(match error {
                RequestError::NoResponders | RequestError::TooLarge => CallError::NotDone(missing),
                RequestError::Timeout | RequestError::Disconnected | RequestError::Malformed => {
                    CallError::OutcomeUnknown(missing)
                }
            })
        }
    }
}

/// A header that is at most 128 visible ASCII characters; a bad one is added to `errors`.
pub(super) fn visible_header(
    request: &HttpRequest,
    name: &'static str,
    errors: &mut Vec<FieldError>,
) -> Option<ClientRequestId> {
    let mut values = request.headers().get_all(name);
    let value = values.next()?;
    let parsed = value.to_str().ok().and_then(|text| ClientRequestId::parse(text).ok());
    if parsed.is_none() || values.next().is_some() {
        errors.push(FieldError::new(name, "must be given once, as 1 to 128 visible ASCII characters"));
        return None;
    }
    parsed
}
