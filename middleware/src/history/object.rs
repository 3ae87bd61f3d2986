//! What an object does when it is used by one after the other.

use std::collections::VecDeque;
use std::hash::Hash;

/// The sequential behaviour of an object: what concurrent use is compared with.
pub trait Specification {
    /// The object's state; equal states must behave alike.
    type State: Clone + Eq + Hash;
    /// What it may be asked.
    type Call;
    /// What it answers.
    type Return;

    /// The state in which every history begins.
    fn initial(&self) -> Self::State;

    /// The state after `call` was executed in `state` and answered with `returned`; `None` if it cannot be answered so.
    /// `returned` is `None` when nobody knows the answer.
    fn step(
        &self,
        state: &Self::State,
        call: &Self::Call,
        returned: Option<&Self::Return>,
    ) -> Option<Self::State>;

    /// Whether `call` changes no state whatever. To say so of those that only look makes a search much shorter.
    fn is_read(&self, _call: &Self::Call) -> bool {
        false
    }
}

/// A register of one value, which is none at first.
#[derive(Debug, Clone, Copy, Default)]
pub struct Register<V>(std::marker::PhantomData<V>);

impl<V> Register<V> {
    /// A register.
    pub const fn new() -> Self {
        Self(std::marker::PhantomData)
    }
}

/// What a [`Register`] may be asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RegisterCall<V> {
    /// The value.
    Read,
    /// Another value.
    Write(V),
    /// Another value if it has this one.
    CompareAndSet {
        /// The value that it must have.
        expected: Option<V>,
        /// The value that it gets.
        new: V,
    },
}

/// What a [`Register`] answers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RegisterReturn<V> {
    /// To a read.
    Value(Option<V>),
    /// To a write.
    Written,
    /// To a compare-and-set: whether it had the expected value.
    Set(bool),
}

impl<V: Clone + Eq + Hash> Specification for Register<V> {
    type State = Option<V>;
    type Call = RegisterCall<V>;
    type Return = RegisterReturn<V>;

    fn initial(&self) -> Option<V> {
        None
    }

    fn step(
        &self,
        state: &Option<V>,
        call: &RegisterCall<V>,
        returned: Option<&RegisterReturn<V>>,
    ) -> Option<Option<V>> {
        let (next, answer) = match call {
            RegisterCall::Read => (state.clone(), RegisterReturn::Value(state.clone())),
            RegisterCall::Write(value) => (Some(value.clone()), RegisterReturn::Written),
            RegisterCall::CompareAndSet { expected, new } if state == expected => {
                (Some(new.clone()), RegisterReturn::Set(true))
            }
            RegisterCall::CompareAndSet { .. } => (state.clone(), RegisterReturn::Set(false)),
        };
        returned.is_none_or(|returned| *returned == answer).then_some(next)
    }

    fn is_read(&self, call: &RegisterCall<V>) -> bool {
        matches!(call, RegisterCall::Read)
    }
}

/// A first-in-first-out queue, empty at first.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fifo<V>(std::marker::PhantomData<V>);

impl<V> Fifo<V> {
    /// A queue.
    pub const fn new() -> Self {
        Self(std::marker::PhantomData)
    }
}

/// What a [`Fifo`] may be asked. A put is answered `None`, a take what was taken, if anything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum FifoCall<V> {
    /// To append.
    Put(V),
    /// To remove the oldest.
    Take,
}

impl<V: Clone + Eq + Hash> Specification for Fifo<V> {
    type State = VecDeque<V>;
    type Call = FifoCall<V>;
    type Return = Option<V>;

    fn initial(&self) -> VecDeque<V> {
        VecDeque::new()
    }

    fn step(
        &self,
        state: &VecDeque<V>,
        call: &FifoCall<V>,
        returned: Option<&Option<V>>,
    ) -> Option<VecDeque<V>> {
        let mut next = state.clone();
        let answer = match call {
            FifoCall::Put(value) => {
                next.push_back(value.clone());
                None
            }
            FifoCall::Take => next.pop_front(),
        };
        returned.is_none_or(|returned| *returned == answer).then_some(next)
    }
}
