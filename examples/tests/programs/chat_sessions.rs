//! Several people chat, each in a process of their own.

use super::process::{Running, run, text};

/// Starts a chat process and waits until it is in the room; the address that it listens on.
fn enter(name: &str, join: Option<&str>, order: &str) -> (Running, String) {
    let mut arguments = vec!["--name", name, "--listen", "tcp://127.0.0.1:0", "--order", order];
    arguments.extend(join.into_iter().flat_map(|address| ["--join", address]));
    let mut person = Running::start(name, "chat", &arguments);
    let line = person.expect("* listening on ");
    let address = line.rsplit(' ').next().expect("an address").to_owned();
    (person, address)
}

#[test]
fn a01_three_people_chat_one_is_killed_and_a_late_one_reads_what_was_said() {
    for order in ["total", "fifo"] {
        let (mut ann, address) = enter("ann", None, order);
        ann.expect("* here: ann");
        let (mut bob, _) = enter("bob", Some(&address), order);
        bob.expect("* here: ann, bob");
        ann.expect("* bob is here");
        let (mut cat, _) = enter("cat", Some(&address), order);
        for person in [&mut ann, &mut bob] {
            person.expect("* cat is here");
        }
        cat.expect("* here: ann, bob, cat");
        ann.say("good morning");
        for person in [&mut ann, &mut bob, &mut cat] {
            person.expect("ann: good morning");
        }
        bob.say("what a day");
        for person in [&mut ann, &mut bob, &mut cat] {
            person.expect("bob: what a day");
        }

        bob.kill();
        for person in [&mut ann, &mut cat] {
            person.expect("* bob is gone");
        }
        cat.say("where is bob?");
        ann.expect("cat: where is bob?");

        let (mut dan, _) = enter("dan", Some(&address), order);
        for line in ["ann: good morning", "bob: what a day", "cat: where is bob?"] {
            dan.expect(line);
        }
        dan.expect("* here: ann, cat, dan");
        dan.say("hello from dan");
        for person in [&mut ann, &mut cat] {
            person.expect("dan: hello from dan");
        }
        for person in [&mut dan, &mut cat, &mut ann] {
            person.say("/quit");
            assert!(person.finish().success(), "{:?}", person.seen);
            assert_eq!(person.seen.last().map(String::as_str), Some("* bye"));
        }
    }
}

#[test]
fn a_name_that_is_taken_is_refused_and_its_owner_stays() {
    let (mut ann, address) = enter("ann", None, "total");
    ann.expect("* here: ann");
    let ended = run("chat", &["--name", "ann", "--join", &address]);
    assert!(!ended.status.success());
    assert!(text(&ended.stderr).starts_with("chat: somebody called ann is in the room already"), "{ended:?}");
    let (mut bob, _) = enter("bob", Some(&address), "total");
    ann.expect("* bob is here");
    ann.say("still here");
    bob.expect("ann: still here");
    assert!(!ann.seen.iter().any(|line| line.contains("gone")), "{:?}", ann.seen);
}

#[test]
fn rooms_and_orders_are_apart_although_they_share_an_address() {
    let (mut ann, address) = enter("ann", None, "total");
    ann.expect("* here: ann");
    // Both wait for somebody to let them in, so they wait together.
    let mut strangers = [
        (["--room", "garden"], "no member of group \"garden in total order\""),
        (["--order", "fifo"], "no member of group \"lobby in FIFO order\""),
    ]
    .map(|(arguments, part)| {
        let all = [&["--name", "bob", "--join", &address][..], &arguments].concat();
        (Running::start_with_errors("bob", "chat", &all), part)
    });
    for (bob, part) in &mut strangers {
        bob.expect(part);
        assert!(!bob.finish().success());
    }
}

#[test]
fn nothing_that_is_typed_ends_a_session_but_quit() {
    let (mut ann, address) = enter("ann", None, "total");
    let (mut bob, _) = enter("bob", Some(&address), "total");
    ann.expect("* bob is here");
    ann.say("/dance");
    ann.expect("* /dance is no command; there are /who and /quit");
    ann.say_bytes(b"no \xff text \x1b[31m\n");
    bob.expect("ann: no \u{fffd} text ?[31m");
    ann.say(&"x".repeat(4_500));
    let pieces: Vec<usize> = (0..3).map(|_| bob.expect("ann: x").len() - "ann: ".len()).collect();
    assert_eq!(pieces, [2_000, 2_000, 500]);
    ann.say("/who");
    ann.expect("* here: ann, bob");
}

#[test]
fn an_address_that_cannot_be_used_is_named() {
    let (_ann, taken) = enter("ann", None, "total");
    for (listen, part) in [
        (taken.as_str(), taken.as_str()),
        ("carrier://pigeon", "carrier"),
        ("127.0.0.1:7001", "has no scheme"),
        ("tcp://127.0.0.1", "tcp://127.0.0.1"),
    ] {
        let ended = run("chat", &["--name", "bob", "--listen", listen]);
        assert!(!ended.status.success());
        let said = text(&ended.stderr);
        assert!(said.contains(part) && !said.contains("panicked"), "{listen}: {said}");
    }
}
