//! The service that carries the calls of objects: it finds the object and lets it answer.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use quorate_protocols::ProcessId;
use quorate_protocols::rpc::{Refusal, Verdict};

use super::super::generated::{self, Dispatched, Matched};
use super::super::port;
use super::super::schema::{MethodSchema, Schema, Semantics};
use super::super::server::Service;
use super::home::Export;
use super::target::Asked;
use super::{Home, Target, pledges};

/// Serves the objects of a node.
pub(super) struct Counter(pub(super) Weak<Home>);

impl Service for Counter {
    fn schema(&self) -> &'static Schema {
        &SCHEMA
    }

    fn codec(&self) -> u8 {
        CODEC
    }

    fn dispatch(&self, _: u32, request: Bytes, _: Bytes) -> Dispatched {
        let Some(home) = self.0.upgrade() else { return Dispatched::Refused(Refusal::ShuttingDown) };
        let Some(asked) = Asked::read(request) else { return Dispatched::Refused(Refusal::Malformed) };
        let is_ours = asked.incarnation == home.me().incarnation
            || (asked.is_ahead && asked.incarnation == ProcessId::ANY_LIFE);
        if !is_ours {
            return Dispatched::Refused(Refusal::OtherLife);
        }
        if asked.is_ahead {
            return ahead(&home, asked);
        }
        match home.exported(asked.number) {
            Some(export) => dispatch(&home, &export, asked),
            None => Dispatched::Refused(Refusal::ObjectGone),
        }
    }
}

/// A request for what another one makes, or has made.
fn ahead(home: &Arc<Home>, asked: Asked) -> Dispatched {
    let Some((_, from)) = port::references() else { return Dispatched::Refused(Refusal::Malformed) };
    let Some(pledge) = home.pledges.open((from, asked.number)) else {
        return Dispatched::Refused(Refusal::Overloaded);
    };
    if let Some(made) = pledge.made() {
        return dispatch_made(home, made, asked);
    }
    let home = Arc::clone(home);
    Dispatched::Running(Box::pin(async move {
        match dispatch_made(&home, pledge.wait().await, asked) {
            Dispatched::Running(handler) => handler.await,
            Dispatched::Refused(refusal) => Verdict::Refused(refusal),
        }
    }))
}

fn dispatch_made(home: &Arc<Home>, made: Option<Arc<Target>>, asked: Asked) -> Dispatched {
    let Some(made) = made else { return Dispatched::Refused(Refusal::EarlierFailed) };
    let reference = made.as_object().map(|object| object.reference);
    let Some(reference) = reference.filter(|reference| reference.owner == home.me()) else {
        return Dispatched::Refused(Refusal::ObjectElsewhere);
    };
    match home.exported(reference.number) {
        Some(export) => dispatch(home, &export, asked),
        None => Dispatched::Refused(Refusal::ObjectGone),
    }
}

fn dispatch(home: &Home, export: &Export, asked: Asked) -> Dispatched {
    let Asked { method, signature, arguments, .. } = asked;
    let Some(schema) = export.service.schema().method(method) else {
        return Dispatched::Refused(Refusal::NoSuchMethod);
    };
    let Matched { required, added, promised } = match generated::match_signature(schema, signature, arguments)
    {
        Ok(matched) => matched,
        Err(refusal) => return Dispatched::Refused(refusal),
    };
    match export.service.dispatch(method, required, added) {
        Dispatched::Running(handler) if promised.is_some() => match port::references() {
            Some((_, from)) => Dispatched::Running(pledges::keeping(&home.node, from, promised, handler)),
            None => Dispatched::Refused(Refusal::Malformed),
        },
        dispatched => dispatched,
    }
}

/// What carries the calls of a method. Whoever calls ahead needs the port: it says who he is.
pub(super) const fn carrier_of(method: &MethodSchema, is_ahead: bool) -> &'static MethodSchema {
    match method.semantics {
        Semantics::OneWay => &SCHEMA.methods[2],
        _ if is_ahead || method.has_port() => &SCHEMA.methods[1],
        _ => &SCHEMA.methods[0],
    }
}

/// Methods are told apart by whether they need the port; the semantics of a call stand in its request.
pub(super) static SCHEMA: Schema = Schema {
    service: "objects",
    fingerprint: 0,
    methods: &[
        method("call", 1, false, Semantics::AtMostOnce),
        method("call_through_port", 2, true, Semantics::AtMostOnce),
        method("tell", 3, true, Semantics::OneWay),
    ],
};

const fn method(name: &'static str, id: u32, has_references: bool, semantics: Semantics) -> MethodSchema {
    MethodSchema {
        name,
        id,
        signature: 0,
        arguments: &[],
        result: "bytes",
        semantics,
        is_streaming: false,
        has_references,
        deadline: None,
    }
}

/// The name of the service on its node.
pub(super) const SERVICE: &str = "quorate objects";
/// Each object has its own codec, which its references name.
pub(super) const CODEC: u8 = 0;
