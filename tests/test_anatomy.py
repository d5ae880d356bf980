"""What is told of a model and its tokenizer, against what is known of them."""

from __future__ import annotations

import pytest
from small import ARCHITECTURES, TOKENIZERS, random_model

from law.decoders.description import anatomy, habits
from law.decoders.structure import Decoder

FINAL_NORM = {
    "gpt2": "transformer.ln_f",
    "gptj": "transformer.ln_f",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "phi": "model.final_layernorm",
}

PARALLEL = {"gptj", "gpt_neox", "phi"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_told_as_it_is(name: str) -> None:
    found = anatomy(Decoder(random_model(name)))
    assert found.parallel == (name in PARALLEL)
    assert found.final_norm == FINAL_NORM.get(name, "model.norm")
    assert found.head == "lm_head"
    assert found.orientation == ("(d_ff, d_model)" if name == "gpt2" else "(d_model, d_ff)")
    assert found.blocks.endswith((".h", ".layers"))
    assert found.down_projection.startswith("mlp.")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_kind_of_tokenizer_is_told_as_it_is(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    found = habits(tokenizer)
    assert found.kind == ("byte-level" if name in ("gpt2", "llama3") else "SentencePiece")
    assert found.begins_with == (tokenizer.bos_token if name != "gpt2" and tokenizer.bos_token else "")
    assert found.padding_side == tokenizer.padding_side
