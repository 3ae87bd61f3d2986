//! One branch's books as a deterministic state machine: equal commands in equal order give equal books everywhere.
//!
//! Guarantee   no command makes or destroys money: what leaves an account lies in another one or in a hold, and a hold
//!             ends as its transaction ends. A transfer's number is executed at most once, however often it is asked.
//! Method      a transfer within the branch is one command. A transfer to another branch is a transaction with one leg
//!             here: `Prepare` takes the money out of the account (or reserves the right to pay in), `Finish` settles.
//! Limits      [`REMEMBERED_MAX`] outcomes and as many ended transactions are remembered, the oldest are forgotten
//!             first: far more than can be repeated within a client's patience. [`HOLDS_MAX`] open transactions. The
//!             ledger, with every movement since the opening, takes [`POSTINGS_MAX`]; a full one refuses orders.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::accounts::{ACCOUNTS_PER_BRANCH, AccountId, BRANCHES};
use super::input::{CENTS_MAX, TRANSFERS_MAX, Transfer};

/// How many outcomes are remembered for those who ask again.
pub const REMEMBERED_MAX: usize = 1_000_000;

/// How many transactions may be open at one branch.
pub const HOLDS_MAX: usize = 10_000;

/// How many movements of money the ledger takes: both ends of as many transfers as a file may have.
pub const POSTINGS_MAX: usize = 2 * TRANSFERS_MAX;

/// A transaction between two branches; every attempt at an order is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TransactionId {
    /// The coordinator.
    pub node: u64,
    /// Which of its lives.
    pub incarnation: u64,
    /// Counts within that life.
    pub sequence: u64,
}

/// What the replicas of a branch execute, in the same order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Moves money between two accounts of this branch.
    Transfer(Transfer),
    /// Asks whether this branch can take its part in a transaction, and holds it ready if so.
    Prepare(TransactionId, Leg, Keeper),
    /// Ends a transaction: settles (`true`) or gives everything back.
    Finish(TransactionId, bool),
    /// Ends, as aborted, what earlier lives of a replica had prepared, except what they had promised to others. Said
    /// once by the new life, when its journal has told it what those promises are.
    Release(Keeper, Vec<TransactionId>),
}

/// The life of the replica that takes part in a transaction for its branch, and that will be told how it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keeper {
    /// The replica's node.
    pub node: u64,
    /// Which of its lives.
    pub incarnation: u64,
}

/// What is held ready for a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Hold {
    leg: Leg,
    keeper: Keeper,
}

/// A branch's part in a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leg {
    /// The whole order; which part of it is meant follows from the side.
    pub transfer: Transfer,
    /// Which end of the order lies here.
    pub side: Side,
}

/// The two ends of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    /// The paying account is here.
    Pays,
    /// The receiving account is here.
    Receives,
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Executed, now or when it was first asked; for `Prepare`: ready to settle.
    Done,
    /// Not executed, and nothing changed.
    Refused(Refusal),
}

/// Why a branch does not carry out an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The branch has no such account.
    #[error("account {0} does not exist")]
    UnknownAccount(AccountId),
    /// The account holds less than the order moves.
    #[error("account {account} holds less than the {cents} cents of the transfer")]
    Overdraft {
        /// The paying account.
        account: AccountId,
        /// The amount ordered. What is there is not told: a refusal must not depend on when it happens.
        cents: u64,
    },
    /// The order was sent to a branch that does not keep the account.
    #[error("account {account} is not kept by branch {branch}")]
    WrongBranch {
        /// The account.
        account: AccountId,
        /// The branch asked.
        branch: u8,
    },
    /// Zero, too much, or from an account to itself: the reader of the file lets no such order pass.
    #[error("not a valid order")]
    Invalid,
    /// An earlier attempt at the same order is still open; ask again later.
    #[error("an earlier attempt of transfer {0} is not decided yet")]
    InProgress(u64),
    /// The order was executed by an earlier attempt.
    #[error("transfer {0} was executed by an earlier attempt")]
    AlreadyDone(u64),
    /// The transaction was ended before.
    #[error("the transaction has ended")]
    Ended,
    /// Too many transactions are open; ask again later.
    #[error("{HOLDS_MAX} transactions are open")]
    TooManyOpen,
    /// The ledger has no room for another movement.
    #[error("the ledger is full ({POSTINGS_MAX} postings)")]
    LedgerFull,
}

