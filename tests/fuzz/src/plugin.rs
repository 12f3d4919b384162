//! What a container runtime gives to the plugin.

use mesh_cni::command::Command;
use mesh_cni::request::Request;
use mesh_common::cni::Attachment;

const VARIABLES: [&str; 6] = [
    "CNI_COMMAND",
    "CNI_CONTAINERID",
    "CNI_NETNS",
    "CNI_IFNAME",
    "CNI_ARGS",
    "CNI_PATH",
];

/// The six variables and standard input, with a NUL behind each but the last.
pub fn plugin(input: &[u8]) {
    let mut fields = input.splitn(7, |it| *it == 0);
    // The environment is read as text, too, and what is none counts as absent.
    let values = VARIABLES.map(|name| {
        let value = str::from_utf8(fields.next()?).ok()?;
        Some((name, value.to_owned()))
    });
    let stdin = fields.next().unwrap_or_default();
    let env = |name: &str| {
        let mut set = values.iter().flatten();
        set.find(|it| it.0 == name).map(|it| it.1.clone())
    };
    let parsed = Command::read(&env).and_then(|command| Request::parse(command, &env, stdin));
    match parsed {
        Ok(Request::Add(add)) => names_are_harmless(&add.attachment),
        Ok(Request::Del(del)) => names_are_harmless(&del.attachment),
        Ok(Request::Check(check)) => names_are_harmless(&check.attachment),
        Ok(Request::Gc { .. } | Request::Status { .. } | Request::Version { .. }) => {}
        Err(error) => {
            let told: serde_json::Value =
                serde_json::from_str(&error.to_json(Some("1.1.0"))).expect("errors are JSON");
            assert_eq!(told["code"], error.code());
            assert!(!error.remedy().is_empty());
        }
    }
}

fn names_are_harmless(attachment: &Attachment) {
    let file = attachment.file_name();
    assert!(!file.contains(['/', '\0']) && !file.starts_with('.') && file.len() <= 255);
    assert!(attachment.host_ifname().len() <= 15);
}
