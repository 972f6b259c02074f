//! Reading requests.

use std::{
    collections::{BTreeMap, HashMap},
    marker::PhantomData,
    sync::Arc,
};

use foldhash::fast::RandomState;

use super::{
    EVENT_NAME_KEY, Malformed, SCHEMA_VERSION_KEY, Texts, Way, field,
    version_1::{self, WORKLOAD},
};
use schemas::{
    SCHEMA_VERSION,
    attribute::{Value, key_value},
    flow::FlowRecord,
    health::HealthRecord,
    inventory::InventoryRecord,
    protobuf::{Message, Wire},
    table::{Column, Record},
};

/// Reads requests, whoever made them: also those of a collector, which joins, splits and reorders what it is sent and
/// may add attributes. What has been read once (keys, texts, labels) is found again in the next request.
#[derive(Default)]
pub struct Decoder {
    flows: Versions<FlowRecord>,
    inventory: Versions<InventoryRecord>,
    health: Versions<HealthRecord>,
    texts: Texts,
    labels: Labels,
}

/// The rows of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded {
    /// Rows of dataset `flows`, in order.
    pub flows: Vec<FlowRecord>,
    /// Rows of dataset `inventory`, in order.
    pub inventory: Vec<InventoryRecord>,
    /// Rows of dataset `health`, in order.
    pub health: Vec<HealthRecord>,
    /// What is no row.
    pub rejected: Rejected,
}

/// Log records that are not rows, or not whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rejected {
    /// How many.
    pub records: i64,
    /// Why the first of them is not.
    pub reason: String,
}

impl Decoded {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.flows.len() + self.inventory.len() + self.health.len()
    }
}

impl Rejected {
    fn add(&mut self, reason: impl FnOnce() -> String) {
        self.records += 1;
        if self.records == 1 {
            self.reason = reason();
        }
    }
}

impl Decoder {
    /// Reads an `ExportLogsServiceRequest`, or the `LogsData` of a file: they are alike.
    ///
    /// # Errors
    /// The bytes are no such message. A log record that is not a row, or lacks a column, is counted as rejected.
    pub fn decode(&mut self, request: &[u8]) -> Result<Decoded, Malformed> {
        let mut decoded = Decoded::default();
        for field in Message(request) {
            if let (field::REQUEST_RESOURCE_LOGS, logs) = field? {
                self.resource_logs(logs.bytes()?, &mut decoded)?;
            }
        }
        Ok(decoded)
    }

    fn resource_logs(&mut self, logs: &[u8], decoded: &mut Decoded) -> Result<(), Malformed> {
        let (mut flow, mut inventory, mut health) = <(Begun<_>, Begun<_>, Begun<_>)>::default();
        // The resource may stand behind what it is of.
        for field in Message(logs) {
            let (field::RESOURCE_LOGS_RESOURCE, resource) = field? else { continue };
            for field in Message(resource.bytes()?) {
                let (field::RESOURCE_ATTRIBUTES, attribute) = field? else { continue };
                let (key, value) = key_value(attribute.bytes()?)?;
                // These have the same names in all versions.
                flow.take(self.flows.newest.resource.get(key), value, &mut self.texts);
                inventory.take(self.inventory.newest.resource.get(key), value, &mut self.texts);
                health.take(self.health.newest.resource.get(key), value, &mut self.texts);
            }
        }
        for field in Message(logs) {
            let (field::RESOURCE_LOGS_SCOPE_LOGS, scope_logs) = field? else { continue };
            let scope_logs = scope_logs.bytes()?;
            let version = version(scope_logs)?;
            for field in Message(scope_logs) {
                let (field::SCOPE_LOGS_RECORDS, record) = field? else { continue };
                let record = record.bytes()?;
                let name = event_name(record)?;
                let Self { texts, labels, .. } = self;
                let rejected = &mut decoded.rejected;
                let is_first = version == Version::First || version == Version::Untold && name == version_1::FLOW;
                match (name, &version) {
                    (
                        FlowRecord::EVENT_NAME
                        | version_1::FLOW
                        | InventoryRecord::EVENT_NAME
                        | HealthRecord::EVENT_NAME,
                        Version::Unknown(version),
                    ) => {
                        let newest = SCHEMA_VERSION.0;
                        rejected.add(|| format!("schema version {version}: this build reads up to {newest}.x"));
                    }
                    (FlowRecord::EVENT_NAME | version_1::FLOW, _) => {
                        let known = self.flows.of(is_first);
                        decoded.flows.extend(known.read(&flow, record, texts, labels, rejected)?);
                    }
                    (InventoryRecord::EVENT_NAME, _) => {
                        let known = self.inventory.of(is_first);
                        decoded.inventory.extend(known.read(&inventory, record, texts, labels, rejected)?);
                    }
                    (HealthRecord::EVENT_NAME, _) => {
                        let known = self.health.of(is_first);
                        decoded.health.extend(known.read(&health, record, texts, labels, rejected)?);
                    }
                    (other, _) => rejected.add(|| {
                        let shown: String = other.chars().take(SHOWN_CHARS).collect();
                        format!("a log record with EventName {shown:?} is none of Flowscribe's")
                    }),
                }
            }
        }
        Ok(())
    }
}

