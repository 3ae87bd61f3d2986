//! A Unix domain socket as a link.

use std::io;

use tokio::net::UnixStream;

use super::SCHEME;
use crate::address::Address;
use crate::credentials::{Credentials, ProcessCredentials};
use crate::stream;
use crate::transport::Link;

/// The link of who dialled `peer`.
pub(super) fn dialled(stream: UnixStream, peer: &Address) -> io::Result<Link> {
    let process = credentials(&stream)?;
    let here = name(ProcessCredentials { process: i32::try_from(std::process::id()).ok(), ..process });
    Ok(link(stream, process, here, peer.clone()))
}

/// The link that was accepted at `local`. Diallers have no path, so their process is their name.
pub(super) fn accepted(stream: UnixStream, local: &Address) -> io::Result<Link> {
    let process = credentials(&stream)?;
    Ok(link(stream, process, local.clone(), name(process)))
}

fn link(stream: UnixStream, process: ProcessCredentials, local: Address, peer: Address) -> Link {
    let (read, write) = stream.into_split();
    let link = stream::link(read, write, local, peer);
    // Just made, so it is empty.
    let _ = link.credentials.set(Credentials::Process(process));
    link
}

fn credentials(stream: &UnixStream) -> io::Result<ProcessCredentials> {
    let peer = stream.peer_cred()?;
    Ok(ProcessCredentials { user: peer.uid(), group: peer.gid(), process: peer.pid() })
}

/// Not an absolute path, so that nobody dials it.
fn name(process: ProcessCredentials) -> Address {
    let rest = match process.process {
        Some(process) => format!("process-{process}"),
        None => format!("user-{}", process.user),
    };
    match Address::new(SCHEME, &rest) {
        Ok(address) => address,
        Err(error) => unreachable!("a number makes a short printable name: {error}"),
    }
}
