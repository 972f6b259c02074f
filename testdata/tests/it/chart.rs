//! What is in `deploy`: that the manifests are the chart's, that it takes what it says it takes, and that the programs
//! know every flag and variable that it gives them.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

use crate::{
    harness::{Missing, Ran, require},
    support::{documents, executable},
};

tests![
    the_manifests_are_what_the_chart_renders,
    the_chart_takes_all_values_at_once_and_refuses_what_is_none,
    who_writes_to_receive_has_to_know_a_token_or_to_have_a_certificate,
    the_programs_know_every_flag_and_variable_of_the_manifests,
    pods_have_what_they_need_and_no_more,
];

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// Helm's program.
fn helm() -> Result<String, Missing> {
    let helm = env::var("HELM").unwrap_or_else(|_| "helm".into());
    let is_there = Command::new(&helm).arg("version").output().is_ok();
    require(is_there, "helm is not on the path, nor does $HELM name it")?;
    Ok(helm)
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).current_dir(deploy()).output().expect("it starts")
}

/// The output of a run that went well.
fn ran(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).expect("text")
}

fn setups() -> Vec<(String, Vec<Value>)> {
    let entries = fs::read_dir(deploy().join("manifests")).expect("they are there");
    let mut setups: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .map(|path| (path.display().to_string(), documents(&fs::read_to_string(&path).expect("text"))))
        .collect();
    setups.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(setups.len(), 3, "receive, collector and object-store");
    setups
}

/// Containers of all pods, with the pods' specs.
fn containers(objects: &[Value]) -> Vec<(&Value, &Value)> {
    let specs = objects.iter().map(|object| match object["kind"].as_str() {
        Some("CronJob") => &object["spec"]["jobTemplate"]["spec"]["template"]["spec"],
        _ => &object["spec"]["template"]["spec"],
    });
    let mut containers = Vec::new();
    for spec in specs {
        for list in ["initContainers", "containers"] {
            containers.extend(spec[list].as_array().into_iter().flatten().map(|container| (spec, container)));
        }
    }
    containers
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().map(|text| text.as_str().expect("a text").to_owned()).collect()
}

fn the_manifests_are_what_the_chart_renders() -> Ran {
    let helm = helm()?;
    let checked =
        Command::new(deploy().join("render.sh")).arg("--check").env("HELM", &helm).output().expect("it starts");
    let difference = String::from_utf8_lossy(&checked.stdout);
    assert!(checked.status.success(), "UPDATE: deploy/render.sh\n{difference}");
    for setup in ["receive", "collector", "object-store"] {
        let values = format!("chart/examples/{setup}.yaml");
        assert!(ran(&helm, &["lint", "--strict", "chart", "--values", &values]).contains("0 chart(s) failed"));
    }
    Ok(())
}

