//! The checkers of histories: the textbook's figures, other checkers, and histories made wrong on purpose.

mod figures;
mod objects;
mod oracle;
mod transactions;
