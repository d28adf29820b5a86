//! The quick start of the README: `cargo run -p stage0-client --example quickstart`, beside a running `stage0 dev`.
#![allow(clippy::print_stdout, reason = "a program for people")]

use stage0_client::{Action, Client, NotAllowed, RunError};

async fn read_log(path: &str) -> std::io::Result<String> {
    Ok(format!("the content of {path}"))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::from_env()?.with_environment("development");
    let action = Action::new("Read the build log").tool("reader").no_effects();
    match client.run(&action, async |_allowed| read_log("build.log").await).await {
        Ok(log) => println!("{log}"),
        Err(RunError::NotAllowed(NotAllowed::Deferred(deferred))) => println!("a person must say: {deferred}"),
        Err(RunError::NotAllowed(refused)) => println!("{}", refused.advice()),
        Err(RunError::Failed(error)) => println!("it was allowed, ran, and failed: {error}"),
    }
    Ok(())
}
