//! The RPC machines by hand: one input, the outputs that follow, in words.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use quorate_protocols::rpc::{
    CallId, Client, ClientCommand, ClientConfig, ClientEvent, Doubt, Message, Outcome, Refusal, Rejection,
    Semantics, Server, ServerCommand, ServerConfig, ServerEvent, Verdict,
};
use quorate_protocols::{Input, Machine, Output, Outputs, ProcessId, Time, Wire};

const SERVER: ProcessId = ProcessId { node: 1, incarnation: 5 };
const RESTARTED: ProcessId = ProcessId { node: 1, incarnation: 6 };
const CLIENT: ProcessId = ProcessId { node: 2, incarnation: 1 };

/// A client, what it says in words, and the time in milliseconds.
struct Caller {
    client: Client,
    now: u64,
}

impl Caller {
    fn bound() -> Self {
        let mut caller = Self { client: Client::new(SERVER, ClientConfig::new(3, 1, 42)), now: 0 };
        assert_eq!(caller.tick(0), "bind");
        assert_eq!(caller.hear(SERVER, bound(70)), "event bound(1#5)");
        caller
    }

    fn handle(&mut self, input: Input<Client>) -> String {
        let mut out = Outputs::new();
        self.client.handle(Time::from_nanos(self.now * 1_000_000), input, &mut out);
        self.client.check().unwrap();
        out.drain().map(|output| words(&output)).collect::<Vec<_>>().join(" ")
    }

    fn tick(&mut self, at_ms: u64) -> String {
        self.now = at_ms;
        self.handle(Input::Tick)
    }

    fn hear(&mut self, from: ProcessId, message: Message) -> String {
        self.handle(Input::Received { from, message })
    }

    fn call(&mut self, token: u32, semantics: Semantics, budget_ms: u64) -> String {
        let deadline = Time::from_nanos(self.now * 1_000_000) + Duration::from_millis(budget_ms);
        let body = Bytes::from_static(b"?");
        self.handle(Input::Command(ClientCommand::Call {
            token,
            method: 9,
            signature: 8,
            semantics,
            deadline,
            body,
        }))
    }
}

fn words(output: &Output<Client>) -> String {
    match output {
        Output::Send { message: Message::Bind { .. }, .. } => "bind".into(),
        Output::Send { message: Message::Request { session, call, behind, .. }, .. } => {
            format!("request({call} in {session}, {behind} behind)")
        }
        Output::Send { message: Message::Cancel { call, .. }, .. } => format!("cancel({call})"),
        Output::Send { message, .. } => format!("{message:?}"),
        Output::Event(ClientEvent::Bound(server)) => format!("event bound({server})"),
        Output::Event(ClientEvent::Rejected(reason)) => format!("event rejected({reason:?})"),
        Output::Event(ClientEvent::Ended { token, outcome }) => format!("event ended({token}, {outcome:?})"),
        Output::Persist(()) => "persist".into(),
        Output::Barrier => "barrier".into(),
    }
}

const fn bound(session: u64) -> Message {
    Message::Bound { client: 3, session, slots: 100, seat: 0, renewal: Duration::ZERO }
}

fn reply(session: u64, call: CallId) -> Message {
    Message::Reply { client: 3, session, call, verdict: Verdict::Done(Bytes::from_static(b"!")) }
}

const fn id(sequence: u64, slot: u32) -> CallId {
    CallId { slot, sequence }
}

