//! The text of an error: each cause once, then a hint with the flag that helps. A hint depends on the type of a cause,
//! never on its text.

use std::convert::Infallible;
use std::error::Error;
use std::io;

use stage0_backplane::nats::ConnectError;
use stage0_client::connection::{ConnectionError, tls_fault};
use stage0_client::target::TargetError;
use stage0_gateway::BuildError;

/// The causes in one line, then the hint, if any, on a line of its own.
pub(crate) fn describe(error: &anyhow::Error) -> String {
    let causes = causes(error.chain().map(ToString::to_string));
    hint(error).map_or(causes.clone(), |hint| format!("{causes}\n  {hint}"))
}

pub(crate) fn describe_in_one_line(error: &anyhow::Error) -> String {
    describe(error).lines().map(str::trim).collect::<Vec<_>>().join("; ")
}

/// Joins the causes by colons. A library may repeat its source in its own text: the repetition is left out.
fn causes(chain: impl Iterator<Item = String>) -> String {
    let mut shown: Vec<String> = Vec::new();
    for cause in chain {
        let cause = cause.strip_prefix("IO error: ").unwrap_or(&cause);
        match shown.last() {
            Some(last) if last.ends_with(cause) => {}
            Some(last) if cause.starts_with(&format!("{last}: ")) => {
                shown.pop();
                shown.push(cause.to_owned());
            }
            Some(_) | None => shown.push(cause.to_owned()),
        }
    }
    shown.join(": ")
}

fn hint(error: &anyhow::Error) -> Option<&'static str> {
    error.chain().find_map(|cause| {
        let nats = cause.downcast_ref::<ConnectError>().and_then(nats_hint);
        let server = || cause.downcast_ref::<ConnectionError>().and_then(connection_hint);
        let target = || cause.downcast_ref::<TargetError>().and_then(target_hint);
        nats.or_else(server).or_else(target).or_else(|| address_hint(cause))
    })
}

fn connection_hint(error: &ConnectionError) -> Option<&'static str> {
    match error {
        ConnectionError::Target(error) => target_hint(error),
        ConnectionError::NotTrusted { .. } => Some("--ca FILE names an authority to trust"),
        ConnectionError::Timeout { .. } => Some("--timeout SECONDS gives it more time"),
        ConnectionError::UnusableKey
        | ConnectionError::Ca { .. }
        | ConnectionError::Unreachable { .. }
        | ConnectionError::Broken { .. }
        | ConnectionError::Refused { .. }
        | ConnectionError::Unreadable(_)
        | ConnectionError::Runtime(_) => None,
    }
}

fn target_hint(error: &TargetError) -> Option<&'static str> {
    match error {
        TargetError::NoServer(_) => Some("--url URL names a server, --data-dir DIR the directory of a `stage0 dev`"),
        TargetError::NoKey(_) => Some("--key-file FILE names the file with the key"),
        TargetError::NoOperatorKey(_) => Some("--key-file FILE names it, or --data-dir DIR its directory"),
        TargetError::NoneNamed | TargetError::File { .. } | TargetError::Variable { .. } => None,
    }
}

fn nats_hint(error: &ConnectError) -> Option<&'static str> {
    match error {
        ConnectError::Tls { source, .. } => Some(tls_hint(source)),
        ConnectError::Refused { .. } => Some(
            "give this role's login: --nats-logins DIR, or --nats-user NAME with --nats-password-file FILE or with \
             STAGE0_NATS_PASSWORD",
        ),
        ConnectError::Unreachable { .. } | ConnectError::Silent { .. } => {
            Some("--nats names the server, such as nats://127.0.0.1:4222; is it running there?")
        }
        ConnectError::NotCarried { .. } => {
            Some("the login lacks rights on --nats-prefix: `stage0 nats-config` prints a configuration that has them")
        }
        ConnectError::Setting { .. } | ConnectError::TooOld { .. } => None,
    }
}

