//! Old clients and new servers, and the reverse.

use quorate::codec::{Bincode, Codec, Json, Postcard};
use quorate::rpc::{CallError, ClientOptions, Refusal};
use serde::{Deserialize, Serialize};

use crate::support::Over;

mod first {
    #[quorate::service]
    pub(crate) trait Weather {
        async fn report(&self, town: String) -> String;
    }

    pub(super) struct Station;

    impl Weather for Station {
        async fn report(&self, town: String) -> String {
            format!("{town}: fair")
        }
    }
}

mod second {
    #[quorate::service]
    pub(crate) trait Weather {
        async fn report(&self, town: String, #[added] unit: Option<String>) -> String;
    }

    pub(super) struct Station;

    impl Weather for Station {
        async fn report(&self, town: String, unit: Option<String>) -> String {
            format!("{town}: 20 {}", unit.as_deref().unwrap_or("degrees"))
        }
    }
}

mod third {
    #[quorate::service]
    pub(crate) trait Weather {
        async fn report(
            &self,
            town: String,
            #[added] unit: Option<String>,
            #[added] days: Option<u8>,
        ) -> String;
        async fn alarm(&self) -> bool;
    }

    pub(super) struct Station;

    impl Weather for Station {
        async fn report(&self, town: String, unit: Option<String>, days: Option<u8>) -> String {
            format!("{town}: {} {} days", unit.as_deref().unwrap_or("degrees"), days.unwrap_or(1))
        }
        async fn alarm(&self) -> bool {
            false
        }
    }
}

async fn every_age<C: Codec>() {
    let over = Over::Tcp;
    let (server, address) = over.server(1).await;
    let _old = server.serve("old", first::WeatherServer::new(first::Station).with_codec::<C>()).unwrap();
    let _newer =
        server.serve("newer", second::WeatherServer::new(second::Station).with_codec::<C>()).unwrap();
    let _new = server.serve("new", third::WeatherServer::new(third::Station).with_codec::<C>()).unwrap();
    let node = over.client(2).await;
    let options = ClientOptions::default();
    let town = || "Ulm".to_owned();
    let unit = || Some("kelvin".to_owned());

    for (name, answers) in [
        ("old", ["Ulm: fair", "Ulm: fair", "Ulm: fair"]),
        ("newer", ["Ulm: 20 degrees", "Ulm: 20 kelvin", "Ulm: 20 kelvin"]),
        ("new", ["Ulm: degrees 1 days", "Ulm: kelvin 1 days", "Ulm: kelvin 3 days"]),
    ] {
        let old = first::WeatherClient::<C>::connect_with(&node, name, &address, options).await.unwrap();
        let newer = second::WeatherClient::<C>::connect_with(&node, name, &address, options).await.unwrap();
        let new = third::WeatherClient::<C>::connect_with(&node, name, &address, options).await.unwrap();
        let got = [
            old.report(town()).await.unwrap(),
            newer.report(town(), unit()).await.unwrap(),
            new.report(town(), unit(), Some(3)).await.unwrap(),
        ];
        assert_eq!(got, answers, "{name} with {}", C::NAME);
        assert_eq!(new.report(town(), None, None).await.unwrap(), answers[0]);
        let alarm =
            if name == "new" { Ok(false) } else { Err(CallError::NotExecuted(Refusal::NoSuchMethod)) };
        assert_eq!(new.alarm().await, alarm, "an unknown method ends its call and nothing else");
        assert_eq!(old.report(town()).await.unwrap(), answers[0]);
    }
}

#[tokio::test]
async fn r02_arguments_may_be_added_on_either_side() {
    every_age::<Postcard>().await;
    every_age::<Json>().await;
    every_age::<Bincode>().await;
}

#[test]
fn r01_a_comparison_of_schemas_says_which_change_breaks_whom() {
    use quorate::rpc::{Outline, check};

    let first = first::WeatherClient::<Postcard>::SCHEMA;
    let second = second::WeatherClient::<Postcard>::SCHEMA;
    let third = third::WeatherClient::<Postcard>::SCHEMA;
    // As it is kept in a file.
    let kept: Outline = first.to_string().parse().unwrap();
    assert_eq!(kept, Outline::from(first));
    assert_eq!(third.to_string().parse::<Outline>().unwrap(), Outline::from(third));
    assert_eq!(check(&kept, &Outline::from(first)), []);

    let said = |old: &Outline, new: &Outline| -> Vec<String> {
        check(old, new).iter().map(ToString::to_string).collect()
    };
    let one_more = "report: 1 more optional arguments, which old servers do not see: breaks nobody";
    assert_eq!(said(&kept, &second.into()), [one_more]);
    let new_method = "alarm: new: breaks new clients at old servers";
    assert_eq!(said(&second.into(), &third.into()), [one_more, new_method]);
    let one_less = "report: 1 optional arguments less, which new servers do not see: breaks nobody";
    assert_eq!(
        said(&third.into(), &second.into()),
        [one_less, "alarm: gone: breaks old clients at new servers"]
    );

    let old = "service Bank 0\n  a(x: Vec<(u8, u8)>, y: [u8; 2]) -> Result<(), E>   id 0a types 01\n  \
               b(x: u8, added y: Option<u8>) -> ()   id 0b types 02 idempotent\n  c() -> ()   id 0c types 03";
    let new = "service Till 0\n  a(x: Vec<(u8, u8)>) -> Result<(), E>   id 0a types 11\n  \
               b(z: u8, added y: Option<u16>) -> ()   id 0b types 12\n  c() -> ()   id 0c types 03 deadline 2s";
    let both = "breaks old clients at new servers and new clients at old servers";
    let changes = [
        "service Bank is called Till: breaks nobody".to_owned(),
        format!(
            "a: types were (Vec<(u8, u8)>, [u8; 2]) -> Result<(), E>, are (Vec<(u8, u8)>) -> Result<(), E>: {both}"
        ),
        format!("b: was idempotent, is at most once: {both}"),
        format!("b: added arguments were Option<u8>, are Option<u16>: {both}"),
        "c: was at most once, is deadline 2s: breaks nobody".to_owned(),
    ];
    assert_eq!(said(&old.parse().unwrap(), &new.parse().unwrap()), changes);
    let error = "service Bank 0\n  nonsense".parse::<Outline>().unwrap_err();
    assert_eq!((error.line, error.text.as_str()), (2, "  nonsense"));
}

mod plain {
    #[derive(serde::Serialize, serde::Deserialize)]
    pub(crate) struct Person {
        pub(crate) name: String,
    }

