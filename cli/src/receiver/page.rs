//! The page that shows what arrives, and what it asks for.
//!
//! Owns its headers: nothing is loaded from elsewhere, no script runs but the one file, nobody frames it and nothing is cached. It is
//! plain HTTP without a key, for the machine of whoever watches. It has nothing to press.

use std::net::IpAddr;

use actix_web::dev::RequestHead;
use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use actix_web::middleware::DefaultHeaders;
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpResponse, Route, guard};
use reqwest::Url;

use super::hook::Hook;

const HTML: &str = include_str!("../../assets/receiver.html");
const STYLE: &str = include_str!("../../assets/receiver.css");
const SCRIPT: &str = include_str!("../../assets/receiver.js");
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// All there is.
pub(super) fn configure(app: &mut ServiceConfig) {
    let safe = DefaultHeaders::new()
        .add((CONTENT_SECURITY_POLICY, POLICY))
        .add((X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .add((REFERRER_POLICY, "no-referrer"))
        .add((CACHE_CONTROL, "no-store"));
    app.service(
        web::scope("")
            .guard(guard::fn_guard(|context| is_asked_directly(context.head())))
            .wrap(safe)
            .service(web::resource("/").route(get().to(async || file("text/html; charset=utf-8", HTML))))
            .service(web::resource("/receiver.css").route(get().to(async || file("text/css; charset=utf-8", STYLE))))
            .service(
                web::resource("/receiver.js").route(get().to(async || file("text/javascript; charset=utf-8", SCRIPT))),
            )
            .service(web::resource("/decisions.json").route(get().to(decisions)))
            .service(web::resource("/healthz").route(get().to(async || file("text/plain; charset=utf-8", "ok\n")))),
    );
}

/// By an address or as `localhost`: a name that somebody else gave this machine would let his pages read this one (DNS rebinding).
fn is_asked_directly(head: &RequestHead) -> bool {
    let host = head.headers().get(HOST).and_then(|host| host.to_str().ok());
    let Some(url) = host.and_then(|host| Url::parse(&format!("http://{host}/")).ok()) else { return false };
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok(),
        None => false,
    }
}

fn get() -> Route {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}

fn file(kind: &'static str, text: &'static str) -> HttpResponse {
    HttpResponse::Ok().insert_header((CONTENT_TYPE, kind)).body(text)
}

async fn decisions(hook: web::Data<Hook>) -> HttpResponse {
    HttpResponse::Ok().json(hook.journal().view())
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_answered() {
        let asked =
            |host: &str| is_asked_directly(TestRequest::default().insert_header((HOST, host)).to_srv_request().head());
        for good in ["127.0.0.1:8080", "localhost:8080", "localhost", "[::1]:8080", "192.0.2.7"] {
            assert!(asked(good), "{good}");
        }
        for bad in ["evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "", "a b"] {
            assert!(!asked(bad), "{bad}");
        }
        assert!(!is_asked_directly(TestRequest::default().to_srv_request().head()), "no host at all");
    }
}
