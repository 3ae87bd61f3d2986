//! tonic with prost, unary calls on one HTTP/2 connection. Client and service are written out as tonic's generator
//! writes them, so that no protobuf compiler is needed. Windows and streams are large enough for all calls of a run.

use std::convert::Infallible;
use std::future::Ready;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::uri::PathAndQuery;
use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::{NamedService, UnaryService};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::callers::{self, Caller, runtime};
use crate::worker::{Calls, Outcome, Side, Task, say_address};

const WINDOW_BYTES: u32 = 16 << 20;

#[derive(Clone, PartialEq, prost::Message)]
struct Blob {
    #[prost(bytes = "bytes", tag = "1")]
    bytes: Bytes,
}

#[derive(Clone)]
struct Mirror;

impl NamedService for Mirror {
    const NAME: &'static str = "bench.Echo";
}

impl UnaryService<Blob> for Mirror {
    type Response = Blob;
    type Future = Ready<Result<Response<Blob>, Status>>;

    fn call(&mut self, request: Request<Blob>) -> Self::Future {
        std::future::ready(Ok(Response::new(request.into_inner())))
    }
}

impl Service<http::Request<Body>> for Mirror {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let codec = ProstCodec::<Blob, Blob>::default();
            Ok(tonic::server::Grpc::new(codec).unary(Mirror, request).await)
        })
    }
}

pub fn run(task: &Task, calls: Calls) -> Outcome<()> {
    let streams = u32::try_from(2 * calls.in_flight)?;
    runtime()?.block_on(async {
        match task.side {
            Side::Server => {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                say_address(&format!("http://{}", listener.local_addr()?))?;
                let serving = Server::builder()
                    .max_concurrent_streams(streams)
                    .initial_stream_window_size(WINDOW_BYTES)
                    .initial_connection_window_size(WINDOW_BYTES)
                    .add_service(Mirror)
                    .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
                tokio::spawn(serving);
                callers::serve_until_told().await
            }
            Side::Client => {
                let endpoint = Endpoint::from_shared(task.address()?.to_owned())?
                    .tcp_nodelay(true)
                    .buffer_size(2 * calls.in_flight)
                    .initial_stream_window_size(WINDOW_BYTES)
                    .initial_connection_window_size(WINDOW_BYTES);
                let client = tonic::client::Grpc::new(endpoint.connect().await?);
                let bytes = Bytes::from(task.payload());
                callers::run(task, calls, Unary { client, bytes }).await
            }
            Side::Both => Err("tonic has no way inside a process".into()),
        }
    })
}

#[derive(Clone)]
struct Unary {
    client: tonic::client::Grpc<Channel>,
    bytes: Bytes,
}

impl Caller for Unary {
    async fn call(&mut self) -> Outcome<()> {
        self.client.ready().await?;
        let path = PathAndQuery::from_static("/bench.Echo/Bytes");
        let codec = ProstCodec::<Blob, Blob>::default();
        self.client.unary(Request::new(Blob { bytes: self.bytes.clone() }), path, codec).await?;
        Ok(())
    }
}
