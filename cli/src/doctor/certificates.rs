//! Certificates: whether they can be read, whom they are for, whether key and certificate belong together, and when they end.

use std::path::Path;

use jiff::Timestamp;
use stage0_backplane::nats::NatsConfig;
use stage0_gateway::{TlsFiles, check_pair};
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;

use super::Finding;

/// Whoever renews by hand needs some days.
const SOON_DAYS: i64 = 14;
const DAY_SECONDS: i64 = 86_400;

/// The gateway's own.
pub(super) fn server(files: &TlsFiles, now: Timestamp) -> Vec<Finding> {
    pair("certificate", files, now)
}

/// What NATS is trusted by, and what the role is known by.
pub(super) fn of_nats(config: &NatsConfig, now: Timestamp) -> Vec<Finding> {
    let Some(tls) = &config.tls else {
        let plain = Finding::doubtful(
            "nats tls",
            "messages and passwords cross the network as they are",
            "outside of one machine give --nats-ca, and --nats-cert with --nats-key where the servers verify clients",
        );
        return vec![plain];
    };
    let mut findings: Vec<_> = tls.ca.iter().map(|ca| file("nats ca", ca, now)).collect();
    if let Some((cert, key)) = &tls.client {
        findings.extend(pair("nats cert", &TlsFiles { cert: cert.clone(), key: key.clone() }, now));
    }
    findings
}

/// A certificate and its key.
fn pair(about: &'static str, files: &TlsFiles, now: Timestamp) -> Vec<Finding> {
    match check_pair(files) {
        Ok(()) => vec![file(about, &files.cert, now)],
        Err(error) => {
            let why = chain(&error);
            vec![Finding::bad(
                about,
                why,
                format!(
                    "put a PEM certificate and its key into `{}` and `{}`",
                    files.cert.display(),
                    files.key.display()
                ),
            )]
        }
    }
}

/// The first certificate of a file.
pub(super) fn file(about: &'static str, path: &Path, now: Timestamp) -> Finding {
    let shown = path.display();
    let replace = format!("put a PEM certificate into `{shown}`");
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) => return Finding::bad(about, format!("`{shown}` cannot be read: {error}"), replace),
    };
    let Some(Ok(pem)) = Pem::iter_from_buffer(&text).next() else {
        return Finding::bad(about, format!("`{shown}` holds no PEM certificate"), replace);
    };
    let Ok(certificate) = pem.parse_x509() else {
        return Finding::bad(about, format!("`{shown}` holds no X.509 certificate"), replace);
    };
    let names = names(&certificate);
    let validity = certificate.validity();
    let (begins, ends) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let days = (ends - now.as_second()).div_euclid(DAY_SECONDS);
    let end = Timestamp::from_second(ends).map_or_else(|_| "far away".to_owned(), |end| end.to_string());
    let text = format!("`{shown}`{names}, ends {end}");
    if now.as_second() < begins {
        return Finding::bad(about, format!("{text}, and is not valid yet"), "set this machine's clock, or wait");
    }
    let renew = "put a new one in its place; roles read it by themselves or at their next connection";
    match days {
        ..0 => Finding::bad(about, format!("{text}: it has ended"), renew),
        0..SOON_DAYS => Finding::doubtful(about, format!("{text}: in {days} days"), renew),
        _ => Finding::good(about, format!("{text}: in {days} days")),
    }
}

/// Whom it is for.
fn names(certificate: &x509_parser::certificate::X509Certificate<'_>) -> String {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return String::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => address(bytes),
        _ => None,
    };
    let names: Vec<_> = extension.value.general_names.iter().filter_map(name).collect();
    if names.is_empty() { String::new() } else { format!(" for {}", names.join(", ")) }
}

fn address(bytes: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|bytes| std::net::Ipv4Addr::from(bytes).to_string());
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(|bytes| std::net::Ipv6Addr::from(bytes).to_string())).ok()
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use stage0_gateway::dev_tls;

    use super::super::How;
    use super::*;

    fn made() -> (tempfile::TempDir, TlsFiles, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (files, ca) = dev_tls(dir.path()).unwrap();
        (dir, files, ca)
    }

    fn in_days(days: i64) -> Timestamp {
        Timestamp::from_second(Timestamp::now().as_second() + days * DAY_SECONDS).unwrap()
    }

    #[test]
    fn a_certificate_is_good_until_it_is_nearly_over() {
        let (_dir, files, _) = made();
        let how = |days| server(&files, in_days(days)).remove(0).how;
        assert_eq!([how(0), how(380), how(391), how(-2)], [How::Good, How::Doubtful, How::Bad, How::Bad]);
        let found = server(&files, in_days(0)).remove(0).found;
        assert!(found.contains("for localhost, 127.0.0.1, ::1"), "{found}");
    }

    #[test]
    fn a_key_of_another_certificate_is_bad() {
        let ((_one, files, _), (_two, others, _)) = (made(), made());
        let found = server(&TlsFiles { cert: files.cert, key: others.key }, in_days(0)).remove(0);
        assert!(found.how == How::Bad && found.found.contains("cannot be used together"), "{found}");
    }

    #[test]
    fn what_is_no_certificate_is_bad_and_named() {
        let (dir, _, _) = made();
        let path = dir.path().join("x.pem");
        assert!(file("nats ca", &path, in_days(0)).found.contains("cannot be read"));
        std::fs::write(&path, "hello").unwrap();
        assert!(file("nats ca", &path, in_days(0)).found.contains("no PEM certificate"));
        std::fs::write(&path, "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n").unwrap();
        assert!(file("nats ca", &path, in_days(0)).found.contains("no X.509 certificate"));
    }
}