    #[quorate::service]
    pub(crate) trait People {
        async fn greet(&self, person: Person) -> String;
    }
}

mod richer {
    use super::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize)]
    pub(crate) struct Person {
        pub(crate) name: String,
        #[serde(default)]
        pub(crate) title: Option<String>,
    }

    #[quorate::service]
    pub(crate) trait People {
        async fn greet(&self, person: Person) -> String;
    }

    pub(super) struct Host;

    impl People for Host {
        async fn greet(&self, person: Person) -> String {
            format!("{} {}", person.title.as_deref().unwrap_or("dear"), person.name)
        }
    }
}

/// What is inside a user's type is the codec's business: one that names fields takes an added optional one, one that
/// does not says that it cannot read the arguments.
#[tokio::test]
async fn r02_an_added_optional_field_is_read_by_codecs_that_name_fields_and_refused_by_others() {
    async fn greet<C: Codec>() -> Result<String, CallError> {
        let (server, address) = Over::Tcp.server(1).await;
        let _serving =
            server.serve("people", richer::PeopleServer::new(richer::Host).with_codec::<C>()).unwrap();
        let node = Over::Tcp.client(2).await;
        let options = ClientOptions::default();
        let people =
            plain::PeopleClient::<C>::connect_with(&node, "people", &address, options).await.unwrap();
        people.greet(plain::Person { name: "Ann".to_owned() }).await
    }
    assert_eq!(greet::<Json>().await, Ok("dear Ann".to_owned()));
    let refused = Err(CallError::NotExecuted(Refusal::Malformed));
    assert_eq!(greet::<Postcard>().await, refused);
    assert_eq!(greet::<Bincode>().await, refused);
}
