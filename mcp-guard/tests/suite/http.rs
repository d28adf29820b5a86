//! The guard before a server that is reached over streamable HTTP.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use actix_web::web::{self, Bytes};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use stage0_mcp_guard::{HttpError, HttpGuard, Listen};
use tokio::sync::oneshot;

use crate::stage0::{answer, waits_for_approval};
use crate::world::{TOOLS, World, is_refused, wait_for};

const SESSION: &str = "session-1";
const NEWEST: &str = "2026-07-28";

/// The headers and the body of a request.
type Got = (Vec<(String, String)>, String);

/// A server that keeps what it gets, and answers as an event stream where `streams` says so.
#[derive(Clone, Default)]
struct Upstream {
    got: Arc<Mutex<Vec<Got>>>,
    streams: Arc<Mutex<bool>>,
    silent: Arc<Mutex<bool>>,
}

impl Upstream {
    fn start(&self) -> SocketAddr {
        let own = self.clone();
        let server = HttpServer::new(move || {
            let endpoint = web::resource("/mcp").route(web::post().to(post)).route(web::get().to(get));
            App::new().app_data(web::Data::new(own.clone())).service(endpoint.route(web::delete().to(delete)))
        });
        let server = server.workers(1).disable_signals().bind(("127.0.0.1", 0)).unwrap();
        let address = server.addrs()[0];
        tokio::spawn(server.run());
        address
    }

    fn bodies(&self) -> Vec<String> {
        self.got.lock().unwrap().iter().map(|(_, body)| body.clone()).collect()
    }

    fn runs(&self) -> usize {
        self.bodies().iter().filter(|body| body.contains("tools/call")).count()
    }

    fn last_headers(&self) -> Vec<(String, String)> {
        self.got.lock().unwrap().last().unwrap().0.clone()
    }
}

async fn post(state: web::Data<Upstream>, request: HttpRequest, body: Bytes) -> HttpResponse {
    let headers = request.headers().iter().map(|(n, v)| (n.to_string(), v.to_str().unwrap_or_default().to_owned()));
    let text = String::from_utf8(body.to_vec()).unwrap();
    state.got.lock().unwrap().push((headers.collect(), text.clone()));
    let message: Value = serde_json::from_str(&text).unwrap();
    let Some(id) = message.get("id").filter(|_| message.get("method").is_some()) else {
        return HttpResponse::Accepted().finish();
    };
    let result = match message["method"].as_str().unwrap() {
        "initialize" => r#"{"protocolVersion":"2025-06-18","capabilities":{},"serverInfo":{"name":"u","version":"1"}}"#,
        "tools/list" => TOOLS,
        "tools/call" => r#"{"content":[{"type":"text","text":"d\u006fne"}]}"#,
        _ => "{}",
    };
    let answer = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#);
    if !*state.streams.lock().unwrap() {
        return HttpResponse::Ok()
            .content_type("application/json")
            .insert_header(("mcp-session-id", SESSION))
            .insert_header(("set-cookie", "secret=1"))
            .body(answer);
    }
    let progress = r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"progress":1}}"#;
    let stray = r#"{"jsonrpc":"2.0","id":"stray","result":{"tools":[]}}"#;
    let mut events = format!("id: 1\ndata: {progress}\n\nid: 2\ndata: {stray}\n\n");
    if !*state.silent.lock().unwrap() {
        events.push_str(&format!("id: 3\nevent: message\ndata: {answer}\n\n"));
    }
    HttpResponse::Ok().content_type("text/event-stream").insert_header(("mcp-session-id", SESSION)).body(events)
}

async fn get(request: HttpRequest) -> HttpResponse {
    let resumed = request.headers().get("last-event-id").map(|id| id.to_str().unwrap().to_owned()).unwrap_or_default();
    let asks = r#"{"jsonrpc":"2.0","id":"q1","method":"elicitation/create","params":{"message":"m"}}"#;
    HttpResponse::Ok().content_type("text/event-stream").body(format!(": {resumed}\n\ndata: {asks}\n\n"))
}

async fn delete() -> HttpResponse {
    HttpResponse::NoContent().finish()
}

struct Front {
    world: World,
    upstream: Upstream,
    url: String,
    http: Client,
    _stop: oneshot::Sender<()>,
}

