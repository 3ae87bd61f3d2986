//! One history: users, books, log and disk, and what the users may expect.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use quorate_journal::{Config, Faults, FaultyStorage, Log, Position, Storage};
use quorate_protocols::Time;
use rand_core::{RngCore, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use super::super::books::{Books, Desk, Unit};
use super::super::checkpoint::begin;
use super::super::config::QueueConfig;
use super::super::error::PutError;
use super::super::message::{Durability, Message, MessageId};
use super::super::near::NEAR_MAX;
use super::super::plan::{Refusal, Wish};
use super::super::planted::Bug;
use super::super::record::{Step, Why};
use super::super::room::CHECKPOINT;
use super::super::shelf::Lease;
use super::super::upkeep::LogSize;
use super::noted;

/// Which rule was broken, and how.
pub(super) type Broken = String;

/// One history: `Ok(false)` when it came to its end before the crash.
pub(super) fn run(seed: u64, crash_at: u64, bug: Option<Bug>) -> Result<bool, Broken> {
    let mut chance = Xoshiro256PlusPlus::seed_from_u64(seed);
    let faults = Faults {
        short_transfers: false,
        write_back: chance.next_u64().is_multiple_of(2),
        garbage: chance.next_u64().is_multiple_of(2),
        capacity_bytes: None,
    };
    let disk = FaultyStorage::with_faults(seed, faults);
    disk.crash_at(crash_at);
    let mut world = World {
        chance,
        disk,
        bug,
        near_max: if seed % 2 == 1 { 2 } else { NEAR_MAX },
        audits: 0,
        checkpoint_bytes_min: if seed % 4 < 2 { 4 << 10 } else { 3 * SEGMENT_BYTES },
        now: Time::from_nanos(1 << 60),
        model: Model::default(),
    };
    world.live(if crash_at == u64::MAX { 600 } else { 150 })?;
    let is_cut = world.disk.is_crashed();
    world.disk = world.disk.crash();
    world.disk.crash_at(world.chance.next_u64() % 30);
    world.live(40)?;
    world.disk = world.disk.crash();
    world.live(3)?;
    Ok(is_cut)
}

struct World {
    chance: Xoshiro256PlusPlus,
    disk: FaultyStorage,
    bug: Option<Bug>,
    /// So many ready messages of a queue are in memory, the log has the others.
    near_max: usize,
    checkpoint_bytes_min: u64,
    audits: u64,
    now: Time,
    model: Model,
}

/// What the users know.
#[derive(Default)]
struct Model {
    /// Every message by its serial number, which its bytes begin with.
    messages: BTreeMap<u64, Fate>,
    /// Per queue, what was put under which name, in order.
    named: BTreeMap<u32, Vec<(u64, u64)>>,
    /// The application's state as it was told last.
    cell: Option<u64>,
    /// Units whose outcome nobody has told, in order.
    open: Vec<Told>,
    /// Numbers of messages that were told to be stored.
    ids: BTreeSet<MessageId>,
}

#[derive(Debug, Clone)]
struct Fate {
    queue: u32,
    id: MessageId,
    key: Option<u64>,
    class: Durability,
    expires: Option<Time>,
    is_there: Known,
    /// Whether its name was put.
    is_named: Known,
    /// Its end is on its way.
    is_ending: bool,
    /// A sweep that may concern it is on its way, or was when the power went.
    is_swept: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Yes,
    No,
    Maybe,
}

/// What users learn when a unit is stored.
#[derive(Debug, Clone, Default)]
struct Told {
    put: Vec<u64>,
    ended: Vec<u64>,
    cell: Option<Option<u64>>,
    /// It went to the dead letters, as that number.
    buried: Option<(u64, MessageId)>,
    purged: Option<(u32, MessageId)>,
    sought: Option<u32>,
    cut: Option<u64>,
}

/// What belongs to one life of the process.
struct Life {
    log: Log,
    first: Position,
    books: Books,
    /// Handed to the log, in its order.
    under_way: VecDeque<(Unit, Told, Option<u64>)>,
    held: Vec<(u32, MessageId, Lease, u64)>,
}

impl World {
    /// Opens, checks, and works until the power goes or the steps are done.
    fn live(&mut self, steps: usize) -> Result<(), Broken> {
        let Ok((log, recovered)) = Log::open(self.disk.clone(), config()) else {
            return self.is_dark("opening failed");
        };
        let Some(books) = self.read_back(&log, recovered.first, true)? else {
            return self.is_dark("reading failed");
        };
        let mut life =
            Life { log, first: recovered.first, books, under_way: VecDeque::new(), held: Vec::new() };
        self.take_stock(&life.books)?;
        for _ in 0..steps {
            if self.step(&mut life)?.is_none() {
                return self.is_dark("a call failed");
            }
        }
        match self.complete(&mut life)? {
            Some(()) => self.audit(&life),
            None => self.is_dark("the last sync failed"),
        }
    }

    fn is_dark(&self, what: &str) -> Result<(), Broken> {
        if self.disk.is_crashed() { Ok(()) } else { Err(format!("{what} without a crash")) }
    }

    /// What a restart makes of the log, with or without its checkpoint. `None` when it cannot be read.
    fn read_back(&self, log: &Log, first: Position, is_abridged: bool) -> Result<Option<Books>, Broken> {
        let newest = if is_abridged { log.load_snapshot(CHECKPOINT) } else { Ok(None) };
        let Ok((mut books, from, is_wrong)) = begin(|| self.books(log), self.now, first, newest) else {
            return Ok(None);
        };
        if is_wrong {
            return Err("rule 5: the checkpoint cannot be used".to_owned());
        }
        for entry in log.read(from) {
            let Ok(entry) = entry else { return Ok(None) };
            let step = Step::decode(&entry).map_err(|error| format!("rule 5: {error}"))?;
            books.replay(self.now, entry.position.as_u64(), step)?;
        }
        self.open_desks(&mut books);
        Ok(Some(books))
    }

    fn books(&self, log: &Log) -> Books {
        let names = ["work", "work.dead", "out"].into_iter().map(str::to_owned);
        let mut books = Books::new((0..).zip(names).collect());
        books.planted = self.bug;
        books.near_max = self.near_max;
        books.bodies.read_from(log.read(Position::ZERO));
        books
    }

    fn open_desks(&self, books: &mut Books) {
        for queue in QUEUES {
            let config = QueueConfig::new().deduplicate(WINDOW).lease(Duration::from_secs(2));
            let desk: &mut Desk = books.desk(queue);
            desk.is_opened = true;
            desk.config = match queue {
                WORK => config.deliveries_max(Some(3)).retain(4, Duration::from_secs(3600)),
                _ => config.deliveries_max(None),
            };
            desk.dead = (queue == WORK).then_some(DEAD);
            books.trim_names(queue);
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.chance.next_u64() % bound
    }

    /// One thing that a user, the time or the disk does. `None` when the power went.
    fn step(&mut self, life: &mut Life) -> Result<Option<()>, Broken> {
        match self.below(20) {
            0..=4 => {
                let queue = if self.below(4) == 0 { OUT } else { WORK };
                let (serial, message) = self.message(true);
                self.wish(
                    life,
                    Wish { puts: vec![(queue, message)], ..Wish::default() },
                    vec![serial],
                    vec![],
                )
            }
            5..=8 => self.take(life),
            9..=11 if !life.held.is_empty() => {
                let held = self.below(life.held.len() as u64) as usize;
                let (queue, id, lease, serial) = life.held.swap_remove(held);
                let wish = Wish { acks: vec![(queue, id, lease)], ..Wish::default() };
                self.wish(life, wish, vec![], vec![serial])
            }
            // A unit of work: taken here, put there, and the state changed.
            12..=13 if !life.held.is_empty() => {
                let held = self.below(life.held.len() as u64) as usize;
                let (queue, id, lease, taken) = life.held.swap_remove(held);
                let (one, first) = self.message(false);
                let (two, second) = self.message(false);
                let cell = (self.below(4) > 0).then(|| one.to_le_bytes().to_vec().into());
                let wish = Wish {
                    puts: vec![(OUT, first), (WORK, second)],
                    acks: vec![(queue, id, lease)],
                    cells: vec![("cell".into(), cell)],
                    ..Wish::default()
                };
                self.wish(life, wish, vec![one, two], vec![taken])
            }
            14 if !life.held.is_empty() => {
                let held = self.below(life.held.len() as u64) as usize;
                let (queue, id, lease, _) = life.held.swap_remove(held);
                let delay = Duration::from_millis(self.below(3) * 500);
                let desk = life.books.desk(queue);
                let most = desk.deliveries_max();
                desk.shelf.give_back(self.now, id, lease, delay, most);
                self.bury(life, queue)
            }
            15 => {
                self.now = self.now + Duration::from_millis(self.below(1500));
                Ok(Some(()))
            }
            16 if self.below(3) == 0 => self.sweep(life),
            _ => {
                let outcome = self.complete(life)?;
                if outcome.is_some() && self.below(3) == 0 && life.under_way.is_empty() {
                    self.audit(life)?;
                }
                Ok(outcome)
            }
        }
    }

    fn message(&mut self, is_plain: bool) -> (u64, Message) {
        let serial = self.model.messages.len() as u64;
        let mut payload = vec![serial as u8; 8 + self.below(1200) as usize];
        payload[..8].copy_from_slice(&serial.to_le_bytes());
        let mut message = Message::new(payload);
        if self.below(2) == 0 {
            message = message.key(vec![self.below(3) as u8]);
        }
        if is_plain {
            if self.below(3) == 0 {
                message = message.name(vec![self.below(6) as u8]);
            }
            if self.below(5) == 0 {
                message = message.durability(Durability::Memory);
            }
            if self.below(6) == 0 {
                message = message.expires_after(Duration::from_millis(self.below(4000)));
            }
            if self.below(6) == 0 {
                message = message.delay(Duration::from_millis(self.below(2000)));
            }
        }
        // Its place is taken, also if it is refused.
        let fate = Fate {
            queue: WORK,
            id: MessageId::from_u64(0),
            key: message.key.as_ref().map(|key| u64::from(key[0])),
            class: message.durability,
            expires: message.expires_after.map(|time| self.now + time),
            is_there: Known::No,
            is_named: Known::No,
            is_ending: false,
            is_swept: false,
        };
        self.model.messages.insert(serial, fate);
        (serial, message)
    }

    fn wish(
        &mut self,
        life: &mut Life,
        wish: Wish,
        serials: Vec<u64>,
        ended: Vec<u64>,
    ) -> Result<Option<()>, Broken> {
        let plan = match life.books.plan(self.now, &wish) {
            Ok(plan) => plan,
            Err(Refusal::Coming) => return self.complete(life),
            Err(Refusal::LeaseLost | Refusal::Put(PutError::InMemory { .. })) => return Ok(Some(())),
            Err(refusal) => return Err(format!("refused: {refusal:?}")),
        };
        let mut told = Told { ended, ..Told::default() };
        for ((serial, (queue, message)), planned) in serials.iter().zip(&wish.puts).zip(&plan.puts) {
            let name = message.name.as_ref().map(|name| u64::from(name[0]));
            self.check_name(*queue, name, *serial, planned.is_repeated)?;
            if planned.is_repeated {
                continue;
            }
            if self.model.ids.contains(&planned.id) {
                return Err(format!("rule 6: {} is given again", planned.id));
            }
            let fate = self.fate(*serial);
            (fate.queue, fate.id) = (*queue, planned.id);
            (fate.is_there, fate.is_named) = (Known::Maybe, Known::Maybe);
            told.put.push(*serial);
        }
        for serial in &told.ended {
            self.fate(*serial).is_ending = true;
        }
        if let Some((_, value)) = wish.cells.first() {
            told.cell = Some(value.as_ref().map(|value| serial_of(value)));
        }
        self.store(life, plan.unit, told)
    }

    fn check_name(
        &mut self,
        queue: u32,
        name: Option<u64>,
        serial: u64,
        is_repeated: bool,
    ) -> Result<(), Broken> {
        let Some(name) = name else { return Ok(()) };
        let messages = &self.model.messages;
        let named = self.model.named.entry(queue).or_default();
        let is_it = |(known, serial): &(u64, u64)| *known == name && messages[serial].is_named != Known::No;
        let last = named.iter().rposition(is_it);
        if is_repeated {
            let complaint = || format!("rule 4: name {name} was never put and is known");
            return last.map(drop).ok_or_else(complaint);
        }
        if let Some(last) = last {
            let other = &messages[&named[last].1];
            // Those after it that never came are counted, too: simple, and only more lenient.
            let is_in_window = other.is_named == Known::Yes && named.len() - last <= WINDOW;
            if is_in_window || other.is_there == Known::Maybe {
                return Err(format!("rule 4: name {name} was put as {} and is not known", named[last].1));
            }
        }
        named.push((name, serial));
        Ok(())
    }

    fn take(&mut self, life: &mut Life) -> Result<Option<()>, Broken> {
        let queue = self.below(3) as u32;
        life.books.look(self.now, queue);
        if self.bury(life, queue)?.is_none() {
            return Ok(None);
        }
        if life.books.bring_near(self.now, queue).is_err() {
            return Ok(None);
        }
        let Some((taken, step)) = life.books.take(self.now, queue) else { return Ok(Some(())) };
        if let Some(step) = step
            && life.log.append(&[step.encode()]).is_err()
        {
            return Ok(None);
        }
        let serial = serial_of(&bytes_of(&life.books, queue, taken.id));
        life.books.handed_out(queue, taken.id);
        let fate = self.fate(serial).clone();
        if fate.is_there != Known::Yes && !fate.is_swept || fate.is_ending {
            return Err(format!("rule 1: {serial} is given: {fate:?}"));
        }
        if fate.expires.is_some_and(|expires| expires <= self.now) && queue != DEAD {
            return Err(format!("rule 3: {serial} has expired and is given"));
        }
        let earlier = self.model.messages.iter().find(|(_, other)| {
            (other.queue, other.key) == (fate.queue, fate.key)
                && other.id < fate.id
                && other.is_there == Known::Yes
                && !other.is_swept
        });
        if fate.key.is_some()
            && let Some((other, _)) = earlier
        {
            return Err(format!("rule 3: {serial} is given before {other} of its key has left"));
        }
        life.held.push((queue, taken.id, taken.lease, serial));
        Ok(Some(()))
    }

    fn bury(&mut self, life: &mut Life, queue: u32) -> Result<Option<()>, Broken> {
        while let Some(unit) = life.books.next_burial(self.now, queue) {
            let mut told = Told::default();
            for step in &unit.steps {
                match step {
                    Step::Gone { id, why, .. } => {
                        let serial = serial_of(&bytes_of(&life.books, queue, *id));
                        self.fate(serial).is_ending = true;
                        if *why == Why::Expired {
                            told.ended.push(serial);
                        }
                    }
                    Step::Put(put) => told.buried = Some((serial_of(&put.payload), put.id)),
                    _ => {}
                }
            }
            if self.store(life, unit, told)?.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(()))
    }

    fn sweep(&mut self, life: &mut Life) -> Result<Option<()>, Broken> {
        let below = life.books.next;
        let (unit, told) = if self.below(2) == 0 {
            let told = Told { purged: Some((WORK, below)), ..Told::default() };
            (life.books.plan_purge(WORK), told)
        } else {
            let to = MessageId::from_u64(self.below(below.as_u64() + 1));
            let told = Told { sought: Some(WORK), ..Told::default() };
            (life.books.plan_seek(WORK, to), told)
        };
        for fate in self.model.messages.values_mut().filter(|fate| fate.queue == WORK) {
            fate.is_swept |= fate.id < below;
        }
        self.store(life, unit, told)
    }

    /// Hands a unit to the log, or does it at once when there is nothing to store.
    fn store(&mut self, life: &mut Life, unit: Unit, told: Told) -> Result<Option<()>, Broken> {
        let records = unit.records();
        if records.is_empty() {
            life.books.commit(self.now, unit, None, &mut Vec::new());
            self.learn(life, &told);
            return Ok(Some(()));
        }
        let appended = if self.bug == Some(Bug::UnitFallsApart) {
            records.iter().map(|record| life.log.append(std::slice::from_ref(record))).next_back()
        } else {
            Some(life.log.append(&records))
        };
        let Some(Ok(appended)) = appended else {
            self.model.open.push(told);
            return Ok(None);
        };
        if self.bug == Some(Bug::ToldBeforeItIsStored) {
            self.learn(life, &told);
        }
        let first = appended.next.as_u64() - records.len() as u64;
        life.under_way.push_back((unit, told.clone(), Some(first)));
        self.model.open.push(told);
        Ok(Some(()))
    }

    /// Syncs the log, and does what is stored.
    fn complete(&mut self, life: &mut Life) -> Result<Option<()>, Broken> {
        if life.log.commit().is_err() {
            return Ok(None);
        }
        for _ in 0..life.under_way.len() {
            let Some((unit, told, first)) = life.under_way.pop_front() else { break };
            self.model.open.remove(0);
            let is_end = unit.steps.iter().any(|step| matches!(step, Step::Gone { queue: WORK, .. }));
            life.books.commit(self.now, unit, first, &mut Vec::new());
            self.learn(life, &told);
            if let Some(cut) = told.cut {
                match life.log.truncate_before(Position::from_u64(cut)) {
                    Ok(first) => life.first = first,
                    Err(_) => return Ok(None),
                }
            }
            if is_end
                && let Some(trim) = life.books.plan_trim(self.now, WORK)
                && self.store(life, trim, Told::default())?.is_none()
            {
                return Ok(None);
            }
            if self.tidy(life)?.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(()))
    }

    fn tidy(&mut self, life: &mut Life) -> Result<Option<()>, Broken> {
        if let Some((place, blob)) = life.books.checkpoint_if_due(self.checkpoint_bytes_min) {
            let place = Position::from_u64(place.min(life.log.next().as_u64()));
            if life.log.save_snapshot(CHECKPOINT, place, &blob).is_err() {
                return Ok(None);
            }
        }
        if life.books.idle_bytes < SEGMENT_BYTES / 4 {
            return Ok(Some(()));
        }
        let Ok(files) = self.disk.list() else { return Ok(None) };
        let segments = files.iter().filter(|name| name.ends_with(".segment")).count() as u64;
        let log = LogSize { first: life.first.as_u64(), segments, segment_bytes: SEGMENT_BYTES };
        let upkeep = life.books.upkeep(log);
        let cut = upkeep.cut.map(|cut| cut.min(life.log.next().as_u64()));
        for (unit, cut) in [(upkeep.floor, cut), (upkeep.moves, None)] {
            if let Some(unit) = unit
                && self.store(life, unit, Told { cut, ..Told::default() })?.is_none()
            {
                return Ok(None);
            }
        }
        Ok(Some(()))
    }

    /// Users learn that a unit is stored.
    fn learn(&mut self, life: &Life, told: &Told) {
        for serial in &told.put {
            let fate = self.fate(*serial);
            let (id, class) = (fate.id, fate.class);
            (fate.is_there, fate.is_named) = (Known::Yes, Known::Yes);
            if class > Durability::Memory {
                self.model.ids.insert(id);
            }
        }
        for serial in &told.ended {
            let fate = self.fate(*serial);
            (fate.is_there, fate.is_ending) = (Known::No, false);
        }
        if let Some((serial, id)) = told.buried {
            let fate = self.fate(serial);
            (fate.queue, fate.id, fate.is_there, fate.is_ending) = (DEAD, id, Known::Yes, false);
            fate.is_swept = false;
        }
        if let Some(cell) = told.cell {
            self.model.cell = cell;
        }
        if let Some((queue, below)) = told.purged {
            for fate in self.model.messages.values_mut() {
                if fate.queue == queue && fate.id < below && fate.is_there == Known::Yes {
                    fate.is_there = Known::No;
                }
            }
        }
        if let Some(queue) = told.sought {
            // What is kept decides; that the log says the same is rule 5.
            let here = serials(&life.books, queue);
            for (serial, fate) in &mut self.model.messages {
                if fate.queue == queue && fate.is_swept && fate.is_there != Known::Maybe {
                    fate.is_there = if here.contains(serial) { Known::Yes } else { Known::No };
                }
            }
        }
        if told.sought.is_some() || told.purged.is_some() {
            let is_sweeping =
                life.under_way.iter().any(|(_, told, _)| told.sought.is_some() || told.purged.is_some());
            if !is_sweeping {
                self.model.messages.values_mut().for_each(|fate| fate.is_swept = false);
            }
        }
    }

    /// After a restart: what is there must be what was told, and what nobody told is known from now on.
    fn take_stock(&mut self, books: &Books) -> Result<(), Broken> {
        let mut found: BTreeMap<u64, (u32, MessageId)> = BTreeMap::new();
        for queue in QUEUES {
            let Some(desk) = books.desks.get(&queue) else { continue };
            for id in here(desk) {
                let payload = bytes_of(books, queue, id);
                let serial = serial_of(&payload);
                if payload[8..].iter().any(|byte| *byte != serial as u8) {
                    return Err(format!("rule 1: {serial} has other bytes"));
                }
                if let Some(other) = found.insert(serial, (queue, id)) {
                    return Err(format!("rule 1: {serial} is in queue {queue} and as {other:?}"));
                }
            }
        }
        let cell = books.cells.get(&b"cell"[..]).map(|cell| serial_of(&cell.value));
        let mut expected = self.model.cell;
        let is_vague = |fate: &Fate| fate.is_swept || fate.class == Durability::Memory;
        for told in &self.model.open {
            let signs = told.put.iter().map(|serial| (serial, true));
            let signs = signs.chain(told.ended.iter().map(|serial| (serial, false)));
            let signs: BTreeSet<bool> = signs
                .filter(|(serial, _)| !is_vague(&self.model.messages[serial]))
                .map(|(serial, is_put)| found.contains_key(serial) == is_put)
                .collect();
            if signs.len() > 1 {
                return Err(format!("rule 2: {told:?} was done in part"));
            }
            if let Some(cell) = told.cell
                && signs.contains(&true)
            {
                expected = cell;
            }
        }
        if cell != expected {
            return Err(format!("rule 2: the state is {cell:?}, not {expected:?}"));
        }
        self.model.cell = cell;
        self.model.open.clear();
        for (serial, fate) in &mut self.model.messages {
            let place = found.get(serial).copied();
            let is_sure = !is_vague(fate) && !fate.is_ending;
            match (fate.is_there, place) {
                (Known::Yes, None) if is_sure => return Err(format!("rule 1: {serial} is lost: {fate:?}")),
                (Known::No, Some(_)) if !fate.is_swept => {
                    return Err(format!("rule 1: {serial} is there again: {fate:?}"));
                }
                _ => {}
            }
            if place.is_some() && fate.class == Durability::Memory {
                return Err(format!("rule 1: {serial} was only in memory"));
            }
            fate.is_named = match fate.is_named {
                _ if fate.class == Durability::Memory => Known::No,
                Known::Maybe if place.is_some() => Known::Yes,
                Known::Maybe if !fate.is_swept => Known::No,
                known => known,
            };
            if let Some((queue, id)) = place {
                if queue != fate.queue && queue != DEAD {
                    return Err(format!("rule 1: {serial} is in queue {queue}: {fate:?}"));
                }
                (fate.queue, fate.id) = (queue, id);
                self.model.ids.insert(id);
            }
            fate.is_there = match place {
                Some(_) => Known::Yes,
                None => Known::No,
            };
            (fate.is_ending, fate.is_swept) = (false, false);
        }
        Ok(())
    }

    /// Rule 5: the log says what the books say.
    fn audit(&mut self, life: &Life) -> Result<(), Broken> {
        if !life.under_way.is_empty() {
            return Ok(());
        }
        // One of the two readings at a time: each does the whole log.
        self.audits += 1;
        let is_abridged = self.audits.is_multiple_of(2);
        let Some(again) = self.read_back(&life.log, life.first, is_abridged)? else {
            return self.is_dark("reading failed");
        };
        for queue in QUEUES {
            let (is, says) = (content(&life.books, queue), content(&again, queue));
            // The window of names may hold more after a restart: those that were only in memory are not in it.
            let are_named = is.1.iter().zip(&says.1).all(|(is, says)| is.is_none() || is == says);
            if is.0 != says.0 || !are_named {
                return Err(format!("rule 5: queue {queue} is {is:?}, and the log says {says:?}"));
            }
        }
        let cells = |books: &Books| -> Vec<_> {
            books.cells.iter().map(|(key, cell)| (key.clone(), cell.value.clone())).collect()
        };
        if cells(&life.books) != cells(&again) {
            return Err("rule 5: the log says another state".to_owned());
        }
        Ok(())
    }

    fn fate(&mut self, serial: u64) -> &mut Fate {
        noted(self.model.messages.get_mut(&serial))
    }
}

type Content = (Vec<(MessageId, u64, bool)>, Vec<Option<MessageId>>);

/// What of a queue must survive.
fn content(books: &Books, queue: u32) -> Content {
    let desk = &books.desks[&queue];
    let is_stored = |id: &MessageId| desk.shelf.slip(*id).is_none_or(|slip| slip.class > Durability::Memory);
    let kept = desk.shelf.kept().keys().map(|id| (*id, true));
    let messages: BTreeSet<_> = here(desk).into_iter().map(|id| (id, false)).chain(kept).collect();
    let messages = messages.into_iter().filter(|(id, _)| is_stored(id));
    let messages =
        messages.map(|(id, is_kept)| (id, serial_of(&bytes_of(books, queue, id)), is_kept)).collect();
    let names = (0..6_u8)
        .map(|name| desk.seen.find(&vec![name].into()).filter(|id| desk.seen.is_stored(*id)))
        .collect();
    (messages, names)
}

fn serials(books: &Books, queue: u32) -> BTreeSet<u64> {
    here(&books.desks[&queue]).into_iter().map(|id| serial_of(&bytes_of(books, queue, id))).collect()
}

/// Those that have not left.
fn here(desk: &Desk) -> Vec<MessageId> {
    let far = desk.distance.ranges(MessageId::from_u64(0)).flatten().map(|spot| spot.id);
    desk.shelf.messages().keys().copied().chain(far).collect()
}

/// The bytes of a message, none if they cannot be read.
fn bytes_of(books: &Books, queue: u32, id: MessageId) -> Vec<u8> {
    let desk = &books.desks[&queue];
    let near = desk.shelf.slip(id).map(|slip| slip.place);
    let far = || desk.distance.get(id).map(|spot| spot.place);
    let payload = books.bodies.get(queue, id, near.unwrap_or_else(far));
    payload.map(Vec::from).unwrap_or_else(|_| vec![255; 8])
}

fn serial_of(payload: &[u8]) -> u64 {
    payload.first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes))
}

/// The smallest segments, so that short histories have many.
fn config() -> Config {
    Config::new(1).segment_bytes(SEGMENT_BYTES).zero_fill_bytes(0)
}

const SEGMENT_BYTES: u64 = 8 << 10;
const WORK: u32 = 0;
const DEAD: u32 = 1;
const OUT: u32 = 2;
const QUEUES: [u32; 3] = [WORK, DEAD, OUT];
/// Names that a queue remembers.
const WINDOW: usize = 4;
