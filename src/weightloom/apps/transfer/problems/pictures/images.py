"""Pictures: ResNet-20 of CIFAR-10, to few-shot tasks of CIFAR-FS, chest X-rays and Fashion.

In:   a config, and the files of the data sets.
Out:  the problem: methods, their training, and their answers for every target.
Knows nothing of tables and reports.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from weightloom.apps.app import Training
from weightloom.apps.transfer.config import TransferOptions
from weightloom.apps.transfer.problems.pictures.answers import (
    calibrated,
    changes,
    from_table,
    one_by_one,
    read_all,
    seconds,
    stepped,
    training_supports,
)
from weightloom.apps.transfer.problems.pictures.models import (
    FILM,
    RATES,
    AllClasses,
    FirstOrderMaml,
    Gaussian,
    GeneratedAfter,
    GeneratedFilm,
    JoinedFeatures,
    LowRankTuned,
    PictureModel,
    Refreshed,
)
from weightloom.apps.transfer.problems.pictures.targets import (
    SHOTS,
    Family,
    families_to_test,
    families_to_validate,
    training_pictures,
)
from weightloom.apps.transfer.problems.problem import Condition, Outputs, Setting, TransferProblem
from weightloom.apps.transfer.training import fit
from weightloom.errors import ConfigError
from weightloom.learners.pretraining import LabelledPictures
from weightloom.networks.resnet20 import as_colour, load_resnet20
from weightloom.runs.record import Better
from weightloom.tasks import ClassTasks
from weightloom.tasks.augment import Colour, Crop, Flip, InTurn
from weightloom.training import History, TrainOptions, train
from weightloom.training.sources import Draw

WAYS, TRAIN_QUERIES = 5, 5
"""Classes, and query pictures of each, of a training task."""
FIRST_CLASSES = 43
"""Training classes of the fine-tune before `generated-after`; the others are for its episodes."""
STEPPED = {1: 4, 5: 4, 20: 4}
"""Targets behind rows with gradient steps, by steps: each costs seconds."""
OTHERS_STEPPED = {20: 4}
"""The same for chest X-rays and Fashion."""
KEPT_STATISTICS, RIDGE, INNER_STEPS = 0.9, 0.1, 3
"""Share of the source's statistics in `batchnorm`, variance added in `gaussian`, and steps in the
training of `maml`; swept on validation targets."""
LEAST = 1e-6
"""Lowest probability in a log loss."""
AUGMENT = InTurn((Flip(), Crop(4), Colour(0.2)))
"""Random changes of training pictures."""
VALIDATION_TARGETS = 40
"""Validation targets scored in training."""


class Pictures(TransferProblem):
    """ResNet-20 of CIFAR-10, adapted to classes and kinds of pictures it never saw."""

    score: ClassVar[str] = "accuracy"
    better: ClassVar[Better] = "higher"
    protocol: str = (
        "A target has 5 labelled pictures of each class and is scored on 15 others. Methods that "
        "take no steps on a target are repeated in rows with steps, which are of fewer targets."
    )

    def __init__(self, config: TransferOptions) -> None:
        self.config = config
        found = (
            families_to_validate(config.test_targets)
            if config.validation
            else families_to_test(config.test_targets, max(1, config.test_targets // 3))
        )
        self.by_name = {family.name: family for family in found}
        self._judge(found[0])
        self.known = training_pictures()
        self._tables: WeakKeyDictionary[nn.Module, dict[str, Tensor]] = WeakKeyDictionary()

    def settings(self) -> list[Setting]:
        """Return the families, each without steps and with steps on a target."""
        first, *others = self.by_name.values()
        made = [Setting(_title(first), SHOTS, steps) for steps in (0, *STEPPED)]
        return made + [
            Setting(_title(family), SHOTS, steps)
            for family in others
            for steps in (0, *OTHERS_STEPPED)
        ]

    def build(self, method: str) -> PictureModel:
        """Build the model of a method on the source, newly initialised where it is trained.

        Raises:
            ConfigError: If no method has that name.
        """
        makers: dict[str, Callable[[], PictureModel]] = {
            "source": lambda: self._shared(both=False),
            "centroid": self._shared,
            "gaussian": self._gaussian,
            "batchnorm": lambda: Refreshed(self._features(), self._scale(), KEPT_STATISTICS),
            "shared": lambda: self._shared(FILM),
            "shared-finetune": lambda: self._shared("*"),
            "multitask": lambda: self._all_classes(len(self.known)),
            "finetune": lambda: self._shared("", "*"),
            "last-layer": lambda: self._shared("", ""),
            "lora": lambda: LowRankTuned(self._features(), self._scale(), self.config.rank),
            "maml": self._maml,
            "generated": lambda: self._generated(GeneratedFilm),
            "generated-after": lambda: self._generated(GeneratedAfter),
        }
        if method not in makers:
            raise ConfigError(
                f"`--method {method}` is no method of `--data pictures`. A model is built by its "
                f"name. Pass one of {', '.join(makers)}."
            )
        return makers[method]()

    def train(
        self, model: nn.Module, config: TransferOptions, training: Training[nn.Module]
    ) -> History:
        """Train a model on episodes of the training classes, or `multitask` on single pictures.

        `generated-after` is fine-tuned on the first training classes before, as `multitask` is, and
        trained on episodes of the others.

        Raises:
            NonFiniteError: If a loss or gradient is not finite.
        """
        assert isinstance(model, PictureModel)
        self._tables.pop(model, None)
        classes, tasks = self.known, config.tasks
        if isinstance(model, FirstOrderMaml):
            tasks = max(1, tasks // 2)  # its steps on the support take as long as the other half
        if isinstance(model, GeneratedAfter):
            self._fine_tune(model, config, training)
            classes = classes[FIRST_CLASSES:]
        draw = (
            self._pictures(classes) if isinstance(model, AllClasses) else episodes(classes, tasks)
        )
        return fit(
            model,
            draw,
            config,
            training,
            score=lambda: self._validation_score(model),
            score_name=self.score,
        )

    def outputs(self, model: nn.Module, setting: Setting, condition: Condition = "own") -> Outputs:
        """Answer the query of every target of a family; support by folds of one shot per class."""
        assert isinstance(model, PictureModel)
        family = self._family_of(setting)
        self._judge(family)
        with torch.no_grad():
            if setting.steps and model.tunes is not None:
                return stepped(model, family, setting.steps)
            is_candidate = not setting.steps and (model.trained or model.tunes is None)
            query, support = (
                from_table(model, family, self._table(model, family))
                if model.is_shared
                else one_by_one(model, family, condition, is_candidate)
            )
            return Outputs(
                query.softmax(2),
                support.softmax(2) if support is not None and is_candidate else None,
                seconds(model, family),
                changes(model, self._source_params(), family, condition),
            )

    def scores(self, setting: Setting, query: Tensor) -> dict[str, Tensor]:
        """Return accuracy and log loss in nats of each target."""
        y = self._family_of(setting).query_y.expand(len(query), -1)
        chances = query.gather(2, y[..., None])[..., 0]
        return {
            "accuracy": (query.argmax(2) == y).float().mean(1),
            "log loss": -chances.clamp_min(LEAST).log().mean(1),
        }

    def support_loss(self, setting: Setting, support: Tensor) -> Tensor:
        """Return the log loss of each labelled picture in nats, (targets, ways · shots)."""
        y = torch.arange(support.shape[2]).repeat_interleave(SHOTS).expand(len(support), -1)
        return -support.gather(2, y[..., None])[..., 0].clamp_min(LEAST).log()

    def facts(self) -> dict[str, Any]:
        """Return the number of parameters of the source."""
        return {"source_parameters": sum(its.numel() for its in load_resnet20().parameters())}

    def _judge(self, family: Family) -> None:
        """Name the targets of the setting at hand: settings differ in their targets."""
        self.names = [f"{family.name} {number}" for number in range(len(family.places))]
        self.families = [family.name] * len(family.places)

    def _family_of(self, setting: Setting) -> Family:
        """Return the family of a setting, with fewer targets in a setting with steps."""
        (family,) = (its for its in self.by_name.values() if _title(its) == setting.name)
        is_first = family.name == next(iter(self.by_name))
        most = (STEPPED if is_first else OTHERS_STEPPED).get(setting.steps)
        return family._replace(places=family.places[:most])

    def _features(self, both: bool = True) -> JoinedFeatures:
        return JoinedFeatures(load_resnet20(), both).eval()

    def _source_params(self) -> dict[str, Tensor]:
        return dict(self._features().named_parameters())

    def _shared(
        self, trains: str = "", tunes: str | None = None, both: bool = True
    ) -> PictureModel:
        return PictureModel(self._features(both), self._scale(both), trains, tunes)

    def _all_classes(self, classes: int) -> AllClasses:
        return AllClasses(self._features(), self._scale(), classes)

    def _maml(self) -> PictureModel:
        rate = RATES["*"]
        return FirstOrderMaml(self._features(), self._scale(), INNER_STEPS, rate)

    def _gaussian(self) -> PictureModel:
        model = Gaussian(self._features(), self._known_features, RIDGE)
        return calibrated(model, *training_supports(self._known_features))

    def _generated(self, kind: type[GeneratedFilm]) -> PictureModel:
        model = kind(self._features(), self._scale(), self.config.width)
        model.standardise(training_supports(self._known_features)[0])
        return model

    @cached_property
    def _known_features(self) -> Tensor:
        """Features of the training pictures by the source, (classes, pictures, width)."""
        with torch.no_grad():
            return read_all(self._features(), as_colour(self.known.flatten(0, 1))).unflatten(
                0, self.known.shape[:2]
            )

    def _scale(self, both: bool = True) -> float:
        """Return the factor on cosines with the lowest loss on training tasks, for the source."""
        features = self._features(both)
        tasks = training_supports(self._known_features[..., -features.width :])
        model = calibrated(PictureModel(features, 1.0), *tasks)
        return model.log_scale.exp().item()

    def _table(self, model: PictureModel, family: Family) -> Tensor:
        """Return features of all pictures of a family, by a network that its targets share.

        The scale of `multitask`, whose training has no class means, is set on validation targets.
        """
        if isinstance(model, AllClasses) and model not in self._tables:
            its = self._validation_family
            read = read_all(model.features, its.pictures)
            calibrated(model, read[its.support], read[its.query])
        known = self._tables.setdefault(model, {})
        if family.name not in known:
            known[family.name] = read_all(model.features, family.pictures)
        return known[family.name]

    def _pictures(self, classes: Tensor) -> Draw:
        """Return a function that draws as many pictures of all classes as episodes hold."""
        count = self.config.tasks * WAYS * (SHOTS + TRAIN_QUERIES)
        pictures, each = classes.flatten(0, 1), classes.shape[1]

        def draw(step: int, generator: torch.Generator) -> LabelledPictures:
            drawn = torch.randint(len(pictures), (count,), generator=generator)
            return LabelledPictures(
                AUGMENT(pictures[drawn].float() / 255, generator), drawn // each
            )

        return draw

    def _fine_tune(
        self, model: GeneratedAfter, config: TransferOptions, training: Training[nn.Module]
    ) -> None:
        """Fine-tune the network of a model on the first training classes, then freeze it."""
        assert config.steps
        first = self._all_classes(FIRST_CLASSES)
        options = TrainOptions(
            steps=config.steps,
            outer_lr=config.rate_of("multitask"),
            seed=config.seed,
            checkpoint_every=config.checkpoint_every,
        )
        how = training.how()
        how["run"] = training.folder / "fine-tune"
        how["resume"] = (how["run"] / "checkpoints" / "last.safetensors").is_file()
        train(first, self._pictures(self.known[:FIRST_CLASSES]), None, options, **how)
        first.eval()
        model.features.load_state_dict(first.features.state_dict())
        held = self.known[FIRST_CLASSES:]
        with torch.no_grad():
            read = read_all(model.features, as_colour(held.flatten(0, 1)))
        model.standardise(training_supports(read.unflatten(0, held.shape[:2]))[0])

    def _validation_score(self, model: PictureModel) -> float:
        family = self._validation_family
        with torch.no_grad():
            if model.is_shared:
                logits, _ = from_table(model, family, read_all(model.features, family.pictures))
            else:
                logits = one_by_one(model, family, "own", folds=False)[0]
        return (logits.argmax(2) == family.query_y).float().mean().item()

    @cached_property
    def _validation_family(self) -> Family:
        return families_to_validate(VALIDATION_TARGETS)[0]


def _title(family: Family) -> str:
    return f"{family.name}, {family.ways}-way {SHOTS}-shot"


def episodes(classes: Tensor, tasks: int) -> Draw:
    """Return a function that draws the 5-way tasks of a step.

    Args:
        classes: Pictures by class, (classes, pictures, 3, 32, 32), uint8.
        tasks: Tasks of a step.
    """
    counts = torch.full((len(classes),), classes.shape[1])
    source = ClassTasks(classes, counts, WAYS, SHOTS, TRAIN_QUERIES, augment=AUGMENT)
    return lambda step, generator: source.sample(tasks, generator)