impl Front {
    async fn new() -> Self {
        Self::of(World::new().await)
    }

    fn of(world: World) -> Self {
        let upstream = Upstream::default();
        let guard = HttpGuard::build(world.guard(), listen(upstream.start(), "127.0.0.1:0")).unwrap();
        let (url, (stop, stopped)) = (guard.url(), oneshot::channel::<()>());
        tokio::spawn(guard.run_until(async {
            let _ = stopped.await;
        }));
        Self { world, upstream, url, http: Client::builder().no_proxy().build().unwrap(), _stop: stop }
    }

    async fn post(&self, headers: &[(&str, &str)], body: impl Into<String>) -> Response {
        let mut request = self.http.post(&self.url).header("content-type", "application/json");
        request = request.header("accept", "application/json, text/event-stream");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(body.into()).send().await.unwrap()
    }

    /// A request of 2026-07-28 with the headers that it needs.
    async fn newest(&self, id: i64, method: &str, mut params: Value, extra: &[(&str, &str)]) -> Response {
        params["_meta"] = json!({"io.modelcontextprotocol/protocolVersion": NEWEST,
            "io.modelcontextprotocol/clientCapabilities": {"elicitation": {"url": {}}}});
        let name = params["name"].as_str().unwrap_or_default().to_owned();
        let body = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string();
        let mut headers = vec![("mcp-protocol-version", NEWEST), ("mcp-method", method)];
        if !name.is_empty() {
            headers.push(("mcp-name", &name));
        }
        headers.retain(|(own, _)| extra.iter().all(|(name, _)| name != own));
        headers.extend(extra.iter().filter(|(_, value)| !value.is_empty()));
        self.post(&headers, body).await
    }

    async fn initialize(&self, extra: &[(&str, &str)]) -> String {
        let body = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18"}}"#;
        let response = self.post(extra, body).await;
        assert_eq!(response.status(), 200);
        response.headers()["mcp-session-id"].to_str().unwrap().to_owned()
    }
}

fn listen(upstream: SocketAddr, address: &str) -> Listen {
    Listen {
        upstream: format!("http://{upstream}/mcp").parse().unwrap(),
        upstream_ca: None,
        address: address.parse().unwrap(),
        beyond_loopback: false,
        origins: Vec::new(),
        hosts: Vec::new(),
    }
}

async fn read(response: Response) -> Value {
    serde_json::from_str(&response.text().await.unwrap()).unwrap()
}

const CALL: &str =
    r#"{"jsonrpc":"2.0", "id":5,"method":"tools/call","params":{"name":"write_file","arguments":{"n":1.50}}}"#;
const LIST: &str = r#"{"jsonrpc":"2.0","id":4,"method":"tools/list"}"#;

#[tokio::test]
async fn a_session_of_the_older_protocol_is_decided_and_passed_on_byte_for_byte() {
    let front = Front::new().await;
    let session = front.initialize(&[]).await;
    let headers =
        [("mcp-session-id", session.as_str()), ("mcp-protocol-version", "2025-06-18"), ("cookie", "secret=1")];
    front.post(&headers, LIST).await;
    let response = front.post(&headers, CALL).await;
    assert!(response.headers().get("set-cookie").is_none());
    assert_eq!(
        response.text().await.unwrap(),
        r#"{"jsonrpc":"2.0","id":5,"result":{"content":[{"type":"text","text":"d\u006fne"}]}}"#
    );
    assert_eq!(front.upstream.bodies().last().unwrap(), CALL);
    let passed = front.upstream.last_headers();
    assert!(passed.contains(&("mcp-session-id".to_owned(), SESSION.to_owned())), "{passed:?}");
    assert!(passed.iter().all(|(name, _)| name != "cookie" && name != "origin"), "{passed:?}");
    front.world.stage0.says(|_, _| answer("DENY"));
    let denied = read(front.post(&headers, CALL).await).await;
    assert!(is_refused(&denied), "{denied}");
    assert_eq!(front.upstream.runs(), 1);
    let notified = front.post(&headers, r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).await;
    assert_eq!(notified.status(), 202);
}

