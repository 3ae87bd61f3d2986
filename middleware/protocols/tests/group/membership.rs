//! Who stays in a group, when members leave together, come without room, or do not hear each other.

use std::time::Duration;

use quorate_protocols::group::{Command, Config};
use quorate_protocols::stack::{Ended, MEMBERS_MAX, View, ViewId};
use quorate_protocols::{ProcessId, Wire, WireError};

use crate::net::{Net, Told};

const SOON: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(10);

fn group(count: usize) -> Net {
    let net = Net::new(count, Config::default());
    assert!((0..count).all(|node| net.nodes(node).len() == count), "the group forms");
    net
}

#[test]
fn members_that_leave_together_do_not_wait_for_each_other() {
    for count in 2..6 {
        for leavers in 1_u32..1 << count {
            let mut net = group(count);
            let leaves = |node: usize| leavers >> node & 1 == 1;
            (0..count).filter(|node| leaves(*node)).for_each(|node| net.command(node, Command::Leave));
            net.run(SOON);
            let left: Vec<_> = (0..count).filter(|node| !leaves(*node)).collect();
            for node in 0..count {
                let why = leaves(node).then_some(Ended::Left);
                assert_eq!(net.has_ended(node), why, "{node} of {count}, leaving: {leavers:b}");
                assert!(leaves(node) || net.nodes(node) == left, "{node} is in {:?}", net.view(node));
            }
        }
    }
}

/// Nobody else is given up for a member that hears only one other, whichever the two are.
#[test]
fn a_deaf_member_costs_the_group_only_itself() {
    for count in [4, 5, 6] {
        for deaf in 0..count {
            for heard in (0..count).filter(|heard| *heard != deaf) {
                let mut net = group(count);
                let unheard = (0..count).filter(|other| *other != deaf && *other != heard);
                net.cut.extend(unheard.map(|other| (other, deaf)));
                net.run(LONG);
                let rest: Vec<_> = (0..count).filter(|node| *node != deaf).collect();
                for node in &rest {
                    assert_eq!(net.nodes(*node), rest, "{deaf} of {count} hears only {heard}");
                }
            }
        }
    }
}

#[test]
fn one_member_that_hears_nobody_does_not_hold_up_the_others() {
    for deaf in 0..3 {
        let mut net = group(3);
        net.cut.extend((0..3).filter(|other| *other != deaf).map(|other| (other, deaf)));
        net.run(LONG);
        let rest: Vec<_> = (0..3).filter(|node| *node != deaf).collect();
        assert!(rest.iter().all(|node| net.nodes(*node) == rest), "{deaf}: {:?}", net.nodes(rest[0]));
        assert!(net.told[deaf].contains(&Told::QuorumLost));
    }
}

#[test]
fn two_members_that_do_not_hear_each_other_cost_the_group_one_of_them() {
    for count in [3, 4, 5] {
        for one in 0..count {
            for other in one + 1..count {
                let mut net = group(count);
                net.part(one, other);
                let before = net.sent;
                net.run(LONG);
                // The older one stays; whoever did not hear the decision may wait in the view before.
                let rest: Vec<_> = (0..count).filter(|node| *node != other).collect();
                for node in &rest {
                    assert_eq!(net.nodes(*node), rest, "{one} and {other} of {count} are parted");
                }
                let beats = 10 * 10 * (count * count) as u64;
                assert!(net.sent - before < beats * 4, "{} messages", net.sent - before);
            }
        }
    }
}

/// Half of the members with the longest-standing one among them are a quorum, though as many are dead.
#[test]
fn half_of_the_members_go_on_without_the_other_half() {
    for (count, dead) in [(4, vec![1, 2]), (4, vec![2, 3]), (6, vec![1, 2, 3]), (6, vec![1, 3, 5])] {
        let mut net = group(count);
        dead.iter().for_each(|node| net.members[*node] = None);
        net.run(LONG);
        let rest: Vec<_> = (0..count).filter(|node| !dead.contains(node)).collect();
        assert!(rest.iter().all(|node| net.nodes(*node) == rest), "{:?}", net.nodes(0));
    }
}

