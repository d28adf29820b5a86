//! What one row of the table of operations says. Its error responses follow from its method, its access and its types,
//! so that no row can forget one.

use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::Operation;
use super::responses::ErrorResponse;
use crate::{ManageReply, Request, Scope};

/// A method of HTTP that the API uses. `GET` includes `HEAD`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are those of HTTP")]
pub enum Method {
    Delete,
    Get,
    Patch,
    Post,
}

impl Method {
    /// As in a request line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delete => "DELETE",
            Self::Get => "GET",
            Self::Patch => "PATCH",
            Self::Post => "POST",
        }
    }

    pub(super) const fn has_body(self) -> bool {
        match self {
            Self::Patch | Self::Post => true,
            Self::Delete | Self::Get => false,
        }
    }
}

/// Which keys may use an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// No key is needed.
    Open,
    /// Any valid key.
    AnyKey,
    /// A key with at least one of these scopes.
    Scopes(&'static [Scope]),
}

pub(super) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// The body of a success.
#[derive(Clone, Copy)]
pub(super) enum Reply {
    /// Answers 204, without a body.
    Nothing,
    Json(SchemaOf),
    /// A body of this media type.
    Other(&'static str),
}

/// An operation that monitoring calls all the time.
#[derive(Clone, Copy)]
pub(super) struct Probe {
    pub(super) unready: Option<&'static str>,
}

#[derive(Clone, Copy)]
pub(super) struct Row {
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) tag: &'static str,
    pub(super) access: Access,
    /// The type whose fields are parameters of the path, and of the query or members of the body.
    pub(super) input: Option<SchemaOf>,
    /// The component that the whole body is, for an operation that passes it on.
    pub(super) body: Option<SchemaOf>,
    pub(super) status: u16,
    pub(super) description: &'static str,
    pub(super) reply: Reply,
    /// The 202 of an operation that does not always do at once what it is asked for.
    pub(super) accepted: Option<(&'static str, SchemaOf)>,
    /// The 200 of an operation that creates, where there is nothing to create; with the same body.
    pub(super) unchanged: Option<&'static str>,
    pub(super) also: &'static [ErrorResponse],
    pub(super) is_idempotent: bool,
    /// Whether programs may call it: pages for people are not in the document.
    pub(super) is_described: bool,
    pub(super) probe: Option<Probe>,
    pub(super) body_example: Option<&'static str>,
    pub(super) example: Option<&'static str>,
    pub(super) name: &'static str,
    pub(super) doc: &'static [&'static str],
}

impl Row {
    const fn new(method: Method, path: &'static str, tag: &'static str, access: Access) -> Self {
        Self {
            method,
            path,
            tag,
            access,
            input: None,
            body: None,
            status: 200,
            description: "",
            reply: Reply::Nothing,
            accepted: None,
            unchanged: None,
            also: &[],
            is_idempotent: false,
            is_described: true,
            probe: None,
            body_example: None,
            example: None,
            name: "",
            doc: &[],
        }
    }

    pub(super) const fn get(path: &'static str, tag: &'static str, access: Access) -> Self {
        Self::new(Method::Get, path, tag, access)
    }

    pub(super) const fn post(path: &'static str, tag: &'static str, access: Access) -> Self {
        Self::new(Method::Post, path, tag, access)
    }

    pub(super) const fn patch(path: &'static str, tag: &'static str, access: Access) -> Self {
        Self::new(Method::Patch, path, tag, access)
    }

    pub(super) const fn delete(path: &'static str, tag: &'static str, access: Access) -> Self {
        Self::new(Method::Delete, path, tag, access)
    }

