//! Sockets over every network that carries whole nodes in one process: the patterns and their promises about room, loss,
//! reconnecting and closing.

mod axes;
mod company;
mod endings;
mod fuzz;
mod hostile;
mod patterns;
mod primitives;
mod support;
mod troubles;
