//! How large tensors are: as stored, and by the dialects' formula.

use std::collections::{HashMap, HashSet};

use crate::devices::MOST_BITS;
use crate::error::Error;
use crate::ids::{NodeId, TensorId, id_at};
use crate::model::options::{Cast, Dialect, LayoutOptions, Tied};
use crate::model::tree::{DType, Kind, Tree};
use crate::sets::BitSet;

/// Bits of each tensor as stored, by id; those that are one are as large as the largest of them.
pub(crate) fn planned_bits(tree: &Tree, options: &LayoutOptions, one: &[TensorId]) -> Result<Vec<i64>, Error> {
    let mut bits = Vec::with_capacity(one.len());
    for id in 0..id_at(one.len()) {
        let (tensor, dtype) = tree.tensor(id);
        let element = match options.cast {
            Some(cast) if dtype.castable => cast.planned_bits,
            _ => dtype.stored_bits,
        };
        let size = match tensor.opaque_bytes {
            Some(bytes) => bytes.checked_mul(8),
            None => tensor.numel.checked_mul(element),
        };
        bits.push(size.unwrap_or(u64::MAX));
    }
    let mut said: Vec<Option<u64>> = vec![None; if options.explicit.is_empty() { 0 } else { one.len() }];
    for explicit in &options.explicit {
        if let Some(id) = tree.tensor_id(explicit.node) {
            let known = &mut said[id as usize];
            *known = Some(known.unwrap_or(0).max(explicit.planned_bits));
        }
    }
    for (id, size) in said.into_iter().enumerate() {
        bits[id] = size.unwrap_or(bits[id]);
    }
    for id in 0..one.len() {
        let stands = one[id] as usize;
        bits[stands] = bits[stands].max(bits[id]);
    }
    let mut total = 0u64;
    for node in tree.rows() {
        if let Some(id) = tree.tensor_id(node) {
            total = checked_total(total, bits[id as usize], node)?;
        }
    }
    // What a row holds is no more than the total; a tensor that no row holds is never asked for.
    Ok(bits.into_iter().map(u64::cast_signed).collect())
}

/// The running total over all rows (ties counted again), small enough that no later sum can overflow.
fn checked_total(total: u64, bits: u64, node: NodeId) -> Result<u64, Error> {
    match total.checked_add(bits) {
        Some(sum) if sum <= MOST_BITS => Ok(sum),
        _ => Err(Error::SizeOverflow { node, limit_bytes: MOST_BITS / 8 }),
    }
}

/// Rows in the order in which accelerate meets tensors: parameters, then buffers module by module.
pub(crate) fn tensor_rows(tree: &Tree) -> Vec<NodeId> {
    let rows = tree.rows();
    let mut buffers: Vec<NodeId> = rows.clone().filter(|&row| tree.is_buffer(row)).collect();
    // Rows put a module's buffers behind its children; accelerate meets them before.
    buffers.sort_by_key(|&node| (tree.parent(node), node));
    rows.filter(|&row| tree.kind(row) == Kind::Parameter).chain(buffers).collect()
}

/// Bits of one element by the dialect's formula.
fn element_bits(dtype: DType, dialect: Dialect, cast: Option<Cast>) -> u64 {
    match (dialect, cast) {
        (Dialect::Transformers, _) => dtype.stored_bits,
        (Dialect::Accelerate, Some(cast)) if dtype.castable => cast.formula_bits.min(dtype.formula_bits),
        (Dialect::Accelerate, _) => dtype.formula_bits,
    }
}

/// Bits of each row with all inside by the dialect's formula, each tensor where it is met first.
pub(crate) fn formula_bits(tree: &Tree, options: &LayoutOptions) -> Result<Vec<i64>, Error> {
    let mut bits = vec![0i64; tree.len()];
    let uncounted = match &options.tied {
        Tied::Named { uncounted, .. } => uncounted.as_slice(),
        Tied::ByIdentity => &[],
    };
    let mut is_uncounted = BitSet::new(if uncounted.is_empty() { 0 } else { tree.len() });
    for &node in uncounted {
        is_uncounted.insert(node);
    }
    let explicit: HashMap<NodeId, u64> = options.explicit.iter().map(|e| (e.node, e.formula_bits)).collect();
    let (mut seen_parameters, mut seen_buffers) = (BitSet::new(tree.tensor_count()), BitSet::new(tree.tensor_count()));
    let mut total = 0u64;
    let mut count = |node: NodeId| -> Result<(), Error> {
        let Some(id) = tree.tensor_id(node) else { return Ok(()) };
        let seen = if tree.kind(node) == Kind::Parameter { &mut seen_parameters } else { &mut seen_buffers };
        if seen.contains(id) {
            return Ok(());
        }
        seen.insert(id);
        if !uncounted.is_empty() && is_uncounted.contains(node) {
            return Ok(());
        }
        let (tensor, dtype) = tree.tensor(id);
        let size = match explicit.get(&node) {
            Some(&size) if !explicit.is_empty() => size,
            _ => tensor.numel.saturating_mul(element_bits(dtype, options.dialect, options.cast)),
        };
        total = checked_total(total, size, node)?;
        bits[node as usize] = size.cast_signed(); // no more than the total, which is at most 2^60
        Ok(())
    };
    for node in tensor_rows(tree) {
        count(node)?;
    }
    sum_upwards(tree, &mut bits);
    Ok(bits)
}

/// Bits of the buffers inside a module, each once, by the formula.
pub(crate) fn buffer_bits(tree: &Tree, module: NodeId, dialect: Dialect, cast: Option<Cast>) -> i64 {
    let mut seen = HashSet::new();
    let mut total = 0;
    for id in (module..tree.end(module)).filter(|&row| tree.is_buffer(row)).filter_map(|row| tree.tensor_id(row)) {
        if seen.insert(id) {
            let (tensor, dtype) = tree.tensor(id);
            let bits = tensor.numel.saturating_mul(element_bits(dtype, dialect, cast));
            total += bits.min(MOST_BITS).cast_signed(); // at most 2^60
        }
    }
    total
}

/// Adds each row to its parent, bottom-up.
pub(crate) fn sum_upwards(tree: &Tree, column: &mut [i64]) {
    for node in tree.rows().skip(1).rev() {
        column[tree.parent(node) as usize] += column[node as usize];
    }
}
