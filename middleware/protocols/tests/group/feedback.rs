//! Feedback in a large group: how many members ask when one loss hits all of them?

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use quorate_protocols::multicast::reliable::{Config, Feedback, Message, Reliable};
use quorate_protocols::planted::Plant;
use quorate_protocols::stack::{Cast, Down, Flow, Headers, Layer, Up, View, ViewId};
use quorate_protocols::{ProcessId, Time};

const TRAVEL: Duration = Duration::from_millis(5);
const SUPPRESSED: Feedback = Feedback::Suppressed { spread: Duration::from_millis(40) };
const ROUNDS: u64 = 3;

const FANOUT: u16 = 4;

/// Prints the table: questions for one message that nobody got, by the number of members; of a tree how many the one gets that
/// gets most.
#[test]
fn g03_feedback_for_a_loss_that_all_share_hardly_grows_with_the_group_when_it_is_suppressed() {
    println!("{:>8} {:>8} {:>12} {:>12}", "members", "direct", "suppressed", "tree, each");
    for members in [2, 4, 8, 16, 32, 64, 128] {
        let (direct, to_sender) = Room::new(members, Feedback::Direct, 1).questions();
        let (_, to_each) = Room::new(members, Feedback::Tree { fanout: FANOUT }, 1).questions();
        let rounds = (1..=ROUNDS).map(|round| Room::new(members, SUPPRESSED, round).questions().0);
        let suppressed: u64 = rounds.sum();
        println!("{members:>8} {direct:>8} {:>12.1} {to_each:>12}", suppressed as f64 / ROUNDS as f64);
        assert_eq!(
            (direct, to_sender),
            (members as u64 - 1, members as u64 - 1),
            "everybody asks the sender"
        );
        assert!(to_each <= u64::from(FANOUT), "{to_each} questions to one member");
        assert!(suppressed <= 5 * ROUNDS, "{suppressed} questions in {ROUNDS} rounds");
    }
}

/// Members with nothing but reliable multicast; what they send takes its time.
struct Room {
    now: Time,
    ids: Vec<ProcessId>,
    layers: Vec<Reliable>,
    mail: BTreeMap<(Time, u64), (usize, usize, Message)>,
    delivered: Vec<usize>,
    /// Frames that were sent, one for each receiver.
    sent: u64,
    /// Questions, of which one to all counts once.
    asked: u64,
    /// Questions to each alone.
    asked_of: Vec<u64>,
    /// Data is lost.
    is_lossy: bool,
}

impl Room {
    fn new(members: usize, feedback: Feedback, group: u64) -> Self {
        let ids: Vec<_> = (0..members as u64).map(|node| ProcessId { node, incarnation: group }).collect();
        let config = Config { feedback, ..Config::default() };
        let mut room = Self {
            now: Time::from_nanos(1_000_000_000),
            layers: ids.iter().map(|id| Reliable::new(*id, config, Plant::NONE)).collect(),
            ids,
            mail: BTreeMap::new(),
            delivered: vec![0; members],
            sent: 0,
            asked: 0,
            asked_of: vec![0; members],
            is_lossy: false,
        };
        let view = View {
            id: ViewId { group, number: 1 },
            members: room.ids.clone().into(),
            synced: vec![true; members].into(),
            quorum_min: 1,
        };
        for node in 0..members {
            let view = view.clone();
            room.work(node, |layer, now, flow| layer.down(now, Down::Install { view, cut: None }, flow));
        }
        room
    }

    /// How often somebody asks for a message that is lost on its way to everybody, until all have it; and how often the one
    /// that is asked most.
    fn questions(mut self) -> (u64, u64) {
        self.is_lossy = true;
        self.cast();
        self.is_lossy = false;
        // Shows the gap.
        self.cast();
        let end = self.now + Duration::from_secs(2);
        while self.now < end && self.delivered.iter().any(|count| *count < 2) {
            self.now = self.now + Duration::from_micros(500);
            self.step();
        }
        assert!(self.delivered.iter().all(|count| *count == 2), "{:?}", self.delivered);
        (self.asked, self.asked_of.iter().copied().max().unwrap_or(0))
    }

    fn cast(&mut self) {
        let cast = Cast { headers: Headers::default(), payload: Bytes::from_static(b"message") };
        self.work(0, |layer, now, flow| {
            layer.down(now, Down::Cast(cast), flow);
            layer.tick(now, flow);
        });
    }

    fn step(&mut self) {
        while let Some(entry) = self.mail.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let (from, to, message) = entry.remove();
            let from = self.ids[from];
            self.work(to, |layer, now, flow| layer.receive(now, from, message, flow));
        }
        for node in 0..self.layers.len() {
            if self.layers[node].deadline().is_some_and(|at| at <= self.now) {
                self.work(node, |layer, now, flow| layer.tick(now, flow));
            }
        }
    }

    fn work(&mut self, node: usize, work: impl FnOnce(&mut Reliable, Time, &mut Flow<Message>)) {
        let mut flow = Flow::new();
        work(&mut self.layers[node], self.now, &mut flow);
        for event in flow.drain_ups() {
            if let Up::Deliver { casts, .. } = event {
                self.delivered[node] += casts.len();
            }
        }
        for (to, _, message) in flow.drain_sends() {
            self.asked += u64::from(matches!(message, Message::Nak { .. }));
            let is_lost = self.is_lossy && matches!(message, Message::Data { .. });
            for peer in to.as_slice() {
                let is_question = matches!(message, Message::Nak { to_all: false, .. });
                self.asked_of[peer.node as usize] += u64::from(is_question);
                self.sent += 1;
                // What travels side by side does not arrive at one moment.
                let late = Duration::from_micros(self.sent * 37 % 1000);
                if !is_lost {
                    let mail = (node, peer.node as usize, message.clone());
                    self.mail.insert((self.now + TRAVEL + late, self.sent), mail);
                }
            }
        }
    }
}
