//! Several people chat, each in a process of their own.

use super::process::Running;

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
