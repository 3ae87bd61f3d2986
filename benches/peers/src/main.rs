//! The peers' side of the comparisons. `peers list` says who is built in; otherwise one [`Task`] is done.

#[cfg(any(feature = "tarpc", feature = "tonic"))]
#[path = "../../src/callers.rs"]
mod callers;
#[cfg(feature = "libzmq")]
mod libzmq;
#[cfg(feature = "nng")]
mod nng;
#[cfg(feature = "tarpc")]
mod with_tarpc;
#[cfg(feature = "tonic")]
mod with_tonic;
#[path = "../../src/worker.rs"]
mod worker;
#[cfg(feature = "zenoh")]
mod zenoh;
#[cfg(feature = "zmq-rs")]
mod zmq_rs;

use worker::{Outcome, Task};

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.peek().is_some_and(|first| first == "list") {
        #[cfg(feature = "libzmq")]
        println!("libzmq {}", libzmq::version());
        #[cfg(feature = "zmq-rs")]
        println!("zmq.rs {}", locked("zeromq"));
        #[cfg(feature = "nng")]
        println!("nng {}", locked("nng-sys"));
        #[cfg(feature = "zenoh")]
        println!("zenoh {}", locked("zenoh"));
        #[cfg(feature = "tarpc")]
        println!("tarpc {}", locked("tarpc"));
        #[cfg(feature = "tonic")]
        println!("tonic {}", locked("tonic"));
        return Ok(());
    }
    let task = Task::from_arguments(arguments)?;
    match task.rival.as_str() {
        #[cfg(feature = "libzmq")]
        "libzmq" => libzmq::run(&task),
        #[cfg(feature = "zmq-rs")]
        "zmq.rs" => zmq_rs::run(&task),
        #[cfg(feature = "nng")]
        "nng" => nng::run(&task),
        #[cfg(feature = "zenoh")]
        "zenoh" => zenoh::run(&task),
        #[cfg(feature = "tarpc")]
        "tarpc" => with_tarpc::run(&task, calls(&task)?),
        #[cfg(feature = "tonic")]
        "tonic" => with_tonic::run(&task, calls(&task)?),
        other => Err(format!("{other} is not built in").into()),
    }
}

#[cfg(any(feature = "tarpc", feature = "tonic"))]
fn calls(task: &Task) -> Outcome<worker::Calls> {
    let worker::Kind::Calls(calls) = task.kind else { return Err("it only answers calls".into()) };
    Ok(calls)
}

/// The version of a dependency, from the lock file.
fn locked(name: &str) -> &'static str {
    let lock = include_str!("../Cargo.lock");
    let entry = lock.split("[[package]]").find(|entry| entry.contains(&format!("name = \"{name}\"\n")));
    entry.and_then(|entry| entry.split('"').nth(3)).unwrap_or("of unknown version")
}

#[cfg(any(feature = "zmq-rs", feature = "zenoh"))]
fn runtime() -> Outcome<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// An address that is free now, for peers that cannot tell which port the system chose for them.
#[cfg(any(feature = "nng", feature = "zenoh"))]
fn free_address() -> Outcome<std::net::SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
