//! The stack as building blocks: a layer of the user's own on the library's.

use bytes::Bytes;
use quorate::group::{Builder, JoinError, Own, Stack};
use quorate_protocols::group::{Agreed, Command, Config, Event, Group, agreed};
use quorate_protocols::membership::heartbeat::{self, HeartbeatDetector, Judge};
use quorate_protocols::membership::view_sync::{self, ViewSync};
use quorate_protocols::multicast::fifo::Fifo;
use quorate_protocols::multicast::reliable::{self, Reliable};
use quorate_protocols::multicast::state_transfer::StateTransfer;
use quorate_protocols::multicast::total::{Total, TotalBy};
use quorate_protocols::planted::Plant;
use quorate_protocols::stack::{Cast, Down, Flow, Impossible, Layer, Offer, Pair, Up};
use tests::{everywhere, nets, within};

use crate::messages;
use quorate_protocols::{Input, Machine, Output, Outputs, ProcessId, Time};

/// Counts what each message's sender has said before it, in a header of its own.
#[derive(Default)]
struct Numbered {
    cast: u8,
    heard: Vec<u8>,
}

impl Layer for Numbered {
    type Message = ();

    fn down(&mut self, _: Time, request: Down, flow: &mut Flow<()>) {
        match request {
            Down::Cast(mut cast) => match cast.headers.push(&[self.cast]) {
                Ok(()) => {
                    self.cast += 1;
                    flow.down(Down::Cast(cast));
                }
                Err(_) => flow.up(Up::Rejected(cast)),
            },
            other => flow.down(other),
        }
    }

    fn up(&mut self, _: Time, event: Up, flow: &mut Flow<()>) {
        match event {
            Up::Deliver { sender, first, mut casts } => {
                casts.retain_mut(|cast| {
                    let number = cast.headers.pop::<1>();
                    self.heard.extend(number.iter().flatten());
                    number.is_some()
                });
                flow.up(Up::Deliver { sender, first, casts });
            }
            other => flow.up(other),
        }
    }

    fn receive(&mut self, _: Time, _: ProcessId, (): (), _: &mut Flow<()>) {}

    fn tick(&mut self, _: Time, _: &mut Flow<()>) {}

    fn deadline(&self) -> Option<Time> {
        None
    }

    fn check(&self) -> Result<(), quorate_protocols::Violation> {
        if self.heard.iter().copied().eq(0..self.heard.len() as u8) {
            Ok(())
        } else {
            Err(quorate_protocols::Violation(format!("numbers out of order: {:?}", self.heard)))
        }
    }
}

#[test]
fn g12_a_layer_of_the_users_own_stands_on_the_librarys() {
    let me = ProcessId { node: 1, incarnation: 1 };
    let detector = HeartbeatDetector::new(me, heartbeat::Config::default(), Judge::default());
    let reliable = Reliable::new(me, reliable::Config::default(), Plant::NONE);
    let beat = heartbeat::Config::default();
    let views = ViewSync::new(me, view_sync::Config::default(), &beat, Plant::NONE);
    let agreed = Pair::new(views, Pair::new(reliable, detector));
    let mut group =
        Group::over(Pair::new(Numbered::default(), Pair::new(Fifo, agreed))).expect("a possible stack");

    let mut out = Outputs::new();
    group.handle(Time::ZERO, Input::Command(Command::Create { group: 7 }), &mut out);
    for text in ["one", "two", "three"] {
        group.handle(Time::ZERO, Input::Command(Command::Cast(text.into())), &mut out);
    }
    group.handle(Time::ZERO, Input::Tick, &mut out);
    let heard: Vec<_> = out
        .drain()
        .filter_map(|output| match output {
            Output::Event(Event::Deliver { payload, .. }) => Some(payload),
            _ => None,
        })
        .collect();
    assert_eq!(heard, ["one", "two", "three"]);
    assert_eq!(group.check(), Ok(()), "the layer saw its own headers");
}

/// Packs runs of equal bytes; its kind at the other members unpacks them.
struct Packed;

impl Packed {
    fn pack(payload: &Bytes) -> Bytes {
        let runs = payload.chunk_by(|one, next| one == next).flat_map(|run| run.chunks(255));
        runs.flat_map(|run| [run.len() as u8, run[0]]).collect()
    }

    fn unpack(packed: &Bytes) -> Bytes {
        packed.chunks_exact(2).flat_map(|run| std::iter::repeat_n(run[1], run[0].into())).collect()
    }
}

impl Layer for Packed {
    type Message = ();

    fn down(&mut self, _: Time, request: Down, flow: &mut Flow<()>) {
        let packed = |cast: Cast| Cast { payload: Self::pack(&cast.payload), ..cast };
        flow.down(match request {
            Down::Cast(cast) => Down::Cast(packed(cast)),
            // What the layers above say of their own comes up by the same way.
            Down::CastFirst(cast) => Down::CastFirst(packed(cast)),
            other => other,
        });
    }

