//! Reading a request's body: its type, its size, the time it may take, and strict JSON.
//!
//! Refuses before it reads where the headers suffice. What is not read is thrown away by the server for a bounded moment, so that
//! the client can read its refusal.

use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use actix_web::web::{Bytes, BytesMut, Payload};
use futures_util::StreamExt;
use serde_json::{Map, Value};
use stage0_contract::{MAX_BODY_BYTES, parse_strict};

use crate::errors::ApiError;

/// A JSON object, or why there is none.
pub(crate) async fn json_object(
    request: &HttpRequest,
    payload: Payload,
    within: Duration,
) -> Result<Map<String, Value>, ApiError> {
    let body = read(request, payload, within).await?;
    match parse_strict(&body)? {
        Value::Object(object) => Ok(object),
        _ => Err(ApiError::NotAnObject),
    }
}

/// As [`json_object`], where no body at all means an empty object.
pub(crate) async fn optional_json_object(
    request: &HttpRequest,
    payload: Payload,
    within: Duration,
) -> Result<Map<String, Value>, ApiError> {
    let headers = request.headers();
    let empty = headers.get(CONTENT_LENGTH).is_none_or(|length| length.as_bytes() == b"0");
    if empty && !headers.contains_key("transfer-encoding") {
        return Ok(Map::new());
    }
    json_object(request, payload, within).await
}

async fn read(request: &HttpRequest, payload: Payload, within: Duration) -> Result<Bytes, ApiError> {
    let length =
        request.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    if length.is_some_and(|length| length > MAX_BODY_BYTES as u64) {
        return Err(ApiError::BodyTooLarge);
    }
    if !is_json(request) {
        return Err(ApiError::NotJsonType);
    }
    match tokio::time::timeout(within, collect(payload)).await {
        Ok(collected) => collected,
        Err(_) => Err(ApiError::BodyTooSlow),
    }
}

async fn collect(mut payload: Payload) -> Result<Bytes, ApiError> {
    let mut body = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|_| ApiError::BrokenBody)?;
        if body.len() + chunk.len() > MAX_BODY_BYTES {
            return Err(ApiError::BodyTooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

fn is_json(request: &HttpRequest) -> bool {
    let header =
        |name| request.headers().get(name).map(|value| value.to_str().unwrap_or("?").trim().to_ascii_lowercase());
    if header(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return false;
    }
    let Some(content_type) = header(CONTENT_TYPE) else { return false };
    let mut parts = content_type.split(';').map(str::trim);
    let json = parts.next() == Some("application/json");
    json && parts
        .filter_map(|part| part.strip_prefix("charset="))
        .all(|charset| matches!(charset.trim_matches('"'), "utf-8" | "utf8"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;

    fn accepts(headers: &[(&'static str, &str)]) -> bool {
        let mut request = TestRequest::post();
        for header in headers {
            request = request.append_header(*header);
        }
        is_json(&request.to_http_request())
    }

    #[test]
    fn only_json_in_utf_8_is_taken() {
        for good in [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/json;charset=\"utf-8\"",
            "application/json; profile=x",
        ] {
            assert!(accepts(&[("content-type", good)]), "{good}");
        }
        for bad in [
            "text/plain",
            "application/jsonx",
            "application/json; charset=latin-1",
            "application/x-www-form-urlencoded",
            "",
        ] {
            assert!(!accepts(&[("content-type", bad)]), "{bad}");
        }
        assert!(!accepts(&[]));
        assert!(!accepts(&[("content-type", "application/json"), ("content-encoding", "gzip")]));
    }
}