/// Whoever is silent for less than the detector's time-out is not gone without, even in the middle of a change.
#[test]
fn a_member_that_nobody_suspects_is_waited_for() {
    let mut config = Config::default();
    config.heartbeat.timeout = Duration::from_secs(3);
    let mut net = Net::new(4, config);
    net.cut.extend([(0, 2), (1, 2), (2, 0), (2, 1), (2, 3), (3, 2)]);
    net.command(3, Command::Leave);
    net.run(Duration::from_secs(2));
    assert_eq!(net.nodes(0), [0, 1, 2, 3], "still waiting");
    net.cut.clear();
    net.run(SOON);
    assert_eq!(net.nodes(0), [0, 1, 2]);
    assert_eq!(net.has_ended(2), None);
}

/// A message that was cast right before the leave is delivered by all that stay, also when it has to wait for room.
#[test]
fn what_a_member_cast_before_it_left_is_delivered() {
    let mut config = Config::default();
    config.reliable.window_messages = 2;
    for leaver in 0..3 {
        let mut net = Net::new(3, config);
        for number in 0..20_u8 {
            net.cast(leaver, vec![number]);
        }
        net.command(leaver, Command::Leave);
        net.run(SOON);
        assert_eq!(net.has_ended(leaver), Some(Ended::Left));
        let wanted: Vec<_> = (0..20_u8).map(|number| (leaver, vec![number].into())).collect();
        for stays in (0..3).filter(|node| *node != leaver) {
            assert_eq!(net.delivered(stays), wanted, "{leaver} leaves, {stays} stays");
        }
    }
}

#[test]
fn a_group_that_takes_no_messages_keeps_nobody_from_leaving() {
    let mut config = Config::default();
    config.reliable.window_messages = 1;
    let mut net = Net::new(3, config);
    // The others' applications do not read, and so they acknowledge nothing.
    net.command(0, Command::Saturated(true));
    net.command(1, Command::Saturated(true));
    net.cast(2, vec![1]);
    net.cast(2, vec![2]);
    net.command(2, Command::Leave);
    net.run(SOON);
    assert_eq!(net.has_ended(2), None, "the second message still waits");
    net.run(LONG);
    assert_eq!(net.has_ended(2), Some(Ended::Left));
    assert_eq!(net.nodes(0), [0, 1]);
}

#[test]
fn a_full_group_says_so_and_lets_the_next_one_in_when_there_is_room() {
    let mut config = Config::default();
    config.view_sync.members_max = 2;
    let mut net = Net::new(3, config);
    assert_eq!(net.has_ended(2), Some(Ended::Full));
    assert_eq!(net.nodes(0), [0, 1]);
    net.command(1, Command::Leave);
    net.run(SOON);
    net.be_reborn(2, config);
    net.run(SOON);
    assert_eq!(net.nodes(0), [0, 2]);
}

#[test]
fn a_state_that_is_too_large_ends_the_joiner_and_not_the_group() {
    let mut config = Config::default();
    config.state_transfer.state_bytes_max = 4;
    let mut net = Net::new(2, config);
    assert_eq!(net.has_ended(1), Some(Ended::StateTooLarge));
    net.run(SOON);
    assert_eq!(net.nodes(0), [0], "the joiner said goodbye");
}

#[test]
fn a_view_of_more_members_than_any_group_has_is_refused() {
    let view = |count: u64| View {
        id: ViewId { group: 1, number: 1 },
        members: (0..count).map(|node| ProcessId { node, incarnation: 1 }).collect(),
        synced: (0..count).map(|_| true).collect(),
        quorum_min: 1,
    };
    let most = view(MEMBERS_MAX as u64);
    assert_eq!(View::from_bytes(most.to_bytes()), Ok(most));
    let refused = View::from_bytes(view(MEMBERS_MAX as u64 + 1).to_bytes());
    assert_eq!(refused, Err(WireError::Invalid { what: "view members", value: MEMBERS_MAX as u64 + 1 }));
}

/// A view says of a joiner whose state comes at that very moment that it has none. It knows better.
#[test]
fn a_joiner_that_has_the_state_earlier_than_the_view_says_lets_the_others_leave() {
    for moment in 0..40 {
        let mut net = Net::new(2, Config::default());
        net.add(2, Config::default());
        net.run(Duration::from_micros(50 * moment));
        net.command(1, Command::Leave);
        net.run(SOON);
        net.command(0, Command::Leave);
        net.run(SOON);
        assert_eq!([0, 1].map(|node| net.has_ended(node)), [Some(Ended::Left); 2], "{moment}");
        assert_eq!(net.nodes(2), [2], "{moment}");
    }
}
