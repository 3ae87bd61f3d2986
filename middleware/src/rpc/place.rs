//! Where a service is, and what can be taken for a place.

use std::fmt;

use super::error::BindError;
use crate::node::Address;

/// Where a service is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On the node at this address, which may be the caller's own.
    Address(Address),
    /// On the caller's own node.
    Here,
}

/// The caller's own node, as a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Here;

/// What can be taken for a place: an [`Address`], its text, or [`Here`].
pub trait IntoPlace {
    /// The place.
    ///
    /// # Errors
    /// [`BindError::Address`] when the text is no address.
    fn into_place(self) -> Result<Place, BindError>;
}

impl IntoPlace for Place {
    fn into_place(self) -> Result<Place, BindError> {
        Ok(self)
    }
}

impl IntoPlace for Here {
    fn into_place(self) -> Result<Place, BindError> {
        Ok(Place::Here)
    }
}

impl IntoPlace for Address {
    fn into_place(self) -> Result<Place, BindError> {
        Ok(Place::Address(self))
    }
}

impl IntoPlace for &Address {
    fn into_place(self) -> Result<Place, BindError> {
        self.clone().into_place()
    }
}

impl IntoPlace for &str {
    fn into_place(self) -> Result<Place, BindError> {
        self.parse().map(Place::Address).map_err(BindError::Address)
    }
}

impl IntoPlace for &String {
    fn into_place(self) -> Result<Place, BindError> {
        self.as_str().into_place()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Here => f.write_str("the caller's own node"),
        }
    }
}
