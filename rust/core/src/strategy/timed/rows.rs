//! Least sums over the first border of a run, for every last one: by table, by a window, or by halving.

use std::collections::VecDeque;

use crate::ids::id_at;
use crate::strategy::timed::model::NEVER;

/// By border: the least sum of a run that ends there, and where that run begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) sums: Vec<u64>,
    pub(crate) from: Vec<u32>,
}

impl Row {
    pub(crate) fn new(borders: usize) -> Self {
        Self { sums: vec![NEVER; borders], from: vec![0; borders] }
    }

    pub(crate) fn offer(&mut self, to: usize, sum: u64, from: usize) {
        if sum < self.sums[to] {
            self.sums[to] = sum;
            self.from[to] = id_at(from);
        }
    }
}

/// Where a run costs the difference of two sums and must keep within a window: the least start in the window, O(borders).
///
/// `run_ps` are the sums; `fits` says whether a run keeps within the window, and never comes to hold for a longer one.
pub(crate) fn by_window(start: &[u64], run_ps: impl Fn(usize) -> u64, fits: impl Fn(usize, usize) -> bool) -> Row {
    let borders = start.len();
    let mut row = Row::new(borders);
    // Starts whose sum less what runs before them rises; `start - run_ps` may be less than nothing.
    let mut starts: VecDeque<(i64, usize)> = VecDeque::new();
    let mut first = 0;
    let Some(last) = start.iter().rposition(|&sum| sum < NEVER) else { return row };
    for to in 1..borders {
        let from = to - 1;
        if start[from] < NEVER {
            let key = start[from].cast_signed() - run_ps(from).cast_signed();
            while starts.back().is_some_and(|&(last, _)| last >= key) {
                starts.pop_back();
            }
            starts.push_back((key, from));
        }
        while first < to && !fits(first, to) {
            first += 1;
        }
        while starts.front().is_some_and(|&(_, from)| from < first) {
            starts.pop_front();
        }
        match starts.front() {
            Some(&(key, from)) => row.offer(to, (key + run_ps(to).cast_signed()).cast_unsigned(), from),
            None if from >= last => break,
            None => {}
        }
    }
    row
}

/// Where costs obey the quadrangle inequality, so that the best start never falls back: O(borders log borders) costs.
pub(crate) fn by_halving(start: &[u64], mut cost: impl FnMut(usize, usize) -> u64) -> Row {
    let borders = start.len();
    let mut row = Row::new(borders);
    let mut open = vec![(1, borders - 1, 0, borders.saturating_sub(2))];
    while let Some((low, high, first, last)) = open.pop() {
        if low > high {
            continue;
        }
        let middle = usize::midpoint(low, high);
        // Downwards: longer runs than one that is not possible are not possible either.
        for from in (first..=last.min(middle - 1)).rev() {
            if start[from] < NEVER {
                let ps = cost(from, middle);
                if ps >= NEVER {
                    break;
                }
                if start[from] + ps <= row.sums[middle] {
                    row.sums[middle] = start[from] + ps;
                    row.from[middle] = id_at(from);
                }
            }
        }
        let is_found = row.sums[middle] < NEVER;
        let best = row.from[middle] as usize;
        open.push((low, middle - 1, first, if is_found { best } else { last }));
        open.push((middle + 1, high, if is_found { best } else { first }, last));
    }
    row
}

/// Every run: O(borders²) costs.
pub(crate) fn by_table(start: &[u64], mut cost: impl FnMut(usize, usize) -> u64) -> Row {
    let borders = start.len();
    let mut row = Row::new(borders);
    for from in (0..borders).filter(|&from| start[from] < NEVER) {
        for to in from + 1..borders {
            let ps = cost(from, to);
            if ps >= NEVER {
                break;
            }
            row.offer(to, start[from] + ps, from);
        }
    }
    row
}

#[cfg(test)]
mod tests {
    use super::{by_halving, by_table, by_window};
    use crate::strategy::timed::model::NEVER;

    #[test]
    fn three_ways_to_the_same_row() {
        let lengths = [3_u64, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3];
        let sums: Vec<u64> = (0..=lengths.len()).map(|to| lengths[..to].iter().sum()).collect();
        let start: Vec<u64> = (0..=16).map(|from| if from % 5 == 3 { NEVER } else { (from * 7) % 31 }).collect();
        for most in [0, 4, 9, 20, 100] {
            let fits = |from: usize, to: usize| sums[to] - sums[from] <= most;
            let cost = |from: usize, to: usize| if fits(from, to) { sums[to] - sums[from] } else { NEVER };
            let table = by_table(&start, cost);
            assert_eq!(by_window(&start, |border| sums[border], fits).sums, table.sums);
            assert_eq!(by_halving(&start, cost).sums, table.sums);
        }
    }
}
