//! What is promised to take a time that grows as the rows do: reads of the tree are counted, on a nest and its double.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use crate::devices::{Device, SequentialOptions};
use crate::model::blocks::Blocks;
use crate::model::builder::TreeBuilder;
use crate::model::cutting::{BlockOptions, Granularity};
use crate::model::layout::Layout;
use crate::model::options::LayoutOptions;
use crate::model::repeated::Containers;
use crate::model::tree::{DType, Kind, Tensor, Tree, reads};
use crate::strategy::sequential::sequential;

/// A nest so many modules deep: each holds a leaf and the next.
fn nest(depth: usize, names: [&str; 2], classes: &[&str]) -> Tree {
    let mut builder = TreeBuilder::new();
    let byte = builder.dtype(DType { formula_bits: 8, stored_bits: 8, castable: true });
    for level in 0..depth {
        let class = classes[level % classes.len()];
        builder.enter(names[0], class).unwrap();
        let tensor = builder.tensor(Tensor { numel: 1, dtype: byte, opaque_bytes: None, width: 0 });
        builder.leaf("w", Kind::Parameter, tensor).unwrap();
        builder.leave();
        builder.enter(names[1], class).unwrap();
    }
    let tensor = builder.tensor(Tensor { numel: 1, dtype: byte, opaque_bytes: None, width: 0 });
    builder.leaf("w", Kind::Parameter, tensor).unwrap();
    builder.finish()
}

/// A nest in which each level is two modules of a class of its own, the second of which holds the next level; and a leaf
/// beside it.
fn distinct(depth: usize, beside: u64) -> Tree {
    let mut builder = TreeBuilder::new();
    let byte = builder.dtype(DType { formula_bits: 8, stored_bits: 8, castable: true });
    let leaf = |builder: &mut TreeBuilder, numel| {
        builder.enter("part", "Leaf").unwrap();
        let tensor = builder.tensor(Tensor { numel, dtype: byte, opaque_bytes: None, width: 0 });
        builder.leaf("w", Kind::Parameter, tensor).unwrap();
        builder.leave();
    };
    for level in 0..depth {
        let class = format!("Level{level}");
        builder.enter("left", &class).unwrap();
        leaf(&mut builder, 1);
        builder.leave();
        builder.enter("right", &class).unwrap();
    }
    leaf(&mut builder, 1);
    (0..depth).for_each(|_| builder.leave());
    leaf(&mut builder, beside);
    builder.finish()
}

/// Reads by a call on a tree, over those on one of half the depth.
fn growth(make: impl Fn(usize) -> Tree, call: impl Fn(&Layout)) -> f64 {
    let reads = |depth| {
        let tree = Arc::new(make(depth));
        let count = reads::during(|| call(&Layout::new(tree.clone(), LayoutOptions::default()).unwrap()));
        f64::from(u32::try_from(count).unwrap())
    };
    reads(800) / reads(400)
}

/// Nests whose names and classes lead to different answers of what repeats.
fn nests() -> Vec<Box<dyn Fn(usize) -> Tree>> {
    let mut nests: Vec<Box<dyn Fn(usize) -> Tree>> = vec![Box::new(|depth| distinct(depth, 1))];
    for names in [["0", "1"], ["one", "two"], ["experts", "0"]] {
        for classes in [&["Nest"] as &[&str], &["A", "B"], &["A", "B", "C"]] {
            nests.push(Box::new(move |depth| nest(depth, names, classes)));
        }
    }
    nests
}

/// The leaf beside the nest of many classes is so large that none of them gives way, each of which costs a walk.
#[test]
fn what_repeats_in_a_nest_is_found_in_linear_time() {
    let mut nests = nests();
    nests[0] = Box::new(|depth| distinct(depth, 100 * depth as u64));
    for (index, make) in nests.iter().enumerate() {
        let growth = growth(make, |layout| drop(layout.repeated(&Containers::default())));
        assert!(growth < 2.1, "nest {index}: twice as deep, {growth} times the reads");
    }
}

#[test]
fn a_nest_is_cut_in_linear_time() {
    for (index, make) in nests().iter().enumerate() {
        for granularity in [Granularity::Block, Granularity::Expert] {
            let growth = growth(make, |layout| {
                let tree = layout.tree();
                let deepest = (tree.rows()).filter(|&row| tree.is_module(row)).max().unwrap();
                Blocks::new(layout, &BlockOptions { no_split_rows: vec![deepest], granularity, ..Default::default() });
            });
            assert!(growth < 2.1, "nest {index}: twice as deep, {growth} times the reads");
        }
    }
}

#[test]
fn experts_without_tensors_of_their_own_are_found_in_linear_time() {
    let make = |depth| {
        let path = "experts.0.".repeat(depth);
        crate::testing::tree(&[&format!("block.{path}w 1")])
    };
    let options =
        |row| BlockOptions { no_split_rows: vec![row], granularity: Granularity::Expert, ..Default::default() };
    let growth = growth(make, |layout| drop(Blocks::new(layout, &options(1))));
    assert!(growth < 2.1, "twice as deep, {growth} times the reads");
}

#[test]
fn a_nest_is_planned_in_linear_time() {
    for (index, make) in nests().iter().enumerate() {
        for fallback in [false, true] {
            let growth = growth(make, |layout| {
                let half = layout.total_bits().cast_unsigned() / 16;
                let devices = [Device::accelerator(half, true), Device::cpu(half / 2, true), Device::unlimited_disk()];
                let options = SequentialOptions { fallback, ..Default::default() };
                let outcome = sequential(layout, &devices, &options).unwrap();
                assert!(outcome.placements.len() > layout.tree().len() / 8);
            });
            assert!(growth < 2.3, "nest {index}: twice as deep, {growth} times the reads"); // rows times their logarithm
        }
    }
}
