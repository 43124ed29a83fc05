"""Digits under domains: read pictures of an unseen domain from 64 that have no labels."""

from typing import TYPE_CHECKING

import torch

from weightloom.apps.transfer.problems.digits.models import DIGITS, SOURCES
from weightloom.apps.transfer.problems.digits.unlabelled import (
    EXAMPLES,
    QUERIES,
    Targets,
    Unlabelled,
)
from weightloom.tasks import load_digit_images
from weightloom.tasks.domains import KINDS, DomainTasks, Pair, compositions, sample_domains

if TYPE_CHECKING:
    from weightloom.apps.transfer.config import TransferOptions

TRAIN, VALIDATION = 1097, 200
"""Pictures for training and for validation; the other 500, by other writers, are for the test."""
UNSEEN: dict[str, tuple[Pair, ...]] = {
    "test": (("turn", "blur"), ("mirror", "shade"), ("stretch", "noise")),
    "validation": (("turn", "noise"), ("mirror", "stretch"), ("shift", "shade")),
}
"""Pairs of kinds that no training domain holds together, by the targets that do."""
SEEN = "seen pairs"
"""Family of the targets that compose kinds as training domains do."""


class Domains(Unlabelled):
    """Problem of reading digits in unseen domains, without labels or with one of each digit.

    Args:
        config: Resolved options.

    Raises:
        MissingExtraError: If scikit-learn is not installed.
        ConfigError: If ``split`` is not 0, ``rank`` is too high, or there is one target.
    """

    def __init__(self, config: "TransferOptions") -> None:
        super().__init__(config)
        images, labels = load_digit_images()
        sizes = [TRAIN, VALIDATION, len(images) - TRAIN - VALIDATION]
        parts = list(zip(images.split(sizes), labels.split(sizes), strict=True))
        self.pictures = dict(zip(("train", "validation", "test"), parts, strict=True))
        every = [pair for pairs in UNSEEN.values() for pair in pairs]
        self.trained_on = compositions(without=every)
        self.validation = self._targets("validation", 24)[0]
        part = "validation" if config.validation else "test"
        self.targets, self.families = self._targets(part, config.test_targets)
        self.names = [f"{its} {number}" for number, its in enumerate(self.families)]
        self.protocol = (
            f"{TRAIN} pictures train, {VALIDATION} choose options, 500 by other writers test. The "
            "domains of the table are fixed, and are the same for every seed."
        )

    def _targets(self, part: str, count: int) -> tuple[Targets, list[str]]:
        """Draw fixed targets: a quarter like the training domains, the others of unseen pairs."""
        pictures, every = self.pictures[part], [its for pairs in UNSEEN.values() for its in pairs]
        tables = {SEEN: self.trained_on}
        for pair in UNSEEN[part]:
            others = [its for its in every if its != pair]
            tables[" + ".join(pair)] = compositions(without=others, within=[pair])
        families = [list(tables)[number % len(tables)] for number in range(count)]
        generator = torch.Generator().manual_seed(1 + (part == "validation"))
        kinds = torch.stack(
            [
                tables[family][torch.randint(len(tables[family]), (), generator=generator)]
                for family in families
            ]
        )
        domains = sample_domains(kinds, pictures[0].shape[-1], generator)
        queries = len(pictures[0]) - EXAMPLES - DIGITS
        tasks = DomainTasks(*pictures, kinds, EXAMPLES, 1, queries, domains)
        return Targets.of(tasks.sample(count, generator)), families

    def training_tasks(self, examples: int = EXAMPLES, queries: int = QUERIES) -> DomainTasks:
        """Return the source of training domains, new ones in every batch."""
        return DomainTasks(
            *self.pictures["train"], self.trained_on, examples=examples, queries=queries
        )

    def single_tasks(self) -> DomainTasks:
        """Return the source of `SOURCES` training domains, the same in every batch."""
        generator = torch.Generator().manual_seed(self.config.seed)
        drawn = torch.randint(len(self.trained_on), (SOURCES,), generator=generator)
        fixed = sample_domains(self.trained_on[drawn], 8, generator)
        return DomainTasks(*self.pictures["train"], self.trained_on, EXAMPLES, 0, 16, fixed)

    def plain_tasks(self, queries: int) -> DomainTasks:
        """Return the source of training pictures as they are."""
        none = torch.zeros(1, len(KINDS), dtype=torch.bool)
        return DomainTasks(*self.pictures["train"], none, 0, 0, queries)
