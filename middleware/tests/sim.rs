//! The simulator itself, on machines that fit on a page: some correct, some with a known bug that must be found.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use quorate::sim::{
    Action, Boot, Breach, Config, Fault, Keep, Kind, Moment, Nodes, Observed, Plan, Scenario, World, hunt,
    replay, sweep,
};
use quorate_protocols::wire::take_u64;
use quorate_protocols::{Input, Lane, Machine, Output, Outputs, ProcessId, Time, Violation, Wire, WireError};

/// A numbered message, as simple as can be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Number(u64);

impl Wire for Number {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.0);
    }
    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self(take_u64(input, "number")?))
    }
}

// ---- a store that keeps numbers, and replicates them to nobody --------------------------------------------------

/// When the store says that a number is kept.
#[derive(Clone, Copy)]
enum Ack {
    WhenDurable,
    BeforeBarrier,
}

struct Store {
    ack: Ack,
    kept: BTreeSet<u64>,
}

impl Machine for Store {
    type Command = u64;
    type Event = u64;
    type Message = ();
    type Record = Number;

    fn handle(&mut self, _now: Time, input: Input<Self>, out: &mut Outputs<Self>) {
        if let Input::Command(number) = input {
            self.kept.insert(number);
            out.persist(Number(number));
            match self.ack {
                Ack::WhenDurable => {
                    out.barrier();
                    out.event(number);
                }
                Ack::BeforeBarrier => {
                    out.event(number);
                    out.barrier();
                }
            }
        }
    }

    fn deadline(&self) -> Option<Time> {
        None
    }
}

/// Puts numbers at random times; every acknowledged one must be there at the end.
struct Keeps {
    ack: Ack,
    next: u64,
    acknowledged: BTreeSet<(usize, u64)>,
}

impl Keeps {
    fn new(ack: Ack) -> Self {
        Self { ack, next: 0, acknowledged: BTreeSet::new() }
    }
}

impl Scenario for Keeps {
    type Machine = Store;

    fn nodes(&self) -> usize {
        2
    }

    fn boot(&mut self, boot: Boot<Store>) -> Store {
        Store { ack: self.ack, kept: boot.records.iter().map(|record| record.0).collect() }
    }

    fn start(&mut self, world: &mut World<Store>) {
        world.wake_in(Duration::ZERO, 0);
    }

    fn wake(&mut self, token: u64, world: &mut World<Store>) -> Result<(), Violation> {
        let node = world.rng().below(2) as usize;
        world.command(node, self.next);
        self.next += 1;
        if !world.is_calm() {
            let pause = world.rng().duration(Duration::from_millis(1)..Duration::from_millis(200));
            world.wake_in(pause, token);
        }
        Ok(())
    }

    fn observe(&mut self, who: Observed, number: &u64, _: &mut World<Store>) -> Result<(), Violation> {
        self.acknowledged.insert((who.node, *number));
        Ok(())
    }

    fn finish(&mut self, world: &mut World<Store>) -> Result<(), Violation> {
        for &(node, number) in &self.acknowledged {
            let kept = world.machine(node).is_some_and(|store| store.kept.contains(&number));
            if !kept {
                return Err(Violation(format!("node {node} acknowledged {number} and lost it")));
            }
        }
        Ok(())
    }
}

#[test]
fn a_store_that_acknowledges_behind_the_barrier_loses_nothing() {
    let summary = sweep(&Config::default(), 0..300, |_| Keeps::new(Ack::WhenDurable)).unwrap();
    println!("{summary}");
    assert_eq!(summary.seeds, 300);
    assert!(summary.counts.crashes > 300, "the sweep did crash nodes: {summary}");
    assert!(summary.counts.strikes > 100, "strikes found their promises: {summary}");
}

#[test]
fn a_store_that_acknowledges_before_the_barrier_is_caught_and_the_report_is_short_and_repeats() {
    let config = Config::default();
    let failure = sweep(&config, 0..300, |_| Keeps::new(Ack::BeforeBarrier)).unwrap_err();
    assert!(matches!(failure.breach, Breach::Invariant(_)), "{failure}");
    assert_eq!(failure.plan.faults.len(), 1, "one crash at the right moment is enough: {failure}");
    assert!(failure.faults_drawn > 1);

    let text = failure.to_string();
    for part in ["acknowledged", "faults: 1 of", "last ", "CRASHED", "QUORATE_SIM_SEED=0x"] {
        assert!(text.contains(part), "the report lacks {part:?}: {text}");
    }
    let again = replay(&config, failure.seed, &failure.plan, |_| Keeps::new(Ack::BeforeBarrier)).unwrap_err();
    assert_eq!((again.hash, &again.lines), (failure.hash, &failure.lines), "a replay is the same to the bit");
}

