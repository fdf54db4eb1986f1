"""Which models keep no cache: encoders, unless they are told to be decoders, and a few decoders that compute all anew."""

from __future__ import annotations

from typing import Final

from planner.memory.config_values import Config, decoder_config, model_type

# By the types of their configurations, those of transformers 5.23; `benches/sweep_caches.py` tells one that is not here.
UNLESS_DECODERS: Final = frozenset(
    (
        *(
            "bert",
            "bert-generation",
            "big_bird",
            "camembert",
            "data2vec-text",
            "electra",
            "ernie",
            "megatron-bert",
            "rembert",
        ),
        *(
            "reformer",
            "roberta",
            "roberta-prelayernorm",
            "roc_bert",
            "roformer",
            "xlm-roberta",
            "xlm-roberta-xl",
            "xmod",
        ),
    )
)
_NEVER: Final = frozenset(
    (
        *(
            "albert",
            "convbert",
            "deberta",
            "deberta-v2",
            "distilbert",
            "esm",
            "esmc",
            "eurobert",
            "flaubert",
            "fnet",
            "funnel",
        ),
        *(
            "gte",
            "ibert",
            "jina_embeddings_v3",
            "layoutlm",
            "longformer",
            "luke",
            "mobilebert",
            "modernbert",
            "mpnet",
            "mra",
        ),
        *(
            "neomme",
            "nomic_bert",
            "nystromformer",
            "openai-gpt",
            "perceiver",
            "squeezebert",
            "tapas",
            "ultrabert",
            "xlm",
            "yoso",
        ),
    )
)


def keeps_cache(config: Config) -> bool:
    """Whether a model keeps anything from one forward to the next.

    Example:
        >>> keeps_cache({"model_type": "bert"}), keeps_cache({"model_type": "bert", "is_decoder": True})
        (False, True)
    """
    decoder = decoder_config(config)
    kind = model_type(decoder)
    if kind in UNLESS_DECODERS:
        return bool(decoder.get("is_decoder"))
    return kind not in _NEVER
