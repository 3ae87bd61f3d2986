//! The proof: what the clients were told against what every replica has in its books.
//!
//! Guarantee   no flaw is found only if every replica of every branch was read; the replicas of a branch have equal
//!             state and nothing open; the ledger of each holds both ends of every acknowledged transfer exactly once
//!             and nothing else; each balance is its opening plus its postings; and the money of all branches is what it
//!             was at opening.
//! Method      the ledger is written where balances change, and is compared with what the clients have been answered:
//!             neither side of the comparison knows the other.

use std::collections::{BTreeMap, BTreeSet};

use super::accounts::{AccountId, BRANCHES};
use super::branch::{Audit, Posting, accounts_of, opening_cents, opening_total_cents};
use super::input::Transfer;
use super::processes::Place;

/// The books of one replica.
#[derive(Debug, Clone)]
pub struct Statement {
    /// What an auditor wrote down.
    pub audit: Audit,
    /// Every account's balance.
    pub balances: Vec<(AccountId, u64)>,
    /// Every movement since the opening.
    pub ledger: Vec<Posting>,
}

/// The books of all replicas, or why some could not be read.
pub struct Books(pub BTreeMap<Place, Result<Statement, String>>);

impl Books {
    /// The books of one branch's replicas that could be read.
    pub fn of(&self, branch: u8) -> impl Iterator<Item = (Place, &Statement)> {
        self.0
            .iter()
            .filter(move |(place, _)| place.branch == branch)
            .filter_map(|(place, statement)| Some((*place, statement.as_ref().ok()?)))
    }

    /// The money of all branches, as each one's first replica has it.
    pub fn total_cents(&self) -> u64 {
        let firsts = (1..=BRANCHES).filter_map(|branch| self.of(branch).next());
        firsts.map(|(_, statement)| statement.audit.cents + statement.audit.held_cents).sum()
    }

    /// Each way in which these books are not those of a bank that executed exactly these transfers.
    pub fn flaws(&self, acknowledged: &[Transfer]) -> Vec<String> {
        let mut flaws = Vec::new();
        for (place, statement) in &self.0 {
            if let Err(why) = statement {
                flaws.push(format!("{place} cannot be read: {why}"));
            }
        }
        let (total, opening) = (self.total_cents(), opening_total_cents());
        if total != opening {
            flaws.push(format!("the branches hold {} instead of {}", money(total), money(opening)));
        }
        for branch in 1..=BRANCHES {
            let mut wanted: Vec<Posting> = acknowledged.iter().flat_map(Posting::of).collect();
            wanted.retain(|posting| posting.account.branch == branch);
            wanted.sort_unstable();
            let Some((first_place, first)) = self.of(branch).next() else {
                flaws.push(format!("branch {branch} has no replica"));
                continue;
            };
            for (place, statement) in self.of(branch) {
                if statement.audit != first.audit {
                    flaws.push(format!(
                        "{first_place} and {place} differ: {:?}, {:?}",
                        first.audit, statement.audit
                    ));
                }
                flaws.extend(ledger_flaws(place, &statement.ledger, &wanted));
                if statement.audit.open > 0 {
                    // What they hold is in no balance and in no ledger.
                    flaws.push(format!("{place}: {} transactions are still open", statement.audit.open));
                } else {
                    flaws.extend(balance_flaws(place, statement));
                }
            }
        }
        flaws
    }
}

/// Where a ledger and the sorted list of what it must hold differ: how often, and the first place.
fn ledger_flaws(place: Place, ledger: &[Posting], wanted: &[Posting]) -> Vec<String> {
    let mut found = ledger.to_vec();
    found.sort_unstable();
    if found == wanted {
        return Vec::new();
    }
    let count = |postings: &[Posting]| {
        let mut counts = BTreeMap::<Posting, usize>::new();
        postings.iter().for_each(|posting| *counts.entry(*posting).or_default() += 1);
        counts
    };
    let (found, wanted) = (count(&found), count(wanted));
    let all: BTreeSet<&Posting> = found.keys().chain(wanted.keys()).collect();
    let times = |counts: &BTreeMap<Posting, usize>, posting| counts.get(posting).copied().unwrap_or(0);
    let mut differing =
        all.into_iter().map(|p| (p, times(&found, p), times(&wanted, p))).filter(|(_, is, must)| is != must);
    let Some((posting, is, must)) = differing.next() else { return Vec::new() };
    let Posting { order, account, cents } = posting;
    vec![format!(
        "{place}: transfer {order} stands {is} times in the books of account {account} with {cents} cents instead of \
         {must} times; {} postings more differ",
        differing.count()
    )]
}

/// The first account that does not hold what its postings say.
fn balance_flaws(place: Place, statement: &Statement) -> Option<String> {
    let opened = accounts_of(place.branch).map(|account| (account, i128::from(opening_cents(account))));
    let mut wanted: BTreeMap<AccountId, i128> = opened.collect();
    for posting in &statement.ledger {
        *wanted.entry(posting.account).or_default() += i128::from(posting.cents);
    }
    let found: BTreeMap<AccountId, i128> =
        statement.balances.iter().map(|(account, cents)| (*account, i128::from(*cents))).collect();
    let all: BTreeSet<&AccountId> = found.keys().chain(wanted.keys()).collect();
    let account = all.into_iter().find(|account| found.get(account) != wanted.get(account))?;
    let cents = |of: &BTreeMap<AccountId, i128>| {
        of.get(account).map_or("no cents".to_owned(), |c| format!("{c} cents"))
    };
    Some(format!("{place}: account {account} holds {}, its postings say {}", cents(&found), cents(&wanted)))
}

