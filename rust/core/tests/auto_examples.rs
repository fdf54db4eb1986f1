//! The `auto` strategy on models of a few blocks: those of `docs/planning.md`, and one for each rule and stage.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{devices, layout};
use planner_core::auto::{Execute, Failure, Fill, Mode, Options, Solution, Stage, Unit, solve};
use planner_core::{BlockOptions, Blocks, Device, DeviceKind};

const NO_SPLIT: &[&str] = &["Layer"];

/// Embedding and head of the same size around some layers.
fn model(layers: usize, layer: u64, ends: u64) -> Vec<String> {
    let mut lines = vec![format!("embed.w {ends}")];
    lines.extend((0..layers).map(|index| format!("layers.{index}:Layer.w {layer}")));
    lines.push(format!("head.w {ends}"));
    lines
}

/// The devices of the blocks, in execution order, and the solution.
fn plan(lines: &[String], accelerators: &[u64], cpu: u64, options: &Options) -> Result<(String, Solution), Failure> {
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let layout = layout(&lines, NO_SPLIT);
    let blocks = Blocks::new(&layout, &BlockOptions::default());
    let units: Vec<Unit> = blocks.units.iter().map(Unit::from).collect();
    let options = Options { siblings: blocks.siblings.clone(), ..options.clone() };
    let devices = devices(accelerators, cpu);
    let solution = solve(&units, &devices, &options)?;
    let home = |position: u32| {
        let device = solution.home[blocks.unit_at(position) as usize];
        match devices[device as usize].kind {
            DeviceKind::Accelerator => device.to_string(),
            DeviceKind::Cpu => "cpu".to_string(),
            DeviceKind::Disk => "disk".to_string(),
        }
    };
    let homes: Vec<String> = (0..).take(blocks.blocks.len()).map(home).collect();
    Ok((homes.join(" "), solution))
}

fn homes(lines: &[&str], accelerators: &[u64], cpu: u64, options: &Options) -> String {
    let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
    plan(&lines, accelerators, cpu, options).unwrap().0
}

/// Layers, their size and that of the ends, budgets of the accelerators; devices by block, bytes offloaded, and the stage.
type Row = (usize, u64, u64, &'static [u64], &'static str, u64, Stage);

/// The table of `docs/planning.md`, where `auto` and accelerate's strategies stand side by side.
#[test]
fn the_table_of_the_documentation() {
    let table: [Row; 7] = [
        (8, 40, 20, &[200, 180], "0 0 0 0 0 1 1 1 1 1", 0, Stage::InOrder),
        (4, 40, 20, &[100, 100], "0 0 0 1 1 1", 0, Stage::InOrder),
        (6, 40, 20, &[100, 200], "0 0 0 1 1 1 1 1", 0, Stage::InOrder),
        (4, 40, 100, &[100, 100, 160], "0 2 2 2 2 1", 0, Stage::OtherOrder),
        (4, 40, 100, &[210, 170], "0 1 1 1 1 0", 0, Stage::Scattered),
        (8, 40, 20, &[200, 100], "1 1 1 cpu cpu 0 0 0 0 cpu", 100, Stage::Offload),
        (8, 40, 20, &[40, 40], "1 cpu cpu cpu cpu cpu cpu cpu cpu 1", 320, Stage::Offload),
    ];
    for (layers, layer, ends, accelerators, expected, offloaded, stage) in table {
        let (homes, solution) = plan(&model(layers, layer, ends), accelerators, 1024, &Options::default()).unwrap();
        let found = (homes.as_str(), solution.offloaded_bits / 8, solution.certificate.stage);
        assert_eq!(found, (expected, offloaded, stage), "{layers} × {layer} between {ends} on {accelerators:?}");
        assert!(solution.certificate.proven);
    }
}

/// The plans on which `tests/unit/test_plan.py` rests.
#[test]
fn plans_of_the_unit_tests() {
    let mut lines = model(4, 20, 10);
    lines[5] = "head.w 30".to_string();
    let (homes, solution) = plan(&lines, &[50, 70], 500, &Options::default()).unwrap();
    assert_eq!((homes.as_str(), solution.offloaded_bits), ("0 0 0 1 1 1", 0));
    let (homes, solution) = plan(&lines, &[70], 40, &Options::default()).unwrap();
    assert_eq!((solution.offloaded_bits / 8, solution.disk_bits / 8), (70, 30), "{homes}");
    assert_eq!(solution.reserved_bits[0] / 8, 20, "{homes}");
}

#[test]
fn siblings_stay_together_where_that_costs_nothing() {
    let lines = ["word.w 120", "position.w 20", "layers.0:Layer.w 40", "layers.1:Layer.w 40"];
    assert_eq!(homes(&lines, &[200, 200], 1000, &Options::default()), "0 0 1 1");
    assert_eq!(homes(&lines, &[120, 100], 1000, &Options::default()), "0 1 1 1", "where it costs, they do not");
}

#[test]
fn tied_blocks_have_one_home_and_count_once() {
    let lines = ["embed.w 30 @e", "layers.0:Layer.w 40", "layers.1:Layer.w 40", "head.w 30 @e"];
    assert_eq!(homes(&lines, &[110], 1000, &Options::default()), "0 0 0 0");
    assert_eq!(homes(&lines, &[70, 40], 1000, &Options::default()), "0 0 1 0");
}

