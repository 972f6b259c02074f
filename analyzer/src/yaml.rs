//! YAML that others read: what is written is the same in YAML 1.1, which kubectl, kustomize and most of Python and Go read, as
//! in 1.2; what is read as kubectl reads it, is. serde_yaml reads and writes 1.2, where `yes`, `1_000` and `2026-11-01` are
//! texts.

use std::{borrow::Cow, fmt::Write, sync::LazyLock};

use granit_parser::{Event, Parser, ScalarStyle};
use regex::RegexSet;
use schemas::untrusted::{Unbounded, check_yaml};
use serde::Serialize;
use serde_yaml::{Error, Mapping, Value};

/// Why a text is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unread {
    #[error("it is nested more than {DEEPEST} levels deep")]
    TooDeep,
    #[error(transparent)]
    Unbounded(#[from] Unbounded),
}

/// A value as a document.
///
/// # Errors
/// It can't be YAML.
pub(crate) fn to_string(value: &impl Serialize) -> Result<String, Error> {
    let mut out = String::new();
    match serde_yaml::to_value(value)? {
        Value::Mapping(map) if !map.is_empty() => mapping(&map, 0, false, &mut out)?,
        Value::Sequence(list) if !list.is_empty() => sequence(&list, 0, false, &mut out)?,
        other => {
            out += &scalar(&other)?;
            out.push('\n');
        }
    }
    Ok(out)
}

/// A text of YAML 1.1 as one of 1.2: what kubectl takes for a truth or a number (`sigs.k8s.io/yaml`, whose parser is go-yaml 2)
/// is written so that it is one. Where it is no YAML, the rest is left for who reads it to name the place.
///
/// # Errors
/// It is nested deeper than anything of Kubernetes: reading that takes libyaml the square of its depth.
pub(crate) fn as_kubectl_reads(text: &str) -> Result<Cow<'_, str>, Unread> {
    check_yaml(text)?;
    let mut changes: Vec<(usize, usize, String)> = Vec::new();
    // Of each collection that is open, whether it is a mapping, and whether a key is next.
    let mut open: Vec<(bool, bool)> = Vec::new();
    for event in Parser::new_from_str(text) {
        let Ok((event, span)) = event else { break };
        match &event {
            Event::SequenceEnd | Event::MappingEnd => drop(open.pop()),
            Event::Scalar(value, ScalarStyle::Plain, _, None) => {
                let is_key = open.last().is_some_and(|(is_mapping, is_key)| *is_mapping && *is_key);
                if let (Some(other), Some(start), Some(end)) =
                    (as_go_yaml_resolves(value), span.start.byte_offset(), span.end.byte_offset())
                    && text.get(start..end) == Some(value)
                {
                    // Keys of JSON are texts, whatever they were.
                    changes.push((start, end, if is_key { format!("\"{other}\"") } else { other }));
                }
            }
            _ => {}
        }
        let is_node = matches!(
            event,
            Event::Scalar(..)
                | Event::Alias(_)
                | Event::SequenceStart(..)
                | Event::MappingStart(..)
                | Event::SequenceEnd
                | Event::MappingEnd
        );
        // A collection counts where it ends.
        match event {
            Event::SequenceStart(..) | Event::MappingStart(..) if open.len() == DEEPEST => return Err(Unread::TooDeep),
            Event::SequenceStart(..) => open.push((false, false)),
            Event::MappingStart(..) => open.push((true, true)),
            _ if is_node => {
                if let Some((true, is_key)) = open.last_mut() {
                    *is_key = !*is_key;
                }
            }
            _ => {}
        }
    }
    if changes.is_empty() {
        return Ok(Cow::Borrowed(text));
    }
    let mut written = String::with_capacity(text.len());
    let mut done = 0;
    for (start, end, other) in changes {
        written.push_str(&text[done..start]);
        written.push_str(&other);
        done = end;
    }
    written.push_str(&text[done..]);
    Ok(Cow::Owned(written))
}

/// What go-yaml 2 takes a plain text for that is a text in YAML 1.2, as 1.2 has it.
fn as_go_yaml_resolves(text: &str) -> Option<String> {
    match text {
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Some("true".into()),
        "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => return Some("false".into()),
        _ => {}
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return None;
    }
    let plain = text.replace('_', "");
    let (sign, digits) = match plain.strip_prefix(['-', '+']) {
        Some(digits) => (if plain.starts_with('-') { "-" } else { "" }, digits),
        None => ("", &*plain),
    };
    let in_base = |digits: &str, base| i64::from_str_radix(digits, base).ok().map(|number| format!("{sign}{number}"));
    // As ParseInt of Go reads them, in either case.
    for (prefix, base) in [("0b", 2), ("0o", 8), ("0x", 16)] {
        let is_as_1_2 = digits.starts_with(prefix) && base != 2 && plain == text;
        if !is_as_1_2 && digits.get(..2).is_some_and(|of| of.eq_ignore_ascii_case(prefix)) {
            return in_base(&digits[2..], base);
        }
    }
    if digits.len() > 1 && digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.starts_with('0') {
        // With a digit that is none of base 8 it is a number with a point, and without one.
        return in_base(digits, 8).or_else(|| digits.parse::<f64>().ok().map(|number| format!("{sign}{number}")));
    }
    let is_number = |text: &str| matches!(serde_yaml::from_str(text), Ok(Value::Number(_)));
    (plain != text && is_number(&plain)).then_some(plain)
}

