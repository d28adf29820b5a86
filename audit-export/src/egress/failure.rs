//! Why an attempt got no response, in words for the endpoint's owner.
//!
//! An error that fits no other variant is a broken connection.
//! INVARIANT: no text names an address, a path, a header or a type, and a host that is internal has the same text as
//! one that does not exist.

use std::error::Error;
use std::io::{self, ErrorKind};

use stage0_contract::WebhookUrlError;

const NOT_PUBLIC: &str = "the host cannot be resolved, or has an address that is not public";

/// An attempt got no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The host's name has no address, or the lookup did not finish in time.
    #[error("{NOT_PUBLIC}")]
    Unresolved,
    /// The host has an address that is not allowed, for this reason, which the text does not show. Nothing was sent.
    #[error("{NOT_PUBLIC}")]
    Refused(&'static str),
    /// Plain http is not allowed to this address; the URL may have been created when it was.
    #[error("plain http goes to private addresses alone, where those are allowed")]
    PlainHttp,
    /// The TCP connection failed.
    #[error("no connection: {0}")]
    Unreachable(&'static str),
    /// The certificate is not trusted, or the TLS handshake failed.
    #[error("no secure connection: {0}")]
    Tls(&'static str),
    /// The response did not arrive within the timeout of an attempt.
    #[error("no answer in time")]
    Timeout,
    /// The connection ended before the response, or the response was not HTTP.
    #[error("the connection broke before there was an answer")]
    Broken,
    /// The HTTP client could not make the request: a fault of the exporter, not of the endpoint.
    #[error("the request could not be made")]
    NoClient,
    /// The endpoint's stored URL breaks the rules for URLs.
    #[error("the endpoint's URL {0}")]
    InvalidUrl(WebhookUrlError),
    /// The endpoint was stored without a signing secret.
    #[error("the endpoint has no signing secret")]
    NoSecret,
}

impl SendError {
    pub(super) fn from_client(error: &reqwest::Error) -> Self {
        match find::<rustls::Error>(error) {
            Some(rustls::Error::InvalidCertificate(fault)) => Self::Tls(certificate_fault(fault)),
            Some(_) => Self::Tls("the TLS handshake failed"),
            None if error.is_builder() => Self::NoClient,
            None if error.is_connect() && error.is_timeout() => Self::Unreachable("it took too long"),
            None if error.is_connect() => {
                Self::Unreachable(find::<io::Error>(error).map_or("it failed", connection_fault))
            }
            None if error.is_timeout() => Self::Timeout,
            None => Self::Broken,
        }
    }
}

fn connection_fault(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::ConnectionRefused => "it was refused",
        ErrorKind::TimedOut => "it took too long",
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => "there is no route",
        ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe
        | ErrorKind::UnexpectedEof => "it was closed",
        _ => "it failed",
    }
}

fn certificate_fault(fault: &rustls::CertificateError) -> &'static str {
    use rustls::CertificateError as Fault;
    match fault {
        // `BadSignature` if the authority only has the name of a trusted one.
        Fault::UnknownIssuer | Fault::BadSignature => "its certificate is not signed by a trusted authority",
        Fault::Expired | Fault::ExpiredContext { .. } => "its certificate has expired",
        Fault::NotValidYet | Fault::NotValidYetContext { .. } => "its certificate is not valid yet",
        Fault::NotValidForName | Fault::NotValidForNameContext { .. } => "its certificate is for another name",
        _ => "its certificate is not valid",
    }
}

/// The outermost error of a type. An I/O error does not report the TLS error that it wraps as its source.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = inner.map(|inner| inner as &(dyn Error + 'static)).or_else(|| error.source());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_internal_host_has_the_text_of_one_that_does_not_exist() {
        let unknown = SendError::Unresolved.to_string();
        for why in ["loopback", "private use"] {
            assert_eq!(SendError::Refused(why).to_string(), unknown);
        }
        assert!(!unknown.contains("loopback"));
    }

    #[test]
    fn an_error_inside_an_io_error_is_found() {
        let tls = io::Error::new(ErrorKind::InvalidData, rustls::Error::DecryptError);
        let outer = io::Error::other(tls);
        assert_eq!(find::<rustls::Error>(&outer), Some(&rustls::Error::DecryptError));
        assert!(find::<SendError>(&outer).is_none());
    }
}