/// Reads an `ExportLogsServiceResponse`: how many log records were refused, and why.
///
/// # Errors
/// The bytes are no such message.
pub fn partial_success(answer: &[u8]) -> Result<(i64, &str), Malformed> {
    let (mut rejected, mut message) = (0, "");
    for field in Message(answer) {
        let (field::RESPONSE_PARTIAL_SUCCESS, partial) = field? else { continue };
        for field in Message(partial.bytes()?) {
            match field? {
                (field::PARTIAL_REJECTED, Wire::Varint(records)) => rejected = (records as i64).max(0),
                (field::PARTIAL_MESSAGE, text) => message = text.text()?,
                _ => {}
            }
        }
    }
    Ok((rejected, message))
}

/// The columns of a dataset, in each version of the schema.
struct Versions<R> {
    first: Known<R>,
    newest: Known<R>,
}

impl<R: Record> Default for Versions<R> {
    fn default() -> Self {
        Self { first: Known::new(version_1::ways::<R>()), newest: Known::new(Way::all::<R>()) }
    }
}

impl<R> Versions<R> {
    const fn of(&self, is_first: bool) -> &Known<R> {
        if is_first { &self.first } else { &self.newest }
    }
}

/// The columns of a dataset, by the attributes that carry them.
struct Known<R> {
    resource: HashMap<&'static [u8], usize, RandomState>,
    plain: HashMap<&'static [u8], usize, RandomState>,
    /// Columns with their keys, in order: where the next attribute is looked for first.
    order: Vec<Way>,
    required: u64,
    dataset: PhantomData<R>,
}

/// A row of which some columns are known, as bits.
#[derive(Clone, Default)]
struct Begun<R> {
    row: R,
    taken: u64,
    /// A column whose value is not of its type.
    misfit: Option<usize>,
}

impl<R: Record> Known<R> {
    fn new(order: Vec<Way>) -> Self {
        const { assert!(R::WIDTH <= u64::BITS as usize, "a bit per column") };
        let keyed = |pick: fn(&Way) -> Option<&'static str>| {
            order.iter().enumerate().filter_map(|(column, way)| Some((pick(way)?.as_bytes(), column))).collect()
        };
        let plain = keyed(|way| if let Way::Plain(key) = way { Some(key) } else { None });
        let resource = keyed(|way| if let Way::Resource(key) = way { Some(key) } else { None });
        let required = R::ATTRIBUTES.iter().enumerate().filter(|(_, access)| !access.is_optional);
        let required = required.fold(0, |bits, (column, _)| bits | 1 << column);
        Self { resource, plain, order, required, dataset: PhantomData }
    }
}

