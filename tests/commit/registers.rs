//! Registers on a replicated log: the state machine.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate::history::RegisterReturn;
use quorate::replication::{RestoreError, StateMachine};
use serde::{Deserialize, Serialize};
use tests::registers::Call;

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

/// What clients did and were told.
pub(crate) type History = quorate::history::History<Call, RegisterReturn<u64>>;
