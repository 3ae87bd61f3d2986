//! Causal order by hand: the test itself is the reliable multicast below it.

use bytes::Bytes;

use super::*;
use crate::stack::ViewId;

const NOW: Time = Time::ZERO;

/// Members whose reliable multicast is this test: what each has sent, and how much of it each has got.
struct Members {
    layers: Vec<Causal>,
    sent: Vec<Vec<Cast>>,
    got: Vec<Vec<usize>>,
    /// What each has delivered, as sender and text.
    delivered: Vec<Vec<(usize, Bytes)>>,
    /// The last wish of each to acknowledge nothing.
    saturated: Vec<bool>,
}

impl Members {
    fn new(count: usize) -> Self {
        let ids: Vec<_> = (0..count as u64).map(|node| ProcessId { node, incarnation: 1 }).collect();
        let layers = ids.iter().map(|id| Causal::new(*id, Plant::NONE)).collect();
        let mut members = Self {
            layers,
            sent: vec![Vec::new(); count],
            got: vec![vec![0; count]; count],
            delivered: vec![Vec::new(); count],
            saturated: vec![false; count],
        };
        members.install(1);
        members
    }

    /// All go on to the view of that number, with what they have got.
    fn install(&mut self, number: u64) {
        let count = self.layers.len();
        let members: Vec<_> = (0..count as u64).map(|node| ProcessId { node, incarnation: 1 }).collect();
        let id = ViewId { group: 1, number };
        let view = View { id, members: members.into(), synced: vec![true; count].into(), quorum_min: 1 };
        for member in 0..count {
            self.up(member, Up::View(view.clone()));
        }
    }

    fn up(&mut self, member: usize, event: Up) {
        let mut flow = Flow::new();
        self.layers[member].up(NOW, event, &mut flow);
        self.carry_out(member, flow);
    }

    fn down(&mut self, member: usize, request: Down) {
        let mut flow = Flow::new();
        self.layers[member].down(NOW, request, &mut flow);
        self.carry_out(member, flow);
    }

    fn carry_out(&mut self, member: usize, mut flow: Flow<()>) {
        for event in flow.ups.drain(..) {
            if let Up::Deliver { sender, casts, .. } = event {
                let texts = casts.into_iter().map(|cast| (sender, cast.payload));
                self.delivered[member].extend(texts);
            }
        }
        let requests: Vec<_> = flow.downs.drain(..).collect();
        for request in requests {
            match request {
                Down::Cast(cast) => self.sent[member].push(cast),
                Down::Saturated(saturated) => self.saturated[member] = saturated,
                _ => {}
            }
        }
        self.layers[member].check().expect("the invariants hold");
    }

    /// The member multicasts; it has its own message at once.
    fn cast(&mut self, member: usize, text: &'static str) {
        let payload = Bytes::from_static(text.as_bytes());
        self.down(member, Down::Cast(Cast { headers: Headers::default(), payload }));
        self.pass(member, member);
    }

    /// All that the one has sent reaches the other.
    fn pass(&mut self, sender: usize, to: usize) {
        let first = std::mem::replace(&mut self.got[to][sender], self.sent[sender].len());
        let casts = self.sent[sender][first..].to_vec();
        if !casts.is_empty() {
            self.up(to, Up::Deliver { sender, first: first as u64, casts });
        }
    }

    fn seen(&self, member: usize) -> Vec<&[u8]> {
        self.delivered[member].iter().map(|(_, text)| &text[..]).collect()
    }
}

/// The textbook's scenario: P0 multicasts m, P1 delivers it and multicasts m*; P2 gets m* first, and delivers it only
/// after m.
#[test]
fn g05_the_textbooks_reply_waits_for_what_it_replies_to() {
    let mut members = Members::new(3);
    members.cast(0, "m");
    members.pass(0, 1);
    members.cast(1, "m*");
    members.pass(1, 2);
    assert!(members.seen(2).is_empty(), "m* is here, m is not");
    members.pass(0, 2);
    assert_eq!(members.seen(2), [&b"m"[..], b"m*"]);
}

/// The same without a reason to wait: P1 had not seen m, so nobody waits for it.
#[test]
fn g05_concurrent_messages_wait_for_nothing() {
    let mut members = Members::new(3);
    members.cast(0, "m");
    members.cast(1, "other");
    members.pass(1, 2);
    assert_eq!(members.seen(2), [b"other"]);
    members.pass(0, 2);
    members.pass(0, 1);
    for member in [1, 2] {
        assert_eq!(members.seen(member), [&b"other"[..], b"m"]);
    }
}

