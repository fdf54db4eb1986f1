//! Order of modules of an unknown architecture, by what their names say.

use std::cmp::Ordering;

use crate::names::is_number;

/// Parts of names, by where the module stands; what is in none stands in the middle.
const EARLY: [&[&str]; 3] = [
    &["visual", "vision", "audio", "image_encoder", "patch_embed", "conv_in", "time_embedding", "time_text_embed"],
    &["projector", "connector"],
    &[
        "embed_tokens",
        "embeddings",
        "word_embeddings",
        "tok_embeddings",
        "wte",
        "wpe",
        "shared",
        "embed_in",
        "x_embedder",
    ],
];
const LATE: [&[&str]; 2] = [
    &[
        "ln_f",
        "final_layer_norm",
        "final_layernorm",
        "norm",
        "final_norm",
        "norm_f",
        "norm_out",
        "conv_norm_out",
        "pooler",
    ],
    &["lm_head", "head", "embed_out", "classifier", "score", "output", "proj_out", "conv_out", "qa_outputs"],
];
/// Parts of a block, before everything else of its kind.
const STEPS: [&[&str]; 8] = [
    &["input_layernorm", "ln_1", "attention_norm", "norm1"],
    &["encoder"],
    &["self_attn", "attn", "attention", "self_attention"],
    &["quant_conv", "post_quant_conv"],
    &["decoder"],
    &["post_attention_layernorm", "ln_2", "ffn_norm", "norm2"],
    &["mlp", "ffn", "feed_forward", "block_sparse_moe", "moe"],
    &["transformer_blocks"],
];

/// Embeddings first, heads last, numbers by value, all else by name.
pub(crate) fn compare(left: &str, right: &str) -> Ordering {
    rank(left).cmp(&rank(right)).then_with(|| number(left).cmp(&number(right))).then_with(|| left.cmp(right))
}

fn rank(name: &str) -> usize {
    let within = |table: &[&[&str]]| table.iter().position(|names| names.contains(&name));
    if let Some(place) = within(&EARLY) {
        return place;
    }
    if let Some(place) = within(&STEPS) {
        return EARLY.len() + place;
    }
    let middle = EARLY.len() + STEPS.len();
    within(&LATE).map_or(middle, |place| middle + 1 + place)
}

/// A number's length and digits, which compare as the number does however long it is.
fn number(name: &str) -> Option<(usize, &str)> {
    is_number(name).then(|| name.trim_start_matches('0')).map(|digits| (digits.len(), digits))
}

#[cfg(test)]
mod tests {
    use super::compare;

    fn sorted(names: &[&'static str]) -> Vec<&'static str> {
        let mut names = names.to_vec();
        names.sort_by(|left, right| compare(left, right));
        names
    }

    #[test]
    fn numbers_go_by_value() {
        assert_eq!(sorted(&["10", "2", "0", "1"]), ["0", "1", "2", "10"]);
    }

    #[test]
    fn embeddings_come_first_and_heads_last() {
        let names = ["lm_head", "norm", "layers", "embed_tokens", "visual"];
        assert_eq!(sorted(&names), ["visual", "embed_tokens", "layers", "norm", "lm_head"]);
    }

    #[test]
    fn parts_of_a_diffusion_model_go_as_they_run() {
        let names = ["conv_out", "conv_norm_out", "up_blocks", "mid_block", "down_blocks", "time_embedding", "conv_in"];
        let order = ["conv_in", "time_embedding", "down_blocks", "mid_block", "up_blocks", "conv_norm_out", "conv_out"];
        assert_eq!(sorted(&names), order);
        assert_eq!(
            sorted(&["proj_out", "single_transformer_blocks", "transformer_blocks", "x_embedder"]),
            ["x_embedder", "transformer_blocks", "single_transformer_blocks", "proj_out"]
        );
    }

    #[test]
    fn an_encoder_stands_before_its_decoder() {
        assert_eq!(sorted(&["decoder", "shared", "encoder"]), ["shared", "encoder", "decoder"]);
    }
}
