//! What names and values look like: made up for one object, a version, a time, a hash.

/// Whether a name was made up for one object of several: it ends with a number, or holds what was put there at random.
pub fn is_made_up(name: &str) -> bool {
    last_of(name).is_some_and(|(_, last)| is_number(last)) || base_of(name).is_some()
}

/// A name without what was put in it at random, and what follows that; `None` where there is no such thing, or nothing before it.
pub fn base_of(name: &str) -> Option<&str> {
    let mut start = 0;
    for part in name.split(SEPARATORS) {
        // Words that look so are more likely within a name.
        let is_last = start + part.len() == name.len();
        if start > 1 && (is_hash(part) || is_random(part) && (is_last || part.len() >= 7)) {
            let mut base = &name[..start - 1];
            while let Some((rest, _)) = last_of(base).filter(|(_, last)| is_random(last)) {
                base = rest;
            }
            return Some(base);
        }
        start += part.len() + 1;
    }
    None
}

/// A name without the numbers and versions at its end: of `migrate-1-2-rc1`, `migrate`. `None` where there are none.
pub fn uncounted(name: &str) -> Option<&str> {
    let mut base = name;
    while let Some((rest, _)) = last_of(base).filter(|(_, last)| is_number(last) || has_version(last)) {
        base = rest;
    }
    (base.len() < name.len()).then_some(base)
}

/// A name without its last part; `None` where there is one part.
pub fn prefix_of(name: &str) -> Option<&str> {
    last_of(name).map(|(base, _)| base)
}

/// The last part of a name, and what is before it.
fn last_of(name: &str) -> Option<(&str, &str)> {
    let (base, last) = name.rsplit_once(SEPARATORS)?;
    (!base.is_empty() && !last.is_empty()).then_some((base, last))
}

/// Whether a text is of digits, and not empty.
pub fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether somebody put a text together at random: five or more of the letters and digits that Kubernetes takes
/// (`k8s.io/apimachinery/pkg/util/rand`), but for some words; or letters and digits that come after each other again and again;
/// or it is a number as long as a time.
fn is_random(text: &str) -> bool {
    let is_of_kubernetes = text.bytes().all(|byte| b"bcdfghjklmnpqrstvwxz2456789".contains(&byte));
    let is_long = text.len() >= 7 && text.bytes().any(|byte| byte.is_ascii_lowercase());
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase());
    let kinds: Vec<bool> = text.bytes().map(|byte| byte.is_ascii_digit()).collect();
    let changes = kinds.windows(2).filter(|pair| pair[0] != pair[1]).count();
    let is_mixed = is_plain && changes >= 3 && !text.starts_with('v');
    is_of_kubernetes && (text.len() == 5 || is_long) && !WORDS.contains(&text)
        || is_mixed
        || is_number(text) && text.len() >= 8
}

/// Whether a label's value is a name, or parts of it between dashes: a release's, as in `RELEASE-web`; but no number.
pub fn is_part_of(name: &str, value: &str) -> bool {
    let (parts, wanted): (Vec<&str>, Vec<&str>) = (name.split('-').collect(), value.split('-').collect());
    !is_number(value) && parts.windows(wanted.len()).any(|part| part == wanted)
}

/// Whether a value is a version or a time, or ends with one: `1.2`, `v2`, `1.2.3-rc1`, `web-1.2.3`, `r15`, `1-28-3`, `20261127`,
/// `nightly-2026-11-01`, `2026w48`.
pub(super) fn has_version(value: &str) -> bool {
    let is_lettered =
        |text: &str| ["v", "V", "r", "rc", "rev"].iter().any(|of| text.strip_prefix(of).is_some_and(is_number));
    let numbers = value.strip_prefix(['v', 'V']).unwrap_or(value);
    let is_numbers = numbers.contains(['-', '.', '_']) && numbers.split(['-', '.', '_']).all(is_number);
    let is_part = |part: &str| {
        let part = part.strip_prefix(['v', 'V']).unwrap_or(part);
        let is_dotted = part.contains('.') && part.split('.').take(2).all(is_number);
        is_dotted || is_time(part)
    };
    let parts: Vec<&str> = value.split(['-', '_', '+']).collect();
    let is_year = |part: &str| part.len() == 4 && part.starts_with("20") && is_number(part);
    let has_date =
        parts.windows(3).any(|of| is_year(of[0]) && of[1..].iter().all(|part| part.len() == 2 && is_number(part)));
    is_lettered(value) || is_numbers || has_date || parts.into_iter().any(is_part)
}

