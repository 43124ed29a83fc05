"""Adapters for a vLLM server, generated when a user is first asked for."""

import asyncio
import hashlib
import shutil
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

from torch import Tensor, nn

from weightloom.errors import CheckpointError, ConfigError, MissingExtraError, ShapeError
from weightloom.serving.peft_saving import CONFIG, WEIGHTS, PeftWriter, is_folder_name


class AdapterResolver:
    """Resolver of adapters with the interface of vLLM's ``LoRAResolver``.

    vLLM calls `resolve_lora` when a request names an adapter that it has not loaded. The adapter is
    then generated, written to ``cache`` as a folder of `peft`, and handed over as a
    ``LoRARequest``; later requests find the folder. Generation runs in a thread, one adapter at a
    time, so the server goes on answering.

    Empty the cache, or `forget` a user, when the hypernetwork or that user's examples have changed.

    Args:
        generate: Returns the adapter of a user, Params of one task, or None for an unknown user.
        cache: Folder for the folders of `peft`.
        base_name: Name of the base model in the server. Requests for another base get None.
        model: The model, as in `save_peft`. Its weights must not change while it is served.

    Example:
        >>> import asyncio, tempfile
        >>> resolver = AdapterResolver(lambda user: None, tempfile.mkdtemp(), base_name="model")
        >>> asyncio.run(resolver.resolve_lora("model", "ann")) is None  # an unknown user
        True

    Source:
        vLLM 0.20, ``vllm.lora.resolver.LoRAResolver``. Tested against that interface, not in a
        server. The server needs ``--enable-lora``, a ``--max-lora-rank`` of at least the rank, and
        the environment variable ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1``.
    """

    def __init__(
        self,
        generate: Callable[[str], Mapping[str, Tensor] | None],
        cache: str | Path,
        base_name: str,
        model: nn.Module | None = None,
    ) -> None:
        self.generate, self.cache = generate, Path(cache)
        self.base_name = base_name
        self._writer = PeftWriter(model, base_name=base_name)
        self._lock = Lock()

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
        """Return a ``LoRARequest`` for a user's adapter, or None if there is none.

        Args:
            base_model_name: Name of the server's base model.
            lora_name: Name of the user. Names that cannot be a folder belong to no user.

        Raises:
            CheckpointError: If the adapter cannot be written.
            ShapeError: If ``generate`` returns several tasks.
            MissingExtraError: If vLLM is not installed.
        """
        if base_model_name != self.base_name or not is_folder_name(lora_name):
            return None
        folder = await asyncio.to_thread(self._folder, lora_name)
        if folder is None:
            return None
        content = (folder / WEIGHTS).read_bytes() + lora_name.encode()
        number = int.from_bytes(hashlib.sha256(content).digest()[:7]) + 1  # unique, and positive
        request = _vllm("request").LoRARequest
        return request(lora_name=lora_name, lora_int_id=number, lora_path=str(folder))

    def register(self, name: str = "weightloom") -> None:
        """Register this resolver with vLLM in this process, as a plug-in does on start.

        Args:
            name: Name of the resolver in vLLM's registry.

        Raises:
            MissingExtraError: If vLLM is not installed.
        """
        resolver = _vllm("resolver")
        resolver.LoRAResolver.register(type(self))
        resolver.LoRAResolverRegistry.register_resolver(name, self)

    def forget(self, name: str) -> None:
        """Delete the cached folder of a user, so that the next request generates it again.

        vLLM keeps an adapter that it has loaded until it is told to unload it.

        Args:
            name: Name of the user.
        """
        with self._lock:
            if is_folder_name(name):
                shutil.rmtree(self.cache / name, ignore_errors=True)

    def _folder(self, name: str) -> Path | None:
        """Folder of a user, written if it is not there yet; None for an unknown user."""
        folder = self.cache / name
        with self._lock:
            if _is_complete(folder):
                return folder
            params = self.generate(name)
            if params is None:
                return None
            tasks = len(next(iter(params.values())))
            if tasks != 1:
                raise ShapeError(
                    f"`generate({name!r})` returned {tasks} tasks. An adapter is one user's. "
                    "Return one, as by `params.take([task])`."
                )
            try:
                self._writer.write(params, [name], self.cache)
            except (ConfigError, CheckpointError):
                if not _is_complete(folder):  # else another process was first
                    raise
        return folder


def _is_complete(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def _vllm(module: str) -> Any:
    try:
        return import_module(f"vllm.lora.{module}")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "vLLM is not installed. The resolver hands adapters to a server of it. Type "
            "`pip install vllm`, or write folders for any server by `save_peft`."
        ) from error
