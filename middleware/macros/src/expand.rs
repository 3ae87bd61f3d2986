//! From a checked service to code: trait, client, server, schema. Every path is absolute, so that nothing needs an
//! import.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;

use crate::method;
use crate::parse::{Kind, Method, Passing, Service};
use crate::types::{fnv, is_run_of_bytes, type_text};

pub(crate) fn service(service: &Service) -> TokenStream {
    let contract = contract(service);
    let client = client(service);
    let server = server(service);
    let travelling = travelling(service);
    quote! { #contract #client #server #travelling }
}

/// The user's trait; `async fn` becomes a future that is known to be `Send`, which stable Rust cannot say of an
/// `async fn` in a trait.
fn contract(service: &Service) -> TokenStream {
    let Service { attributes, visibility, name, supertraits, .. } = service;
    let methods = service.methods.iter().map(method::declaration);
    quote! {
        #(#attributes)*
        #visibility trait #name: ::core::marker::Send + ::core::marker::Sync + 'static #(+ #supertraits)* {
            #(#methods)*
        }
    }
}

fn client(service: &Service) -> TokenStream {
    let Service { visibility, name, .. } = service;
    let client = format_ident!("{name}Client");
    let schema = schema(service);
    let exactly_once = service.methods.iter().any(|method| method.kind == Kind::ExactlyOnce);
    let about = format!("Calls a [`{name}`] that another process serves.");
    let details = "Cheap to clone; clones share one session with the server. A call is sent when its future is \
                   first polled; dropping the future cancels the call.";
    let schema_about = format!("Names, types and stable ids of [`{name}`].");
    let here = format_ident!("__{name}Here");
    let methods =
        service.methods.iter().enumerate().map(|(index, method)| method::client(method, index, &here));
    quote! {
        #[doc = #about]
        #[doc = ""]
        #[doc = #details]
        #[allow(dead_code, reason = "a process calls or serves, seldom both")]
        #visibility struct #client<C: ::quorate::codec::Codec = ::quorate::codec::Postcard> {
            client: ::quorate::rpc::Client<C>,
            /// The service itself, when it is served by the very node of the caller.
            here: ::core::option::Option<::std::sync::Arc<dyn #here>>,
        }

        #[allow(dead_code, reason = "a process calls or serves, seldom both")]
        impl #client {
            /// Binds to the service called `name` on the node at `address`, with the default codec and options.
            ///
            /// # Errors
            /// [`BindError`](::quorate::rpc::BindError), at once, saying what was tried.
            pub async fn connect(
                node: &::quorate::node::Node,
                name: &str,
                address: impl ::quorate::rpc::IntoPlace,
            ) -> ::core::result::Result<Self, ::quorate::rpc::BindError> {
                Self::connect_with(node, name, address, ::quorate::rpc::ClientOptions::default()).await
            }

            /// Binds to the service called `name` on the caller's own node, which need not listen anywhere.
            ///
            /// # Errors
            /// [`BindError`](::quorate::rpc::BindError), at once.
            pub async fn connect_here(
                node: &::quorate::node::Node,
                name: &str,
            ) -> ::core::result::Result<Self, ::quorate::rpc::BindError> {
                let options = ::quorate::rpc::ClientOptions::default();
                Self::connect_with(node, name, ::quorate::rpc::Here, options).await
            }

            /// Binds to every server that is registered under `name` in the directory, and keeps to who is there; see
            /// [`Bound`](::quorate::naming::Bound). Its `call` makes a call with the next one.
            ///
            /// # Errors
            /// [`BoundError`](::quorate::naming::BoundError).
            pub async fn connect_by_name(
                names: &::quorate::naming::Names,
                name: &str,
            ) -> ::core::result::Result<::quorate::naming::Bound<Self>, ::quorate::naming::BoundError> {
                ::quorate::naming::Bound::connect(names, name, ::core::default::Default::default()).await
            }
        }

        #[allow(dead_code, reason = "a process calls or serves, seldom both")]
        impl<C: ::quorate::codec::Codec> #client<C> {
            #[doc = #schema_about]
            pub const SCHEMA: &'static ::quorate::rpc::Schema = &#schema;

            /// Binds to the service called `name` on the node at `address`, with a codec of the caller's choice.
            ///
            /// # Errors
            /// [`BindError`](::quorate::rpc::BindError), at once, saying what was tried.
            pub async fn connect_with(
                node: &::quorate::node::Node,
                name: &str,
                address: impl ::quorate::rpc::IntoPlace,
                mut options: ::quorate::rpc::ClientOptions,
            ) -> ::core::result::Result<Self, ::quorate::rpc::BindError> {
                options.exactly_once |= #exactly_once;
                let client = ::quorate::rpc::Client::connect(node, name, address, options).await?;
                let here = client.service_here();
                ::core::result::Result::Ok(Self { client, here })
            }

            /// The same client with another deadline for its calls, before what methods declare.
            #[must_use]
            pub fn with_deadline(&self, deadline: ::core::time::Duration) -> Self {
                let here = ::core::clone::Clone::clone(&self.here);
                Self { client: self.client.with_deadline(deadline), here }
            }

            /// The same client with other semantics for its calls than its methods declare; see
            /// [`Client::with_semantics`](::quorate::rpc::Client::with_semantics).
            #[must_use]
            pub fn with_semantics(&self, semantics: ::quorate::rpc::Semantics) -> Self {
                let here = ::core::clone::Clone::clone(&self.here);
                Self { client: self.client.with_semantics(semantics), here }
            }

            /// The same client whose calls carry this beside their arguments; see
            /// [`Client::with_metadata`](::quorate::rpc::Client::with_metadata).
            #[must_use]
            pub fn with_metadata(&self, metadata: ::quorate::rpc::Metadata) -> Self {
                let here = ::core::clone::Clone::clone(&self.here);
                Self { client: self.client.with_metadata(metadata), here }
            }

            /// The untyped client below: whom it is bound to, its totals.
            pub fn server(&self) -> &::quorate::rpc::Client<C> {
                &self.client
            }

            ::quorate::__with_tower! {
                /// The same client whose calls go through a layer of tower; see
                /// [`Client::with_layer`](::quorate::rpc::Client::with_layer).
                #[must_use]
                pub fn with_layer(&self, layer: &impl ::quorate::rpc::tower::ClientLayer) -> Self {
                    let here = ::core::clone::Clone::clone(&self.here);
                    Self { client: self.client.with_layer(layer), here }
                }
            }

            #(#methods)*
        }

        impl<C: ::quorate::codec::Codec> ::quorate::rpc::Candidate for #client<C> {
            async fn bind(
                node: &::quorate::node::Node,
                name: &str,
                place: ::quorate::rpc::Place,
                options: ::quorate::rpc::ClientOptions,
            ) -> ::core::result::Result<Self, ::quorate::rpc::BindError> {
                Self::connect_with(node, name, place, options).await
            }

            async fn wait_unreachable(&self) {
                self.client.wait_unreachable().await;
            }

            fn node(&self) -> ::quorate::node::NodeId {
                self.client.node()
            }

            fn in_flight(&self) -> u32 {
                self.client.outstanding()
            }

            fn requests_sent(&self) -> u64 {
                self.client.requests_sent()
            }

            fn is_reachable(&self) -> bool {
                self.client.is_reachable()
            }
        }

        impl<C: ::quorate::codec::Codec> ::quorate::rpc::Stub for #client<C> {
            type Codec = C;

            fn by(client: ::quorate::rpc::Client<C>) -> Self {
                let here = client.service_here();
                Self { client, here }
            }

            fn client(&self) -> &::quorate::rpc::Client<C> {
                &self.client
            }
        }

        impl<C: ::quorate::codec::Codec> ::core::clone::Clone for #client<C> {
            fn clone(&self) -> Self {
                Self {
                    client: ::core::clone::Clone::clone(&self.client),
                    here: ::core::clone::Clone::clone(&self.here),
                }
            }
        }
    }
}

