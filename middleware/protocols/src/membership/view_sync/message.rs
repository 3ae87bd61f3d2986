//! What processes send each other about views, and how it is laid out.

use std::collections::BTreeSet;

use bytes::{BufMut, Bytes, BytesMut};

use crate::machine::ProcessId;
use crate::multicast::reliable::{put_counts, take_counts};
use crate::stack::{View, ViewId};
use crate::wire::{Wire, WireError, put_count, take_count, take_u8, take_u64};

/// Orders the attempts to change one view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ballot {
    pub(super) round: u64,
    pub(super) leader: ProcessId,
}

/// What a view change decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// The next view.
    pub view: View,
    /// For each sender of the ending view, by rank: how many of its messages belong to it.
    pub cut: Vec<u64>,
}

/// What processes send each other about views.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// "Let this process in." A member passes it on to the one that leads.
    Join {
        /// The joiner.
        joiner: ProcessId,
    },
    /// "These members I do not hear", and whether I want to leave; replaces what was reported before.
    Report {
        /// The view the reporter is in.
        view: ViewId,
        /// Whom it suspects.
        suspects: BTreeSet<ProcessId>,
        /// Whether it wants to leave.
        leaving: bool,
        /// Whether it has the application's state.
        synced: bool,
    },
    /// Leader to members: freeze and promise.
    Prepare {
        /// The ending view.
        view: ViewId,
        /// The attempt.
        ballot: Ballot,
    },
    /// Member to leader: frozen; no older attempt will be accepted.
    Promise {
        /// The ending view.
        view: ViewId,
        /// The attempt.
        ballot: Ballot,
        /// What the member accepted in an earlier attempt.
        accepted: Option<(Ballot, Proposal)>,
        /// How many messages of each sender it took.
        received: Vec<u64>,
        /// Whether it has the application's state.
        synced: bool,
        /// Whether it wants to leave.
        leaving: bool,
    },
    /// Leader to members: accept this, once you hold all of the cut.
    Accept {
        /// The ending view.
        view: ViewId,
        /// The attempt.
        ballot: Ballot,
        /// What is proposed.
        proposal: Proposal,
    },
    /// Member to leader: accepted, and all of the cut is here.
    Accepted {
        /// The ending view.
        view: ViewId,
        /// The attempt.
        ballot: Ballot,
    },
    /// Member to a leader of an older attempt: a newer one has my promise.
    Refuse {
        /// The ending view.
        view: ViewId,
        /// The newer attempt.
        promised: Ballot,
    },
    /// To whoever is or will be concerned: decided.
    Install {
        /// What was decided.
        proposal: Proposal,
    },
    /// "You speak of a view that I do not know yet; mine is this."
    Behind {
        /// The view the sender is in.
        view: ViewId,
    },
    /// To a joiner: the group has no room.
    Full,
    /// To a former member: the group is far ahead and you are not in it.
    Expelled {
        /// The view the sender is in.
        view: ViewId,
    },
}

impl Wire for Ballot {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.round);
        self.leader.encode(out);
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        let round = take_u64(input, "ballot round")?;
        // Rounds are answered with larger ones; leave them room.
        if round > u64::MAX / 2 {
            return Err(WireError::Invalid { what: "ballot round", value: round });
        }
        Ok(Self { round, leader: ProcessId::decode(input)? })
    }
}

impl Wire for Proposal {
    fn encode(&self, out: &mut BytesMut) {
        self.view.encode(out);
        put_counts(out, &self.cut);
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self { view: View::decode(input)?, cut: take_counts(input)? })
    }
}

fn take_flag(input: &mut Bytes, what: &'static str) -> Result<bool, WireError> {
    match take_u8(input, what)? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(WireError::Invalid { what, value: u64::from(other) }),
    }
}

impl Wire for Message {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Join { joiner } => {
                out.put_u8(0);
                joiner.encode(out);
            }
            Self::Report { view, suspects, leaving, synced } => {
                out.put_u8(1);
                view.encode(out);
                put_count(out, suspects.len());
                suspects.iter().for_each(|suspect| suspect.encode(out));
                out.put_u8(u8::from(*leaving));
                out.put_u8(u8::from(*synced));
            }
            Self::Prepare { view, ballot } => {
                out.put_u8(2);
                view.encode(out);
                ballot.encode(out);
            }
            Self::Promise { view, ballot, accepted, received, synced, leaving } => {
                out.put_u8(3);
                view.encode(out);
                ballot.encode(out);
                out.put_u8(u8::from(accepted.is_some()));
                if let Some((ballot, proposal)) = accepted {
                    ballot.encode(out);
                    proposal.encode(out);
                }
                put_counts(out, received);
                out.put_u8(u8::from(*synced));
                out.put_u8(u8::from(*leaving));
            }
            Self::Accept { view, ballot, proposal } => {
                out.put_u8(4);
                view.encode(out);
                ballot.encode(out);
                proposal.encode(out);
            }
            Self::Accepted { view, ballot } => {
                out.put_u8(5);
                view.encode(out);
                ballot.encode(out);
            }
            Self::Refuse { view, promised } => {
                out.put_u8(6);
                view.encode(out);
                promised.encode(out);
            }
            Self::Install { proposal } => {
                out.put_u8(7);
                proposal.encode(out);
            }
            Self::Behind { view } => {
                out.put_u8(8);
                view.encode(out);
            }
            Self::Expelled { view } => {
                out.put_u8(9);
                view.encode(out);
            }
            Self::Full => out.put_u8(10),
        }
    }

    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        match take_u8(input, "view message")? {
            0 => Ok(Self::Join { joiner: ProcessId::decode(input)? }),
            1 => {
                let view = ViewId::decode(input)?;
                let count = take_count(input, 16, "suspects")?;
                let suspects = (0..count).map(|_| ProcessId::decode(input)).collect::<Result<_, _>>()?;
                let leaving = take_flag(input, "leaving flag")?;
                Ok(Self::Report { view, suspects, leaving, synced: take_flag(input, "synced flag")? })
            }
            2 => Ok(Self::Prepare { view: ViewId::decode(input)?, ballot: Ballot::decode(input)? }),
            3 => {
                let view = ViewId::decode(input)?;
                let ballot = Ballot::decode(input)?;
                let accepted = match take_flag(input, "accepted flag")? {
                    true => Some((Ballot::decode(input)?, Proposal::decode(input)?)),
                    false => None,
                };
                let received = take_counts(input)?;
                let synced = take_flag(input, "synced flag")?;
                let leaving = take_flag(input, "leaving flag")?;
                Ok(Self::Promise { view, ballot, accepted, received, synced, leaving })
            }
            4 => Ok(Self::Accept {
                view: ViewId::decode(input)?,
                ballot: Ballot::decode(input)?,
                proposal: Proposal::decode(input)?,
            }),
            5 => Ok(Self::Accepted { view: ViewId::decode(input)?, ballot: Ballot::decode(input)? }),
            6 => Ok(Self::Refuse { view: ViewId::decode(input)?, promised: Ballot::decode(input)? }),
            7 => Ok(Self::Install { proposal: Proposal::decode(input)? }),
            8 => Ok(Self::Behind { view: ViewId::decode(input)? }),
            9 => Ok(Self::Expelled { view: ViewId::decode(input)? }),
            10 => Ok(Self::Full),
            other => Err(WireError::Invalid { what: "view message", value: u64::from(other) }),
        }
    }
}
