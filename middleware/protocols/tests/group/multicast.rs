//! What a group's messages wait for, and how fast what was lost is there again.

use std::time::Duration;

use bytes::Bytes;
use quorate_protocols::group::{Command, Config};

use crate::net::Net;

const SOON: Duration = Duration::from_secs(1);

/// Thirty megabytes, a quarter of a second of the network's.
const BIG: usize = 100 << 10;
const COUNT: usize = 300;

fn cast_big(net: &mut Net, from: usize) {
    let payload = Bytes::from(vec![7; BIG]);
    (0..COUNT).for_each(|_| net.cast(from, payload.clone()));
}

#[test]
fn big_messages_do_not_overflow_the_lane_that_carries_them() {
    for sender in 0..3 {
        let mut net = Net::new(3, Config::default());
        cast_big(&mut net, sender);
        net.run(SOON);
        assert_eq!([0, 1, 2].map(|node| net.delivered(node).len()), [COUNT; 3]);
        assert_eq!(net.overflown, 0);
    }
}

#[test]
fn big_messages_that_were_lost_are_there_again_at_the_speed_of_the_network() {
    let mut net = Net::new(3, Config::default());
    net.lossy.extend([(0, 1), (2, 1)]);
    cast_big(&mut net, 2);
    net.run(Duration::from_millis(200));
    assert_eq!(net.delivered(1), []);
    net.lossy.clear();
    net.run(SOON);
    assert_eq!([0, 1, 2].map(|node| net.delivered(node).len()), [COUNT; 3]);
}

/// The one that sent them is dead, and of those that must go on together one has nothing.
#[test]
fn a_view_change_fetches_megabytes_in_a_moment() {
    let mut net = Net::new(3, Config::default());
    net.lossy.insert((2, 1));
    (0..1800).for_each(|_| net.cast(2, vec![7; 1 << 10]));
    net.run(Duration::from_millis(50));
    net.members[2] = None;
    // The detector takes one second, its beat included.
    net.run(SOON + Duration::from_millis(200));
    assert_eq!([net.nodes(0), net.nodes(1)], [[0, 1], [0, 1]]);
    assert_eq!([net.delivered(0).len(), net.delivered(1).len()], [1800; 2]);
}

#[test]
fn the_order_does_not_wait_behind_the_sequencers_own_messages() {
    let mut config = Config::default();
    config.reliable.window_messages = 2;
    config.reliable.pending_max = 10;
    let mut net = Net::new(3, config);
    // Nothing becomes stable: one member's application does not read.
    net.command(2, Command::Saturated(true));
    for number in 0..2 {
        net.cast(0, vec![number]);
    }
    net.run(SOON);
    (2..12).for_each(|number| net.cast(0, vec![number]));
    net.cast(1, vec![42]);
    net.run(SOON);
    let seen = |net: &Net, node| net.delivered(node).iter().filter(|(from, _)| *from == 1).count();
    assert_eq!([seen(&net, 0), seen(&net, 1)], [1; 2], "a quorum has it, and its place");
    net.command(2, Command::Saturated(false));
    net.run(SOON);
    assert_eq!([0, 1, 2].map(|node| net.delivered(node).len()), [13; 3]);
}

#[test]
fn a_member_that_does_not_read_is_not_given_its_own_messages_either() {
    for count in [1, 3] {
        let mut net = Net::new(count, Config::default());
        net.command(0, Command::Saturated(true));
        (0..100_u8).for_each(|number| net.cast(0, vec![number]));
        net.run(SOON);
        assert_eq!(net.delivered(0), []);
        net.command(0, Command::Saturated(false));
        net.run(SOON);
        assert_eq!(net.delivered(0).len(), 100);
    }
}
