//! What the types of arguments and results say: whether they can travel, and how.

use syn::{GenericArgument, PathArguments, Type};

use crate::parse::Errors;

/// Refuses types that have no meaning in another process.
pub(crate) fn travels(ty: &Type, what: &str, errors: &mut Errors) {
    match ty {
        Type::Reference(_) => errors.add(
            ty,
            &format!(
                "a borrowed {what} cannot travel to another process: use an owned type (`String` for `&str`)"
            ),
        ),
        Type::Ptr(_) | Type::BareFn(_) => {
            errors.add(ty, "a pointer cannot travel to another process");
        }
        Type::ImplTrait(_) | Type::TraitObject(_) => {
            errors.add(
                ty,
                &format!("a trait cannot travel to another process: name the concrete type of the {what}"),
            );
        }
        Type::Infer(_) => errors.add(ty, &format!("name the type of the {what}")),
        Type::Array(array) => travels(&array.elem, what, errors),
        Type::Slice(slice) => travels(&slice.elem, what, errors),
        Type::Paren(inner) => travels(&inner.elem, what, errors),
        Type::Group(inner) => travels(&inner.elem, what, errors),
        Type::Tuple(tuple) => tuple.elems.iter().for_each(|element| travels(element, what, errors)),
        Type::Path(path) => {
            if path.path.is_ident("Self")
                || path.path.segments.first().is_some_and(|first| first.ident == "Self")
            {
                errors.add(ty, "`Self` is the server's own type, a remote caller does not have it");
            }
            if is_run_of_bytes(ty) {
                errors.add(
                    ty,
                    "inside another type bytes would travel element by element: use `quorate::Payload`, which travels as one run",
                );
                return;
            }
            for segment in &path.path.segments {
                if let PathArguments::AngleBracketed(arguments) = &segment.arguments {
                    for argument in &arguments.args {
                        match argument {
                            GenericArgument::Type(inner) => travels(inner, what, errors),
                            GenericArgument::Lifetime(lifetime) if lifetime.ident != "static" => errors.add(
                                lifetime,
                                &format!(
                                    "a borrowed {what} cannot travel to another process: use an owned type"
                                ),
                            ),
                            _ => {}
                        }
                    }
                }
            }
        }
        _ => {}
    }
}

/// `Vec<u8>` or `Bytes`: serde would take it element by element, or not at all, so it travels as one run.
pub(crate) fn is_run_of_bytes(ty: &Type) -> bool {
    let Type::Path(path) = ty else { return false };
    let Some(last) = path.path.segments.last() else { return false };
    match &last.arguments {
        PathArguments::None => last.ident == "Bytes",
        PathArguments::AngleBracketed(arguments) if last.ident == "Vec" => {
            let first = arguments.args.first();
            matches!(first, Some(GenericArgument::Type(Type::Path(inner))) if inner.path.is_ident("u8"))
        }
        _ => false,
    }
}

/// Whether a stream of ours is somewhere in it.
pub(crate) fn holds_stream(ty: &Type) -> bool {
    names(ty, &["Incoming", "Outgoing"])
}

/// Whether a reference of ours is somewhere in it.
pub(crate) fn holds_reference(ty: &Type) -> bool {
    names(ty, &["Remote"])
}

fn names(ty: &Type, wanted: &[&str]) -> bool {
    match ty {
        Type::Path(path) => path.path.segments.iter().any(|segment| {
            let PathArguments::AngleBracketed(arguments) = &segment.arguments else { return false };
            let inner = |argument: &GenericArgument| matches!(argument, GenericArgument::Type(ty) if names(ty, wanted));
            wanted.iter().any(|name| segment.ident == name) || arguments.args.iter().any(inner)
        }),
        Type::Tuple(tuple) => tuple.elems.iter().any(|ty| names(ty, wanted)),
        Type::Array(array) => names(&array.elem, wanted),
        _ => false,
    }
}

/// `K` of a type that is a reference, `Remote<K>`.
pub(crate) fn stub_of_reference(ty: &Type) -> Option<&Type> {
    let Type::Path(path) = ty else { return None };
    let last = path.path.segments.last().filter(|last| last.ident == "Remote")?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
    match arguments.args.first()? {
        GenericArgument::Type(stub) => Some(stub),
        _ => None,
    }
}

pub(crate) fn is_option(ty: &Type) -> bool {
    matches!(ty, Type::Path(path) if path.path.segments.last().is_some_and(|last| last.ident == "Option"))
}

/// A type as the user wrote it, with the spaces a person would put.
pub(crate) fn type_text(ty: &Type) -> String {
    let tokens = quote::quote!(#ty).to_string();
    let mut text = String::with_capacity(tokens.len());
    let mut characters = tokens.chars().peekable();
    while let Some(c) = characters.next() {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        if c == ' ' {
            let joins = text.chars().last().is_some_and(word) && characters.peek().copied().is_some_and(word);
            if joins || text.ends_with([',', ';']) {
                text.push(' ');
            }
        } else {
            text.push(c);
        }
    }
    text
}

/// FNV-1a, 32 bits: short, public, and the same on every machine.
pub(crate) fn fnv(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
