//! Rows survive the way through OTLP, as others read and write it.

use std::{collections::BTreeMap, fmt::Debug, sync::Arc};

use delivery::otlp::{Decoded, Decoder, Encoder};
use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
    resource::v1::Resource,
};
use proptest::prelude::*;
use prost::Message;
use schemas::{
    flow::FlowRecord,
    health::HealthRecord,
    inventory::InventoryRecord,
    table::{Record, Table, TimestampMs},
};

use crate::rows::{flow, health, inventory};

fn request<R: Record>(rows: &[R]) -> Vec<u8> {
    let attributes = vec![("service.name".into(), "agent".into()), ("k8s.node.name".into(), "not this".into())];
    let mut encoder = Encoder::new(attributes, "1.2.3");
    rows.iter().for_each(|row| encoder.push(row, TimestampMs(7)));
    assert_eq!(encoder.rows(), rows.len());
    let size_bytes = encoder.size_bytes();
    let request = encoder.finish().unwrap_or_default();
    assert!(request.len() <= size_bytes + 1000, "{} bytes were told to be {size_bytes}", request.len());
    assert_eq!(encoder.finish(), None, "what was finished is gone");
    request
}

fn decode(request: &[u8]) -> Decoded {
    Decoder::default().decode(request).expect("a request")
}

/// A time that OTLP can tell of.
fn time(time: TimestampMs) -> TimestampMs {
    TimestampMs(time.0.rem_euclid(i64::MAX / 1_000_000))
}

/// Rows of one run, with labels that are JSON.
fn flows() -> impl Strategy<Value = Vec<FlowRecord>> {
    let labels = prop::option::of(prop::collection::btree_map("[a-z./]{1,9}", "\\PC{0,6}", 1..4));
    let kind = prop::option::of("Deployment|StatefulSet|Pod|Node|Workload|Rollout");
    let rows = prop::collection::vec((flow(), labels.clone(), labels, kind), 1..20);
    rows.prop_map(|rows| {
        let first = rows[0].0.clone();
        let json = |labels: Option<BTreeMap<String, String>>| {
            labels.map(|labels| Arc::from(serde_json::to_string(&labels).expect("a map of texts")))
        };
        let of_run = |(row, source, destination, kind): (FlowRecord, _, _, Option<String>)| FlowRecord {
            cluster: Arc::clone(&first.cluster),
            run_id: Arc::clone(&first.run_id),
            source_labels: json(source),
            destination_labels: json(destination),
            destination_workload_kind: kind.as_deref().map(Arc::from),
            destination_workload: row.destination_workload.filter(|_| kind.is_some()),
            window_start: time(row.window_start),
            window_end: time(row.window_end),
            last_seen: time(row.last_seen),
            ..row
        };
        rows.into_iter().map(of_run).collect()
    })
}

/// What another implementation reads of a request, written by it again.
fn by_another(request: &[u8]) -> Vec<u8> {
    ExportLogsServiceRequest::decode(request).expect("opentelemetry-proto reads it").encode_to_vec()
}

fn assert_rows<R: PartialEq + Debug>(read: &[R], rows: &[R], rejected: i64) {
    assert_eq!(rejected, 0);
    assert_eq!(read, rows);
}

