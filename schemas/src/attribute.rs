//! Columns as OpenTelemetry attributes: values in OTLP's protobuf encoding (opentelemetry-proto 1.x, `common/v1`).

use std::{collections::HashSet, sync::Arc};

use crate::{
    event::RTT_BUCKETS,
    protobuf::{Malformed, Message, Wire, field_bytes, put_bytes, put_fixed64, put_length, put_varint, varint_bytes},
    value::{Port, RttHistogram, TimestampMs},
};

/// Numbers of the messages' fields.
pub mod field {
    /// Of a `LogRecord`.
    pub const RECORD_ATTRIBUTES: u32 = 6;
    pub(super) const KEY: u32 = 1;
    pub(super) const VALUE: u32 = 2;
    pub(super) const VALUE_TEXT: u32 = 1;
    pub(super) const VALUE_BOOL: u32 = 2;
    pub(super) const VALUE_INT: u32 = 3;
    pub(super) const VALUE_DOUBLE: u32 = 4;
    pub(super) const VALUE_LIST: u32 = 5;
    pub(super) const VALUE_MAP: u32 = 6;
    pub(super) const LIST_VALUES: u32 = 1;
    pub(super) const MAP_VALUES: u32 = 1;
}

/// How a column goes to and comes from an attribute.
pub struct Accessors<R> {
    /// Appends it as an attribute with a key, unless it is null.
    pub put: fn(&R, &str, &mut Vec<u8>),
    /// Sets it; whether the value fits.
    pub take: fn(&mut R, Value<'_>, &mut Texts) -> bool,
    /// Its text, if it is text and not null.
    pub text: fn(&R) -> Option<&Arc<str>>,
    /// Whether a row can be without it.
    pub is_optional: bool,
}

/// An attribute's value, as it lies in a request.
#[derive(Clone, Copy, Debug, Default)]
pub enum Value<'a> {
    /// None, or one of a kind that no column has.
    #[default]
    Other,
    Text(&'a str),
    Bool(bool),
    Int(i64),
    Double(f64),
    /// The message that holds the elements.
    List(&'a [u8]),
    /// The message that holds keys and values.
    Map(&'a [u8]),
}

/// Texts that have been read: equal ones are one.
#[derive(Debug, Default)]
pub struct Texts(HashSet<Arc<str>, foldhash::fast::RandomState>);

/// A type of columns that travels as an attribute.
pub trait Attribute: Sized {
    /// Whether a row can be without it.
    const IS_OPTIONAL: bool = false;

    /// Appends it as an attribute of a log record, unless it is absent.
    fn put(&self, key: &str, out: &mut Vec<u8>);

    /// Reads it; `None` if the value is of another type, or out of range.
    fn take(value: Value<'_>, texts: &mut Texts) -> Option<Self>;

    /// Its text, if it is one.
    fn as_text(&self) -> Option<&Arc<str>> {
        None
    }
}

impl Texts {
    /// The text, shared with all that are equal.
    pub fn get(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return Arc::clone(known);
        }
        let new: Arc<str> = text.into();
        // They come from whoever sends, of any length and in any number.
        if text.len() <= KNOWN_TEXT_BYTES {
            if self.0.len() >= KNOWN_TEXTS {
                self.0.clear();
            }
            self.0.insert(Arc::clone(&new));
        }
        new
    }
}

impl<'a> Value<'a> {
    /// Reads an `AnyValue`.
    #[inline]
    pub(crate) fn read(message: &'a [u8]) -> Result<Self, Malformed> {
        let mut value = Value::Other;
        for field in Message(message) {
            value = match field? {
                (field::VALUE_TEXT, text) => Value::Text(text.text()?),
                (field::VALUE_BOOL, Wire::Varint(value)) => Value::Bool(value != 0),
                (field::VALUE_INT, Wire::Varint(value)) => Value::Int(value as i64),
                (field::VALUE_DOUBLE, Wire::Fixed64(bits)) => Value::Double(f64::from_bits(bits)),
                (field::VALUE_LIST, list) => Value::List(list.bytes()?),
                (field::VALUE_MAP, map) => Value::Map(map.bytes()?),
                _ => value,
            };
        }
        Ok(value)
    }

    /// Elements of a list; `None` if it is none.
    fn elements(self) -> Option<Vec<Self>> {
        let Value::List(list) = self else { return None };
        let elements = Message(list).filter_map(|field| match field {
            Ok((field::LIST_VALUES, element)) => Some(element.bytes().and_then(Self::read)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        });
        elements.collect::<Result<_, _>>().ok()
    }
}

/// Reads a `KeyValue`; the key may be no text, but then it is none that is known.
#[inline]
pub fn key_value(message: &[u8]) -> Result<(&[u8], Value<'_>), Malformed> {
    let (mut key, mut value) = (&[][..], Value::Other);
    for field in Message(message) {
        match field? {
            (field::KEY, text) => key = text.bytes()?,
            (field::VALUE, message) => value = Value::read(message.bytes()?)?,
            _ => {}
        }
    }
    Ok((key, value))
}

/// Appends a `KeyValue` as the field of that number, of which the value has so many bytes and is appended by the caller.
fn put_key(out: &mut Vec<u8>, number: u32, key: &str, value_bytes: usize) {
    put_length(out, number, field_bytes(key.len()) + field_bytes(value_bytes));
    put_bytes(out, field::KEY, key.as_bytes());
    put_length(out, field::VALUE, value_bytes);
}

/// Appends a text with its key.
pub fn put_text(out: &mut Vec<u8>, number: u32, key: &str, text: &str) {
    put_key(out, number, key, field_bytes(text.len()));
    put_bytes(out, field::VALUE_TEXT, text.as_bytes());
}

fn put_int(out: &mut Vec<u8>, number: u32, key: &str, value: i64) {
    put_key(out, number, key, 1 + varint_bytes(value as u64));
    put_varint(out, field::VALUE_INT, value as u64);
}

fn put_list(out: &mut Vec<u8>, key: &str, elements: &[u8]) {
    put_key(out, field::RECORD_ATTRIBUTES, key, field_bytes(elements.len()));
    put_bytes(out, field::VALUE_LIST, elements);
}

/// Appends an element of a list that is one number or text.
fn put_element(out: &mut Vec<u8>, bytes: usize, put: impl FnOnce(&mut Vec<u8>)) {
    put_length(out, field::LIST_VALUES, bytes);
    put(out);
}

impl<T: Attribute> Attribute for Option<T> {
    const IS_OPTIONAL: bool = true;

    fn put(&self, key: &str, out: &mut Vec<u8>) {
        if let Some(value) = self {
            value.put(key, out);
        }
    }

    fn take(value: Value<'_>, texts: &mut Texts) -> Option<Self> {
        T::take(value, texts).map(Some)
    }

    fn as_text(&self) -> Option<&Arc<str>> {
        self.as_ref().and_then(T::as_text)
    }
}

impl Attribute for Arc<str> {
    fn put(&self, key: &str, out: &mut Vec<u8>) {
        put_text(out, field::RECORD_ATTRIBUTES, key, self);
    }

    fn take(value: Value<'_>, texts: &mut Texts) -> Option<Self> {
        let Value::Text(text) = value else { return None };
        Some(texts.get(text))
    }

    fn as_text(&self) -> Option<&Arc<str>> {
        Some(self)
    }
}

impl Attribute for i64 {
    fn put(&self, key: &str, out: &mut Vec<u8>) {
        put_int(out, field::RECORD_ATTRIBUTES, key, *self);
    }

    fn take(value: Value<'_>, _: &mut Texts) -> Option<Self> {
        let Value::Int(value) = value else { return None };
        Some(value)
    }
}

impl Attribute for u16 {
    fn put(&self, key: &str, out: &mut Vec<u8>) {
        put_int(out, field::RECORD_ATTRIBUTES, key, (*self).into());
    }

    fn take(value: Value<'_>, texts: &mut Texts) -> Option<Self> {
        i64::take(value, texts)?.try_into().ok()
    }
}

impl Attribute for TimestampMs {
    fn put(&self, key: &str, out: &mut Vec<u8>) {
        self.0.put(key, out);
    }

    fn take(value: Value<'_>, texts: &mut Texts) -> Option<Self> {
        // Beyond these, nanoseconds have no room, and neither have files' names.
        i64::take(value, texts).filter(|ms| (0..=i64::MAX / 1_000_000).contains(ms)).map(Self)
    }
}

impl Attribute for bool {
    fn put(&self, key: &str, out: &mut Vec<u8>) {
        put_key(out, field::RECORD_ATTRIBUTES, key, 2);
        put_varint(out, field::VALUE_BOOL, (*self).into());
    }

    fn take(value: Value<'_>, _: &mut Texts) -> Option<Self> {
        let Value::Bool(value) = value else { return None };
        Some(value)
    }
}

impl Attribute for f64 {
    fn put(&self, key: &str, out: &mut Vec<u8>) {
        put_key(out, field::RECORD_ATTRIBUTES, key, 9);
        put_fixed64(out, field::VALUE_DOUBLE, self.to_bits());
    }

    fn take(value: Value<'_>, _: &mut Texts) -> Option<Self> {
        let Value::Double(value) = value else { return None };
        Some(value)
    }
}

impl Attribute for RttHistogram {
    const IS_OPTIONAL: bool = true;

    fn put(&self, key: &str, out: &mut Vec<u8>) {
        if self.0 == [0; RTT_BUCKETS] {
            return;
        }
        let bytes: usize = self.0.iter().map(|count| field_bytes(1 + varint_bytes(*count as u64))).sum();
        put_key(out, field::RECORD_ATTRIBUTES, key, field_bytes(bytes));
        put_length(out, field::VALUE_LIST, bytes);
        for count in self.0 {
            let count = count as u64;
            put_element(out, 1 + varint_bytes(count), |out| put_varint(out, field::VALUE_INT, count));
        }
    }

    fn take(value: Value<'_>, texts: &mut Texts) -> Option<Self> {
        let counts: Option<Vec<i64>> = value.elements()?.into_iter().map(|count| i64::take(count, texts)).collect();
        Some(Self(counts?.try_into().ok()?))
    }
}

impl Attribute for Vec<Arc<str>> {
    const IS_OPTIONAL: bool = true;

    fn put(&self, key: &str, out: &mut Vec<u8>) {
        let mut elements = Vec::new();
        for text in self {
            put_element(&mut elements, field_bytes(text.len()), |out| {
                put_bytes(out, field::VALUE_TEXT, text.as_bytes())
            });
        }
        if !elements.is_empty() {
            put_list(out, key, &elements);
        }
    }

    fn take(value: Value<'_>, texts: &mut Texts) -> Option<Self> {
        value.elements()?.into_iter().map(|text| Attribute::take(text, texts)).collect()
    }
}

impl Attribute for Vec<Port> {
    const IS_OPTIONAL: bool = true;

    fn put(&self, key: &str, out: &mut Vec<u8>) {
        let (mut elements, mut pairs) = (Vec::new(), Vec::new());
        for Port { name, protocol, port, target, node_port } in self {
            pairs.clear();
            let mut text = |key, text: &Option<Arc<str>>| {
                if let Some(text) = text {
                    put_text(&mut pairs, field::MAP_VALUES, key, text);
                }
            };
            text("name", name);
            text("target", target);
            put_text(&mut pairs, field::MAP_VALUES, "protocol", protocol);
            put_int(&mut pairs, field::MAP_VALUES, "port", (*port).into());
            if let Some(node_port) = node_port {
                put_int(&mut pairs, field::MAP_VALUES, "node_port", (*node_port).into());
            }
            put_element(&mut elements, field_bytes(pairs.len()), |out| put_bytes(out, field::VALUE_MAP, &pairs));
        }
        if !elements.is_empty() {
            put_list(out, key, &elements);
        }
    }

    fn take(value: Value<'_>, texts: &mut Texts) -> Option<Self> {
        value.elements()?.into_iter().map(|port| take_port(port, texts)).collect()
    }
}

fn take_port(value: Value<'_>, texts: &mut Texts) -> Option<Port> {
    let Value::Map(map) = value else { return None };
    let mut port = Port::default();
    for field in Message(map) {
        let (field::MAP_VALUES, pair) = field.ok()? else { continue };
        let (key, value) = key_value(pair.bytes().ok()?).ok()?;
        match key {
            b"name" => port.name = Attribute::take(value, texts)?,
            b"target" => port.target = Attribute::take(value, texts)?,
            b"protocol" => port.protocol = Attribute::take(value, texts)?,
            b"port" => port.port = u16::take(value, texts)?,
            b"node_port" => port.node_port = Attribute::take(value, texts)?,
            _ => {}
        }
    }
    Some(port)
}

/// Texts that are kept: as many as the pods, names and addresses of a large cluster.
const KNOWN_TEXTS: usize = 1 << 17;
const KNOWN_TEXT_BYTES: usize = 256;
