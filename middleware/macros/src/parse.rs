//! From the user's trait to what the generator needs to know; every refusal in the user's words.

use std::time::Duration;

use proc_macro2::TokenStream;
use syn::{
    Attribute, Block, Error, Expr, FnArg, GenericArgument, Ident, Item, ItemTrait, Lit, Meta, Pat,
    PathArguments, Result, ReturnType, TraitItem, TraitItemFn, Type, Visibility,
};

use crate::types::{self, fnv, is_option, is_run_of_bytes, travels, type_text};

/// A service trait, checked.
pub(crate) struct Service {
    pub(crate) attributes: Vec<Attribute>,
    pub(crate) visibility: Visibility,
    pub(crate) name: Ident,
    pub(crate) supertraits: Vec<syn::TypeParamBound>,
    pub(crate) methods: Vec<Method>,
}

/// One method of a service, checked.
pub(crate) struct Method {
    /// The attributes that are not ours.
    pub(crate) attributes: Vec<Attribute>,
    pub(crate) name: Ident,
    pub(crate) arguments: Vec<Argument>,
    pub(crate) output: Output,
    pub(crate) kind: Kind,
    pub(crate) is_streaming: bool,
    /// References travel with it, as its types or `#[references]` say.
    pub(crate) has_references: bool,
    pub(crate) deadline: Option<Duration>,
    pub(crate) default: Option<Block>,
    /// FNV-1a of the name: the same for every build that calls the method so.
    pub(crate) id: u32,
    /// FNV-1a of argument and result types as written, and of what may happen to the request unless it is the default.
    /// Added arguments are not in it.
    pub(crate) signature: u32,
}

impl Method {
    pub(crate) fn passed(&self, passing: Passing) -> impl Iterator<Item = &Argument> {
        self.arguments.iter().filter(move |argument| argument.passing == passing)
    }

    /// What every caller sends.
    pub(crate) fn required(&self) -> impl Iterator<Item = &Argument> {
        self.arguments.iter().filter(|argument| argument.passing != Passing::Added)
    }
}

/// One argument.
pub(crate) struct Argument {
    pub(crate) name: Ident,
    /// What travels, without a reference.
    pub(crate) ty: Type,
    pub(crate) passing: Passing,
}

/// How an argument travels.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passing {
    /// There, by the codec.
    Value,
    /// There, as one run of bytes.
    Run,
    /// There and, when the method is over, back: `&mut T`, copy/restore.
    Restored,
    /// There behind the others, if it is there at all: who does not know it does not see it.
    Added,
}

impl Argument {
    /// Its type as the user wrote it.
    pub(crate) fn text(&self) -> String {
        let reference = if self.passing == Passing::Restored { "&mut " } else { "" };
        format!("{reference}{}", type_text(&self.ty))
    }
}

/// What a method returns.
pub(crate) struct Output {
    pub(crate) whole: Type,
    /// `T` and `E` when it is a `Result<T, E>`.
    pub(crate) fallible: Option<(Type, Type)>,
    /// The result, or its `T`, is a run of bytes.
    pub(crate) is_run: bool,
}

/// What may happen to the request on its way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    AtMostOnce,
    Idempotent,
    OneWay,
    ExactlyOnce,
}

impl Kind {
    /// What the signature says of it: two sides that differ in this must not believe that they agree, for the client
    /// says with each request what may happen to it.
    const fn text(self) -> &'static str {
        match self {
            Self::AtMostOnce => "",
            Self::Idempotent => " idempotent",
            Self::OneWay => " one way",
            Self::ExactlyOnce => " exactly once",
        }
    }
}