proptest! {
    #[test]
    fn flows_survive_the_way_through_otlp(rows in flows()) {
        let request = request(&rows);
        for request in [by_another(&request), request] {
            let read = decode(&request);
            assert_rows(&read.flows, &rows, read.rejected.records);
        }
    }

    #[test]
    fn inventory_survives_the_way_through_otlp(row in inventory()) {
        let row = InventoryRecord {
            observed_at: time(row.observed_at),
            lease_start: row.lease_start.map(time),
            lease_end: row.lease_end.map(time),
            ..row
        };
        let read = decode(&by_another(&request(std::slice::from_ref(&row))));
        assert_rows(&read.inventory, &[row], read.rejected.records);
    }

    #[test]
    fn health_survives_the_way_through_otlp(row in health()) {
        let read = decode(&by_another(&request(std::slice::from_ref(&row))));
        assert_rows(&read.health, &[row], read.rejected.records);
    }

    #[test]
    fn a_request_that_is_cut_or_altered_is_refused_or_read(rows in flows(), cut: prop::sample::Index, byte: u8) {
        let mut request = request(&rows);
        let at = cut.index(request.len());
        let cut = Decoder::default().decode(&request[..at]);
        prop_assert!(at == 0 || cut.is_err(), "all of it is one message");
        request[at] = byte;
        let altered = Decoder::default().decode(&request);
        prop_assert!(altered.is_err() || altered.is_ok_and(|read| read.rows() <= rows.len()));
    }

    #[test]
    fn garbage_is_refused_or_empty(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let read = Decoder::default().decode(&bytes);
        prop_assert!(read.is_err() || read.is_ok_and(|read| read.rows() == 0));
    }
}