    /// The gateway sends this message: its fields are parameters and body, and its reply is the body of the answer.
    pub(super) const fn request<M>(mut self, status: u16, description: &'static str) -> Self
    where
        M: Request + JsonSchema,
        M::Reply: Outcome,
    {
        self.reply = Reply::Json(reference::<<M::Reply as Outcome>::Done>);
        self.status = status;
        self.describe::<M>(description)
    }

    /// As [`Row::request`], where the answer is a 204.
    pub(super) const fn request_without_content<M: Request + JsonSchema>(mut self, description: &'static str) -> Self {
        self.status = 204;
        self.describe::<M>(description)
    }

    const fn describe<M: Request + JsonSchema>(mut self, description: &'static str) -> Self {
        self.input = Some(M::json_schema);
        self.description = description;
        self
    }

    pub(super) const fn parameters<T: JsonSchema>(mut self) -> Self {
        self.input = Some(T::json_schema);
        self
    }

    pub(super) const fn body<T: JsonSchema>(mut self) -> Self {
        self.body = Some(reference::<T>);
        self
    }

    pub(super) const fn replies<T: JsonSchema>(mut self, description: &'static str) -> Self {
        self.reply = Reply::Json(reference::<T>);
        self.description = description;
        self
    }

    /// The status of the success, where it is not 200.
    pub(super) const fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    pub(super) const fn sends(mut self, media_type: &'static str, description: &'static str) -> Self {
        self.reply = Reply::Other(media_type);
        self.description = description;
        self
    }

    pub(super) const fn or_accepts<T: JsonSchema>(mut self, description: &'static str) -> Self {
        self.accepted = Some((description, reference::<T>));
        self
    }

    pub(super) const fn or_unchanged(mut self, description: &'static str) -> Self {
        self.unchanged = Some(description);
        self
    }

    /// Error responses that do not follow from the rest of the row.
    pub(super) const fn or(mut self, also: &'static [ErrorResponse]) -> Self {
        self.also = also;
        self
    }

    pub(super) const fn idempotent(mut self) -> Self {
        self.is_idempotent = true;
        self
    }

    /// Not in the document: only browsers call it.
    pub(super) const fn undescribed(mut self) -> Self {
        self.is_described = false;
        self
    }

    /// No rate limit; `unready` describes the 503 that has the same body as the success, where there is one.
    pub(super) const fn probe(mut self, unready: Option<&'static str>) -> Self {
        self.probe = Some(Probe { unready });
        self
    }

    pub(super) const fn body_example(mut self, json: &'static str) -> Self {
        self.body_example = Some(json);
        self
    }

    pub(super) const fn example(mut self, json: &'static str) -> Self {
        self.example = Some(json);
        self
    }

    pub(super) fn errors(&self) -> Vec<ErrorResponse> {
        use ErrorResponse::{
            BadJson, BodyTooLarge, MethodNotAllowed, RequestTimeout, ScopeMissing, TooManyRequests, Unauthorized,
            Unavailable, UnsupportedMediaType, ValidationFailed,
        };
        let mut errors = self.also.to_vec();
        errors.push(MethodNotAllowed);
        match self.access {
            Access::Open => {}
            Access::AnyKey => errors.extend([Unauthorized, Unavailable]),
            Access::Scopes(_) => errors.extend([Unauthorized, ScopeMissing, Unavailable]),
        }
        if self.method.has_body() {
            errors.extend([BadJson, RequestTimeout, BodyTooLarge, UnsupportedMediaType, ValidationFailed]);
        } else if self.input.is_some() {
            errors.push(ValidationFailed);
        }
        // The row's own description of a status goes before the general one.
        let is_described = self.also.iter().any(|error| error.status() == TooManyRequests.status());
        if !is_described && self.probe.is_none() {
            errors.push(TooManyRequests);
        }
        errors.sort_by_key(|error| error.status());
        errors
    }
}

pub(super) trait Outcome {
    type Done: JsonSchema;
}

impl<T: JsonSchema> Outcome for ManageReply<T> {
    type Done = T;
}

fn reference<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

impl Operation {
    /// The method.
    pub fn method(self) -> Method {
        self.row().method
    }

    /// The path below the base path, with `{…}` around the names of parameters.
    pub fn path(self) -> &'static str {
        self.row().path
    }

    /// Which keys may use it.
    pub fn access(self) -> Access {
        self.row().access
    }

    /// Whether it is in the OpenAPI document.
    pub fn is_described(self) -> bool {
        self.row().is_described
    }

    /// Whether monitoring calls it all the time, so that no rate limit applies.
    pub fn is_probe(self) -> bool {
        self.row().probe.is_some()
    }
}
