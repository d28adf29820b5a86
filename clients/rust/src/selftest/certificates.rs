//! Certificates that are made for one run and trusted by nothing else.

use std::io;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// What a server's certificate is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Identity {
    /// Signed by the authority that the client trusts, for the name that it asks for.
    Right,
    /// Signed by an authority of the same name that the client does not trust.
    OtherAuthority,
    OtherName,
    Expired,
}

/// A server's side of TLS, and the authority that the client is to trust, as PEM.
pub(super) fn make(identity: Identity) -> io::Result<(Arc<ServerConfig>, String)> {
    let trusted = authority()?;
    let other = authority()?;
    let signer = if identity == Identity::OtherAuthority { &other } else { &trusted };
    let name = if identity == Identity::OtherName { "elsewhere.invalid" } else { "127.0.0.1" };
    let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(io::Error::other)?;
    if identity == Identity::Expired {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 2);
    }
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let certificate = params.signed_by(&key, signer).map_err(io::Error::other)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(io::Error::other)?.with_no_client_auth();
    let config = builder.with_single_cert(vec![certificate.der().clone()], key).map_err(io::Error::other)?;
    Ok((Arc::new(config), trusted.pem()))
}

fn authority() -> io::Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "Stage0 selftest");
    let key = KeyPair::generate().map_err(io::Error::other)?;
    CertifiedIssuer::self_signed(params, key).map_err(io::Error::other)
}
