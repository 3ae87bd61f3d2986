//! The registers that stand on a replicated log in the simulator: what they do, and their bytes.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate::history::{RegisterCall, RegisterReturn};
use tests::registers::Call;

/// One replica's registers.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) values: BTreeMap<u64, u64>,
    pub(crate) delivered: u64,
    pub(crate) term: u64,
}

impl State {
    pub(crate) fn apply(&mut self, (key, call): &Call) -> RegisterReturn<u64> {
        let value = self.values.get(key).copied();
        match call {
            RegisterCall::Read => RegisterReturn::Value(value),
            RegisterCall::Write(new) => {
                self.values.insert(*key, *new);
                RegisterReturn::Written
            }
            RegisterCall::CompareAndSet { expected, new } => {
                if value == *expected {
                    self.values.insert(*key, *new);
                }
                RegisterReturn::Set(value == *expected)
            }
        }
    }

    pub(crate) fn snapshot(&self) -> Bytes {
        let mut out = BytesMut::new();
        for (key, value) in &self.values {
            out.put_u64_le(*key);
            out.put_u64_le(*value);
        }
        out.freeze()
    }

    pub(crate) fn of(index: u64, term: u64, mut data: Bytes) -> Self {
        let mut values = BTreeMap::new();
        while data.len() >= 16 {
            values.insert(data.get_u64_le(), data.get_u64_le());
        }
        Self { values, delivered: index, term }
    }
}

pub(crate) fn encode(id: u64, (key, call): &Call) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u64_le(id);
    out.put_u64_le(*key);
    match call {
        RegisterCall::Read => {}
        RegisterCall::Write(new) => out.put_u64_le(*new),
        RegisterCall::CompareAndSet { expected, new } => {
            out.put_u64_le(*new);
            if let Some(expected) = expected {
                out.put_u64_le(*expected);
            }
            out.put_u8(0);
        }
    }
    out.freeze()
}

pub(crate) fn decode(payload: &Bytes) -> (u64, Call) {
    let mut payload = payload.clone();
    let (id, key, new) = (payload.get_u64_le(), payload.get_u64_le(), payload.get_u64_le());
    let call = match payload.len() {
        0 => RegisterCall::Write(new),
        1 => RegisterCall::CompareAndSet { expected: None, new },
        _ => RegisterCall::CompareAndSet { expected: Some(payload.get_u64_le()), new },
    };
    (id, (key, call))
}