fn the_chart_takes_all_values_at_once_and_refuses_what_is_none() -> Ran {
    let helm = helm()?;
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/all-values.yaml");
    let render = |more: &[&str]| {
        let arguments = ["template", "trial", "chart", "--namespace", "elsewhere", "--kube-version", "1.33.0"];
        run(&helm, &[&arguments, more].concat())
    };
    let rendered = render(&["--values", &all.to_string_lossy()]);
    assert!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
    let yaml = String::from_utf8(rendered.stdout).expect("text");
    let objects = documents(&yaml);
    for object in &objects {
        assert_eq!(object["metadata"]["labels"]["team"] == "platform", object["kind"] != "PodMonitor", "{object:#}");
        assert!(object["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("trial-flowscribe-")));
    }
    let said = [
        "pullSecret",
        "SYS_PTRACE",
        "spc_t",
        "--older-than=14d",
        "--apply=stable",
        "--rollback=/var/lib/flowscribe",
        "decisions.yaml",
        "--push-gateway=",
        "https://trial-flowscribe-receive.elsewhere:4317",
        "--tls-client-ca=",
        "kind: PodMonitor",
        "monitoring",
        "name: platform",
        "10.0.0.0/8,fd00::/8",
        "checksum/config",
        "existing-claim",
    ];
    for text in said {
        assert!(yaml.contains(text), "{text} is in what is rendered");
    }
    check_programs(&objects);
    for (values, error) in [
        ("destination=nowhere", "destination is receive, collector or object-store, not nowhere"),
        ("destination=object-store", "objectStore.url says where"),
        ("regenerate.place=configmap", "regenerate.place is configMap, directory or args, not configmap"),
        ("regenerate.apply=bogus", "regenerate.apply is stable or all, not bogus"),
        ("podMonitor.enabled=true", "networkPolicy.metrics names who may"),
    ] {
        let refused = render(&["--set", values]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains(error), "{said}");
    }
    Ok(())
}

fn who_writes_to_receive_has_to_know_a_token_or_to_have_a_certificate() -> Ran {
    let helm = helm()?;
    let render = |more: &[&str]| {
        documents(&ran(&helm, &[&["template", "flowscribe", "chart", "--kube-version", "1.33.0"], more].concat()))
    };
    let token = |objects: &[Value]| {
        let secret = objects.iter().find(|object| object["kind"] == "Secret");
        secret.map(|secret| secret["data"]["token"].as_str().expect("it has one").to_owned())
    };
    let (one, other) = (token(&render(&[])), token(&render(&[])));
    assert!(one.as_ref().is_some_and(|token| token.len() > 40) && one != other, "made at random: {one:?} {other:?}");
    for (values, is_made, has_token) in
        [("cluster=c", true, true), ("receive.tokenSecret=mine", false, true), ("receive.tlsSecret=tls", false, false)]
    {
        let objects = render(&["--set", values]);
        assert_eq!(token(&objects).is_some(), is_made, "{values}");
        for (_, container) in containers(&objects).iter().filter(|(_, container)| !container["env"].is_null()) {
            let headers = container["env"].as_array().into_iter().flatten().any(|variable| {
                variable["name"] == "OTEL_EXPORTER_OTLP_HEADERS"
                    && variable["value"] == "Authorization=Bearer%20$(RECEIVE_TOKEN)"
            });
            let is_sender = ["exporter", "inventory"].iter().any(|name| container["name"] == *name);
            assert_eq!(headers, is_sender && has_token, "{values}: {}", container["name"]);
        }
        let receive = containers(&objects).into_iter().find(|(_, container)| container["name"] == "receive");
        let arguments = texts(&receive.expect("it is there").1["args"]);
        let asks = |flag: &str| arguments.iter().any(|argument| argument.starts_with(flag));
        assert_eq!((asks("--token-file="), asks("--tls-client-ca=")), (has_token, !has_token), "{values}");
    }
    Ok(())
}

fn the_programs_know_every_flag_and_variable_of_the_manifests() {
    for (setup, objects) in setups() {
        assert!(check_programs(&objects) >= 2, "{setup}");
    }
}

/// Has the programs read the command lines of all containers; how many there are.
fn check_programs(objects: &[Value]) -> usize {
    let containers = containers(objects);
    for (_, container) in &containers {
        let command = texts(&container["command"]);
        let (program, rest) = command.split_first().expect("a program");
        let program = if program == "/flowscribe-exporter" { "exporter" } else { "flowscribe" };
        // Settings of the agent are in its file.
        let arguments: Vec<String> =
            texts(&container["args"]).into_iter().filter(|flag| !flag.starts_with("--config=")).collect();
        let read = Command::new(executable()).arg(program).args(rest).args(&arguments).arg("--help").output();
        let read = read.expect("it starts");
        let help = String::from_utf8_lossy(&read.stdout).into_owned();
        assert!(read.status.success(), "{container:#}: {}", String::from_utf8_lossy(&read.stderr));
        let variables = container["env"].as_array().into_iter().flatten().map(|variable| &variable["name"]);
        for variable in variables.filter_map(Value::as_str).filter(|name| name.starts_with("FLOWSCRIBE_")) {
            assert!(help.contains(&format!("[env: {variable}=")), "{variable} of {container:#}");
        }
    }
    let settings = objects.iter().filter_map(|object| object["data"]["exporter.yaml"].as_str());
    for text in settings {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("exporter.yaml");
        fs::write(&file, text).expect("written");
        let read = Command::new(executable()).args(["exporter", "--config"]).arg(file).arg("--help").output();
        let read = read.expect("it starts");
        assert!(read.status.success(), "{text}: {}", String::from_utf8_lossy(&read.stderr));
    }
    containers.len()
}

fn pods_have_what_they_need_and_no_more() {
    for (setup, objects) in setups() {
        for (spec, container) in containers(&objects) {
            let security = &container["securityContext"];
            let name = format!("{setup}: {}", container["name"]);
            assert_eq!(security["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(security["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(texts(&security["capabilities"]["drop"]), ["ALL"], "{name}");
            assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
            assert!(spec["hostNetwork"].is_null() && security["privileged"].is_null(), "{name}");
            for kind in ["requests", "limits"] {
                assert!(container["resources"][kind]["memory"].is_string(), "{name}");
            }
            let is_agent = container["name"] == "exporter";
            let added = texts(&security["capabilities"]["add"]);
            assert_eq!(added, if is_agent { vec!["BPF", "NET_ADMIN", "PERFMON"] } else { vec![] }, "{name}");
            assert_eq!(spec["hostPID"] == true, is_agent, "{name}");
            assert_eq!(spec["securityContext"]["runAsNonRoot"] == true, !is_agent, "{name}");
            if is_agent {
                assert_eq!(spec["tolerations"][0]["operator"], "Exists", "{name} runs on every node");
                assert!(
                    ["livenessProbe", "readinessProbe", "startupProbe"]
                        .iter()
                        .all(|probe| container[probe].is_object())
                );
                let mounts = container["volumeMounts"].as_array().expect("it has some");
                let writable: BTreeSet<&str> = mounts
                    .iter()
                    .filter(|mount| mount["readOnly"] != true)
                    .filter_map(|mount| mount["name"].as_str())
                    .collect();
                assert_eq!(writable, BTreeSet::from(["spool"]), "{name}");
            }
        }
        // What is selected by the policies of our own is there.
        let policies = objects.iter().filter(|object| object["kind"] == "NetworkPolicy");
        for policy in policies {
            let labels = &policy["spec"]["podSelector"]["matchLabels"];
            let is_made = objects.iter().any(|object| {
                let template =
                    if object["kind"] == "CronJob" { &object["spec"]["jobTemplate"]["spec"] } else { &object["spec"] };
                &template["template"]["metadata"]["labels"] == labels
            });
            assert!(is_made, "{setup}: {labels}");
        }
    }
}
