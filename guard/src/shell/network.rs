//! Programs that reach other machines: `curl`, `wget`, `scp`, `rsync`.
//!
//! A request that only reads is `external_api`, one that carries data or another method is a communication, unless it
//! goes to this machine. The machine that an address names is the target.

use super::Found;
use super::arguments::Directories;
use super::lex::Word;
use crate::effects::{DOWNLOAD, NETWORK, READ_SECRET, SEND};
use crate::path::pattern_names_secret;

/// Options of `curl` that stand alone and only change the form of the request or of the output.
const CURL_ALONE: &[&str] = &[
    "--compressed",
    "--fail",
    "--fail-with-body",
    "--globoff",
    "--head",
    "--http1.1",
    "--http2",
    "--include",
    "--insecure",
    "--ipv4",
    "--ipv6",
    "--location",
    "--no-buffer",
    "--no-progress-meter",
    "--progress-bar",
    "--show-error",
    "--silent",
    "--verbose",
    "--get",
];
/// The same as single letters.
const CURL_LETTERS: &str = "sSfLIikvgN46#G";
/// Options that take a value and only read.
const CURL_VALUES: &[&str] = &[
    "--cacert",
    "--connect-timeout",
    "--header",
    "--max-time",
    "--retry",
    "--retry-delay",
    "--url",
    "--user-agent",
    "--write-out",
    "--range",
    "-A",
    "-H",
    "-m",
    "-r",
    "-w",
];
/// Options that send something.
const CURL_SENDS: &[&str] = &[
    "--data",
    "--data-ascii",
    "--data-binary",
    "--data-raw",
    "--data-urlencode",
    "--form",
    "--form-string",
    "--json",
    "--upload-file",
    "--url-query",
    "-F",
    "-T",
    "-d",
];
const CURL_FILES: &[&str] = &["--output", "-o"];
/// Options of `wget` that stand alone.
const WGET_ALONE: &[&str] = &[
    "-q",
    "-nv",
    "-c",
    "-N",
    "-nc",
    "--quiet",
    "--no-verbose",
    "--continue",
    "--no-clobber",
    "--show-progress",
    "-4",
    "-6",
];

/// What the options of a request came to.
#[derive(Default)]
struct Request {
    addresses: Vec<String>,
    sends: bool,
    /// Files are called as the addresses end.
    by_name: bool,
}

/// Judges such a program; false if it is none.
pub(super) fn read(name: &str, arguments: &[Word], directories: &Directories, found: &mut Found) -> bool {
    if !matches!(name, "curl" | "wget" | "scp" | "rsync") {
        return false;
    }
    if arguments.iter().any(|word| word.variable || word.leading_glob) {
        found.unknown("an address or an option that is made when the command runs");
    }
    if arguments.iter().any(|word| word.glob && pattern_names_secret(&word.text)) {
        found.add(READ_SECRET);
    }
    match name {
        "curl" => curl(arguments, directories, found),
        "wget" => wget(arguments, directories, found),
        "scp" => copy(arguments, "rpqCvBT46", directories, found),
        _ => copy(arguments, "avzrpqhnPtlDguoxHAXSiCc", directories, found),
    }
    true
}