impl<R: Record> Begun<R> {
    fn take(&mut self, column: Option<&usize>, value: Value<'_>, texts: &mut Texts) {
        let Some(column) = column else { return };
        if (R::ATTRIBUTES[*column].take)(&mut self.row, value, texts) {
            self.taken |= 1 << column;
        } else {
            self.misfit = Some(*column);
        }
    }
}

impl<R: Record + Default> Known<R> {
    fn read(
        &self,
        begun: &Begun<R>,
        record: &[u8],
        texts: &mut Texts,
        labels: &mut Labels,
        rejected: &mut Rejected,
    ) -> Result<Option<R>, Malformed> {
        let mut begun = begun.clone();
        let mut next = 0;
        labels.begin();
        for field in Message(record) {
            let (field::RECORD_ATTRIBUTES, attribute) = field? else { continue };
            let (key, value) = key_value(attribute.bytes()?)?;
            // Mostly the attributes are in the order of the columns.
            let is_this = |way: &Way| matches!(way, Way::Plain(plain) if plain.as_bytes() == key);
            let near = self.order[next..].iter().take(NEAR).position(is_this);
            let column = near.map(|distance| next + distance).or_else(|| self.plain.get(key).copied());
            match column {
                Some(column) => {
                    next = column + 1;
                    begun.take(Some(&column), value, texts);
                }
                None => {
                    let key = std::str::from_utf8(key).map_err(|_| Malformed("a key is not UTF-8"))?;
                    self.take_special(&mut begun, key, value, texts, labels);
                }
            }
        }
        for (column, way) in self.order.iter().enumerate() {
            if matches!(way, Way::Labels(_))
                && let Some(json) = labels.json(column)
            {
                begun.take(Some(&column), Value::Text(&json), texts);
            }
        }
        if let Some(column) = begun.misfit {
            let Column { name, .. } = &R::columns()[column];
            rejected.add(|| format!("the attribute for column `{name}` of `{}` has another type", R::NAME));
            return Ok(None);
        }
        let missing = self.required & !begun.taken;
        if missing != 0 {
            let column = missing.trailing_zeros() as usize;
            let (name, attribute) = (&R::columns()[column].name, self.order[column].key());
            rejected.add(|| format!("attribute {attribute} (column `{name}` of `{}`) is missing", R::NAME));
            return Ok(None);
        }
        if let Some((column, reason)) = begun.row.refusal() {
            rejected.add(|| format!("the value of column `{column}` of `{}` {reason}", R::NAME));
            return Ok(None);
        }
        Ok(Some(begun.row))
    }

    /// Takes what has a variable key; anything else is somebody's own.
    fn take_special(&self, begun: &mut Begun<R>, key: &str, value: Value<'_>, texts: &mut Texts, labels: &mut Labels) {
        for (column, way) in self.order.iter().enumerate() {
            match way {
                Way::Labels(prefix) => {
                    if let (Some(label), Value::Text(text)) = (key.strip_prefix(prefix), value) {
                        return labels.add(column, label, text);
                    }
                }
                Way::Workload(prefix, suffix) => {
                    let kind = key.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(suffix));
                    if kind.is_some_and(|kind| kind == WORKLOAD || !kind.contains('.')) {
                        return begun.take(Some(&column), value, texts);
                    }
                }
                Way::Plain(_) | Way::Resource(_) => {}
            }
        }
    }
}

/// Labels of the record that is read, and as JSON those that were read before.
#[derive(Default)]
struct Labels {
    /// Of each column, keys and texts, each behind its length.
    pairs: Vec<(usize, Vec<u8>)>,
    known: HashMap<Vec<u8>, Arc<str>, RandomState>,
}

impl Labels {
    fn begin(&mut self) {
        self.pairs.iter_mut().for_each(|(_, pairs)| pairs.clear());
    }

    fn add(&mut self, column: usize, key: &str, text: &str) {
        let at = self.pairs.iter().position(|(of, _)| *of == column).unwrap_or_else(|| {
            self.pairs.push((column, Vec::new()));
            self.pairs.len() - 1
        });
        for text in [key, text] {
            let pairs = &mut self.pairs[at].1;
            pairs.extend_from_slice(&text.len().to_le_bytes());
            pairs.extend_from_slice(text.as_bytes());
        }
    }

