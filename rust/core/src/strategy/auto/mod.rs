//! The `auto` strategy: as little offloaded as can be, and a certificate of how little that is.
//!
//! Objectives, each only among plans that are equal in those before: offloaded bits; bits on disk; returns to a device
//! along the execution order; the order of devices given; the fill. Stages: runs in the order given, runs in any order,
//! tied units at another member's place, units anywhere, and offloading. The search is limited by steps, so that the same
//! problem always gives the same plan.

mod arrange;
mod branch;
mod contiguous;
mod deficit;
mod fill;
mod line;
mod model;
mod offload;
mod packing;
mod plan;
mod preference;
mod scene;
mod shape;
mod solve;
mod steps;
mod stock;
mod streamers;
mod table;
mod ties;
mod window;

pub use deficit::shortfall;
pub use model::{
    Attempt, Certificate, Execute, Failure, Fill, Mode, Options, Solution, Stage, UNPLACED, Unit, Verdict,
};
pub use solve::solve;
