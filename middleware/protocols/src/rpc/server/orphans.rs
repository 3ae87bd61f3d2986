//! Orphans: what still executes for a caller that is gone, and what is done about it.

use std::time::Duration;

use super::session::{State, Stopped};
use super::{ClientKey, Server, ServerEvent, execution};
use crate::machine::{Lane, Outputs, ProcessId};
use crate::planted::Planted;
use crate::rpc::message::{CallId, Doubt, Message, Verdict};
use crate::time::Time;

/// What a server does about executions whose caller may be gone (Nelson's four treatments; the fourth, extermination, is
/// asked for by the caller's next life with [`Message::Exterminate`], whatever is chosen here).
///
/// A new life of a process always ends what executes for its earlier ones: nobody waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Orphans {
    /// Reincarnation: only a new life of the caller's process ends them, as soon as it is heard of.
    #[default]
    Reincarnation,
    /// Gentle reincarnation: a caller whose connection broke is asked, and what executes for it is ended when it has not
    /// said within `grace` that it still waits.
    Gentle {
        /// How long a caller has to answer. Shorter than a break of the network ends what somebody waits for.
        grace: Duration,
    },
    /// Expiration: what executes for a caller that was not heard for a `quantum` is ended. Callers with calls under way
    /// are told to be heard three times as often.
    Expiration {
        /// How long a caller may be silent. Short ones cost messages and end calls when the network is slow.
        quantum: Duration,
    },
}

impl Server {
    /// The callers of an earlier life are gone: nobody waits for what executes for them.
    pub(super) fn forget_earlier_lives(&mut self, from: ProcessId, out: &mut Outputs<Self>) {
        if self.config.plant.has(Planted::RpcIgnoresReincarnation) {
            return;
        }
        let first = ProcessId { node: from.node, incarnation: 0 };
        let keys: Vec<ClientKey> = self.sessions.range((first, 0)..(from, 0)).map(|(key, _)| *key).collect();
        for key in keys {
            self.forget(key, out);
        }
    }

    /// Ends a session and what executes in it.
    pub(super) fn forget(&mut self, key: ClientKey, out: &mut Outputs<Self>) {
        let Some(session) = self.sessions.remove(&key) else { return };
        for (index, slot) in session.slots.iter().enumerate() {
            if let State::Executing { seat, has_place, .. } = slot.state {
                let call = CallId { slot: index as u32, sequence: slot.sequence };
                self.executing -= u32::from(has_place);
                self.stats.aborted += 1;
                self.stats.orphans += 1;
                out.event(ServerEvent::Abort(execution(key, session.id, call, seat)));
            }
        }
    }

    /// Ends what executes in a session, which goes on: its client may come back after all.
    fn end_orphans(&mut self, key: ClientKey, out: &mut Outputs<Self>) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        session.suspected = None;
        let id = session.id;
        for index in 0..session.slots.len() as u32 {
            if !matches!(session.slots[index as usize].state, State::Executing { .. }) {
                continue;
            }
            let call = CallId { slot: index, sequence: session.slots[index as usize].sequence };
            let Some(Stopped { seat, places }) = session.stop(index) else { continue };
            self.executing -= places;
            self.stats.aborted += 1;
            self.stats.orphans += 1;
            if seat == 0 {
                session.keep(call, Verdict::Doubtful(Doubt::Abandoned));
            } // else the records tell whether it took effect, and it may be executed if it is asked for again
            out.event(ServerEvent::Abort(execution(key, id, call, seat)));
        }
    }

    /// What a new life of a process says, whatever it came for: its earlier ones wait for nothing any more.
    pub(super) fn on_reachable(&mut self, peer: ProcessId, out: &mut Outputs<Self>) {
        if !self.knows_later_life(peer) {
            self.forget_earlier_lives(peer, out);
        }
    }

    pub(super) fn on_unreachable(&mut self, now: Time, peer: ProcessId, out: &mut Outputs<Self>) {
        let Orphans::Gentle { .. } = self.config.orphans else { return };
        for ((from, _), session) in self.sessions.range_mut((peer, 0)..=(peer, u32::MAX)) {
            debug_assert_eq!(*from, peer);
            if session.executing > 0 && session.suspected.is_none() {
                session.suspected = Some((now, now));
            }
        }
        self.on_tick(now, out);
    }

    pub(super) fn on_tick(&mut self, now: Time, out: &mut Outputs<Self>) {
        let mut gone = Vec::new();
        for (key, session) in &mut self.sessions {
            if session.executing == 0 {
                session.suspected = None;
                continue;
            }
            match self.config.orphans {
                Orphans::Reincarnation => {}
                Orphans::Expiration { quantum } => {
                    if now >= session.heard + quantum && !self.config.plant.has(Planted::RpcIgnoresSilence) {
                        gone.push(*key);
                    }
                }
                Orphans::Gentle { grace } => {
                    let Some((since, ask)) = session.suspected else { continue };
                    if now >= since + grace || self.config.plant.has(Planted::RpcEndsUnasked) {
                        gone.push(*key);
                    } else if now >= ask {
                        session.suspected = Some((since, now + grace / 4));
                        let message = Message::Ask { client: key.1, session: session.id };
                        out.send(key.0, Lane::Urgent, message);
                    }
                }
            }
        }
        for key in gone {
            self.end_orphans(key, out);
        }
    }
}
