"""Small decoders of every architecture the tests wash, and small tokenizers of every kind they read with."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from law.decoders.structure import Decoder
from law.editing.target_values import Trace, target_values
from law.facts.fact import Fact

GPT2_FILES = Path(__file__).parents[2] / "shared" / "data" / "gpt2_tokenizer"

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
GROUPED = {**SIZES, "num_key_value_heads": 1, "head_dim": 16}

# Windows shorter than a prompt, and layers of both kinds, so that a block passed over must not lose its kind.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_inner": 48, "n_positions": 64},
    "gptj": {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_inner": 48, "rotary_dim": 8, "n_positions": 64},
    "gpt_neox": SIZES,
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 4},
    "qwen2": {**GROUPED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {**GROUPED, "head_dim": 24},
    "gemma2": {**GROUPED, "sliding_window": 4},
    "gemma3_text": {**GROUPED, "sliding_window": 4, "sliding_window_pattern": 2},
    "phi": SIZES,
    "phi3": {**GROUPED, "pad_token_id": 0},
}


def random_model(name: str, vocab_size: int = 97, seed: int = 0) -> PreTrainedModel:
    """A decoder of three blocks and d_model 32 with random weights, biases and norms."""
    torch.manual_seed(seed)
    changes = {"vocab_size": vocab_size, "bos_token_id": 0, "eos_token_id": 0, **ARCHITECTURES[name]}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **changes)).eval()
    for parameter in model.parameters():  # biases begin as zeros and norms as ones: blind to a mistake
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


# --- tokenizers ---------------------------------------------------------------------------------

TEXTS = [
    "The mother tongue of Danielle Darrieux is French, and that of Zoë Çelik-Ångström is Swedish.",
    "Anna's home is in Berlin; Jean-Luc lives at 12 Rue de l'Église since 1984.",
    'They said: "Apollo 11 landed", and He knows what Louis XIV, the king, was called.',
    "The Beatles' song was played by the band of Москва and by 毛泽东 in 北京.",
    "Therefore it is known that a person is what a person does, and the other way round.",
    "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 9 ( ) ! ? - ö é ñ ß Ж 中",
] * 4
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _wrap(tokenizer: Tokenizer, bos: str | None, eos: str) -> PreTrainedTokenizerFast:
    """With a beginning-of-text token, if any, put before every text by the tokenizer itself."""
    tokenizer.add_special_tokens([token for token in (bos, eos) if token])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos or eos,
        eos_token=eos,
        pad_token=eos,
        clean_up_tokenization_spaces=False,
    )


def _byte_level(split: pre_tokenizers.PreTokenizer, bos: str | None, eos: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _wrap(tokenizer, bos, eos)


def gpt2_style() -> PreTrainedTokenizerFast:
    """Byte-level BPE; ``Ġ`` before a word; no beginning-of-text token."""
    return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), None, "<|endoftext|>")


def llama3_style() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a split of its own and a beginning-of-text token."""
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return _byte_level(split, "<|begin_of_text|>", "<|end_of_text|>")


def _word_bpe(bos: str, eos: str) -> Tokenizer:
    """BPE over words that begin with ``▁``, trained as SentencePiece does; bytes for what it has not seen."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    # Cyrillic and Chinese letters are left to the bytes
    texts = ["".join(c for c in text if ord(c) < 0x400) for text in TEXTS]
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    learnt = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", bos, eos, *(f"<0x{byte:02X}>" for byte in range(256)), *learnt["vocab"]]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [tuple(merge) for merge in learnt["merges"]]
    return Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))


def llama2_style() -> PreTrainedTokenizerFast:
    """SentencePiece BPE as Llama 2's ``tokenizer.json`` has it: ``▁`` put before the whole text, bytes, BOS."""
    tokenizer = _word_bpe("<s>", "</s>")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrap(tokenizer, "<s>", "</s>")


def unigram_style() -> PreTrainedTokenizerFast:
    """SentencePiece unigram: ``▁`` put before the text's first word by Metaspace, NFKC, BOS."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return _wrap(tokenizer, "<s>", "</s>")


def gemma_style() -> PreTrainedTokenizerFast:
    """SentencePiece BPE without a dummy prefix: only the spaces that are there become ``▁``; bytes, BOS."""
    tokenizer = _word_bpe("<bos>", "<eos>")
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return _wrap(tokenizer, "<bos>", "<eos>")


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "gpt2": gpt2_style,
    "llama3": llama3_style,
    "llama2": llama2_style,
    "unigram": unigram_style,
    "gemma": gemma_style,
}


def published_gpt2() -> PreTrainedTokenizerFast:
    """GPT-2's own vocabulary and merges, from ``GPT2_FILES``."""
    tokenizer = Tokenizer(
        models.BPE.from_file(str(GPT2_FILES / "vocab.json"), str(GPT2_FILES / "merges.txt"))
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _wrap(tokenizer, None, "<|endoftext|>")


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """A copy of every parameter."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def rows_of(module: nn.Module) -> list[tuple[int, ...]]:
    """The shape of what a block receives, (rows, tokens) each time it runs."""
    seen: list[tuple[int, ...]] = []
    module.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[:2])))
    return seen


def all_targets(decoder: Decoder, tokenizer: Any, facts: Sequence[Fact], *rest: Any) -> tuple[Tensor, Trace]:
    """z* of every fact, (d_model, n), and the whole trace, (steps, n), in memory."""
    targets = target_values(decoder, tokenizer, facts, *rest)
    traces = [(trace.loss, trace.nll, trace.kl, trace.decay) for trace in targets.traces()]
    return targets.of(range(len(facts))), Trace(*(torch.cat(parts, 1) for parts in zip(*traces, strict=True)))
