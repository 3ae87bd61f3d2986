//! zenoh between two peers over TCP: a publisher that blocks on congestion and a subscriber; a query and its reply.

use std::sync::mpsc;
use std::time::Instant;

use zenoh::bytes::ZBytes;
use zenoh::qos::CongestionControl;
use zenoh::{Config, Session, Wait as _};

use crate::worker::{
    BURST, Count, END_BYTES, Kind, Outcome, Side, Task, Trips, say_address, say_result, wait_for_caller,
};
use crate::{free_address, runtime};

const KEY: &str = "bench";

pub fn run(task: &Task) -> Outcome<()> {
    let runtime = runtime()?;
    let _inside = runtime.enter();
    match task.side {
        Side::Server => serve(task),
        Side::Client => drive(task),
        Side::Both => Err("zenoh is compared between processes only".into()),
    }
}

/// A session that talks to nobody but at the given end.
fn session(end: &str, address: &str) -> Outcome<Session> {
    let mut config = Config::default();
    config.insert_json5("mode", "\"peer\"")?;
    config.insert_json5("scouting/multicast/enabled", "false")?;
    config.insert_json5("listen/endpoints", "[]")?;
    config.insert_json5(&format!("{end}/endpoints"), &format!("[\"{address}\"]"))?;
    Ok(zenoh::open(config).wait()?)
}

fn serve(task: &Task) -> Outcome<()> {
    let address = format!("tcp/{}", free_address()?);
    let session = session("listen", &address)?;
    if task.kind == Kind::OneWay {
        let (done, end) = mpsc::channel();
        let mut count = Count::default();
        let _subscriber = session
            .declare_subscriber(KEY)
            .callback_mut(move |sample| {
                if count.take(&sample.payload().to_bytes()) {
                    // The main thread may have what it needs already.
                    let _ = done.send(std::mem::take(&mut count));
                }
            })
            .wait()?;
        say_address(&address)?;
        end.recv()?.say()
    } else {
        let (done, end) = mpsc::channel();
        let _queryable = session
            .declare_queryable(KEY)
            .callback_mut(move |query| {
                let bytes =
                    query.payload().map(|payload| payload.to_bytes().into_owned()).unwrap_or_default();
                let is_last = bytes.len() == END_BYTES;
                let replied = query.reply(KEY, bytes).wait();
                if is_last || replied.is_err() {
                    let _ = done.send(());
                }
            })
            .wait()?;
        say_address(&address)?;
        end.recv()?;
        say_result(&[])?;
        wait_for_caller()
    }
}

fn drive(task: &Task) -> Outcome<()> {
    let session = session("connect", task.address()?)?;
    let payload = ZBytes::from(task.payload());
    if task.kind == Kind::OneWay {
        let publisher = session.declare_publisher(KEY).congestion_control(CongestionControl::Block).wait()?;
        while !publisher.matching_status().wait()?.matching() {
            std::thread::yield_now();
        }
        let end = Instant::now() + task.time;
        while Instant::now() < end {
            for _ in 0..BURST {
                publisher.put(payload.clone()).wait()?;
            }
        }
        publisher.put(vec![0u8]).wait()?;
        say_result(&[])?;
    } else {
        let querier = session.declare_querier(KEY).congestion_control(CongestionControl::Block).wait()?;
        while !querier.matching_status().wait()?.matching() {
            std::thread::yield_now();
        }
        let mut trips = Trips::new(task)?;
        while trips.goes_on() {
            let start = Instant::now();
            let replies = querier.get().payload(payload.clone()).wait()?;
            replies.recv()?.into_result().map_err(|error| format!("{error:?}"))?;
            trips.took(start)?;
        }
        querier
            .get()
            .payload(vec![0u8])
            .wait()?
            .recv()?
            .into_result()
            .map_err(|error| format!("{error:?}"))?;
        trips.say()?;
    }
    wait_for_caller()
}