    fn up(&mut self, _: Time, event: Up, flow: &mut Flow<()>) {
        let unpacked = |cast: Cast| Cast { payload: Self::unpack(&cast.payload), ..cast };
        flow.up(match event {
            Up::Deliver { sender, first, casts } => {
                Up::Deliver { sender, first, casts: casts.into_iter().map(unpacked).collect() }
            }
            Up::Rejected(cast) => Up::Rejected(unpacked(cast)),
            other => other,
        });
    }

    fn receive(&mut self, _: Time, _: ProcessId, (): (), _: &mut Flow<()>) {}

    fn tick(&mut self, _: Time, _: &mut Flow<()>) {}

    fn deadline(&self) -> Option<Time> {
        None
    }
}

/// Total order of packed messages, with the state for joiners.
struct PackedTotal;

impl Stack for PackedTotal {
    type Layers = Pair<StateTransfer, Pair<Total, Pair<Packed, Agreed>>>;

    fn layers(me: ProcessId, config: &Config) -> Self::Layers {
        let state = StateTransfer::new(me, config.state_transfer, config.plant);
        let total = Total::new(me, TotalBy::Sequencer, config.plant);
        Pair::new(state, Pair::new(total, Pair::new(Packed, agreed(me, config))))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g12_a_stack_of_the_users_own_runs_on_nodes() {
    everywhere(nets(), |net| async move {
        let builder = Builder::<Own<PackedTotal>>::own("packed").stateless();
        let (one, two) = (net.node(1).await, net.node(2).await);
        let (first, mut first_events) = within(builder.clone().create(&one)).await.expect("founds the group");
        let joined = within(builder.join(&two, &one.addresses())).await;
        let (second, mut second_events) = joined.expect("joins the group");
        let sent: Vec<_> = (1..=20).map(|number| Bytes::from(vec![number; 10_000])).collect();
        for pair in sent.chunks(2) {
            first.cast(pair[0].clone()).await.expect("the group takes it");
            second.cast(pair[1].clone()).await.expect("the group takes it");
        }
        let order = messages(&mut first_events, sent.len()).await;
        assert_eq!(messages(&mut second_events, sent.len()).await, order, "{net:?}");
        let mut sorted = order;
        sorted.sort();
        assert_eq!(sorted, sent, "{net:?}");
    })
    .await;
}

/// An order on layers that agree on nothing.
struct OrderOfNothing;

impl Stack for OrderOfNothing {
    type Layers = Pair<Total, Reliable>;

    fn layers(me: ProcessId, config: &Config) -> Self::Layers {
        let total = Total::new(me, TotalBy::Sequencer, config.plant);
        Pair::new(total, Reliable::new(me, config.reliable, config.plant))
    }
}

#[tokio::test]
async fn g12_a_stack_that_cannot_work_is_refused_with_the_reason() {
    let node = tests::memory().node(1).await;
    let refused = within(Builder::<Own<OrderOfNothing>>::own("room").create(&node)).await;
    let Err(JoinError::Impossible(why)) = refused else { panic!("refused, not {refused:?}") };
    assert_eq!(why, Impossible::Missing { layer: "total order", missing: Offer::VIEWS });
    assert_eq!(why.to_string(), "total order needs agreed views below it");

    let (me, config) = (ProcessId { node: 1, incarnation: 1 }, Config::default());
    let total = || Total::new(me, TotalBy::Lamport, config.plant);
    let state = || StateTransfer::new(me, config.state_transfer, config.plant);
    let agreed = || agreed(me, &config);
    let reason = |offer: Result<Offer, Impossible>| offer.expect_err("an impossible stack").to_string();
    let nothing = Offer::NOTHING;
    assert_eq!(
        [
            reason(Pair::new(total(), Pair::new(state(), agreed())).stands_on(nothing)),
            reason(Pair::new(total(), Pair::new(Fifo, agreed())).stands_on(nothing)),
            reason(Pair::new(total(), Pair::new(total(), agreed())).stands_on(nothing)),
            reason(Pair::new(state(), Reliable::new(me, config.reliable, config.plant)).stands_on(nothing)),
        ],
        [
            "total order cannot stand above a layer that gives state for joiners",
            "total order needs word of what a quorum holds below it",
            "total order needs word of what a quorum holds below it",
            "state transfer needs agreed views below it",
        ]
    );
    let whole = Pair::new(state(), Pair::new(total(), agreed())).stands_on(nothing).expect("the usual one");
    assert!(whole.with_all("a user", Offer::TOTAL.and(Offer::STATE)).is_ok());
}
