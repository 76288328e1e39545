//! Properties of all keys together, and the spelling of each, frozen.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::error::Result;

fn namespace() -> Namespace {
    Namespace::new("hr").expect("a good namespace")
}

proptest! {
    #[test]
    fn the_keys_of_an_entry_lead_back_to_it(
        cache in "[a-z:{}%*é]{1,6}",
        name in any::<String>(),
        version in 0_u32..3,
    ) {
        let space = namespace();
        let Ok(keys) = space.cache(&cache, version) else { return Ok(()) };
        let (Ok(value), Ok(lease)) = (keys.value(&name), keys.load_lease(&name)) else {
            return Ok(());
        };
        let bare = space.bare_cache(&cache, version).expect("a good name");
        let bare_value = bare.value(&name).expect("a good name");
        let bare_lease = bare.load_lease(&name).expect("a good name");
        let all = [
            (Rooms::Values, &value),
            (Rooms::Leases, &lease),
            (Rooms::BareValues, &bare_value),
            (Rooms::BareLeases, &bare_lease),
        ];
        for (rooms, key) in all {
            let expected = EntryAt {
                version,
                name: name.clone(),
                key: key.clone(),
            };
            for (others, _) in all {
                let found = space.entry_at(&cache, key.as_str(), others);
                let is_there = others == rooms;
                prop_assert_eq!(found, is_there.then(|| expected.clone()));
            }
        }
        let found = |cache, key: &Key| space.entry_at(cache, key.as_str(), Rooms::Values);
        prop_assert_eq!(found("another", &value), None);
        prop_assert_eq!(found(&cache, &value.upload(1)), None);
    }
}

#[test]
fn a_key_that_is_never_spelt_so_belongs_to_no_entry() {
    let long = format!("hr:v:{{c:{}}}", "a".repeat(5000));
    for key in [
        "hr:v:{c:}",
        "hr:v0:{c:a}",
        "hr:v007:{c:a}",
        "hr:v+7:{c:a}",
        "hr:v:{c:%7b}",
        "hr:v:{c:%zz}",
        "hr:v:{c:a",
        "hr:x:{c:a}",
        "hr:bb:{c:a}",
        "hr:bl0:{c:a}",
        "hr2:v:{c:a}",
        &long,
    ] {
        for rooms in [Rooms::Values, Rooms::BareValues, Rooms::BareLeases] {
            assert_eq!(namespace().entry_at("c", key, rooms), None, "{key}");
        }
    }
}

#[test]
fn ordinary_names_stay_readable() {
    let ns = namespace();
    let cache = ns.cache("catalogue", 0).expect("a good name");
    let spelt = |key: Result<Key>| key.expect("a good name").to_string();
    assert_eq!(spelt(cache.value("city:42")), "hr:v:{catalogue:city:42}");
    assert_eq!(
        spelt(cache.load_lease("city:42")),
        "hr:l:{catalogue:city:42}"
    );
    assert_eq!(spelt(ns.counter("views:42")), "hr:c:{views:42}");
    assert_eq!(
        spelt(ns.counter_once("views:42", "req-1")),
        "hr:o:{views:42}:req-1"
    );
    assert_eq!(
        spelt(ns.counter_sent("views:42", "0fe2")),
        "hr:a:{views:42}:0fe2"
    );
    assert_eq!(
        spelt(ns.synchronizer("lock", "lock name", "invoice:7")),
        "hr:{b12}:lock:invoice:7"
    );
    #[cfg(feature = "limit")]
    {
        let limiter = ns.limiter("api", "r").and_then(|keys| keys.of("user:42"));
        assert_eq!(spelt(limiter), "hr:r:{api:user:42}");
        let grouped = |part| {
            let keys = ns.grouped_limit(("login", part), "by-ip", "w1000");
            spelt(keys.and_then(|keys| keys.of("::1")))
        };
        assert_eq!(grouped(None), "hr:w1000:{login}:by-ip:::1");
        assert_eq!(grouped(Some("eu")), "hr:w1000:{login:eu}:by-ip:::1");
    }
    let second = ns.cache("catalogue", 2).expect("a good name");
    assert_eq!(spelt(second.value("city:42")), "hr:v2:{catalogue:city:42}");
    assert_eq!(
        spelt(second.load_lease("city:42")),
        "hr:l2:{catalogue:city:42}"
    );
    let bare = ns.bare_cache("catalogue", 0).expect("a good name");
    assert_eq!(spelt(bare.value("city:42")), "hr:b:{catalogue:city:42}");
    assert_eq!(
        spelt(bare.load_lease("city:42")),
        "hr:bl:{catalogue:city:42}"
    );
    assert_eq!(
        spelt(ns.cache("a:b", 0).and_then(|cache| cache.value("{x}%\n"))),
        "hr:v:{a%3Ab:%7Bx%7D%25%0A}"
    );
}