/// Whether a text begins like a date of this century: `20261127…`, `2026w48`.
fn is_time(text: &str) -> bool {
    let is_day = text.get(..8).is_some_and(is_number);
    let is_week = text.get(4..5) == Some("w") && text.get(5..).is_some_and(is_number);
    text.starts_with("20") && (is_day || is_week)
}

/// Whether a value is a commit, a checksum or a UUID, or ends with one: seven hexadecimal digits or more, with letters among
/// them and numbers.
pub(super) fn is_hash(value: &str) -> bool {
    let is_hex = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_mixed = |part: &str| {
        part.bytes().any(|byte| byte.is_ascii_digit()) && part.bytes().any(|byte| byte.is_ascii_alphabetic())
    };
    let is_uuid = value.len() == 36 && value.split('-').all(is_hex);
    is_uuid || value.split(['-', '_', ':']).any(|part| part.len() >= 7 && is_hex(part) && is_mixed(part))
}

/// What parts of names are between.
const SEPARATORS: [char; 3] = ['-', '.', '_'];
/// Words of five letters of which one can't tell that nobody put them together at random.
const WORDS: [&str; 14] = [
    "https", "grpcs", "mqtts", "smtps", "mssql", "xhtml", "html5", "nfsv4", "tcpv4", "tcpv6", "mqtt5", "ldpwd",
    "rtmps", "dhcp4",
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_made_up_or_chosen() {
        for (name, base) in [
            ("db-migrate-a1b2c3d-presync-1793527200", "db-migrate"),
            ("gitlab-migrations-aabcd12", "gitlab-migrations"),
            ("scan-vulnerabilityreport-558896cbdd", "scan-vulnerabilityreport"),
            ("sgs-lhbz7-g8wq4", "sgs"),
            ("exp-bcdfghjk", "exp"),
            ("pi-1793527200000000000", "pi"),
            ("web_job_40-tx5z8", "web_job_40"),
        ] {
            assert_eq!(base_of(name), Some(base), "{name}");
        }
        for (name, base) in
            [("shop-migrate-1-2", "shop-migrate"), ("m-2-0-0-rc1", "m"), ("m-1.2.3", "m"), ("pg-2", "pg")]
        {
            assert_eq!(uncounted(name), Some(base), "{name}");
        }
        assert_eq!(uncounted("web"), None);
        for name in ["web-0", "task-x7k2p", "etl-load-9af31c", "a.b-20261127", "wc-driver-6d5f"] {
            assert!(is_made_up(name), "{name}");
        }
        assert_eq!(base_of("build-x7k2p"), Some("build"));
        assert_eq!(base_of("t-5f1c3a52-7d0e-4b68-9f7b-2f9f3a0c1d11"), Some("t"));
        for name in [
            "pg-2",
            "web-step1",
            "web-https",
            "events-neo4j",
            "web-s3proxy",
            "a-v1beta1",
            "mysql",
            "x7k2p",
            "hive-grpcs",
            "a-https-b",
        ] {
            assert_eq!(base_of(name), None, "{name}");
        }
        for name in ["web", "shadow", "web-step1", "reviews-v1", "test-connection", "one-legacy", "db2", ""] {
            assert!(!is_made_up(name), "{name}");
        }
    }

    #[test]
    fn versions_look_like_versions() {
        for value in [
            "1.2",
            "v1.2.3",
            "1.2.3-rc1",
            "2026.11.27",
            "20261127",
            "20261127t1200",
            "v2",
            "r15",
            "rc1",
            "1-28-3",
            "web-1.2.3",
            "2024-11-01",
            "nightly-20261101",
            "nightly-2026-11-01",
            "2026w48",
        ] {
            assert!(has_version(value), "{value}");
        }
        for value in
            ["deadbee1", "0c6f9d2ab31e", "sha256-9f86d081", "main-abcdef1", "5f1c3a52-7d0e-4b68-9f7b-2f9f3a0c1d11"]
        {
            assert!(is_hash(value), "{value}");
        }
        for value in
            ["web", "db1", "two", "postgres-16", "cafe", "facade", "10", "a.b", "eu-west-1", "web-v2", "20-a", "2"]
        {
            assert!(!has_version(value) && !is_hash(value), "{value}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read(name in ".{0,80}", value in ".{0,80}") {
            prop_assert!(base_of(&name).is_none_or(|base| name.starts_with(base) && !base.is_empty()));
            prop_assert!(is_number(&name) || is_part_of(&name, &name));
            let _ = (is_made_up(&name), has_version(&value), is_hash(&value), is_part_of(&name, &value));
        }
    }
}
