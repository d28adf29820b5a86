//! `/openapi.json`: the contract for programs, made of the table of operations and the wire types. It names the host
//! that it is requested from as its server, so that a client made from it calls this deployment.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use actix_web::http::header::{ContentType, HOST};
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use stage0_contract::openapi;

use super::asset::Asset;
use crate::state::AppState;

/// The server that the document names where a request has no usable `Host`.
const DEFAULT_HOST: &str = "localhost:8443";
const MAX_HOST_BYTES: usize = 255;
/// A deployment has few names. A client that invents more must not make the gateway compress the document for each.
const MAX_CACHED_SERVERS: usize = 8;
/// Stands in [`TEMPLATE`] where the server's URL belongs.
const SERVER: &str = "https://server.invalid";

static TEMPLATE: LazyLock<String> = LazyLock::new(|| openapi(SERVER).to_string());

/// The document for the first servers that it was requested from.
static DOCUMENTS: Mutex<Vec<(String, Arc<Asset>)>> = Mutex::new(Vec::new());

pub(super) async fn document(state: Data<AppState>, request: HttpRequest) -> HttpResponse {
    let server = format!("https://{}{}", host(&request), state.config.base_path);
    match cached(&server) {
        Some(document) => document.respond(&request),
        None => HttpResponse::Ok().content_type(ContentType::json()).body(for_server(&server)),
    }
}

fn for_server(server: &str) -> String {
    TEMPLATE.replacen(SERVER, server, 1)
}

fn cached(server: &str) -> Option<Arc<Asset>> {
    let mut documents = DOCUMENTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, document)) = documents.iter().find(|(of, _)| of == server) {
        return Some(Arc::clone(document));
    }
    if documents.len() == MAX_CACHED_SERVERS {
        return None;
    }
    let document = Arc::new(Asset::new("application/json", for_server(server)));
    documents.push((server.to_owned(), Arc::clone(&document)));
    Some(document)
}

/// The host as the client wrote it, if it can stand in a URL.
fn host(request: &HttpRequest) -> &str {
    let is_plain = |host: &&str| {
        (1..=MAX_HOST_BYTES).contains(&host.len())
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:[]_".contains(&b))
    };
    request.headers().get(HOST).and_then(|host| host.to_str().ok()).filter(is_plain).unwrap_or(DEFAULT_HOST)
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn only_a_plain_host_is_named_as_the_server() {
        for plain in ["stage0.example.com", "localhost:8443", "[::1]:8443", "10.0.0.7"] {
            let request = TestRequest::default().insert_header((HOST, plain)).to_http_request();
            assert_eq!(host(&request), plain);
        }
        for bad in ["a/b", "a b", "user@host", "", "\"x\"", &"a".repeat(256)] {
            let request = TestRequest::default().insert_header((HOST, bad)).to_http_request();
            assert_eq!(host(&request), DEFAULT_HOST, "{bad}");
        }
    }
}
