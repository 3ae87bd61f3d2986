//! Unix domain sockets: whose file it is, who may connect, and who did.
#![cfg(all(unix, feature = "unix"))]

use std::future::poll_fn;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;

use quorate_transports::unix::{Unix, UnixConfig};
use quorate_transports::{Address, Credentials, Transport, TransportError};

fn place(directory: &tempfile::TempDir, name: &str) -> Address {
    format!("unix://{}/{name}", directory.path().display()).parse().unwrap()
}

#[tokio::test]
async fn t03_a_socket_that_a_dead_process_left_is_replaced_and_a_living_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(&directory, "socket");
    // A killed process leaves its file and its lock's file, but not the lock.
    drop(UnixListener::bind(place.rest()).unwrap());
    std::fs::write(format!("{}.lock", place.rest()), "").unwrap();
    let unix = Unix::new();
    assert!(matches!(unix.connect(&place).await, Err(TransportError::Refused { .. })));
    let listener = unix.listen(&place).await.unwrap();
    assert!(matches!(unix.listen(&place).await.err(), Some(TransportError::InUse { .. })));
    drop(unix.connect(&place).await.unwrap());
    drop(listener);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    // Of a program that knows no locks.
    let _living = UnixListener::bind(place.rest()).unwrap();
    assert!(matches!(unix.listen(&place).await.err(), Some(TransportError::InUse { .. })));
    drop(unix.connect(&place).await.unwrap());
}

#[tokio::test]
async fn t03_a_file_that_is_no_socket_is_not_touched() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(&directory, "letter");
    std::fs::write(place.rest(), "dear reader").unwrap();
    let error = Unix::new().listen(&place).await.err().unwrap();
    assert!(
        matches!(&error, TransportError::BadAddress { reason, .. } if reason == "not a socket"),
        "{error:?}"
    );
    assert_eq!(std::fs::read_to_string(place.rest()).unwrap(), "dear reader");
    for bad in ["unix://relative", "unix://", &format!("unix:///{}", "long/".repeat(60))] {
        let error = Unix::new().listen(&bad.parse().unwrap()).await.err().unwrap();
        assert!(matches!(error, TransportError::BadAddress { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn t03_the_file_has_the_permissions_of_the_settings() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = UnixConfig::default();
    for mode in [0o600, 0o666] {
        config.mode = mode;
        let place = place(&directory, "socket");
        let _listener = Unix::with_config(config.clone()).listen(&place).await.unwrap();
        assert_eq!(std::fs::metadata(place.rest()).unwrap().permissions().mode() & 0o777, mode);
    }
}

#[tokio::test]
async fn t03_both_ends_know_the_process_at_the_other_end() {
    let directory = tempfile::tempdir().unwrap();
    let unix = Unix::new();
    let mut listener = unix.listen(&place(&directory, "*")).await.unwrap();
    let dialled = unix.connect(&listener.local_address()).await.unwrap();
    let accepted = poll_fn(|cx| listener.poll_accept(cx)).await.unwrap();
    let this = i32::try_from(std::process::id()).unwrap();
    for link in [dialled, accepted] {
        let Some(Credentials::Process(process)) = link.credentials.get() else { panic!("{link:?}") };
        assert_eq!(process.process, Some(this));
        assert_eq!(process.user, std::fs::metadata(directory.path()).unwrap().uid());
    }
}
