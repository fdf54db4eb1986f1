//! Random trees and budgets: what must hold for every plan.
#![allow(clippy::unwrap_used, clippy::panic)]
#![allow(clippy::cast_possible_truncation)] // small numbers are drawn

use std::collections::{HashMap, HashSet};

use planner_core::{
    Cast, DType, Device, Error, Explicit, Kind, Layout, LayoutOptions, NodeId, Outcome, Reserve, SequentialOptions,
    Tensor, Tied, Tree, TreeBuilder, clean_nodes, sequential, with_aliases,
};
use proptest::prelude::*;

const CLASSES: [&str; 3] = ["Leaf", "Block", "Other"];

/// One instruction of a random walk: enter a module, add a tensor (new, or one that exists), leave.
#[derive(Debug, Clone)]
enum Step {
    Enter(usize),
    Tensor { elements: u64, reuse: Option<prop::sample::Index>, is_buffer: bool },
    Leave,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..3usize).prop_map(Step::Enter),
        4 => (0..20u64, prop::option::weighted(0.25, any::<prop::sample::Index>()), prop::bool::weighted(0.2))
            .prop_map(|(elements, reuse, is_buffer)| Step::Tensor { elements, reuse, is_buffer }),
        3 => Just(Step::Leave),
    ]
}

/// Follows the steps; tensors of a module are added when it is left, parameters first, as the walk over a model does.
fn grow(steps: &[Step]) -> Tree {
    let mut builder = TreeBuilder::new();
    let types = [
        builder.dtype(DType { formula_bits: 32, stored_bits: 32, castable: true }),
        builder.dtype(DType { formula_bits: 1, stored_bits: 8, castable: false }),
    ];
    let mut tensors = Vec::new();
    let mut names = 0;
    grow_module(&mut builder, &mut steps.iter(), types, &mut tensors, &mut names, 0);
    builder.finish()
}

fn grow_module(
    builder: &mut TreeBuilder,
    steps: &mut std::slice::Iter<Step>,
    types: [u16; 2],
    tensors: &mut Vec<u32>,
    names: &mut u32,
    depth: usize,
) {
    let mut buffers = Vec::new();
    let mut has_children = false;
    while let Some(step) = steps.next() {
        *names += 1;
        match step {
            Step::Enter(class) if depth < 5 => {
                has_children = true;
                builder.enter(&format!("m{names}"), CLASSES[*class]).unwrap();
                grow_module(builder, steps, types, tensors, names, depth + 1);
                builder.leave();
            }
            Step::Leave if depth > 0 => break,
            Step::Tensor { elements, reuse, is_buffer } => {
                let id = match reuse {
                    Some(index) if !tensors.is_empty() => tensors[index.index(tensors.len())],
                    _ => {
                        let dtype = types[(*elements as usize) % 2];
                        let id = builder.tensor(Tensor { numel: *elements, dtype, opaque_bytes: None, width: 0 });
                        tensors.push(id);
                        id
                    }
                };
                if *is_buffer || has_children {
                    buffers.push((*names, id));
                } else {
                    builder.leaf(&format!("p{names}"), Kind::Parameter, id).unwrap();
                }
            }
            _ => {}
        }
    }
    for (name, id) in buffers {
        builder.leaf(&format!("b{name}"), Kind::Buffer, id).unwrap();
    }
}

fn devices() -> impl Strategy<Value = Vec<Device>> {
    (prop::collection::vec(0..400u64, 0..4), prop::option::of(0..400u64)).prop_map(|(budgets, cpu)| {
        let mut devices: Vec<Device> =
            budgets.iter().enumerate().map(|(index, &bytes)| Device::accelerator(bytes, index == 0)).collect();
        devices.extend(cpu.map(|bytes| Device::cpu(bytes, true)));
        devices.push(Device::unlimited_disk());
        devices
    })
}

fn options() -> impl Strategy<Value = SequentialOptions> {
    (any::<bool>(), any::<bool>()).prop_map(|(fallback, twice)| SequentialOptions {
        fallback,
        reserve: if twice { Reserve::IfOffloaded } else { Reserve::Always },
    })
}

