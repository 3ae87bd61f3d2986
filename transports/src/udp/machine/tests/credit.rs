//! A sender without credit, and news of more credit that get lost.

use std::collections::BTreeMap;
use std::io::IoSlice;

use super::plan::limits;
use crate::udp::machine::endpoint::Endpoint;
use crate::udp::machine::{Broken, Limits, MILLI, Nanos};

const PLACES: [u16; 2] = [1, 2];
const WINDOW: usize = 20_000;
const BYTES: usize = 10 * WINDOW;
const WAY: Nanos = 10 * MILLI;
/// Far beyond what the transfer may take.
const KEEPALIVE: Nanos = 600_000 * MILLI;

/// Sends ten windows to a reader that reads only when it has a whole one, so that the sender has no credit and nothing
/// under way; of what the reader then says so many packets get lost. When all was read.
fn starve(lost: usize) -> Result<Nanos, Broken> {
    let mut limits = Limits { keepalive: KEEPALIVE, silence_max: 2 * KEEPALIVE, ..limits(|| WINDOW) };
    (limits.receive_bytes_max, limits.send_bytes_max) = (WINDOW, WINDOW);
    limits.unsent_bytes_max = WINDOW;
    let mut ends = [0, 1].map(|number| Endpoint::new(limits.clone(), [7, number], number == 1));
    let sender = ends[0].dial(0, PLACES[1]);
    let mut reader = None;
    let (mut now, mut serial, mut losing) = (0, 0, 0);
    let (mut written, mut read) = (0, 0);
    let mut way: BTreeMap<(Nanos, u64), (usize, Vec<u8>)> = BTreeMap::new();
    loop {
        while let Some((&(at, number), _)) = way.first_key_value()
            && at <= now
        {
            let (to, datagram) = way.remove(&(at, number)).unwrap_or_default();
            ends[to].handle(now, PLACES[1 - to], &datagram);
        }
        ends.iter_mut().for_each(|end| end.on_time(now));
        if let Some(done) = ends[0].dialled(sender) {
            done?;
            let left = vec![7; BYTES - written];
            written += ends[0].write(now, sender, &[IoSlice::new(&left)])?;
        }
        reader = reader.or(ends[1].accept().map(|(id, _)| id));
        if let Some(id) = reader
            && ends[1].held().1 == WINDOW
        {
            ends[1].read(now, id, WINDOW, |bytes| read += bytes.len())?;
            losing = lost;
            if read == BYTES {
                return Ok(now);
            }
        }
        for from in [0, 1] {
            let mut out = Vec::new();
            while let Some(transmit) = ends[from].transmit(now, 1, &mut out) {
                assert_eq!(transmit.to, PLACES[1 - from]);
                let datagram = std::mem::take(&mut out);
                if from == 1 && losing > 0 {
                    losing -= 1;
                    continue;
                }
                serial += 1;
                way.insert((now + WAY, serial), (1 - from, datagram));
            }
        }
        let arrival = way.first_key_value().map(|((at, _), _)| *at);
        let next = ends.iter().filter_map(Endpoint::deadline).chain(arrival).min();
        now = next.filter(|next| *next < KEEPALIVE).ok_or(Broken::Silence)?.max(now + 1);
    }
}

#[test]
fn t02_news_of_credit_that_get_lost_are_said_again_long_before_a_sign_of_life_is_due() {
    let smooth = starve(0);
    assert!(smooth.is_ok(), "{smooth:?}");
    for lost in 1..6 {
        let took = starve(lost);
        println!("{lost} lost each time: {took:?} instead of {smooth:?}");
        // Ten times as many overdue answers, whose pauses double and end at a second.
        assert!(
            took.is_ok_and(|took| smooth.is_ok_and(|smooth| took > smooth) && took < 60_000 * MILLI),
            "{lost}"
        );
    }
}