#[test]
fn equal_seeds_give_equal_traces_and_other_seeds_do_not() {
    let hash = |seeds| sweep(&Config::default(), seeds, |_| Keeps::new(Ack::WhenDurable)).unwrap().hash;
    assert_eq!(hash(7..17), hash(7..17));
    assert_ne!(hash(7..8), hash(8..9));
}

#[test]
fn a_scenario_that_remembers_across_runs_is_reported_as_not_deterministic() {
    let mut calls = 0;
    let failure = sweep(&Config::default(), 0..1, |_| {
        calls += 1;
        Counted { quiet: calls > 2 }
    })
    .unwrap_err();
    assert!(matches!(failure.breach, Breach::NotDeterministic { .. }), "{failure}");
}

/// Commands one number, or none.
struct Counted {
    quiet: bool,
}

impl Scenario for Counted {
    type Machine = Store;
    fn nodes(&self) -> usize {
        1
    }
    fn boot(&mut self, _: Boot<Store>) -> Store {
        Store { ack: Ack::WhenDurable, kept: BTreeSet::new() }
    }
    fn start(&mut self, world: &mut World<Store>) {
        if !self.quiet {
            world.command(0, 1);
        }
    }
    fn observe(&mut self, _: Observed, _: &u64, _: &mut World<Store>) -> Result<(), Violation> {
        Ok(())
    }
    fn finish(&mut self, _: &mut World<Store>) -> Result<(), Violation> {
        Ok(())
    }
}

// ---- strikes and barriers, one by one ---------------------------------------------------------------------------

/// Runs one put under one strike and tells what the store acknowledged and kept.
fn put_under(moment: Moment, keep: Keep) -> (bool, bool) {
    let mut plan = Plan::calm();
    let action = Action::Die { down_us: 1_000, keep };
    plan.faults.push(Fault::Strike { from_us: 0, node: 0, class: 0, skip: 0, moment, action });
    let mut seen = (false, false);
    struct One<'a>(&'a mut (bool, bool));
    impl Scenario for One<'_> {
        type Machine = Store;
        fn nodes(&self) -> usize {
            1
        }
        fn boot(&mut self, boot: Boot<Store>) -> Store {
            Store { ack: Ack::WhenDurable, kept: boot.records.iter().map(|record| record.0).collect() }
        }
        fn start(&mut self, world: &mut World<Store>) {
            world.command_in(Duration::from_millis(1), 0, 42);
        }
        fn observe(&mut self, _: Observed, _: &u64, _: &mut World<Store>) -> Result<(), Violation> {
            self.0.0 = true;
            Ok(())
        }
        fn finish(&mut self, world: &mut World<Store>) -> Result<(), Violation> {
            assert_eq!(world.counts().strikes, 1);
            assert_eq!(world.id(0).incarnation, 2);
            self.0.1 = world.machine(0).is_some_and(|store| store.kept.contains(&42));
            Ok(())
        }
    }
    let config = Config { active: Duration::from_secs(1), ..Config::default() };
    // The scenario is made once only: a replay does not repeat anything.
    let mut slot = Some(One(&mut seen));
    let counts = replay(&config, 0, &plan, |_| slot.take().unwrap()).unwrap();
    assert_eq!(counts.crashes, 1);
    seen
}

#[test]
fn a_strike_falls_before_after_or_at_the_durability_of_a_record() {
    assert_eq!(put_under(Moment::Before, Keep::Everything), (false, false));
    assert_eq!(put_under(Moment::After, Keep::Nothing), (false, false));
    assert_eq!(put_under(Moment::After, Keep::Everything), (false, true));
    assert_eq!(
        put_under(Moment::Durable, Keep::Nothing),
        (false, true),
        "durable, and nothing behind it left"
    );
}

// ---- ping and pong ----------------------------------------------------------------------------------------------

/// Sends a number every 100 ms of its clock and reports what it hears.
struct Pinger {
    peer: ProcessId,
    sent: u64,
    next: Time,
    early: bool,
}

impl Machine for Pinger {
    type Command = ();
    type Event = (u64, Time);
    type Message = Number;
    type Record = ();

    fn handle(&mut self, now: Time, input: Input<Self>, out: &mut Outputs<Self>) {
        match input {
            Input::Tick => {
                self.early |= now < self.next;
                self.sent += 1;
                self.next = now + Duration::from_millis(100);
                out.send(self.peer, Lane::Ordinary, Number(self.sent));
            }
            Input::Received { message, .. } => out.event((message.0, now)),
            _ => {}
        }
    }

    fn deadline(&self) -> Option<Time> {
        Some(self.next)
    }

    fn check(&self) -> Result<(), Violation> {
        if self.early { Err(Violation("a tick came early".into())) } else { Ok(()) }
    }
}

/// Numbers with the virtual times at which a node heard them.
type Heard = Vec<(u64, Time)>;
type Check = fn(&[Heard]) -> Result<(), String>;

