//! The page that shows the decisions as they arrive, and the files that it loads.
//!
//! It loads nothing from another host, runs only its own script file, cannot be framed and is not cached. It is plain
//! HTTP without a key, for the machine on which it runs, and read-only.

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
const ICON: &str = include_str!("../../assets/receiver.svg");
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) fn configure(app: &mut ServiceConfig) {
    let headers = DefaultHeaders::new()
        .add((CONTENT_SECURITY_POLICY, POLICY))
        .add((X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .add((REFERRER_POLICY, "no-referrer"))
        .add((CACHE_CONTROL, "no-store"));
    let file = |path: &str, kind: &'static str, text: &'static str| {
        let answer = move || async move { HttpResponse::Ok().insert_header((CONTENT_TYPE, kind)).body(text) };
        web::resource(path).route(get().to(answer))
    };
    app.service(
        web::scope("")
            .guard(guard::fn_guard(|context| names_this_machine(context.head())))
            .wrap(headers)
            .service(file("/", "text/html; charset=utf-8", HTML))
            .service(file("/receiver.css", "text/css; charset=utf-8", STYLE))
            .service(file("/receiver.js", "text/javascript; charset=utf-8", SCRIPT))
            .service(file("/receiver.svg", "image/svg+xml", ICON))
            .service(web::resource("/decisions.json").route(get().to(decisions)))
            .service(file("/healthz", "text/plain; charset=utf-8", "ok\n")),
    );
}

/// Whether the `Host` header is an address or `localhost`. With any other name, a page of somebody else whose name
/// leads to this machine could read this one (DNS rebinding).
fn names_this_machine(head: &RequestHead) -> bool {
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

async fn decisions(hook: web::Data<Hook>) -> HttpResponse {
    HttpResponse::Ok().json(&*hook.journal())
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_answered() {
        let asked =
            |host: &str| names_this_machine(TestRequest::default().insert_header((HOST, host)).to_srv_request().head());
        for good in ["127.0.0.1:8080", "localhost:8080", "localhost", "[::1]:8080", "192.0.2.7"] {
            assert!(asked(good), "{good}");
        }
        for bad in ["evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "", "a b"] {
            assert!(!asked(bad), "{bad}");
        }
        assert!(!names_this_machine(TestRequest::default().to_srv_request().head()), "no host at all");
    }
}
