//! The `auto` strategy: as little offloaded as can be, and a certificate of how little that is.
//!
//! # The problem
//!
//! Given: units in execution order, each with a size, and devices with a capacity each. Every unit gets one home. A
//! unit whose home does not execute (the cpu beside accelerators, or the disk) is *offloaded*: it is streamed, block by
//! block, to an accelerator that keeps room for its largest block. Sought: the plan that offloads the fewest bits.
//!
//! Among plans that are equal in this, in this order: fewest bits on disk; homes that need no map of executing devices
//! beside them, because a loader streams to the very device that streams here; the first block at home on a device that
//! executes; siblings run by one device; fewest *returns* (changes of the executing device beyond those that its number
//! of devices needs); nearest to the order of devices given; filled as the options say. The offloading part is a
//! multiple subset sum problem, and so NP-hard; models are easy cases of it, because most of their units are alike.
//!
//! # The method
//!
//! 1. **Read** (`instance`). Devices become *bins* (they execute), at most one cpu and one disk (they hold). Units that
//!    differ in nothing but their place become a class with a count, so a model of 80 equal layers is a handful of
//!    numbers. An offloaded block that is larger than every accelerator is executed by the cpu, where there is one.
//! 2. **Runs** (`runs`). If nothing need be offloaded, each device should execute one run of consecutive units. With
//!    sums of sizes along the execution order the longest run from a place is found by halving, and without shared
//!    memory taking the longest run never hurts those after it. So an order of devices takes one halving per device,
//!    and all orders take a table over sets of devices: how far back the rest can be taken over by this set. Devices
//!    that are alike are counted, not told apart. After that come tied units at the place of another member
//!    (`tie_positions`). Units that fit on no bin at all are offloaded in every plan; then the runs are those of the
//!    others around them.
//! 3. **Bounds** (`packing::offload`). When runs do not do, some way of streaming has to be chosen: a bin and the
//!    largest block size that is streamed to it. One bin is enough: moving all streaming to the bin that streams the
//!    largest block does not grow the room kept there and frees that of the others. For a size, what is larger has to
//!    stay, and total − (joint capacity − room kept) has to go. This is a lower bound; candidates are taken by it and
//!    dropped once it exceeds the best.
//! 4. **Packing**. For each candidate left: how many units of each class on which bin, so that most bits stay. First
//!    best fit decreasing; where that misses the bound, a table over counts of all but the commonest class
//!    (`packing::table`), or, where the table would be too large, branch and bound (`packing::branch`). Both are exact
//!    if they end by themselves. `packing::tiers` divides what is offloaded between cpu and disk, by a subset sum of
//!    its own.
//! 5. **Shape**. Counts say nothing of which unit. `runs::offload_window` looks for a plan of this cost in which each
//!    device still executes one run, the offloaded units lying in the run of the staging device. If there is none,
//!    `packing::reshape` brings the counts near to runs and `packing::arrange` hands out the units in sweeps.
//! 6. **Preferences** (`preference`). The main device of a loader (`map_alone`), the first block and siblings are tried as
//!    constraints, with the cost found as a limit.
//! 7. **Failure** (`deficit`). If there is no plan: the least capacity that one device lacks, by halving over the
//!    search itself.
//!
//! Where running takes more than weights (`demands`), 2 counts caches and needs in each run, and `streaming` stands for 3 to 5:
//! there, what is said of one bin that is enough is false, and every bin may stream.
//!
//! Everything is limited by steps and by sizes of tables, never by time, so the same problem always gives the same
//! plan.
//!
//! # An example by hand
//!
//! An embedding of 4, six layers of 3 (22 together); accelerators of 9 and 10, a cpu with room for all.
//!
//! - *Runs.* In the order given the first accelerator takes 4 + 3 = 7 (another 3 makes 10 > 9) and the second 3 + 3 + 3
//!   = 9: the sixth unit is left over. No other order can do, since 9 + 10 = 19 < 22.
//! - *Bounds.* To stream nothing, all would have to stay: impossible. To stream blocks of 3 at most keeps 3 free: 22 −
//!   (19 − 3) = 6 have to go. To stream blocks of 4: 22 − (19 − 4) = 7. No plan offloads less than 6.
//! - *Packing.* Streaming blocks of 3 to the second accelerator leaves rooms of 9 and 7, and the embedding stays. Best
//!   fit puts it where it leaves least: 4 + 3 into the 7, 3 + 3 + 3 into the 9. Sixteen stay and six go, which is the
//!   bound: proven before any table is built.
//! - *Shape.* Two of the six layers are offloaded. Order given, streaming to the first: the second takes 9 from the
//!   end, the window is 4 + 3 + 3 + 3 = 13, more than the 9 − 3 + 6 that the first executes. Streaming to the second:
//!   the first reaches 7, the window weighs 15, more than 10 − 3 + 6 = 13. In the other order the second takes 4 + 3 +
//!   3 = 10, and the window of four layers weighs 12 = 9 − 3 + 6: each device has one run. The window ends the model,
//!   so its first two layers are those offloaded.
//!
//! ```
//! use planner_core::auto::{Options, Stage, Unit, solve};
//! use planner_core::{Device, DeviceKind};
//!
//! let unit = |(size, position)| {
//!     Unit { bits: size, block_bits: vec![size], positions: vec![position], buffers_only: false, allowed_devices: u64::MAX }
//! };
//! let units: Vec<Unit> = [4, 3, 3, 3, 3, 3, 3].into_iter().zip(0..).map(unit).collect();
//! let device = |kind, size| Device { kind, capacity_bits: Some(size), pool: None, is_main: false };
//! let accelerator = DeviceKind::Accelerator;
//! let devices = [device(accelerator, 9), device(accelerator, 10), device(DeviceKind::Cpu, 100)];
//! let solution = solve(&units, &devices, &Options::default())?;
//! assert_eq!(solution.home, [1, 1, 1, 2, 2, 0, 0]);
//! assert_eq!(solution.execution.concat(), [1, 1, 1, 0, 0, 0, 0]);
//! assert_eq!((solution.used_bits, solution.reserved_bits), (vec![6, 10, 6], vec![3, 0, 0]));
//! let certificate = solution.certificate;
//! assert_eq!((certificate.stage, certificate.lower_bound_bits, certificate.returns), (Stage::Offload, 6, 0));
//! assert!(certificate.proven);
//! # Ok::<(), planner_core::auto::Failure>(())
//! ```
//!
//! # What is proven and what is a heuristic
//!
//! - The lower bound on offloaded bits is true in any case: a candidate whose search was cut short counts with its
//!   bound of step 3. `proven` says that the bound is met; a failure's `is_proven` that every candidate's search ended
//!   without a plan.
//! - Bits on disk are exact for the packings looked at, but there is no certificate of them.
//! - Without shared memory, runs in the order given and in any order are exact. Where accelerators share memory, the
//!   longest run is a heuristic: when it fails, runs are excluded only if they would not fit with memory of their own.
//! - `returns_lower_bound` is 0 unless a complete search excluded plans without returns; beyond 1 nothing is ever
//!   proven.
//! - Heuristics, which prove nothing unless they meet the bound: best fit, other places of tied units beyond those
//!   tried, reshape and arrange, which of several packings of equal cost is arranged, siblings that hinder each other,
//!   the missing capacity when questions run out.
//!
//! # Literature
//!
//! - S. Martello, P. Toth, *Knapsack Problems*, 1990: the bound by total size, best fit decreasing, branch and bound
//!   over items in order of size. H. Kellerer, U. Pferschy, D. Pisinger, *Knapsack Problems*, 2004: subset sum, and
//!   several knapsacks at once.
//! - D. S. Hochbaum, D. B. Shmoys, "Using dual approximation algorithms for scheduling problems", J. ACM 34, 1987:
//!   tables over vectors of counts where there are few sizes.
//! - M. Held, R. M. Karp, "A dynamic programming approach to sequencing problems", 1962: tables over sets.
//! - A. Pınar, C. Aykanat, "Fast optimal load balancing algorithms for 1D partitioning", J. Parallel Distrib. Comput.
//!   64, 2004: runs by sums of sizes and halving, and the least peak by trying limits.

mod counts;
mod deficit;
mod demands;
mod instance;
mod map_alone;
mod packing;
mod plan;
mod preference;
mod problem;
mod rank;
mod runs;
mod search;
mod solve;
mod staging_devices;
mod streaming;

pub use deficit::shortfall;
pub use demands::Demands;
pub use problem::{Certificate, Execute, Failure, Fill, Mode, Options, Solution, Stage, UNPLACED, Unit, restricted};
pub use solve::{fits, solve};
