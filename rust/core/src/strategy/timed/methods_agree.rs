//! Whichever way bounds are had, the plan is the same.
#![allow(clippy::unwrap_used)]

use crate::strategy::timed::bounds::{Bounds, Method};
use crate::strategy::timed::latency::least_sum;
use crate::strategy::timed::model::{Line, LineKind, NEVER, Passing, Piece, Schedule};
use crate::strategy::timed::orders::Orders;
use crate::strategy::timed::runs::Runs;
use crate::strategy::timed::sums::Sums;

/// A line of many pieces of a few sorts, drawn by a seed; the last kind is the host.
fn line(seed: u64, schedule: Schedule, may_leave: bool) -> Line {
    let mut state = seed;
    let mut below = |end: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % end
    };
    let sorts: Vec<Piece> = (0..=below(4))
        .map(|_| Piece {
            bits: 1 + below(40),
            state_bits: below(2) * below(5),
            streamed_bits: 1 + below(40),
            homes: if may_leave { 7 } else { 3 },
            run_ps: (0..3).map(|_| Some(1 + below(50))).collect(),
            fetch_ps: (0..3).map(|_| Some(1 + below(90))).collect(),
            host_ps: Some(10 + below(150)),
            beside_bits: (0..3).map(|_| below(2) * below(40)).collect(),
        })
        .collect();
    let pieces: Vec<Piece> =
        (0..40 + below(30)).map(|_| sorts[usize::try_from(below(sorts.len() as u64)).unwrap()].clone()).collect();
    let total: u64 = pieces.iter().map(|piece| piece.bits).sum();
    let kind = |capacity_bits, is_host| LineKind { capacity_bits, hops_ps: 9, is_host };
    let kinds = vec![kind(total / 4 + below(total / 2), false), kind(total / 5, false), kind(total, true)];
    let hop_ps = (0..3).map(|_| (0..3).map(|_| below(60)).collect()).collect();
    let passing = (0..pieces.len()).map(|_| Passing { on: below(4), back: below(3) }).collect();
    Line { pieces, kinds, devices: vec![0, 1, 2, 0, 1], hop_ps, passing, schedule, staging_blocks: 1 }
}

#[test]
fn every_method_leads_to_the_same_plan() {
    let mut compared = 0;
    for seed in 0..60 {
        for (schedule, may_leave) in [(Schedule::Serial, true), (Schedule::Overlapped, true), (Schedule::Serial, false)]
        {
            let line = line(seed, schedule, may_leave);
            let (sums, orders) = (Sums::all(&line), Orders::given(&line));
            let closed = vec![false; line.pieces.len() + 1];
            let by = |method: Option<Method>, most: u64| {
                let mut runs = Runs::new(&line, &closed, &sums, 10_000_000);
                let mut bounds = Bounds::new(&mut runs, &orders, false);
                assert!(bounds.methods.iter().all(|&method| method == Method::Table));
                if let Some(method) = method {
                    bounds.methods.fill(method);
                }
                let bound = bounds.forward(&mut runs, &orders, most).map_or(NEVER, |(bound, _)| bound);
                let least = least_sum(&mut runs, &orders, &mut bounds, most, NEVER);
                (bound.saturating_sub(bounds.slack_ps), least.found.map(|(sum, _)| sum), least.least_ps)
            };
            let (bound, found, least) = by(None, NEVER - 1);
            let longest = found.map_or(NEVER - 1, |sum| sum / 2);
            let (_, shorter, _) = by(None, longest);
            let methods = if may_leave { vec![Method::Halving(0), Method::Sums] } else { vec![Method::Window] };
            for method in methods {
                let (other_bound, other, other_least) = by(Some(method), NEVER - 1);
                assert_eq!((other, other_least), (found, least), "{seed} {method:?}");
                assert!(other_bound <= bound, "{seed} {method:?}: a bound of {other_bound} above {bound}");
                assert_eq!(by(Some(method), longest).1, shorter, "{seed} {method:?}");
                compared += u32::from(found.is_some());
            }
        }
    }
    assert!(compared > 150, "{compared} lines have a plan");
}
