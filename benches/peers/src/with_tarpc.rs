//! tarpc with its bincode transport: each request is spawned, as its examples do; limits are raised so that all calls of
//! a run fit, TCP_NODELAY is on.

use futures::StreamExt as _;
use serde_bytes::ByteBuf;
use tarpc::server::{BaseChannel, Channel as _};
use tarpc::{client, context, server};
use tokio::net::{TcpListener, TcpStream};
use tokio_serde::formats::Bincode;

use crate::callers::{self, Caller, runtime};
use crate::worker::{Argument, Calls, Outcome, Side, Task, say_address};

#[tarpc::service]
trait Echo {
    async fn bytes(bytes: ByteBuf) -> ByteBuf;
    async fn vector(bytes: Vec<u8>) -> Vec<u8>;
}

#[derive(Clone)]
struct Mirror;

impl Echo for Mirror {
    async fn bytes(self, _: context::Context, bytes: ByteBuf) -> ByteBuf {
        bytes
    }
    async fn vector(self, _: context::Context, bytes: Vec<u8>) -> Vec<u8> {
        bytes
    }
}

pub fn run(task: &Task, calls: Calls) -> Outcome<()> {
    let mut ours = client::Config::default();
    ours.max_in_flight_requests = 2 * calls.in_flight;
    ours.pending_request_buffer = 2 * calls.in_flight;
    let theirs = server::Config { pending_response_buffer: 2 * calls.in_flight };
    runtime()?.block_on(async {
        match task.side {
            Side::Server => {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                say_address(&listener.local_addr()?.to_string())?;
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let transport = tarpc::serde_transport::Transport::from((stream, Bincode::default()));
                serve(BaseChannel::new(theirs, transport));
                callers::serve_until_told().await
            }
            Side::Client => {
                let stream = TcpStream::connect(task.address()?).await?;
                stream.set_nodelay(true)?;
                let transport = tarpc::serde_transport::Transport::from((stream, Bincode::default()));
                drive(task, calls, EchoClient::new(ours, transport).spawn()).await
            }
            Side::Both => {
                let (one, two) = tarpc::transport::channel::bounded(2 * calls.in_flight);
                serve(BaseChannel::new(theirs, two));
                drive(task, calls, EchoClient::new(ours, one).spawn()).await
            }
        }
    })
}

fn serve<T>(channel: BaseChannel<EchoRequest, EchoResponse, T>)
where
    T: tarpc::Transport<tarpc::Response<EchoResponse>, tarpc::ClientMessage<EchoRequest>> + Send + 'static,
    T::Error: Send + Sync,
{
    tokio::spawn(channel.execute(Mirror.serve()).for_each(|response| async {
        tokio::spawn(response);
    }));
}

async fn drive(task: &Task, calls: Calls, client: EchoClient) -> Outcome<()> {
    let bytes = task.payload();
    match calls.argument {
        Argument::Bytes => callers::run(task, calls, WithBytes { client, bytes: bytes.into() }).await,
        Argument::Vector => callers::run(task, calls, WithVector { client, bytes }).await,
    }
}

#[derive(Clone)]
struct WithBytes {
    client: EchoClient,
    bytes: ByteBuf,
}

impl Caller for WithBytes {
    async fn call(&mut self) -> Outcome<()> {
        self.client.bytes(context::current(), self.bytes.clone()).await?;
        Ok(())
    }
}

#[derive(Clone)]
struct WithVector {
    client: EchoClient,
    bytes: Vec<u8>,
}

impl Caller for WithVector {
    async fn call(&mut self) -> Outcome<()> {
        self.client.vector(context::current(), self.bytes.clone()).await?;
        Ok(())
    }
}
