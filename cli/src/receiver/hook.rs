//! The delivery endpoint: verifies a request, answers it and prints a line about it. While there is no secret it
//! answers 503, so that the sender retries. INVARIANT: an unverified delivery leaves only a count and its escaped id.

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix_web::http::header::ALLOW;
use actix_web::http::{Method, StatusCode};
use actix_web::web::{self, Bytes, Payload, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use metrics::{Unit, counter, describe_counter};
use standardwebhooks::{HEADER_WEBHOOK_ID, Webhook};

use super::event::{Event, numbered, short};
use super::journal::Journal;
use super::sequence::Arrival;
use super::signature::{read_secrets, verify};
use crate::out;

const DELIVERIES: &str = "stage0_receiver_deliveries_total";
const MAX_BODY_BYTES: usize = 1_000_000;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The state that both listeners share.
#[derive(Default)]
pub(super) struct Hook {
    secret_file: PathBuf,
    /// So that each fault of the secret file is logged once and not at every delivery.
    logged_fault: Mutex<Option<String>>,
    journal: Mutex<Journal>,
    /// Held while printing, so that lines appear nearly in the order in which the journal was locked.
    printing: tokio::sync::Mutex<()>,
}

/// Any path receives deliveries.
pub(super) fn configure(app: &mut ServiceConfig) {
    app.default_service(web::to(receive));
}

impl Hook {
    pub(super) fn new(secret_file: PathBuf) -> Self {
        let help = "Deliveries that arrived at the demo receiver, by what became of them.";
        describe_counter!(DELIVERIES, Unit::Count, help);
        Self { secret_file, ..Self::default() }
    }

    pub(super) fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn handle(&self, request: &HttpRequest, body: &[u8], now: Timestamp) -> StatusCode {
        let secrets = self.secrets().await;
        if secrets.is_empty() {
            count("waiting");
            self.print(now, format!("waiting   no secret in `{}` yet", self.secret_file.display())).await;
            return StatusCode::SERVICE_UNAVAILABLE;
        }
        let id = match verify(request.headers(), body, &secrets, now) {
            Ok(id) => id,
            Err(why) => {
                count("refused");
                self.journal().refuse();
                self.print(now, format!("refused   {why}  {}", claimed_id(request))).await;
                return StatusCode::UNAUTHORIZED;
            }
        };
        let Some(event) = Event::read(body, now) else {
            self.print(now, format!("refused   body is no event  {}", short(id))).await;
            return StatusCode::BAD_REQUEST;
        };
        let arrival = self.journal().record(&short(request.path()), id, &event, now);
        count(if arrival.is_repeated { "repeated" } else { "received" });
        self.print(now, lines(&event, id, &arrival)).await;
        StatusCode::NO_CONTENT
    }

    /// Reads the secrets at each delivery, so that a new secret counts at once and a removed one no longer does.
    async fn secrets(&self) -> Vec<Webhook> {
        let file = self.secret_file.clone();
        let read = tokio::task::spawn_blocking(move || read_secrets(&file)).await;
        let (found, fault) = read.unwrap_or_else(|error| (Vec::new(), Some(format!("cannot be read: {error}"))));
        let mut logged = self.logged_fault.lock().unwrap_or_else(PoisonError::into_inner);
        if *logged != fault {
            let file = self.secret_file.display();
            match &fault {
                Some(fault) => tracing::warn!(%file, fault, "secrets cannot be used"),
                None => tracing::info!(%file, "secrets are in order"),
            }
            *logged = fault;
        }
        found
    }

    /// Prints on a blocking thread: standard output may block the server otherwise.
    async fn print(&self, now: Timestamp, text: String) {
        let time = now.to_zoned(TimeZone::system()).strftime("%H:%M:%S").to_string();
        let lines: String = text.lines().map(|line| format!("{time}  {line}\n")).collect();
        let _guard = self.printing.lock().await;
        let written = tokio::task::spawn_blocking(move || out::write(lines.as_bytes())).await;
        // A closed pipe is no failure: the page still shows the event.
        if let Err(error) = written.map_err(io::Error::other).flatten() {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot write to standard output");
        }
    }
}

async fn receive(request: HttpRequest, payload: Payload, hook: web::Data<Hook>) -> HttpResponse {
    if request.method() != Method::POST {
        return HttpResponse::MethodNotAllowed().insert_header((ALLOW, "POST")).finish();
    }
    let status = match read_body(payload).await {
        Ok(body) => hook.handle(&request, &body, Timestamp::now()).await,
        Err(status) => status,
    };
    HttpResponse::new(status)
}

/// The raw bytes: the signature covers them, not the JSON in them.
async fn read_body(payload: Payload) -> Result<Bytes, StatusCode> {
    match tokio::time::timeout(BODY_TIMEOUT, payload.to_bytes_limited(MAX_BODY_BYTES)).await {
        Ok(Ok(Ok(body))) => Ok(body),
        Ok(Ok(Err(_))) => Err(StatusCode::BAD_REQUEST),
        Ok(Err(_)) => Err(StatusCode::PAYLOAD_TOO_LARGE),
        Err(_) => Err(StatusCode::REQUEST_TIMEOUT),
    }
}

fn count(outcome: &'static str) {
    counter!(DELIVERIES, "outcome" => outcome).increment(1);
}

fn claimed_id(request: &HttpRequest) -> String {
    let id = request.headers().get(HEADER_WEBHOOK_ID).and_then(|id| id.to_str().ok());
    short(id.unwrap_or_default())
}

/// The lines for a verified event: first the gaps in front of it, then the event.
fn lines(event: &Event, id: &str, arrival: &Arrival) -> String {
    let again = || format!("again     {}  {}", short(id), numbered(event.sequence));
    let line = if arrival.is_repeated { again() } else { event.line.clone() };
    let late = if arrival.is_late { "  late" } else { "" };
    let missing = arrival.missing.iter().map(|gap| {
        let to = if gap.start() == gap.end() { String::new() } else { format!(" to #{}", gap.end()) };
        format!("missing   {}  #{}{to} not here yet\n", event.account, gap.start())
    });
    format!("{}{line}{late}", missing.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_and_late_or_repeated_events_are_printed_with_the_event() {
        let event =
            Event::read(br#"{"type":"new","data":{"account":"acc_1","sequence":9}}"#, Timestamp::UNIX_EPOCH).unwrap();
        let printed = |is_repeated, is_late, missing: &[_]| {
            lines(&event, "dec_1", &Arrival { is_repeated, is_late, missing: missing.to_vec() })
        };
        assert_eq!(printed(false, false, &[]), "other     acc_1  #9  new");
        assert_eq!(printed(true, true, &[]), "again     dec_1  #9  late");
        assert_eq!(
            printed(false, false, &[2..=2, 4..=7]),
            "missing   acc_1  #2 not here yet\nmissing   acc_1  #4 to #7 not here yet\nother     acc_1  #9  new"
        );
    }
}
