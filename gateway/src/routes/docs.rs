//! `/openapi.json` and `/docs`: the contract for programs and for people, from the binary alone.
//!
//! The page loads nothing from elsewhere and runs no script; its policy forbids both.

use std::sync::LazyLock;

use actix_web::HttpResponse;
use actix_web::http::header::{CONTENT_SECURITY_POLICY, ContentType};

const OPENAPI: &str = include_str!("../../assets/openapi.json");
const GUIDE: &str = include_str!("../../assets/docs.html");
/// Printed by `stage0 policy vocabulary --html`.
const VOCABULARY: &str = include_str!("../../assets/vocabulary.html");
/// Where it stands in the guide.
const PLACE: &str = "<!-- vocabulary -->";

static PAGE: LazyLock<String> = LazyLock::new(|| GUIDE.replacen(PLACE, VOCABULARY, 1));

pub(super) async fn openapi() -> HttpResponse {
    HttpResponse::Ok().content_type(ContentType::json()).body(OPENAPI)
}

pub(super) async fn page() -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"))
        .content_type(ContentType::html())
        .body(PAGE.as_str())
}
