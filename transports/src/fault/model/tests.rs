//! What the model promises, by counting: distributions within wide bounds that a fixed seed makes exact.

use std::time::Duration;

use super::*;

const MILLI: u64 = 1_000_000;
const DRAWS: u64 = 100_000;

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn samples(model: LatencyModel) -> Vec<u64> {
    let mut rng = Rng::new(11);
    let mut all: Vec<u64> = (0..DRAWS).map(|_| model.sample(&mut rng)).collect();
    all.sort_unstable();
    all
}

fn mean(all: &[u64]) -> u64 {
    all.iter().sum::<u64>() / all.len() as u64
}

#[track_caller]
fn assert_near(value: u64, expected: u64, percent: u64) {
    assert!(value.abs_diff(expected) * 100 <= expected * percent, "{value} is not near {expected}");
}

/// Sends `DRAWS` messages, one every millisecond, and returns their fates.
fn fates(model: LinkModel) -> Vec<Fate> {
    let mut network = Network::new(model);
    let mut rng = Rng::new(12);
    (0..DRAWS).map(|n| network.fate(n * MILLI, 1, 2, 100, &mut rng)).collect()
}

fn count(fates: &[Fate], what: impl Fn(&Fate) -> bool) -> u64 {
    fates.iter().filter(|fate| what(fate)).count() as u64
}

#[test]
fn constant_latency_is_constant() {
    let all = samples(LatencyModel::Constant(millis(3)));
    assert!(all.iter().all(|&latency| latency == 3 * MILLI));
}

#[test]
fn uniform_latency_fills_its_range_evenly() {
    let all = samples(LatencyModel::Uniform { min: millis(2), max: millis(6) });
    assert!(all[0] >= 2 * MILLI && all[all.len() - 1] <= 6 * MILLI);
    assert_near(mean(&all), 4 * MILLI, 1);
    assert_near(all[all.len() / 4], 3 * MILLI, 1);
}

#[test]
fn exponential_latency_has_its_mean_its_median_and_its_cut() {
    let all = samples(LatencyModel::Exponential { min: millis(1), mean: millis(10), max: millis(60) });
    assert!(all[0] >= MILLI && all[all.len() - 1] == 60 * MILLI);
    assert_near(mean(&all), 11 * MILLI, 2);
    // Median of the added part: mean * ln 2.
    assert_near(all[all.len() / 2], MILLI + 6_931_472, 2);
}

#[test]
fn spikes_hit_as_often_as_they_should() {
    let all = samples(LatencyModel::Spikes {
        min: millis(1),
        max: millis(2),
        chance: Chance::percent(1),
        spike: millis(1_000),
    });
    let spiked = all.iter().filter(|&&latency| latency > 2 * MILLI).count() as u64;
    assert_near(spiked, DRAWS / 100, 10);
    assert!(all[all.len() - 1] <= 1_002 * MILLI);
}

#[test]
fn a_perfect_link_delivers_everything_at_once() {
    let all = fates(LinkModel::PERFECT);
    assert!(all.iter().all(|fate| **fate == [ON_TIME] && fate.loss().is_none()));
}

#[test]
fn loss_duplication_and_corruption_have_their_rates() {
    let all = fates(LinkModel {
        loss: LossModel::Independent(Chance::percent(10)),
        duplication: Chance::percent(5),
        corruption: Chance::percent(2),
        ..LinkModel::PERFECT
    });
    let lost = count(&all, |fate| fate.loss() == Some(Loss::Lost));
    assert_near(lost, DRAWS / 10, 5);
    assert_eq!(lost, count(&all, |fate| fate.is_empty()));
    assert_near(count(&all, |fate| fate.len() == 2), (DRAWS - lost) / 20, 5);
    assert_near(
        count(&all, |fate| !fate.is_empty() && fate[0].corruption.is_some()),
        (DRAWS - lost) / 50,
        10,
    );
}

