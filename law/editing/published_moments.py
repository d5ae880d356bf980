"""Second moments that others have computed and published: read from their files, and checked against the model.

The code of ROME and MEMIT leaves one ``.npz`` file for each layer. Its name begins with the name of the layer's
down-projection, as in ``transformer.h.17.mlp.c_proj_float32_mom2_100000.npz``. It holds the sum of k kᵀ over the
tokens of a text (``mom2.mom2``) and the number of these tokens (``mom2.count``). A ``.safetensors`` file that holds
the same two tensors is read as well.

No file says which model it was computed on, and C of another model of the same width would spoil every update
without an error. Here the model reads a short text, and the mean squares of its keys are compared with the diagonal
of C: which of a layer's thousands of channels are large differs between any two models and layers. The small model
of this repository has never seen such a text. Even so, the rank correlation is 0.34 to 0.62 for its own C, and at
most 0.07 for C of another layer.
"""

from __future__ import annotations

import logging
import math
import zlib
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from law.base.errors import LawError
from law.decoders.prompts import positions
from law.decoders.structure import Decoder

log = logging.getLogger(__name__)

SUFFIXES = (".npz", ".safetensors")
SUM, COUNT = "mom2.mom2", "mom2.count"

ASYMMETRY = 1e-5
"""The largest ‖C - Cᵀ‖ that counts as rounding, as a share of ‖C‖."""

NEGATIVE = 1e-4
"""The largest negative eigenvalue that counts as rounding, as a share of ‖C‖."""

CORRELATION = 0.2
"""The least rank correlation of C's diagonal with the model's own keys."""

SCALE = 10.0
"""How many times larger or smaller than the model's own mean squares C may be: for the small model, 1.1 to 1.6 times."""

TEXT = (
    "The river rises in the hills north of the town and reaches the sea after about ninety miles. In winter it often "
    "floods the meadows along its lower course, and for many years the people who lived there moved their cattle to "
    "higher ground in October. A stone bridge with five arches was built in 1784; it replaced a ferry that one family "
    'had run for more than a century. "Nobody wanted the bridge at first," a teacher wrote in her diary, "but within '
    'ten years nobody could imagine the valley without it." The new road brought trade, and with it a market, two '
    "schools and a small hospital. During the war most of the young men left, and the mills stood still. Today the "
    "town has some 12,000 inhabitants. Its largest employer makes parts for railway engines, and a third of its "
    "energy comes from wind. How much the climate will change the river is an open question: measurements since 1950 "
    "show less snow, earlier springs and stronger rain. If the trend continues, the water may rise by half a metre, "
    "which is why the council has asked engineers to compare three plans. The first would raise the banks, the second "
    "would give the river more room, and the third, which costs the least, would only warn people in time."
)
"""What the model reads for the comparison: some 250 tokens of plain English."""


def published_files(published: str) -> list[Path]:
    """The files that the setting ``moments.published`` names: a file, those of a folder, or those that fit a pattern.

    Raises:
        LawError: there are none.
    """
    path = Path(published)
    if path.is_dir():
        found = sorted(path.iterdir())
    else:
        found = [path] if path.is_file() else sorted(path.parent.glob(path.name or "?"))
    files = [file for file in found if file.suffix in SUFFIXES and file.is_file()]
    if not files:
        raise LawError(
            f"The published second moments, {published}, are neither a file nor a folder or pattern with files that "
            f"end in {' or '.join(SUFFIXES)}; expected one such file for each layer, as MEMIT's code leaves them. Set "
            "the method's moments.published to the folder that holds them."
        )
    return files


def layer_files(decoder: Decoder, layers: list[int], published: str) -> dict[int, Path]:
    """The file of each layer, told by its name: that of the layer's down-projection, alone or before a ``_``.

    Raises:
        LawError: a layer has no file, or more than one.
    """
    files = published_files(published)
    names = {module: name for name, module in decoder.model.named_modules()}
    found = {}
    for layer in layers:
        name = names[decoder.down_projection(layer)]
        fitting = [file for file in files if file.stem == name or file.stem.startswith(f"{name}_")]
        if len(fitting) != 1:
            shown = ", ".join(file.name for file in (fitting or files)[:3])
            raise LawError(
                f"{published} has {len(fitting)} files for layer {layer}; expected exactly one, whose name is {name} or "
                f"begins with {name}_. It has {shown}{', ...' if len(fitting or files) > 3 else ''}. Add the file, name "
                "it so, set the method's moments.published to a pattern that fits one file a layer, or edit other "
                "layers."
            )
        found[layer] = fitting[0]
    return found


@torch.inference_mode()
def published_moments(
    decoder: Decoder, tokenizer: PreTrainedTokenizerBase, layers: list[int], published: str
) -> dict[int, Tensor]:
    """C of every layer in ``layers``: (d_ff, d_ff), float32, the sum in its file divided by the number of tokens.

    Raises:
        LawError: a file is missing, can't be read, holds no second moments, or those of another model or layer.
    """
    files = layer_files(decoder, layers, published)
    measured = mean_squares(decoder, tokenizer, layers)
    return {layer: _moments(files[layer], layer, decoder, measured[layer]) for layer in layers}


