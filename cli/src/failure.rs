//! How a failure is told: its causes once each, and what to type about it.
//!
//! Owns the texts of hints, because only the command line knows its flags; what failed is said by the crate that failed. A hint is
//! given where the cause is known by its type, never by its text.

use std::error::Error;
use std::io;

use stage0_backplane::nats::ConnectError;
use stage0_gateway::BuildError;

use crate::client::tls_fault;

/// The causes in one sentence, then hints, each on a line of its own.
pub(crate) fn told(error: &anyhow::Error) -> String {
    let causes = causes(error.chain().map(ToString::to_string));
    hint(error).map_or(causes.clone(), |hint| format!("{causes}\n  {hint}"))
}

/// The same without line breaks, for a log.
pub(crate) fn in_one_line(error: &anyhow::Error) -> String {
    let told = told(error);
    told.lines().map(str::trim).collect::<Vec<_>>().join("; ")
}

/// Joined by colons. Libraries that print their source in their own text say it twice: it is told once.
fn causes(chain: impl Iterator<Item = String>) -> String {
    let mut told: Vec<String> = Vec::new();
    for cause in chain {
        // Says where it comes from, which is not what is wrong.
        let cause = cause.strip_prefix("IO error: ").unwrap_or(&cause);
        match told.last() {
            Some(last) if last.ends_with(cause) => {}
            Some(last) if cause.starts_with(&format!("{last}: ")) => {
                told.pop();
                told.push(cause.to_owned());
            }
            Some(_) | None => told.push(cause.to_owned()),
        }
    }
    told.join(": ")
}

fn hint(error: &anyhow::Error) -> Option<&'static str> {
    error.chain().find_map(|cause| {
        let nats = cause.downcast_ref::<ConnectError>().and_then(of_nats);
        nats.or_else(|| of_address(cause))
    })
}

fn of_nats(error: &ConnectError) -> Option<&'static str> {
    match error {
        ConnectError::Tls { source, .. } => Some(of_tls(source)),
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

fn of_tls(error: &(dyn Error + 'static)) -> &'static str {
    use rustls::{AlertDescription as Alert, CertificateError as Fault, Error as Tls};
    match tls_fault(error) {
        Some(Tls::InvalidCertificate(Fault::UnknownIssuer)) => {
            "nobody whom this process trusts signed the server's certificate: --nats-ca FILE names the authority that did"
        }
        Some(Tls::InvalidCertificate(Fault::NotValidForName | Fault::NotValidForNameContext { .. })) => {
            "the server's certificate is for another name: name the server in --nats as its certificate does"
        }
        Some(Tls::InvalidCertificate(Fault::Expired | Fault::ExpiredContext { .. })) => {
            "the server's certificate has expired: it needs a new one"
        }
        Some(Tls::AlertReceived(Alert::CertificateRequired | Alert::HandshakeFailure)) => {
            "the server asks for a certificate of this process: --nats-cert FILE and --nats-key FILE give it"
        }
        Some(Tls::AlertReceived(_)) => {
            "the server does not take the certificate of this process: --nats-cert and --nats-key must be of an \
             authority that it trusts"
        }
        Some(_) | None => {
            "--nats tls://… asks for TLS, nats://… for none unless the server demands it; --nats-ca names the authority"
        }
    }
}

fn of_address(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let bound = match error.downcast_ref::<BuildError<std::convert::Infallible>>() {
        Some(BuildError::Bind { source, .. }) => Some(source),
        Some(_) | None => match error.downcast_ref::<BuildError<ConnectError>>() {
            Some(BuildError::Bind { source, .. }) => Some(source),
            Some(_) | None => None,
        },
    };
    match bound?.kind() {
        io::ErrorKind::AddrInUse => {
            Some("another process listens there: end it, or give another address by --listen, such as 127.0.0.1:8444")
        }
        io::ErrorKind::PermissionDenied => Some("ports below 1024 need rights: give another by --listen"),
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
    fn each_cause_is_told_once() {
        assert_eq!(joined(&["a", "IO error: refused", "refused"]), "a: refused");
        assert_eq!(joined(&["a: b", "b"]), "a: b");
        assert_eq!(joined(&["a", "b", "b: c", "c"]), "a: b: c");
        assert_eq!(joined(&["a", "b", "a"]), "a: b: a", "only a neighbour is a repetition");
        assert_eq!(joined(&["a"]), "a");
    }

    #[test]
    fn what_can_be_mended_by_a_flag_names_it() {
        let refused = anyhow::Error::from(ConnectError::Refused { server: "h:1".to_owned() });
        let text = told(&refused.context("cannot connect"));
        assert!(text.starts_with("cannot connect: the NATS server at `h:1` refuses the credentials\n"), "{text}");
        assert!(text.contains("--nats-logins"), "{text}");
        let taken = |kind| {
            let source = io::Error::from(kind);
            anyhow::Error::from(BuildError::<ConnectError>::Bind { address: "127.0.0.1:1".parse().unwrap(), source })
        };
        assert!(told(&taken(io::ErrorKind::AddrInUse)).contains("--listen"));
        assert!(!told(&taken(io::ErrorKind::OutOfMemory)).contains('\n'), "no hint is better than a wrong one");
        assert!(!in_one_line(&taken(io::ErrorKind::AddrInUse)).contains('\n'));
    }

    #[test]
    fn a_tls_fault_is_told_with_the_flag_that_mends_it() {
        let tls = |fault: rustls::Error| of_tls(&io::Error::other(fault));
        assert!(tls(rustls::CertificateError::UnknownIssuer.into()).contains("--nats-ca"));
        let asked = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired);
        assert!(tls(asked).contains("--nats-cert FILE and --nats-key FILE"));
        assert!(tls(rustls::Error::AlertReceived(rustls::AlertDescription::UnknownCA)).contains("must be of an"));
    }
}
