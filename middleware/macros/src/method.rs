//! The code of one method: what the trait declares, what the client does, what the server does.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::Ident;

use crate::parse::{Argument, Kind, Method, Passing};
use crate::types::stub_of_reference;

/// As in the trait, with every `async fn` as a future that is known to be `Send`, which stable Rust cannot say of an
/// `async fn` in a trait.
pub(crate) fn declaration(method: &Method) -> TokenStream {
    let Method { attributes, name, .. } = method;
    let arguments = declarations(method);
    let output = &method.output.whole;
    let body = method.default.as_ref().map_or_else(|| quote!(;), |block| quote!({ async move #block }));
    quote! {
        #(#attributes)*
        fn #name(&self #(, #arguments)*)
            -> impl ::core::future::Future<Output = #output> + ::core::marker::Send
        #body
    }
}

/// The client's methods: the call, and its beginning alone.
pub(crate) fn client(method: &Method, index: usize, twin: &Ident) -> TokenStream {
    let Method { name, .. } = method;
    let attributes: Vec<_> = shared_attributes(method).collect();
    let arguments: Vec<_> = declarations(method).collect();
    let names: Vec<_> = names(method).collect();
    let request = request(method);
    let (ok, error) = returned(method);
    let schema = quote!(&Self::SCHEMA.methods[#index]);
    if method.kind == Kind::OneWay {
        return quote! {
            #(#attributes)*
            pub async fn #name(&self #(, #arguments)*) -> ::core::result::Result<(), ::quorate::rpc::CallError> {
                if let ::core::option::Option::Some(__here) = self.client.open_here(&self.here) {
                    return self.client.tell_here(#schema, || #twin::#name(__here #(, #names)*));
                }
                let __request = #request;
                self.client.call_one_way(#schema, __request).await
            }
        };
    }
    let reply = reply_type(method);
    let opened = opened(method);
    let read = match method.output.fallible {
        Some(_) => quote!(__result.map_err(::quorate::rpc::RpcError::Application)),
        None => quote!(::core::result::Result::Ok(__result)),
    };
    let restored: Vec<_> = method.passed(Passing::Restored).map(|argument| &argument.name).collect();
    if !restored.is_empty() {
        let fresh: Vec<_> = restored.iter().map(|name| format_ident!("__restored_{name}")).collect();
        return quote! {
            #(#attributes)*
            pub async fn #name(&self #(, #arguments)*) -> ::core::result::Result<#ok, #error> {
                let __request = #request;
                let (__result, (#(#fresh,)*)): #reply = self.client.call(#schema, __request).await?;
                #(*#restored = #fresh;)*
                let __result = #opened;
                #read
            }
        };
    }
    let start = format_ident!("{name}_start");
    let about = format!(
        "Begins [`{name}`](Self::{name}): the request has left when this returns, the result is collected later."
    );
    let deprecated = attributes.iter().filter(|attribute| !attribute.path().is_ident("doc"));
    let ahead = ahead(method, index);
    let read_here = match method.output.fallible {
        Some(_) => quote!(::quorate::rpc::generated::application),
        None => quote!(::core::convert::identity),
    };
    quote! {
        #(#attributes)*
        pub async fn #name(&self #(, #arguments)*) -> ::core::result::Result<#ok, #error> {
            if let ::core::option::Option::Some(__here) = self.client.open_here(&self.here) {
                return #read_here(self.client.call_here(#schema, || #twin::#name(__here #(, #names)*)).await);
            }
            let __request = #request;
            let __result: #reply = self.client.call(#schema, __request).await?;
            let __result = #opened;
            #read
        }

        #[doc = #about]
        ///
        /// Must be called within a tokio runtime: a handler of the same node that has to wait becomes a task.
        #(#deprecated)*
        pub fn #start(&self #(, #arguments)*) -> ::quorate::rpc::Deferred<#ok, #error> {
            if let ::core::option::Option::Some(__here) = self.client.open_here(&self.here) {
                return self.client.start_here(#schema, || #twin::#name(__here #(, #names)*), #read_here);
            }
            let __request = #request;
            self.client.start(#schema, __request, |__reply| {
                let __result: #reply = ::quorate::rpc::generated::read::<C, _>(__reply)?;
                let __result = #opened;
                #read
            })
        }

        #ahead
    }
}

/// Of a method that returns a reference: the call whose result can be called before it has come.
fn ahead(method: &Method, index: usize) -> TokenStream {
    let Some(stub) = promised(method) else { return TokenStream::new() };
    let name = format_ident!("{}_ahead", method.name);
    let about = format!(
        "Begins [`{0}`](Self::{0}) and gives the reference that it will return, which can be called at once: what is \
         called ahead leaves without waiting for it.",
        method.name
    );
    let (arguments, request, reply) = (declarations(method), request(method), reply_type(method));
    let (_, error) = returned(method);
    let read = match method.output.fallible {
        Some(_) => quote!(__result.map_err(::quorate::rpc::RpcError::Application)),
        None => quote!(::core::result::Result::Ok(__result)),
    };
    quote! {
        #[doc = #about]
        pub fn #name(&self #(, #arguments)*) -> ::quorate::rpc::Promised<#stub, #error> {
            let __request = #request;
            self.client.promise(Self::SCHEMA.service, &Self::SCHEMA.methods[#index], __request, |__reply| {
                let __result: #reply = ::quorate::rpc::generated::read::<C, _>(__reply)?;
                #read
            })
        }
    }
}

/// The stub of the reference that the method returns, if it returns one and may be called ahead.
fn promised(method: &Method) -> Option<&syn::Type> {
    if !matches!(method.kind, Kind::AtMostOnce | Kind::Idempotent) || method.is_streaming {
        return None;
    }
    let returned = method.output.fallible.as_ref().map_or(&method.output.whole, |(ok, _)| ok);
    stub_of_reference(returned)
}

/// The method as an object without generics offers it to callers of the same process. `None` when it is called by
/// messages there too, because its arguments must be copied.
pub(crate) fn here(method: &Method, service: &Ident) -> Option<(TokenStream, TokenStream)> {
    if method.passed(Passing::Restored).next().is_some() {
        return None;
    }
    let Method { name, .. } = method;
    let arguments: Vec<_> = declarations(method).collect();
    let names = names(method);
    let output = &method.output.whole;
    let signature = quote! {
        fn #name(&self #(, #arguments)*)
            -> ::core::option::Option<::quorate::rpc::generated::Boxed<#output>>
    };
    let body = quote! {
        #signature {
            let __service = ::std::sync::Weak::upgrade(&self.0)?;
            // Named by its trait: a method may be called like one of `Arc`.
            ::core::option::Option::Some(::std::boxed::Box::pin(async move {
                <S as #service>::#name(&*__service #(, #names)*).await
            }))
        }
    };
    Some((quote!(#signature;), body))
}

/// The arm of the server's table.
pub(crate) fn arm(method: &Method, service: &Ident) -> TokenStream {
    let Method { name, id, .. } = method;
    let patterns = method.required().map(|argument| {
        let name = &argument.name;
        if argument.passing == Passing::Restored { quote!(mut #name) } else { quote!(#name) }
    });
    let types = method.required().map(carried_type);
    let passed = method.arguments.iter().map(|argument| {
        let name = &argument.name;
        match argument.passing {
            Passing::Value | Passing::Added => quote!(#name),
            Passing::Run => quote!(#name.0),
            Passing::Restored => quote!(&mut #name),
        }
    });
    let added: Vec<_> = method.passed(Passing::Added).map(|argument| &argument.name).collect();
    let take_added = (!added.is_empty()).then(|| {
        quote! {
            let mut __added = __added;
            #(
                let ::core::result::Result::Ok(#added) = ::quorate::rpc::generated::take_added::<C, _>(&mut __added)
                else {
                    return ::quorate::rpc::generated::malformed();
                };
            )*
        }
    });
    let carried = match (&method.output.fallible, method.output.is_run) {
        (None, false) | (Some(_), false) => quote!(__result),
        (None, true) => quote!(::quorate::rpc::generated::Run(__result)),
        (Some(_), true) => quote!(__result.map(::quorate::rpc::generated::Run)),
    };
    let restored: Vec<_> = method.passed(Passing::Restored).map(|argument| &argument.name).collect();
    let answer = if restored.is_empty() { carried } else { quote!((#carried, (#(#restored,)*))) };
    quote! {
        #id => {
            #take_added
            ::quorate::rpc::generated::handle::<C, _, _, _>(
                __request,
                // Named by its trait: a method may be called like one of `Arc`.
                move |(#(#patterns,)*): (#(#types,)*)| async move {
                    let __result = <S as #service>::#name(&*__service #(, #passed)*).await;
                    #answer
                },
            )
        }
    }
}

/// `T` and the error of what the client's method returns.
fn returned(method: &Method) -> (TokenStream, TokenStream) {
    match &method.output.fallible {
        Some((ok, error)) => (quote!(#ok), quote!(::quorate::rpc::RpcError<#error>)),
        None => {
            let ty = &method.output.whole;
            (quote!(#ty), quote!(::quorate::rpc::CallError))
        }
    }
}

/// The arguments, encoded.
fn request(method: &Method) -> TokenStream {
    let required = method.required().map(|argument| {
        let name = &argument.name;
        match argument.passing {
            Passing::Run => quote!(::quorate::rpc::generated::Run(&#name)),
            Passing::Restored => quote!(&*#name),
            Passing::Value | Passing::Added => quote!(&#name),
        }
    });
    let encode =
        if method.is_streaming || method.has_references { quote!(encode_streaming) } else { quote!(encode) };
    let required = quote!(self.client.#encode(&(#(#required,)*)));
    let added: Vec<_> = method.passed(Passing::Added).map(|argument| &argument.name).collect();
    if added.is_empty() {
        return required;
    }
    quote! {
        #required.and_then(|__request| {
            if #(#added.is_none())&&* {
                return ::core::result::Result::Ok(__request);
            }
            let mut __added = ::quorate::rpc::generated::Added::behind(__request);
            #(__added.put::<C, _>(&#added)?;)*
            ::core::result::Result::Ok(__added.end())
        })
    }
}

/// What travels back.
fn reply_type(method: &Method) -> TokenStream {
    let run = |ty: TokenStream| {
        if method.output.is_run { quote!(::quorate::rpc::generated::Run<#ty>) } else { ty }
    };
    let result = match &method.output.fallible {
        Some((ok, error)) => {
            let ok = run(quote!(#ok));
            quote!(::core::result::Result<#ok, #error>)
        }
        None => {
            let whole = &method.output.whole;
            run(quote!(#whole))
        }
    };
    let mut restored = method.passed(Passing::Restored).map(|argument| &argument.ty).peekable();
    if restored.peek().is_none() {
        return result;
    }
    quote!((#result, (#(#restored,)*)))
}

/// `__result` as the user knows it.
fn opened(method: &Method) -> TokenStream {
    match (&method.output.fallible, method.output.is_run) {
        (_, false) => quote!(__result),
        (None, true) => quote!(__result.0),
        (Some(_), true) => quote!(__result.map(|__run| __run.0)),
    }
}

fn carried_type(argument: &Argument) -> TokenStream {
    let ty = &argument.ty;
    if argument.passing == Passing::Run { quote!(::quorate::rpc::generated::Run<#ty>) } else { quote!(#ty) }
}

fn names(method: &Method) -> impl Iterator<Item = &Ident> {
    method.arguments.iter().map(|argument| &argument.name)
}

fn declarations(method: &Method) -> impl Iterator<Item = TokenStream> + '_ {
    method.arguments.iter().map(|argument| {
        let (name, ty) = (&argument.name, &argument.ty);
        if argument.passing == Passing::Restored { quote!(#name: &mut #ty) } else { quote!(#name: #ty) }
    })
}

/// What a reader of the client should see too.
fn shared_attributes(method: &Method) -> impl Iterator<Item = &syn::Attribute> {
    const SHARED: [&str; 5] = ["doc", "deprecated", "must_use", "allow", "expect"];
    method.attributes.iter().filter(|attribute| SHARED.iter().any(|name| attribute.path().is_ident(name)))
}
