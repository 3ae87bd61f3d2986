//! Tests that break a real network: a test runs itself again inside a network namespace of its own.
//!
//! Limits      Linux. Where the system forbids namespaces, the test says so and is skipped.

use std::future::Future;
use std::process::Command;

const INSIDE: &str = "QUORATE_TEST_INSIDE_NAMESPACE";

/// Runs a scenario in a namespace of its own, where the loopback interface is the only link; `test` is the name of the test
/// that calls this, with the modules that it stands in.
///
/// # Panics
/// When the scenario does, or the system has no `unshare` or `ip` that does what it says.
pub fn in_namespace(test: &str, scenario: impl Future<Output = ()>) {
    if std::env::var_os(INSIDE).is_some() {
        ip(&["link", "set", "lo", "up"]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(scenario);
    }
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net"]);
        command
    };
    match unshare().args(["ip", "link", "set", "lo", "up"]).output() {
        Ok(probe) if probe.status.success() => {}
        Ok(probe) => return println!("{test} skipped: {}", String::from_utf8_lossy(&probe.stderr)),
        Err(error) => return println!("{test} skipped: no unshare: {error}"),
    }
    let this = std::env::current_exe().unwrap();
    let status =
        unshare().arg(this).args([test, "--exact", "--nocapture"]).env(INSIDE, "1").status().unwrap();
    assert!(status.success(), "{test} failed in its namespace: {status}");
}

/// Changes the network of this namespace.
///
/// # Panics
/// When `ip` refuses.
pub fn ip(arguments: &[&str]) {
    if let Err(refused) = try_ip(arguments) {
        panic!("ip {arguments:?}: {refused}");
    }
}

/// Changes the network of this namespace, where the system may not have what it takes.
///
/// # Errors
/// What `ip` says.
pub fn try_ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| error.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}
