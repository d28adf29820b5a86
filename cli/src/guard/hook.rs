//! `stage0 guard hook`: one event in, one answer out, within a deadline of its own.
//!
//! INVARIANT: once [`arm`] was called the process prints exactly one answer and ends with 0 or 2. A wrong command
//! line, wrong settings, a panic and the end of the deadline are answered with a denial like everything else that is no
//! ALLOW: agents take any other exit code, and silence, for "run the tool". What a process cannot answer any more (it
//! was killed) is answered by the shell around it, and past that by the agent's own switch: `guard install` sets both.

use std::ffi::OsString;
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use stage0_client::connection::runtime;
use stage0_client::{Action, Allowed, Client, ConnectionError, GuardReport, NotAllowed, OutcomeReport};
use stage0_contract::{OutcomeStatus, RequestId};
use stage0_guard::{Agent, Answer, Decision, Ended, Event, MAX_EVENT_BYTES, Options, Status, ToolCall, answer, ask};
use tokio::time::{Instant, timeout_at};

use super::own_files::own_files;
use super::state::{Seen, State, default_dir};
use super::{guard_target, table};
use crate::args::guard::HookArgs;
use crate::exit::Exit;
use crate::failure;
use crate::out::plain;
use crate::settings::client::ClientSettings;

pub(crate) const DEFAULT_DEADLINE: Duration = Duration::from_secs(5);
/// Of the deadline, for the answer itself once asking has been given up.
const ANSWER_TIME: Duration = Duration::from_millis(300);
/// How long the process stays for a heartbeat after its answer is known.
const HEARTBEAT_TIME: Duration = Duration::from_millis(300);
/// The next report of an installed hook. It only runs while people work: a shorter time would miss it at night.
const NEXT_WITHIN_SECONDS: u32 = 3 * 24 * 3_600;

/// The agent whose hook this process is, once that is known.
static AGENT: OnceLock<Agent> = OnceLock::new();
static ANSWERED: AtomicU8 = AtomicU8::new(NOTHING);
/// What [`ANSWERED`] holds. An answer that was begun may hang: its pipe can be full.
const NOTHING: u8 = 0;
const BEGUN: u8 = 1;
const DENIED: u8 = 2;
const ALLOWED: u8 = 3;

/// Makes this process answer, whatever happens, if its command line is that of a hook. Called before anything else.
pub(crate) fn arm(arguments: &[OsString]) {
    let words: Vec<String> = arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let Some(rest) = after_hook(&words) else { return };
    let asks_for_help = rest.iter().any(|word| matches!(*word, "--help" | "-h"));
    if asks_for_help && std::io::stdin().is_terminal() {
        return;
    }
    // An agent that cannot be read is refused in the form that most agents know.
    let agent = rest.iter().find_map(|word| word.parse().ok()).unwrap_or(Agent::ClaudeCode);
    if AGENT.set(agent).is_err() {
        return;
    }
    std::panic::set_hook(Box::new(|_| {
        deny("the guard failed inside");
        end();
    }));
    let deadline = typed_deadline(rest).unwrap_or(DEFAULT_DEADLINE);
    // One thread answers at the deadline, and another ends the process even where that answer hangs in a full pipe.
    let answer = move || {
        thread::sleep(deadline);
        deny("no answer came within the guard's deadline");
        end();
    };
    let end = move || {
        thread::sleep(deadline + ANSWER_TIME);
        end();
    };
    if thread::Builder::new().spawn(end).and_then(|_| thread::Builder::new().spawn(answer)).is_err() {
        deny("the guard cannot start a thread");
        end();
    }
}

/// The words behind `guard … hook`, wherever they stand.
fn after_hook<'w, 's>(words: &'w [&'s str]) -> Option<&'w [&'s str]> {
    let guard = words.iter().position(|word| *word == "guard")?;
    let behind = words.get(guard + 1..)?;
    let hook = behind.iter().position(|word| *word == "hook")?;
    behind.get(hook + 1..)
}

/// Ends the process: with 0 only after an answer that allows was written whole.
fn end() -> ! {
    let is_allowed = ANSWERED.load(Ordering::SeqCst) == ALLOWED;
    std::process::exit(if is_allowed { Exit::Done as i32 } else { Exit::Deferred as i32 })
}

