//! `SlotMap`: which primary serves which slot, according to the last answers of the servers.
//!
//! Invariant: a map that is in use does not change; a new map replaces it. Each primary has one
//! [`Node`]. The next map takes that node over, so that the connections to the server survive.
//!
//! `Refresher` builds the maps. `Cluster` and `SlotQuery` read them.

use std::sync::Arc;

use crate::error::{Error, ErrorKind};
use crate::key::SLOTS;
use crate::net::address::Address;
use crate::net::node::Node;

/// The slots of the cluster as far as they are known. A change makes a new map.
#[derive(Clone)]
pub(in crate::topology) struct SlotMap {
    /// For each slot, the index of its server in `primaries`. `NOBODY` means that no server is
    /// known, `NAMELESS` that the cluster reports a server without an address.
    // Indices and not pointers: each change copies all 16,384.
    pub(in crate::topology) owners: Box<[u16]>,
    /// Also holds servers that own no slot yet: those that a call was redirected to by `ASK`.
    pub(in crate::topology) primaries: Vec<Primary>,
    /// Asked for the slots when no primary answers, since one of them may have been promoted.
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

    /// The error of a call for `slot`, which no known server serves.
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

    /// Returns the primaries that serve a slot in this map and no longer serve it in `later`.
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

    /// Returns the index of the server at `address`. If it is not in this map, adds its entry from
    /// one of the maps `before`, or one that `make` builds.
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

/// The error for a slot whose server is reported without an address. That happens with
/// `cluster-preferred-endpoint-type hostname` if the server has no `cluster-announce-hostname`.
pub(in crate::topology) fn nameless() -> Error {
    Error::new(
        ErrorKind::ClusterDown,
        "the cluster reports the server of this slot without an address; set cluster-announce-hostname on all \
         servers, or cluster-preferred-endpoint-type ip",
    )
}

// Two indices that no primary has: there are at most 16,384 primaries.
/// No server of the slot is known.
pub(in crate::topology) const NOBODY: u16 = u16::MAX;

/// The slot has a server, but its address is not known.
pub(in crate::topology) const NAMELESS: u16 = u16::MAX - 1;