#[tokio::test]
async fn a_session_belongs_to_the_client_that_began_it() {
    let front = Front::new().await;
    let session = front.initialize(&[("authorization", "Bearer a")]).await;
    let of = |who: &'static str| [("mcp-session-id", SESSION), ("authorization", who)];
    assert_eq!(session, SESSION);
    assert_eq!(front.post(&of("Bearer b"), LIST).await.status(), 404);
    assert_eq!(front.post(&[("mcp-session-id", "other")], LIST).await.status(), 404);
    assert_eq!(front.post(&of("Bearer a"), LIST).await.status(), 200);
    let url = front.url.clone();
    let delete = |who: &'static str| {
        front.http.delete(&url).header("mcp-session-id", SESSION).header("authorization", who).send()
    };
    assert_eq!(delete("Bearer b").await.unwrap().status(), 404);
    assert_eq!(delete("Bearer a").await.unwrap().status(), 204);
    assert_eq!(front.post(&of("Bearer a"), LIST).await.status(), 404, "it has ended");
}

#[tokio::test]
async fn headers_that_differ_from_the_body_are_refused() {
    let front = Front::new().await;
    assert_eq!(front.newest(1, "tools/list", json!({}), &[]).await.status(), 200);
    let call = || json!({"name": "write_file", "arguments": {}});
    for wrong in [
        ("mcp-method", "tools/list"),
        ("mcp-method", ""),
        ("mcp-name", "read_file"),
        ("mcp-name", ""),
        ("mcp-protocol-version", "2025-06-18"),
        ("mcp-protocol-version", ""),
    ] {
        let response = front.newest(2, "tools/call", call(), &[wrong]).await;
        assert_eq!(response.status(), 400, "{wrong:?}");
        assert_eq!(read(response).await["error"]["code"], -32020, "{wrong:?}");
    }
    assert_eq!(front.upstream.runs(), 0);
    assert_eq!(front.newest(3, "tools/call", call(), &[]).await.status(), 200);
    assert_eq!(front.upstream.runs(), 1);
    let unknown = front.newest(4, "tools/execute", json!({}), &[]).await;
    assert_eq!((unknown.status().as_u16(), read(unknown).await["error"]["code"].clone()), (404, json!(-32601)));
    let version = front.newest(5, "tools/list", json!({}), &[("mcp-protocol-version", "2027-01-01")]).await;
    assert_eq!((version.status().as_u16(), read(version).await["error"]["code"].clone()), (400, json!(-32022)));
}

#[tokio::test]
async fn a_deferred_call_of_the_newest_protocol_asks_for_a_page_to_be_opened() {
    let front = Front::of(World::eliciting().await);
    front.newest(1, "tools/list", json!({}), &[]).await;
    front.world.stage0.says(|_, _| waits_for_approval("https://s0.example/v1/approvals/apr_0w3ge1r7"));
    let asked = read(front.newest(2, "tools/call", json!({"name": "write_file"}), &[]).await).await;
    assert_eq!(asked["result"]["resultType"], "input_required", "{asked}");
    front.world.stage0.says(|_, _| answer("ALLOW"));
    let again = json!({"name": "write_file", "requestState": asked["result"]["requestState"],
        "inputResponses": {"stage0_approval": {"action": "accept"}}});
    let done = read(front.newest(3, "tools/call", again, &[]).await).await;
    assert!(done["result"]["content"].is_array(), "{done}");
    assert!(!front.upstream.bodies().last().unwrap().contains("requestState"));
}

#[tokio::test]
async fn streams_pass_event_by_event_and_what_was_not_asked_for_is_dropped() {
    let front = Front::new().await;
    let session = front.initialize(&[]).await;
    let headers = [("mcp-session-id", session.as_str())];
    *front.upstream.streams.lock().unwrap() = true;
    front.post(&headers, LIST).await.text().await.unwrap();
    let text = front.post(&headers, CALL).await.text().await.unwrap();
    assert!(text.contains("notifications/progress") && text.contains("id: 3\nevent: message\ndata: {"), "{text}");
    assert!(text.contains(r"d\u006fne") && !text.contains("stray"), "{text}");
    wait_for("the outcome", || front.world.stage0.outcomes().iter().any(|o| o["status"] == "succeeded")).await;
    *front.upstream.silent.lock().unwrap() = true;
    let text = front.post(&headers, CALL.replace("\"id\":5", "\"id\":6")).await.text().await.unwrap();
    assert!(!text.contains("result"), "{text}");
    wait_for("the outcome", || front.world.stage0.outcomes().iter().any(|o| o["status"] == "unknown")).await;
}