/// Whether this process is a hook: then only its answer may stand on standard output.
pub(crate) fn is_armed() -> bool {
    AGENT.get().is_some()
}

fn typed_deadline(words: &[&str]) -> Option<Duration> {
    let after = words.iter().zip(words.iter().skip(1)).find(|(word, _)| **word == "--deadline").map(|(_, next)| *next);
    let joined = words.iter().find_map(|word| word.strip_prefix("--deadline="));
    let seconds: f64 = after.or(joined)?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok().filter(|time| *time <= Duration::from_secs(600))
}

/// What the process ends with: an armed one with 0 or 2 alone, and never without an answer.
pub(crate) fn ended(exit: Exit) -> Exit {
    if !is_armed() {
        return exit;
    }
    deny("the guard's command line or its settings are wrong; its standard error says how");
    if exit == Exit::Done && ANSWERED.load(Ordering::SeqCst) == ALLOWED { Exit::Done } else { Exit::Deferred }
}

/// Denies, unless something was answered already.
fn deny(why: &str) {
    let Some(agent) = AGENT.get() else { return };
    write(&answer(*agent, None, &Decision::undecided(why), &Options::default()));
}

/// Writes the answer, if it is the first. Whether it allows and was written whole.
fn write(answer: &Answer) -> bool {
    if ANSWERED.compare_exchange(NOTHING, BEGUN, Ordering::SeqCst, Ordering::SeqCst).is_err() {
        return false;
    }
    let mut stdout = std::io::stdout().lock();
    let is_written = stdout.write_all(answer.stdout().as_bytes()).and_then(|()| stdout.flush()).is_ok();
    let is_allowed = is_written && answer.exit_code == 0;
    ANSWERED.store(if is_allowed { ALLOWED } else { DENIED }, Ordering::SeqCst);
    if !answer.stderr.is_empty() {
        let _ = writeln!(std::io::stderr().lock(), "{}", answer.stderr);
    }
    is_allowed
}

pub(crate) fn run(args: &HookArgs, settings: &ClientSettings) -> Exit {
    let deadline = Instant::now() + Duration::from_secs_f64(args.deadline).saturating_sub(ANSWER_TIME);
    let options = options(args, settings);
    let event = input().and_then(|bytes| stage0_guard::read(args.agent, &bytes).map_err(|error| error.to_string()));
    let event = match event {
        Ok(event) => event,
        Err(why) => return finish(&answer(args.agent, None, &Decision::undecided(why), &options)),
    };
    let hook = match Hook::new(args, settings, options.clone()) {
        Ok(hook) => hook,
        Err(error) => {
            let why = failure::describe_in_one_line(&error);
            return finish(&answer(args.agent, Some(&event), &Decision::undecided(why), &options));
        }
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            let decision = Decision::undecided(error.to_string());
            return finish(&answer(args.agent, Some(&event), &decision, &options));
        }
    };
    let exit = runtime.block_on(hook.handle(&event, deadline));
    runtime.shutdown_background();
    exit
}

fn options(args: &HookArgs, settings: &ClientSettings) -> Options {
    let state_dir = args.state_dir.clone().or_else(default_dir).map(|dir| dir.join(args.agent.as_str()));
    Options {
        environment: args.about.environment.clone(),
        agent_id: args.about.agent_id.clone(),
        context: serde_json::Map::new(),
        grant_permission: args.grant_permission,
        own_files: own_files(settings, &[args.about.table.as_deref(), state_dir.as_deref()]),
    }
}

fn finish(answer: &Answer) -> Exit {
    if write(answer) { Exit::Done } else { Exit::Deferred }
}

/// One byte more than is read: what is larger is refused by its size.
fn input() -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let most = u64::try_from(MAX_EVENT_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    let read = std::io::stdin().lock().take(most).read_to_end(&mut bytes);
    read.map(|_| bytes).map_err(|error| format!("standard input cannot be read: {error}"))
}

struct Hook {
    agent: Agent,
    options: Options,
    table: stage0_guard::Table,
    client: Client,
    /// None: it cannot be written, so nothing is counted and no outcome is joined to its decision.
    state: Option<State>,
}

