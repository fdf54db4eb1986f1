//! Trees from names: what an outline knows is in its place, what it does not know is in a sensible one.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use planner_core::{DType, Error, Form, Kind, Outline, Slot, Tensor, Tree, assemble};
use proptest::prelude::*;

const BYTE: DType = DType { formula_bits: 8, stored_bits: 8, castable: true };

fn built(outline: &Outline, names: &[&str]) -> Result<Tree, Error> {
    let tensors: Vec<Tensor> =
        names.iter().map(|_| Tensor { numel: 1, dtype: 0, opaque_bytes: None, width: 0 }).collect();
    let leaves: Vec<_> = (0..).zip(names).map(|(id, name)| (name.to_string(), id)).collect();
    assemble(outline, &[BYTE], &tensors, &leaves)
}

fn rows(tree: &Tree) -> Vec<String> {
    tree.rows().skip(1).map(|node| tree.full_name(node)).collect()
}

fn form(class: &str, parameters: &[&str], children: &[(&str, &[u32])], buffers: &[(&str, bool)]) -> Form {
    Form {
        class: class.to_string(),
        parameters: parameters.iter().map(ToString::to_string).collect(),
        children: children.iter().map(|(name, forms)| (name.to_string(), forms.to_vec())).collect(),
        buffers: buffers.iter().map(|&(name, is_saved)| Slot { name: name.to_string(), is_saved }).collect(),
    }
}

/// A model of blocks of two forms, with an activation that holds nothing and a buffer that no file has.
fn outline() -> Outline {
    Outline::new(vec![
        form("Model", &[], &[("rotary", &[1]), ("layers", &[2]), ("head", &[5])], &[]),
        form("Rotary", &[], &[], &[("frequency", false)]),
        form("ModuleList", &[], &[("*", &[3, 4])], &[]),
        form("Dense", &[], &[("mlp", &[5]), ("act", &[6])], &[]),
        form("Sparse", &[], &[("gate", &[5]), ("experts", &[5])], &[]),
        form("Linear", &["weight", "bias"], &[], &[]),
        form("Act", &[], &[], &[]),
    ])
}

#[test]
fn without_an_outline_numbers_go_by_value_and_classes_by_path() {
    let tree = built(&Outline::default(), &["head.w", "layers.10.w", "layers.9.w", "embed_tokens.w"]).unwrap();
    let order =
        ["embed_tokens", "embed_tokens.w", "layers", "layers.9", "layers.9.w", "layers.10", "layers.10.w", "head"];
    assert_eq!(rows(&tree)[..8], order);
    assert_eq!(tree.class_name(4), Some("layers.*"));
}

#[test]
fn an_outline_gives_order_and_classes_and_what_no_file_holds() {
    let names = ["head.bias", "head.weight", "layers.0.mlp.weight", "layers.1.experts.weight", "layers.1.gate.weight"];
    let tree = built(&outline(), &names).unwrap();
    let expected = [
        "rotary",
        "rotary.frequency",
        "layers",
        "layers.0",
        "layers.0.mlp",
        "layers.0.mlp.weight",
        "layers.0.act",
        "layers.1",
        "layers.1.gate",
        "layers.1.gate.weight",
        "layers.1.experts",
        "layers.1.experts.weight",
        "head",
        "head.weight",
        "head.bias",
    ];
    assert_eq!(rows(&tree), expected);
    assert_eq!((tree.class_name(4), tree.class_name(8)), (Some("Dense"), Some("Sparse")));
    assert_eq!(tree.kind(2), Kind::NonPersistentBuffer);
}

#[test]
fn what_an_outline_does_not_know_is_kept() {
    let tree = built(&outline(), &["head.weight", "head.scale", "extra.weight"]).unwrap();
    assert_eq!(rows(&tree)[2..], ["head", "head.weight", "head.scale", "extra", "extra.weight"]);
}

#[test]
fn names_that_no_module_can_have_are_refused() {
    for names in [&["a..b"][..], &[""], &[".a"], &["a."], &["a", "a.b"], &["a.b", "a"]] {
        assert!(matches!(built(&Outline::default(), names), Err(Error::ImpossibleName { .. })), "{names:?}");
    }
}

#[test]
fn an_outline_that_leads_nowhere_is_no_harm() {
    let forms = vec![form("A", &[], &[("b", &[7, 0]), ("c", &[0])], &[])];
    assert_eq!(rows(&built(&Outline::new(forms), &["b.b.w"]).unwrap()), ["b", "b.b", "b.b.w"]);
}

proptest! {
    #[test]
    fn every_tensor_has_one_row(paths in proptest::collection::btree_set("[a-c0-2](\\.[a-c0-2]){0,3}", 1..30)) {
        // A leaf name of its own keeps tensors from lying below tensors.
        let names: BTreeSet<String> = paths.iter().map(|path| format!("{path}.w")).collect();
        let given: Vec<&str> = names.iter().map(String::as_str).collect();
        let tree = built(&Outline::default(), &given).unwrap();
        let tensors: BTreeSet<String> =
            tree.rows().skip(1).filter(|&node| !tree.is_module(node)).map(|node| tree.full_name(node)).collect();
        prop_assert_eq!(tensors, names);
    }
}
