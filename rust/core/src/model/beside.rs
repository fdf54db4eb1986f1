//! Several models below one root, which is of none of them.

use crate::error::Error;
use crate::ids::{NodeId, dtype_at, id_at};
use crate::model::builder::TreeBuilder;
use crate::model::tree::{Tensor, Tree};

/// A tree whose children are whole models, by name and in order; their tensors stay their own.
///
/// # Errors
///
/// [`Error::TreeTooLarge`] when there are 30 million rows.
///
/// # Cost
///
/// O(rows).
///
/// ```
/// use planner_core::{DType, Kind, Tensor, TreeBuilder, beside};
///
/// let mut builder = TreeBuilder::new();
/// let half = builder.dtype(DType { formula_bits: 16, stored_bits: 16, castable: true });
/// let tensor = builder.tensor(Tensor { numel: 3, dtype: half, opaque_bytes: None, width: 0 });
/// builder.leaf("w", Kind::Parameter, tensor)?;
/// let model = builder.finish();
/// let both = beside("Pipeline", &[("unet".to_string(), &model), ("vae".to_string(), &model)])?;
/// let names: Vec<_> = both.rows().map(|row| both.full_name(row)).collect();
/// assert_eq!((names, both.tensor_count()), (["", "unet", "unet.w", "vae", "vae.w"].map(String::from).to_vec(), 2));
/// # Ok::<(), planner_core::Error>(())
/// ```
pub fn beside(class: &str, models: &[(String, &Tree)]) -> Result<Tree, Error> {
    let mut builder = TreeBuilder::new();
    builder.root_class(class);
    for (name, model) in models {
        add(&mut builder, name, model)?;
    }
    Ok(builder.finish())
}

fn add(builder: &mut TreeBuilder, name: &str, model: &Tree) -> Result<(), Error> {
    let dtypes: Vec<_> = model.dtypes.iter().map(|&dtype| builder.dtype(dtype)).collect();
    let dtype_of = |tensor: &Tensor| dtypes.get(usize::from(tensor.dtype)).copied().unwrap_or(dtype_at(0));
    let tensors: Vec<_> =
        model.tensors.iter().map(|tensor| builder.tensor(Tensor { dtype: dtype_of(tensor), ..*tensor })).collect();
    let root = builder.enter(name, model.class_name(0).unwrap_or_default())?;
    let mut open: Vec<NodeId> = Vec::new();
    for node in model.rows().skip(1) {
        while open.last().is_some_and(|&module| model.end(module) <= node) {
            open.pop();
            builder.leave();
        }
        if let Some(id) = model.tensor_id(node) {
            builder.leaf(model.local_name(node), model.kind(node), tensors[id as usize])?;
        } else {
            builder.enter(model.local_name(node), model.class_name(node).unwrap_or_default())?;
            open.push(node);
        }
    }
    for &(alias, original) in model.aliases() {
        builder.alias(root + alias, root + original);
    }
    // What is still open, and the model itself.
    for _ in 0..=open.len() {
        builder.leave();
    }
    debug_assert_eq!(id_at(builder.row_count()), root + id_at(model.len()));
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::beside;
    use crate::model::builder::TreeBuilder;
    use crate::model::tree::{DType, Kind, Tensor, Tree};

    /// A module with a tensor in another one, and one that is tied to it behind.
    fn model(bits: u64) -> Tree {
        let mut builder = TreeBuilder::new();
        builder.root_class("Model");
        let dtype = builder.dtype(DType { formula_bits: bits, stored_bits: bits, castable: true });
        let tensor = builder.tensor(Tensor { numel: 2, dtype, opaque_bytes: None, width: 0 });
        builder.enter("a", "A").unwrap();
        builder.enter("b", "B").unwrap();
        builder.leaf("w", Kind::Parameter, tensor).unwrap();
        builder.leave();
        builder.leave();
        builder.leaf("tied", Kind::Buffer, tensor).unwrap();
        builder.finish()
    }

    #[test]
    fn models_keep_their_rows_types_and_ties() {
        let (first, second) = (model(8), model(32));
        let both = beside("Both", &[("x".to_string(), &first), ("y".to_string(), &second)]).unwrap();
        let rows: Vec<_> = both.rows().map(|row| (both.full_name(row), both.tensor_id(row))).collect();
        let expected = [
            ("", None),
            ("x", None),
            ("x.a", None),
            ("x.a.b", None),
            ("x.a.b.w", Some(0)),
            ("x.tied", Some(0)),
            ("y", None),
            ("y.a", None),
            ("y.a.b", None),
            ("y.a.b.w", Some(1)),
            ("y.tied", Some(1)),
        ];
        assert_eq!(rows, expected.map(|(name, id)| (name.to_string(), id)));
        assert_eq!([0, 1].map(|id| both.tensor(id).1.stored_bits), [8, 32]);
        assert_eq!(
            (both.class_name(0), both.class_name(6), both.kind(10)),
            (Some("Both"), Some("Model"), Kind::Buffer)
        );
        assert_eq!([1, 2, 6].map(|row| both.end(row)), [6, 5, 11]);
    }
}