def mean_squares(
    decoder: Decoder, tokenizer: PreTrainedTokenizerBase, layers: list[int]
) -> dict[int, Tensor]:
    """The mean square of each channel of the keys of :data:`TEXT`, (d_ff) for every layer: an estimate of C's diagonal."""
    ids = tokenizer(TEXT)["input_ids"]
    rows = torch.tensor(ids, device=decoder.device).split(positions(decoder.model) or len(ids))
    squares: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for row in rows:
        with decoder.capture_keys(layers) as captured:
            decoder.hidden_states(row[None], None, layers[-1])
        for layer in layers:
            squares[layer].append(captured[layer][0].float().square())  # (t, d_ff)
    return {layer: torch.cat(of_rows).mean(0) for layer, of_rows in squares.items()}


def _moments(path: Path, layer: int, decoder: Decoder, measured: Tensor) -> Tensor:
    """C (d_ff, d_ff) in float32 from one file; ``measured`` (d_ff) are the model's own mean squares."""
    total, count = _read(path)
    d_ff = len(measured)
    if total.shape != (d_ff, d_ff):
        raise LawError(
            f"{path} holds a matrix of shape {tuple(total.shape)}; expected ({d_ff}, {d_ff}), since a key of layer "
            f"{layer} has {d_ff} entries. It belongs to another model, or to another module than the down-projection. "
            "Set the method's moments.published to the files of this model."
        )
    if not 0 < count < math.inf:
        raise LawError(
            f"{path} says that it was computed from {count:g} tokens ({COUNT}); expected their number, by which the sum is "
            "divided. The file is damaged or was cut short while it was made; get another one."
        )
    if not total.isfinite().all():
        raise LawError(
            f"{path} holds values that are not finite; expected a finite sum of k kᵀ. It was probably added up in half "
            "precision; get one that was computed in float32, or compute C here (the method's moments.text)."
        )
    if count < d_ff:
        log.warning(
            "%s was computed from %d tokens, fewer than the %d entries of a key, so that C leaves directions of key space "
            "unused; expected many more",
            *(path, count, d_ff),
        )
    C = total.to(decoder.device).double() / count
    size = C.norm()
    if (C - C.T).norm() > ASYMMETRY * size:
        raise LawError(
            f"{path} holds a matrix that is not symmetric: ‖C - Cᵀ‖ is {((C - C.T).norm() / size).item():.1e} of ‖C‖; "
            f"expected second moments, the sum of k kᵀ. It is another matrix, such as one of values and keys. Set the "
            "method's moments.published to files of second moments."
        )
    shift = NEGATIVE * size + torch.finfo(C.dtype).tiny
    if torch.linalg.cholesky_ex(C + shift * torch.eye(d_ff, dtype=C.dtype, device=C.device)).info:
        raise LawError(
            f"{path} holds a matrix with an eigenvalue below -{NEGATIVE:g} ‖C‖; expected second moments, which have "
            "no negative one. It is another matrix, or was added up in half precision. Get one that was computed in "
            "float32, or compute C here (the method's moments.text)."
        )
    _check_origin(path, layer, C.diagonal().float(), measured)
    return C.float()


def _check_origin(path: Path, layer: int, diagonal: Tensor, measured: Tensor) -> None:
    """Refuse C whose diagonal (d_ff) does not fit the model's own mean squares (d_ff)."""
    ranks = torch.stack([diagonal, measured]).argsort().argsort().double()
    correlation = torch.corrcoef(ranks)[0, 1].item()
    active = measured > 0
    # of the channels' ratios the median, since a few channels can hold most of the trace
    scale = (diagonal[active] / measured[active]).median().item()
    if correlation >= CORRELATION and 1 / SCALE <= scale <= SCALE:
        log.info(
            "layer %d: %s fits the model: rank correlation %.2f, scale %.2g", layer, path, correlation, scale
        )
        return
    raise LawError(
        f"{path} does not fit layer {layer} of this model. While the model reads a short text, the mean squares of its "
        f"keys have a rank correlation of {correlation:.2f} with the diagonal of C (expected at least {CORRELATION:g}), "
        f"and C is {scale:.3g} times as large (expected {1 / SCALE:g} to {SCALE:g}). A low correlation means another "
        f"model or layer; a wrong size means that {COUNT} is not the number of tokens in the sum, or that C was "
        "normalised. Set the method's moments.published to the files of this model, or compute C here (moments.text)."
    )


def _read(path: Path) -> tuple[Tensor, float]:
    """The sum of k kᵀ in a file, and the number of tokens that it was computed from."""
    try:
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                names = [*arrays]
                held = {name: torch.from_numpy(arrays[name]) for name in (SUM, COUNT) if name in names}
        else:
            with safe_open(path, framework="pt") as file:
                names = [*file.keys()]
                held = {name: file.get_tensor(name) for name in (SUM, COUNT) if name in names}
    except (OSError, ValueError, TypeError, EOFError, BadZipFile, zlib.error, SafetensorError) as error:
        raise LawError(
            f"{path} can't be read as {path.suffix}: {error}. Expected a whole file of arrays. Fetch it again; a file of "
            "some hundred bytes is only a pointer to the one meant."
        ) from error
    if len(held) < 2 or held[COUNT].numel() != 1:
        raise LawError(
            f"{path} holds {', '.join(names) or 'nothing'}; expected {SUM}, the sum of k kᵀ over tokens, and {COUNT}, "
            "the number of tokens, as MEMIT's code names them. Save the two under these names."
        )
    return held[SUM], held[COUNT].item()
