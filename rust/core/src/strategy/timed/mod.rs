//! Plans by time: pieces in execution order to devices, so that a step, its slowest part, or a pipeline takes least.
//!
//! # The problem
//!
//! Every device, the host included, executes at most one run of consecutive pieces. Inside a run, each piece lies on the device, or
//! on the host and is brought in, or, if it has no state, lies on the host and runs there, at two hops. There has to be room for
//! what lies on a device, the state of what it runs, and some of the largest piece that it brings in, or would bring in in a longer
//! step where the host runs it in this one. A run takes what it runs and
//! what it brings in, or the longer of both. Where one ends and the next begins, a hop is made, or several and some back, by what passes
//! at that border. Sought: the least sum of runs and hops, the shortest longest run, or the least of both
//! for some batches; in the order of devices given, or in any.
//!
//! # The method
//!
//! 1. **Runs** (`stage`). Where everything stays, a run is a difference of sums (`sums`). Else it is a vector of counts of like pieces
//!    (`classes`): a knapsack, for which the pieces that cost least time for each bit of room leave first. Taken in parts that is a
//!    bound (`frontier`); branch and bound below it is exact (`search`). Where running and bringing in go side by side, each mean of
//!    both is a bound on the longer one; the means tried are those at which a class costs the same brought in and run by the host.
//! 2. **Orders** (`orders`). Devices as given are a path, in any order a graph over sets of them, like ones counted.
//! 3. **The longest run** (`throughput`): halving over times, the longest runs within each; a time that fails is followed by the least
//!    one at which any run reaches further.
//! 4. **The least sum** (`latency`): a table over turns and borders, in which only those runs are priced that bounds before and after
//!    them leave (`bounds`). Taken in parts, the costs of runs obey the quadrangle inequality: what leaves is a truncated polymatroid.
//!    So a row of bounds costs O(N log N) by halving, O(N) where nothing may leave (`rows`).
//! 5. **Pipelines** (`pipeline`): the least sum, then again with less for the longest run, until no plan can be better.
//! 6. **Ties** (`ties`): a line for every home that pieces that share weights may have.
//!
//! # What is proven
//!
//! The lower bound holds in any case, of plans as described. Where the steps run out, it is that of 4, and the plan is the best seen.
//! In any order, least sums are looked for in the order given first, with a part of the steps. Where there are too many sets of
//! devices for the steps, the order given is planned and no other, and the bound is the least time of each piece.
//!
//! # An example by hand
//!
//! Four pieces of 4 bits, 5 ps on the first device and 2 ps on the second, each with room for two and a half. All on the second would
//! take 8 ps, had it the room. Two on each take 5 + 5 + 2 + 2 ps and a hop.
//!
//! ```
//! use planner_core::timed::{Line, LineKind, Objective, Piece, Question, Schedule, SummedLine};
//!
//! let piece = Piece {
//!     bits: 4, state_bits: 0, streamed_bits: 4, homes: 0b11,
//!     run_ps: vec![Some(5), Some(2)], fetch_ps: vec![None, None], host_ps: None, beside_bits: vec![0, 0],
//! };
//! let kind = LineKind { capacity_bits: 10, hops_ps: 0, is_host: false };
//! let line = Line {
//!     pieces: vec![piece; 4], kinds: vec![kind.clone(), kind], devices: vec![0, 1], hop_ps: vec![vec![0, 1], vec![1, 0]], passing: vec![],
//!     schedule: Schedule::Serial, staging_blocks: 1,
//! };
//! let question = Question { objective: Objective::Latency, any_order: false, search_steps: 1_000 };
//! let plan = SummedLine::new(&line, &[])?.solve(&question)?;
//! assert_eq!((plan.value_ps, plan.is_proven()), (15, true));
//! assert_eq!(plan.runs.iter().map(|run| (run.device, run.from, run.to)).collect::<Vec<_>>(), [(0, 0, 2), (1, 2, 4)]);
//! # Ok::<(), planner_core::timed::LineFailure>(())
//! ```
//!
//! # Literature
//!
//! - A. Pınar, C. Aykanat, "Fast optimal load balancing algorithms for 1D partitioning", J. Parallel Distrib. Comput. 64, 2004: the
//!   longest run by trying limits, each followed by a value that some run takes.
//! - F. F. Yao, "Efficient dynamic programming using quadrangle inequalities", STOC 1980: best starts that never fall back.
//! - S. Martello, P. Toth, *Knapsack Problems*, 1990: the bound in parts, and branch and bound over bounded counts.

mod bounds;
mod check;
mod classes;
mod frontier;
mod latency;
#[cfg(test)]
mod methods_agree;
mod model;
mod orders;
mod pipeline;
mod rows;
mod runs;
mod search;
mod solve;
mod stage;
mod sums;
mod throughput;
mod ties;

pub use check::LineFailure;
pub use model::{
    Line, LineKind, MOST_PS, Objective, Passing, Piece, PieceWay, Question, Schedule, TimedPlan, TimedRun,
};
pub use solve::SummedLine;
pub use ties::Tie;