/// Frozen: a change of it would hide invalidations from running processes.
#[test]
fn each_sixteenth_of_the_slots_has_a_key_of_its_own_for_a_tag() {
    let ns = Namespace::new("hr").expect("a good name");
    let tag = ns.tag(TagId::whole_cache("catalogue"));
    let parts = tag.of_slot_groups();
    assert_eq!(
        parts[5].as_str(),
        "hr:t:{2}:fabebc23528ba7347a4cbbfb167b2abc"
    );
    assert_eq!(parts.len(), 16);
    for (number, part) in parts.iter().enumerate() {
        assert_eq!(part.slot_group(), number, "{part}");
        assert_eq!(usize::from(part.slot()) / 1024, number, "{part}");
    }
}

#[test]
fn a_namespace_does_not_contain_what_separates_it() {
    for bad in ["hr:o", ":", "hr:"] {
        let error = Namespace::new(bad).expect_err("a colon");
        assert_eq!(error.kind(), crate::error::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("`:`"), "{error}");
    }
    assert!(Namespace::new("shop.eu-1").is_ok());
}

#[test]
fn empty_and_oversized_names_are_refused() {
    assert!(namespace().counter("").is_err());
    assert!(namespace().counter(&"x".repeat(1024)).is_ok());
    let error = namespace()
        .counter(&"x".repeat(1025))
        .expect_err("too long");
    assert_eq!(error.kind(), crate::error::ErrorKind::InvalidInput);
}

/// Text that is rich in what escaping must handle.
fn name() -> impl Strategy<Value = String> {
    proptest::collection::vec(
        prop_oneof![
            Just("{".to_owned()),
            Just("}".to_owned()),
            Just(":".to_owned()),
            Just("%".to_owned()),
            Just("%7B".to_owned()),
            Just("\0".to_owned()),
            Just("v:".to_owned()),
            "[a-c]",
            any::<char>().prop_map(String::from),
        ],
        1..6,
    )
    .prop_map(|parts| parts.concat())
}

/// A namespace has the same text, without what it must not contain.
fn space() -> impl Strategy<Value = String> {
    name().prop_map(|text| text.replace(':', "."))
}