#[test]
fn r06_a_lost_request_is_sent_again_under_the_same_id_ever_more_rarely() {
    let mut caller = Caller::bound();
    assert_eq!(caller.call(1, Semantics::AtMostOnce, 60_000), "request(1@0 in 70, 0 behind)");
    let mut sent_at = vec![0];
    for ms in 1..30_000 {
        match caller.tick(ms).as_str() {
            "" => {}
            "request(1@0 in 70, 0 behind)" => sent_at.push(ms),
            other => panic!("{other} at {ms}"),
        }
    }
    let waits: Vec<u64> = sent_at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!((150..=250).contains(&waits[0]), "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= 6_250), "{waits:?}");
    assert!(waits[4] > 2_000 && waits.len() < 12, "{waits:?}");
    assert_eq!(caller.hear(SERVER, reply(70, id(1, 0))), "event ended(1, Replied(b\"!\"))");
    assert_eq!(caller.hear(SERVER, reply(70, id(1, 0))), "", "a second copy of the reply");
    assert_eq!(caller.client.stats().late_replies, 1);
}

#[test]
fn r06_a_server_that_is_at_it_is_not_asked_again_soon() {
    let mut caller = Caller::bound();
    caller.call(1, Semantics::AtMostOnce, 60_000);
    caller.hear(SERVER, Message::Working { client: 3, session: 70, call: id(1, 0) });
    assert_eq!(caller.tick(4_999), "");
    assert_eq!(caller.tick(5_000), "request(1@0 in 70, 0 behind)");
}

#[test]
fn a_call_ends_at_its_deadline_and_says_whether_it_was_sent() {
    let mut caller = Caller::bound();
    caller.call(1, Semantics::AtMostOnce, 100);
    assert_eq!(caller.tick(99), "");
    assert_eq!(caller.tick(100), "event ended(1, DeadlinePassed { sent: true })");
    caller.handle(Input::Unreachable(SERVER));
    assert_eq!(caller.call(2, Semantics::AtMostOnce, 100), "", "it waits for the server");
    assert_eq!(caller.tick(200), "event ended(2, DeadlinePassed { sent: false })");
}

#[test]
fn a_cancelled_call_ends_silently_and_its_slot_is_used_again() {
    let mut caller = Caller::bound();
    assert_eq!(caller.client.upcoming(), id(1, 0));
    caller.call(1, Semantics::AtMostOnce, 1_000);
    assert_eq!(caller.handle(Input::Command(ClientCommand::Cancel(id(1, 0)))), "cancel(1@0)");
    assert_eq!(caller.hear(SERVER, reply(70, id(1, 0))), "");
    assert_eq!(caller.call(2, Semantics::AtMostOnce, 1_000), "request(2@0 in 70, 0 behind)");
    assert_eq!(
        caller.handle(Input::Command(ClientCommand::Cancel(id(1, 0)))),
        "",
        "an old id cancels nothing"
    );
}

#[test]
fn the_oldest_incomplete_call_travels_with_every_request() {
    let mut caller = Caller::bound();
    caller.call(1, Semantics::AtMostOnce, 1_000);
    assert_eq!(caller.call(2, Semantics::AtMostOnce, 1_000), "request(2@1 in 70, 1 behind)");
    assert_eq!(caller.call(3, Semantics::AtMostOnce, 1_000), "request(3@2 in 70, 2 behind)");
    caller.hear(SERVER, reply(70, id(1, 0)));
    assert_eq!(caller.call(4, Semantics::AtMostOnce, 1_000), "request(4@0 in 70, 2 behind)");
}

#[test]
fn r08_after_a_restart_of_the_server_only_idempotent_calls_are_sent_again() {
    let mut caller = Caller::bound();
    caller.call(1, Semantics::AtMostOnce, 60_000);
    caller.call(2, Semantics::Idempotent, 60_000);
    assert_eq!(
        caller.hear(RESTARTED, Message::Lost { client: 3, session: 70 }),
        "event ended(1, MaybeExecuted(SessionLost)) bind"
    );
    assert_eq!(caller.call(3, Semantics::AtMostOnce, 60_000), "", "it waits for the new session");
    assert_eq!(
        caller.hear(RESTARTED, bound(71)),
        "event bound(1#6) request(2@1 in 71, 0 behind) request(3@0 in 71, 1 behind)"
    );
    assert_eq!(caller.hear(SERVER, reply(70, id(3, 0))), "", "an earlier life says nothing any more");
}

#[test]
fn r08_a_refusal_after_a_restart_does_not_say_that_nothing_was_executed_before() {
    let mut caller = Caller::bound();
    caller.call(1, Semantics::Idempotent, 60_000);
    caller.call(2, Semantics::Idempotent, 60_000);
    caller.hear(RESTARTED, Message::Lost { client: 3, session: 70 });
    caller.call(3, Semantics::Idempotent, 60_000);
    // The new life has one place only.
    let narrow = Message::Bound { client: 3, session: 71, slots: 1, seat: 0, renewal: Duration::ZERO };
    assert_eq!(
        caller.hear(RESTARTED, narrow),
        format!(
            "event bound(1#6) request(1@0 in 71, 0 behind) event ended(2, MaybeExecuted(SessionLost)) event ended(3, {:?})",
            Outcome::TooManyCalls { limit: 1 }
        )
    );
    let verdict = Verdict::Refused(Refusal::Overloaded);
    assert_eq!(
        caller.hear(
            RESTARTED,
            Message::Reply { client: 3, session: 71, call: id(1, 0), verdict: verdict.clone() }
        ),
        "event ended(1, MaybeExecuted(SessionLost))"
    );
    caller.call(4, Semantics::Idempotent, 60_000);
    let call = id(4, 0);
    assert_eq!(
        caller.hear(RESTARTED, Message::Reply { client: 3, session: 71, call, verdict }),
        "event ended(4, NotExecuted(Overloaded))",
        "of a call that was sent to this life only it is known"
    );
}

#[test]
fn a_broken_connection_alone_loses_nothing() {
    let mut caller = Caller::bound();
    caller.call(1, Semantics::AtMostOnce, 60_000);
    assert_eq!(caller.handle(Input::Unreachable(SERVER)), "bind");
    assert_eq!(caller.handle(Input::Reachable(SERVER)), "bind");
    assert_eq!(caller.hear(SERVER, bound(70)), "request(1@0 in 70, 0 behind)");
}

/// A server, and what it says in words.
struct Service {
    server: Server,
    session: u64,
}

impl Service {
    fn new(config: ServerConfig) -> Self {
        let mut service = Self { server: Server::new(config), session: 0 };
        let mut out = Outputs::new();
        let message = Message::Bind { client: 3, codec: 1, exactly_once: false };
        service.server.handle(Time::ZERO, Input::Received { from: CLIENT, message }, &mut out);
        for output in out.drain() {
            if let Output::Send { message: Message::Bound { session, .. }, .. } = output {
                service.session = session;
            }
        }
        service
    }

    fn handle(&mut self, input: Input<Server>) -> (String, Vec<ServerEvent>) {
        let (mut words, mut events) = (Vec::new(), Vec::new());
        let mut out = Outputs::new();
        self.server.handle(Time::ZERO, input, &mut out);
        self.server.check().unwrap();
        for output in out.drain() {
            match output {
                Output::Send { message: Message::Reply { call, verdict, .. }, .. } => {
                    words.push(format!("reply({call}, {verdict:?})"));
                }
                Output::Send { message: Message::Working { call, .. }, .. } => {
                    words.push(format!("working({call})"))
                }
                Output::Send { message, .. } => words.push(format!("{message:?}")),
                Output::Event(event) => {
                    words.push(match &event {
                        ServerEvent::Execute { execution, .. } => format!("execute({})", execution.call),
                        ServerEvent::Abort(execution) => format!("abort({})", execution.call),
                        ServerEvent::SeatWanted { client, .. } => format!("seat for {client}"),
                    });
                    events.push(event);
                }
                Output::Persist(()) | Output::Barrier => {}
            }
        }
        (words.join(" "), events)
    }

    fn request(&mut self, call: CallId, behind: u32, semantics: Semantics) -> (String, Vec<ServerEvent>) {
        let message = Message::Request {
            client: 3,
            session: self.session,
            call,
            behind,
            method: 9,
            signature: 8,
            semantics,
            budget: Duration::from_secs(1),
            body: Bytes::from_static(b"?"),
        };
        self.handle(Input::Received { from: CLIENT, message })
    }

    /// Executes a request to its end.
    fn serve(&mut self, call: CallId, behind: u32, semantics: Semantics) -> String {
        let (_, events) = self.request(call, behind, semantics);
        let [ServerEvent::Execute { execution, .. }] = events[..] else { panic!("{events:?}") };
        let verdict = Verdict::Done(Bytes::from_static(b"!"));
        self.handle(Input::Command(ServerCommand::Complete { execution, verdict })).0
    }
}

#[test]
fn r08_a_repeated_request_gets_the_kept_reply_and_is_not_executed_again() {
    let mut service = Service::new(ServerConfig::new(1, 7));
    assert_eq!(service.request(id(1, 0), 0, Semantics::AtMostOnce).0, "execute(1@0)");
    assert_eq!(service.request(id(1, 0), 0, Semantics::AtMostOnce).0, "working(1@0)");
    assert_eq!(service.serve(id(2, 1), 1, Semantics::AtMostOnce), "reply(2@1, Done(b\"!\"))");
    assert_eq!(service.request(id(2, 1), 1, Semantics::AtMostOnce).0, "reply(2@1, Done(b\"!\"))");
}

#[test]
fn r08_an_idempotent_request_keeps_no_reply_and_is_executed_again() {
    let mut service = Service::new(ServerConfig::new(1, 7));
    service.serve(id(1, 0), 0, Semantics::Idempotent);
    assert_eq!(service.server.kept_bytes(), 0);
    assert_eq!(service.request(id(1, 0), 0, Semantics::Idempotent).0, "execute(1@0)");
}

#[test]
fn r08_the_repetition_of_what_was_executed_is_not_refused_as_if_nothing_had_been() {
    let mut config = ServerConfig::new(1, 7);
    config.executing_max = 1;
    let mut service = Service::new(config);
    service.serve(id(1, 0), 0, Semantics::Idempotent);
    service.request(id(2, 1), 1, Semantics::Idempotent);
    assert_eq!(service.request(id(1, 0), 0, Semantics::Idempotent).0, "reply(1@0, Doubtful(ReplyForgotten))");
    assert_eq!(service.request(id(3, 2), 2, Semantics::Idempotent).0, "reply(3@2, Refused(Overloaded))");
}

#[test]
fn r08_a_late_copy_of_what_the_client_has_done_with_is_executed_by_nobody() {
    let mut service = Service::new(ServerConfig::new(1, 7));
    // "Set it to 1" in slot 1, then "set it to 2" in slot 0; the first one's copy was delayed.
    service.serve(id(2, 1), 0, Semantics::Idempotent);
    service.serve(id(3, 0), 0, Semantics::Idempotent);
    assert_eq!(service.request(id(2, 1), 0, Semantics::Idempotent).0, "");
    // Never seen before, but its caller has given up.
    assert_eq!(service.request(id(1, 2), 0, Semantics::AtMostOnce).0, "");
    assert_eq!(service.request(id(1, 2), 0, Semantics::OneWay).0, "execute(1@2)");
    assert_eq!(service.server.stats().stale, 2);
    // A call that four billion younger ones have overtaken is not complete.
    service.request(id(u64::MAX, 3), u32::MAX, Semantics::AtMostOnce);
    assert_eq!(service.request(id(4, 4), 0, Semantics::AtMostOnce).0, "execute(4@4)");
}

#[test]
fn a_call_without_time_is_not_sent() {
    let mut caller = Caller::bound();
    assert_eq!(
        caller.call(1, Semantics::AtMostOnce, 0),
        format!("event ended(1, {:?})", Outcome::DeadlinePassed { sent: false })
    );
    caller.handle(Input::Unreachable(SERVER));
    caller.call(2, Semantics::AtMostOnce, 100);
    caller.now = 100;
    assert_eq!(
        caller.hear(SERVER, bound(70)),
        format!("event ended(2, {:?})", Outcome::DeadlinePassed { sent: false }),
        "the server came back too late"
    );
}

#[test]
fn r08_acknowledged_replies_are_dropped_and_the_cache_stays_within_its_bytes() {
    let mut config = ServerConfig::new(1, 7);
    config.reply_bytes_max = 150;
    let mut service = Service::new(config);
    service.serve(id(1, 0), 0, Semantics::AtMostOnce);
    service.serve(id(2, 1), 1, Semantics::AtMostOnce);
    assert_eq!(service.server.kept_bytes(), 130);
    service.serve(id(3, 2), 2, Semantics::AtMostOnce);
    assert_eq!(service.server.kept_bytes(), 130, "the oldest made room");
    assert_eq!(service.request(id(1, 0), 0, Semantics::AtMostOnce).0, "reply(1@0, Doubtful(ReplyForgotten))");
    service.request(id(4, 3), 0, Semantics::AtMostOnce);
    assert_eq!(service.server.kept_bytes(), 0, "everything below 4 is complete");
}

#[test]
fn r08_a_newer_call_in_the_slot_ends_the_older_one() {
    let mut service = Service::new(ServerConfig::new(1, 7));
    service.request(id(1, 0), 0, Semantics::AtMostOnce);
    assert_eq!(service.request(id(2, 0), 0, Semantics::AtMostOnce).0, "abort(1@0) execute(2@0)");
    assert_eq!(service.request(id(1, 0), 0, Semantics::AtMostOnce).0, "", "a late copy of the older one");
}

#[test]
fn r07_what_has_executed_and_only_waits_to_be_told_leaves_its_place_to_another() {
    let mut config = ServerConfig::new(1, 7);
    config.executing_max = 1;
    let mut service = Service::new(config);
    let (_, events) = service.request(id(1, 0), 0, Semantics::AtMostOnce);
    let [ServerEvent::Execute { execution, .. }] = events[..] else { panic!("{events:?}") };
    let refused = "reply(2@1, Refused(Overloaded))";
    assert_eq!(service.request(id(2, 1), 1, Semantics::AtMostOnce).0, refused);
    for _ in 0..2 {
        service.handle(Input::Command(ServerCommand::Executed(execution)));
        assert_eq!(service.server.executing(), 0);
    }
    assert_eq!(service.request(id(1, 0), 0, Semantics::AtMostOnce).0, "working(1@0)");
    assert_eq!(service.request(id(3, 2), 2, Semantics::AtMostOnce).0, "execute(3@2)");
    let verdict = Verdict::Done(Bytes::from_static(b"!"));
    let (words, _) = service.handle(Input::Command(ServerCommand::Complete { execution, verdict }));
    assert_eq!(words, "reply(1@0, Done(b\"!\"))");
    assert_eq!(service.server.executing(), 1);
}

#[test]
fn a_cancellation_that_overtakes_its_request_is_remembered() {
    let mut service = Service::new(ServerConfig::new(1, 7));
    let message = Message::Cancel { client: 3, session: service.session, call: id(1, 0) };
    assert_eq!(service.handle(Input::Received { from: CLIENT, message }).0, "");
    let (words, _) = service.request(id(1, 0), 0, Semantics::AtMostOnce);
    assert_eq!(words, "reply(1@0, Doubtful(ReplyForgotten))");
}

#[test]
fn r08_a_new_life_of_the_client_ends_what_runs_for_the_old_one() {
    let mut service = Service::new(ServerConfig::new(1, 7));
    service.request(id(1, 0), 0, Semantics::AtMostOnce);
    let from = ProcessId { incarnation: 2, ..CLIENT };
    let message = Message::Bind { client: 3, codec: 1, exactly_once: false };
    let (words, _) = service.handle(Input::Received { from, message });
    assert!(words.starts_with("abort(1@0) Bound"), "{words}");
    assert_eq!(service.server.clients(), 1);
    let message = Message::Bind { client: 3, codec: 1, exactly_once: false };
    assert_eq!(
        service.handle(Input::Received { from: CLIENT, message }).0,
        "",
        "a late message of the old life"
    );
}

#[test]
fn an_unknown_session_is_told_so_and_another_codec_is_refused() {
    let mut service = Service::new(ServerConfig::new(1, 7));
    service.session += 1;
    let lost = format!("Lost {{ client: 3, session: {} }}", service.session);
    assert_eq!(service.request(id(1, 0), 0, Semantics::AtMostOnce).0, lost);
    let message = Message::Bind { client: 4, codec: 2, exactly_once: false };
    let (words, _) = service.handle(Input::Received { from: CLIENT, message });
    assert_eq!(words, "Rejected { client: 4, reason: CodecMismatch }");
}

#[test]
fn every_message_survives_its_layout_and_damage_is_refused() {
    let call = id(u64::MAX, 77);
    let messages = [
        Message::Bind { client: 3, codec: 1, exactly_once: false },
        bound(9),
        Message::Rejected { client: 1, reason: Rejection::NoSuchService },
        Message::Request {
            client: 3,
            session: 1,
            call,
            behind: 4,
            method: 9,
            signature: 8,
            semantics: Semantics::Idempotent,
            budget: Duration::from_micros(1_500),
            body: Bytes::from_static(b"arguments"),
        },
        reply(1, call),
        Message::Reply { client: 3, session: 1, call, verdict: Verdict::Refused(Refusal::Overloaded) },
        Message::Reply { client: 3, session: 1, call, verdict: Verdict::Doubtful(Doubt::HandlerFailed) },
        Message::Working { client: 3, session: 1, call },
        Message::Cancel { client: 3, session: 1, call },
        Message::Lost { client: 3, session: 1 },
    ];
    for message in messages {
        let bytes = message.to_bytes();
        assert_eq!(Message::from_bytes(bytes.clone()).unwrap(), message);
        for length in 0..bytes.len() {
            Message::from_bytes(bytes.slice(..length)).unwrap_err();
        }
        for index in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.to_vec();
                damaged[index] ^= 1 << bit;
                // Refused or another message, never a panic.
                let _ = Message::from_bytes(damaged.into());
            }
        }
    }
}

