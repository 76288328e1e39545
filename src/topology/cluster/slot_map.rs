//! `SlotMap`: which primary serves which slot, as last heard.
//!
//! Invariant: a map does not change once it is in use; another takes its place. Every primary of it
//! has one [`Node`], which the next map takes over, so that a server keeps its connections.

use std::sync::Arc;

use crate::error::{Error, ErrorKind};
use crate::key::SLOTS;
use crate::net::address::Address;
use crate::net::node::Node;

/// What is known of the slots; another takes its place when that changes.
#[derive(Clone)]
pub(in crate::topology) struct SlotMap {
    /// The place in `primaries` of each slot's server; `NOBODY` where none is known, `NAMELESS`
    /// where no address of it is.
    pub(in crate::topology) owners: Box<[u16]>,
    pub(in crate::topology) primaries: Vec<Primary>,
    pub(in crate::topology) replicas: Vec<Address>,
}

#[derive(Clone)]
pub(in crate::topology) struct Primary {
    pub(in crate::topology) address: Arc<Address>,
    pub(in crate::topology) node: Arc<Node>,
}

impl SlotMap {
    pub(in crate::topology) fn primary(&self, slot: u16) -> Option<&Primary> {
        let place = self.owners[usize::from(slot)];
        self.primaries.get(usize::from(place))
    }

    /// Why no server of `slot` is known.
    pub(in crate::topology) fn unserved(&self, slot: u16) -> Error {
        match self.owners[usize::from(slot)] {
            NAMELESS => nameless(),
            _ => no_slots(),
        }
    }

    pub(in crate::topology) fn find(&self, address: &Address) -> Option<usize> {
        self.addresses().position(|known| known == address)
    }

    pub(in crate::topology) fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.primaries.iter().map(|primary| &*primary.address)
    }

    /// The primaries that have lost slots when `later` is the case.
    pub(in crate::topology) fn losers(&self, later: &Self) -> Vec<&Primary> {
        let mut lost = vec![false; self.primaries.len()];
        for slot in 0..SLOTS {
            let place = usize::from(self.owners[usize::from(slot)]);
            if let Some(owner) = self.primaries.get(place)
                && !lost[place]
            {
                let heir = later.primary(slot);
                lost[place] = heir.is_none_or(|heir| heir.address != owner.address);
            }
        }
        let primaries = self.primaries.iter().zip(lost);
        primaries
            .filter_map(|(it, lost)| lost.then_some(it))
            .collect()
    }

    /// The place of the server at `address`: known here, or taken over from those of `before`, or
    /// made.
    pub(in crate::topology) fn place<'m>(
        &mut self,
        address: &Address,
        before: impl IntoIterator<Item = &'m Self>,
        make: impl FnOnce(&Address) -> Arc<Node>,
    ) -> u16 {
        let place = self.find(address).unwrap_or_else(|| {
            let known = before.into_iter().find_map(|before| {
                let place = before.find(address)?;
                Some(before.primaries[place].clone())
            });
            self.primaries.push(known.unwrap_or_else(|| Primary {
                address: Arc::new(address.clone()),
                node: make(address),
            }));
            self.primaries.len() - 1
        });
        debug_assert!(place < usize::from(SLOTS), "no more primaries than slots");
        place as u16
    }
}

impl Default for SlotMap {
    fn default() -> Self {
        Self {
            owners: vec![NOBODY; usize::from(SLOTS)].into(),
            primaries: Vec::new(),
            replicas: Vec::new(),
        }
    }
}

pub(in crate::topology) fn no_slots() -> Error {
    Error::new(
        ErrorKind::ClusterDown,
        "no server of the cluster serves this slot; check CLUSTER INFO",
    )
}

/// `cluster-preferred-endpoint-type hostname` where a server has no `cluster-announce-hostname`.
pub(in crate::topology) fn nameless() -> Error {
    Error::new(
        ErrorKind::ClusterDown,
        "the cluster reports the server of this slot without an address; set cluster-announce-hostname on all \
         servers, or cluster-preferred-endpoint-type ip",
    )
}

/// Places that no primary has.
pub(in crate::topology) const NOBODY: u16 = u16::MAX;

pub(in crate::topology) const NAMELESS: u16 = u16::MAX - 1;