    /// The labels as canonical JSON; `None` if there are none.
    fn json(&mut self, column: usize) -> Option<Arc<str>> {
        let Self { pairs, known } = self;
        let (_, pairs) = pairs.iter().find(|(of, pairs)| *of == column && !pairs.is_empty())?;
        if let Some(json) = known.get(pairs) {
            return Some(Arc::clone(json));
        }
        let mut sorted = BTreeMap::new();
        let mut rest = &**pairs;
        while let (Some(key), Some(text)) = (text_of(&mut rest), text_of(&mut rest)) {
            sorted.insert(key, text);
        }
        let json: Arc<str> = serde_json::to_string(&sorted).unwrap_or_default().into();
        if pairs.len() <= KNOWN_LABELS_BYTES {
            if known.len() >= KNOWN_LABELS {
                known.clear();
            }
            known.insert(pairs.clone(), Arc::clone(&json));
        }
        Some(json)
    }
}

/// The next text of [`Labels::pairs`].
fn text_of<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let (length, after) = rest.split_first_chunk()?;
    let (text, after) = after.split_at_checked(usize::from_le_bytes(*length))?;
    *rest = after;
    std::str::from_utf8(text).ok()
}

/// The EventName of a log record; of one that went by an older collector, its attribute.
fn event_name(record: &[u8]) -> Result<&str, Malformed> {
    // The field with the highest number is mostly the last: no need to read all that is before it.
    for name in [FlowRecord::EVENT_NAME, InventoryRecord::EVENT_NAME, HealthRecord::EVENT_NAME, version_1::FLOW] {
        let rest = record.strip_suffix(name.as_bytes());
        if rest.is_some_and(|rest| rest.ends_with(&[EVENT_NAME_TAG, name.len() as u8])) {
            return Ok(name);
        }
    }
    let mut name = "";
    for field in Message(record) {
        if let (field::RECORD_EVENT_NAME, text) = field? {
            name = text.text()?;
        }
    }
    if !name.is_empty() {
        return Ok(name);
    }
    for field in Message(record) {
        let (field::RECORD_ATTRIBUTES, attribute) = field? else { continue };
        let (key, value) = key_value(attribute.bytes()?)?;
        if let Value::Text(text) = value
            && key == EVENT_NAME_KEY.as_bytes()
        {
            name = text;
        }
    }
    Ok(name)
}

/// The version of the schema that records are of.
#[derive(PartialEq, Eq)]
enum Version {
    /// The scope does not say.
    Untold,
    First,
    Newest,
    /// One that this build can't read.
    Unknown(String),
}

fn version(scope_logs: &[u8]) -> Result<Version, Malformed> {
    for field in Message(scope_logs) {
        let (field::SCOPE_LOGS_SCOPE, scope) = field? else { continue };
        for field in Message(scope.bytes()?) {
            let (field::SCOPE_ATTRIBUTES, attribute) = field? else { continue };
            let (key, Value::Text(version)) = key_value(attribute.bytes()?)? else { continue };
            if key != SCHEMA_VERSION_KEY.as_bytes() {
                continue;
            }
            let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
            return Ok(match major {
                Some(1) => Version::First,
                Some(major) if major <= SCHEMA_VERSION.0 => Version::Newest,
                _ => Version::Unknown(version.chars().take(SHOWN_CHARS).collect()),
            });
        }
    }
    Ok(Version::Untold)
}

/// How the field of the EventName begins, before its length.
const EVENT_NAME_TAG: u8 = (field::RECORD_EVENT_NAME << 3 | 2) as u8;
/// How far ahead the next column is looked for, before it is looked up.
const NEAR: usize = 4;
/// Most characters of a sender's text in an answer.
const SHOWN_CHARS: usize = 40;
/// Sets of labels that are kept as JSON.
const KNOWN_LABELS: usize = 1 << 14;
const KNOWN_LABELS_BYTES: usize = 2048;
