//! Accounts by name, and how many of them there are.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How many branches the bank has; they are numbered from 1.
pub const BRANCHES: u8 = 3;

/// How many accounts each branch has; they are numbered from 0.
pub const ACCOUNTS_PER_BRANCH: u16 = 200;

/// An account's name: `b1-0042` is number 42 at branch 1. A name need not belong to an account that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AccountId {
    /// The branch that keeps the account.
    pub branch: u8,
    /// The account's number there, at most 9999.
    pub number: u16,
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b{}-{:04}", self.branch, self.number)
    }
}

/// The text is no account's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an account name such as b1-0042")]
pub struct NotAnAccount;

impl FromStr for AccountId {
    type Err = NotAnAccount;

    fn from_str(text: &str) -> Result<Self, NotAnAccount> {
        // Digits are counted by hand: `parse` would take a sign.
        let digits =
            |text: &str, count: usize| text.len() == count && text.bytes().all(|b| b.is_ascii_digit());
        let (branch, number) =
            text.strip_prefix('b').and_then(|rest| rest.split_once('-')).ok_or(NotAnAccount)?;
        if !digits(branch, 1) || !digits(number, 4) {
            return Err(NotAnAccount);
        }
        let branch = branch.parse().map_err(|_| NotAnAccount)?;
        let number = number.parse().map_err(|_| NotAnAccount)?;
        Ok(Self { branch, number })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn account_names_read_back_as_written() {
        for branch in 1..=BRANCHES {
            for number in [0, 42, ACCOUNTS_PER_BRANCH - 1, 9999] {
                let account = AccountId { branch, number };
                assert_eq!(account.to_string().parse(), Ok(account));
            }
        }
    }

    #[test]
    fn what_is_no_account_name_is_refused() {
        for text in [
            "", "b1", "b1-42", "b1-00042", "B1-0042", "b-0042", "b1-+042", "b+-0042", "b12-0042", "b1-0042 ",
            "x",
        ] {
            assert_eq!(text.parse::<AccountId>(), Err(NotAnAccount), "{text}");
        }
    }
}
