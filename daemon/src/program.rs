//! The binary: reads its settings, serves until it is told to end.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use quorate::Node;
use tokio::signal::unix::{SignalKind, signal};
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

use crate::config::Config;
use crate::error::StartError;
use crate::superserver::Superserver;

/// Runs the daemon with the arguments of a command line, its name not counted: the path of the settings. Ends with
/// SIGTERM or SIGINT, after it has stopped its processes. Exit status 2 means that the settings are wrong, 1 that it
/// could not start. Logs to standard error; `QUORATE_LOG` may name another level than `info`.
pub fn run(arguments: impl IntoIterator<Item = String>) -> ExitCode {
    let arguments: Vec<String> = arguments.into_iter().collect();
    let [path] = arguments.as_slice() else {
        eprintln!("usage: quorate-superd SETTINGS.toml");
        return ExitCode::from(2);
    };
    let level = std::env::var("QUORATE_LOG").ok().and_then(|text| text.parse().ok()).unwrap_or(Level::INFO);
    // What the connections do is worth a line only when something is wrong.
    let which = Targets::new().with_target("quorate_superd", level).with_default(level.min(Level::WARN));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    // Within another program something else may listen already.
    let _ = tracing_subscriber::registry().with(lines).with(which).try_init();
    match serve(Path::new(path)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quorate-superd: {}", chain(&error));
            ExitCode::from(if matches!(error, StartError::Config(_)) { 2 } else { 1 })
        }
    }
}

fn serve(path: &Path) -> Result<(), StartError> {
    let config = Config::read(path)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut asked = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut node = Node::builder();
        for address in config.check()? {
            node = node.listen(address);
        }
        let node = node.start().await?;
        let superserver = Superserver::start(&node, &config).await?;
        for address in node.addresses() {
            tracing::info!(%address, services = config.service.len(), "serving");
        }
        tokio::select! {
            _ = asked.0.recv() => {}
            _ = asked.1.recv() => {}
        }
        tracing::info!("stopping");
        superserver.shutdown().await;
        node.shutdown(GOODBYE_MAX).await;
        Ok(())
    })
}

/// An error with its sources.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// How long peers may take to say goodbye.
const GOODBYE_MAX: Duration = Duration::from_secs(2);