#[test]
fn burst_loss_comes_in_runs() {
    let all = fates(LinkModel {
        loss: LossModel::Bursts { begin: Chance::percent(1), end: Chance::percent(10), loss: Chance::ALWAYS },
        ..LinkModel::PERFECT
    });
    let lost = count(&all, |fate| fate.is_empty());
    // Share of time in a burst: begin / (begin + end).
    assert_near(lost, DRAWS / 11, 15);
    let runs = all.windows(2).filter(|pair| !pair[0].is_empty() && pair[1].is_empty()).count() as u64;
    assert_near(lost / runs, 10, 15);
}

#[test]
fn reordered_messages_are_overtaken_and_others_stay_in_order_on_a_fifo_link() {
    let jitter = LatencyModel::Uniform { min: millis(1), max: millis(20) };
    let overtaken = |model| {
        let mut latest = 0;
        let mut overtaken = 0;
        for (n, fate) in fates(model).iter().enumerate() {
            let arrival = n as u64 * MILLI + fate[0].delay_nanos;
            overtaken += u64::from(arrival < latest);
            latest = latest.max(arrival);
        }
        overtaken
    };
    assert!(overtaken(LinkModel { latency: jitter, ..LinkModel::PERFECT }) > DRAWS / 10);
    assert_eq!(overtaken(LinkModel { latency: jitter, fifo: true, ..LinkModel::PERFECT }), 0);
    let reordering =
        LinkModel { reordering: Chance::percent(10), reordering_delay: millis(5), ..LinkModel::PERFECT };
    let overtakers = overtaken(reordering);
    assert!(overtakers > DRAWS / 10, "{overtakers}");
    assert!(overtaken(LinkModel { fifo: true, ..reordering }) == overtakers);
}

#[test]
fn bandwidth_spaces_messages_and_a_full_queue_drops_them() {
    // 100 bytes at 100 kB/s take one millisecond.
    let narrow = LinkModel {
        bandwidth: Some(Bandwidth { bytes_per_second: 100_000, queue: millis(3) }),
        ..LinkModel::PERFECT
    };
    let mut network = Network::new(narrow);
    let mut rng = Rng::new(13);
    let delays: Vec<u64> =
        (0..4).map(|_| network.fate(0, 1, 2, 100, &mut rng)[0].delay_nanos / MILLI).collect();
    assert_eq!(delays, [1, 2, 3, 4]);
    assert_eq!(network.fate(0, 1, 2, 100, &mut rng).loss(), Some(Loss::Congested));
    assert_eq!(network.fate(0, 2, 1, 100, &mut rng).len(), 1, "the way back is another link");
    assert_eq!(network.fate(10 * MILLI, 1, 2, 100, &mut rng)[0].delay_nanos, MILLI);

    let closed = Bandwidth { bytes_per_second: 0, queue: millis(3) };
    network.set_default(LinkModel { bandwidth: Some(closed), ..LinkModel::PERFECT });
    assert_eq!(network.fate(0, 3, 4, 1, &mut rng)[0].delay_nanos, u64::MAX, "nothing leaves a closed link");
}

#[test]
fn cuts_are_directed_partial_and_healed() {
    let mut network = Network::new(LinkModel::PERFECT);
    network.partition(&[&[1, 2], &[3]]);
    assert!(network.reaches(1, 2) && network.reaches(3, 3));
    assert!(!network.reaches(1, 3) && !network.reaches(3, 2));
    assert!(network.reaches(9, 1) && network.reaches(3, 9), "a node in no group sees both sides");
    network.heal(1, 3);
    assert!(network.reaches(1, 3) && !network.reaches(2, 3), "a partial partition remains");
    network.heal_all();
    assert!(network.is_whole());

    network.partition_one_way(&[1], &[2, 3]);
    assert!(!network.reaches(1, 2) && network.reaches(2, 1));
    network.heal_all();

    network.isolate(2);
    assert!(!network.reaches(1, 2) && !network.reaches(2, 1));
    network.rejoin(2);
    network.mute(2);
    assert!(network.reaches(1, 2) && !network.reaches(2, 1));
    network.rejoin(2);
    network.deafen(2);
    assert!(!network.reaches(1, 2) && network.reaches(2, 1));
    let mut rng = Rng::new(14);
    assert_eq!(network.fate(0, 1, 2, 1, &mut rng).loss(), Some(Loss::Cut));
    assert_eq!(network.stream_fate(0, 1, 2, 1, &mut rng), StreamFate::Stalls);
}

