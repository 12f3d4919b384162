//! CORE: the network configuration that the runtime reads.

use std::path::Path;

use serde_json::json;

use super::PLUGIN;

/// File name of the configuration: runtimes take the first one by name.
pub const CONFLIST: &str = "10-mesh-cni.conflist";

/// Versions of the CNI specification that our plugin speaks, oldest first.
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// What a runtime speaks that knows nothing of `cniVersions`: the oldest version with CHECK, which all of them know.
const PLAIN_VERSION: &str = "0.4.0";

/// The configuration as JSON: our plugin, and behind it `portmap` where it is installed, for `hostPort`.
///
/// `portmap` is the versions of the specification which that plugin speaks: a list is called in one version, which all its
/// plugins must know. One that has no version in common with ours is left out.
pub(super) fn render(socket: &Path, portmap: Option<&[String]>) -> String {
    let mut plugins = vec![json!({ "type": PLUGIN, "socket": socket })];
    let mut versions = VERSIONS.to_vec();
    if let Some(known) = portmap {
        let common: Vec<_> = VERSIONS
            .into_iter()
            .filter(|it| known.iter().any(|k| k == it))
            .collect();
        if !common.is_empty() {
            versions = common;
            plugins.push(json!({ "type": "portmap", "capabilities": { "portMappings": true } }));
        }
    }
    let plain = if versions.contains(&PLAIN_VERSION) {
        PLAIN_VERSION
    } else {
        versions[0]
    };
    let list = json!({
        "cniVersion": plain,
        "cniVersions": versions,
        "name": "mesh",
        "plugins": plugins,
    });
    format!("{list:#}\n")
}

/// Which of the files in the configuration directory a runtime takes before ours, in its order.
pub fn shadowing<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let is_read = |name: &&str| {
        let extension = Path::new(name).extension().and_then(|it| it.to_str());
        matches!(extension, Some("conf" | "conflist" | "json"))
    };
    let mut before: Vec<_> = names
        .into_iter()
        .filter(is_read)
        .filter(|name| *name < CONFLIST)
        .collect();
    before.sort_unstable();
    before
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn rendered(portmap: Option<&[&str]>) -> Value {
        let known = portmap.map(|known| known.iter().map(|&it| it.to_owned()).collect::<Vec<_>>());
        serde_json::from_str(&render(Path::new("/run/x.sock"), known.as_deref())).unwrap()
    }

    fn types(list: &Value) -> Vec<&str> {
        let plugins = list["plugins"].as_array().unwrap();
        plugins
            .iter()
            .filter_map(|it| it["type"].as_str())
            .collect()
    }

    #[test]
    fn alone() {
        let list = rendered(None);
        assert_eq!(types(&list), [PLUGIN]);
        assert_eq!(list["plugins"][0]["socket"], "/run/x.sock");
        assert_eq!(list["cniVersion"], "0.4.0");
        assert_eq!(list["cniVersions"], json!(VERSIONS));
    }

    #[test]
    fn with_portmap_in_versions_that_both_speak() {
        let list = rendered(Some(&["0.1.0", "0.3.1", "0.4.0", "1.0.0"]));
        assert_eq!(types(&list), [PLUGIN, "portmap"]);
        assert_eq!(list["plugins"][1]["capabilities"]["portMappings"], true);
        assert_eq!(list["cniVersions"], json!(["0.3.1", "0.4.0", "1.0.0"]));
        let newest = rendered(Some(&["1.1.0"]));
        assert_eq!(
            (&newest["cniVersion"], types(&newest).len()),
            (&json!("1.1.0"), 2)
        );
    }

    #[test]
    fn a_portmap_of_another_age_is_left_out() {
        assert_eq!(rendered(Some(&["0.2.0"])), rendered(None));
        assert_eq!(rendered(Some(&[])), rendered(None));
    }

    #[test]
    fn the_example_is_what_is_installed() {
        let example = include_str!("../../../deploy/10-mesh-cni.conflist");
        let rendered = render(Path::new(mesh_common::names::CNI_SOCKET), None);
        let [example, rendered]: [Value; 2] =
            [example, &rendered].map(|text| serde_json::from_str(text).unwrap());
        assert_eq!(example, rendered);
    }

    #[test]
    fn what_sorts_before_ours_is_told() {
        let names = [
            "05-cilium.conflist",
            "10-mesh-cni.conflist",
            "10-calico.conf",
            "87-x.conflist",
            "00-notes.txt",
        ];
        assert_eq!(shadowing(names), ["05-cilium.conflist", "10-calico.conf"]);
    }
}
