//! The two directions of traffic, and what there is of each.

use std::ops::{Index, IndexMut};

use serde::Serialize;

/// A direction of traffic, as policies have it: seen from the pods that they select.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direction {
    Ingress,
    Egress,
}

/// A value for each direction, found by it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PerDirection<T>([T; 2]);

impl Direction {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// That of the other end.
    pub(crate) const fn opposite(self) -> Self {
        match self {
            Self::Ingress => Self::Egress,
            Self::Egress => Self::Ingress,
        }
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

impl<T> PerDirection<T> {
    /// What a function says of each direction.
    pub(crate) fn new(of: impl FnMut(Direction) -> T) -> Self {
        Self(Direction::ALL.map(of))
    }

    /// A value for either.
    pub(crate) const fn of(ingress: T, egress: T) -> Self {
        Self([ingress, egress])
    }

    /// Both values.
    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter()
    }
}

impl<T> Index<Direction> for PerDirection<T> {
    type Output = T;

    fn index(&self, direction: Direction) -> &T {
        &self.0[direction as usize]
    }
}

impl<T> IndexMut<Direction> for PerDirection<T> {
    fn index_mut(&mut self, direction: Direction) -> &mut T {
        &mut self.0[direction as usize]
    }
}