#[test]
fn a_link_of_its_own_differs_from_the_default_in_its_direction_only() {
    let mut network = Network::new(LinkModel::PERFECT);
    let slow = LinkModel { latency: LatencyModel::Constant(millis(7)), ..LinkModel::PERFECT };
    network.set_link(1, 2, slow);
    let mut rng = Rng::new(15);
    assert_eq!(network.fate(0, 1, 2, 1, &mut rng)[0].delay_nanos, 7 * MILLI);
    assert_eq!(network.fate(0, 2, 1, 1, &mut rng)[0].delay_nanos, 0);
    network.reset_link(1, 2);
    assert_eq!(network.fate(0, 1, 2, 1, &mut rng)[0].delay_nanos, 0);
}

#[test]
fn streams_turn_loss_into_delay_and_hopeless_loss_into_a_reset() {
    let mut rng = Rng::new(16);
    let mut network = Network::new(LinkModel {
        loss: LossModel::Independent(Chance::percent(50)),
        retransmission_timeout: millis(100),
        ..LinkModel::PERFECT
    });
    let mut seen = BTreeMap::new();
    for _ in 0..10_000 {
        let outcome = match network.stream_fate(0, 1, 2, 1, &mut rng) {
            StreamFate::Arrives(delivery) => Some(delivery.delay_nanos / (100 * MILLI)),
            StreamFate::Resets => None,
            StreamFate::Stalls => unreachable!("nothing is cut"),
        };
        *seen.entry(outcome).or_insert(0_u64) += 1;
    }
    // Delays are sums of doubling timeouts: 0, 1, 1 + 2, 1 + 2 + 4, ...; halved in number each.
    assert_near(seen[&Some(0)], 5_000, 5);
    assert_near(seen[&Some(1)], 2_500, 5);
    assert_near(seen[&Some(3)], 1_250, 10);
    assert_near(seen[&None], 10_000 >> (RETRANSMISSIONS_MAX + 1), 30);

    network.set_default(LinkModel { reset: Chance::ALWAYS, ..LinkModel::PERFECT });
    assert_eq!(network.stream_fate(0, 1, 2, 1, &mut rng), StreamFate::Resets);
}

#[test]
fn corruption_flips_exactly_one_bit() {
    for salt in 0..100 {
        let mut bytes = [0_u8; 5];
        Corruption(salt).apply(&mut bytes);
        assert_eq!(bytes.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
    }
    Corruption(3).apply(&mut []);
}

#[test]
fn the_same_seed_gives_the_same_fates_bit_for_bit_and_another_seed_does_not() {
    let run = |seed| {
        let mut rng = Rng::new(seed);
        let mut network = Network::new(LinkModel::drawn(&mut rng));
        let mut trace = TraceHash::new();
        for n in 0..20_000_u64 {
            let (from, to) = (rng.below(5), rng.below(5));
            if n % 1_000 == 0 {
                network.set_link(from, to, LinkModel::drawn(&mut rng));
                network.cut_one_way(to, from);
            }
            for copy in network.fate(n * 1_000, from, to, 100, &mut rng).iter() {
                trace.word(copy.delay_nanos);
            }
            trace.word(n);
        }
        trace.value()
    };
    for seed in 0..50 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
        assert_ne!(run(seed), run(seed + 1), "seed {seed}");
    }
}
