use super::all;
use crate::world::Table;

#[test]
fn steer_decides_as_the_table_says() {
    let mut table = Table::cluster();
    for vector in all() {
        table.flows = vector.recorded;
        let at = (vector.ifindex, vector.client);
        let decided = table.decide(vector.hook, at, vector.origin, &vector.frame);
        assert_eq!(decided, vector.expect, "{}", vector.name);
    }
}