impl Refusal {
    /// False when the same order may be carried out later.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::InProgress(_) | Self::Ended | Self::TooManyOpen)
    }

    /// A name for all orders that are refused for the same reason.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::UnknownAccount(_) => "account does not exist",
            Self::Overdraft { .. } => "account overdrawn",
            Self::WrongBranch { .. } => "wrong branch",
            Self::Invalid => "not a valid order",
            Self::InProgress(_) | Self::AlreadyDone(_) | Self::Ended => "attempt overtaken by another",
            Self::TooManyOpen => "too many open transactions",
            Self::LedgerFull => "ledger full",
        }
    }
}

/// The books of one branch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Branch {
    number: u8,
    accounts: BTreeMap<AccountId, u64>,
    holds: BTreeMap<TransactionId, Hold>,
    /// Orders that are taken from accounts here and open, by the order's number.
    open_orders: BTreeMap<u64, TransactionId>,
    outcomes: Remembered<u64, Outcome>,
    ended: Remembered<TransactionId, bool>,
    ledger: Vec<Posting>,
    executed: u64,
}

/// One movement of money into an account or out of it, for good. Postings are made where balances settle, not where
/// orders are remembered: what is executed twice is posted twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Posting {
    /// The order's number.
    pub order: u64,
    /// Whose balance it changed.
    pub account: AccountId,
    /// By how much; negative when the account pays.
    pub cents: i64,
}

impl Posting {
    /// What a transfer must leave in the ledger of the branch that pays, and in that of the one that receives.
    pub fn of(transfer: &Transfer) -> [Self; 2] {
        // An order moves at most `CENTS_MAX`, checked before anything is posted.
        let cents = i64::try_from(transfer.cents).unwrap_or(i64::MAX);
        let posting = |account, cents| Self { order: transfer.id, account, cents };
        [posting(transfer.from, -cents), posting(transfer.to, cents)]
    }
}

/// What an auditor sees of one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// Commands executed since the branch was opened.
    pub executed: u64,
    /// A hash over the whole state; equal states have equal hashes.
    pub state_hash: u64,
    /// The sum over all accounts.
    pub cents: u64,
    /// What is taken out of accounts and not yet settled.
    pub held_cents: u64,
    /// Transactions that are not decided.
    pub open: u64,
}

impl Branch {
    /// The branch on its first day.
    pub fn open(number: u8) -> Self {
        Self {
            number,
            accounts: accounts_of(number).map(|account| (account, opening_cents(account))).collect(),
            holds: BTreeMap::new(),
            open_orders: BTreeMap::new(),
            outcomes: Remembered::default(),
            ended: Remembered::default(),
            ledger: Vec::new(),
            executed: 0,
        }
    }

    /// Executes one command.
    pub fn apply(&mut self, command: &Command) -> Outcome {
        self.executed += 1;
        match command {
            Command::Transfer(transfer) => self.transfer(transfer),
            Command::Prepare(transaction, leg, keeper) => match self.prepare(*transaction, leg, *keeper) {
                Ok(()) => Outcome::Done,
                Err(refusal) => Outcome::Refused(refusal),
            },
            Command::Finish(transaction, is_commit) => self.finish(*transaction, *is_commit),
            Command::Release(keeper, promised) => self.release(*keeper, promised),
        }
    }

    /// What an auditor writes down.
    pub fn audit(&self) -> Audit {
        Audit {
            executed: self.executed,
            state_hash: self.state_hash(),
            cents: self.accounts.values().sum(),
            held_cents: self
                .holds
                .values()
                .map(|hold| &hold.leg)
                .filter(|l| l.side == Side::Pays)
                .map(|l| l.transfer.cents)
                .sum(),
            open: self.holds.len() as u64,
        }
    }

    /// All balances.
    pub fn balances(&self) -> Vec<(AccountId, u64)> {
        self.accounts.iter().map(|(account, cents)| (*account, *cents)).collect()
    }

    /// The ledger from the `start`-th posting on, at most `count` of them.
    pub fn ledger(&self, start: usize, count: usize) -> &[Posting] {
        let rest = self.ledger.get(start..).unwrap_or_default();
        &rest[..rest.len().min(count)]
    }