fn tls_hint(error: &(dyn Error + 'static)) -> &'static str {
    use rustls::{AlertDescription as Alert, Error as Tls};
    match tls_fault(error) {
        Some(Tls::InvalidCertificate(fault)) => certificate_hint(fault),
        Some(Tls::AlertReceived(Alert::CertificateRequired | Alert::HandshakeFailure)) => {
            "the server requires a client certificate: give --nats-cert FILE and --nats-key FILE"
        }
        Some(Tls::AlertReceived(Alert::CertificateExpired)) => {
            "the server says that the client certificate has expired: replace the files of --nats-cert and --nats-key"
        }
        Some(Tls::AlertReceived(_)) => {
            "the server rejects the client certificate: --nats-cert and --nats-key must be of an \
             authority that it trusts"
        }
        Some(_) | None => {
            "--nats tls://… requires TLS, nats://… uses it only if the server demands it; --nats-ca names the authority"
        }
    }
}

/// What is wrong with the certificate of the NATS server, and where to mend it.
fn certificate_hint(fault: &rustls::CertificateError) -> &'static str {
    use rustls::CertificateError as Fault;
    match fault {
        Fault::UnknownIssuer => {
            "the server's certificate is not signed by a trusted authority: --nats-ca FILE names the authority to trust"
        }
        // As after an authority was made again: its name is the same, its key another.
        Fault::BadSignature => {
            "another authority of the same name has signed the server's certificate: give its file as --nats-ca FILE"
        }
        Fault::NotValidForName | Fault::NotValidForNameContext { .. } => {
            "the server's certificate is for another name: name the server in --nats as its certificate does"
        }
        Fault::Expired | Fault::ExpiredContext { .. } => {
            "a certificate has expired: replace that of the NATS server, or that of the authority and --nats-ca with \
             it; or this machine's clock is wrong"
        }
        Fault::NotValidYet | Fault::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet: compare the clock of this machine with that of the one that \
             made it"
        }
        Fault::InvalidPurpose | Fault::InvalidPurposeContext { .. } => {
            "the server's certificate is not one for servers: give the NATS server another, with `serverAuth` among \
             its uses"
        }
        Fault::Revoked => "the server's certificate was revoked: give the NATS server another",
        _ => {
            "the server's certificate cannot be used: replace that of the NATS server, or name its authority with \
             --nats-ca FILE"
        }
    }
}

