//! `/docs`: the documentation for people, served by the binary itself.
//!
//! The content security policy allows files of this origin alone, so a page loads nothing from elsewhere. The pages are
//! made of the Markdown under `docs/` when the first one is requested.

use std::sync::LazyLock;

use actix_web::http::header::{CONTENT_SECURITY_POLICY, LOCATION, REFERRER_POLICY};
use actix_web::{HttpRequest, HttpResponse, web};

use crate::errors::ApiError;

mod markdown;
mod site;

use site::Site;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

static SITE: LazyLock<Site> = LazyLock::new(Site::build);

/// A page or a file of the site; the front page where the path names none.
pub(super) async fn page(request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let file = site().await?.file(request.match_info().query("page")).ok_or(ApiError::NotFound)?;
    Ok(file.respond_with(&request, |response| {
        response.insert_header((CONTENT_SECURITY_POLICY, POLICY)).insert_header((REFERRER_POLICY, "no-referrer"));
    }))
}

/// Links are relative, so on a page whose address ends with a slash they lead one level too deep.
pub(super) async fn one_level_up(request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let name = request.match_info().query("page");
    site().await?.file(name).ok_or(ApiError::NotFound)?;
    Ok(HttpResponse::PermanentRedirect().insert_header((LOCATION, format!("../{name}"))).finish())
}

/// The site is built on a thread of its own: a thread that serves checks must not wait for it.
async fn site() -> Result<&'static Site, ApiError> {
    web::block(|| LazyLock::force(&SITE)).await.map_err(|_| ApiError::Unavailable)
}
