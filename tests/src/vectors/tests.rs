use super::all;
use crate::world::Table;

#[test]
fn steer_decides_as_the_table_says() {
    for vector in all() {
        let mut table = Table::cluster();
        table.flows.extend(vector.recorded);
        let decided = table.decide(vector.hook, vector.ifindex, vector.origin, &vector.frame);
        assert_eq!(decided, vector.expect, "{}", vector.name);
    }
}