    /// One account's balance; `None` when it does not exist.
    #[cfg(test)]
    fn balance(&self, account: AccountId) -> Option<u64> {
        self.accounts.get(&account).copied()
    }

    fn transfer(&mut self, transfer: &Transfer) -> Outcome {
        if let Some(earlier) = self.outcomes.get(&transfer.id) {
            return earlier.clone();
        }
        let outcome = match self.move_within(transfer) {
            Ok(()) => Outcome::Done,
            Err(refusal) => Outcome::Refused(refusal),
        };
        self.outcomes.insert(transfer.id, outcome.clone());
        outcome
    }

    fn move_within(&mut self, transfer: &Transfer) -> Result<(), Refusal> {
        check_order(transfer)?;
        self.check_ledger()?;
        // Everything is checked before the first account changes: a refusal leaves no trace.
        let payer = self.payer(transfer)?;
        let receiver = self.receiver(transfer)?;
        self.accounts.insert(transfer.from, payer);
        self.accounts.insert(transfer.to, receiver);
        self.ledger.extend(Posting::of(transfer));
        Ok(())
    }

    fn prepare(&mut self, transaction: TransactionId, leg: &Leg, keeper: Keeper) -> Result<(), Refusal> {
        if self.holds.contains_key(&transaction) {
            return Ok(());
        }
        // A prepare that was overtaken by its own abort must not leave a hold that nobody ends.
        if self.ended.get(&transaction).is_some() {
            return Err(Refusal::Ended);
        }
        if self.holds.len() >= HOLDS_MAX {
            return Err(Refusal::TooManyOpen);
        }
        let transfer = &leg.transfer;
        check_order(transfer)?;
        self.check_ledger()?;
        match leg.side {
            Side::Pays => {
                if self.open_orders.contains_key(&transfer.id) {
                    return Err(Refusal::InProgress(transfer.id));
                }
                if self.outcomes.get(&transfer.id) == Some(&Outcome::Done) {
                    return Err(Refusal::AlreadyDone(transfer.id));
                }
                let left = self.payer(transfer)?;
                self.accounts.insert(transfer.from, left);
                self.open_orders.insert(transfer.id, transaction);
            }
            Side::Receives => {
                self.receiver(transfer)?;
            }
        }
        self.holds.insert(transaction, Hold { leg: *leg, keeper });
        Ok(())
    }

    fn finish(&mut self, transaction: TransactionId, is_commit: bool) -> Outcome {
        let Some(Hold { leg, .. }) = self.holds.remove(&transaction) else {
            // Repeated, or never prepared here: in both cases nothing is left to settle.
            self.ended.insert(transaction, is_commit);
            return Outcome::Done;
        };
        let transfer = leg.transfer;
        let credited = match (leg.side, is_commit) {
            (Side::Pays, true) | (Side::Receives, false) => None,
            (Side::Pays, false) => Some(transfer.from),
            (Side::Receives, true) => Some(transfer.to),
        };
        if let Some(balance) = credited.and_then(|account| self.accounts.get_mut(&account)) {
            *balance += transfer.cents;
        }
        if is_commit {
            let [paid, received] = Posting::of(&transfer);
            self.ledger.push(if leg.side == Side::Pays { paid } else { received });
        }
        if leg.side == Side::Pays {
            self.open_orders.remove(&transfer.id);
            if is_commit {
                self.outcomes.insert(transfer.id, Outcome::Done);
            }
        }
        self.ended.insert(transaction, is_commit);
        Outcome::Done
    }

    /// A vote is only promised when the replica has it in its journal. One that died between the branch's preparation
    /// and that record knows nothing of the transaction in its next life, and nobody would ever end it.
    fn release(&mut self, keeper: Keeper, promised: &[TransactionId]) -> Outcome {
        let is_lost = |(id, hold): &(&TransactionId, &Hold)| {
            let is_of_earlier_life =
                hold.keeper.node == keeper.node && hold.keeper.incarnation < keeper.incarnation;
            is_of_earlier_life && !promised.contains(id)
        };
        let lost: Vec<TransactionId> = self.holds.iter().filter(is_lost).map(|(id, _)| *id).collect();
        for transaction in lost {
            self.finish(transaction, false);
        }
        Outcome::Done
    }

    /// The paying account's balance after the order.
    fn payer(&self, transfer: &Transfer) -> Result<u64, Refusal> {
        let balance = self.own_account(transfer.from)?;
        balance
            .checked_sub(transfer.cents)
            .ok_or(Refusal::Overdraft { account: transfer.from, cents: transfer.cents })
    }

