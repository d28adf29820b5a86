//! Names to addresses.
//!
//! Owns the question alone: its time limit and the judgement of the answer are the egress's. The system's resolver blocks a thread
//! of the runtime's pool until it gives up by itself, also when nobody waits any more; the number of attempts at once bounds that.

use std::fmt;
use std::io;
use std::net::IpAddr;

/// Who is asked for a host's addresses.
pub enum Resolver {
    /// The system: its hosts file and its name servers.
    System,
    /// A function, for a test of names that move.
    Scripted(Box<Script>),
}

/// The addresses of a name, as of this call.
pub type Script = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

impl Resolver {
    pub(super) async fn look_up(&self, name: &str, port: u16) -> io::Result<Vec<IpAddr>> {
        match self {
            Self::System => Ok(tokio::net::lookup_host((name, port)).await?.map(|address| address.ip()).collect()),
            Self::Scripted(script) => script(name),
        }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::System => "System",
            Self::Scripted(_) => "Scripted",
        })
    }
}
