//! Small applications as objects of Kubernetes: their containers all run the program of this project's that calls and answers.

use serde_json::{Value, json};

/// A Deployment of one pod, which calls each of these `service:port`.
pub(crate) fn deployment(name: &str, arguments: &[&str], calls: &[&str]) -> Value {
    let labels = json!({ "app": name });
    json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name }, "spec": {
        "selector": { "matchLabels": labels },
        "template": { "metadata": { "labels": labels }, "spec": {
            "terminationGracePeriodSeconds": 1, "containers": [container(arguments, calls)],
        } },
    } })
}

/// A CronJob that runs once each minute, and is not tried again.
pub(crate) fn cron_job(name: &str, arguments: &[&str]) -> Value {
    let pod = json!({ "restartPolicy": "Never", "containers": [container(arguments, &[])] });
    json!({ "apiVersion": "batch/v1", "kind": "CronJob", "metadata": { "name": name }, "spec": {
        "schedule": "* * * * *",
        "jobTemplate": { "spec": {
            "backoffLimit": 0, "template": { "metadata": { "labels": { "app": name } }, "spec": pod },
        } },
    } })
}

/// The Service of a Deployment: its port 80 is port 8080 of the pods.
pub(crate) fn service(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": {
        "selector": { "app": name }, "ports": [{ "port": 80, "targetPort": 8080 }],
    } })
}

fn container(arguments: &[&str], calls: &[&str]) -> Value {
    let variable = |(number, to): (usize, &&str)| json!({ "name": format!("CALLED_{number}_ADDR"), "value": to });
    let variables: Vec<Value> = calls.iter().enumerate().map(variable).collect();
    json!({ "name": "app", "image": "localhost/app:1", "imagePullPolicy": "Never", "args": arguments,
        "ports": [{ "containerPort": 8080 }], "env": variables })
}

/// What a container does that answers.
pub(crate) const SERVES: &[&str] = &["service", "--listen", "8080"];
