//! The page that shows what arrives, and what it asks for.
//!
//! Owns its headers: nothing is loaded from elsewhere, no script runs but the one file, nobody frames it and nothing is cached. It is
//! plain HTTP without a key, for the machine of whoever watches. It has nothing to press.

use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use actix_web::middleware::DefaultHeaders;
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpResponse, Route, guard};

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

fn get() -> Route {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}

fn file(kind: &'static str, text: &'static str) -> HttpResponse {
    HttpResponse::Ok().insert_header((CONTENT_TYPE, kind)).body(text)
}

async fn decisions(hook: web::Data<Hook>) -> HttpResponse {
    HttpResponse::Ok().json(hook.journal().view())
}