/// Checks the whole trait and reports everything that is wrong with it at once.
pub(crate) fn service(attribute: &TokenStream, item: Item) -> Result<Service> {
    let item = match item {
        Item::Trait(item) => item,
        other => return Err(Error::new_spanned(other, "`#[service]` goes on a trait")),
    };
    let mut errors = Errors::default();
    if !attribute.is_empty() {
        errors.add(attribute, "`#[service]` takes no arguments");
    }
    header(&item, &mut errors);
    let mut methods: Vec<Method> = Vec::new();
    for member in &item.items {
        let TraitItem::Fn(function) = member else {
            errors.add(member, "a service holds methods only: no associated types, constants or macros");
            continue;
        };
        let Some(method) = method(function, &mut errors) else { continue };
        if let Some(other) = methods.iter().find(|other| other.id == method.id) {
            let message =
                format!("`{}` and `{}` get the same method id; rename one", other.name, method.name);
            errors.add(&method.name, &message);
        }
        methods.push(method);
    }
    for method in &methods {
        for suffix in ["_start", "_ahead"] {
            let taken = format!("{}{suffix}", method.name);
            if let Some(other) = methods.iter().find(|other| other.name == taken) {
                let message =
                    format!("the client has a method of this name already: it begins `{}`", method.name);
                errors.add(&other.name, &message);
            }
        }
    }
    errors.into_result()?;
    Ok(Service {
        attributes: item.attrs,
        visibility: item.vis,
        name: item.ident,
        supertraits: item.supertraits.into_iter().collect(),
        methods,
    })
}

fn header(item: &ItemTrait, errors: &mut Errors) {
    if let Some(token) = &item.unsafety {
        errors.add(token, "a service cannot be `unsafe`: a remote caller cannot keep its rules");
    }
    if let Some(token) = &item.auto_token {
        errors.add(token, "a service cannot be an `auto` trait");
    }
    if !item.generics.params.is_empty() || item.generics.where_clause.is_some() {
        errors.add(&item.ident, "a service cannot be generic: a remote caller has no type to fill in");
    }
}

fn method(function: &TraitItemFn, errors: &mut Errors) -> Option<Method> {
    let before = errors.count();
    let signature = &function.sig;
    let name = &signature.ident;
    if signature.asyncness.is_none() {
        errors.add(name, &format!("a service method must be `async`: write `async fn {name}(..)`"));
    }
    if signature.unsafety.is_some() || signature.constness.is_some() || signature.abi.is_some() {
        errors.add(name, "a service method cannot be `unsafe`, `const` or `extern`");
    }
    if !signature.generics.params.is_empty() || signature.generics.where_clause.is_some() {
        errors.add(name, "a service method cannot be generic: a remote caller has no type to fill in");
    }
    if RESERVED.contains(&name.to_string().as_str()) {
        errors.add(name, &format!("`{name}` is a method of every generated client; choose another name"));
    }
    receiver(function, errors);
    let arguments = arguments(function, errors);
    let output = output(&signature.output, errors);
    let attributes = attributes(function, &output, errors);
    let any = |holds: fn(&Type) -> bool| {
        arguments.iter().map(|argument| &argument.ty).chain([&output.whole]).any(holds)
    };
    let holds_stream = any(types::holds_stream);
    if errors.count() > before {
        return None;
    }
    let Attributes { kind, is_streaming, has_references, deadline, others: attributes } = attributes;
    let has_references = has_references || any(types::holds_reference);
    if !is_streaming && holds_stream {
        errors.add(name, "streams travel with streaming methods: mark it `#[streaming]`");
        return None;
    }
    let required = arguments.iter().filter(|argument| argument.passing != Passing::Added);
    let types = required.map(Argument::text).collect::<Vec<_>>().join(", ");
    let result = type_text(&output.whole);
    Some(Method {
        id: fnv(&name.to_string()),
        signature: fnv(&format!("({types}) -> {result}{}", kind.text())),
        attributes,
        name: name.clone(),
        arguments,
        output,
        kind,
        is_streaming,
        has_references,
        deadline,
        default: function.default.clone(),
    })
}

fn receiver(function: &TraitItemFn, errors: &mut Errors) {
    match function.sig.inputs.first() {
        Some(FnArg::Receiver(receiver)) => {
            let borrowed = receiver.colon_token.is_none()
                && receiver.reference.as_ref().is_some_and(|(_, lifetime)| lifetime.is_none());
            if receiver.mutability.is_some() {
                errors.add(
                    receiver,
                    "a service method takes `&self`: many callers share the service, keep what changes behind a lock",
                );
            } else if !borrowed {
                errors.add(receiver, "a service method takes `&self`");
            }
        }
        _ => errors.add(&function.sig.ident, "a service method takes `&self` as its first argument"),
    }
}