    /// The receiving account's balance after the order. All the money of the bank fits a balance.
    fn receiver(&self, transfer: &Transfer) -> Result<u64, Refusal> {
        self.own_account(transfer.to)?.checked_add(transfer.cents).ok_or(Refusal::Invalid)
    }

    /// Every open transaction may post once, a transfer within the branch posts twice.
    fn check_ledger(&self) -> Result<(), Refusal> {
        let has_room = self.ledger.len() + self.holds.len() + 2 <= POSTINGS_MAX;
        if has_room { Ok(()) } else { Err(Refusal::LedgerFull) }
    }

    fn own_account(&self, account: AccountId) -> Result<u64, Refusal> {
        match self.accounts.get(&account) {
            Some(balance) => Ok(*balance),
            None if account.branch == self.number => Err(Refusal::UnknownAccount(account)),
            None => Err(Refusal::WrongBranch { account, branch: self.number }),
        }
    }

    /// FNV-1a over everything but the ages of remembered outcomes. It finds divergence, it does not resist forgery.
    fn state_hash(&self) -> u64 {
        let mut hash = Fnv::default();
        hash.add(u64::from(self.number));
        hash.add(self.executed);
        for (account, cents) in &self.accounts {
            hash.add(u64::from(account.number));
            hash.add(*cents);
        }
        for (transaction, hold) in &self.holds {
            hash.add_transaction(*transaction);
            hash.add(hold.leg.transfer.id);
            hash.add(hold.leg.side as u64);
            hash.add(hold.keeper.node);
            hash.add(hold.keeper.incarnation);
        }
        for (order, transaction) in &self.open_orders {
            hash.add(*order);
            hash.add_transaction(*transaction);
        }
        for (id, outcome) in self.outcomes.iter() {
            hash.add(*id);
            hash.add(u64::from(*outcome == Outcome::Done));
        }
        for (transaction, is_commit) in self.ended.iter() {
            hash.add_transaction(*transaction);
            hash.add(u64::from(*is_commit));
        }
        for posting in &self.ledger {
            hash.add(posting.order);
            hash.add(u64::from(posting.account.number));
            hash.add(posting.cents.cast_unsigned());
        }
        hash.0
    }
}

/// What lies in an account before the first transfer: between 200.00 and 999.99.
pub fn opening_cents(account: AccountId) -> u64 {
    let spread = u64::from(account.number) * 7919 + u64::from(account.branch) * 104_729;
    20_000 + spread % 80_000
}

/// All money of the bank: no transfer may change it.
pub fn opening_total_cents() -> u64 {
    (1..=BRANCHES).flat_map(accounts_of).map(opening_cents).sum()
}

/// All accounts of a branch.
pub fn accounts_of(branch: u8) -> impl Iterator<Item = AccountId> {
    (0..ACCOUNTS_PER_BRANCH).map(move |number| AccountId { branch, number })
}

fn check_order(transfer: &Transfer) -> Result<(), Refusal> {
    let is_valid = (1..=CENTS_MAX).contains(&transfer.cents) && transfer.from != transfer.to;
    if is_valid { Ok(()) } else { Err(Refusal::Invalid) }
}

/// A map that forgets its oldest entries beyond [`REMEMBERED_MAX`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered<K: Ord, V> {
    by_key: BTreeMap<K, V>,
    by_age: VecDeque<K>,
}

impl<K: Ord + Copy, V> Remembered<K, V> {
    fn get(&self, key: &K) -> Option<&V> {
        self.by_key.get(key)
    }

    /// The first answer stays: an entry is never replaced.
    fn insert(&mut self, key: K, value: V) {
        if self.by_key.contains_key(&key) {
            return;
        }
        if self.by_age.len() == REMEMBERED_MAX
            && let Some(oldest) = self.by_age.pop_front()
        {
            self.by_key.remove(&oldest);
        }
        self.by_key.insert(key, value);
        self.by_age.push_back(key);
    }

    fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.by_key.iter()
    }
}

impl<K: Ord, V> Default for Remembered<K, V> {
    fn default() -> Self {
        Self { by_key: BTreeMap::new(), by_age: VecDeque::new() }
    }
}

struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, value: u64) {
        for byte in value.to_le_bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn add_transaction(&mut self, id: TransactionId) {
        for part in [id.node, id.incarnation, id.sequence] {
            self.add(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(id: u64, from: &str, to: &str, cents: u64) -> Transfer {
        let account = |name: &str| name.parse().expect("a test's account name");
        Transfer { id, from: account(from), to: account(to), cents }
    }

    const KEEPER: Keeper = Keeper { node: 100, incarnation: 1 };

    fn attempt(sequence: u64) -> TransactionId {
        TransactionId { node: 100, incarnation: 1, sequence }
    }

    fn total(branches: &[&Branch]) -> u64 {
        branches.iter().map(|b| b.audit()).map(|a| a.cents + a.held_cents).sum()
    }

    #[test]
    fn a_transfer_asked_twice_is_executed_once_and_answered_twice() {
        let mut branch = Branch::open(1);
        let asked = order(1, "b1-0001", "b1-0002", 700);
        let before = branch.balance(asked.from).expect("opened");
        assert_eq!(branch.apply(&Command::Transfer(asked)), Outcome::Done);
        assert_eq!(branch.apply(&Command::Transfer(asked)), Outcome::Done);
        assert_eq!(branch.balance(asked.from), Some(before - 700));
        assert_eq!(branch.ledger(0, 9), Posting::of(&asked));
        assert_eq!(branch.ledger(1, 9), &Posting::of(&asked)[1..]);
        assert_eq!(
            (branch.ledger(0, 1).len(), branch.ledger(2, 9).len(), branch.ledger(7, 9).len()),
            (1, 0, 0)
        );
    }

    #[test]
    fn a_refusal_changes_no_balance_and_says_why() {
        let mut branch = Branch::open(1);
        let opened = branch.audit().cents;
        let from: AccountId = "b1-0001".parse().expect("an account");
        for (asked, refusal) in [
            (order(1, "b1-0001", "b1-0002", 900_000), Refusal::Overdraft { account: from, cents: 900_000 }),
            (
                order(2, "b1-0001", "b1-9999", 1),
                Refusal::UnknownAccount(AccountId { branch: 1, number: 9999 }),
            ),
            (
                order(3, "b1-9999", "b1-0001", 1),
                Refusal::UnknownAccount(AccountId { branch: 1, number: 9999 }),
            ),
            (
                order(4, "b1-0001", "b2-0001", 1),
                Refusal::WrongBranch { account: AccountId { branch: 2, number: 1 }, branch: 1 },
            ),
            (order(5, "b1-0001", "b1-0001", 1), Refusal::Invalid),
            (order(6, "b1-0001", "b1-0002", 0), Refusal::Invalid),
            (order(7, "b1-0001", "b1-0002", u64::MAX), Refusal::Invalid),
        ] {
            assert_eq!(branch.apply(&Command::Transfer(asked)), Outcome::Refused(refusal));
        }
        assert_eq!(branch.audit().cents, opened);
    }

    #[test]
    fn a_transaction_moves_money_between_branches_or_gives_it_back() {
        for is_commit in [true, false] {
            let (mut one, mut two) = (Branch::open(1), Branch::open(2));
            let asked = order(9, "b1-0001", "b2-0001", 300);
            let all = total(&[&one, &two]);
            let before = (one.balance(asked.from), two.balance(asked.to));
            let pays = Command::Prepare(attempt(77), Leg { transfer: asked, side: Side::Pays }, KEEPER);
            let receives =
                Command::Prepare(attempt(77), Leg { transfer: asked, side: Side::Receives }, KEEPER);
            assert_eq!((one.apply(&pays), two.apply(&receives)), (Outcome::Done, Outcome::Done));
            assert_eq!((one.apply(&pays), two.apply(&receives)), (Outcome::Done, Outcome::Done));
            assert_eq!(total(&[&one, &two]), all, "money is in a hold, not gone");
            for _ in 0..2 {
                one.apply(&Command::Finish(attempt(77), is_commit));
                two.apply(&Command::Finish(attempt(77), is_commit));
            }
            assert_eq!(total(&[&one, &two]), all);
            let (moved, postings) = if is_commit { (300, 1) } else { (0, 0) };
            let [paid, received] = Posting::of(&asked);
            assert_eq!((one.ledger(0, 9), two.ledger(0, 9)), (&[paid][..postings], &[received][..postings]));
            assert_eq!(one.balance(asked.from).map(|c| c + moved), before.0);
            assert_eq!(two.balance(asked.to).map(|c| c - moved), before.1);
            assert_eq!((one.audit().open, two.audit().open), (0, 0));
        }
    }

    #[test]
    fn a_prepare_behind_its_own_abort_holds_nothing() {
        let mut branch = Branch::open(1);
        let leg = Leg { transfer: order(9, "b1-0001", "b2-0001", 300), side: Side::Pays };
        branch.apply(&Command::Finish(attempt(5), false));
        assert_eq!(
            branch.apply(&Command::Prepare(attempt(5), leg, KEEPER)),
            Outcome::Refused(Refusal::Ended)
        );
        assert_eq!(branch.audit().held_cents, 0);
    }

    #[test]
    fn a_second_attempt_waits_for_the_first_and_does_nothing_after_it() {
        let mut branch = Branch::open(1);
        let leg = Leg { transfer: order(9, "b1-0001", "b2-0001", 300), side: Side::Pays };
        assert_eq!(branch.apply(&Command::Prepare(attempt(1), leg, KEEPER)), Outcome::Done);
        assert_eq!(
            branch.apply(&Command::Prepare(attempt(2), leg, KEEPER)),
            Outcome::Refused(Refusal::InProgress(9))
        );
        branch.apply(&Command::Finish(attempt(1), true));
        assert_eq!(
            branch.apply(&Command::Prepare(attempt(3), leg, KEEPER)),
            Outcome::Refused(Refusal::AlreadyDone(9))
        );
        let mut branch = Branch::open(1);
        branch.apply(&Command::Prepare(attempt(1), leg, KEEPER));
        branch.apply(&Command::Finish(attempt(1), false));
        assert_eq!(
            branch.apply(&Command::Prepare(attempt(2), leg, KEEPER)),
            Outcome::Done,
            "an aborted attempt may be repeated"
        );
    }

    #[test]
    fn replicas_with_equal_histories_have_equal_hashes_and_others_do_not() {
        let run = |commands: &[Command]| {
            let mut branch = Branch::open(2);
            for command in commands {
                branch.apply(command);
            }
            branch
        };
        let commands = [
            Command::Transfer(order(1, "b2-0001", "b2-0002", 10)),
            Command::Prepare(
                attempt(4),
                Leg { transfer: order(2, "b2-0003", "b3-0001", 20), side: Side::Pays },
                KEEPER,
            ),
            Command::Transfer(order(3, "b2-0004", "b2-0002", 999_999_999)),
        ];
        let state = run(&commands);
        assert_eq!(state, run(&commands));
        assert_eq!(state.audit(), run(&commands).audit());
        assert_ne!(state.audit().state_hash, run(&commands[..2]).audit().state_hash);
        let reversed = [1, 0, 2].map(|n: usize| commands[n].clone());
        assert_eq!(state.audit().state_hash, run(&reversed).audit().state_hash, "these commute");
    }

    #[test]
    fn a_new_life_releases_what_the_old_one_prepared_and_had_not_promised() {
        let mut branch = Branch::open(1);
        let opened = branch.audit();
        let leg = |id| Leg { transfer: order(id, "b1-0001", "b2-0001", 300), side: Side::Pays };
        let (next_life, other) = (Keeper { incarnation: 2, ..KEEPER }, Keeper { node: 101, ..KEEPER });
        branch.apply(&Command::Prepare(attempt(1), leg(1), KEEPER));
        branch.apply(&Command::Prepare(attempt(2), leg(2), KEEPER));
        branch.apply(&Command::Prepare(attempt(3), leg(3), other));
        branch.apply(&Command::Prepare(attempt(4), leg(4), next_life));
        assert_eq!(branch.audit().held_cents, 1200);
        branch.apply(&Command::Release(next_life, vec![attempt(2)]));
        assert_eq!(branch.audit().held_cents, 900, "only the first one ended");
        assert_eq!(
            branch.apply(&Command::Prepare(attempt(1), leg(1), KEEPER)),
            Outcome::Refused(Refusal::Ended)
        );
        for sequence in 2..=4 {
            branch.apply(&Command::Finish(attempt(sequence), false));
        }
        assert_eq!(branch.audit().cents, opened.cents);
    }
}
