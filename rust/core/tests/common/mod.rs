//! Trees and problems in few words, for the tests of this crate; its unit tests read this file, too.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashMap;

use planner_core::auto::Unit;
use planner_core::{DType, Device, DeviceKind, Kind, Layout, LayoutOptions, Outcome, Tensor, Tree, TreeBuilder};

/// A tree from lines such as `M:Block.l0:Leaf.w 10`: modules with their classes (`Module` where none is said), a tensor,
/// and its bytes. A tensor called `~b` is a buffer; `@key` behind the bytes makes all tensors with that key one.
pub(crate) fn tree(lines: &[&str]) -> Tree {
    let mut builder = TreeBuilder::new();
    let byte = builder.dtype(DType { formula_bits: 8, stored_bits: 8, castable: true });
    let mut open: Vec<&str> = Vec::new();
    let mut tied: HashMap<&str, u32> = HashMap::new();
    for line in lines {
        let mut words = line.split(' ');
        let mut parts: Vec<&str> = words.next().unwrap().split('.').collect();
        let numel = words.next().unwrap().parse().unwrap();
        let tensor = Tensor { numel, dtype: byte, opaque_bytes: None, width: 0 };
        let name = parts.pop().unwrap();
        let common = open.iter().zip(&parts).take_while(|(one, other)| one == other).count();
        (common..open.len()).for_each(|_| builder.leave());
        open.truncate(common);
        for &part in &parts[common..] {
            let (name, class) = part.split_once(':').unwrap_or((part, "Module"));
            builder.enter(name, class).unwrap();
            open.push(part);
        }
        let id = match words.next() {
            Some(key) => *tied.entry(key).or_insert_with(|| builder.tensor(tensor)),
            None => builder.tensor(tensor),
        };
        match name.strip_prefix('~') {
            Some(name) => builder.leaf(name, Kind::Buffer, id).unwrap(),
            None => builder.leaf(name, Kind::Parameter, id).unwrap(),
        };
    }
    builder.finish()
}

/// A layout of such a tree in which some classes stay whole.
pub(crate) fn layout(lines: &[&str], no_split: &[&str]) -> Layout {
    let no_split_classes = no_split.iter().map(ToString::to_string).collect();
    Layout::new(tree(lines).into(), LayoutOptions { no_split_classes, ..Default::default() }).unwrap()
}

/// The row of a dotted name.
pub(crate) fn row(layout: &Layout, name: &str) -> u32 {
    layout.tree().resolve(&[name])[0].unwrap_or_else(|| panic!("there is no {name}"))
}

/// Accelerators with these budgets in bytes, a cpu, and a disk without limit. Room for the largest layer is kept on the
/// first accelerator and the cpu.
pub(crate) fn devices(accelerators: &[u64], cpu: u64) -> Vec<Device> {
    let mut devices: Vec<Device> =
        (0..).zip(accelerators).map(|(index, &bytes)| Device::accelerator(bytes, index == 0)).collect();
    devices.extend([Device::cpu(cpu, true), Device::unlimited_disk()]);
    devices
}

/// What was placed, in order: `name=device`, where the device is `cpu`, `disk` or the number of an accelerator.
pub(crate) fn placed(layout: &Layout, devices: &[Device], outcome: &Outcome) -> String {
    let word = |device: u32| match devices[device as usize].kind {
        DeviceKind::Accelerator => device.to_string(),
        DeviceKind::Cpu => "cpu".to_string(),
        DeviceKind::Disk => "disk".to_string(),
    };
    let words = outcome.placements.iter().map(|p| format!("{}={}", layout.tree().full_name(p.node), word(p.device)));
    words.collect::<Vec<String>>().join(" ")
}

/// Units of one block each that may lie everywhere, by size, in execution order.
pub(crate) fn units(sizes: &[u64]) -> Vec<Unit> {
    let unit = |(position, &bits): (u32, &u64)| Unit {
        bits,
        block_bits: vec![bits],
        positions: vec![position],
        buffers_only: false,
        allowed_devices: u64::MAX,
    };
    (0..).zip(sizes).map(unit).collect()
}