/// Every key and channel that the crate can spell from a namespace and two names, each with its
/// meaning.
fn all(ns: &str, a: &str, b: &str) -> Vec<(String, Key)> {
    let space = Namespace::new(ns).expect("a good namespace");
    let ok = |key: Result<Key>| key.expect("not empty");
    let bucket = Bucket::of(a);
    let mut all = vec![
        (format!("counter/{a:?}"), ok(space.counter(a))),
        (format!("once/{a:?}/{b:?}"), ok(space.counter_once(a, b))),
        (format!("sent/{a:?}"), ok(space.counter_sent(a, "7e"))),
        (format!("fence/{bucket}"), space.fence(bucket)),
        (format!("wakes/{bucket}"), space.bucket_wake(bucket)),
    ];
    for version in [0, 1, 11] {
        let cache = space.cache(a, version).expect("not empty");
        all.push((format!("value/{version}/{a:?}/{b:?}"), ok(cache.value(b))));
        all.push((
            format!("lease/{version}/{a:?}/{b:?}"),
            ok(cache.load_lease(b)),
        ));
        let bare = space.bare_cache(a, version).expect("not empty");
        all.push((format!("bare/{version}/{a:?}/{b:?}"), ok(bare.value(b))));
        all.push((
            format!("bare lease/{version}/{a:?}/{b:?}"),
            ok(bare.load_lease(b)),
        ));
    }
    #[cfg(feature = "limit")]
    for room in ["r", "w"] {
        let single = space.limiter(a, room).and_then(|keys| keys.of(b));
        all.push((format!("limit/{room}/{a:?}/{b:?}"), ok(single)));
        for part in [None, Some("p"), Some(b)] {
            let keys = space.grouped_limit((a, part), b, room);
            let key = ok(keys.and_then(|keys| keys.of(a)));
            all.push((format!("grouped/{room}/{a:?}/{part:?}/{b:?}"), key));
        }
    }
    for kind in ["lock", "queue", "waiters", "fence", "wake"] {
        all.push((
            format!("{kind}/{a:?}"),
            ok(space.synchronizer(kind, "lock name", a)),
        ));
    }
    for (kind, id) in [
        ("named", TagId::named(a).expect("not empty")),
        ("whole", TagId::whole_cache(a)),
    ] {
        let tag = space.tag(id);
        for (part, key) in tag.of_slot_groups().into_iter().enumerate() {
            all.push((format!("tag/{kind}/{a:?}/{part}"), key));
        }
        all.push((format!("tag/{kind}/{a:?}"), tag));
    }
    for kind in ["lock", "counter"] {
        let format = space.format(kind);
        for (part, key) in format.of_slot_groups().into_iter().enumerate() {
            all.push((format!("format/{kind}/{part}"), key));
        }
        all.push((format!("format/{kind}"), format));
    }
    let process = "3f0c9c4e";
    all.push(("trial".to_owned(), space.trial(process)));
    for number in [0, 1] {
        let channel = space.load_wake(number, process);
        all.push((format!("load wake/{number}"), channel));
    }
    let wake = space.bucket_wake(bucket).ending_in(process);
    all.push((format!("bucket wake/{bucket}"), wake));
    let named = |(what, key): (String, Key)| (format!("{ns:?}/{what}"), key);
    all.into_iter().map(named).collect()
}

proptest! {
    #[test]
    fn a_hidden_name_is_hidden_in_its_key_too(name in name()) {
        let cache = namespace().cache("a:b", 3).expect("not empty");
        let (hide, key) = (HideKeys::digest(), cache.value(&name).expect("not empty"));
        let digits = hide.show(&name);
        prop_assert_eq!(key.shown(&hide), format!("hr:v3:{{a%3Ab:{}}}", digits.as_str()));
        prop_assert_eq!(key.shown(&HideKeys::off()), key.as_str());
    }

    #[test]
    fn different_names_never_share_a_key(
        one in (space(), name(), name()), two in (space(), name(), name())
    ) {
        let mut seen: HashMap<String, String> = HashMap::new();
        let (one, two) = (all(&one.0, &one.1, &one.2), all(&two.0, &two.1, &two.2));
        for (names, key) in one.into_iter().chain(two) {
            let earlier = seen.insert(key.to_string(), names.clone());
            let is_same = earlier.as_ref().is_none_or(|it| *it == names);
            prop_assert!(is_same, "{key}: {earlier:?} and {names}");
        }
    }

    #[test]
    fn a_pattern_of_one_namespace_matches_its_keys_and_no_others(
        one in space(), two in space(), a in name(), b in name(),
    ) {
        let covers = |key: &Key| {
            let prefix = Namespace::new(&one).expect("good").as_str().to_owned() + ":";
            key.as_str().starts_with(&prefix)
        };
        prop_assert!(all(&one, &a, &b).iter().all(|(_, key)| covers(key)));
        if one != two {
            prop_assert!(!all(&two, &a, &b).iter().any(|(_, key)| covers(key)));
        }
    }

    #[test]
    fn user_text_never_chooses_the_slot(ns in space(), a in name(), b in name()) {
        for (names, key) in all(&ns, &a, &b) {
            let text = key.as_str();
            prop_assert_eq!(text.matches('{').count(), 1, "{}", names);
            prop_assert_eq!(text.matches('}').count(), 1, "{}", names);
            prop_assert!(!text.contains("{}"), "an empty hash tag does not count");
            prop_assert!(text.bytes().all(|byte| byte >= 0x20 && byte != 0x7f));
        }
        let space = Namespace::new(&ns).expect("not empty");
        let cache = space.cache(&a, 0).expect("not empty");
        let value = cache.value(&b).expect("not empty");
        let lease = cache.load_lease(&b).expect("not empty");
        prop_assert_eq!(slot(value.as_str().as_bytes()), slot(lease.as_str().as_bytes()));
    }
}
