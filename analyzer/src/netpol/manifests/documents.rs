//! The documents of a file as kubectl takes them: YAML, JSON and streams of it, in UTF-8 or UTF-16, with a byte order mark or
//! without.

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::yaml;

/// The documents of a file. Where one can't be read, the error is the last item: the rest can't be told apart.
pub(super) fn read(bytes: &[u8]) -> Vec<Result<Value, String>> {
    match decode(bytes) {
        Ok(text) => read_text(&text),
        Err(error) => vec![Err(error)],
    }
}

/// The documents of a text.
pub(super) fn read_text(text: &str) -> Vec<Result<Value, String>> {
    // What begins like JSON may yet be YAML, which is JSON and more.
    let is_stream = text.trim_start().starts_with('{');
    let read = match yaml::as_kubectl_reads(text) {
        Ok(read) => read,
        Err(error) => return vec![Err(error.to_string())],
    };
    let documents = until_error(serde_yaml::Deserializer::from_str(&read).map(document));
    let is_read =
        |document: &Result<Value, String>| document.as_ref().map_or_else(|error| error.contains("duplicate"), |_| true);
    if !is_stream || documents.iter().all(is_read) {
        return documents;
    }
    let stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    until_error(stream.map(|document| document.map_err(|error| error.to_string())))
}

/// The items up to the first that is an error, after which there may be no end of them.
fn until_error(items: impl Iterator<Item = Result<Value, String>>) -> Vec<Result<Value, String>> {
    let mut taken = Vec::new();
    for item in items {
        let is_error = item.is_err();
        taken.push(item);
        if is_error {
            break;
        }
    }
    taken
}

/// A document; a key that is there twice is an error, and what is merged into others (`<<`) is.
fn document<'de>(document: serde_yaml::Deserializer<'de>) -> Result<Value, String> {
    let mut value = serde_yaml::Value::deserialize(document).map_err(|error| error.to_string())?;
    value.apply_merge().map_err(|error| error.to_string())?;
    of_yaml(value).map_err(|error| error.to_string())
}

fn of_yaml<T: DeserializeOwned>(value: serde_yaml::Value) -> Result<T, serde_yaml::Error> {
    serde_yaml::from_value(value)
}

/// The text of a file, by its byte order mark.
fn decode(bytes: &[u8]) -> Result<String, String> {
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let (units, rest) = bytes.as_chunks();
        let text = String::from_utf16(&units.iter().map(|bytes| unit(*bytes)).collect::<Vec<_>>());
        text.ok().filter(|_| rest.is_empty()).ok_or_else(|| "it is not in UTF-16, as its beginning says".to_owned())
    };
    match bytes {
        [0xFF, 0xFE, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xFE, 0xFF, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [0xEF, 0xBB, 0xBF, rest @ ..] | rest => {
            let text = std::str::from_utf8(rest);
            text.map(str::to_owned).map_err(|error| format!("it is neither in UTF-8 nor marked as UTF-16: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn values(bytes: &[u8]) -> Vec<Value> {
        read(bytes).into_iter().map(|document| document.expect("a document")).collect()
    }

    #[test]
    fn a_file_is_read_in_every_encoding_that_kubectl_takes() {
        let text = "kind: A\n---\nkind: B\n";
        let utf16 = |mark: u16, bytes: fn(u16) -> [u8; 2]| {
            let units = std::iter::once(mark).chain(text.encode_utf16());
            units.flat_map(bytes).collect::<Vec<u8>>()
        };
        let expected = [json!({ "kind": "A" }), json!({ "kind": "B" })];
        let marked = ["\u{feff}", text].concat();
        let files =
            [text.into(), marked.into_bytes(), utf16(0xFEFF, u16::to_le_bytes), utf16(0xFEFF, u16::to_be_bytes)];
        for bytes in files {
            assert_eq!(values(&bytes), expected);
        }
        assert!(read(b"\xff\xfea").pop().unwrap().unwrap_err().contains("UTF-16"));
        assert!(read(b"kind: \xff").pop().unwrap().unwrap_err().contains("neither in UTF-8"));
    }

    #[test]
    fn json_comes_alone_or_one_after_the_other() {
        let expected = [json!({ "kind": "A" }), json!({ "kind": "B" })];
        assert_eq!(values(b"{\"kind\":\"A\"}\n{\"kind\":\"B\"}"), expected);
        assert_eq!(values(b"{\n\t\"kind\": \"A\"\n}\n"), expected[..1]);
        assert_eq!(values(b"{kind: A}"), expected[..1], "YAML");
    }

    #[test]
    fn what_is_merged_is_there_and_what_is_there_twice_is_an_error() {
        let merged = values(b"a: &a { x: 1 }\nb:\n  <<: *a\n  z: 2\n");
        assert_eq!(merged[0]["b"], json!({ "x": 1, "z": 2 }));
        let twice = read(b"kind: A\nkind: B\n---\nkind: C\n");
        assert!(twice.len() == 1 && twice[0].as_ref().unwrap_err().contains("duplicate"), "{twice:?}");
        let twice = read(b"{\"kind\": \"A\", \"kind\": \"B\"}");
        assert!(twice[0].as_ref().is_err_and(|error| error.contains("duplicate")), "{twice:?}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            read(&bytes);
        }
    }
}