/// What both nodes heard.
#[derive(Default)]
struct Pings {
    heard: Vec<Heard>,
    check: Option<Check>,
}

impl Scenario for Pings {
    type Machine = Pinger;
    fn nodes(&self) -> usize {
        2
    }
    fn boot(&mut self, boot: Boot<Pinger>) -> Pinger {
        self.heard.resize(2, Vec::new());
        Pinger { peer: ProcessId::any_life(1 - boot.node as u64), sent: 0, next: boot.now, early: false }
    }
    fn observe(
        &mut self,
        who: Observed,
        event: &(u64, Time),
        _: &mut World<Pinger>,
    ) -> Result<(), Violation> {
        self.heard[who.node].push((event.0, who.at));
        Ok(())
    }
    fn finish(&mut self, _: &mut World<Pinger>) -> Result<(), Violation> {
        self.check.map_or(Ok(()), |check| check(&self.heard).map_err(Violation))
    }
}

fn pings_under(fault: Fault, check: Check) {
    let mut plan = Plan::calm();
    plan.faults.push(fault);
    let config = Config { active: Duration::from_secs(4), calm: Duration::from_secs(1), ..Config::default() };
    replay(&config, 3, &plan, |_| Pings { check: Some(check), ..Pings::default() }).unwrap();
}

/// How many pings a node heard while virtual time was in the range of milliseconds.
fn count(heard: &[(u64, Time)], from_ms: u64, to_ms: u64) -> usize {
    let inside = |at: Time| (from_ms..to_ms).contains(&(at.as_nanos() / 1_000_000));
    heard.iter().filter(|(_, at)| inside(*at)).count()
}

fn expect(found: &[usize], wanted: &[usize]) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{found:?} instead of {wanted:?}")) }
}

#[test]
fn a_one_way_cut_stops_one_way_until_it_heals() {
    let cut = Fault::Cut { at_us: 1_000_000, for_us: 1_000_000, from: Nodes::one(0), to: Nodes::one(1) };
    pings_under(cut, |heard| {
        let of = |node: usize| [count(&heard[node], 1_010, 1_990), count(&heard[node], 2_010, 2_990)];
        expect(&[of(0), of(1)].concat(), &[9, 9, 0, 9])
    });
}

#[test]
fn a_paused_node_finds_everything_waiting_when_it_wakes() {
    let pause = Fault::Pause { at_us: 1_050_000, node: 1, for_us: 1_000_000 };
    pings_under(pause, |heard| {
        expect(&[count(&heard[1], 1_060, 2_050), count(&heard[1], 2_050, 2_051)], &[0, 10])
    });
}

#[test]
fn a_crashed_node_is_another_incarnation_and_its_timers_are_gone() {
    let crash = Fault::Crash { at_us: 1_050_000, node: 1, down_us: 1_000_000, keep: Keep::Nothing };
    pings_under(crash, |heard| {
        let numbers: Vec<u64> = heard[0].iter().map(|(number, _)| *number).collect();
        let restarted = numbers.iter().filter(|number| **number == 1).count();
        expect(&[count(&heard[0], 1_060, 2_049), count(&heard[1], 1_060, 2_049), restarted], &[0, 0, 2])
    });
}

#[test]
fn ticks_never_come_early_whatever_the_clocks_do() {
    let kinds = vec![Kind::Clock, Kind::Pause, Kind::Crash];
    let summary = sweep(&Config { kinds, ..Config::default() }, 0..200, |_| Pings::default()).unwrap();
    println!("{summary}");
}

#[test]
fn a_drifting_clock_makes_a_node_faster_or_slower_than_virtual_time() {
    let pace = |drift_ppm_max| {
        let mut plan = Plan::calm();
        plan.weather.drift_ppm_max = drift_ppm_max;
        let mut total = 0;
        for seed in 0..20 {
            struct Total<'a>(Pings, &'a mut usize);
            impl Scenario for Total<'_> {
                type Machine = Pinger;
                fn nodes(&self) -> usize {
                    2
                }
                fn boot(&mut self, boot: Boot<Pinger>) -> Pinger {
                    self.0.boot(boot)
                }
                fn observe(
                    &mut self,
                    who: Observed,
                    event: &(u64, Time),
                    world: &mut World<Pinger>,
                ) -> Result<(), Violation> {
                    self.0.observe(who, event, world)
                }
                fn finish(&mut self, _: &mut World<Pinger>) -> Result<(), Violation> {
                    *self.1 = self.0.heard[0].len().abs_diff(250);
                    Ok(())
                }
            }
            let mut off = 0;
            let mut slot = Some(Total(Pings::default(), &mut off));
            replay(&Config::default(), seed, &plan, |_| slot.take().unwrap()).unwrap();
            total += off;
        }
        total
    };
    assert_eq!(pace(0), 0);
    assert!(pace(50_000) > 20, "clocks that are up to 5% off send more or fewer pings");
}

