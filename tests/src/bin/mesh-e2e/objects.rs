//! The objects that scenarios create.

use serde_json::{Value, json};

use crate::pods::HTTP;

/// A label of every namespace that scenarios make.
pub(crate) const MADE: &str = "mesh.dev/e2e";

/// The label by which pods join the mesh.
pub(crate) const MODE: &str = "istio.io/dataplane-mode";

/// What a pod does: a page that names the pod and its client, and on some ports an echo, one connection at a time.
const APP: &str = r#"
mkdir -p /tmp/www/cgi-bin
echo "$HOSTNAME" > /tmp/www/index.html
printf '#!/bin/sh\nprintf "Content-Type: text/plain\\r\\n\\r\\n%s %%s\\n" "$REMOTE_ADDR"\n' "$HOSTNAME" > /tmp/www/cgi-bin/who
busybox chmod 755 /tmp/www/cgi-bin/who
for port in 7001 7002 7003 7004; do
  (while :; do nc -l -p $port -e cat; sleep 0.1; done) &
done
exec busybox httpd -f -p 8080 -h /tmp/www
"#;

/// A namespace of ours.
pub(crate) fn namespace(name: &str, enrolled: bool) -> Value {
    let mut labels = json!({ MADE: "true" });
    if enrolled {
        labels[MODE] = "ambient".into();
    }
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
}

/// Several objects as one.
pub(crate) fn list(items: &[Value]) -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": items })
}

/// A service account; each pod has one of its own name, so that each is an identity.
pub(crate) fn account(namespace: &str, name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "namespace": namespace, "name": name } })
}

/// A pod with the app, on a node, with both probes.
pub(crate) fn pod(namespace: &str, name: &str, node: &str, image: &str, pull: &str) -> Value {
    let port = json!({ "path": "/", "port": HTTP });
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": namespace, "name": name, "labels": { "app": name } },
        "spec": {
            "serviceAccountName": name,
            "automountServiceAccountToken": false,
            "nodeName": node,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "app", "image": image, "imagePullPolicy": pull,
                "command": ["sh", "-c", APP],
                "readinessProbe": { "httpGet": port, "periodSeconds": 1, "timeoutSeconds": 3 },
                "livenessProbe": { "httpGet": port, "periodSeconds": 2, "timeoutSeconds": 3 }
            }]
        }
    })
}

/// A service that leads to the pods with a label `app`; `more` replaces fields of its spec.
pub(crate) fn service(namespace: &str, name: &str, app: &str, more: &Value) -> Value {
    let mut spec =
        json!({ "selector": { "app": app }, "ports": [{ "port": 80, "targetPort": HTTP }] });
    for (field, value) in more.as_object().into_iter().flatten() {
        spec[field] = value.clone();
    }
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": namespace, "name": name }, "spec": spec
    })
}

/// A network policy.
pub(crate) fn network_policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": namespace, "name": name }, "spec": spec
    })
}

/// One of Istio's policies.
pub(crate) fn istio(kind: &str, namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": kind,
        "metadata": { "namespace": namespace, "name": name }, "spec": spec
    })
}
