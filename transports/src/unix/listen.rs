//! Accepting connections on a Unix domain socket, and the life of its file.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::task::{Context, Poll, ready};

use socket2::{Domain, SockAddr, Socket, Type};

use super::config::UnixConfig;
use super::{io_error, link, path_of};
use crate::address::Address;
use crate::error::TransportError;
use crate::transport::{Link, Listener};

pub(super) struct UnixListener {
    listener: tokio::net::UnixListener,
    address: Address,
    /// Dropped after the listener: the files go while nobody can listen there.
    _place: Place,
}

impl UnixListener {
    pub(super) fn open(config: &UnixConfig, asked: &Address) -> Result<Self, TransportError> {
        let address = choose(asked)?;
        let place = Place::take(Path::new(path_of(&address)?)).map_err(|error| taken(&address, error))?;
        match listen(config, &place.path) {
            Ok(listener) => Ok(Self { listener, address, _place: place }),
            Err(error) => Err(io_error(&address, error)),
        }
    }
}

impl Listener for UnixListener {
    fn local_address(&self) -> Address {
        self.address.clone()
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Link, TransportError>> {
        loop {
            let (stream, _) = match ready!(self.listener.poll_accept(cx)) {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => return Poll::Ready(Err(io_error(&self.address, error))),
            };
            match link::accepted(stream, &self.address) {
                Ok(link) => return Poll::Ready(Ok(link)),
                // The dialler went away before it was accepted.
                Err(error) if error.kind() == ErrorKind::NotConnected => {}
                Err(error) => return Poll::Ready(Err(io_error(&self.address, error))),
            }
        }
    }
}

fn listen(config: &UnixConfig, path: &Path) -> io::Result<tokio::net::UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    // Before anybody can connect.
    fs::set_permissions(path, Permissions::from_mode(config.mode))?;
    socket.listen(config.backlog_max.max(1))?;
    tokio::net::UnixListener::from_std(socket.into())
}

/// A path that belongs to this listener while the lock is held.
struct Place {
    path: PathBuf,
    lock_path: PathBuf,
    /// Closing it frees the lock.
    _lock: File,
}

impl Place {
    fn take(path: &Path) -> io::Result<Self> {
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock_path = PathBuf::from(lock_path);
        let lock = loop {
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(ErrorKind::AddrInUse.into()),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // The one who held it may have removed it between the two calls: then this is the lock of nothing.
            match fs::metadata(&lock_path) {
                Ok(there) if there.ino() == file.metadata()?.ino() => break file,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        };
        let place = Self { path: path.to_owned(), lock_path, _lock: lock };
        match fs::symlink_metadata(path) {
            Ok(file) if file.file_type().is_socket() => {
                if let Err(error) = check_stale(path) {
                    return Err(place.leave(error));
                }
                fs::remove_file(path)?;
                tracing::debug!(path = %path.display(), "replaced the socket that a dead process had left");
            }
            Ok(_) => return Err(place.leave(io::Error::new(ErrorKind::AlreadyExists, "not a socket"))),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(place.leave(error)),
        }
        Ok(place)
    }

    /// Gives the lock up and leaves what stands at the path alone.
    fn leave(mut self, error: io::Error) -> io::Error {
        self.path.clear();
        error
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // While the lock is held: what stands there is ours, or nothing.
        if !self.path.as_os_str().is_empty() {
            let _ = fs::remove_file(&self.path);
        }
        let _ = fs::remove_file(&self.lock_path);
    }
}

/// The lock is ours, but perhaps somebody listens who knows nothing of locks.
fn check_stale(path: &Path) -> io::Result<()> {
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
        // Accepted, or the backlog is full: somebody is there.
        _ => Err(ErrorKind::AddrInUse.into()),
    }
}

fn choose(asked: &Address) -> Result<Address, TransportError> {
    let path = path_of(asked)?;
    let Some(start) = path.strip_suffix('*') else { return Ok(asked.clone()) };
    // Sixty-four random bits; whoever has the name already keeps it, and this is an error.
    let fresh = RandomState::new().hash_one("a name that nobody has");
    Address::new(asked.scheme(), &format!("{start}{fresh:016x}"))
        .map_err(|error| TransportError::BadAddress { address: asked.clone(), reason: error.to_string() })
}

fn taken(address: &Address, error: io::Error) -> TransportError {
    match error.kind() {
        // No such directory, or a file that must not be replaced.
        ErrorKind::NotFound | ErrorKind::AlreadyExists => {
            TransportError::BadAddress { address: address.clone(), reason: error.to_string() }
        }
        _ => io_error(address, error),
    }
}
