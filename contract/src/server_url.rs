//! The address of a server, as every client and setting reads it.

use url::Url;

/// Reads an https URL with a host, without credentials, query or fragment. The error says what the text must be.
pub fn https_url(text: &str) -> Result<Url, &'static str> {
    let usable = |url: &Url| {
        url.scheme() == "https"
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
    };
    let url = text.parse().ok().filter(usable);
    url.ok_or("must be an https URL such as https://localhost:8443")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_urls_name_a_server() {
        for bad in
            ["http://localhost", "localhost:8443", "https://user:pw@h", "https://h/?q", "https://h/#f", "https://"]
        {
            assert!(https_url(bad).is_err(), "{bad:?}");
        }
        assert!(https_url("https://localhost:8443/base/").is_ok());
    }
}