fn server(service: &Service) -> TokenStream {
    let Service { visibility, name, .. } = service;
    let client = format_ident!("{name}Client");
    let server = format_ident!("{name}Server");
    let about = format!("Lets other processes call a [`{name}`]: give it to `node.serve(name, ..)`.");
    let schema_about = format!("Names, types and stable ids of [`{name}`].");
    let arms = service.methods.iter().map(|method| method::arm(method, name));
    let (here, hosted) = (format_ident!("__{name}Here"), format_ident!("__{name}Hosted"));
    let (signatures, bodies): (Vec<_>, Vec<_>) =
        service.methods.iter().filter_map(|method| method::here(method, name)).unzip();
    quote! {
        #[allow(dead_code, reason = "a process calls or serves, seldom both")]
        trait #here: ::core::marker::Send + ::core::marker::Sync {
            #(#signatures)*
        }

        #[allow(dead_code, reason = "a process calls or serves, seldom both")]
        struct #hosted<S>(::std::sync::Weak<S>);

        impl<S: #name> #here for #hosted<S> {
            #(#bodies)*
        }

        #[doc = #about]
        #[allow(dead_code, reason = "a process calls or serves, seldom both")]
        #visibility struct #server<S, C: ::quorate::codec::Codec = ::quorate::codec::Postcard> {
            service: ::std::sync::Arc<S>,
            codec: ::core::marker::PhantomData<fn() -> C>,
        }

        #[allow(dead_code, reason = "a process calls or serves, seldom both")]
        impl<S: #name> #server<S> {
            #[doc = #schema_about]
            pub const SCHEMA: &'static ::quorate::rpc::Schema = #client::<::quorate::codec::Postcard>::SCHEMA;

            /// Serves `service` with the default codec.
            pub fn new(service: S) -> Self {
                Self::shared(::std::sync::Arc::new(service))
            }

            /// Serves a `service` that the caller goes on using.
            pub fn shared(service: ::std::sync::Arc<S>) -> Self {
                Self { service, codec: ::core::marker::PhantomData }
            }

            /// Serves with a codec of the caller's choice; clients must use the same.
            pub fn with_codec<C: ::quorate::codec::Codec>(self) -> #server<S, C> {
                #server { service: self.service, codec: ::core::marker::PhantomData }
            }
        }

        impl<S: #name, C: ::quorate::codec::Codec> ::quorate::rpc::Skeleton for #server<S, C> {
            type Stub = #client<C>;
        }

        impl<S: #name, C: ::quorate::codec::Codec> ::quorate::rpc::Service for #server<S, C> {
            fn schema(&self) -> &'static ::quorate::rpc::Schema {
                #client::<C>::SCHEMA
            }

            fn codec(&self) -> u8 {
                C::ID
            }

            fn here(&self) -> ::quorate::rpc::generated::AnyService {
                let here: ::std::sync::Arc<dyn #here> =
                    ::std::sync::Arc::new(#hosted(::std::sync::Arc::downgrade(&self.service)));
                ::std::boxed::Box::new(here)
            }

            fn dispatch(
                &self,
                method: u32,
                __request: ::quorate::rpc::generated::Bytes,
                __added: ::quorate::rpc::generated::Bytes,
            ) -> ::quorate::rpc::generated::Dispatched {
                let __service = ::std::sync::Arc::clone(&self.service);
                match method {
                    #(#arms)*
                    _ => ::quorate::rpc::generated::no_such_method(),
                }
            }
        }
    }
}

