//! The machine alone: how much it takes from a peer, and how much it sends at a time.

use bytes::Bytes;
use quorate_protocols::transfer::{
    BATCH_BYTES, Command, Config, Event, ITEM_BYTES, Item, Message, Question, STORING_MAX, Transfer,
};
use quorate_protocols::{Input, Machine, Output, Outputs, ProcessId, Time, Wire};

const PEER: ProcessId = ProcessId { node: 7, incarnation: 1 };

fn give(machine: &mut Transfer, input: Input<Transfer>) -> Vec<Output<Transfer>> {
    let mut out = Outputs::new();
    machine.handle(Time::ZERO, input, &mut out);
    out.drain().collect()
}

fn hear(machine: &mut Transfer, message: Message) -> Vec<Output<Transfer>> {
    give(machine, Input::Received { from: PEER, message })
}

#[test]
fn q05_a_peer_that_says_again_and_again_that_its_disk_is_new_fills_no_memory() {
    let mut machine = Transfer::new(Config::new(1, 1), [], []);
    let batch = |birth, number| {
        let items = vec![Item { number, body: Bytes::from_static(b"body") }];
        Message::Batch { birth, life: 1, mark: 1, previous: number - 1, items }
    };
    let mut storing = Vec::new();
    for birth in 1..5 {
        hear(&mut machine, Message::Open { birth, question: Question { life: 1, number: birth } });
        for number in 1..=STORING_MAX as u64 {
            for output in hear(&mut machine, batch(birth, number)) {
                if let Output::Event(Event::Store { place, .. }) = output {
                    storing.push(place);
                }
            }
        }
    }
    assert_eq!(storing.len(), STORING_MAX);
    // What is stored makes room, whatever disk it is of.
    for place in storing {
        give(&mut machine, Input::Command(Command::Stored(place)));
    }
    let taken = hear(&mut machine, batch(4, 1));
    assert!(matches!(&taken[..], [Output::Event(Event::Store { .. })]), "{}", taken.len());
}

#[test]
fn q05_a_peer_whose_disk_is_older_than_its_last_one_is_told_to_the_user() {
    let mut machine = Transfer::new(Config::new(1, 1), [], []);
    let open = |birth| Message::Open { birth, question: Question { life: 1, number: birth } };
    hear(&mut machine, open(9));
    let heard = hear(&mut machine, open(8));
    let [told, Output::Send { message: answer, .. }] = &heard[..] else { panic!("{}", heard.len()) };
    assert!(matches!(told, Output::Event(Event::Outdated { from: 7, birth: 8, known: 9 })), "{told:?}");
    assert!(matches!(answer, Message::Outdated { birth: 8, known: 9, .. }), "so is the peer: {answer:?}");
}

#[test]
fn q05_a_batch_takes_no_more_on_the_wire_than_asked_but_for_a_single_large_message() {
    let mut config = Config::new(1, 1);
    config.batch_bytes = 500;
    let mut machine = Transfer::new(config, [], []);
    let items: Vec<_> = (1..=300)
        .map(|number| Item {
            number,
            body: vec![0; if number % 50 == 0 { 600 } else { number as usize % 90 }].into(),
        })
        .collect();
    let mut inputs = vec![Input::Command(Command::Offer { to: 7 })];
    let mut sent = 0;
    while let Some(input) = inputs.pop() {
        for output in give(&mut machine, input) {
            match output {
                Output::Send { message: Message::Open { birth, question }, .. } => {
                    let message = Message::Opened { birth, question, stored: 0, mark: 0, bytes_max: 1 << 20 };
                    inputs.push(Input::Received { from: PEER, message });
                }
                Output::Send { message, .. } => {
                    let Message::Batch { items, .. } = &message else { continue };
                    sent += items.len();
                    let bytes: usize = items.iter().map(|item| ITEM_BYTES + item.body.len()).sum();
                    assert_eq!(message.to_bytes().len(), BATCH_BYTES + bytes);
                    assert!(items.len() == 1 || BATCH_BYTES + bytes <= 500, "{} items", items.len());
                }
                Output::Event(Event::Fetch { to, after: 0, .. }) => {
                    inputs.push(Input::Command(Command::Fetched { to, after: 0, items: items.clone() }));
                }
                _ => {}
            }
        }
    }
    assert_eq!(sent, 300);
}
