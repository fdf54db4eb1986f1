//! The `auto` strategy: as little offloaded as can be, and a certificate of how little that is.
//!
//! Objectives, each only among plans that are equal in those before: offloaded bits; bits on disk; returns to a device
//! along the execution order; the order of devices given; the fill. Stages: runs in the order given, runs in any order,
//! tied units at another member's place, units anywhere, and offloading. The search is limited by steps, so that the same
//! problem always gives the same plan.

mod deficit;
mod instance;
mod packing;
mod plan;
mod preference;
mod problem;
mod runs;
mod search;
mod solve;
mod staging_devices;
mod steps;

pub use deficit::shortfall;
pub use problem::{
    Attempt, Certificate, Execute, Failure, Fill, Mode, Options, Solution, Stage, UNPLACED, Unit, Verdict,
};
pub use solve::solve;