impl Hook {
    fn new(args: &HookArgs, settings: &ClientSettings, options: Options) -> anyhow::Result<Self> {
        let state = State::open(args.state_dir.as_deref(), args.agent.as_str(), args.about.guard_id.as_ref());
        let state = state.inspect_err(|error| eprint(&format!("the guard's state cannot be kept: {error:#}"))).ok();
        let target = guard_target(settings)?;
        Ok(Self {
            agent: args.agent,
            options,
            table: table(args.about.table.as_deref())?,
            client: Client::new(target)?,
            state,
        })
    }

    async fn handle(&self, event: &Event, deadline: Instant) -> Exit {
        let left = deadline.saturating_duration_since(Instant::now());
        let client = self.client.clone().with_timeout(left);
        match event {
            Event::Call(call) => self.decide(client, event, call, deadline).await,
            Event::Ended(ended) => {
                self.report(&client, ended).await;
                self.heartbeat(&client, false, deadline).await;
                finish(&self.neutral(event))
            }
            Event::SessionStarted { .. } | Event::SessionEnded { .. } => {
                self.heartbeat(&client, true, deadline).await;
                finish(&self.neutral(event))
            }
            Event::Other { .. } => finish(&self.neutral(event)),
        }
    }

    fn neutral(&self, event: &Event) -> Answer {
        answer(self.agent, Some(event), &Decision::undecided("nothing was asked"), &self.options)
    }

    async fn decide(&self, client: Client, event: &Event, call: &ToolCall, deadline: Instant) -> Exit {
        let asking = client.clone();
        let heartbeat = async {
            self.heartbeat(&client, false, deadline).await;
        };
        let checking = async {
            let body = ask::body(&self.table, &self.options, call);
            let unread = ask::unread(&body);
            let decision = match body {
                Value::Object(body) => {
                    let asked = timeout_at(deadline, asking.check(&Action::from_body(body))).await;
                    let decision = asked
                        .as_ref()
                        .map_or_else(|_| Decision::undecided("the server did not answer in time"), decision_of);
                    decision.with_unread(&unread)
                }
                _ => Decision::undecided("the call could not be described"),
            };
            // First of all, so that the answer is out whatever becomes of the rest.
            let exit = finish(&answer(self.agent, Some(event), &decision, &self.options));
            self.note(call, &decision);
            exit
        };
        tokio::pin!(heartbeat);
        tokio::pin!(checking);
        let mut is_alive_told = false;
        let exit = loop {
            tokio::select! {
                exit = &mut checking => break exit,
                () = &mut heartbeat, if !is_alive_told => is_alive_told = true,
            }
        };
        if !is_alive_told {
            let _ = timeout_at(Instant::now() + HEARTBEAT_TIME, heartbeat).await;
        }
        exit
    }

    fn note(&self, call: &ToolCall, decision: &Decision) {
        let Some(state) = &self.state else { return };
        let seen = match decision {
            Decision::Allow { request_id } => Seen::Allowed { call_id: call.call_id.as_deref(), request_id },
            Decision::Deny { .. } | Decision::Defer { .. } => Seen::Refused,
            Decision::Undecided { .. } => Seen::Undecided,
        };
        if let Err(error) = state.note(call.session.as_deref(), &seen) {
            eprint(&format!("the guard's state cannot be kept: {error:#}"));
        }
    }

    /// Joins the end of a call to its decision. A call that ended without an ALLOW ran past this guard.
    async fn report(&self, client: &Client, ended: &Ended) {
        let Some((state, call_id)) = self.state.as_ref().zip(ended.call_id.as_deref()) else { return };
        let request_id = match state.take(ended.session.as_deref(), call_id) {
            Ok(Some(request_id)) => request_id,
            Ok(None) if ended.status != Status::Skipped => {
                if let Err(error) = state.note(ended.session.as_deref(), &Seen::RanUndecided) {
                    eprint(&format!("the guard's state cannot be kept: {error:#}"));
                }
                let tool = plain(&ended.tool);
                return eprint(&format!("the tool {tool} ran, and Stage0 had not allowed this call"));
            }
            Ok(None) => return,
            Err(error) => return eprint(&format!("the guard's state cannot be read: {error:#}")),
        };
        let Ok(request_id) = RequestId::parse(&request_id) else { return };
        let mut report = OutcomeReport::new(status_of(ended.status)).tool_call_id(call_id);
        if let Some(ms) = ended.duration_ms {
            report = report.duration(Duration::from_millis(ms));
        }
        match client.report_outcome(request_id, &report).await {
            // The server is older, or the outcome was reported already: nothing is wrong with the guard.
            Ok(_) | Err(ConnectionError::Refused { status: 404 | 409, .. }) => {}
            Err(ConnectionError::Refused { status: 403, .. }) => {
                eprint("the outcome was not reported: the key lacks the scope `outcomes:report`");
            }
            Err(error) => eprint(&format!("the outcome was not reported: {error}")),
        }
    }

