//! Borders of the runs once the order of the rooms is settled.

use crate::strategy::auto::counts::saturated;
use crate::strategy::auto::problem::Fill;
use crate::strategy::auto::runs::prefix::{Prefix, Room, Runs};

/// Fractions of a capacity are whole numbers of this part.
const WHOLE: u64 = 1 << 62;

/// Bisection leaves fewer fractions than this to be tried one by one.
const NARROW: u64 = 1 << 30;

/// Used and capacity of the fullest room.
type Peak = (u64, u64);

/// Spreads the units over rooms that are known to take all of them in this order.
pub(crate) fn spread(prefix: &Prefix, rooms: &[Room], runs: Runs, fill: Fill) -> Runs {
    match fill {
        Fill::InOrder => runs,
        Fill::Even => even(prefix, rooms, runs),
        Fill::Fewest => even(prefix, rooms, fewest(prefix, rooms, runs)),
    }
}

/// Fewest rooms in the same order: `furthest[k][i]` is reached with `k` of the first `i` rooms.
fn fewest(prefix: &Prefix, rooms: &[Room], runs: Runs) -> Runs {
    // The table takes rooms for independent, which those of a pool are not.
    if rooms.iter().any(|room| room.pool.is_some()) {
        return runs;
    }
    let order = &runs.rooms;
    let mut furthest = vec![vec![0usize; order.len() + 1]];
    while furthest.last().and_then(|row| row.last()).is_some_and(|&end| end < prefix.len()) {
        let Some(before) = furthest.last() else { break };
        let mut row = vec![0];
        for (index, &room) in order.iter().enumerate() {
            // Either this room is left out, or it is the k-th and goes on where k - 1 of those before it end.
            row.push(row[index].max(prefix.reach(room, rooms[room].limit, before[index])));
        }
        furthest.push(row);
        if furthest.len() > order.len() + 1 {
            return runs;
        }
    }
    let mut chosen = Vec::new();
    let (mut count, mut first) = (furthest.len() - 1, order.len());
    while count > 0 && first > 0 {
        let goal = furthest[count][first];
        // Back along the table: the first room with which this end was reached is the one that was taken.
        while first > 1 && furthest[count][first - 1] == goal {
            first -= 1;
        }
        first -= 1;
        count -= 1;
        chosen.push(order[first]);
    }
    chosen.reverse();
    prefix.in_order(rooms, &chosen).unwrap_or(runs)
}

/// Makes the largest fraction in use as small as can be, by bisection and then by exact comparison.
fn even(prefix: &Prefix, rooms: &[Room], runs: Runs) -> Runs {
    if prefix.total() == 0 || runs.rooms.len() < 2 {
        return runs;
    }
    let mut best = runs;
    let mut top = peak(prefix, rooms, &best);
    let scales = best.rooms.iter().fold(0u128, |sum, &room| sum + u128::from(rooms[room].scale));
    // If all were equally full, this would be the fraction; no peak is below it.
    let mut low = saturated(u128::from(prefix.total()) * u128::from(WHOLE) / scales.max(1));
    let mut high = fraction(top);
    let probe = |limits: &dyn Fn(usize) -> u64, best: &mut Runs, top: &mut Peak| {
        let ends = prefix.greedy(rooms, &best.rooms, |room| limits(room).min(rooms[room].limit));
        let fits = ends.last() == Some(&prefix.len());
        if fits {
            best.ends = ends;
            *top = peak(prefix, rooms, best);
        }
        fits
    };
    // INVARIANT: `best` has the peak `top`, and no spread over these rooms has one below `low`.
    while high > low && high - low > NARROW {
        let middle = low + (high - low) / 2;
        let limit = |room: usize| saturated(u128::from(middle) * u128::from(rooms[room].scale) / u128::from(WHOLE));
        if probe(&limit, &mut best, &mut top) {
            high = middle.min(fraction(top));
        } else {
            low = middle;
        }
    }
    // Fractions are rounded, so the last steps compare whole bits: ever less than the peak, until that fails.
    loop {
        let (used, scale) = top;
        if !probe(&|room| strictly_below(used, scale, rooms[room].scale), &mut best, &mut top) {
            break;
        }
    }
    centre(prefix, rooms, best, top)
}

/// Moves each border as near as the largest fraction permits to where all fractions would be equal.
fn centre(prefix: &Prefix, rooms: &[Room], runs: Runs, (used, scale): Peak) -> Runs {
    if runs.rooms.iter().any(|&room| rooms[room].pool.is_some()) {
        return runs;
    }
    let limit = |room: usize| {
        let limit = u128::from(used) * u128::from(rooms[room].scale) / u128::from(scale.max(1));
        saturated(limit).min(rooms[room].limit)
    };
    // How early each run may begin so that the rooms behind it still take the rest below the peak.
    let mut least = vec![prefix.len(); runs.rooms.len() + 1];
    for (index, &room) in runs.rooms.iter().enumerate().rev() {
        least[index] = prefix.reach_back(room, limit(room), least[index + 1]);
    }
    let scales = runs.rooms.iter().fold(0u128, |sum, &room| sum + u128::from(rooms[room].scale)).max(1);
    let (mut from, mut share) = (0, 0u128);
    let mut ends = Vec::with_capacity(runs.rooms.len());
    for (index, &room) in runs.rooms.iter().enumerate() {
        share += u128::from(rooms[room].scale);
        let ideal = saturated(u128::from(prefix.total()) * share / scales);
        let most = prefix.reach(room, limit(room), from);
        // Between what the rooms behind need and what this one can: the border cannot leave a spread that is possible.
        let end = prefix.nearest(ideal).max(least[index + 1]).max(from).min(most);
        ends.push(end);
        from = end;
    }
    if from < prefix.len() { runs } else { Runs { rooms: runs.rooms, ends } }
}

