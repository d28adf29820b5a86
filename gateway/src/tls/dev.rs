//! Certificates for a developer's machine: a local CA and a certificate for localhost, created once and shared.
//!
//! Owns a directory with `ca.pem`, `ca.key`, `server.pem` and `server.key` (keys 0600). Several gateways may start with
//! it at the same time: under a file lock one creates the files and the others use them. The server's certificate is
//! renewed before it expires.

use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::authority::{Authority, AuthorityError, Leaf, failed};
use crate::config::TlsFiles;

const LOCALHOST: Leaf<'static> = Leaf { name: "localhost", hosts: &["localhost", "127.0.0.1", "::1"], client: false };

/// Creates the missing files in `dir`. Returns the server's files and the path of the CA's certificate.
pub fn dev_tls(dir: &Path) -> Result<(TlsFiles, PathBuf), AuthorityError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed(dir))?;
    let lock_path = dir.join(".lock");
    let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock_path);
    let lock = lock.map_err(failed(&lock_path))?;
    // Held until this function returns; the system releases it when a process dies.
    lock.lock().map_err(failed(&lock_path))?;
    let authority = Authority::open(dir, "Stage0 development CA")?;
    let files = TlsFiles { cert: dir.join("server.pem"), key: dir.join("server.key") };
    authority.issue(&LOCALHOST, &files)?;
    Ok((files, authority.cert().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::authority::DAY;
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::SystemTime;

    #[test]
    fn the_second_start_uses_the_files_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let (files, ca) = dev_tls(dir.path()).unwrap();
        let read = |p: &Path| fs::read_to_string(p).unwrap();
        let first = (read(&files.cert), read(&files.key), read(&ca));
        let (again, _) = dev_tls(dir.path()).unwrap();
        assert_eq!(first, (read(&again.cert), read(&again.key), read(&ca)));
        for key in ["server.key", "ca.key"] {
            assert_eq!(fs::metadata(dir.path().join(key)).unwrap().permissions().mode() & 0o777, 0o600, "{key}");
        }
    }

    #[test]
    fn gateways_may_start_concurrently() {
        let dir = tempfile::tempdir().unwrap();
        let certs: Vec<_> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| dev_tls(dir.path()).map(|(f, _)| fs::read_to_string(f.cert).unwrap()).unwrap()))
                .collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        assert!(certs.iter().all(|cert| *cert == certs[0]));
    }

    #[test]
    fn an_old_certificate_is_renewed_under_the_same_ca() {
        let dir = tempfile::tempdir().unwrap();
        let (files, ca) = dev_tls(dir.path()).unwrap();
        let (cert, authority) = (fs::read(&files.cert).unwrap(), fs::read(&ca).unwrap());
        fs::File::options()
            .append(true)
            .open(&files.cert)
            .unwrap()
            .set_modified(SystemTime::now() - DAY * 301)
            .unwrap();
        dev_tls(dir.path()).unwrap();
        assert_ne!(cert, fs::read(&files.cert).unwrap());
        assert_eq!(authority, fs::read(&ca).unwrap());
    }
}
