"""Paths of a base that branches on tensor values, and proofs that tasks may take them together.

In:   a checked call of a base that reads numbers from its rows.
Out:  the proved paths: values read in order, and the reads at which folded tasks may differ.
"""

from dataclasses import dataclass, field
from typing import Any

import torch

from weightloom.base.branches import Answering, Answers, Harmless, Program, TasksDifferError
from weightloom.base.call import Call, Result
from weightloom.base.compare_runs import moved, ran_alike
from weightloom.base.engines import run_aligned
from weightloom.base.pieces import join
from weightloom.base.trials import Try, random_states, try_call
from weightloom.base.watch_rows import WatchRows
from weightloom.replica.tree import open_tree

MOST_PATHS = 16
"""Maximum number of paths to prove: beyond it, a base reads values that change in every call."""


@dataclass
class Ways:
    """Paths of a base along which folding tasks into the batch is proved right."""

    paths: set[tuple[Any, ...]] = field(default_factory=set)
    """Values read along each proved path, in order."""
    harmless: Harmless = field(default_factory=dict)
    apart: set[int] = field(default_factory=set)
    """Reads at which tasks with different answers run in separate groups."""
    sizes: bool = False
    """True once the base has compared sizes, so that a proof holds for these sizes only."""
    closed: bool = False
    """True once a run was found for which folding is wrong: no path is used any more."""

    def prove(self, call: Call) -> TasksDifferError | None:
        """Prove the path of a call, or close all paths.

        The proof watches the call and a perturbed copy of it, and compares the copy with the loop.

        Returns:
            The error that says at which read the tasks must be separated; None if they need not be.
        """
        with random_states(call):
            other = call._replace(
                params={name: moved(value) for name, value in call.params.items()}
            )
        try:
            seen, answers = self._try(call)
            folded, again = self._try(other)
        except TasksDifferError as differ:
            self.apart.add(differ.read)
            return differ
        self.sizes = self.sizes or any(
            its.watch is None or its.watch.sizes for its in (seen, folded)
        )
        few = try_call(other, "loop")
        well = _treats_rows_apart(seen) and _treats_rows_apart(folded)
        if not well or not ran_alike(few.result, folded.result):
            self.closed = True
            return None
        self.paths |= {tuple(answers.path), tuple(again.path)}
        return None

    def _try(self, call: Call) -> tuple[Try, Answers]:
        while True:
            answers = Answers(call.tasks, self.harmless)
            seen = try_call(call, "aligned", call.tasks, watch=WatchRows(answers), unhooked=False)
            if not isinstance(seen.error, TasksDifferError):
                return seen, answers
            read = seen.error.read
            kind = None if read in self.harmless else self._is_harmless(call, read)
            if kind is None:
                raise seen.error
            self.harmless[read] = kind

    def _is_harmless(self, call: Call, read: int) -> tuple[bool, bool] | None:
        """Compare the programs behind both answers of a read.

        Returns:
            The answer to force and whether its masks must be causal, as in `Harmless`; None unless
            the programs are the same except for masks that one answer adds.
        """
        if (yes := self._program(call, read, True)) is None:
            return None
        if (no := self._program(call, read, False)) is None:
            return None
        for answer, its, other in ((True, yes, no), (False, no, yes)):
            causal = _only_adds_masks(its, other)
            if causal is not None:
                return answer, causal
        return None

    def _program(self, call: Call, read: int, answer: bool) -> tuple[Program, list[Any]] | None:
        """Run with a forced answer; return the program and the origins of its outputs.

        None if the run fails or may mix rows.
        """
        watch = WatchRows(Answers(call.tasks, self.harmless, (read, answer)), Program())
        seen = try_call(call, "aligned", call.tasks, watch=watch, unhooked=False)
        if seen.error is not None or not _treats_rows_apart(seen):
            return None
        assert watch.program is not None and watch.program.known and watch.made is not None
        return watch.program, watch.made

    def run(self, call: Call, again: bool = True) -> Result | None:
        """Run a call along proved paths, after a proof of a new one if ``again``.

        Returns:
            The result of all tasks, in groups where they differ; None if no path is proved.
        """
        if self.closed or len(self.paths) > MOST_PATHS:
            return None
        answers = Answers(call.tasks, self.harmless)
        differ: TasksDifferError | None = None
        try:
            result = run_aligned(call._replace(watch=Answering(answers)))
            if tuple(answers.path) in self.paths:
                return result
        except TasksDifferError as error:
            differ = error
        if differ is None or differ.read not in self.apart:
            differ = self.prove(call._replace(watch=None)) if again else None
            if differ is None:
                return self.run(call, again=False) if again else None
        return self._apart(call, differ.answers)

    def _apart(self, call: Call, answers: Any) -> Result | None:
        """Run tasks in two groups of equal answers, and join their outputs in the order of tasks.

        None if a group has no proved path, or assigned attributes.
        """
        groups = [answers.nonzero().flatten(), (~answers).nonzero().flatten()]
        results = [self.run(call.of_tasks(its)) for its in groups]
        outputs = [its.outputs for its in results if its is not None and not its.written]
        if len(outputs) < len(results):
            return None
        joined = open_tree(join(outputs, torch.cat, call.target.name))
        order = torch.cat(groups).argsort()
        return Result(joined.build([leaf.tensor[order] for leaf in joined.leaves]), [])


def _only_adds_masks(
    its: tuple[Program, list[Any]], other: tuple[Program, list[Any]]
) -> bool | None:
    """Compare two programs that differ in attention masks alone.

    Returns:
        The ``is_causal`` argument of the attention calls to which the first program adds a mask;
        None if the programs differ in anything else, or these calls differ in it.
    """
    (program, made), (plain, plain_made) = its, other
    if made != plain_made or len(program.masks) != len(plain.masks):
        return None
    pairs = zip(program.masks, plain.masks, strict=True)
    odd = [(mine, theirs) for mine, theirs in pairs if mine != theirs]
    causal = {theirs[1] for _, theirs in odd}
    if len(causal) != 1 or not all(_adds_mask(mine, theirs) for mine, theirs in odd):
        return None
    return causal.pop()


def _adds_mask(its: tuple[Any, bool], plain: tuple[Any, bool]) -> bool:
    """Return True if one attention call has a mask, and is not causal, where the other has none."""
    return its[0] is not None and not its[1] and plain[0] is None


def _treats_rows_apart(seen: Try) -> bool:
    """Return True if a watched run treated rows one by one, with no side effects or draws."""
    watch = seen.watch
    assert watch is not None
    does_more = (
        seen.draws or seen.draws_apart or seen.counts or seen.keeps or seen.written or seen.dense
    )
    return seen.result is not None and not (watch.mixes or watch.reduces or does_more)