fn address_hint(error: &(dyn Error + 'static)) -> Option<&'static str> {
    fn bind_error<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
        match error.downcast_ref::<BuildError<E>>() {
            Some(BuildError::Bind { source, .. }) => Some(source),
            Some(_) | None => None,
        }
    }
    let bound = bind_error::<Infallible>(error).or_else(|| bind_error::<ConnectError>(error));
    match bound?.kind() {
        io::ErrorKind::AddrInUse => Some(
            "another process listens there: end it, or choose another address with --listen, such as 127.0.0.1:8444",
        ),
        io::ErrorKind::PermissionDenied => Some("ports below 1024 need privileges: choose another with --listen"),
        io::ErrorKind::AddrNotAvailable => Some("--listen must name an address of this machine"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(chain: &[&str]) -> String {
        causes(chain.iter().map(|cause| (*cause).to_owned()))
    }

    #[test]
    fn each_cause_is_shown_once() {
        assert_eq!(joined(&["a", "IO error: refused", "refused"]), "a: refused");
        assert_eq!(joined(&["a: b", "b"]), "a: b");
        assert_eq!(joined(&["a", "b", "b: c", "c"]), "a: b: c");
        assert_eq!(joined(&["a", "b", "a"]), "a: b: a", "only adjacent causes are compared");
        assert_eq!(joined(&["a"]), "a");
    }

    #[test]
    fn an_error_that_a_flag_can_fix_names_the_flag() {
        let refused = anyhow::Error::from(ConnectError::Refused { server: "h:1".to_owned() });
        let text = describe(&refused.context("cannot connect"));
        assert!(text.starts_with("cannot connect: the NATS server at `h:1` refuses the credentials\n"), "{text}");
        assert!(text.contains("--nats-logins"), "{text}");
        let taken = |kind| {
            let source = io::Error::from(kind);
            anyhow::Error::from(BuildError::<ConnectError>::Bind { address: "127.0.0.1:1".parse().unwrap(), source })
        };
        assert!(describe(&taken(io::ErrorKind::AddrInUse)).contains("--listen"));
        assert!(!describe(&taken(io::ErrorKind::OutOfMemory)).contains('\n'), "no hint is better than a wrong one");
        assert!(!describe_in_one_line(&taken(io::ErrorKind::AddrInUse)).contains('\n'));
    }

    #[test]
    fn an_error_of_the_connection_names_the_flag_that_fixes_it() {
        let url: reqwest::Url = "https://h".parse().unwrap();
        let no_server = || TargetError::NoServer("d/dev.json".into());
        let not_trusted = ConnectionError::NotTrusted { url: url.clone(), why: "it is another's".to_owned() };
        for (error, flag) in [
            (anyhow::Error::from(no_server()), "--url"),
            (ConnectionError::from(no_server()).into(), "--url"),
            (TargetError::NoKey(url.clone()).into(), "--key-file"),
            (TargetError::NoOperatorKey(url.clone()).into(), "--data-dir"),
            (not_trusted.into(), "--ca"),
            (ConnectionError::Timeout { url: url.clone() }.into(), "--timeout"),
        ] {
            let text = describe(&error);
            assert!(text.lines().nth(1).is_some_and(|hint| hint.contains(flag)), "{text}");
        }
        let refused = ConnectionError::Unreachable { url, why: "refused".to_owned() };
        assert!(!describe(&refused.into()).contains('\n'), "no flag helps");
    }

    #[test]
    fn a_tls_error_names_the_flag_that_fixes_it() {
        use rustls::AlertDescription as Alert;
        let tls = |alert| tls_hint(&io::Error::other(rustls::Error::AlertReceived(alert)));
        assert!(tls(Alert::CertificateRequired).contains("--nats-cert FILE and --nats-key FILE"));
        assert!(tls(Alert::UnknownCA).contains("must be of an"));
        assert!(tls(Alert::CertificateExpired).contains("client certificate has expired"));
        assert!(tls_hint(&io::Error::other("no TLS at all")).contains("--nats tls://…"));
    }

    #[test]
    fn each_fault_of_a_nats_servers_certificate_says_where_to_mend_it() {
        use std::time::Duration;

        use rustls::CertificateError as Fault;
        use rustls::pki_types::{ServerName, UnixTime};

        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let expected = ServerName::try_from("nats.example").unwrap();
        let (time, not_after, not_before) = (at(2), at(1), at(3));
        let purpose = || rustls::ExtendedKeyPurpose::ServerAuth;
        for (fault, part) in [
            (Fault::UnknownIssuer, "is not signed by a trusted authority: --nats-ca FILE"),
            (Fault::BadSignature, "another authority of the same name has signed"),
            (Fault::BadSignature, "--nats-ca FILE"),
            (Fault::NotValidForName, "name the server in --nats as"),
            (Fault::NotValidForNameContext { expected, presented: Vec::new() }, "name the server in --nats as"),
            (Fault::Expired, "has expired: replace that of the NATS server"),
            (Fault::ExpiredContext { time, not_after }, "and --nats-ca with it"),
            (Fault::NotValidYet, "compare the clock"),
            (Fault::NotValidYetContext { time, not_before }, "compare the clock"),
            (Fault::InvalidPurpose, "`serverAuth`"),
            (Fault::InvalidPurposeContext { required: purpose(), presented: Vec::new() }, "`serverAuth`"),
            (Fault::Revoked, "was revoked"),
            (Fault::BadEncoding, "cannot be used: replace that of the NATS server"),
        ] {
            let hint = tls_hint(&io::Error::other(rustls::Error::InvalidCertificate(fault.clone())));
            assert!(hint.contains(part), "{fault:?}: {hint}");
        }
    }
}