/// Cents as whole money.
pub fn money(cents: u64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

#[cfg(test)]
mod tests {
    use super::super::branch::{Branch, Command, Keeper, Leg, Side, TransactionId};
    use super::*;

    fn transfer(id: u64, from: &str, to: &str, cents: u64) -> Transfer {
        let account = |name: &str| name.parse().expect("a test's account name");
        Transfer { id, from: account(from), to: account(to), cents }
    }

    /// A transfer within branch 1 and one from branch 1 to branch 2.
    fn executed() -> [Transfer; 2] {
        [transfer(1, "b1-0001", "b1-0002", 700), transfer(2, "b1-0003", "b2-0004", 50)]
    }

    fn statement(branch: &Branch) -> Statement {
        let (audit, balances) = (branch.audit(), branch.balances());
        Statement { audit, balances, ledger: branch.ledger(0, usize::MAX).to_vec() }
    }

    /// The books of a bank of two replicas each that executed these.
    fn books() -> Books {
        let [within, between] = executed();
        let mut branches: Vec<Branch> = (1..=BRANCHES).map(Branch::open).collect();
        branches[0].apply(&Command::Transfer(within));
        let transaction = TransactionId { node: 100, incarnation: 1, sequence: 1 };
        for (at, side) in [(0, Side::Pays), (1, Side::Receives)] {
            let leg = Leg { transfer: between, side };
            branches[at].apply(&Command::Prepare(transaction, leg, Keeper { node: 100, incarnation: 1 }));
            branches[at].apply(&Command::Finish(transaction, true));
        }
        let mut books = Books(BTreeMap::new());
        for (branch, number) in branches.iter().zip(1..) {
            for index in 0..2 {
                books.0.insert(Place { branch: number, index }, Ok(statement(branch)));
            }
        }
        books
    }

    const SECOND_OF_1: Place = Place { branch: 1, index: 1 };

    /// The flaws after something was changed in one replica's books.
    fn after(change: impl FnOnce(&mut Statement)) -> String {
        let mut books = books();
        change(books.0.get_mut(&SECOND_OF_1).and_then(|s| s.as_mut().ok()).expect("it is there"));
        books.flaws(&executed()).join("; ")
    }

    #[test]
    fn the_proof_holds_for_the_books_of_what_was_acknowledged() {
        assert_eq!(books().flaws(&executed()), Vec::<String>::new());
    }

    #[test]
    fn an_acknowledged_transfer_that_no_replica_executed_is_found_although_no_cent_is_missing() {
        let lost = transfer(3, "b3-0001", "b3-0002", 10);
        let flaws = books().flaws(&[&executed()[..], &[lost]].concat());
        assert_eq!(flaws.len(), 2, "{flaws:?}");
        let part = "branch 3 replica 0: transfer 3 stands 0 times in the books of account b3-0001 with -10 cents \
                    instead of 1 times; 1 postings more differ";
        assert!(flaws[0].contains(part), "{flaws:?}");
    }

    #[test]
    fn a_transfer_that_was_refused_and_executed_is_found() {
        let flaws = books().flaws(&executed()[..1]).join("; ");
        for place in ["branch 1 replica 1", "branch 2 replica 0"] {
            assert!(flaws.contains(&format!("{place}: transfer 2 stands 1 times")), "{flaws}");
        }
    }

    #[test]
    fn a_transfer_that_was_executed_twice_is_found_although_no_cent_is_missing() {
        let flaws = after(|books| books.ledger.extend(Posting::of(&executed()[0])));
        assert!(flaws.contains("transfer 1 stands 2 times in the books of account b1-0001"), "{flaws}");
        assert!(flaws.contains("its postings say"), "the balance was changed once: {flaws}");
    }

    #[test]
    fn every_other_difference_is_found() {
        for (flaws, part) in [
            (after(|books| books.audit.state_hash += 1), "branch 1 replica 0 and branch 1 replica 1 differ"),
            (after(|books| books.audit.open = 1), "branch 1 replica 1: 1 transactions are still open"),
            (after(|books| books.balances[5].1 += 1), "branch 1 replica 1: account b1-0005 holds"),
            (
                after(|books| books.balances.truncate(199)),
                "branch 1 replica 1: account b1-0199 holds no cents",
            ),
            (after(|books| books.ledger.truncate(2)), "transfer 2 stands 0 times"),
        ] {
            assert!(flaws.contains(part), "{part}: {flaws}");
        }
        let mut lost = books();
        for statement in lost.0.values_mut().flatten() {
            statement.audit.cents -= 1;
        }
        assert!(lost.flaws(&executed())[0].starts_with("the branches hold "));
        let mut deaf = books();
        deaf.0.insert(SECOND_OF_1, Err("no answer".to_owned()));
        assert_eq!(deaf.flaws(&executed()), ["branch 1 replica 1 cannot be read: no answer"]);
        deaf.0.retain(|place, _| place.branch != 3);
        assert!(deaf.flaws(&executed()).iter().any(|flaw| flaw == "branch 3 has no replica"));
    }
}
