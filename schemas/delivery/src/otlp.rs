//! Rows as OpenTelemetry log records, in OTLP's protobuf encoding (opentelemetry-proto 1.x, `logs/v1` and `common/v1`).
//!
//! ```text
//! rows of a dataset ──Encoder──► ExportLogsServiceRequest ──Decoder──► rows of all datasets, and what is none
//! ```
//!
//! A row is a log record, its dataset named by the record's EventName, its columns by attributes; what is the same on all rows
//! of a run are attributes of the resource. A column that is null or an empty list has no attribute. Times are integers of
//! milliseconds since the Unix epoch; labels are an attribute each. The body says the same in a line for people, and is not
//! read.
//!
//! Protobuf is read where it lies and written in one pass, because a generated codec takes an allocation per key and per
//! value: three times the time, and many times the memory of a request that is made to take much. The tests hold it
//! against opentelemetry-proto.

mod decode;
mod encode;
mod version_1;

pub use decode::{Decoded, Decoder, Rejected, partial_success};
pub use encode::{Encoder, ResourceAttributes, response, status};

use schemas::table::Record;
pub use schemas::{attribute::Texts, protobuf::Malformed};

/// Name of the instrumentation scope of all records.
pub const SCOPE: &str = "flowscribe";
/// Attribute of the scope with the schema version, `major.minor`.
pub const SCHEMA_VERSION_KEY: &str = "flowscribe.schema_version";
/// What carries a record's EventName where the protocol had no field for it yet.
const EVENT_NAME_KEY: &str = "event.name";
/// Path of the OTLP/HTTP endpoint.
pub const HTTP_PATH: &str = "/v1/logs";
/// Path of the OTLP/gRPC method.
pub const GRPC_PATH: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
/// Most bytes of a request that receivers take by default (gRPC's limit of a message).
pub const REQUEST_BYTES: usize = 4 << 20;

/// How a column travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// As an attribute of the resource.
    Resource(&'static str),
    /// As an attribute of the record.
    Plain(&'static str),
    /// As one for each label, with its key after this.
    Labels(&'static str),
    /// In version 1 of the schema, as one whose key has the kind of the workload between these.
    Workload(&'static str, &'static str),
}

impl Way {
    fn all<R: Record>() -> Vec<Self> {
        R::columns().iter().map(|column| Self::of(column.attribute)).collect()
    }

    fn of(key: &'static str) -> Self {
        let resource = key.strip_prefix("resource ").map(Self::Resource);
        let labels = || key.strip_suffix("<key>").map(Self::Labels);
        resource.or_else(labels).unwrap_or(Self::Plain(key))
    }

    /// The key, or how it begins.
    const fn key(self) -> &'static str {
        let (Self::Resource(key) | Self::Plain(key) | Self::Labels(key) | Self::Workload(key, _)) = self;
        key
    }
}

/// Fields of the messages, by their numbers.
mod field {
    pub(super) use schemas::attribute::field::RECORD_ATTRIBUTES;

    pub(super) const REQUEST_RESOURCE_LOGS: u32 = 1;
    pub(super) const RESPONSE_PARTIAL_SUCCESS: u32 = 1;
    pub(super) const PARTIAL_REJECTED: u32 = 1;
    pub(super) const PARTIAL_MESSAGE: u32 = 2;
    pub(super) const STATUS_CODE: u32 = 1;
    pub(super) const STATUS_MESSAGE: u32 = 2;
    pub(super) const RESOURCE_LOGS_RESOURCE: u32 = 1;
    pub(super) const RESOURCE_LOGS_SCOPE_LOGS: u32 = 2;
    pub(super) const RESOURCE_ATTRIBUTES: u32 = 1;
    pub(super) const SCOPE_LOGS_SCOPE: u32 = 1;
    pub(super) const SCOPE_LOGS_RECORDS: u32 = 2;
    pub(super) const SCOPE_NAME: u32 = 1;
    pub(super) const SCOPE_VERSION: u32 = 2;
    pub(super) const SCOPE_ATTRIBUTES: u32 = 3;
    pub(super) const RECORD_TIME: u32 = 1;
    pub(super) const RECORD_SEVERITY: u32 = 2;
    pub(super) const RECORD_BODY: u32 = 5;
    pub(super) const BODY_TEXT: u32 = 1;
    pub(super) const RECORD_OBSERVED_TIME: u32 = 11;
    pub(super) const RECORD_EVENT_NAME: u32 = 12;
}

/// `SEVERITY_NUMBER_INFO`.
const INFO: u64 = 9;
