//! The `auto` strategy on known models, and its limits.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::cast_precision_loss, clippy::float_cmp)] // shares of small numbers, in figures

mod common;

use common::units;
use planner_core::auto::{Execute, Failure, Fill, Mode, Options, Stage, Unit, shortfall, solve};
use planner_core::{Device, DeviceKind};
use proptest::prelude::*;

const GIB: u64 = 8 << 30;
/// Bits of a layer and of the embedding of Llama-70B in bf16.
const LAYER: u64 = 855_654_400 * 16;
const EMBEDDING: u64 = 128_256 * 8_192 * 16;
const NORM: u64 = 8_192 * 16;

fn llama() -> Vec<Unit> {
    let mut sizes = vec![EMBEDDING];
    sizes.extend([LAYER; 80]);
    sizes.extend([NORM, EMBEDDING]);
    units(&sizes)
}

fn accelerators(gib: &[u64]) -> Vec<Device> {
    gib.iter()
        .map(|gib| Device { kind: DeviceKind::Accelerator, capacity_bits: Some(gib * GIB), pool: None, is_main: false })
        .collect()
}

fn with_cpu(mut devices: Vec<Device>, gib: u64) -> Vec<Device> {
    devices.push(Device { kind: DeviceKind::Cpu, capacity_bits: Some(gib * GIB), pool: None, is_main: false });
    devices
}

fn in_gib(bits: u64) -> f64 {
    (bits as f64 / GIB as f64 * 100.0).round() / 100.0
}

fn fills(sizes: &[u64], options: &Options) -> Vec<f64> {
    let used = solve(&llama(), &accelerators(sizes), options).unwrap().used_bits;
    used.into_iter().map(|bits| (bits as f64 / GIB as f64 * 10.0).round() / 10.0).collect()
}

#[test]
fn llama_offloads_the_least() {
    let devices = with_cpu(accelerators(&[80, 24]), 200);
    let solution = solve(&llama(), &devices, &Options::default()).unwrap();
    assert_eq!(in_gib(solution.offloaded_bits), 30.28);
    assert!(solution.certificate.proven);
    assert_eq!((solution.certificate.returns, solution.certificate.returns_lower_bound), (1, 1));
    assert_eq!(solution.home.iter().filter(|home| **home == 2).count(), 19);
    assert!(solution.certificate.steps < 10_000, "{}", solution.certificate.steps);

    let staged = Options { staging_blocks: 2, ..Options::default() };
    let solution = solve(&llama(), &devices, &staged).unwrap();
    assert_eq!(in_gib(solution.offloaded_bits), 31.88);
    assert!(solution.certificate.proven);

    let run_there = Options { execute_offloaded: Execute::Cpu, ..Options::default() };
    let solution = solve(&llama(), &devices, &run_there).unwrap();
    assert!(solution.certificate.proven && in_gib(solution.offloaded_bits) <= 28.7);
    assert!(solution.reserved_bits.iter().all(|&bits| bits == 0));
}

#[test]
fn llama_fills_evenly() {
    let even = Options::default();
    assert_eq!(fills(&[80, 80, 80, 80], &even), [32.2, 33.5, 33.5, 32.2]);
    assert_eq!(fills(&[80, 24, 24, 24], &even), [68.9, 20.7, 20.7, 21.1]);
    let fewest = Options { fill: Fill::Fewest, ..Options::default() };
    assert_eq!(fills(&[80, 80, 80, 80], &fewest), [65.7, 65.7, 0.0, 0.0]);
    assert_eq!(fills(&[24, 80, 80], &fewest)[0], 0.0);
    let in_order = Options { fill: Fill::InOrder, ..Options::default() };
    assert_eq!(fills(&[80, 80, 80, 80], &in_order), [78.5, 53.0, 0.0, 0.0]);
}

#[test]
fn what_is_pinned_elsewhere_leaves_the_rest_in_even_runs() {
    let mut units = llama();
    units[82].allowed_devices = 1 << 4;
    let solution = solve(&units, &with_cpu(accelerators(&[80, 80, 80, 80]), 200), &Options::default()).unwrap();
    // The device that streams what is pinned is the first one, because it is the one to which a loader streams.
    assert_eq!((solution.certificate.returns, solution.certificate.stage), (0, Stage::OtherOrder));
    assert_eq!((&solution.execution[82][..], solution.map_is_enough), (&[0][..], true));
    assert!(solution.used_bits[..4].iter().all(|&bits| bits < 34 * GIB && bits > 31 * GIB), "{:?}", solution.used_bits);
}

