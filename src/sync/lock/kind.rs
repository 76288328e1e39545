//! The kind of locks: one holder, whose value a script finds by offsets.
//!
//! Invariant: the scripts of a free lock come first. They run ahead of the prelude and read as few
//! keys as can be, because most locks are free. `Lock` is the face of this kind.

use crate::client::Written;
use crate::script::script;
use crate::sync::core::kind::{Breaking, Holders, Kind, Scripts, Words};

script!(ACQUIRE = "acquire.lua" after "../core/queue.lua", "holder.lua", "../core/grants.lua");
script!(RELEASE = "release.lua" after "../core/queue.lua", "holder.lua", "../core/grants.lua");
script!(RELEASE_ALONE = "release_alone.lua");
script!(PASS = "pass.lua" after "../core/queue.lua", "holder.lua", "../core/grants.lua");
script!(RENEW = "renew.lua");

pub(in crate::sync) static LOCK: Kind = Kind {
    name: "lock",
    queue: "queue",
    words: Words::new("lock name", "the lock", ["is", "was"]),
    held_by: |fence, metadata| match metadata {
        "" => format!("its holder has fence {fence}"),
        _ => format!("its holder has fence {fence}, {metadata:?}"),
    },
    written: Written::Locks,
    holders: Holders::One,
    breaking: Breaking::ByPush,
    scripts: Scripts {
        acquire: &ACQUIRE,
        release: &RELEASE,
        release_alone: Some(&RELEASE_ALONE),
        pass: Some(&PASS),
        renew: &RENEW,
    },
};

#[cfg(test)]
mod tests {
    use crate::sync::core::owner::Owner;

    /// The offsets in a lock's value, as scripts that do not take it apart spell them.
    #[test]
    fn scripts_look_where_the_value_of_a_lock_has_what_they_want() {
        let fence = "0".repeat(16) + " ";
        let owner = Owner::random().unqueued();
        let (begins, ends) = (fence.len(), fence.len() + owner.len() - 1);
        let holder = include_str!("holder.lua");
        assert!(holder.contains(&format!("'SETRANGE', KEYS[1], {ends}, '+'")));
        let release = include_str!("release.lua");
        for text in [release, include_str!("release_alone.lua")] {
            assert!(text.contains(&format!("'GETRANGE', KEYS[1], '{begins}', '{ends}'")));
        }
        let id = owner.len() - 1;
        assert!(release.contains(&format!("string.sub(ARGV[1], 3, {id})")));
        // Lua counts from 1; the blank behind the id is left out.
        let renew = include_str!("renew.lua");
        assert!(renew.contains(&format!("string.sub(value, {}, {ends})", begins + 1)));
    }
}
