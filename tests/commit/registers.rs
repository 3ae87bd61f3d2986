//! Registers on a replicated log: the state machine, and what the checker knows of it.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate::history::{Register, RegisterCall, RegisterReturn, Specification};
use quorate::replication::{RestoreError, StateMachine};
use serde::{Deserialize, Serialize};

/// What the registers are asked; reads do not travel.
#[derive(Serialize, Deserialize)]
pub(crate) enum Ask {
    Write { key: u64, value: u64 },
    CompareAndSet { key: u64, expected: Option<u64>, new: u64 },
}

#[derive(Default)]
pub(crate) struct Registers(pub(crate) BTreeMap<u64, u64>);

impl StateMachine for Registers {
    type Command = Ask;
    type Response = bool;

    fn apply(&mut self, command: Ask) -> bool {
        let (key, value) = match command {
            Ask::Write { key, value } => (key, value),
            Ask::CompareAndSet { key, expected, new } => {
                if self.0.get(&key).copied() != expected {
                    return false;
                }
                (key, new)
            }
        };
        self.0.insert(key, value);
        true
    }

    fn snapshot(&self) -> Bytes {
        self.0.iter().flat_map(|(key, value)| [key.to_le_bytes(), value.to_le_bytes()].concat()).collect()
    }

    fn restore(&mut self, snapshot: Bytes) -> Result<(), RestoreError> {
        let number = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).unwrap_or_default();
        self.0 = snapshot.chunks_exact(16).map(|pair| (number(&pair[..8]), number(&pair[8..]))).collect();
        Ok(())
    }
}

/// What a client did: to which register, and what.
pub(crate) type Call = (u64, RegisterCall<u64>);
pub(crate) type History = quorate::history::History<Call, RegisterReturn<u64>>;

/// A register for each key.
pub(crate) struct Keyed;

impl Specification for Keyed {
    type State = Option<u64>;
    type Call = Call;
    type Return = RegisterReturn<u64>;

    fn initial(&self) -> Self::State {
        None
    }

    fn step(&self, state: &Self::State, call: &Call, returned: Option<&Self::Return>) -> Option<Self::State> {
        Register::new().step(state, &call.1, returned)
    }

    fn is_read(&self, call: &Call) -> bool {
        Register::<u64>::new().is_read(&call.1)
    }
}