#[test]
fn g05_a_chain_over_four_members_comes_out_in_its_order_whatever_comes_first() {
    let mut members = Members::new(4);
    members.cast(0, "a");
    members.pass(0, 1);
    members.cast(1, "b");
    members.pass(1, 2);
    members.pass(0, 2);
    members.cast(2, "c");
    members.cast(2, "d");
    for sender in [2, 1] {
        members.pass(sender, 3);
        assert!(members.seen(3).is_empty());
    }
    members.pass(0, 3);
    assert_eq!(members.seen(3), [b"a", b"b", b"c", b"d"]);
    // A sender tells what has changed, not everything again.
    assert_eq!(members.sent[2].len(), 3, "one note, two messages");
}

/// What was told of an earlier view holds nobody up, and the next note tells of the new one.
#[test]
fn g05_timestamps_begin_anew_with_each_view() {
    let mut members = Members::new(3);
    members.cast(0, "m");
    members.pass(0, 1);
    // Waits for the view change, and is sent in the next view.
    members.down(1, Down::Cast(Cast { headers: Headers::default(), payload: "late".into() }));
    members.pass(0, 2);
    members.install(2);
    members.pass(1, 2);
    assert_eq!(members.seen(2), [&b"m"[..], b"late"]);
    members.cast(0, "new");
    members.pass(0, 1);
    members.cast(1, "answer");
    members.pass(1, 2);
    assert_eq!(members.seen(2).len(), 2);
    members.pass(0, 2);
    assert_eq!(members.seen(2)[2..], [&b"new"[..], b"answer"]);
}

/// P0 and P1 die, and m with them: who has m* alone drops it, as all others do.
#[test]
fn g05_a_message_without_its_predecessor_ends_with_its_view() {
    let mut members = Members::new(4);
    members.cast(0, "m");
    members.pass(0, 1);
    members.cast(1, "m*");
    members.pass(1, 2);
    members.pass(1, 3);
    members.install(2);
    assert!(members.seen(2).is_empty() && members.seen(3).is_empty());
}

#[test]
fn g05_a_note_that_finds_no_room_is_told_again_and_not_to_the_user() {
    let mut members = Members::new(3);
    members.cast(0, "m");
    members.pass(0, 1);
    let mut flow = Flow::new();
    let cast = || Cast { headers: Headers::default(), payload: Bytes::from_static(b"refused") };
    members.layers[1].down(NOW, Down::Cast(cast()), &mut flow);
    let refused: Vec<_> = flow.downs.drain(..).collect();
    assert_eq!(refused.len(), 2, "a note and the message");
    for request in refused {
        if let Down::Cast(cast) = request {
            members.layers[1].up(NOW, Up::Rejected(cast), &mut flow);
        }
    }
    assert_eq!(flow.ups.into_iter().collect::<Vec<_>>(), [Up::Rejected(cast())]);
    members.cast(1, "m*");
    members.pass(1, 2);
    assert!(members.seen(2).is_empty());
    members.pass(0, 2);
    assert_eq!(members.seen(2), [&b"m"[..], b"m*"]);
}

#[test]
fn g05_what_waits_is_bounded_by_the_windows_of_those_who_send() {
    let mut members = Members::new(3);
    members.cast(0, "m");
    members.pass(0, 1);
    for _ in 0..=HELD_MESSAGES_MAX {
        members.cast(1, "m*");
    }
    members.pass(1, 2);
    assert!(members.saturated[2], "nothing is acknowledged any more");
    members.down(2, Down::Saturated(true));
    members.pass(0, 2);
    assert!(members.saturated[2], "the user does not read");
    members.down(2, Down::Saturated(false));
    assert!(!members.saturated[2]);
    assert_eq!(members.seen(2).len(), HELD_MESSAGES_MAX + 2);
}

#[test]
fn a_note_reads_back_and_one_that_names_too_many_is_refused() {
    let note = |count: u16| Note {
        view: ViewId { group: 1, number: 2 },
        counts: (0..count).map(|rank| (rank, 3)).collect(),
    };
    assert_eq!(Note::from_bytes(note(3).to_bytes()), Ok(note(3)));
    assert!(Note::from_bytes(note(300).to_bytes()).is_err());
}
