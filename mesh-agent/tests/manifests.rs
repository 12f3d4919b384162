//! What `deploy/` applies: every object is of the type that it says, and every command line is one that we understand.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::{Path, PathBuf};

use clap::{CommandFactory, Parser};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Container, Namespace, PodSpec, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use mesh_agent::args::Cli;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_yaml_ng::Value;

const DIRECTORIES: [&str; 3] = ["base", "crds", "uninstall"];

#[test]
fn every_object_is_of_its_type() {
    let all = all();
    assert!(all.len() > 10, "{}", all.len());
    for object in &all {
        pod(object);
    }
}

#[test]
fn every_command_line_is_understood() {
    let containers: Vec<_> = pods().into_iter().flat_map(containers).collect();
    assert!(containers.len() >= 3, "{}", containers.len());
    for container in containers {
        let mut words = vec!["mesh-agent".to_owned()];
        words.extend(container.args.unwrap_or_default());
        // What the environment says of a pod is a name; the flag stands for it here.
        for variable in container.env.unwrap_or_default() {
            words.push(format!("{}=x", flag(&words[1], &variable.name)));
        }
        if let Err(error) = Cli::try_parse_from(&words) {
            panic!("{}: {error}", container.name);
        }
    }
}

#[test]
fn every_mount_has_its_volume() {
    for pod in pods() {
        let volumes = pod.volumes.iter().flatten();
        let volumes: Vec<_> = volumes.map(|volume| volume.name.clone()).collect();
        let mounts = containers(pod)
            .into_iter()
            .filter_map(|it| it.volume_mounts);
        for mount in mounts.flatten() {
            assert!(
                volumes.contains(&mount.name),
                "{} in {volumes:?}",
                mount.name
            );
        }
    }
}

#[test]
fn a_daemon_set_that_surges_has_no_ports_of_the_host() {
    for object in all().iter().filter(|it| it["kind"] == "DaemonSet") {
        let spec = typed::<DaemonSet>(object).spec.unwrap();
        let rolling = spec.update_strategy.and_then(|it| it.rolling_update);
        if rolling.and_then(|it| it.max_surge).is_none() {
            continue;
        }
        for container in containers(spec.template.spec.unwrap()) {
            let ports = container.ports.unwrap_or_default();
            assert!(ports.is_empty(), "{}: {ports:?}", container.name);
        }
    }
}

#[test]
fn what_prometheus_is_told_is_where_the_agent_serves() {
    let cli = Cli::parse_from(["mesh-agent", "run", "--node=x", "--source=x", "--ca=x"]);
    let mesh_agent::args::Command::Run(config) = cli.command else {
        panic!("it was told to run");
    };
    let is_agent =
        |it: &&Value| it["metadata"]["name"] == "mesh-agent" && it["kind"] == "DaemonSet";
    let objects = all();
    let agent = objects.iter().find(is_agent).unwrap();
    let annotations = &agent["spec"]["template"]["metadata"]["annotations"];
    let port = annotations["prometheus.io/port"].as_str().unwrap();
    let address = config.http.metrics_address.to_string();
    assert!(address.ends_with(&format!(":{port}")), "{address}");
    let job = &document("monitoring/prometheus.yaml")["scrape_configs"][0];
    let replacements = job["relabel_configs"].as_sequence().unwrap().iter();
    let mut replacements = replacements.filter_map(|it| it["replacement"].as_str());
    assert!(replacements.all(|it| it.ends_with(&format!(":{port}"))));
}

#[test]
fn the_operator_is_told_what_prometheus_is() {
    let rules = document("monitoring/rules.yaml");
    let for_operator = document("monitoring/prometheusrule.yaml");
    assert_eq!(for_operator["spec"]["groups"], rules["groups"]);

    let endpoint = &document("monitoring/podmonitor.yaml")["spec"]["podMetricsEndpoints"][0];
    let endpoint = serde_json::to_string(&endpoint["relabelings"]).unwrap();
    let named_alike = endpoint
        .replace("sourceLabels", "source_labels")
        .replace("targetLabel", "target_label");
    let steps: Vec<Value> = serde_json::from_str(&named_alike).unwrap();
    let job = &document("monitoring/prometheus.yaml")["scrape_configs"][0];
    let (of_operator, common) = steps.split_last().unwrap();
    assert_eq!(common, job["relabel_configs"].as_sequence().unwrap());
    assert_eq!(of_operator["action"], "labeldrop");
}