/// Writes a mapping; its first key goes on the line that has begun, if one has.
fn mapping(map: &Mapping, indent: usize, mut has_begun: bool, out: &mut String) -> Result<(), Error> {
    for (key, value) in map {
        begin(indent, &mut has_begun, out);
        let _ = write!(out, "{}:", scalar(key)?);
        match value {
            Value::Mapping(inner) if !inner.is_empty() => {
                out.push('\n');
                mapping(inner, indent + 2, false, out)?;
            }
            // As Kubernetes' own tools write it, without a step to the right.
            Value::Sequence(list) if !list.is_empty() => {
                out.push('\n');
                sequence(list, indent, false, out)?;
            }
            other => {
                let _ = writeln!(out, " {}", scalar(other)?);
            }
        }
    }
    Ok(())
}

fn sequence(list: &[Value], indent: usize, mut has_begun: bool, out: &mut String) -> Result<(), Error> {
    for item in list {
        begin(indent, &mut has_begun, out);
        out.push_str("- ");
        match item {
            Value::Mapping(inner) if !inner.is_empty() => mapping(inner, indent + 2, true, out)?,
            Value::Sequence(inner) if !inner.is_empty() => sequence(inner, indent + 2, true, out)?,
            other => {
                let _ = writeln!(out, "{}", scalar(other)?);
            }
        }
    }
    Ok(())
}

fn begin(indent: usize, has_begun: &mut bool, out: &mut String) {
    if !std::mem::take(has_begun) {
        out.extend(std::iter::repeat_n(' ', indent));
    }
}

/// What has no inner structure, or nothing in it, on one line.
fn scalar(value: &Value) -> Result<String, Error> {
    let text = match value {
        Value::String(text) => text,
        other => return Ok(serde_yaml::to_string(other)?.trim_end_matches('\n').to_owned()),
    };
    let written = serde_yaml::to_string(text)?.trim_end_matches('\n').to_owned();
    let is_break = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}');
    if written.contains('\n') || text.chars().any(is_break) {
        // JSON's way is YAML's too, but for what only YAML takes for an end of a line.
        let mut quoted = String::new();
        for c in serde_json::to_string(text).unwrap_or_default().chars() {
            match is_break(c) {
                true => drop(write!(quoted, "\\u{:04x}", u32::from(c))),
                false => quoted.push(c),
            }
        }
        return Ok(quoted);
    }
    let is_plain = written == *text;
    Ok(if is_plain && is_other_in_1_1(text) { format!("'{text}'") } else { written })
}

/// Whether YAML 1.1 takes a plain text for something else (its types `bool`, `int`, `float`, `null`, `timestamp`, `merge` and
/// `value`, as libyaml's and PyYAML's resolvers have them).
fn is_other_in_1_1(text: &str) -> bool {
    static TYPES: LazyLock<RegexSet> = LazyLock::new(|| {
        RegexSet::new([
            "^(?i:y|yes|n|no|on|off|true|false|null|~|=|<<)$",
            "^[-+]?0(?i:b)[01_]+$",
            "^[-+]?0(?i:o)?[0-7_]+$",
            "^[-+]?0(?i:x)[0-9a-fA-F_]+$",
            "^[-+]?[0-9][0-9_]*$",
            "^[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\\.[0-9_]*)?$",
            "^[-+]?([0-9][0-9_]*)?\\.?[0-9_]*([eE][-+]?[0-9_]+)?$",
            "^[-+]?\\.(?i:inf|nan)$",
            "^[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ].*)?$",
        ])
        .expect("these are expressions")
    });
    TYPES.is_match(text)
}

