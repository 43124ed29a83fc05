"""A character model that has read a document of one's own, for `weightloom adapt`.

In:   a trained model of the method `generated`, and a text or the path of a text file.
Out:  continuations of typed prompts; a folder with the adapted model.
Knows nothing of facts.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from weightloom.conditions.documents import split_document
from weightloom.errors import DataError
from weightloom.files import check_empty, make_folder, save_tensors, write_atomically
from weightloom.networks.character_model import CharacterModel
from weightloom.tasks.facts import CHARACTERS, decode, encode

if TYPE_CHECKING:
    from weightloom.apps.transfer.problems.documents.facts import DocumentWriter

MOST_WINDOWS = 8
"""Most pieces of a document: answers were measured up to so many."""
ENDS, MOST_CHARACTERS = ".\n", 32
"""Characters that end a continuation, and the most that are added."""


class AdaptedModel:
    """A character model with the adapter of one document built into its weights.

    Args:
        model: Model of the method `generated`.
        document: Path of a text file, or the text itself.

    Raises:
        DataError: If the document is empty, too long, or holds unknown characters.
    """

    def __init__(self, model: "DocumentWriter", document: str) -> None:
        path = Path(document)
        is_file = len(document) < 1000 and "\n" not in document and path.is_file()
        text = path.read_text(encoding="utf-8") if is_file else document
        numbers = encode(text)
        pieces = split_document(numbers, model.base.window, MOST_WINDOWS)
        if len(numbers) < 2:
            raise DataError(
                f"The document is {text!r}. Each character is a key to the next one. Pass two "
                "characters or more."
            )
        self.base: CharacterModel = copy.deepcopy(model.base)
        with torch.no_grad():
            for name, value in model.adapt(pieces[None]).items():
                self.base.get_parameter(name).copy_(value[0])
        self.about = f"document of {len(numbers):,} characters in {len(pieces)} pieces"
        """Size of the document."""

    def specialise(self) -> nn.Module:
        """Return the adapted model as a plain module."""
        return self.base

    def predict_rows(self, inputs: Sequence[str]) -> list[dict[str, Any]]:
        """Continue typed prompts, character by character, up to a full stop or the end of a line.

        Args:
            inputs: Prompts, such as ``"the key of bolin is "``. Each is read behind a line break.

        Raises:
            DataError: If a prompt holds unknown characters.
        """
        return [{"prompt": text, "continuation": self._continued(text)} for text in inputs]

    @torch.no_grad()
    def _continued(self, prompt: str) -> str:
        numbers, start = encode("\n" + prompt), len(prompt) + 1
        for _ in range(MOST_CHARACTERS):
            logits = self.base(numbers[None, -self.base.window :])
            numbers = torch.cat([numbers, logits[0, -1:].argmax(-1)])
            if CHARACTERS[int(numbers[-1])] in ENDS:
                break
        return decode(numbers[start:]).rstrip(ENDS)

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the adapted model's weights and a description into a folder.

        Args:
            folder: Folder to write, empty or missing.

        Returns:
            Contents of ``network.json``.

        Raises:
            ConfigError: If the folder is not empty.
            CheckpointError: If a file cannot be written.
        """
        check_empty(folder, "--out")
        make_folder(folder, "--out")
        facts = {
            "files": ["network.safetensors"],
            "class": "weightloom.networks.character_model.CharacterModel",
            "characters": CHARACTERS,
            "window": self.base.window,
            "layers": len(self.base.blocks),
            "document": self.about,
        }
        save_tensors(folder / "network.safetensors", self.base.state_dict(), facts)
        write_atomically(folder / "network.json", json.dumps(facts, indent=1) + "\n")
        return facts
