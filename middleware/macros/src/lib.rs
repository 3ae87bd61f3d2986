//! `#[service]`: a trait becomes a typed client, a server and a schema.
//!
//! Purpose     the interface definition language of quorate is a Rust trait; there is no second language and no
//!             build script.
//! Guarantee   what the macro does not support is a compile error in the user's words, never silently ignored;
//!             docs and attributes pass through; the generated code needs no import.
//! Limits      `ARGUMENTS_MAX` arguments a method (what serde gives tuples).
//!
//! Use it through `quorate::service`; its page shows what is generated.

mod expand;
mod method;
mod parse;
mod types;

use proc_macro::TokenStream;
use syn::parse_macro_input;

/// Makes a remotely callable service out of a trait of `async fn`s.
///
/// ```text
/// #[quorate::service]
/// pub trait Bank {
///     /// Moves `cents`; executed at most once, however often the request is repeated on the way.
///     async fn transfer(&self, from: u64, to: u64, cents: u64) -> Result<Receipt, BankError>;
///
///     /// Reading twice does no harm, so the server keeps no reply for it.
///     #[idempotent]
///     #[deadline = "2s"]
///     async fn balance(&self, account: u64) -> Result<u64, BankError>;
///
///     /// Returns as soon as the request is on its way; it may be lost, it is never executed twice.
///     #[one_way]
///     async fn note(&self, text: String);
/// }
/// ```
///
/// # What is generated
/// - the trait itself, with every method desugared to `fn x(&self, ..) -> impl Future<Output = ..> + Send` and
///   `Send + Sync + 'static` as supertraits. Implementations are written with plain `async fn`; default methods
///   work.
/// - `BankClient`: `BankClient::connect(&node, "bank", "tcp://host:port").await?`, then the methods by the same
///   names. It is cheap to clone and may be shared by tasks. `BankClient::connect_by_name(&names, "bank")` finds the
///   servers in a directory and keeps to them.
/// - `BankServer`: `node.serve("bank", BankServer::new(my_bank))`.
/// - `BankClient::SCHEMA` and `BankServer::SCHEMA`: names, types, stable ids and the fingerprint.
///
/// # What the types need
/// Arguments, results and errors of your own implement serde's `Serialize` and `Deserialize`. An error that implements
/// `std::error::Error` too can be passed on with `?`: then `RpcError` of it is one as well.
///
/// # Errors of a call
/// A method that returns `Result<T, E>` returns `Result<T, RpcError<E>>` on the client: `RpcError::Application(E)`
/// is the service's own answer, `RpcError::Call(CallError)` says what is known when there is no answer. A method
/// that returns a plain `T` returns `Result<T, CallError>`. There is one `Result` to look through, and the user's
/// error type stays free of the middleware; the alternative (`E: From<CallError>`, the client implementing the
/// trait) was rejected because it forces every application error to carry, and to encode, a case that the server
/// can never return.
///
/// # Attributes of a method
/// - `#[idempotent]`: repeating it does no harm. It is repeated after a server's restart too, and no reply is kept.
///   Without it a call is executed *at most once*.
/// - `#[exactly_once]`: it takes effect once and is answered, over crashes of the server too. The service keeps its
///   effects in a `quorate::rpc::Durable` state and is served with `node.serve_durable`.
/// - `#[one_way]`: no reply; the method must return nothing.
/// - `#[deadline = "2s"]`: how long a caller waits at most (`us`, `ms`, `s`, `min`), unless the client was given a
///   deadline by `with_deadline`.
///
/// # Arguments
/// - `list: &mut T` is copied there and restored: the caller sees what the method made of it, also when it returned an
///   error of its own. Without an answer it stays as it was.
/// - `Vec<u8>` and `Bytes`, as an argument or a result, travel as one run of bytes. Inside other types they are refused:
///   serde would take them element by element; write `quorate::Payload` there.
/// - `#[added] unit: Option<T>`, behind all others, is an argument that the method did not always have. It is sent when it
///   is `Some`; a server that does not know it leaves it alone, and a client that does not know it gives `None`.
///
/// # Deferred calls
/// Beside every method `x` the client has `x_start`: the request has left when it returns, and the `Deferred` that it
/// returns is a future of the result. Call it within a tokio runtime: a handler of the caller's own node that has to wait, and
/// a call through layers of tower, become tasks.
///
/// # Streams
/// `#[streaming]` methods take or return `quorate::rpc::Incoming<T>` and `Outgoing<T>`, the halves of a stream. They have
/// no deadline unless they say one. `Incoming<T>` as an argument is what the caller writes, as a result what the service
/// writes.
///
/// # What cannot travel
/// Borrowed arguments, generics, trait objects, `impl Trait`: a remote process has neither the memory nor the type.
#[proc_macro_attribute]
pub fn service(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let attribute = proc_macro2::TokenStream::from(attribute);
    let item = parse_macro_input!(item as syn::Item);
    parse::service(&attribute, item)
        .map_or_else(|error| error.to_compile_error(), |service| expand::service(&service))
        .into()
}
