//! Handlers that have ended: answered at once, or when what they did is durable.
//!
//! Guarantee   an answer that stands on records leaves when they are durable, and not before.
//! Method      answers wait in a line, not in tasks: a sync makes many records durable, then one task is woken and answers
//!             all of them together. It lives while there is a line.
//! Limits      what waits has left its place among the executing requests to others: so a journal that hangs holds up no
//!             method that can do without it. How much may wait, the journal's queue says
//!             (`WAITING_BYTES_MAX`).

use std::collections::VecDeque;
use std::sync::Arc;

use quorate_protocols::rpc::{Doubt, Execution, ServerCommand, Verdict};
use quorate_protocols::{Input, Time};
use tokio::task::AbortHandle;

use super::exactly_once::Ending;
use super::post;
use super::server::{Core, State};

/// Answers that wait until so many records are durable, the earliest first.
#[derive(Default)]
pub(super) struct Unstable {
    line: VecDeque<(u64, Execution, Verdict)>,
    /// The task that answers them, while there are any.
    teller: Option<AbortHandle>,
}

impl Unstable {
    fn push(&mut self, execution: Execution, ending: Ending) {
        let Ending { verdict, stable } = ending;
        let at = self.line.partition_point(|(earlier, ..)| *earlier <= stable);
        self.line.insert(at, (stable, execution, verdict));
    }

    /// Those that stand on no more records than this.
    fn ready(&mut self, durable: u64) -> impl Iterator<Item = (Execution, Verdict)> {
        let count = self.line.partition_point(|(stable, ..)| *stable <= durable);
        self.line.drain(..count).map(|(_, execution, verdict)| (execution, verdict))
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.line.len()
    }

    /// Nobody is to be answered any more.
    pub(super) fn abandon(&mut self) {
        self.line.clear();
        self.teller.iter().for_each(AbortHandle::abort);
    }
}

impl Core {
    /// Ends executions: tells the callers, now or when it is safe.
    pub(super) fn end(self: &Arc<Self>, done: impl IntoIterator<Item = (Execution, Ending)>) {
        let mut done = done.into_iter().peekable();
        if done.peek().is_none() {
            return;
        }
        let now = post::time_since(self.epoch);
        let mut is_written = false;
        let mut state = self.lock();
        for (execution, ending) in done {
            if ending.stable > 0 {
                is_written = true;
                let executed = ServerCommand::Executed(execution);
                self.step_at(now, &mut state, Input::Command(executed), &mut Vec::new());
                state.unstable.push(execution, ending);
            } else {
                self.complete(now, &mut state, execution, ending.verdict);
            }
        }
        if !is_written {
            return;
        }
        if state.unstable.teller.is_none() && !self.desk.is_over() {
            state.unstable.teller = Some(tokio::spawn(tell(Arc::clone(self))).abort_handle());
        }
        drop(state);
        if let Some(keeper) = &self.keeper {
            Arc::clone(keeper).flush();
        }
    }

    fn complete(self: &Arc<Self>, now: Time, state: &mut State, execution: Execution, verdict: Verdict) {
        let command = ServerCommand::Complete { execution, verdict };
        self.step_at(now, state, Input::Command(command), &mut Vec::new());
    }
}

/// Answers what waits, as it becomes durable.
async fn tell(core: Arc<Core>) {
    let Some(keeper) = &core.keeper else { return };
    loop {
        let first = {
            let mut state = core.lock();
            let first = state.unstable.line.front().map(|(stable, ..)| *stable);
            if first.is_none() {
                state.unstable.teller = None;
            }
            first
        };
        let Some(first) = first else { return };
        let durable = Arc::clone(keeper).durable(first).await;
        let now = post::time_since(core.epoch);
        let mut state = core.lock();
        let ready: Vec<_> = state.unstable.ready(durable.unwrap_or(u64::MAX)).collect();
        for (execution, verdict) in ready {
            // Lost or not, nobody knows before the journal is opened again.
            let verdict = if durable.is_some() { verdict } else { Verdict::Doubtful(Doubt::JournalFailed) };
            core.complete(now, &mut state, execution, verdict);
        }
    }
}