#[test]
fn too_many_calls_are_told_so_at_once() {
    let mut config = ClientConfig::new(3, 1, 42);
    config.calls_max = 2;
    let mut caller = Caller { client: Client::new(SERVER, config), now: 0 };
    caller.tick(0);
    caller.hear(SERVER, bound(70));
    caller.call(1, Semantics::AtMostOnce, 1_000);
    caller.call(2, Semantics::AtMostOnce, 1_000);
    assert_eq!(
        caller.call(3, Semantics::AtMostOnce, 1_000),
        format!("event ended(3, {:?})", Outcome::TooManyCalls { limit: 2 })
    );
}

#[test]
fn p02_who_knows_that_the_server_goes_sends_it_nothing_new_and_is_answered_what_it_sent() {
    let mut service = Service::new(ServerConfig::new(1, 7));
    assert_eq!(
        service.handle(Input::Command(ServerCommand::Drain)).0,
        "Rejected { client: 3, reason: ShuttingDown }"
    );
    assert_eq!(service.handle(Input::Command(ServerCommand::Drain)).0, "", "once is enough");
    assert_eq!(service.request(id(1, 0), 0, Semantics::AtMostOnce).0, "reply(1@0, Refused(ShuttingDown))");

    let mut caller = Caller::bound();
    caller.call(1, Semantics::AtMostOnce, 60_000);
    assert!(caller.client.is_served());
    let going = Message::Rejected { client: 3, reason: Rejection::ShuttingDown };
    assert_eq!(caller.hear(SERVER, going), "");
    assert!(!caller.client.is_served());
    for semantics in [Semantics::AtMostOnce, Semantics::Idempotent, Semantics::OneWay] {
        assert_eq!(caller.call(2, semantics, 60_000), "event ended(2, NotExecuted(ShuttingDown))");
    }
    assert_eq!(caller.tick(300), "request(1@0 in 70, 0 behind)", "what was sent is asked for again");
    assert_eq!(caller.hear(SERVER, reply(70, id(1, 0))), "event ended(1, Replied(b\"!\"))");
    assert_eq!(caller.hear(RESTARTED, bound(71)), "event bound(1#6)");
    assert!(caller.client.is_served(), "the next life is another one");
    assert_eq!(caller.call(3, Semantics::AtMostOnce, 1_000), "request(5@0 in 71, 0 behind)");
}