/// Every row has a device, shared tensors have one, budgets hold: recounted from the placements alone.
fn assert_valid(layout: &Layout, outcome: &Outcome, devices: &[Device]) {
    let tree = layout.tree();
    let entries = with_aliases(tree, &outcome.placements);
    let mut device_of = vec![u32::MAX; tree.len()];
    for &(node, device) in &entries {
        for row in node..tree.end(node) {
            assert_eq!(device_of[row as usize], u32::MAX, "row {row} is placed twice");
            device_of[row as usize] = device;
        }
    }
    let mut home: HashMap<u32, u32> = HashMap::new();
    let mut used = vec![0i64; devices.len()];
    for row in 1..tree.len() as NodeId {
        let Some(id) = tree.tensor_id(row) else { continue };
        let device = device_of[row as usize];
        assert_ne!(device, u32::MAX, "row {row} has no device");
        if *home.entry(id).or_insert_with(|| {
            used[device as usize] += layout.planned_bits(id);
            device
        }) != device
        {
            panic!("tensor {id} lies on two devices");
        }
    }
    for (index, device) in devices.iter().enumerate() {
        if let Some(budget) = device.capacity_bits {
            assert!(used[index] <= budget.cast_signed(), "device {index} holds {} of {budget} bits", used[index]);
        }
        assert_eq!(outcome.usage[index].used_bits, used[index], "the ledger counts otherwise");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_plan_covers_the_tree_keeps_ties_and_stays_within_budgets(
        steps in prop::collection::vec(step(), 1..60), devices in devices(), options in options(), no_split in any::<bool>(),
    ) {
        let no_split_classes = if no_split { vec!["Block".to_string()] } else { Vec::new() };
        let layout = Layout::new(grow(&steps).into(), LayoutOptions { no_split_classes, ..Default::default() }).unwrap();
        let outcome = sequential(&layout, &devices, &options).unwrap();
        assert_valid(&layout, &outcome, &devices);
    }

    #[test]
    fn no_split_blocks_stay_whole(steps in prop::collection::vec(step(), 1..60), devices in devices()) {
        let no_split_classes = vec!["Block".to_string()];
        let layout = Layout::new(grow(&steps).into(), LayoutOptions { no_split_classes, ..Default::default() }).unwrap();
        let outcome = sequential(&layout, &devices, &SequentialOptions::default()).unwrap();
        let tree = layout.tree();
        for placement in &outcome.placements {
            let mut above = placement.node;
            while tree.parent(above) != 0 {
                above = tree.parent(above);
                prop_assert_ne!(tree.class_name(above), Some("Block"), "{} was split", tree.full_name(above));
            }
        }
    }

    #[test]
    fn the_same_problem_gives_the_same_plan(steps in prop::collection::vec(step(), 1..40), devices in devices(), options in options()) {
        let plan = || {
            let layout = Layout::new(grow(&steps).into(), LayoutOptions::default()).unwrap();
            sequential(&layout, &devices, &options).unwrap()
        };
        prop_assert_eq!(plan(), plan());
    }

    #[test]
    fn grouping_keys_changes_no_row(steps in prop::collection::vec(step(), 1..60), devices in devices()) {
        let layout = Layout::new(grow(&steps).into(), LayoutOptions::default()).unwrap();
        let outcome = sequential(&layout, &devices, &SequentialOptions::default()).unwrap();
        let tree = layout.tree();
        let spread = |entries: &[(NodeId, u32)]| {
            let mut device_of = vec![u32::MAX; tree.len()];
            for &(node, device) in entries {
                (node..tree.end(node)).for_each(|row| device_of[row as usize] = device);
            }
            (0..tree.len()).filter(|&row| !tree.is_module(row as NodeId)).map(|row| device_of[row]).collect::<Vec<_>>()
        };
        let plain = with_aliases(tree, &outcome.placements);
        let cleaned = clean_nodes(tree, &plain);
        prop_assert!(cleaned.len() <= plain.len());
        prop_assert_eq!(spread(&plain), spread(&cleaned));
        prop_assert_eq!(clean_nodes(tree, &cleaned).into_iter().collect::<HashSet<_>>(), cleaned.into_iter().collect());
    }

    #[test]
    fn names_lead_back_to_their_rows(steps in prop::collection::vec(step(), 1..60)) {
        let tree = grow(&steps);
        let names: Vec<String> = (0..tree.len() as NodeId).map(|node| tree.full_name(node)).collect();
        let rows: Vec<Option<NodeId>> = (0..tree.len() as NodeId).map(Some).collect();
        prop_assert_eq!(tree.resolve(&names), rows);
        prop_assert_eq!(tree.resolve(&["nothing", "m1.nothing", "."]), vec![None; 3]);
    }

    #[test]
    fn more_than_everything_needs_no_reservation(steps in prop::collection::vec(step(), 1..60)) {
        let layout = Layout::new(grow(&steps).into(), LayoutOptions::default()).unwrap();
        let devices = [Device::accelerator(1 << 40, true), Device::unlimited_disk()];
        let outcome = sequential(&layout, &devices, &SequentialOptions::default()).unwrap();
        prop_assert!(outcome.placements.iter().all(|placement| placement.device == 0));
        prop_assert!(outcome.empty_devices().is_empty());
    }
}

#[test]
fn a_named_disk_budget_is_kept_or_refused_with_the_shortfall() {
    let mut builder = TreeBuilder::new();
    let byte = builder.dtype(DType { formula_bits: 8, stored_bits: 8, castable: true });
    for name in ["a", "b"] {
        builder.enter(name, "Leaf").unwrap();
        let tensor = builder.tensor(Tensor { numel: 10, dtype: byte, opaque_bytes: None, width: 0 });
        builder.leaf("w", Kind::Parameter, tensor).unwrap();
        builder.leave();
    }
    let layout = Layout::new(builder.finish().into(), LayoutOptions::default()).unwrap();
    let mut disk = Device::unlimited_disk();
    disk.capacity_bits = Some(15 * 8);
    let error = sequential(&layout, &[Device::accelerator(1, true), disk], &SequentialOptions::default()).unwrap_err();
    let Error::Exhausted { node, device, shortfall_bits, placed } = error else { panic!("{error}") };
    assert_eq!((layout.tree().full_name(node).as_str(), device, shortfall_bits), ("b", 1, 5 * 8));
    assert_eq!(placed.len(), 1);
}

#[test]
fn sizes_that_overflow_are_an_error_not_a_wrap() {
    let mut builder = TreeBuilder::new();
    let double = builder.dtype(DType { formula_bits: 64, stored_bits: 64, castable: true });
    let tensor = builder.tensor(Tensor { numel: u64::MAX / 2, dtype: double, opaque_bytes: None, width: 0 });
    builder.leaf("w", Kind::Parameter, tensor).unwrap();
    let error = Layout::new(builder.finish().into(), LayoutOptions::default()).unwrap_err();
    assert!(matches!(error, Error::SizeOverflow { node: 1, .. }), "{error}");
}

#[test]
fn an_upcast_and_sizes_said_from_outside_count_as_stored() {
    let mut builder = TreeBuilder::new();
    let half = builder.dtype(DType { formula_bits: 16, stored_bits: 16, castable: true });
    for name in ["a", "b"] {
        let tensor = builder.tensor(Tensor { numel: 4, dtype: half, opaque_bytes: None, width: 0 });
        builder.leaf(name, Kind::Parameter, tensor).unwrap();
    }
    let options = LayoutOptions {
        cast: Some(Cast { formula_bits: 32, planned_bits: 32 }),
        explicit: vec![Explicit { node: 2, formula_bits: 8, planned_bits: 12 }],
        ..Default::default()
    };
    let layout = Layout::new(builder.finish().into(), options).unwrap();
    assert_eq!((layout.planned_bits(0), layout.planned_bits(1)), (128, 12));
    assert_eq!(layout.formula_bits(0), 64 + 8); // the formula never counts an upcast
}

#[test]
fn names_said_to_be_tied_share_a_device_though_they_are_two_objects() {
    let mut builder = TreeBuilder::new();
    let byte = builder.dtype(DType { formula_bits: 8, stored_bits: 8, castable: true });
    for (name, numel) in [("first", 6), ("middle", 6), ("last", 6)] {
        builder.enter(name, "Leaf").unwrap();
        let tensor = builder.tensor(Tensor { numel, dtype: byte, opaque_bytes: None, width: 0 });
        builder.leaf("w", Kind::Parameter, tensor).unwrap();
        builder.leave();
    }
    let tree = builder.finish();
    let tied = tree.resolve(&["first.w", "last.w"]).into_iter().flatten().collect();
    let options =
        LayoutOptions { tied: Tied::Named { groups: vec![tied], uncounted: Vec::new() }, ..Default::default() };
    let layout = Layout::new(tree.into(), options).unwrap();
    let devices = [Device::accelerator(7, false), Device::accelerator(7, false), Device::unlimited_disk()];
    let outcome = sequential(&layout, &devices, &SequentialOptions::default()).unwrap();
    let homes: HashMap<String, u32> =
        outcome.placements.iter().map(|p| (layout.tree().full_name(p.node), p.device)).collect();
    assert_eq!(homes["first"], homes["last"]);
    assert_eq!(outcome.usage[homes["first"] as usize].used_bits, 6 * 8);
}