fn arguments(function: &TraitItemFn, errors: &mut Errors) -> Vec<Argument> {
    let mut arguments = Vec::new();
    for input in &function.sig.inputs {
        let FnArg::Typed(typed) = input else { continue };
        let mut passing = Passing::Value;
        for attribute in &typed.attrs {
            if attribute.path().is_ident("added") && matches!(attribute.meta, Meta::Path(_)) {
                passing = Passing::Added;
            } else {
                errors.add(attribute, "the only attribute of an argument is `#[added]`");
            }
        }
        let ty = match &*typed.ty {
            Type::Reference(reference) if reference.mutability.is_some() && reference.lifetime.is_none() => {
                if passing == Passing::Added {
                    errors.add(
                        &typed.ty,
                        "an added argument does not come back: who does not know it would have to send it",
                    );
                }
                passing = Passing::Restored;
                (*reference.elem).clone()
            }
            ty => ty.clone(),
        };
        if passing == Passing::Value && is_run_of_bytes(&ty) {
            passing = Passing::Run;
        } else {
            travels(&ty, "argument", errors);
        }
        if passing == Passing::Added && !is_option(&ty) {
            errors.add(&ty, "an added argument is an `Option`: an older caller does not send it");
        }
        if passing != Passing::Added
            && arguments.iter().any(|argument: &Argument| argument.passing == Passing::Added)
        {
            errors.add(&typed.pat, "added arguments stand behind all others");
        }
        match &*typed.pat {
            Pat::Ident(pattern)
                if pattern.by_ref.is_none() && pattern.mutability.is_none() && pattern.subpat.is_none() =>
            {
                arguments.push(Argument { name: pattern.ident.clone(), ty, passing });
            }
            other => {
                errors.add(other, "an argument of a service method is a plain name: it is part of the schema")
            }
        }
    }
    if let Some(first) = arguments.get(ARGUMENTS_MAX) {
        let message =
            format!("a service method takes at most {ARGUMENTS_MAX} arguments; put them into a struct");
        errors.add(&first.name, &message);
    }
    arguments
}

fn output(output: &ReturnType, errors: &mut Errors) -> Output {
    let ReturnType::Type(_, whole) = output else {
        return Output { whole: syn::parse_quote!(()), fallible: None, is_run: false };
    };
    let plain = Output { whole: (**whole).clone(), fallible: None, is_run: is_run_of_bytes(whole) };
    if plain.is_run {
        return plain;
    }
    let Type::Path(path) = &**whole else {
        travels(whole, "result", errors);
        return plain;
    };
    let Some(last) = path.path.segments.last().filter(|last| last.ident == "Result") else {
        travels(whole, "result", errors);
        return plain;
    };
    let types: Vec<&Type> = match &last.arguments {
        PathArguments::AngleBracketed(arguments) => arguments
            .args
            .iter()
            .filter_map(|argument| if let GenericArgument::Type(ty) = argument { Some(ty) } else { None })
            .collect(),
        _ => Vec::new(),
    };
    if let [ok, error] = types[..] {
        let is_run = is_run_of_bytes(ok);
        if !is_run {
            travels(ok, "result", errors);
        }
        travels(error, "result", errors);
        return Output { fallible: Some((ok.clone(), error.clone())), is_run, ..plain };
    }
    travels(whole, "result", errors);
    errors.add(whole, "write both types out: `Result<T, E>`; the client needs to know the error");
    plain
}

/// What the attributes of a method say.
struct Attributes {
    kind: Kind,
    is_streaming: bool,
    has_references: bool,
    deadline: Option<Duration>,
    /// Those that are not ours.
    others: Vec<Attribute>,
}

