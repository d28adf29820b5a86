//! Static documents: fixed bytes with a content type, an `ETag` and a gzip form.
//!
//! A document is compressed once, when it is made. Caches must revalidate it, because the next release may serve other
//! bytes at the same path.

use std::io::{self, Write as _};

use actix_web::http::header::{
    AcceptEncoding, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, Encoding, EntityTag, Header as _, HeaderValue,
    IfNoneMatch, VARY,
};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, http::StatusCode};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};

/// Enough of the hash that two documents never share a tag.
const ETAG_BYTES: usize = 16;

#[derive(Debug)]
pub(super) struct Asset {
    content_type: HeaderValue,
    /// Weak: the plain and the gzip form share it.
    etag: EntityTag,
    plain: Bytes,
    gzip: Option<Bytes>,
}

impl Asset {
    pub(super) fn new(content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let plain = body.into();
        let hash = Sha256::digest(&plain);
        let etag = EntityTag::new_weak(HEXLOWER.encode(hash.get(..ETAG_BYTES).unwrap_or(&hash)));
        let gzip = gzipped(&plain).ok().filter(|gzip| gzip.len() < plain.len());
        Self { content_type: HeaderValue::from_static(content_type), etag, plain, gzip }
    }

    pub(super) fn respond(&self, request: &HttpRequest) -> HttpResponse {
        self.respond_with(request, |_| {})
    }

    /// As [`Asset::respond`], with further headers, such as a content security policy.
    pub(super) fn respond_with(
        &self,
        request: &HttpRequest,
        extra: impl FnOnce(&mut HttpResponseBuilder),
    ) -> HttpResponse {
        let unchanged = self.is_cached_by(request);
        let mut response = HttpResponse::build(if unchanged { StatusCode::NOT_MODIFIED } else { StatusCode::OK });
        response
            .insert_header((ETAG, self.etag.clone()))
            .insert_header((VARY, "Accept-Encoding"))
            .insert_header((CACHE_CONTROL, "no-cache"));
        extra(&mut response);
        if unchanged {
            return response.finish();
        }
        response.insert_header((CONTENT_TYPE, self.content_type.clone()));
        match &self.gzip {
            Some(gzip) if accepts_gzip(request) => {
                response.insert_header((CONTENT_ENCODING, "gzip")).body(gzip.clone())
            }
            _ => response.body(self.plain.clone()),
        }
    }

    fn is_cached_by(&self, request: &HttpRequest) -> bool {
        match IfNoneMatch::parse(request) {
            Ok(IfNoneMatch::Any) => true,
            Ok(IfNoneMatch::Items(tags)) => tags.iter().any(|tag| tag.weak_eq(&self.etag)),
            Err(_) => false,
        }
    }
}

fn accepts_gzip(request: &HttpRequest) -> bool {
    AcceptEncoding::parse(request).is_ok_and(|accepted| {
        accepted.negotiate([Encoding::identity(), Encoding::gzip()].iter()) == Some(Encoding::gzip())
    })
}

fn gzipped(plain: &[u8]) -> io::Result<Bytes> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(plain)?;
    Ok(encoder.finish()?.into())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use actix_web::body::to_bytes;
    use actix_web::http::header::{ACCEPT_ENCODING, HeaderName, IF_NONE_MATCH};
    use actix_web::test::TestRequest;
    use flate2::read::GzDecoder;

    use super::*;

    fn asset() -> Asset {
        Asset::new("text/plain; charset=utf-8", "the same line\n".repeat(100))
    }

    fn asked(asset: &Asset, header: HeaderName, value: &str) -> HttpResponse {
        asset.respond(&TestRequest::default().insert_header((header, value)).to_http_request())
    }

    #[actix_web::test]
    async fn gzip_is_sent_to_those_who_accept_it_and_holds_the_same_bytes() {
        let asset = asset();
        for accepted in ["gzip", "gzip, deflate, br", "br;q=1.0, gzip;q=0.2", "identity;q=0, gzip"] {
            let response = asked(&asset, ACCEPT_ENCODING, accepted);
            assert_eq!(response.headers().get(CONTENT_ENCODING).unwrap(), "gzip", "{accepted}");
            let body = to_bytes(response.into_body()).await.unwrap();
            let mut plain = vec![];
            GzDecoder::new(&*body).read_to_end(&mut plain).unwrap();
            assert_eq!(plain, asset.plain);
        }
        for refused in ["", "identity", "gzip;q=0", "br", "identity, *;q=0"] {
            let response = asked(&asset, ACCEPT_ENCODING, refused);
            assert!(response.headers().get(CONTENT_ENCODING).is_none(), "{refused}");
            assert_eq!(to_bytes(response.into_body()).await.unwrap(), asset.plain);
        }
    }

    #[actix_web::test]
    async fn a_known_tag_gets_304_without_a_body() {
        let asset = asset();
        let tag = asset.respond(&TestRequest::default().to_http_request()).headers().get(ETAG).unwrap().clone();
        let tag = tag.to_str().unwrap();
        for known in [tag, "*", &format!("\"other\", {tag}"), tag.trim_start_matches("W/")] {
            let response = asked(&asset, IF_NONE_MATCH, known);
            assert_eq!(response.status(), StatusCode::NOT_MODIFIED, "{known}");
            assert_eq!(response.headers().get(ETAG).unwrap(), tag);
            assert!(to_bytes(response.into_body()).await.unwrap().is_empty());
        }
        for other in ["\"other\"", "W/\"other\"", "garbage"] {
            assert_eq!(asked(&asset, IF_NONE_MATCH, other).status(), StatusCode::OK, "{other}");
        }
        assert_ne!(asset.etag, Asset::new("text/plain", "another document").etag);
    }

    #[test]
    fn a_document_that_gzip_would_lengthen_stays_plain() {
        assert!(Asset::new("text/plain", "ok").gzip.is_none());
    }
}