fn all() -> Vec<Value> {
    DIRECTORIES.iter().flat_map(|it| objects(it)).collect()
}

fn pods() -> Vec<PodSpec> {
    all().iter().filter_map(pod).collect()
}

fn containers(pod: PodSpec) -> Vec<Container> {
    let first = pod.init_containers.into_iter().flatten();
    first.chain(pod.containers).collect()
}

/// A file of one document.
fn document(name: &str) -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(name);
    serde_yaml_ng::from_str(&fs::read_to_string(file).expect(name)).unwrap()
}

/// The objects of a directory, by the files that its kustomization names, which must be all that there are.
fn objects(name: &str) -> Vec<Value> {
    let directory: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let directory = directory.join(name);
    let read = |file: &str| fs::read_to_string(directory.join(file)).expect(file);
    let kustomization: Value = serde_yaml_ng::from_str(&read("kustomization.yaml")).unwrap();
    let listed = kustomization["resources"].as_sequence().unwrap();
    let listed: Vec<&str> = listed.iter().map(|it| it.as_str().unwrap()).collect();
    for entry in fs::read_dir(&directory).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let is_applied = file == "kustomization.yaml" || listed.contains(&file.as_str());
        assert!(is_applied, "{name}/{file} is not applied");
    }
    let documents = |text: String| {
        let documents = serde_yaml_ng::Deserializer::from_str(&text);
        let values = documents.map(|it| Value::deserialize(it).unwrap());
        values.collect::<Vec<_>>()
    };
    let texts = listed.iter().map(|file| read(file));
    texts.flat_map(documents).collect()
}

/// The pod that an object makes, if it makes any.
fn pod(object: &Value) -> Option<PodSpec> {
    match object["kind"].as_str().unwrap() {
        "DaemonSet" => typed::<DaemonSet>(object).spec?.template.spec,
        "Deployment" => typed::<Deployment>(object).spec?.template.spec,
        "Namespace" => none(typed::<Namespace>(object)),
        "Service" => none(typed::<Service>(object)),
        "ServiceAccount" => none(typed::<ServiceAccount>(object)),
        "ClusterRole" => none(typed::<ClusterRole>(object)),
        "ClusterRoleBinding" => none(typed::<ClusterRoleBinding>(object)),
        "Role" => none(typed::<Role>(object)),
        "RoleBinding" => none(typed::<RoleBinding>(object)),
        "CustomResourceDefinition" => none(typed::<CustomResourceDefinition>(object)),
        other => panic!("{other}: teach this test the type"),
    }
}

fn none<T>(_: T) -> Option<PodSpec> {
    None
}

/// Reads an object as its type; a field that the type does not have is a mistake of ours.
fn typed<T: DeserializeOwned + Serialize>(object: &Value) -> T {
    let typed: T = serde_yaml_ng::from_value(object.clone()).unwrap();
    let known = serde_yaml_ng::to_value(&typed).unwrap();
    let kind = object["kind"].as_str().unwrap_or_default();
    assert_known(object, &known, kind);
    typed
}

/// Fails if `known` lacks a field of `written`.
fn assert_known(written: &Value, known: &Value, path: &str) {
    if let (Some(fields), Some(have)) = (written.as_mapping(), known.as_mapping()) {
        for (key, value) in fields {
            let path = format!("{path}.{}", key.as_str().unwrap_or_default());
            let known = have.get(key);
            assert_known(
                value,
                known.unwrap_or_else(|| panic!("{path} is no field")),
                &path,
            );
        }
    } else if let (Some(items), Some(have)) = (written.as_sequence(), known.as_sequence()) {
        for (at, (item, known)) in items.iter().zip(have).enumerate() {
            assert_known(item, known, &format!("{path}[{at}]"));
        }
    }
}

/// The flag that an environment variable stands for.
fn flag(subcommand: &str, variable: &str) -> String {
    let cli = Cli::command();
    let subcommand = cli.find_subcommand(subcommand).expect(subcommand);
    let mut flags = subcommand.get_arguments();
    let flag = flags.find(|it| it.get_env().is_some_and(|env| env == variable));
    let long = flag.and_then(|it| it.get_long());
    format!(
        "--{}",
        long.unwrap_or_else(|| panic!("no flag of {variable}"))
    )
}
