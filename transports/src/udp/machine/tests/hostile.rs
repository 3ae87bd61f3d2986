//! A peer that has shaken hands and then says whatever is well-formed.

use crate::fault::model::{Chance, Rng};
use crate::udp::machine::endpoint::Endpoint;
use crate::udp::machine::packet::{self, AcksOut, Body, Cookie, Data, Head, Kind, Piece};
use crate::udp::machine::{Limits, MILLI, Nanos, PACKET_BYTES_MIN, Read};

const PEER: u64 = 77;
const PLACE: u16 = 9;

fn limits() -> Limits {
    Limits {
        packet_bytes: PACKET_BYTES_MIN,
        send_bytes_max: 20_000,
        unsent_bytes_max: 20_000,
        receive_bytes_max: 20_000,
        keepalive: 1_000 * MILLI,
        silence_max: 10_000 * MILLI,
        dial_max: 10_000 * MILLI,
        handshake_max: 10_000 * MILLI,
        handshakes_max: 4,
        backlog_max: 4,
        connections_max: 4,
    }
}

/// Everything that an endpoint wants to send now.
fn take(endpoint: &mut Endpoint<u16>, now: Nanos) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for round in 0.. {
        assert!(round < 1_000, "it spins");
        endpoint.on_time(now);
        let mut bytes = Vec::new();
        while let Some(transmit) = endpoint.transmit(now, 4, &mut bytes) {
            all.extend(bytes.chunks(transmit.segment_bytes).map(<[u8]>::to_vec));
            bytes.clear();
        }
        if endpoint.deadline().is_none_or(|at| at > now) {
            return all;
        }
    }
    all
}

fn hello(endpoint: &mut Endpoint<u16>, cookie: Option<Cookie>) -> Vec<Vec<u8>> {
    let mut hello = Vec::new();
    packet::put_hello(&mut hello, PEER, cookie, 5_000);
    endpoint.handle(0, PLACE, &hello);
    take(endpoint, 0)
}

/// A listener that has welcomed the peer, and its id for the connection.
fn welcomed() -> (Endpoint<u16>, u64) {
    let mut endpoint = Endpoint::new(limits(), [1, 2], true);
    let retry = hello(&mut endpoint, None);
    assert_eq!(endpoint.held().0, 0, "state for an address that has not proved itself");
    let Some(Body::Retry { cookie }) = packet::decode(&retry[0], true).map(|packet| packet.body) else {
        unreachable!("a stranger is asked for a cookie")
    };
    let welcome = hello(&mut endpoint, Some(cookie));
    let id = packet::decode(&welcome[0], true).map_or(0, |packet| packet.from);
    assert_ne!(id, 0);
    (endpoint, id)
}

#[test]
fn t07_a_udp_peer_that_says_anything_breaks_no_bound() {
    for seed in 0..200 {
        let mut rng = Rng::labelled(seed, 3);
        let (mut endpoint, id) = welcomed();
        let mut now = 0;
        let mut number = 0;
        let some = |rng: &mut Rng, likely: u64| match rng.below(10) {
            0 => rng.next_u64(),
            1 => u64::MAX - rng.below(3),
            2 => rng.below(100_000),
            _ => likely,
        };
        for _ in 0..500 {
            now += rng.below(20) * MILLI;
            number += 1;
            let half = Chance::percent(50);
            let body: Vec<u8> = vec![7; rng.below(1_100) as usize];
            let offset = rng.below(25_000);
            let data = Data {
                number: some(&mut rng, number),
                wants_ack: rng.chance(half),
                acks: None,
                challenge: rng.chance(Chance::percent(10)).then(|| rng.next_u64()),
                response: rng.chance(Chance::percent(10)).then(|| rng.next_u64()),
                stops: rng.chance(Chance::ppm(2_000)),
                aborts: rng.chance(Chance::ppm(2_000)),
                piece: rng.chance(half).then(|| Piece {
                    offset: some(&mut rng, offset),
                    bytes: &[],
                    ends: rng.chance(Chance::percent(2)),
                }),
            };
            let last = rng.below(number + 5);
            let runs = [(last / 2 + last / 4, last), (last / 8, last / 4)];
            let acks = rng.chance(half).then(|| AcksOut {
                credit: some(&mut rng, 50_000),
                delay_micros: rng.next_u64() as u32,
                runs: if last > 8 { &runs } else { &runs[..1] },
            });
            let mut bytes = Vec::new();
            let start = packet::put_data(&mut bytes, &Head { to: id, from: PEER, data, acks });
            if data.piece.is_some() {
                bytes.extend_from_slice(&body);
            }
            packet::seal(&mut bytes, start);
            // Now and then something that only begins like one.
            if rng.chance(Chance::percent(5)) {
                bytes.truncate(rng.below(bytes.len() as u64) as usize);
                if bytes.len() > 21 {
                    packet::seal(&mut bytes, 0);
                }
            }
            let from = if rng.chance(Chance::percent(5)) { PLACE + 1 } else { PLACE };
            endpoint.handle(now, from, &bytes);
            let sent = take(&mut endpoint, now);
            assert!(sent.len() < 100, "seed {seed}: {} packets for one", sent.len());
            let (_, incoming, outgoing) = endpoint.held();
            assert!(incoming <= 20_000 && outgoing <= 20_000, "seed {seed}: {incoming} and {outgoing} bytes");
            if let Some((id, _)) = endpoint.accept() {
                endpoint.write(now, id, &[std::io::IoSlice::new(&[1; 30_000])]).unwrap_or_default();
            }
            if rng.chance(half) {
                let _ = endpoint.read(now, id, 3_000, |_| {}).unwrap_or(Read::Nothing);
            }
        }
    }
}

#[test]
fn t07_any_bytes_are_a_udp_packet_or_nothing() {
    for seed in 0..20_000 {
        let mut rng = Rng::labelled(seed, 4);
        let mut bytes = Vec::new();
        let kinds = [Kind::Hello, Kind::Retry, Kind::Welcome, Kind::Data, Kind::Reset];
        let kind = rng.pick(&kinds).copied().unwrap_or(Kind::Data);
        packet::begin(&mut bytes, rng.next_u64(), rng.next_u64(), kind);
        let length = if rng.chance(Chance::percent(10)) { 1_300 } else { rng.below(400) };
        bytes.extend((0..length).map(|_| rng.next_u64() as u8));
        packet::seal(&mut bytes, 0);
        if let Some(packet) = packet::decode(&bytes, true)
            && let Body::Data(data) = packet.body
            && let Some(acks) = data.acks
        {
            let mut below = u64::MAX;
            for (first, last) in acks.runs() {
                assert!(first <= last && last < below, "seed {seed}");
                below = first;
            }
        }
        // Less than any packet has.
        bytes.truncate(rng.below(22) as usize);
        assert_eq!(packet::decode(&bytes, true), None, "seed {seed}");
    }
}