fn example() -> FlowRecord {
    FlowRecord {
        cluster: "c".into(),
        node: "n".into(),
        run_id: "r".into(),
        seq: 5,
        window_end: TimestampMs(60_000),
        source_workload_kind: Some("Deployment".into()),
        source_workload: Some("web".into()),
        source_labels: Some(r#"{"app":"web"}"#.into()),
        destination_address: "10.96.0.1".into(),
        transport: "tcp".into(),
        destination_port: 443,
        connections: 3,
        failed: 1,
        failure: Some("refused".into()),
        ..FlowRecord::default()
    }
}

/// No attribute means two things: a key is a column's of one name, and none is one that others give another meaning.
#[test]
fn attributes_have_one_meaning_and_our_prefix_or_that_of_the_conventions() {
    let mut columns: BTreeMap<&str, &str> = BTreeMap::new();
    let conventions = [
        "network.transport",
        "source.address",
        "source.port",
        "destination.address",
        "destination.port",
        "error.type",
        "resource k8s.cluster.name",
        "resource k8s.node.name",
        "resource service.instance.id",
        "resource service.version",
        "resource os.version",
    ];
    let all = FlowRecord::columns().iter().chain(InventoryRecord::columns()).chain(HealthRecord::columns());
    for column in all {
        let key = column.attribute;
        assert!(key.starts_with("flowscribe.") || conventions.contains(&key), "{key}");
        assert_eq!(*columns.entry(key).or_insert(&column.name), &*column.name, "{key}");
    }
    for name in [FlowRecord::EVENT_NAME, InventoryRecord::EVENT_NAME, HealthRecord::EVENT_NAME] {
        assert!(name.starts_with("flowscribe."), "{name}");
    }
}

fn attribute<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a any_value::Value> {
    attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()
}

#[test]
fn a_row_is_a_log_record_with_the_names_of_the_tables() {
    let request = request(&[example()]);
    let read = ExportLogsServiceRequest::decode(&*request).expect("opentelemetry-proto reads it");
    let [ResourceLogs { resource: Some(resource), scope_logs, .. }] = &*read.resource_logs else { panic!("one") };
    let [ScopeLogs { scope: Some(scope), log_records, .. }] = &**scope_logs else { panic!("one") };
    let [record] = &**log_records else { panic!("one") };
    let text = |text: &str| Some(any_value::Value::StringValue(text.into()));
    assert_eq!(attribute(&resource.attributes, "k8s.node.name").cloned(), text("n"), "columns go before settings");
    assert_eq!(attribute(&resource.attributes, "service.name").cloned(), text("agent"));
    assert_eq!(attribute(&resource.attributes, "service.instance.id").cloned(), text("r"));
    assert_eq!(attribute(&resource.attributes, "service.version").cloned(), text("1.2.3"));
    assert_eq!((&*scope.name, &*scope.version), ("flowscribe", "1.2.3"));
    assert_eq!((record.time_unix_nano, record.observed_time_unix_nano), (60_000_000_000, 7_000_000));
    assert_eq!((&*record.event_name, record.severity_number), ("flowscribe.flow", 9));
    let body = record.body.as_ref().and_then(|body| body.value.clone());
    assert_eq!(body, text("web → 10.96.0.1 443/tcp: 3 connections, 1 failed (refused)"));
    assert_eq!(attribute(&record.attributes, "flowscribe.source.k8s.workload.name").cloned(), text("web"));
    assert_eq!(attribute(&record.attributes, "flowscribe.source.k8s.pod.label.app").cloned(), text("web"));
    assert_eq!(attribute(&record.attributes, "destination.port"), Some(&any_value::Value::IntValue(443)));
    assert_eq!(attribute(&record.attributes, "source.port"), None, "null is absent");
}

#[test]
fn what_a_collector_does_to_records_is_no_harm() {
    let (first, second) = (example(), FlowRecord { node: "m".into(), seq: 9, ..example() });
    let read = |row: &FlowRecord| ExportLogsServiceRequest::decode(&*request(std::slice::from_ref(row))).expect("read");
    let mut joined = read(&first);
    joined.resource_logs.extend(read(&second).resource_logs);
    for logs in &mut joined.resource_logs {
        let resource = logs.resource.as_mut().expect("a resource");
        resource.attributes.reverse();
        let value = AnyValue { value: Some(any_value::Value::StringValue("x".into())) };
        let added = KeyValue { key: "host.name".into(), value: Some(value), ..KeyValue::default() };
        resource.attributes.push(added.clone());
        let record = &mut logs.scope_logs[0].log_records[0];
        record.attributes.reverse();
        record.attributes.push(added);
    }
    // One that dropped the EventName, as the protocol had none before 1.5, but kept the attribute.
    let record = &mut joined.resource_logs[1].scope_logs[0].log_records[0];
    let name = AnyValue { value: Some(any_value::Value::StringValue(std::mem::take(&mut record.event_name))) };
    record.attributes.push(KeyValue { key: "event.name".into(), value: Some(name), ..KeyValue::default() });
    let read = decode(&joined.encode_to_vec());
    assert_rows(&read.flows, &[first, second], read.rejected.records);
}

#[test]
fn what_is_no_row_is_counted_and_named_and_the_rest_is_read() {
    let mut altered = ExportLogsServiceRequest::decode(&*request(&[example(), example(), example()])).expect("read");
    let records = &mut altered.resource_logs[0].scope_logs[0].log_records;
    records[0].attributes.retain(|attribute| attribute.key != "destination.port");
    records[1].event_name = "somebody.else".into();
    records.push(LogRecord::default());
    let read = decode(&altered.encode_to_vec());
    assert_eq!((read.flows.len(), read.rejected.records), (1, 3));
    assert!(read.rejected.reason.contains("attribute destination.port"), "{}", read.rejected.reason);

    let mut altered = ExportLogsServiceRequest::decode(&*request(&[example()])).expect("read");
    altered.resource_logs[0].resource = Some(Resource::default());
    let read = decode(&altered.encode_to_vec());
    assert!(read.rejected.reason.contains("k8s.cluster.name"), "{}", read.rejected.reason);

    let mut altered = ExportLogsServiceRequest::decode(&*request(&[example()])).expect("read");
    let scope = altered.resource_logs[0].scope_logs[0].scope.as_mut().expect("a scope");
    scope.attributes[0].value = Some(AnyValue { value: Some(any_value::Value::StringValue("3.0".into())) });
    let read = decode(&altered.encode_to_vec());
    assert!(read.rejected.reason.contains("schema version 3.0"), "{}", read.rejected.reason);

    let mut altered = ExportLogsServiceRequest::decode(&*request(&[example()])).expect("read");
    let record = &mut altered.resource_logs[0].scope_logs[0].log_records[0];
    let port = record.attributes.iter_mut().find(|attribute| attribute.key == "destination.port").expect("a port");
    port.value = Some(AnyValue { value: Some(any_value::Value::IntValue(70_000)) });
    let read = decode(&altered.encode_to_vec());
    assert!(read.rejected.reason.contains("`destination_port`"), "{}", read.rejected.reason);
}
