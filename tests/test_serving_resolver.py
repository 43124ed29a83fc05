"""The resolver, against the interface that vLLM publishes: no vLLM runs here."""

import asyncio
import sys
import threading
import time
import types
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from weightloom.errors import MissingExtraError, ShapeError
from weightloom.forms import LowRank
from weightloom.hypernets import AdapterHyperNetwork
from weightloom.networks import mlp
from weightloom.serving import AdapterResolver, load_peft, save_peft


@dataclass(frozen=True)
class LoRARequest:
    """Fields of ``vllm.lora.request.LoRARequest``, 0.20."""

    lora_name: str
    lora_int_id: int
    lora_path: str = ""
    base_model_name: str | None = None

    def __post_init__(self):
        assert self.lora_int_id >= 1 and self.lora_path


class LoRAResolver(ABC):
    """``vllm.lora.resolver.LoRAResolver``, 0.20."""

    @abstractmethod
    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None: ...


@dataclass
class Registry:
    """``vllm.lora.resolver.LoRAResolverRegistry``, 0.20."""

    resolvers: dict[str, LoRAResolver] = field(default_factory=dict)

    def register_resolver(self, resolver_name, resolver):
        self.resolvers[resolver_name] = resolver


@pytest.fixture
def vllm(monkeypatch):
    modules = {name: types.ModuleType(name) for name in ("vllm", "vllm.lora")}
    modules["vllm.lora.request"] = types.SimpleNamespace(LoRARequest=LoRARequest)
    modules["vllm.lora.resolver"] = types.SimpleNamespace(
        LoRAResolver=LoRAResolver, LoRAResolverRegistry=Registry()
    )
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return modules["vllm.lora.resolver"].LoRAResolverRegistry


@pytest.fixture
def service(tmp_path):
    """A model, its generator of adapters for two users, and how often it was asked."""
    model, users = mlp([8, 16, 4]), {"ann": torch.randn(1, 3), "bob": torch.randn(1, 3)}
    hyper, asked = AdapterHyperNetwork(model, condition_dim=3, form=LowRank(2)), []
    nn.init.normal_(hyper.generator.up.weight)

    def generate(user):
        asked.append((user, threading.current_thread()))
        time.sleep(0.01)
        return hyper(users[user]) if user in users else None

    resolver = AdapterResolver(generate, tmp_path / "cache", base_name="org/model", model=model)
    return model, lambda user: hyper(users[user]), resolver, asked


def test_a_request_writes_the_adapter_once_and_returns_its_folder(vllm, service):
    model, generate, resolver, asked = service
    resolver.register()
    resolver = vllm.resolvers["weightloom"]
    assert isinstance(resolver, LoRAResolver)

    async def requests():
        return await asyncio.gather(
            *(resolver.resolve_lora("org/model", user) for user in ("ann", "bob", "ann", "cyd"))
        )

    ann, bob, again, unknown = asyncio.run(requests())
    assert ann == again and unknown is None
    assert ann.lora_name == "ann" and ann.lora_int_id != bob.lora_int_id
    assert sorted(user for user, _ in asked) == ["ann", "bob", "cyd"]
    assert threading.main_thread() not in {thread for _, thread in asked}
    found, expected = load_peft(ann.lora_path, model), generate("ann")
    for name, value in expected.items():
        for factor, its in value.factors.items():
            assert torch.equal(found[name].factors[factor], its)


def test_another_base_and_names_that_lead_elsewhere_get_none(vllm, service, tmp_path):
    _, _, resolver, asked = service
    for base, user in [
        ("other", "ann"),
        *(("org/model", its) for its in ("../ann", "", ".x", "a/b")),
    ]:
        assert asyncio.run(resolver.resolve_lora(base, user)) is None
        resolver.forget(user)
    assert not asked and not list(tmp_path.iterdir())


def test_a_forgotten_user_is_generated_again_under_a_new_number(vllm, service):
    _, generate, resolver, _ = service
    first = asyncio.run(resolver.resolve_lora("org/model", "ann"))
    resolver.forget("ann")
    resolver.generate = lambda user: generate("bob")  # the user's examples have changed
    second = asyncio.run(resolver.resolve_lora("org/model", "ann"))
    assert second.lora_path == first.lora_path and second.lora_int_id != first.lora_int_id


def test_vllm_is_asked_for_only_in_use_and_one_user_is_one_task(service, monkeypatch):
    _, generate, resolver, _ = service
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError, match="pip install vllm"):
        resolver.register()
    resolver.generate = lambda user: generate("ann").take([0, 0])
    with pytest.raises(ShapeError, match="returned 2 tasks"):
        asyncio.run(resolver.resolve_lora("org/model", "ann"))


def test_another_process_may_write_the_folder_first(vllm, service):
    _, generate, resolver, _ = service

    def late(user):
        save_peft(generate("bob"), [user], resolver.cache)
        return generate(user)

    resolver.generate = late
    found = asyncio.run(resolver.resolve_lora("org/model", "ann"))
    assert found is not None and [its.name for its in resolver.cache.iterdir()] == ["ann"]