    async fn heartbeat(&self, client: &Client, at_once: bool, deadline: Instant) {
        let Some(state) = &self.state else { return };
        let Ok(Some((guard_id, counts))) = state.due(at_once) else { return };
        let report = GuardReport {
            guard_id,
            kind: self.agent.as_str().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            agent_version: None,
            host: super::state::host(),
            next_within_seconds: NEXT_WITHIN_SECONDS,
            counts,
        };
        if let Ok(Ok(_)) = timeout_at(deadline, client.heartbeat(&report)).await {
            state.reported();
        }
    }
}

fn decision_of(asked: &Result<Allowed, NotAllowed>) -> Decision {
    let response = match asked {
        Ok(allowed) => return Decision::Allow { request_id: allowed.request_id().to_string() },
        Err(NotAllowed::Undecided(undecided)) => return Decision::undecided(undecided.to_string()),
        Err(refused) => refused.response(),
    };
    match response.map(serde_json::to_value) {
        Some(Ok(body)) => Decision::read(200, &body),
        Some(Err(_)) | None => Decision::undecided("the refusal could not be read"),
    }
}

fn status_of(status: Status) -> OutcomeStatus {
    match status {
        Status::Succeeded => OutcomeStatus::Succeeded,
        Status::Failed => OutcomeStatus::Failed,
        Status::Unknown => OutcomeStatus::Unknown,
        Status::Skipped => OutcomeStatus::Skipped,
    }
}

fn eprint(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "stage0 guard: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::guard::AboutAgent;
    use crate::settings::{CommandKind, Flags, Sources, roles};

    #[test]
    fn the_files_that_a_hook_was_given_are_its_own() {
        let flags = Flags::from([("key-file", "/k/agent".to_owned()), ("ca", "/c/ca.crt".to_owned())]);
        let sources = Sources::collect(CommandKind::Client, flags, [], |_| Ok(String::new()));
        let table = Some("/t/rules.toml".into());
        let args = HookArgs {
            agent: Agent::Codex,
            about: AboutAgent { table, environment: None, agent_id: None, guard_id: None },
            deadline: 5.0,
            grant_permission: false,
            state_dir: Some("/s/state".into()),
        };
        let own = options(&args, &roles::client(sources).unwrap()).own_files;
        for path in ["/k/agent", "/c/ca.crt", "/t/rules.toml", "/s/state/codex"] {
            assert!(own.iter().any(|own| own == path), "{path}: {own:?}");
        }
        assert!(!own.iter().any(|own| own == "/s/state"), "other things may lie beside the guard's own directory");
    }

    #[test]
    fn a_deadline_is_found_before_the_command_line_is_read() {
        assert_eq!(typed_deadline(&["claude-code", "--deadline", "2"]), Some(Duration::from_secs(2)));
        assert_eq!(typed_deadline(&["--deadline=0.5"]), Some(Duration::from_millis(500)));
        for none in [&["--deadline"][..], &["--deadline", "x"], &["--deadline", "-1"], &["--deadline", "1e9"], &[]] {
            assert_eq!(typed_deadline(none), None, "{none:?}");
        }
    }

    #[test]
    fn a_hook_is_recognised_wherever_its_words_stand() {
        assert_eq!(after_hook(&["stage0", "guard", "hook", "codex", "-x"]), Some(&["codex", "-x"][..]));
        let among_flags = ["stage0", "--data-dir", "d", "guard", "--url", "u", "hook", "codex"];
        assert_eq!(after_hook(&among_flags), Some(&["codex"][..]));
        for none in [&["stage0", "guard", "doctor", "codex"][..], &["stage0", "hook", "guard"], &["stage0"], &[]] {
            assert_eq!(after_hook(none), None, "{none:?}");
        }
    }

    #[test]
    fn a_process_that_is_no_hook_ends_as_it_does() {
        assert_eq!(ended(Exit::Usage), Exit::Usage);
        assert_eq!(ended(Exit::Failed), Exit::Failed);
    }
}
