"""Ways through a base that reads numbers from its rows, and whether tasks may go them together.

In:   a checked call of a base that reads numbers.
Out:  the ways that are proved: what was read, and where tasks may differ.
"""

from dataclasses import dataclass, field
from typing import Any

import torch

from weightloom.base.branches import Answering, Answers, Harmless, Program, TasksDifferError
from weightloom.base.call import Call, Result
from weightloom.base.compare_runs import moved, same_outputs
from weightloom.base.engines import run_aligned
from weightloom.base.pieces import join
from weightloom.base.trials import Try, random_states, try_call
from weightloom.base.watch_rows import WatchRows
from weightloom.replica.tree import open_tree

MOST_PATHS = 16
"""A base that goes more ways than this reads something that changes all the time."""


@dataclass
class Ways:
    """Ways through a base along which folding is proved."""

    paths: set[tuple[Any, ...]] = field(default_factory=set)
    """What was read, in order."""
    harmless: Harmless = field(default_factory=dict)
    apart: set[int] = field(default_factory=set)
    """Reads at which tasks that differ are run apart."""
    sizes: bool = False
    """Whether sizes were compared on the way."""
    closed: bool = False
    """Whether something was found that forbids folding."""

    def prove(self, call: Call) -> TasksDifferError | None:
        """Prove the way of a call, or close all ways.

        Return what keeps its tasks from going one way together.
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
        well = _treats_rows_apart(seen) and _treats_rows_apart(folded) and few.result is not None
        if not well or not same_outputs(few.result.outputs, folded.result.outputs):  # type: ignore[union-attr]
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
        """Compare the programs behind both answers.

        One, but for masks that only the second way has?
        """
        programs = {}
        for answer in (True, False):
            watch = WatchRows(Answers(call.tasks, self.harmless, (read, answer)), Program())
            seen = try_call(call, "aligned", call.tasks, watch=watch, unhooked=False)
            if seen.error is not None or not _treats_rows_apart(seen):
                return None
            assert watch.program is not None and watch.program.known and watch.made is not None
            programs[answer] = watch.program, watch.made
        for answer in (True, False):
            (its, made), (others, others_made) = programs[answer], programs[not answer]
            pairs = list(zip(its.masks, others.masks, strict=False))
            odd = [(mine, other) for mine, other in pairs if mine != other]
            causal = {other[1] for _, other in odd}
            alike = made == others_made and len(its.masks) == len(others.masks) and len(causal) == 1
            if alike and all(
                mine[0] is not None and not mine[1] and other[0] is None for mine, other in odd
            ):
                return answer, causal.pop()
        return None

    def run(self, call: Call, again: bool = True) -> Result | None:
        """Run a call along ways that are proved, or can be; None where there are none."""
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
        """Run tasks that answer alike together."""
        groups = [answers.nonzero().flatten(), (~answers).nonzero().flatten()]
        results = [self.run(call.of_tasks(its)) for its in groups]
        outputs = [its.outputs for its in results if its is not None and not its.written]
        if len(outputs) < len(results):
            return None
        joined = open_tree(join(outputs, torch.cat, call.target.name))
        order = torch.cat(groups).argsort()
        return Result(joined.build([leaf.tensor[order] for leaf in joined.leaves]), [])


def _treats_rows_apart(seen: Try) -> bool:
    watch = seen.watch
    assert watch is not None
    does_more = (
        seen.draws or seen.draws_apart or seen.counts or seen.keeps or seen.written or seen.dense
    )
    return seen.result is not None and not (watch.mixes or watch.reduces or does_more)