#[test]
fn offloaded_layers_lie_beside_the_run_of_their_device() {
    let devices = with_cpu(accelerators(&[24, 24]), 200);
    let solution = solve(&llama(), &devices, &Options::default()).unwrap();
    let changes = solution.home.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!(changes <= 3, "{:?}", solution.home);
    assert_eq!((solution.certificate.returns, solution.certificate.returns_lower_bound), (1, 1));
}

#[test]
fn stages_are_tried_in_turn() {
    let device = |bits| Device { kind: DeviceKind::Accelerator, capacity_bits: Some(bits), pool: None, is_main: false };
    let stage = |sizes: &[u64], devices: &[u64]| {
        let devices: Vec<Device> = devices.iter().map(|&bits| device(bits)).collect();
        solve(&units(sizes), &devices, &Options::default()).unwrap().certificate.stage
    };
    assert_eq!(stage(&[3, 3], &[3, 3]), Stage::InOrder);
    assert_eq!(stage(&[5, 3], &[3, 5]), Stage::OtherOrder);
    assert_eq!(stage(&[3, 2, 1], &[4, 2]), Stage::Scattered);
    let mut tied = units(&[3, 2, 1]);
    tied[0].positions = vec![0, 5];
    tied[0].block_bits = vec![tied[0].bits; 2];
    let solution = solve(&tied, &[device(3), device(3)], &Options::default()).unwrap();
    assert_eq!((solution.certificate.stage, solution.certificate.returns), (Stage::InOrder, 0));
    let mut tied = units(&[2, 2, 1, 1]);
    tied[0].positions = vec![0, 5];
    tied[0].block_bits = vec![tied[0].bits; 2];
    let solution = solve(&tied, &[device(3), device(3)], &Options::default()).unwrap();
    assert_eq!((solution.certificate.stage, solution.certificate.returns), (Stage::TiePosition, 1));
}

#[test]
fn what_is_above_every_card_runs_on_the_cpu() {
    let devices = with_cpu(accelerators(&[4, 4]), 64);
    let solution = solve(&units(&[GIB, 9 * GIB, GIB]), &devices, &Options::default()).unwrap();
    assert_eq!(solution.oversized, [None, Some(0), None]);
    assert_eq!((solution.home[1], solution.execution[1][0], solution.reserved_bits[0]), (2, 2, 0));
    assert_eq!(solution.offloaded_bits, 9 * GIB);
}

#[test]
fn unified_memory_is_counted_once() {
    let mut devices = with_cpu(accelerators(&[10]), 10);
    for device in &mut devices {
        device.pool = Some(0);
    }
    devices.push(Device { kind: DeviceKind::Disk, capacity_bits: None, pool: None, is_main: false });
    let options = Options { pools: vec![10 * GIB], ..Options::default() };
    let solution = solve(&units(&[2 * GIB; 8]), &devices, &options).unwrap();
    assert_eq!((solution.offloaded_bits, solution.disk_bits), (8 * GIB, 8 * GIB));
    assert!(solution.certificate.proven);
}

#[test]
fn infeasible_says_what_would_help() {
    let options = Options { mode: Mode::GpuOnly, ..Options::default() };
    let devices = with_cpu(accelerators(&[80, 24]), 200);
    let Err(Failure::Infeasible { more_bits, is_proven, unit, best_partial, .. }) = solve(&llama(), &devices, &options)
    else {
        panic!("it fits")
    };
    assert!(is_proven && best_partial[unit as usize] == u32::MAX);
    assert_eq!(more_bits, shortfall(&llama(), &devices, &Options::default()));
    let more: Vec<Option<f64>> = more_bits.iter().map(|more| more.map(in_gib)).collect();
    assert_eq!(more, [Some(27.51), Some(27.73), None]);
}

#[test]
fn too_many_devices_are_refused() {
    let failure = solve(&llama(), &accelerators(&[1; 65]), &Options::default());
    assert_eq!(failure, Err(Failure::TooManyDevices { count: 65 }));
    assert!(matches!(solve(&units(&[u64::MAX, 9]), &accelerators(&[1]), &Options::default()), Err(Failure::TooLarge)));
}

#[test]
fn nothing_to_place_or_nowhere_to_place_it() {
    assert!(solve(&[], &accelerators(&[1]), &Options::default()).unwrap().home.is_empty());
    assert!(solve(&[], &[], &Options::default()).unwrap().home.is_empty());
    assert!(matches!(solve(&units(&[1]), &[], &Options::default()), Err(Failure::Infeasible { is_proven: true, .. })));
    let disk = [Device { kind: DeviceKind::Disk, capacity_bits: None, pool: None, is_main: false }];
    assert!(matches!(solve(&units(&[1]), &disk, &Options::default()), Err(Failure::Infeasible { .. })));
}

