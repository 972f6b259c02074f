//! Writing requests.

use std::{collections::HashMap, marker::PhantomData, sync::Arc};

use super::{INFO, SCHEMA_VERSION_KEY, SCOPE, Way, field};
use schemas::{
    SCHEMA_VERSION,
    attribute::put_text,
    inventory::parse_labels,
    protobuf::{field_bytes, put_bytes, put_fixed64, put_length, put_varint},
    table::{Record, TimestampMs},
};

/// Attributes of the resource beside those that columns have, such as `service.name`: keys and values.
pub type ResourceAttributes = Vec<(String, String)>;

/// Collects rows of one dataset and run into requests of one ResourceLogs with one ScopeLogs.
pub struct Encoder<R> {
    attributes: ResourceAttributes,
    version: &'static str,
    /// Of the rows collected: what their run says of itself, as attributes.
    resource: Vec<u8>,
    /// The log records, each as a field of the ScopeLogs.
    records: Vec<u8>,
    rows: usize,
    /// A log record that is under way, and its body.
    record: Vec<u8>,
    body: String,
    /// Labels as attributes, by column and JSON.
    labels: HashMap<(usize, Arc<str>), Vec<u8>, foldhash::fast::RandomState>,
    ways: Vec<Way>,
    dataset: PhantomData<R>,
}

impl<R: Record> Encoder<R> {
    /// An encoder without rows. `attributes` that columns have themselves are left out; `version` is the sender's.
    pub fn new(attributes: ResourceAttributes, version: &'static str) -> Self {
        let ways = Way::all::<R>();
        let is_free = |key: &str| !ways.iter().any(|way| matches!(way, Way::Resource(of) if *of == key));
        let own = (!attributes.iter().any(|(key, _)| key == SERVICE_VERSION))
            .then(|| (SERVICE_VERSION.to_owned(), version.to_owned()));
        Self {
            attributes: attributes.into_iter().chain(own).filter(|(key, _)| is_free(key)).collect(),
            version,
            resource: Vec::new(),
            records: Vec::new(),
            rows: 0,
            record: Vec::new(),
            body: String::new(),
            labels: HashMap::default(),
            ways,
            dataset: PhantomData,
        }
    }

    /// Adds a row of the same run as those before.
    pub fn push(&mut self, row: &R, observed_at: TimestampMs) {
        if self.rows == 0 {
            self.resource = self.resource_of(row);
        }
        self.record.clear();
        let nanoseconds = |time: TimestampMs| time.0.max(0) as u64 * 1_000_000;
        put_fixed64(&mut self.record, field::RECORD_TIME, nanoseconds(row.time()));
        put_varint(&mut self.record, field::RECORD_SEVERITY, INFO);
        self.body.clear();
        row.summarize(&mut self.body);
        put_length(&mut self.record, field::RECORD_BODY, field_bytes(self.body.len()));
        put_bytes(&mut self.record, field::BODY_TEXT, self.body.as_bytes());
        for (column, access) in R::ATTRIBUTES.iter().enumerate() {
            match self.ways[column] {
                Way::Resource(_) | Way::Workload(..) => {}
                Way::Plain(key) => (access.put)(row, key, &mut self.record),
                Way::Labels(prefix) => {
                    if let Some(labels) = (access.text)(row) {
                        self.put_labels(column, prefix, labels);
                    }
                }
            }
        }
        put_fixed64(&mut self.record, field::RECORD_OBSERVED_TIME, nanoseconds(observed_at));
        put_bytes(&mut self.record, field::RECORD_EVENT_NAME, R::EVENT_NAME.as_bytes());
        put_bytes(&mut self.records, field::SCOPE_LOGS_RECORDS, &self.record);
        self.rows += 1;
    }

    /// Rows that the next request has.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Size of the next request in bytes, about.
    pub fn size_bytes(&self) -> usize {
        self.records.len() + self.resource.len() + FRAME_BYTES
    }

    /// The request with all rows since the last one, as an `ExportLogsServiceRequest`; `None` if there are none.
    pub fn finish(&mut self) -> Option<Vec<u8>> {
        if self.rows == 0 {
            return None;
        }
        let mut scope = Vec::new();
        put_bytes(&mut scope, field::SCOPE_NAME, SCOPE.as_bytes());
        put_bytes(&mut scope, field::SCOPE_VERSION, self.version.as_bytes());
        let (major, minor) = SCHEMA_VERSION;
        put_text(&mut scope, field::SCOPE_ATTRIBUTES, SCHEMA_VERSION_KEY, &format!("{major}.{minor}"));
        let scope_logs = field_bytes(scope.len()) + self.records.len();
        let resource_logs = field_bytes(self.resource.len()) + field_bytes(scope_logs);
        let mut request = Vec::with_capacity(field_bytes(resource_logs));
        put_length(&mut request, field::REQUEST_RESOURCE_LOGS, resource_logs);
        put_bytes(&mut request, field::RESOURCE_LOGS_RESOURCE, &self.resource);
        put_length(&mut request, field::RESOURCE_LOGS_SCOPE_LOGS, scope_logs);
        put_bytes(&mut request, field::SCOPE_LOGS_SCOPE, &scope);
        request.extend_from_slice(&self.records);
        self.records.clear();
        self.rows = 0;
        Some(request)
    }

    fn resource_of(&self, row: &R) -> Vec<u8> {
        let mut resource = Vec::new();
        let mut put = |key: &str, text: &str| put_text(&mut resource, field::RESOURCE_ATTRIBUTES, key, text);
        for (key, text) in &self.attributes {
            put(key, text);
        }
        for (way, access) in self.ways.iter().zip(R::ATTRIBUTES) {
            if let (Way::Resource(key), Some(text)) = (way, (access.text)(row)) {
                put(key, text);
            }
        }
        resource
    }

    fn put_labels(&mut self, column: usize, prefix: &str, labels: &Arc<str>) {
        let known = (column, Arc::clone(labels));
        if let Some(attributes) = self.labels.get(&known) {
            return self.record.extend_from_slice(attributes);
        }
        let mut attributes = Vec::new();
        for (key, text) in parse_labels(labels) {
            put_text(&mut attributes, field::RECORD_ATTRIBUTES, &format!("{prefix}{key}"), &text);
        }
        self.record.extend_from_slice(&attributes);
        if self.labels.len() >= KNOWN_LABELS {
            self.labels.clear();
        }
        self.labels.insert(known, attributes);
    }
}

/// Writes an `ExportLogsServiceResponse`: how many log records were refused, and why; empty if none was.
pub fn response(rejected: i64, message: &str) -> Vec<u8> {
    let (mut partial, mut response) = (Vec::new(), Vec::new());
    if rejected > 0 {
        put_varint(&mut partial, field::PARTIAL_REJECTED, rejected as u64);
        put_bytes(&mut partial, field::PARTIAL_MESSAGE, message.as_bytes());
        put_bytes(&mut response, field::RESPONSE_PARTIAL_SUCCESS, &partial);
    }
    response
}

/// Writes a `google.rpc.Status`, as the body of an answer over HTTP that refuses.
pub fn status(code: u64, message: &str) -> Vec<u8> {
    let mut status = Vec::new();
    put_varint(&mut status, field::STATUS_CODE, code);
    put_bytes(&mut status, field::STATUS_MESSAGE, message.as_bytes());
    status
}

/// Version of what sends, on every resource (OpenTelemetry semantic conventions, `service`).
const SERVICE_VERSION: &str = "service.version";
/// What the messages around the records take.
const FRAME_BYTES: usize = 128;
/// Labels whose attributes are kept.
const KNOWN_LABELS: usize = 4096;
