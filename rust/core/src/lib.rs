//! Device-map planning over a flattened module tree.
//!
//! The way of the data: a [`Tree`] (columns in preorder) and [`LayoutOptions`] give a [`Layout`] (sizes, blocks, ties:
//! everything that does not depend on budgets); a layout and [`Device`]s give an [`Outcome`] (placements, bytes, reasons).
//! Nothing here knows Python, files, clocks or logs; names stay with the tree and everything else works on node ids.
//!
//! ```
//! use planner_core::{Device, DType, Kind, Layout, LayoutOptions, SequentialOptions, Tensor, TreeBuilder, sequential};
//!
//! let mut builder = TreeBuilder::new();
//! let byte = builder.dtype(DType { formula_bits: 8, stored_bits: 8, castable: true });
//! for (name, bytes) in [("a", 2), ("b", 1), ("c", 3)] {
//!     builder.enter(name, "Leaf")?;
//!     let tensor = builder.tensor(Tensor { numel: bytes, dtype: byte, opaque_bytes: None });
//!     builder.leaf("w", Kind::Parameter, tensor)?;
//!     builder.leave();
//! }
//! let layout = Layout::new(builder.finish().into(), LayoutOptions::default())?;
//! let devices = [Device::accelerator(4, true), Device::cpu(6, true), Device::unlimited_disk()];
//! let outcome = sequential(&layout, &devices, &SequentialOptions { fallback: true, ..Default::default() })?;
//! let homes: Vec<_> = outcome.placements.iter().map(|p| (layout.tree().full_name(p.node), p.device)).collect();
//! assert_eq!(homes, [("b".to_string(), 0), ("a".to_string(), 1), ("c".to_string(), 1)]);
//! # Ok::<(), planner_core::Error>(())
//! ```

mod assemble;
mod balance;
mod bits;
mod blocks;
mod bonds;
mod device_map;
mod devices;
mod error;
mod frontier;
mod layout;
mod ledger;
mod names;
mod order;
mod outcome;
mod outline;
mod repeated;
mod sets;
mod strategy;
mod ties;
mod tree;

pub use assemble::{Named, assemble};
pub use balance::BalanceFacts;
pub use blocks::{BlockOptions, BlockUnit, Blocks, Granularity};
pub use device_map::{KeyTrie, clean, clean_nodes, with_twins};
pub use devices::{Device, DeviceKind, Reserve, SequentialOptions};
pub use error::Error;
pub use layout::{Cast, Dialect, Explicit, Layout, LayoutOptions, Tied};
pub use names::is_number;
pub use outcome::{Outcome, Placement, Reason, Rule, Usage};
pub use outline::{Form, FormId, Outline, Slot};
pub use repeated::{Containers, Repeated};
pub use strategy::auto;
pub use strategy::margin::Margin;
pub use strategy::sequential::{sequential, sequential_with_margin};
pub use tree::{DType, DTypeId, Kind, NodeId, Tensor, TensorId, Tree, TreeBuilder};