fn peak(prefix: &Prefix, rooms: &[Room], runs: &Runs) -> Peak {
    let mut top = (0, 1);
    let mut from = 0;
    for (&room, &end) in runs.rooms.iter().zip(&runs.ends) {
        let (used, scale) = (prefix.taken(from, end), rooms[room].scale.max(1));
        // Fractions compared crosswise: exact, where a division would round.
        if u128::from(used) * u128::from(top.1) > u128::from(top.0) * u128::from(scale) {
            top = (used, scale);
        }
        from = end;
    }
    top
}

fn fraction((used, scale): Peak) -> u64 {
    saturated((u128::from(used) * u128::from(WHOLE)).div_ceil(u128::from(scale)))
}

/// The most that is less than `used / scale` of another capacity.
fn strictly_below(used: u64, scale: u64, other: u64) -> u64 {
    let limit = (u128::from(used) * u128::from(other)).div_ceil(u128::from(scale.max(1)));
    saturated(limit.saturating_sub(1))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{spread, strictly_below};
    use crate::ids::id_at;
    use crate::strategy::auto::instance::Instance;
    use crate::strategy::auto::problem::{Fill, Options};
    use crate::strategy::auto::runs::prefix::{Prefix, Room};
    use crate::testing::units;

    /// Ends of the runs of units with these weights in rooms with these limits, by room.
    fn ends(weights: &[u64], limits: &[u64], fill: Fill) -> Vec<(usize, usize)> {
        let (units, options) = (units(weights), Options::default());
        let instance = Instance::new(&units, &[], &options).unwrap();
        let rooms: Vec<Room> = limits.iter().map(|&limit| Room { limit, scale: limit, pool: None }).collect();
        let sequence = (0..id_at(weights.len())).collect();
        let prefix = Prefix::new(&instance, sequence, rooms.len(), |unit| (weights[unit as usize], u128::MAX));
        let order: Vec<usize> = (0..rooms.len()).collect();
        let runs = prefix.in_order(&rooms, &order).unwrap();
        let runs = spread(&prefix, &rooms, runs, fill);
        runs.rooms.into_iter().zip(runs.ends).collect()
    }

    #[test]
    fn in_order_fills_each_room_before_the_next() {
        assert_eq!(ends(&[1; 6], &[4, 4, 4], Fill::InOrder), [(0, 4), (1, 6), (2, 6)]);
    }

    #[test]
    fn even_makes_fractions_alike() {
        assert_eq!(ends(&[1; 6], &[4, 4, 4], Fill::Even), [(0, 2), (1, 4), (2, 6)]);
        assert_eq!(ends(&[1; 6], &[8, 4], Fill::Even), [(0, 4), (1, 6)], "of what each can hold");
        assert_eq!(ends(&[5, 1, 1, 1], &[8, 8], Fill::Even), [(0, 1), (1, 4)]);
        assert_eq!(ends(&[], &[8, 8], Fill::Even), [(0, 0), (1, 0)]);
    }

    /// The longest runs of the least fraction are 3, 3 and 1; the borders go where equal shares would have them.
    #[test]
    fn borders_lie_nearest_to_equal_fractions() {
        assert_eq!(ends(&[1; 7], &[4, 4, 4], Fill::Even), [(0, 2), (1, 4), (2, 7)]);
    }

    #[test]
    fn fewest_leaves_rooms_empty_and_is_even_among_the_others() {
        assert_eq!(ends(&[1; 6], &[4, 4, 4], Fill::Fewest), [(0, 3), (1, 6)]);
        assert_eq!(ends(&[1; 6], &[2, 3, 8], Fill::Fewest), [(2, 6)], "the one that can hold all");
    }

    #[test]
    fn strictly_below_a_fraction_is_less_than_it() {
        for (used, scale, other) in [(1, 2, 10), (2, 3, 10), (3, 3, 7), (0, 5, 9), (1 << 59, 1 << 60, 1 << 60)] {
            let limit = strictly_below(used, scale, other);
            let is_less = |limit: u64| u128::from(limit) * u128::from(scale) < u128::from(used) * u128::from(other);
            assert!(used == 0 || (is_less(limit) && !is_less(limit + 1)), "{used} / {scale} of {other}: {limit}");
        }
    }
}