/// Says of every type, at its own place, when it has no serde.
fn travelling(service: &Service) -> TokenStream {
    let types = service.methods.iter().flat_map(|method| {
        let results = match &method.output.fallible {
            Some((ok, error)) => vec![ok, error],
            None => vec![&method.output.whole],
        };
        let arguments = method.arguments.iter().filter(|argument| argument.passing != Passing::Run);
        let results = results.into_iter().filter(|ty| !is_run_of_bytes(ty));
        arguments.map(|argument| &argument.ty).chain(results)
    });
    let checks = types.map(|ty| quote_spanned!(ty.span()=> ::quorate::rpc::generated::travels::<#ty>();));
    quote! {
        const _: fn() = || { #(#checks)* };
    }
}

fn schema(service: &Service) -> TokenStream {
    let name = service.name.to_string();
    let mut text = name.clone();
    let methods = service.methods.iter().map(|method| {
        let Method { id, signature, .. } = method;
        let name = method.name.to_string();
        let arguments = method.arguments.iter().map(|argument| {
            let name = argument.name.to_string();
            let ty = argument.text();
            let is_added = argument.passing == Passing::Added;
            quote!(::quorate::rpc::ArgumentSchema { name: #name, ty: #ty, is_added: #is_added })
        });
        let result = type_text(&method.output.whole);
        let Method { is_streaming, has_references, .. } = method;
        let (kind, word) = match method.kind {
            Kind::AtMostOnce => (quote!(AtMostOnce), "at most once"),
            Kind::Idempotent => (quote!(Idempotent), "idempotent"),
            Kind::OneWay => (quote!(OneWay), "one way"),
            Kind::ExactlyOnce => (quote!(ExactlyOnce), "exactly once"),
        };
        let deadline = method.deadline.map_or_else(
            || quote!(::core::option::Option::None),
            |deadline| {
                let (seconds, nanos) = (deadline.as_secs(), deadline.subsec_nanos());
                quote!(::core::option::Option::Some(::core::time::Duration::new(#seconds, #nanos)))
            },
        );
        // Deadlines are the caller's business: they change nothing between the two sides.
        text.push_str(&format!("|{name}:{id:08x}:{signature:08x}:{word}"));
        quote! {
            ::quorate::rpc::MethodSchema {
                name: #name,
                id: #id,
                signature: #signature,
                arguments: &[#(#arguments),*],
                result: #result,
                semantics: ::quorate::rpc::Semantics::#kind,
                is_streaming: #is_streaming,
                has_references: #has_references,
                deadline: #deadline,
            }
        }
    });
    let methods: Vec<_> = methods.collect();
    let reversed: String = text.chars().rev().collect();
    let fingerprint = u64::from(fnv(&text)) << 32 | u64::from(fnv(&reversed));
    quote! {
        ::quorate::rpc::Schema { service: #name, fingerprint: #fingerprint, methods: &[#(#methods),*] }
    }
}
