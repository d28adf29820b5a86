//! Where a delivery arrives: from its bytes to an answer, and to a line for whoever watches.
//!
//! Owns the statuses. 204 leaves once the line is printed; 401 for what is not verified; 503 while there is no secret to verify with,
//! so that it comes again. INVARIANT: of what is not verified nothing is kept but a count, and printed its id alone, cleaned.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix_web::http::header::ALLOW;
use actix_web::http::{Method, StatusCode};
use actix_web::web::{self, Bytes, Payload, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use metrics::{Unit, counter, describe_counter};
use standardwebhooks::HEADER_WEBHOOK_ID;

use super::event::{Event, short};
use super::journal::{Journal, Taken};
use super::secrets::Secrets;
use super::signature::verify;
use crate::out;

const DELIVERIES: &str = "stage0_receiver_deliveries_total";
/// A decision has some kilobytes.
const MOST_BYTES: usize = 1_000_000;
const BODY_WITHIN: Duration = Duration::from_secs(10);

/// What the two listeners share.
pub(super) struct Hook {
    secrets: Secrets,
    journal: Mutex<Journal>,
    /// Held while printing, so that lines stand in the order of the journal's locks as nearly as people can tell.
    printing: tokio::sync::Mutex<()>,
}

/// What became of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Received,
    Repeated,
    Refused,
    Waiting,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Repeated => "repeated",
            Self::Refused => "refused",
            Self::Waiting => "waiting",
        }
    }
}

/// Tells whoever records what the name means.
pub(super) fn describe() {
    describe_counter!(DELIVERIES, Unit::Count, "Deliveries that arrived at the demo receiver, by what became of them.");
}

/// Any path is fine.
pub(super) fn configure(app: &mut ServiceConfig) {
    app.default_service(web::to(receive));
}

impl Hook {
    pub(super) fn new(secrets: Secrets, journal: Journal) -> Self {
        Self { secrets, journal: Mutex::new(journal), printing: tokio::sync::Mutex::default() }
    }

    pub(super) fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn judge(&self, request: &HttpRequest, body: &[u8], now: Timestamp) -> StatusCode {
        let secrets = self.secrets.read().await;
        if secrets.is_empty() {
            count(Outcome::Waiting);
            self.print(now, format!("waiting   no secret in `{}` yet", self.secrets.file().display())).await;
            return StatusCode::SERVICE_UNAVAILABLE;
        }
        let id = match verify(request.headers(), body, &secrets, now) {
            Ok(id) => id,
            Err(why) => {
                count(Outcome::Refused);
                self.journal().refuse();
                self.print(now, format!("refused   {why}  {}", claimed_id(request))).await;
                return StatusCode::UNAUTHORIZED;
            }
        };
        let event = match Event::read(body) {
            Ok(event) => event,
            Err(why) => {
                self.print(now, format!("refused   {why}  {}", short(id))).await;
                return StatusCode::BAD_REQUEST;
            }
        };
        let taken = self.journal().take(&short(request.path()), id, &event, now);
        count(if taken.again { Outcome::Repeated } else { Outcome::Received });
        self.print(now, told(&event, id, &taken)).await;
        StatusCode::NO_CONTENT
    }

    /// Standard output may block, so this is no work for the thread that serves.
    async fn print(&self, now: Timestamp, text: String) {
        let time = now.to_zoned(TimeZone::system()).strftime("%H:%M:%S").to_string();
        let lines: String = text.lines().map(|line| format!("{time}  {line}\n")).collect();
        let _turn = self.printing.lock().await;
        match tokio::task::spawn_blocking(move || out::stream(lines.as_bytes())).await {
            // Nobody may read any more: the page still shows it.
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::error!(%error, "cannot write to standard output"),
            Err(error) => tracing::error!(%error, "printing ended early"),
        }
    }
}

async fn receive(request: HttpRequest, payload: Payload, hook: web::Data<Hook>) -> HttpResponse {
    if request.method() != Method::POST {
        return HttpResponse::MethodNotAllowed().insert_header((ALLOW, "POST")).finish();
    }
    let status = match read(payload).await {
        Ok(body) => hook.judge(&request, &body, Timestamp::now()).await,
        Err(status) => status,
    };
    HttpResponse::new(status)
}

/// The bytes as they came: what is signed is over them.
async fn read(payload: Payload) -> Result<Bytes, StatusCode> {
    match tokio::time::timeout(BODY_WITHIN, payload.to_bytes_limited(MOST_BYTES)).await {
        Ok(Ok(Ok(body))) => Ok(body),
        Ok(Ok(Err(_))) => Err(StatusCode::BAD_REQUEST),
        Ok(Err(_)) => Err(StatusCode::PAYLOAD_TOO_LARGE),
        Err(_) => Err(StatusCode::REQUEST_TIMEOUT),
    }
}

fn count(outcome: Outcome) {
    counter!(DELIVERIES, "outcome" => outcome.as_str()).increment(1);
}

/// What whoever sent it says it is.
fn claimed_id(request: &HttpRequest) -> String {
    let id = request.headers().get(HEADER_WEBHOOK_ID).and_then(|id| id.to_str().ok());
    short(id.unwrap_or_default())
}

/// The lines for a verified event.
fn told(event: &Event, id: &str, taken: &Taken) -> String {
    let number = event.sequence.map_or_else(|| "-".to_owned(), |number| format!("#{number}"));
    let line = if taken.again { format!("again     {}  {number}", short(id)) } else { event.line() };
    let late = if taken.place.late { "  late" } else { "" };
    let missing = taken.place.missing.iter().map(|gap| {
        let to = if gap.start() == gap.end() { String::new() } else { format!(" to #{}", gap.end()) };
        format!("missing   {}  #{}{to} not here yet\n", event.account, gap.start())
    });
    format!("{}{line}{late}", missing.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::super::sequence::Place;
    use super::*;

    #[test]
    fn what_is_missing_late_or_repeated_is_said_beside_the_event() {
        let event = Event::read(br#"{"type":"new","data":{"account":"acc_1","sequence":9}}"#).unwrap();
        let told = |again, late, missing: &[_]| {
            told(&event, "dec_1", &Taken { again, place: Place { late, missing: missing.to_vec() } })
        };
        assert_eq!(told(false, false, &[]), "other     acc_1  #9  new");
        assert_eq!(told(true, true, &[]), "again     dec_1  #9  late");
        assert_eq!(
            told(false, false, &[2..=2, 4..=7]),
            "missing   acc_1  #2 not here yet\nmissing   acc_1  #4 to #7 not here yet\nother     acc_1  #9  new"
        );
    }
}
