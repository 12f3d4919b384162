//! CORE: temp
use crate::model::{Snapshot, WorkloadKey};
use mesh_common::addr::Addr;
use mesh_common::maps::{PolicyEntry, PolicyKey};
use std::collections::BTreeMap;
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    pub flags: u32,
    pub set: u32,
}
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    pub classes: BTreeMap<(u32, Addr), u32>,
    pub sets: BTreeMap<WorkloadKey, Subject>,
    pub entries: BTreeMap<(u32, PolicyKey), PolicyEntry>,
}
pub fn compile(_s: &Snapshot) -> Compiled {
    Compiled::default()
}