#[test]
fn fills() {
    let lines = ["a:Layer.w 10", "b:Layer.w 10", "c:Layer.w 10", "d:Layer.w 10"];
    let fill = |fill| homes(&lines, &[30, 30, 30], 0, &Options { fill, ..Options::default() });
    assert_eq!(fill(Fill::Even), "0 1 1 2");
    assert_eq!(fill(Fill::Fewest), "0 0 1 1");
    assert_eq!(fill(Fill::InOrder), "0 0 0 1");
}

#[test]
fn what_offloads_and_what_does_not() {
    let lines: Vec<String> = model(4, 40, 20);
    let mut options = Options { execute_offloaded: Execute::Cpu, ..Options::default() };
    let (homes, solution) = plan(&lines, &[140], 1000, &options).unwrap();
    assert_eq!((solution.offloaded_bits / 8, &*solution.reserved_bits), (60, [0, 0, 0].as_slice()), "{homes}");
    options.execute_offloaded = Execute::Accelerator;
    let (homes, solution) = plan(&lines, &[140], 1000, &options).unwrap();
    assert_eq!((solution.offloaded_bits / 8, solution.reserved_bits[0] / 8), (100, 40), "{homes}");
    let (homes, solution) = plan(&lines, &[140], 40, &options).unwrap();
    assert_eq!((solution.offloaded_bits / 8, solution.disk_bits / 8), (100, 60), "{homes}");
    options.mode = Mode::NoDisk;
    assert!(matches!(plan(&lines, &[140], 40, &options), Err(Failure::Infeasible { is_proven: true, .. })));
    options.mode = Mode::GpuOnly;
    assert!(matches!(plan(&lines, &[199], 1000, &options), Err(Failure::Infeasible { unit: 5, .. })));
}

/// Best fit gives 11 + 11 and 5 + 5 + 6 + 6; as a run would have it, one card takes 5 + 11 + 5, and returns once instead of
/// twice.
#[test]
fn packings_are_reshaped_to_runs() {
    let lines: Vec<String> = [11, 5, 11, 5, 6, 6].iter().zip('a'..).map(|(n, name)| format!("{name}.w {n}")).collect();
    let (homes, solution) = plan(&lines, &[23, 23], 88, &Options::default()).unwrap();
    assert_eq!((homes.as_str(), solution.certificate.stage), ("1 0 0 0 1 1", Stage::Scattered));
    assert_eq!(solution.certificate.returns, 1);
}

/// Reshaping takes steps, and with few of them it may come to nothing: what is arranged without it is not lost by that.
#[test]
fn reshaping_never_costs_a_plan_that_was_found() {
    let sizes = [3, 4, 7, 4, 7, 4, 7, 3, 3];
    let mut units = common::units(&sizes);
    (units[5].buffers_only, units[6].block_bits) = (true, vec![0]);
    let device = |kind, bits| Device { kind, capacity_bits: Some(bits), pool: None, is_main: false };
    let mut devices = vec![device(DeviceKind::Accelerator, 13); 3];
    devices.extend([device(DeviceKind::Cpu, 84), device(DeviceKind::Disk, 85)]);
    let options = Options { fill: Fill::InOrder, search_steps: 300, ..Options::default() };
    let solution = solve(&units, &devices, &options).unwrap();
    assert_eq!((solution.offloaded_bits, solution.certificate.returns), (7, 1));
}

/// The reshaped packing returns as seldom, with the first block offloaded, and having that at home then takes one more
/// return than the packing as it was found.
#[test]
fn a_plan_passed_over_is_kept_for_its_first_block() {
    let sizes = [9, 9, 2, 9, 2, 9, 9, 2, 9, 9];
    let mut units = common::units(&sizes);
    for (unit, block) in units.iter_mut().zip([9, 7, 2, 9, 2, 9, 7, 2, 3, 9]) {
        unit.block_bits = vec![block];
    }
    let card = |bits| Device { kind: DeviceKind::Accelerator, capacity_bits: Some(bits), pool: None, is_main: false };
    let cpu = Device { kind: DeviceKind::Cpu, capacity_bits: None, pool: None, is_main: false };
    let options = Options { mode: Mode::NoDisk, ..Options::default() };
    let solution = solve(&units, &[card(22), card(28), card(2), cpu], &options).unwrap();
    assert_eq!((solution.offloaded_bits, solution.certificate.returns), (27, 2));
    assert!(solution.home[0] < 3, "the first block is on an accelerator");
}

/// The second card alone holds anything, and a loader streams to the card that holds something.
#[test]
fn what_is_offloaded_runs_on_the_first_device_that_holds_anything_where_that_is_free() {
    let sizes = common::units(&[4 * 8; 8]);
    let streaming = |cards: [u64; 2], main_order: &[u32]| {
        let options = Options { main_order: main_order.to_vec(), ..Options::default() };
        let solution = solve(&sizes, &devices(&cards, 80), &options).unwrap();
        let streams: Vec<bool> = solution.reserved_bits[..2].iter().map(|&bits| bits > 0).collect();
        (streams, solution.offloaded_bits / 8, solution.map_is_enough)
    };
    let bytes = |cards: [u64; 2]| cards.map(|card| card * 4);
    assert_eq!(streaming(bytes([2, 4]), &[]), (vec![true, false], 12, true));
    assert_eq!(streaming(bytes([2, 4]), &[1, 0]), (vec![false, true], 12, true));
    assert_eq!(streaming([3, 16], &[]), (vec![false, true], 20, true), "no block fits on the first");
    assert_eq!(
        streaming([4, 16], &[]),
        (vec![false, true], 16, false),
        "a block that is streamed to the first fills it"
    );
}
