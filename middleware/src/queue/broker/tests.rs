//! The rule machine by its decisions, and formats by what they read back.

use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::field::{is_among, is_like};
use super::format::{Csv, Format, Formats, Typed};
use super::{Decision, Incoming, Machine, Reason, RuleBase, RulesError};
use crate::codec::Postcard;

#[derive(Serialize, Deserialize)]
struct Order {
    article: String,
    count: u32,
}

fn machine(base: Value) -> Result<Machine, RulesError> {
    let formats = Formats::new()
        .with("order", Typed::<Order, Postcard>::new())
        .with("list", Csv::new().separator(';').columns(["article", "count"]));
    Machine::new(RuleBase::parse(&base.to_string())?, "in", formats)
}

fn incoming(payload: &[u8]) -> Incoming<'_> {
    Incoming { queue: "in", key: Some(b"orders/eu/7"), name: None, priority: 4, deliveries: 1, payload }
}

/// What becomes of a message: `queue: payload` for each result, or the reason.
fn decide(base: Value, payload: impl AsRef<[u8]>) -> String {
    let machine = machine(base).expect("good rules");
    let told = |decision| match decision {
        Decision::Send(results) => {
            let line =
                |to: &super::Outgoing| format!("{}: {}", to.queue, String::from_utf8_lossy(&to.payload));
            results.iter().map(line).collect::<Vec<_>>().join(" | ")
        }
        Decision::Reject(reason) => reason.to_string(),
    };
    let (once, twice) =
        (machine.decide(&incoming(payload.as_ref())), machine.decide(&incoming(payload.as_ref())));
    assert_eq!(once, twice, "a pure function");
    told(once)
}

/// A rule that sends what passes a test of `/n` on.
fn tested(test: Value) -> Value {
    json!({"rules": [{"name": "r", "when": [{"field": "/n", "test": test}], "to": [{"queue": {"name": "out"}}]}]})
}

fn changed(change: Value) -> Value {
    json!({"rules": [{"name": "r", "change": change, "to": [{"queue": {"name": "out"}}]}],
        "tables": {"people": {"7": "ann", "true": 1}}})
}

#[test]
fn q07_conditions_are_about_content_and_metadata() {
    for (test, passing, failing) in [
        (json!("present"), json!({"n": null}), json!({})),
        (json!("absent"), json!({"m": 1}), json!({"n": 1})),
        (json!({"is": 3}), json!({"n": 3.0}), json!({"n": "3"})),
        (json!({"is_not": 3}), json!({}), json!({"n": 3})),
        (json!({"one_of": ["a", "b"]}), json!({"n": "b"}), json!({"n": "c"})),
        (json!({"like": "a*c*"}), json!({"n": "abcd"}), json!({"n": 5})),
        (json!({"above": 2.5}), json!({"n": 3}), json!({"n": 2})),
        (json!({"below": 2.5}), json!({"n": 2}), json!({"n": "1"})),
    ] {
        assert_eq!(decide(tested(test.clone()), passing.to_string()), format!("out: {passing}"), "{test}");
        assert_eq!(decide(tested(test.clone()), failing.to_string()), "no rule matches", "{test}");
    }
    let of = |field: &str, test: Value| {
        let rule = json!({"name": "r", "read": "text", "when": [{"field": field, "test": test}],
            "to": [{"queue": {"name": "out", "format": "text"}}]});
        decide(json!({"rules": [rule]}), "x")
    };
    assert_eq!(of("$key", json!({"like": "orders/*"})), "out: x");
    assert_eq!(of("$queue", json!({"is": "in"})), "out: x");
    assert_eq!(of("$name", json!("absent")), "out: x");
    assert_eq!(of("$priority", json!({"above": 4})), "no rule matches");
    assert_eq!(of("$deliveries", json!({"is": 1})), "out: x");
}