#[tokio::test]
async fn the_servers_own_stream_passes_in_older_sessions_and_is_no_method_of_the_newest() {
    let front = Front::new().await;
    let session = front.initialize(&[]).await;
    let stream = front.http.get(&front.url).header("mcp-session-id", &session).header("last-event-id", "e7");
    let text = stream.send().await.unwrap().text().await.unwrap();
    assert!(text.contains("elicitation/create") && text.contains(": e7"), "{text}");
    let newest = front.http.get(&front.url).header("mcp-protocol-version", NEWEST).send().await.unwrap();
    assert_eq!(newest.status(), 405);
    let answer = r#"{"jsonrpc":"2.0","id":"q1","result":{"action":"accept"}}"#;
    assert_eq!(front.post(&[("mcp-session-id", &session)], answer).await.status(), 202);
    assert_eq!(front.upstream.bodies().last().unwrap(), answer);
}

#[tokio::test]
async fn web_pages_and_names_of_elsewhere_are_refused() {
    let front = Front::new().await;
    for (header, value) in [("origin", "https://evil.example"), ("origin", "null"), ("host", "evil.example")] {
        assert_eq!(front.post(&[(header, value)], LIST).await.status(), 403, "{header}: {value}");
    }
    assert!(front.upstream.bodies().is_empty());
    assert_eq!(front.post(&[("origin", "http://localhost:6274")], LIST).await.status(), 200);
}

#[tokio::test]
async fn what_is_no_single_message_is_refused() {
    let front = Front::new().await;
    front.post(&[], LIST).await;
    for body in [
        format!("[{CALL}]"),
        CALL.replace("\"method\"", "\"method\":\"ping\",\"method\""),
        CALL.replace("\"name\"", "\"name\":\"read_file\",\"name\""),
        CALL.replace("}}}", "}}"),
        String::new(),
    ] {
        assert_eq!(front.post(&[], body.clone()).await.status(), 400, "{body}");
    }
    let large = CALL.replace("1.50", &format!("\"{}\"", "a".repeat(1_000_000)));
    assert!(front.post(&[], large).await.status().is_client_error());
    let plain = front.http.post(&front.url).header("content-type", "text/plain").body(CALL).send().await.unwrap();
    assert_eq!(plain.status(), 415);
    assert_eq!(front.upstream.runs(), 0);
    assert_eq!(front.post(&[], CALL).await.status(), 200);
    assert_eq!(front.upstream.runs(), 1);
}

#[tokio::test]
async fn it_listens_on_this_machine_alone_and_reaches_others_only_by_https() {
    let world = World::new().await;
    let upstream = Upstream::default().start();
    let build = |listen: Listen| HttpGuard::build(world.guard(), listen).map(|_| ());
    assert!(matches!(build(listen(upstream, "0.0.0.0:0")), Err(HttpError::Exposed(_))));
    let asked = Listen { beyond_loopback: true, ..listen(upstream, "0.0.0.0:0") };
    assert!(build(asked).is_ok());
    for url in ["http://mcp.example/mcp", "ftp://127.0.0.1/mcp", "http://10.0.0.1/mcp"] {
        let plain = Listen { upstream: url.parse().unwrap(), ..listen(upstream, "127.0.0.1:0") };
        assert!(matches!(build(plain), Err(HttpError::Upstream(_))), "{url}");
    }
}

#[tokio::test]
async fn a_server_that_is_gone_is_an_error_and_its_call_has_an_unknown_outcome() {
    let world = World::new().await;
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    world.listed().await.end().await;
    let guard = HttpGuard::build(world.guard(), listen(dead, "127.0.0.1:0")).unwrap();
    let url = guard.url();
    tokio::spawn(guard.run_until(std::future::pending()));
    let http = Client::builder().no_proxy().build().unwrap();
    let read = r#"{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"file:///a"}}"#;
    let response = http.post(url).header("content-type", "application/json").body(read).send().await.unwrap();
    assert_eq!(response.status(), 502);
    assert!(response.text().await.unwrap().contains("\"error\""));
    wait_for("the outcome", || world.stage0.outcomes().iter().any(|o| o["status"] == "unknown")).await;
}
