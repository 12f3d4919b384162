//! The test harness of Mesh CNI: packets made by hand, and nodes and pods as network namespaces.

#![forbid(unsafe_code)]

pub mod app;
pub mod bpffs;
pub mod browser;
pub mod builders;
pub mod cabling;
pub mod capture;
pub mod cni;
pub mod collector;
pub mod counters;
pub mod flows;
pub mod foreign;
pub mod frames;
pub mod holdings;
pub mod lab;
pub mod load;
pub mod metrics;
pub mod netns;
pub mod node;
pub mod object;
pub mod objects;
pub mod pattern;
pub mod peer;
pub mod pod;
pub mod process;
pub mod programs;
pub mod promql;
pub mod reach;
pub mod rules;
pub mod site;
pub mod supervise;
pub mod trie;
pub mod usage;
pub mod vectors;
pub mod wait;
pub mod web;
pub mod world;
