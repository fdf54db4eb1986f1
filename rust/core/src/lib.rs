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
//!     let tensor = builder.tensor(Tensor { numel: bytes, dtype: byte, opaque_bytes: None, width: 0 });
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

#[cfg(test)]
extern crate self as planner_core;

mod checkpoint;
mod device_map;
mod devices;
mod error;
mod ids;
mod keys;
pub mod memory;
mod model;
mod names;
mod outcome;
mod sets;
mod strategy;
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod testing;

pub use checkpoint::assemble::{Named, assemble};
pub use checkpoint::live_names::{GeneralNames, LiveNames};
pub use checkpoint::outline::{Form, FormId, Outline, Slot};
pub use checkpoint::stored::{ElementType, Numbers, StoredTensor, tree_of_files};
pub use device_map::{clean, clean_keys, clean_nodes, keys_of_blocks, with_aliases};
pub use devices::{Device, DeviceKind, Reserve, SequentialOptions};
pub use error::Error;
pub use ids::{DTypeId, NodeId, TensorId};
pub use keys::KeyTrie;
pub use model::balance::{BalanceFacts, Counted};
pub use model::beside::beside;
pub use model::blocks::{BlockUnit, Blocks};
pub use model::builder::TreeBuilder;
pub use model::by_name::{NamedBlockOptions, NamedLayoutOptions, SpecialDtype};
pub use model::classes::{Base, ClassLine, WithoutForward, derived_classes};
pub use model::cover::{Needed, Uncovered};
pub use model::cutting::{BlockOptions, Granularity};
pub use model::layout::Layout;
pub use model::name_kinds::NameKind;
pub use model::options::{Cast, Dialect, Explicit, LayoutOptions, Tied};
pub use model::repeated::{Containers, Repeated};
pub use model::tree::{DType, Kind, Tensor, Tree};
pub use names::is_number;
pub use outcome::{Outcome, Placement, Reason, Rule, Usage};
pub use strategy::sequential::margin::Margin;
pub use strategy::sequential::{sequential, sequential_with_margin};
pub use strategy::{auto, timed};
