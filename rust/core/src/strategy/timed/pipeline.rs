//! The least `latency + (batches - 1) * longest run`: from the least latency down, each time with less for the longest run.

use crate::strategy::timed::bounds::Bounds;
use crate::strategy::timed::latency::least_sum;
use crate::strategy::timed::model::{NEVER, Objective};
use crate::strategy::timed::orders::Orders;
use crate::strategy::timed::runs::{Runs, Span};
use crate::strategy::timed::throughput::throughput;

/// The best plan that was found, and a bound from below on every plan; `None` where there is none.
pub(crate) fn pipeline(runs: &mut Runs, orders: &Orders, batches: u64) -> Option<(Vec<Span>, u64)> {
    let objective = Objective::Pipeline { batches };
    let others = batches - 1;
    let slowest = throughput(runs, orders)?;
    let floor = slowest.least_ps;
    let mut bounds = Bounds::new(runs, orders, true);
    let mut best = runs.price(&slowest.spans).map_or(NEVER, |(sum, longest)| objective.value(sum, longest));
    let mut spans = slowest.spans;
    // What a plan's sum has to be below to be better, whatever its longest run.
    let limit = |best: u64| best.saturating_sub(others * floor);
    let least = least_sum(runs, orders, &mut bounds, slowest.ps, limit(best));
    if let Some((sum, found)) = least.found {
        let longest = runs.price(&found).map_or(NEVER, |(_, longest)| longest);
        if objective.value(sum, longest) < best {
            (best, spans) = (objective.value(sum, longest), found);
        }
    }
    let mut most = NEVER - 1;
    loop {
        // INVARIANT: no plan with a run longer than `most` is better than the best.
        let least = least_sum(runs, orders, &mut bounds, most, limit(best));
        let least_ps = least.least_ps;
        let Some((sum, found)) = least.found else {
            return Some((spans, best.min(least_ps.saturating_add(others * floor))));
        };
        let longest = runs.price(&found).map_or(NEVER, |(_, longest)| longest);
        if objective.value(sum, longest) < best {
            (best, spans) = (objective.value(sum, longest), found);
        }
        if sum != least_ps || others == 0 {
            return Some((spans, best.min(least_ps + others * floor)));
        }
        // Better plans have shorter runs than this one, and so short that their sum may still be this one's.
        let enough = (best - 1).checked_sub(sum).map(|left| left / others);
        most = match enough {
            Some(enough) if longest > 0 => enough.min(longest - 1).min(most),
            _ => return Some((spans, best)),
        };
        if most < floor {
            return Some((spans, best));
        }
    }
}
