//! CORE: the middle and the edges of samples.

/// The value in the middle; of an even number, the mean of the two. Not a number when there are none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// The smallest and the largest value.
pub(crate) fn spread(values: impl IntoIterator<Item = f64>) -> [f64; 2] {
    values.into_iter().fold(
        [f64::INFINITY, f64::NEG_INFINITY],
        |[least, most], value| [least.min(value), most.max(value)],
    )
}

/// The value that so many of a hundred do not exceed (nearest rank). Not a number when there are none.
pub(crate) fn percentile(values: &mut [f64], percent: usize) -> f64 {
    let rank = (values.len() * percent).div_ceil(100).max(1) - 1;
    if rank >= values.len() {
        return f64::NAN;
    }
    *values.select_nth_unstable_by(rank, f64::total_cmp).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_samples() {
        let check = |values: &[f64], expect: f64| {
            assert!(
                (median(values.iter().copied()) - expect).abs() < 1e-9,
                "{values:?}"
            );
        };
        check(&[3.0, 1.0, 2.0], 2.0);
        check(&[4.0, 1.0, 2.0, 3.0], 2.5);
        assert!(median([]).is_nan());
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let check = |count: u32, percent: usize, expect: f64| {
            let mut values: Vec<f64> = (1..=count).rev().map(f64::from).collect();
            let found = percentile(&mut values, percent);
            assert!((found - expect).abs() < 1e-9, "{percent} of {count}");
        };
        check(100, 50, 50.0);
        check(100, 99, 99.0);
        check(3, 99, 3.0);
        check(1, 50, 1.0);
        assert!(percentile(&mut [], 50).is_nan());
    }
}
