"""Checkpoints of a training: networks, optimisers, replay buffer, environment and random states."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightloom.apps.rl.envs.wrappers import kept_of, restore
from weightloom.runs.checkpoint import (
    check_fits,
    read_checkpoint,
    restore_state,
    state_of,
    write_checkpoint,
)

_REPLAY = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
_COUNTS = ("num_timesteps", "_n_updates", "_episode_num", "_current_progress_remaining")


def keep(path: Path, model: Any, identity: str = "") -> None:
    """Write a checkpoint of a model, between two rollouts, as safetensors with JSON facts.

    Args:
        path: File to write.
        model: Model of Stable-Baselines3, with its environment.
        identity: Digest of the run and name of the method.

    Raises:
        CheckpointError: If the file cannot be written.
    """
    tensors: dict[str, Tensor] = {
        f"policy/{name}": value for name, value in model.policy.state_dict().items()
    }
    tensors |= state_of(_optimisers(model))
    if getattr(model, "log_ent_coef", None) is not None:
        tensors["log_ent_coef"] = model.log_ent_coef
    facts: dict[str, Any] = {name: getattr(model, name) for name in _COUNTS if hasattr(model, name)}
    facts["recent_returns"] = list(getattr(model, "recent_returns", []))
    if getattr(model, "replay_buffer", None) is not None:
        buffer = model.replay_buffer
        facts |= {"position": buffer.pos, "full": buffer.full}
        tensors |= _replay_of(buffer)
    inner = kept_of(model.env)
    if inner is not None:
        tensors |= {f"env/{name}": value for name, value in inner.items()}
        tensors["last/observations"] = torch.from_numpy(np.asarray(model._last_obs))
        tensors["last/starts"] = torch.from_numpy(np.asarray(model._last_episode_starts))
    if hasattr(model, "_last_lstm_states"):
        for number, state in enumerate((*model._last_lstm_states.pi, *model._last_lstm_states.vf)):
            tensors[f"memory/{number}"] = state
    tensors["random/torch"] = torch.get_rng_state()
    # Stable-Baselines3 draws from numpy's global generator and from that of the action space
    kind, keys, *rest = np.random.get_state()
    tensors["random/numpy"] = torch.from_numpy(np.asarray(keys, dtype=np.int64))
    facts["random"] = [kind, *rest]
    facts["actions"] = model.action_space.np_random.bit_generator.state
    write_checkpoint(path, tensors, json.loads(json.dumps(facts, default=_plain)), identity)


def _replay_of(buffer: Any) -> dict[str, Tensor]:
    """Return the filled part of a replay buffer, by name in the checkpoint."""
    size = buffer.buffer_size if buffer.full else buffer.pos
    return {f"replay/{name}": torch.from_numpy(getattr(buffer, name)[:size]) for name in _REPLAY}


def take_up(path: Path, model: Any, identity: str = "") -> None:
    """Restore a model from a checkpoint, to continue as if it had never stopped.

    Batched environments resume their episodes. Environments of gymnasium begin new ones, because
    their state cannot be read.

    Args:
        path: File that `keep` wrote.
        model: Model built with the same options, changed in place.
        identity: Digest of the run and name of the method.

    Raises:
        CheckpointError: If the file is incomplete, or of another model or run.
    """
    tensors, facts = read_checkpoint(path, identity)
    load_policy(path, model, tensors)
    restore_state(path, tensors, _optimisers(model))
    if "log_ent_coef" in tensors:
        model.log_ent_coef.data.copy_(tensors["log_ent_coef"])
    model.recent_returns = facts.get("recent_returns", [])
    for name in _COUNTS:
        if name in facts:
            setattr(model, name, facts[name])
    if "position" in facts:
        buffer = model.replay_buffer
        buffer.pos, buffer.full = facts["position"], facts["full"]
        for name in _REPLAY:
            kept = tensors[f"replay/{name}"].numpy()
            getattr(buffer, name)[: len(kept)] = kept
    _restore_env(model, tensors)
    if "memory/0" in tensors:
        states = [tensors[f"memory/{number}"].clone() for number in range(4)]
        kind = type(model._last_lstm_states)
        model._last_lstm_states = kind((states[0], states[1]), (states[2], states[3]))
    torch.set_rng_state(tensors["random/torch"])
    kind, *rest = facts["random"]
    np.random.set_state((kind, tensors["random/numpy"].numpy().astype(np.uint32), *rest))
    model.action_space.np_random.bit_generator.state = facts["actions"]


def load_policy(
    path: Path, model: Any, tensors: dict[str, Tensor] | None = None, identity: str = ""
) -> None:
    """Load the networks of a checkpoint into a model, without optimisers, replay or environment.

    Args:
        path: File that `keep` wrote.
        model: Model built with the same options, changed in place.
        tensors: Contents of the file, if read already.
        identity: Digest of the run and name of the method; not compared if ``tensors`` is given.

    Raises:
        CheckpointError: If the file is incomplete, or of another model or run.
    """
    if tensors is None:
        tensors, _ = read_checkpoint(path, identity)
    kept = {
        name.removeprefix("policy/"): value
        for name, value in tensors.items()
        if name.startswith("policy/")
    }
    check_fits(path, model.policy.state_dict(), kept)
    model.policy.load_state_dict(kept)


def _restore_env(model: Any, tensors: dict[str, Tensor]) -> None:
    inner = {
        name.removeprefix("env/"): value
        for name, value in tensors.items()
        if name.startswith("env/")
    }
    if inner:
        restore(model.env, inner)
        model._last_obs = tensors["last/observations"].numpy().copy()
        model._last_episode_starts = tensors["last/starts"].numpy().copy()
    else:
        model._last_obs = model.env.reset()
        model._last_episode_starts = np.ones(model.env.num_envs, dtype=bool)


def _optimisers(model: Any) -> dict[str, torch.optim.Optimizer]:
    """Return the optimisers of a model by name in the checkpoint."""
    found = {}
    if hasattr(model, "critic") and model.critic is not None:
        found = {
            "optimiser/actor": model.actor.optimizer,
            "optimiser/critic": model.critic.optimizer,
        }
    else:
        found = {"optimiser/policy": model.policy.optimizer}
    if getattr(model, "ent_coef_optimizer", None) is not None:
        found["optimiser/entropy"] = model.ent_coef_optimizer
    return found


def _plain(value: Any) -> Any:
    """Convert a numpy value to a Python one, for JSON."""
    return value.item() if hasattr(value, "item") else value.tolist()