fn curl(arguments: &[Word], directories: &Directories, found: &mut Found) {
    let mut request = Request::default();
    let mut words = arguments.iter().map(|word| word.text.as_str());
    while let Some(text) = words.next() {
        let (name, joined) = match text.split_once('=').filter(|_| text.starts_with("--")) {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        let mut missing = false;
        let mut carried = false;
        let mut value = || {
            let value = joined.or_else(|| words.next());
            missing |= value.is_none();
            value.unwrap_or_default()
        };
        match name {
            "-X" | "--request" => request.sends |= !matches!(value(), "GET" | "HEAD"),
            "--url" => request.addresses.push(value().to_owned()),
            _ if text.starts_with("-X") => request.sends |= !matches!(text, "-XGET" | "-XHEAD"),
            _ if CURL_ALONE.contains(&name) => {}
            _ if CURL_FILES.contains(&name) => {
                found.add(DOWNLOAD);
                directories.write(value(), found);
            }
            "-O" | "--remote-name" | "-sO" | "-LO" | "-sLO" | "-fsSLO" => request.by_name = true,
            "-fsSLo" | "-sSLo" | "-sLo" | "-so" | "-Lo" | "-fLo" => {
                found.add(DOWNLOAD);
                directories.write(value(), found);
            }
            _ if CURL_SENDS.contains(&name) => {
                request.sends = true;
                from_file(value(), directories, found);
            }
            _ if CURL_VALUES.contains(&name) => {
                let value = value();
                // A header from a file or from the standard input carries data as a body does.
                carried = value.starts_with('@');
                from_file(value, directories, found);
            }
            _ if is_letters(text, CURL_LETTERS) => {}
            _ if text.starts_with('-') => found.unknown("an option of a program that reaches other machines"),
            _ => request.addresses.push(text.to_owned()),
        }
        request.sends |= carried;
        if missing {
            found.unknown("an option without its value");
        }
    }
    if request.by_name {
        found.add(DOWNLOAD);
        downloads(&request, directories, found);
    }
    reach(&request, found);
}

/// Files that are called as their addresses end.
fn downloads(request: &Request, directories: &Directories, found: &mut Found) {
    for address in &request.addresses {
        let path = address.split(['?', '#']).next().unwrap_or_default();
        let name = path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("downloaded");
        directories.write(&format!("./{name}"), found);
    }
}

/// `@file`, `name=@file` and `name=<file` read a file.
fn from_file(value: &str, directories: &Directories, found: &mut Found) {
    let file = value
        .strip_prefix('@')
        .or_else(|| value.split_once("=@").or_else(|| value.split_once("=<")).map(|(_, file)| file));
    if let Some(file) = file {
        directories.read(file.split(';').next().unwrap_or_default(), found);
    }
}

fn is_letters(text: &str, letters: &str) -> bool {
    text.strip_prefix('-').is_some_and(|given| !given.is_empty() && given.chars().all(|c| letters.contains(c)))
}

fn wget(arguments: &[Word], directories: &Directories, found: &mut Found) {
    let mut request = Request::default();
    let mut words = arguments.iter().map(|word| word.text.as_str());
    let mut file = None;
    while let Some(text) = words.next() {
        match text {
            "-O" | "--output-document" | "-qO" => file = words.next(),
            "-O-" | "-qO-" => file = Some("-"),
            "-T" | "--timeout" | "-t" | "--tries" => _ = words.next(),
            _ if WGET_ALONE.contains(&text) => {}
            _ if text.starts_with("--post") || text.starts_with("--body") || text.starts_with("--method") => {
                request.sends = true;
            }
            _ if text.starts_with('-') => found.unknown("an option of a program that reaches other machines"),
            _ => request.addresses.push(text.to_owned()),
        }
    }
    if file != Some("-") {
        found.add(DOWNLOAD);
        match file {
            Some(file) => directories.write(file, found),
            None => downloads(&request, directories, found),
        }
    }
    reach(&request, found);
}

fn reach(request: &Request, found: &mut Found) {
    for address in &request.addresses {
        match address_kind(address) {
            Address::Web => {}
            Address::Metadata => found.add(READ_SECRET),
            Address::Other => found.unknown("an address that is none of the web"),
        }
        found.target(address);
    }
    let own = !request.addresses.is_empty() && request.addresses.iter().all(|address| is_own(address));
    found.add(if request.sends && !own { SEND } else { NETWORK });
}

/// What an address is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Address {
    Web,
    /// Where clouds hand out the credentials of a machine.
    Metadata,
    /// Another scheme, such as `file:`.
    Other,
}

/// Reads the scheme and the host of an address; without a scheme it is one of the web.
pub(crate) fn address_kind(address: &str) -> Address {
    let (scheme, rest) = match address.split_once(':') {
        // `host:port` has a number behind it.
        Some((scheme, rest)) if !rest.starts_with(|c: char| c.is_ascii_digit()) && !scheme.contains(['/', '.']) => {
            (scheme.to_ascii_lowercase(), rest)
        }
        _ => (String::new(), address),
    };
    if !matches!(scheme.as_str(), "" | "http" | "https") {
        return Address::Other;
    }
    let host = rest.trim_start_matches('/').split(['/', '?', '#']).next().unwrap_or_default();
    let host = host.rsplit('@').next().unwrap_or_default();
    let metadata = ["169.254.169.254", "metadata.google.internal", "[fd00:ec2::254]", "100.100.100.200"];
    if metadata.iter().any(|name| host.starts_with(name)) { Address::Metadata } else { Address::Web }
}

/// Whether an address is of this machine.
fn is_own(address: &str) -> bool {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
    let host = if authority.starts_with('[') {
        authority.split_inclusive(']').next().unwrap_or_default()
    } else {
        authority.split(':').next().unwrap_or_default()
    };
    !authority.contains('@') && matches!(host, "localhost" | "127.0.0.1" | "[::1]")
}

/// `scp` and `rsync`: `host:path` is another machine. A copy to it sends, a copy from it downloads.
fn copy(arguments: &[Word], letters: &str, directories: &Directories, found: &mut Found) {
    let mut places = Vec::new();
    for word in arguments {
        let text = word.text.as_str();
        match text {
            "--delete" | "--delete-after" | "--remove-source-files" => found.add(crate::effects::DELETE),
            "--archive" | "--progress" | "--dry-run" | "--verbose" | "--compress" | "--stats" => {}
            _ if text.starts_with("--exclude") || text.starts_with("--include") => {}
            _ if is_letters(text, letters) => {}
            _ if text.starts_with('-') => found.unknown("an option of a program that reaches other machines"),
            _ => places.push(text),
        }
    }
    let remote = |place: &str| place.split_once(':').is_some_and(|(host, _)| !host.contains('/'));
    let Some((to, from)) = places.split_last() else { return found.unknown("a copy without an end") };
    for place in from {
        if remote(place) {
            found.add(DOWNLOAD);
            found.target(place);
        } else {
            directories.read(place, found);
        }
    }
    if remote(to) {
        found.add(SEND);
        found.target(to);
    } else {
        directories.write(to, found);
    }
}