/// Any message, with fields from a small range, so that they meet.
fn any_message() -> impl Strategy<Value = Message> {
    let call = (0..4u32, 0..6u64).prop_map(|(slot, sequence)| CallId { slot, sequence });
    let semantics =
        prop_oneof![Just(Semantics::AtMostOnce), Just(Semantics::Idempotent), Just(Semantics::OneWay)];
    let verdict = prop_oneof![
        Just(Verdict::Done(Bytes::from_static(b"!"))),
        Just(Verdict::Refused(Refusal::Overloaded)),
        Just(Verdict::Doubtful(Doubt::Abandoned)),
    ];
    // 0 stands for the session that the other side knows; it is filled in when the message is used.
    let session = 0..3u64;
    prop_oneof![
        2 => (0..4u32, 1..3u8, any::<bool>())
            .prop_map(|(client, codec, exactly_once)| Message::Bind { client, codec, exactly_once }),
        1 => (0..4u32, session.clone(), 0..4u32)
            .prop_map(|(client, session, slots)| Message::Bound {
                client,
                session,
                slots,
                seat: session,
                renewal: Duration::from_millis(session),
            }),
        1 => (0..4u32).prop_map(|client| Message::Rejected { client, reason: Rejection::NoSuchService }),
        8 => (session.clone(), call.clone(), prop_oneof![0..4u32, Just(u32::MAX)], semantics, 0..3u64).prop_map(
            |(session, call, behind, semantics, budget)| Message::Request {
                client: 3,
                session,
                call,
                behind,
                method: 9,
                signature: 8,
                semantics,
                budget: if budget == 2 { Duration::MAX } else { Duration::from_micros(budget) },
                body: Bytes::new(),
            }
        ),
        4 => (session.clone(), call.clone(), verdict)
            .prop_map(|(session, call, verdict)| Message::Reply { client: 3, session, call, verdict }),
        1 => (session.clone(), call.clone()).prop_map(|(session, call)| Message::Working { client: 3, session, call }),
        2 => (session.clone(), call).prop_map(|(session, call)| Message::Cancel { client: 3, session, call }),
        1 => session.prop_map(|session| Message::Lost { client: 3, session }),
    ]
}

