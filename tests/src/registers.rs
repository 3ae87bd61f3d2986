//! What the checker knows of registers, one for each key.

use quorate::history::{Register, RegisterCall, RegisterReturn, Specification};

/// To which register, and what.
pub type Call = (u64, RegisterCall<u64>);

/// A register for each key.
pub struct Keyed;

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
