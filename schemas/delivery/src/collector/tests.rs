//! What variables mean, and what answers do.

use std::collections::HashMap;

use tonic_types::ErrorDetails;

use super::*;

fn config(endpoint: Option<&str>, variables: &[(&str, &str)]) -> Result<CollectorConfig, CollectorError> {
    let variables: HashMap<_, _> = variables.iter().copied().collect();
    CollectorConfig::new(endpoint, None, |name| variables.get(name).map(|value| (*value).to_owned()))
}

#[test]
fn endpoints_follow_the_specification() {
    let said = |endpoint, variables: &[_]| {
        let config = config(endpoint, variables).expect("a valid configuration");
        (config.endpoint, config.protocol)
    };
    const ALL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    const LOGS: &str = "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT";
    const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";
    assert_eq!(said(None, &[]), ("http://localhost:4318/v1/logs".into(), Protocol::Http));
    assert_eq!(said(None, &[(PROTOCOL, "grpc")]), ("http://localhost:4317".into(), Protocol::Grpc));
    assert_eq!(said(None, &[(ALL, "https://c/otlp/")]), ("https://c/otlp/v1/logs".into(), Protocol::Http));
    assert_eq!(said(None, &[(ALL, "https://c"), (LOGS, "http://d/x")]), ("http://d/x".into(), Protocol::Http));
    assert_eq!(said(Some("http://e:4318"), &[(LOGS, "http://d/x")]).0, "http://e:4318/v1/logs");
    assert_eq!(said(Some("http://e:4317"), &[]), ("http://e:4317".into(), Protocol::Grpc));
    assert_eq!(said(Some("e:4317"), &[]), ("https://e:4317".into(), Protocol::Grpc), "secure by default");
    let insecure = [("OTEL_EXPORTER_OTLP_INSECURE", "true")];
    assert_eq!(said(Some("e:4317"), &insecure), ("http://e:4317".into(), Protocol::Grpc));
    assert!(config(Some("ftp://e"), &[]).is_err_and(|error| error.to_string().contains("ftp://e/v1/logs")));
}

#[test]
fn wrong_variables_are_named_and_secrets_are_not_shown() {
    let said = |name, value| config(None, &[(name, value)]).expect_err("refused").to_string();
    assert!(said("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "10s").contains("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT: must be"));
    assert!(said("OTEL_EXPORTER_OTLP_COMPRESSION", "lzma").contains("gzip or none"));
    assert!(said("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json").contains("grpc or http/protobuf"));
    assert!(said("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere").contains("/nowhere"));
    let secret = said("OTEL_EXPORTER_OTLP_HEADERS", "a=b,Bearer hunter2");
    assert!(secret.contains("number 2") && !secret.contains("hunter2"), "{secret}");
    let config = config(None, &[("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2")]).expect("valid");
    assert_eq!(config.headers["authorization"], "Bearer hunter2");
    assert!(!format!("{config:?} {:?}", config.headers).contains("hunter2"));
    assert_eq!(without_user("https://me:hunter2@[::1]:4318/v1/logs?a=b@c"), "https://[::1]:4318/v1/logs?a=b@c");
    assert_eq!((without_user("http://e:4317"), without_user("e@x")), ("http://e:4317".into(), "e@x".into()));
    let wrong = self::config(Some("ftp://me:hunter2@e"), &[]).expect_err("refused").to_string();
    assert!(wrong.contains("ftp://e/v1/logs") && !wrong.contains("hunter2"), "{wrong}");
}

#[test]
fn attributes_of_the_resource_come_from_the_environment() {
    let read = |variables: &[(&str, &str)]| {
        let variables: HashMap<_, _> = variables.iter().copied().collect();
        let attributes = resource_attributes("us", |name| variables.get(name).map(|value| (*value).to_owned()));
        attributes.expect("valid").into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>()
    };
    assert_eq!(read(&[]), ["service.name=us"]);
    assert_eq!(read(&[("OTEL_RESOURCE_ATTRIBUTES", "a=b%2Cc,service.name=x")]), ["a=b,c", "service.name=x"]);
    let both = [("OTEL_RESOURCE_ATTRIBUTES", "a=b,service.name=x"), ("OTEL_SERVICE_NAME", "y")];
    assert_eq!(read(&both), ["service.name=y", "a=b"]);
}

#[test]
fn statuses_are_retried_as_the_specification_says() {
    let is_retried = |code| matches!(judge_grpc(&Status::new(code, "")), Failure::Retry { .. });
    let retried =
        [Code::Cancelled, Code::DeadlineExceeded, Code::Aborted, Code::OutOfRange, Code::Unavailable, Code::DataLoss];
    for code in (1..=16).map(Code::from) {
        assert_eq!(is_retried(code), retried.contains(&code), "{code:?}");
    }
    let wait = Duration::from_secs(7);
    let details = ErrorDetails::with_retry_info(Some(wait));
    let throttled = Status::with_error_details(Code::ResourceExhausted, "", details);
    assert!(matches!(judge_grpc(&throttled), Failure::Retry { after: Some(after), .. } if after == wait));
    for code in (200..600).filter_map(|code| StatusCode::from_u16(code).ok()) {
        let judged = judge_http(code, &HeaderMap::new(), &[]);
        let is_retried = matches!(judged, Err(Failure::Retry { .. }));
        assert_eq!(is_retried, [429, 502, 503, 504].contains(&code.as_u16()), "{code}");
        assert_eq!(judged.is_ok(), code.is_success());
    }
    assert_eq!(retry_after("120"), Some(Duration::from_secs(120)));
    let until = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(100));
    assert!(retry_after(&until).is_some_and(|wait| (98..=100).contains(&wait.as_secs())));
    assert_eq!(retry_after("soon"), None);
}
