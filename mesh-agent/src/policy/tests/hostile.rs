//! Input that the specifications allow and nobody writes.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::*;

/// Far above what is needed, also unoptimised and on a busy machine; far below what quadratic work would need.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn ten_thousand_policies() {
    let start = Instant::now();
    let mut text = base();
    for i in 0..10_000 {
        // Most select nothing, some by a label that the pod has, some by none.
        let spec = match i % 100 {
            0 => format!(
                "{{podSelector: {{}}, ingress: [{{ports: [{{port: {}}}]}}]}}",
                i + 1
            ),
            1 => format!(
                "{{podSelector: {{matchLabels: {{app: a}}}}, ingress: [{{ports: [{{port: {}}}]}}]}}",
                i + 1
            ),
            _ => format!("{{podSelector: {{matchLabels: {{app: none-{i}}}}}, ingress: [{{}}]}}"),
        };
        text += &network_policy("x", &format!("p{i}"), &spec);
    }
    let mut it = world(&[&text]);
    let verdict = tcp(B, A, 65000).at(&it, Direction::Ingress);
    assert_eq!(
        verdict.reason,
        Reason::DefaultDeny {
            policies: 200,
            caveats: 0
        }
    );
    check(
        &it,
        true,
        &[tcp(B, A, 9902), tcp(B, A, 9901), tcp(B, C, 9901)],
    );
    check(&it, false, &[tcp(B, C, 9902)]);
    let mut policies = 0;
    let gone: Vec<_> = it.network_policies().map(|it| it.key.clone()).collect();
    for key in gone {
        policies += it
            .apply(Event::Delete(crate::model::Reference::NetworkPolicy(key)))
            .policies
            .len();
    }
    assert_eq!(policies, 10_000);
    check(&it, true, &[tcp(B, A, 65000)]);
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
}

#[test]
fn five_thousand_blocks_and_as_many_holes() {
    let start = Instant::now();
    let (mut blocks, mut holes) = (String::new(), String::new());
    for i in 0..5000 {
        write!(
            blocks,
            "{{ipBlock: {{cidr: 100.{}.{}.0/24}}}},",
            i / 250,
            i % 250
        )
        .unwrap();
        write!(holes, "101.{}.{}.0/24,", i / 250, i % 250).unwrap();
    }
    let spec = format!(
        "{{podSelector: {{}}, ingress: [{{from: [{blocks} {{ipBlock: {{cidr: 101.0.0.0/8, except: [{holes}]}}}}]}}]}}"
    );
    let it = world(&[&base(), &network_policy("x", "p", &spec)]);
    for _ in 0..100 {
        check(
            &it,
            true,
            &[tcp("100.19.249.7", A, 80), tcp("101.20.0.1", A, 80)],
        );
        check(
            &it,
            false,
            &[tcp("100.20.0.1", A, 80), tcp("101.19.249.1", A, 80)],
        );
    }
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
}

#[test]
fn a_megabyte_of_what_is_not_understood() {
    let start = Instant::now();
    let blocks = "{ipBlock: {cidr: 10.1/8}},".repeat(40_000);
    let values: String = (0..50_000).fold(String::new(), |text, i| text + &format!("v{i},"));
    let rules = format!("{{podSelector: {{}}, ingress: [{{from: [{blocks}]}}]}}");
    let selector = format!(
        "{{podSelector: {{matchExpressions: [{{key: app, operator: NotIn, values: [{values}]}}]}}}}"
    );
    let it = world(&[
        &base(),
        &network_policy("x", "p", &rules),
        &network_policy("y", "p", &selector),
    ]);
    check(&it, false, &[tcp(B, A, 80), tcp(B, YA, 80)]);
    assert!(it.caveats().count() <= 100, "{}", it.caveats().count());
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
}
