//! What a superserver and a tenant say to each other.
//!
//! Method      the superserver gives the process that it starts a [`Ticket`]. The tenant registers with the ticket's
//!             number, which proves whose process it is, and serves [`SERVICE`] on its own node, where it obeys whoever
//!             knows the ticket's secret.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::HostError;
use crate::service;

/// What a tenant serves beside what it offers.
pub const SERVICE: &str = "quorate.tenant";

/// The environment variable that a ticket is given in.
pub(super) const TICKET_VARIABLE: &str = "QUORATE_TENANT";

/// The attribute of a registration that holds the ticket's number.
const TICKET_ATTRIBUTE: &str = "quorate.tenant";

/// Makes a process the tenant of a superserver.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// Known to everybody who asks the directory.
    number: u64,
    /// Known to superserver and tenant alone.
    secret: u64,
}

impl Ticket {
    /// A ticket of two random numbers.
    pub const fn new(number: u64, secret: u64) -> Self {
        Self { number, secret }
    }

    /// Whether somebody who knows no more than everybody may take `secret` for the ticket's.
    pub const fn admits(&self, secret: u64) -> bool {
        self.secret == secret
    }

    /// The secret, for [`Control::retire`](ControlClient::retire).
    pub const fn secret(&self) -> u64 {
        self.secret
    }

    /// The attribute that what is registered under this ticket has.
    pub fn attribute(&self) -> (&'static str, String) {
        (TICKET_ATTRIBUTE, format!("{:016x}", self.number))
    }

    /// The environment of the process that it is for.
    pub fn environment(&self) -> (&'static str, String) {
        (TICKET_VARIABLE, self.to_string())
    }

    /// That of this process; `None` when no superserver has started it.
    pub(super) fn of_this_process() -> Result<Option<Self>, HostError> {
        let Ok(text) = std::env::var(TICKET_VARIABLE) else { return Ok(None) };
        text.parse().map(Some).map_err(|NoTicket| HostError::Ticket { text })
    }
}

/// In the form that [`FromStr`] reads: with the secret, so not for logs.
impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:016x}", self.number, self.secret)
    }
}

/// Without the secret.
impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ticket {:016x}", self.number)
    }
}

/// The text is no ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a ticket")]
pub struct NoTicket;

impl FromStr for Ticket {
    type Err = NoTicket;

    fn from_str(text: &str) -> Result<Self, NoTicket> {
        let (number, secret) = text.split_once('-').ok_or(NoTicket)?;
        let read = |text| u64::from_str_radix(text, 16).map_err(|_| NoTicket);
        Ok(Self { number: read(number)?, secret: read(secret)? })
    }
}

/// What a tenant does for its superserver.
#[service]
pub trait Control {
    /// Goes: what is offered is withdrawn, what executes is finished, what still comes is refused, and the process may
    /// end. With `unless_active_since` only when nothing executes and nothing was called since the service's activity was
    /// that. Asking again is harmless.
    #[idempotent]
    async fn retire(&self, secret: u64, unless_active_since: Option<u64>) -> Result<(), Staying>;
}

/// Why a tenant does not go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Staying {
    /// Who asks does not know the secret.
    #[error("the secret is wrong")]
    Stranger,
    /// It is in use.
    #[error("it is in use")]
    Active {
        /// Grows with every call.
        activity: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p02_a_ticket_survives_its_way_through_the_environment_and_damaged_ones_are_none() {
        let ticket = Ticket::new(7, u64::MAX);
        assert_eq!(ticket.to_string().parse(), Ok(ticket));
        assert!(ticket.admits(u64::MAX) && !ticket.admits(7));
        assert!(!format!("{ticket:?}").contains("ffff"), "the secret is in no log");
        for text in ["", "7", "7-", "-7", "7-x", "7-7-7", "7 - 7"] {
            assert_eq!(text.parse::<Ticket>(), Err(NoTicket), "{text:?}");
        }
    }
}
