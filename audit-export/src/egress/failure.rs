//! Why an attempt got no answer, in words for the endpoint's owner.
//!
//! Owns those words and the sorting of the HTTP client's failures into them. Invariant: no text names an address, a
//! path, a header or a type, and none tells a host that is known inside from one that does not exist: both have the
//! same words. What cannot be sorted is a broken exchange.

use std::error::Error;
use std::io::{self, ErrorKind};

/// For every host that we do not connect to.
const NOT_PUBLIC: &str = "the host cannot be resolved, or has an address that is not public";

/// There is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The host's name has no address, or nobody could say in time.
    #[error("{NOT_PUBLIC}")]
    Unresolved,
    /// The host has an address that we do not connect to, for this reason, which is for ourselves alone. Nothing was
    /// sent.
    #[error("{NOT_PUBLIC}")]
    Refused(&'static str),
    /// The URL was accepted when plain http was allowed to more than it is now.
    #[error("plain http goes to private addresses alone, where those are allowed")]
    Plain,
    /// There is no connection.
    #[error("no connection: {0}")]
    Unreachable(&'static str),
    /// Somebody is there who is not trusted, or does not speak TLS.
    #[error("no secure connection: {0}")]
    Tls(&'static str),
    /// No answer within the time of an attempt.
    #[error("no answer in time")]
    Timeout,
    /// The connection ended before there was an answer, or what came was not HTTP.
    #[error("the connection broke before there was an answer")]
    Broken,
    /// Ours, not the endpoint's.
    #[error("the request could not be made")]
    NoClient,
}

impl SendError {
    pub(super) fn of(error: &reqwest::Error) -> Self {
        match find::<rustls::Error>(error) {
            Some(rustls::Error::InvalidCertificate(fault)) => Self::Tls(distrust(fault)),
            Some(_) => Self::Tls("it does not speak TLS as we do"),
            None if error.is_builder() => Self::NoClient,
            None if error.is_connect() && error.is_timeout() => Self::Unreachable("it took too long"),
            None if error.is_connect() => {
                Self::Unreachable(find::<io::Error>(error).map_or("it failed", no_connection))
            }
            None if error.is_timeout() => Self::Timeout,
            None => Self::Broken,
        }
    }
}

fn no_connection(error: &io::Error) -> &'static str {
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

fn distrust(fault: &rustls::CertificateError) -> &'static str {
    use rustls::CertificateError as Fault;
    match fault {
        // The latter if an authority only bears the name of a trusted one.
        Fault::UnknownIssuer | Fault::BadSignature => "nobody whom we trust signed its certificate",
        Fault::Expired | Fault::ExpiredContext { .. } => "its certificate has expired",
        Fault::NotValidYet | Fault::NotValidYetContext { .. } => "its certificate is not valid yet",
        Fault::NotValidForName | Fault::NotValidForNameContext { .. } => "its certificate is for another name",
        _ => "its certificate is not valid",
    }
}

/// The outermost error of a type. The TLS library's stands inside of an I/O error, which does not name it as its source.
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
    fn a_host_inside_has_the_words_of_one_that_does_not_exist() {
        let unknown = SendError::Unresolved.to_string();
        for why in ["loopback", "private use"] {
            assert_eq!(SendError::Refused(why).to_string(), unknown);
        }
        assert!(!unknown.contains("loopback"));
    }

    #[test]
    fn what_stands_inside_of_an_io_error_is_found() {
        let tls = io::Error::new(ErrorKind::InvalidData, rustls::Error::DecryptError);
        let outer = io::Error::other(tls);
        assert_eq!(find::<rustls::Error>(&outer), Some(&rustls::Error::DecryptError));
        assert!(find::<SendError>(&outer).is_none());
    }
}