/// The deepest that a document may be nested, which is serde_yaml's limit too.
const DEEPEST: usize = 128;
#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_1_1_takes_for_something_else_is_quoted() {
        for text in [
            "yes",
            "No",
            "on",
            "OFF",
            "y",
            "N",
            "1_000",
            "1_0.5",
            "190:20:30",
            "0b1010",
            "0777",
            "0o17",
            "0x_1f",
            "0X1F",
            "0B101",
            "0O17",
            "1e_3",
            "1e2_3",
            "1e3",
            ".5",
            "1.",
            "2026-11-01",
            "2026-11-01T00:00:00Z",
            "~",
            "<<",
            "=",
            ".inf",
            "-.NaN",
            "+1",
            "12",
            "true",
            "null",
            "",
        ] {
            let written = to_string(&json!({ "a": text })).expect("YAML");
            assert!(written.starts_with("a: '") || written.starts_with("a: \""), "{written}");
        }
        for text in
            ["web", "yes-web", "v1.2.3", "1.2.3", "10.0.0.0/8", "a:b", "eu-west-1", "9af31c", "1a", "node", "none"]
        {
            assert_eq!(to_string(&json!({ "a": text })).expect("YAML"), format!("a: {text}\n"));
        }
        assert_eq!(to_string(&json!({ "on": "x" })).expect("YAML"), "'on': x\n");
    }

    #[test]
    fn what_kubectl_takes_for_a_truth_or_a_number_is_one() {
        let read = |text: &str| -> serde_json::Value {
            serde_yaml::from_str(&as_kubectl_reads(text).expect("YAML")).expect("YAML")
        };
        assert_eq!(
            read("{a: yes, b: Off, c: y, d: 'yes', e: \"no\", f: web}"),
            json!({ "a": true, "b": false, "c": true, "d": "yes", "e": "no", "f": "web" })
        );
        assert_eq!(
            read("- 1_000\n- 0777\n- -0b11\n- 1_0.5\n- 190:20\n- 1.2.3\n- 10\n- 0X1F\n- 0O17\n- -0B11\n- 0x1f\n"),
            json!([1000, 511, -3, 10.5, "190:20", "1.2.3", 10, 31, 15, -3, 31])
        );
        assert_eq!(read("on: x\noff: {no: [no]}\n"), json!({ "true": "x", "false": { "false": [false] } }));
        assert_eq!(read("a: |\n  yes\nb: >\n  no\nc: !!str on\n"), json!({ "a": "yes\n", "b": "no\n", "c": "on" }));
        assert_eq!(as_kubectl_reads("{a: [}").as_deref(), Ok("{a: [}"), "what is none is left");
    }

    #[test]
    fn what_is_nested_too_deeply_is_refused_at_once() {
        let nested = |open: &str, close: &str, levels: usize| open.repeat(levels) + "a" + &close.repeat(levels);
        for (open, close) in [("[", "]"), ("{a: ", "}"), ("- ", ""), ("? ", "")] {
            assert_eq!(as_kubectl_reads(&nested(open, close, DEEPEST)).map(drop), Ok(()), "{open}");
            // Also where it does not end, or is nothing that can be read.
            for text in
                [nested(open, close, 200_000), nested(open, "", 200_000), format!("a: ]\n{}", open.repeat(200_000))]
            {
                assert!(as_kubectl_reads(&text).is_err(), "{open}");
            }
        }
        let [wide, wrong] =
            [(0..50_000).map(|n| format!("a{n}: [b, {{c: d}}]\n")).collect::<String>(), "a: b: c\n".repeat(50_000)];
        assert_eq!(as_kubectl_reads(&wide).as_deref(), Ok(&*wide));
        assert_eq!(as_kubectl_reads(&wrong).as_deref(), Ok(&*wrong));
    }

    #[test]
    fn documents_look_as_kubernetes_tools_write_them() {
        let policy = json!({
            "spec": { "ingress": [{ "from": [{ "podSelector": {} }], "ports": [{ "port": 80 }, { "port": "http" }] }], "types": [], "lists": [[1, 2], [3]] },
            "text": "two\nlines", "quote": "it's", "colon": "a: b", "nothing": null, "yes": true,
        });
        let expected = "colon: 'a: b'\nnothing: null\nquote: it's\nspec:\n  ingress:\n  - from:\n    - podSelector: {}\n    ports:\n    - port: 80\n    - port: http\n  lists:\n  - - 1\n    - 2\n  - - 3\n  types: []\ntext: \"two\\nlines\"\n'yes': true\n";
        assert_eq!(to_string(&policy).expect("YAML"), expected);
    }

    proptest! {
        #[test]
        fn any_text_is_read_as_kubectl_does(text in "\\PC{0,40}|[-a-z0-9_:. \n\\[\\]{},]{0,60}") {
            let _ = as_kubectl_reads(&text);
        }

        #[test]
        fn what_is_written_is_read_again(text in "\\PC{0,12}|[-+0-9_.:eExXobTZ~ ]{0,12}", key in "\\PC{1,6}|[a-zA-Z]{1,4}") {
            let value = json!({ &key: [{ &key: text }, [text, { "n": 1 }], true] });
            let written = to_string(&value).expect("YAML");
            let read: serde_json::Value = serde_yaml::from_str(&written).expect("it is read");
            prop_assert_eq!(&read, &value, "{}", written);
            let again = as_kubectl_reads(&written);
            prop_assert_eq!(again.as_deref(), Ok(&*written), "kubectl reads the same");
        }
    }
}
