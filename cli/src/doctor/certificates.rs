//! Checks certificates: readable, names, expiry, and whether certificate and key belong together.

use std::path::Path;

use jiff::Timestamp;
use stage0_backplane::nats::NatsConfig;
use stage0_gateway::{TlsFiles, check_pair};
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;

use super::Finding;

const RENEWAL_DAYS: i64 = 14;
const DAY_SECONDS: i64 = 86_400;

pub(super) fn of_nats(config: &NatsConfig, now: Timestamp) -> Vec<Finding> {
    let Some(tls) = &config.tls else {
        let advice =
            "unless all runs on one machine, give --nats-ca, and --nats-cert with --nats-key for client certificates";
        return vec![Finding::warn("nats tls", "messages and passwords cross the network in plain text", advice)];
    };
    let mut findings: Vec<_> = tls.ca.iter().map(|ca| file("nats ca", ca, now)).collect();
    if let Some((cert, key)) = &tls.client {
        findings.extend(pair("nats cert", &TlsFiles { cert: cert.clone(), key: key.clone() }, now));
    }
    findings
}

pub(super) fn pair(about: &'static str, files: &TlsFiles, now: Timestamp) -> Vec<Finding> {
    match check_pair(files) {
        Ok(()) => vec![file(about, &files.cert, now)],
        Err(error) => {
            let (cert, key) = (files.cert.display(), files.key.display());
            let advice = format!("put a PEM certificate and its key into `{cert}` and `{key}`");
            vec![Finding::error(about, format!("{:#}", anyhow::Error::from(error)), advice)]
        }
    }
}

/// The first certificate of a file.
pub(super) fn file(about: &'static str, path: &Path, now: Timestamp) -> Finding {
    let shown = path.display();
    let replace = format!("put a PEM certificate into `{shown}`");
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) => return Finding::error(about, format!("`{shown}` cannot be read: {error}"), replace),
    };
    let Some(Ok(pem)) = Pem::iter_from_buffer(&text).next() else {
        return Finding::error(about, format!("`{shown}` holds no PEM certificate"), replace);
    };
    let Ok(certificate) = pem.parse_x509() else {
        return Finding::error(about, format!("`{shown}` holds no X.509 certificate"), replace);
    };
    let names = names(&certificate);
    let validity = certificate.validity();
    let (begins, ends) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let days = (ends - now.as_second()).div_euclid(DAY_SECONDS);
    let end = Timestamp::from_second(ends).map_or_else(|_| "never".to_owned(), |end| end.to_string());
    let text = format!("`{shown}`{names}, ends {end}");
    if now.as_second() < begins {
        return Finding::error(about, format!("{text}, and is not valid yet"), "set this machine's clock, or wait");
    }
    let renew = "replace the file; roles read it by themselves or at their next connection";
    match days {
        ..0 => Finding::error(about, format!("{text}: it has expired"), renew),
        0..RENEWAL_DAYS => Finding::warn(about, format!("{text}: in {days} days"), renew),
        _ => Finding::ok(about, format!("{text}: in {days} days")),
    }
}

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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use stage0_gateway::dev_tls;

    use super::super::Severity;
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
    fn a_certificate_is_ok_until_it_expires_soon() {
        let (_dir, files, _) = made();
        let severity = |days| pair("certificate", &files, in_days(days)).remove(0).severity;
        assert_eq!(
            [severity(0), severity(380), severity(391), severity(-2)],
            [Severity::Ok, Severity::Warn, Severity::Error, Severity::Error]
        );
        let found = pair("certificate", &files, in_days(0)).remove(0).found;
        assert!(found.contains("for localhost, 127.0.0.1, ::1"), "{found}");
    }

    #[test]
    fn a_key_of_another_certificate_is_an_error() {
        let ((_one, files, _), (_two, others, _)) = (made(), made());
        let found = pair("certificate", &TlsFiles { cert: files.cert, key: others.key }, in_days(0)).remove(0);
        assert!(found.severity == Severity::Error && found.found.contains("cannot be used together"), "{found}");
    }

    #[test]
    fn a_file_without_a_certificate_is_an_error() {
        let (dir, _, _) = made();
        let path = dir.path().join("x.pem");
        assert!(file("nats ca", &path, in_days(0)).found.contains("cannot be read"));
        std::fs::write(&path, "hello").unwrap();
        assert!(file("nats ca", &path, in_days(0)).found.contains("no PEM certificate"));
        std::fs::write(&path, "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n").unwrap();
        assert!(file("nats ca", &path, in_days(0)).found.contains("no X.509 certificate"));
    }
}
