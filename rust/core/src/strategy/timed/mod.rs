//! Plans by time: pieces in execution order to devices, so that a step, its slowest part or a pipeline takes least.

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
pub use model::{Line, LineKind, MOST_PS, Objective, Piece, PieceWay, Question, Schedule, TimedPlan, TimedRun};
pub use solve::SummedLine;
pub use ties::Tie;