/// The largest fraction in use of every way to cut the units into runs.
fn least_peak(sizes: &[u64], capacities: &[u64]) -> Option<f64> {
    let Some((&capacity, rest)) = capacities.split_first() else { return sizes.is_empty().then_some(0.0) };
    let ways = (0..=sizes.len()).filter_map(|end| {
        let used: u64 = sizes[..end].iter().sum();
        (used <= capacity)
            .then(|| least_peak(&sizes[end..], rest).map(|peak| peak.max(used as f64 / capacity as f64)))?
    });
    ways.min_by(f64::total_cmp)
}

proptest! {
    #[test]
    fn even_fill_has_the_least_peak(
        sizes in prop::collection::vec(1..40u64, 1..10),
        capacities in prop::collection::vec(1..200u64, 1..5),
    ) {
        let Some(peak) = least_peak(&sizes, &capacities) else { return Ok(()) };
        let device = |&bits: &u64| Device { kind: DeviceKind::Accelerator, capacity_bits: Some(bits), pool: None, is_main: false };
        let devices: Vec<Device> = capacities.iter().map(device).collect();
        let solution = solve(&units(&sizes), &devices, &Options::default()).unwrap();
        prop_assert_eq!(solution.certificate.stage, Stage::InOrder);
        let own = solution.used_bits.iter().zip(&capacities).map(|(&used, &of)| used as f64 / of as f64);
        prop_assert_eq!(own.fold(0.0, f64::max), peak);
    }

    /// The order of runs is the first, lexicographically, in which longest runs take all units.
    #[test]
    fn orders_are_nearest_to_the_one_given(
        sizes in prop::collection::vec(1..30u64, 4..9),
        capacities in prop::collection::vec(10..60u64, 2..5),
    ) {
        let device = |&bits: &u64| Device { kind: DeviceKind::Accelerator, capacity_bits: Some(bits), pool: None, is_main: false };
        let devices: Vec<Device> = capacities.iter().map(device).collect();
        let options = Options { fill: Fill::InOrder, ..Options::default() };
        let first = orders(capacities.len()).into_iter().find_map(|order| {
            let mut home = Vec::new();
            for device in order {
                let mut left = capacities[device];
                while let Some(&bits) = sizes.get(home.len()).filter(|bits| **bits <= left) {
                    left -= bits;
                    home.push(u32::try_from(device).unwrap());
                }
            }
            (home.len() == sizes.len()).then_some(home)
        });
        let answer = solve(&units(&sizes), &devices, &options);
        if let Some(home) = first {
            prop_assert_eq!(answer.unwrap().home, home);
        } else {
            prop_assert!(answer.map_or(true, |solution| solution.certificate.returns > 0));
        }
    }

    /// The limit of steps is kept, and what is found under it is a plan with honest bounds.
    #[test]
    fn few_steps_give_honest_bounds(
        sizes in prop::collection::vec(1..1_000_000u64, 10..60),
        capacities in prop::collection::vec(500_000..9_000_000u64, 1..6),
        search_steps in 0..3_000u64,
    ) {
        let mut devices: Vec<Device> = capacities
            .iter()
            .map(|&bits| Device { kind: DeviceKind::Accelerator, capacity_bits: Some(bits), pool: None, is_main: false })
            .collect();
        devices.push(Device { kind: DeviceKind::Cpu, capacity_bits: None, pool: None, is_main: false });
        let few = solve(&units(&sizes), &devices, &Options { search_steps, ..Options::default() });
        let many = solve(&units(&sizes), &devices, &Options::default());
        if let (Ok(few), Ok(many)) = (few, many) {
            prop_assert!(few.certificate.steps <= search_steps);
            prop_assert!(few.certificate.lower_bound_bits <= many.offloaded_bits);
            prop_assert!(many.certificate.lower_bound_bits <= few.offloaded_bits);
        }
    }
}

/// All orders of the first numbers, lexicographically.
fn orders(count: usize) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for _ in 0..count {
        let mut longer = Vec::new();
        for order in &all {
            for next in (0..count).filter(|next| !order.contains(next)) {
                longer.push(order.iter().copied().chain([next]).collect::<Vec<usize>>());
            }
        }
        all = longer;
    }
    all
}