#[test]
fn q07_changes_make_what_they_say_or_tell_why_not() {
    let message = json!({"who": 7, "lines": [{"a": 1}, {"a": 2}], "price": "2.50"}).to_string();
    let with = |change: Value| decide(changed(change), &message);
    assert_eq!(
        with(json!([{"remove": {"field": "/lines"}}, {"number": {"field": "/price"}},
            {"set": {"field": "/deep/er", "value": [1]}}, {"set": {"field": "/deep/er/0", "value": 2}},
            {"look_up": {"table": "people", "key": "/who", "to": "/name"}},
            {"copy": {"from": "$key", "to": "/topic"}}])),
        r#"out: {"deep":{"er":[2]},"name":"ann","price":2.5,"topic":"orders/eu/7","who":7}"#
    );
    assert_eq!(
        with(
            json!([{"remove": {"field": "/price"}}, {"split": {"field": "/lines"}}, {"remove": {"field": "/who"}}])
        ),
        r#"out: {"lines":{"a":1}} | out: {"lines":{"a":2}}"#
    );
    for (change, told) in [
        (json!({"copy": {"from": "/no", "to": "/x"}}), r#"there is no "/no""#),
        (json!({"copy": {"from": "$name", "to": "/x"}}), r#"there is no "$name""#),
        (json!({"set": {"field": "/who/x", "value": 1}}), r#""/who/x" leads through a plain value"#),
        (json!({"set": {"field": "/lines/9", "value": 1}}), r#""/lines/9": the list has no element "9""#),
        (json!({"number": {"field": "/lines"}}), r#""/lines" is no number"#),
        (json!({"split": {"field": "/who"}}), r#""/who" is no list"#),
        (
            json!({"look_up": {"table": "people", "key": "/price", "to": "/x"}}),
            r#"the table "people" has no "2.50""#,
        ),
    ] {
        assert_eq!(with(json!([change])), format!(r#"rule "r", change 1: {told}"#));
    }
    let otherwise = json!([{"look_up": {"table": "people", "key": "/price", "to": "/lines", "otherwise": null}},
        {"remove": {"field": "/price"}}]);
    assert_eq!(with(otherwise), r#"rule "r", change 1: the table "people" has no "2.50""#, "null is none");
    let many = json!({"lines": vec![0; super::RESULTS_MAX + 1]}).to_string();
    assert_eq!(
        decide(changed(json!([{"split": {"field": "/lines"}}])), many),
        "more than 1000 messages of one"
    );
    assert_eq!(decide(changed(json!([{"split": {"field": "/lines"}}])), r#"{"lines": []}"#), "");
}

#[test]
fn q07_content_is_converted_between_every_two_formats() {
    let from_to = |read: &str, format: &str, payload: &[u8]| {
        let change =
            if matches!(read, "csv" | "list") { json!([{"split": {"field": ""}}]) } else { json!([]) };
        let number = json!({"number": {"field": "/count"}});
        let change = [change.as_array().cloned().unwrap_or_default(), vec![number]].concat();
        let rule = json!({"name": "r", "read": read, "change": change,
            "to": [{"queue": {"name": "out", "format": format}}]});
        let machine = machine(json!({"rules": [rule]})).expect("good rules");
        match machine.decide(&incoming(payload)) {
            Decision::Send(mut results) => results.remove(0).payload,
            Decision::Reject(reason) => panic!("{read} to {format}: {reason}"),
        }
    };
    let written = [
        ("json", &br#"{"article":"app;les","count":3}"#[..]),
        ("csv", b"article,count\napp;les,3\n"),
        ("list", b"article;count\n\"app;les\";3\n"),
        ("order", b"\x07app;les\x03"),
    ];
    for (read, payload) in written {
        for (write, expected) in written {
            assert_eq!(from_to(read, write, payload), expected, "{read} to {write}");
        }
    }
    let no_form = |format: &str, payload: &str| {
        let rule = json!({"name": "r", "to": [{"queue": {"name": "out", "format": format}}]});
        decide(json!({"rules": [rule]}), payload)
    };
    assert_eq!(
        no_form("csv", r#"{"a": [1]}"#),
        r#"rule "r", target 1: only objects of plain values are records"#
    );
    assert_eq!(no_form("list", r#"{"a": 1}"#), r#"rule "r", target 1: there is no column "a""#);
    assert_eq!(no_form("text", "[]"), r#"rule "r", target 1: lists, objects and null are no text"#);
    assert!(no_form("order", "{}").starts_with(r#"rule "r", target 1: missing field"#));
}

#[test]
fn q07_what_cannot_be_read_is_told_unless_another_rule_takes_it() {
    let rule = |name: &str, read: &str| json!({"name": name, "read": read, "to": [{"queue": {"name": name, "format": "text"}}]});
    let only_csv = json!({"rules": [rule("csv", "csv")]});
    for (payload, told) in [
        ("a,b\n1\n", "line 2: 1 fields for 2 columns"),
        ("a,a\n1,2\n", "line 1: two columns have one name"),
        ("", "there is no header"),
        ("a\n\"1", "line 2: a quote has no end"),
        ("a\n1\"\n", "line 2: '\"' within a field"),
    ] {
        assert_eq!(decide(only_csv.clone(), payload), format!("no rule matches, and it is not csv: {told}"));
    }
    let both = json!({"rules": [rule("json", "json"), rule("text", "text")]});
    assert_eq!(decide(both.clone(), "{"), "text: {");
    assert!(decide(both, b"\xff").starts_with("no rule matches, and it is not json"));
}

#[test]
fn q07_rules_go_on_when_they_say_so_and_publish_to_who_subscribed() {
    let base = |goes_on: bool| {
        json!({"rules": [
            {"name": "log", "goes_on": goes_on, "change": [{"set": {"field": "/seen", "value": true}}],
                "to": [{"queue": {"name": "log"}}]},
            {"name": "publish", "to": [{"publish": {"topic": "$key"}}, {"named": {"field": "/to"}}]}],
            "subscriptions": [
                {"topics": "orders/*/7", "queue": "seven"}, {"topics": "orders/#", "queue": "all"},
                {"topics": "orders/us/*", "queue": "us"}, {"topics": "*", "queue": "short"}]})
    };
    let message = r#"{"to":"a.b"}"#;
    assert_eq!(
        decide(base(true), message),
        r#"log: {"seen":true,"to":"a.b"} | seven: {"to":"a.b"} | all: {"to":"a.b"} | a.b: {"to":"a.b"}"#
    );
    assert_eq!(decide(base(false), message), r#"log: {"seen":true,"to":"a.b"}"#);
    assert_eq!(
        decide(base(true), r#"{"to":"in"}"#),
        r#"rule "publish", target 2: it names the broker's own queue"#,
        "all or nothing"
    );
    for (topic, topics, is_so) in [
        ("a", "#", true),
        ("a", "a/#", true),
        ("a/b", "a", false),
        ("a", "a/*", false),
        ("a/b/c", "*/b/*", true),
    ] {
        assert_eq!(is_among(topic, topics), is_so, "{topic} {topics}");
    }
    for (text, pattern, is_so) in [
        ("abab", "*ab", true),
        ("ab", "ab", true),
        ("abc", "ab", false),
        ("a", "a*a", false),
        ("xaybz", "*a*b*", true),
        ("", "*", true),
    ] {
        assert_eq!(is_like(text, pattern), is_so, "{text} {pattern}");
    }
}

#[test]
fn q07_rules_that_speak_of_what_is_not_there_are_refused_with_the_reason() {
    let rule = |rest: Value| {
        let mut rule = json!({"name": "r"});
        rule.as_object_mut().expect("one").extend(rest.as_object().expect("one").clone());
        json!({"rules": [rule]})
    };
    for (base, told) in [
        (rule(json!({"read": "xml"})), r#"rule "r": there is no format "xml""#),
        (
            rule(json!({"to": [{"queue": {"name": "in"}}]})),
            r#"rule "r": what goes into the broker's own queue would go round for ever"#,
        ),
        (
            rule(json!({"to": [{"queue": {"name": "A"}}]})),
            r#"rule "r": queue name "A" is not 1 to 128 of a-z, 0-9, -, _ and ."#,
        ),
        (
            rule(json!({"when": [{"field": "n", "test": "present"}]})),
            r#"rule "r": "n" is no place in the content, which begins with `/`"#,
        ),
        (
            rule(json!({"change": [{"set": {"field": "$key", "value": 1}}]})),
            r#"rule "r": "$key" is no place in the content, which begins with `/`"#,
        ),
        (
            rule(json!({"change": [{"look_up": {"table": "t", "key": "/a", "to": "/b"}}]})),
            r#"rule "r": there is no table "t""#,
        ),
        (rule(json!({"change": [{"call": {"code": "c"}}]})), r#"rule "r": there is no code "c""#),
        (json!({"rules": [{"name": "r"}, {"name": "r"}]}), r#"two rules are called "r""#),
        (
            json!({"subscriptions": [{"topics": "#/a", "queue": "q"}]}),
            r##"rule "#/a": `#` stands at the end only"##,
        ),
    ] {
        assert_eq!(
            machine(base.clone()).err().map(|error| error.to_string()).as_deref(),
            Some(told),
            "{base}"
        );
    }
    let many: Vec<Value> = (0..=super::RULES_MAX).map(|n| json!({"name": n.to_string()})).collect();
    assert!(matches!(
        machine(json!({"rules": many})),
        Err(RulesError::TooMany { limit: super::RULES_MAX, .. })
    ));
    assert!(matches!(machine(json!({"rule": []})), Err(RulesError::Unreadable { .. })));
}

#[test]
fn q07_code_of_the_user_that_panics_rejects_the_message_and_nothing_else() {
    struct Bad;
    impl Format for Bad {
        fn read(&self, bytes: &[u8]) -> Result<Value, super::FormatError> {
            assert!(bytes != b"bomb", "planted");
            Ok(Value::Null)
        }
        fn write(&self, _: &Value) -> Result<Vec<u8>, super::FormatError> {
            Ok(Vec::new())
        }
    }
    let base = RuleBase::parse(r#"{"rules": [{"name": "r", "read": "bad"}]}"#).expect("rules");
    let machine = Machine::new(base, "in", Formats::new().with("bad", Bad)).expect("good rules");
    assert_eq!(machine.decide(&incoming(b"bomb")), Decision::Reject(Reason::Panicked));
    assert_eq!(machine.decide(&incoming(b"")), Decision::Send(Vec::new()));
}

proptest! {
    #[test]
    fn q07_what_is_written_as_csv_is_read_as_the_same_texts(
        columns in prop::collection::btree_set("[a-z\",; \n\r\"]{1,4}", 1..4),
        rows in prop::collection::vec(prop::collection::vec("[a-z\",;\n\r ä]{0,5}", 4), 0..4),
    ) {
        let row = |row: &Vec<String>| columns.iter().cloned().zip(row.iter().cloned().map(Value::from)).collect();
        let content = Value::Array(rows.iter().map(row).map(Value::Object).collect());
        let format = Csv::new().columns(columns.clone());
        let bytes = format.write(&content).expect("plain values");
        prop_assert_eq!(format.read(&bytes).expect("what we wrote"), content);
    }

    #[test]
    fn q07_any_bytes_are_csv_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64), text in "[a,\"\n\r]{0,20}") {
        let _ = Csv::new().read(&bytes);
        let _ = Csv::new().read(text.as_bytes());
    }
}