// ---- storms, panics, codecs -------------------------------------------------------------------------------------

/// Misbehaves on purpose.
#[derive(Clone, Copy)]
enum Vice {
    /// A deadline that stays in the past.
    AlwaysDue,
    /// Two answers to every message.
    Chatty,
    /// Trusts a peer's number.
    Panics,
    /// Forgets a field on the wire.
    Forgetful,
}

struct Bad {
    vice: Vice,
    peer: ProcessId,
}

/// Two numbers of which one may get lost on the wire.
#[derive(Debug, Clone)]
struct Pair {
    first: u64,
    second: u64,
    forget: bool,
}

impl Wire for Pair {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.first);
        out.put_u64_le(self.second);
        out.put_u8(u8::from(self.forget));
    }
    fn decode(input: &mut Bytes) -> Result<Self, WireError> {
        let (first, second) = (take_u64(input, "first")?, take_u64(input, "second")?);
        let forget = quorate_protocols::wire::take_u8(input, "forget")? == 1;
        Ok(Self { first, second: if forget { 0 } else { second }, forget })
    }
}

impl Machine for Bad {
    type Command = ();
    type Event = ();
    type Message = Pair;
    type Record = ();

    fn handle(&mut self, _now: Time, input: Input<Self>, out: &mut Outputs<Self>) {
        let forget = matches!(self.vice, Vice::Forgetful);
        match (input, self.vice) {
            (Input::Command(()), _) => {
                out.send(self.peer, Lane::Ordinary, Pair { first: 0, second: 1, forget });
            }
            (Input::Received { message, .. }, Vice::Chatty) => {
                out.send(self.peer, Lane::Ordinary, message.clone());
                out.send(self.peer, Lane::Ordinary, message);
            }
            (Input::Received { message, .. }, Vice::Panics) => {
                assert_ne!(message.first, 0, "peers never send zero");
            }
            _ => {}
        }
    }

    fn deadline(&self) -> Option<Time> {
        matches!(self.vice, Vice::AlwaysDue).then_some(Time::ZERO)
    }
}

struct Misbehaves(Vice);

impl Scenario for Misbehaves {
    type Machine = Bad;
    fn nodes(&self) -> usize {
        2
    }
    fn boot(&mut self, boot: Boot<Bad>) -> Bad {
        Bad { vice: self.0, peer: ProcessId::any_life(1 - boot.node as u64) }
    }
    fn start(&mut self, world: &mut World<Bad>) {
        world.command(0, ());
    }
    fn observe(&mut self, _: Observed, (): &(), _: &mut World<Bad>) -> Result<(), Violation> {
        Ok(())
    }
    fn finish(&mut self, _: &mut World<Bad>) -> Result<(), Violation> {
        Ok(())
    }
    fn promise(&self, _: &Output<Bad>) -> Option<u8> {
        None
    }
}

#[test]
fn a_deadline_that_stays_in_the_past_is_a_storm() {
    let found = hunt(&Config::default(), 0..5, |_| Misbehaves(Vice::AlwaysDue)).unwrap();
    assert!(matches!(found.breach, Breach::Storm { .. }), "{found:?}");
}

#[test]
fn machines_that_answer_every_message_twice_are_a_storm() {
    let found = hunt(&Config::default(), 0..5, |_| Misbehaves(Vice::Chatty)).unwrap();
    assert!(matches!(found.breach, Breach::Storm { .. }), "{found:?}");
}

#[test]
fn a_panic_is_a_failure_with_its_seed_and_its_last_events() {
    let failure = sweep(&Config::default(), 0..20, |_| Misbehaves(Vice::Panics)).unwrap_err();
    assert!(matches!(&failure.breach, Breach::Panic(text) if text.contains("never send zero")), "{failure}");
    assert!(failure.lines.iter().any(|line| line.contains("Pair")), "{failure}");
}

#[test]
fn a_message_that_does_not_survive_its_own_layout_is_found() {
    let found = hunt(&Config::default(), 0..200, |_| Misbehaves(Vice::Forgetful)).unwrap();
    assert!(matches!(found.breach, Breach::Codec(_)), "{found:?}");
}

#[test]
fn a_plan_is_the_same_for_the_same_seed_and_swarms_differ() {
    let plan = |seed| Plan::draw(seed, &Config::default(), 5, 3);
    assert_eq!(plan(1).faults, plan(1).faults);
    assert_eq!(plan(1).weather, plan(1).weather);
    let without_crashes =
        (0..100).filter(|seed| plan(*seed).faults.iter().all(|fault| !matches!(fault, Fault::Crash { .. })));
    let share = without_crashes.count();
    assert!((20..80).contains(&share), "{share} of 100 plans have no timed crash");
}