/// Makes session 0 mean `known`.
fn in_session(mut message: Message, known: u64) -> Message {
    match &mut message {
        Message::Bound { session, .. }
        | Message::Request { session, .. }
        | Message::Reply { session, .. }
        | Message::Working { session, .. }
        | Message::Cancel { session, .. }
        | Message::Lost { session, .. }
            if *session == 0 =>
        {
            *session = known;
        }
        _ => {}
    }
    message
}

proptest! {
    /// A peer may say anything in any order: the server's books stay right, and it executes nothing twice.
    #[test]
    fn no_sequence_of_messages_confuses_the_server(
        messages in proptest::collection::vec((any_message(), 0..3u8), 1..60),
    ) {
        let mut config = ServerConfig::new(1, 7);
        (config.slots_max, config.executing_max, config.reply_bytes_max) = (3, 2, 200);
        let mut service = Service::new(config);
        let mut executed = std::collections::BTreeSet::new();
        let (mut running, mut waiting) = (Vec::new(), Vec::new());
        for (message, step) in messages {
            let idempotent = matches!(&message, Message::Request { semantics: Semantics::Idempotent, .. });
            let message = in_session(message, service.session);
            let (_, events) = service.handle(Input::Received { from: CLIENT, message });
            for event in events {
                match event {
                    ServerEvent::Execute { execution, .. } => {
                        prop_assert!(idempotent || executed.insert((execution.session, execution.call)));
                        executed.insert((execution.session, execution.call));
                        running.push(execution);
                    }
                    ServerEvent::Abort(execution) => {
                        running.retain(|other| *other != execution);
                        waiting.retain(|other| *other != execution);
                    }
                    ServerEvent::SeatWanted { .. } => {}
                }
            }
            prop_assert_eq!(service.server.executing() as usize, running.len());
            if step == 1 && let Some(execution) = running.pop_if(|execution| !execution.one_way) {
                service.handle(Input::Command(ServerCommand::Executed(execution)));
                waiting.push(execution);
            } else if step == 2 && let Some(execution) = waiting.pop().or_else(|| running.pop()) {
                let verdict = Verdict::Done(Bytes::from_static(b"!"));
                service.handle(Input::Command(ServerCommand::Complete { execution, verdict }));
            }
        }
    }

    /// Neither do they confuse a client: every call ends at most once, and all end when it closes.
    #[test]
    fn no_sequence_of_messages_confuses_the_client(
        messages in proptest::collection::vec((any_message(), 0..4u8, any::<bool>()), 1..60),
    ) {
        let mut caller = Caller::bound();
        let mut ended = std::collections::BTreeSet::new();
        let mut begun = 0;
        let mut note = |words: String| {
            for word in words.split("event ended(").skip(1) {
                let token: u32 = word[..word.find(',').unwrap()].parse().unwrap();
                assert!(ended.insert(token), "call {token} ended twice");
            }
        };
        for (message, step, newer) in messages {
            let from = if newer { RESTARTED } else { SERVER };
            note(caller.hear(from, in_session(message, 70)));
            match step {
                0 => {
                    begun += 1;
                    note(caller.call(begun, Semantics::AtMostOnce, 50));
                }
                1 => {
                    begun += 1;
                    note(caller.call(begun, Semantics::Idempotent, 5_000));
                }
                2 => note(caller.tick(caller.now + 40)),
                _ => note(caller.handle(Input::Unreachable(from))),
            }
        }
        note(caller.handle(Input::Command(ClientCommand::Close)));
        prop_assert_eq!(ended.len(), begun as usize);
        prop_assert_eq!(caller.client.outstanding(), 0);
    }
}
