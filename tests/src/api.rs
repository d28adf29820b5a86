//! An ordinary client of the public contract: HTTPS, a key, JSON.

use std::path::Path;
use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Certificate, Client, Method};
use serde_json::{Value, json};

use crate::openapi;

#[derive(Clone)]
pub struct Api {
    client: Client,
    pub url: String,
    pub key: Option<String>,
    /// Whether answers must be what the OpenAPI document declares.
    is_declared: bool,
}

/// An answer, whatever its status.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
    pub body: Value,
}

impl Api {
    /// Trusts only this authority.
    pub fn new(url: &str, ca: &Path, key: Option<&str>) -> Self {
        let ca = Certificate::from_pem(&std::fs::read(ca).unwrap()).unwrap();
        let client =
            Client::builder().tls_certs_only([ca]).https_only(true).timeout(Duration::from_secs(30)).build().unwrap();
        Self { client, url: url.trim_end_matches('/').to_owned(), key: key.map(str::to_owned), is_declared: true }
    }

    #[must_use]
    pub fn with_key(&self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self.clone() }
    }

    /// The same client for another server, or another path of the same.
    #[must_use]
    pub fn at(&self, url: &str) -> Self {
        Self { url: url.to_owned(), ..self.clone() }
    }

    /// For paths outside of the API, such as those above the base path.
    #[must_use]
    pub fn undeclared(&self) -> Self {
        Self { is_declared: false, ..self.clone() }
    }

    #[must_use]
    pub fn without_key(&self) -> Self {
        Self { key: None, ..self.clone() }
    }

    pub async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Option<Vec<u8>>) -> Answer {
        self.try_send(method, path, headers, body).await.expect("an answer")
    }

    pub async fn try_send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Vec<u8>>,
    ) -> Result<Answer, reqwest::Error> {
        let mut request = self.client.request(method.clone(), format!("{}{path}", self.url));
        if let Some(key) = &self.key {
            request = request.header("x-api-key", key);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await?;
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        let answer = Answer { status, headers, text, body };
        if self.is_declared {
            openapi::assert_declared(method.as_str(), path, &answer);
        }
        Ok(answer)
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], None).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &[], None).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::POST, path, &[("content-type", "application/json")], Some(body.to_string().into_bytes()))
            .await
    }

    pub async fn patch(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::PATCH, path, &[("content-type", "application/json")], Some(body.to_string().into_bytes()))
            .await
    }

    pub async fn head(&self, path: &str) -> Answer {
        self.send(Method::HEAD, path, &[], None).await
    }

    pub async fn check(&self, body: &Value) -> Answer {
        self.post("/check", body).await
    }

    /// As above, where there may be no answer at all.
    pub async fn try_check(&self, body: &Value) -> Result<Answer, reqwest::Error> {
        let json = [("content-type", "application/json")];
        self.try_send(Method::POST, "/check", &json, Some(body.to_string().into_bytes())).await
    }

    /// A harmless action: ALLOW wherever anything can be decided.
    pub fn harmless() -> Value {
        json!({"goal": "Search for Python documentation", "tools": ["web_search"], "context": {}})
    }

    /// DENY, always.
    pub fn forbidden() -> Value {
        json!({"goal": "Carry out the planned change", "success_criteria": ["it is done"],
            "constraints": ["allowed_environment: staging"], "environment": "production"})
    }

    /// DEFER, always.
    pub fn unclear() -> Value {
        json!({"goal": "Carry out the planned change", "success_criteria": ["it is done"],
            "constraints": ["allowed_environment: staging"]})
    }

    /// Asks, and the id under which the answer is recorded.
    pub async fn decide(&self, body: &Value) -> String {
        self.check(body).await.expect(200)["request_id"].as_str().unwrap().to_owned()
    }

    /// Every recorded decision that these parameters (`name=value&…`) let through, page after page.
    pub async fn decisions(&self, query: &str) -> Vec<Value> {
        let (mut all, mut cursor) = (Vec::new(), String::new());
        loop {
            let mut page = self.get(&format!("/v1/decisions?{query}{cursor}")).await.expect(200);
            all.append(page["items"].as_array_mut().unwrap());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return all,
            }
        }
    }

    /// What a verification of the whole log finds.
    pub async fn verify(&self) -> Value {
        self.get("/v1/decisions/verify").await.expect(200)
    }

    /// A new endpoint with all filters open: its id and its secret.
    pub async fn webhook(&self, url: &str) -> (String, String) {
        self.webhook_with(&json!({"url": url})).await
    }

    /// A new endpoint: its id and its secret.
    pub async fn webhook_with(&self, body: &Value) -> (String, String) {
        let made = self.post("/v1/webhooks", body).await.expect(201);
        (made["id"].as_str().unwrap().to_owned(), made["secret"].as_str().unwrap().to_owned())
    }

    /// The endpoint's deliveries, as its owner sees them.
    pub async fn deliveries(&self, webhook: &str) -> Vec<Value> {
        let mut page = self.get(&format!("/v1/webhooks/{webhook}/deliveries")).await.expect(200);
        std::mem::take(page["items"].as_array_mut().unwrap())
    }

    /// A new account with a key that has these scopes: its id, the key, the key's id.
    pub async fn account(&self, name: &str, plan: Option<&str>, scopes: &[&str]) -> (String, String, String) {
        let mut body = json!({"name": name});
        if let Some(plan) = plan {
            body["plan"] = plan.into();
        }
        let account = self.post("/v1/accounts", &body).await.expect(201)["id"].as_str().unwrap().to_owned();
        let made =
            self.post("/v1/keys", &json!({"account": account, "name": "test", "scopes": scopes})).await.expect(201);
        (account, made["key"].as_str().unwrap().to_owned(), made["id"].as_str().unwrap().to_owned())
    }
}

impl Answer {
    /// The body, if the status is this one.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.body
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Holds what every error body holds, and no verdict.
    #[track_caller]
    pub fn assert_error(&self, status: u16, code: &str) {
        assert_eq!((self.status, self.body["error"].as_str()), (status, Some(code)), "{}", self.text);
        let message = self.body["message"].as_str().expect("a message");
        assert!(!message.is_empty());
        assert_eq!(self.body["detail"]["detail"], message);
        assert_eq!(self.body["detail"]["request_id"], self.body["request_id"]);
        assert_eq!(self.header("x-request-id"), self.body["request_id"].as_str().unwrap());
        assert!(self.header("content-type").starts_with("application/json"));
        for never in ["verdict", "decision"] {
            assert!(self.body.get(never).is_none(), "{never} in {}", self.text);
        }
    }
}
