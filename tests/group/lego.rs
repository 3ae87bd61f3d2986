//! The stack as building blocks: a layer of the user's own on the library's.

use quorate_protocols::group::{Command, Event, Group};
use quorate_protocols::membership::heartbeat::{self, HeartbeatDetector, Judge};
use quorate_protocols::membership::view_sync::{self, ViewSync};
use quorate_protocols::multicast::fifo::Fifo;
use quorate_protocols::multicast::reliable::{self, Reliable};
use quorate_protocols::planted::Plant;
use quorate_protocols::stack::{Down, Flow, Layer, Pair, Up};
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
    let mut group = Group::over(Pair::new(Numbered::default(), Pair::new(Fifo, agreed)));

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