/// Takes our attributes out and leaves the others.
fn attributes(function: &TraitItemFn, output: &Output, errors: &mut Errors) -> Attributes {
    let mut kind = Kind::AtMostOnce;
    let mut is_streaming = false;
    let mut has_references = false;
    let mut deadline = None;
    let mut others = Vec::new();
    for attribute in &function.attrs {
        let Some(name) = attribute.path().get_ident().map(ToString::to_string) else {
            others.push(attribute.clone());
            continue;
        };
        match name.as_str() {
            "idempotent" | "one_way" | "exactly_once" => {
                if !matches!(attribute.meta, Meta::Path(_)) {
                    errors.add(attribute, &format!("`#[{name}]` takes no arguments"));
                }
                if kind != Kind::AtMostOnce {
                    errors.add(
                        attribute,
                        "a method is either `#[idempotent]`, `#[exactly_once]` or `#[one_way]`, and says so once",
                    );
                }
                kind = match name.as_str() {
                    "one_way" => Kind::OneWay,
                    "exactly_once" => Kind::ExactlyOnce,
                    _ => Kind::Idempotent,
                };
            }
            "deadline" => match duration(attribute) {
                Ok(_) if deadline.is_some() => errors.add(attribute, "a method has one deadline"),
                Ok(value) => deadline = Some(value),
                Err(message) => errors.add(attribute, message),
            },
            "at_least_once" => errors.add(attribute, "what may be executed again says `#[idempotent]`"),
            "streaming" => {
                if !matches!(attribute.meta, Meta::Path(_)) {
                    errors.add(attribute, "`#[streaming]` takes no arguments");
                }
                is_streaming = true;
            }
            "references" => {
                if !matches!(attribute.meta, Meta::Path(_)) {
                    errors.add(attribute, "`#[references]` takes no arguments");
                }
                has_references = true;
            }
            "cfg" | "cfg_attr" => {
                errors
                    .add(attribute, "both sides must see the same methods: put `#[cfg]` on the whole trait");
            }
            _ => others.push(attribute.clone()),
        }
    }
    if kind == Kind::OneWay {
        if !matches!(&output.whole, Type::Tuple(tuple) if tuple.elems.is_empty()) {
            errors.add(&function.sig.output, "a one-way method returns nothing: nobody waits for its answer");
        }
        if function.sig.inputs.iter().any(is_restored) {
            errors.add(&function.sig.ident, "a one-way method restores nothing: nobody waits for its answer");
        }
        if deadline.is_some() {
            errors.add(&function.sig.ident, "a one-way method has no deadline: nobody waits for its answer");
        }
    }
    if is_streaming && kind != Kind::AtMostOnce {
        errors.add(
            &function.sig.ident,
            "a streaming method is executed at most once: a stream cannot be read twice",
        );
    }
    Attributes { kind, is_streaming, has_references, deadline, others }
}

fn is_restored(input: &FnArg) -> bool {
    matches!(input, FnArg::Typed(typed) if matches!(&*typed.ty, Type::Reference(ty) if ty.mutability.is_some()))
}

/// Reads `#[deadline = "250ms"]`.
fn duration(attribute: &Attribute) -> std::result::Result<Duration, &'static str> {
    const SHAPE: &str =
        "write a deadline as `#[deadline = \"2s\"]`, with a whole number and `us`, `ms`, `s` or `min`";
    let Meta::NameValue(pair) = &attribute.meta else { return Err(SHAPE) };
    let Expr::Lit(literal) = &pair.value else { return Err(SHAPE) };
    let Lit::Str(text) = &literal.lit else { return Err(SHAPE) };
    let text = text.value();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number: u64 = text[..digits].parse().map_err(|_| SHAPE)?;
    let value = match &text[digits..] {
        "us" => Duration::from_micros(number),
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "min" => Duration::from_secs(number.saturating_mul(60)),
        _ => return Err(SHAPE),
    };
    if value.is_zero() { Err("a deadline of zero would fail every call") } else { Ok(value) }
}

/// All that is wrong with a trait, so that the user mends it in one go.
#[derive(Default)]
pub(crate) struct Errors {
    all: Option<Error>,
    count: usize,
}

impl Errors {
    pub(crate) fn add(&mut self, place: impl quote::ToTokens, message: &str) {
        let error = Error::new_spanned(place, message);
        match &mut self.all {
            Some(all) => all.combine(error),
            None => self.all = Some(error),
        }
        self.count += 1;
    }

    const fn count(&self) -> usize {
        self.count
    }

    fn into_result(self) -> Result<()> {
        self.all.map_or(Ok(()), Err)
    }
}

/// What serde implements for tuples.
const ARGUMENTS_MAX: usize = 16;

/// The methods that every generated client has of its own.
const RESERVED: [&str; 10] = [
    "connect",
    "connect_with",
    "connect_here",
    "connect_by_name",
    "with_deadline",
    "with_semantics",
    "with_metadata",
    "with_layer",
    "server",
    "clone",
];
