"""Folders of customers: safetensors files of parameters, and an index that names them.

In:   names, Params and records of customers.
Out:  files named after their contents, written atomically; an index, written last, so that a
      folder is either complete or as it was.
Loading executes no code.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from weightloom.errors import CheckpointError, listed
from weightloom.files import TEMPORARY, load_tensors, make_folder, save_tensors, write_atomically
from weightloom.forms import Factored
from weightloom.forms.by_name import form_of, has_name
from weightloom.forms.factored import built
from weightloom.hypernets.saving import digest
from weightloom.params import Params, parameters_by_name
from weightloom.serving.records import Kept, Record, Summed
from weightloom.texts import TextError, read_json

INDEX = "customers.json"
KIND = "customers-1"
NAME = re.compile(r"customers-[0-9a-f]{16}\.safetensors")
"""Names of files; an index with others is refused, since files that it names are removed."""
RECORDS: dict[str, type[Kept] | type[Summed]] = {"kept": Kept, "summed": Summed}


class Part(NamedTuple):
    """Customers whose parameters have one structure."""

    names: list[str]
    """Names of the customers."""
    params: Params
    """Their parameters, a task each."""
    about: Sequence[Any]
    """Facts on each, JSON values; None for none."""
    records: Sequence[Record] = ()
    """Examples of each, or none of any."""


class Index(NamedTuple):
    """Contents of `INDEX`."""

    files: list[str]
    """Names of the files, in order."""
    weights: dict[str, str]
    """Digests of the tensors of model and learner, by name."""


def write_folder(folder: Path, parts: Sequence[Part], weights: Mapping[str, str]) -> None:
    """Write customers to a folder, completely or not at all, in place of those that it held.

    Args:
        folder: The folder; created if missing.
        parts: The customers, a file for each part.
        weights: Digests of the tensors that they were written for, by `digests_of`.

    Raises:
        CheckpointError: If a file cannot be written. The customers in the folder are kept.
    """
    make_folder(folder, "folder")
    old = set(read_index(folder).files) if (folder / INDEX).exists() else set[str]()
    files: list[str] = []
    try:
        for part in parts:
            files.append(file_name(part.names, len(files), old))
            write_parts(folder / files[-1], [part])
        write_index(folder, files, weights)
    except BaseException:
        for file in files:
            (folder / file).unlink(missing_ok=True)
        raise
    for file in old:
        with suppress(OSError):
            (folder / file).unlink(missing_ok=True)


def file_name(names: Sequence[str], number: int, taken: set[str]) -> str:
    """Return a name for a file of customers that is not taken."""
    salt = 0
    while (name := named(json.dumps([names, number, salt]).encode())) in taken:
        salt += 1
    return name


def named(content: bytes) -> str:
    """Return the name of a file from the contents that determine it."""
    return f"customers-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"


def write_parts(path: Path, parts: Sequence[Part]) -> None:
    """Write customers to one file, completely or not at all.

    Raises:
        CheckpointError: If the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    facts = [_packed(f"{number}", part, tensors) for number, part in enumerate(parts)]
    save_tensors(path, tensors, {"kind": KIND, "parts": facts})


def read_part(path: Path, model: nn.Module, products: bool = False) -> Iterator[Part]:
    """Read the customers of a file.

    Args:
        path: The file.
        model: The model, whose own values factors describe changes of.
        products: As `Statistics.products` of the learner.

    Raises:
        CheckpointError: If the file is missing, damaged, or holds no customers.
    """
    tensors, facts = load_tensors(path)
    if facts.get("kind") != KIND:
        raise CheckpointError(
            f"`{path}` holds no customers (kind {facts.get('kind')!r}). It was not written by "
            "`Server.save` or `weightloom adapt`. Pass a folder that one of them wrote."
        )
    own = dict(parameters_by_name(model))
    try:
        for number, its in enumerate(facts["parts"]):
            start = f"{number}/"
            held = {name[len(start) :]: t for name, t in tensors.items() if name.startswith(start)}
            yield _unpacked(path, its, held, own, products)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"`{path}` holds customers that cannot be read ({type(error).__name__}: {error}). It "
            "was written by another version of the library. Write the customers again."
        ) from error


def write_index(folder: Path, files: Sequence[str], weights: Mapping[str, str]) -> None:
    """Write the index, which makes the customers of these files those of the folder.

    Raises:
        CheckpointError: If it cannot be written. The previous index is kept.
    """
    facts = {"kind": KIND, "files": list(files), "weights": dict(weights)}
    write_atomically(folder / INDEX, json.dumps(facts, indent=0) + "\n")


def read_index(folder: Path) -> Index:
    """Read the index of a folder.

    Raises:
        CheckpointError: If there is none, or it cannot be read.
    """
    path = folder / INDEX
    try:
        facts = read_json(path)
        if facts["kind"] != KIND:
            raise TextError(f"it is of kind {facts['kind']!r}")
        files, weights = facts["files"], facts["weights"].items()
        if odd := [file for file in files if not NAME.fullmatch(file)]:
            raise TextError(f"it names {str(odd[0])[:60]!r}, which is no file of customers")
        return Index(list(files), {str(name): str(its) for name, its in weights})
    except (TextError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"`{path}` cannot be read ({error}). It is written last, when all customers are in the "
            "folder. Go on with the command that writes them, or pass another folder."
        ) from error


def digests_of(parts: Mapping[str, Any]) -> dict[str, str]:
    """Digest every tensor of some modules; memory that several share is read once.

    Args:
        parts: Modules by name; other objects have no tensors.

    Returns:
        SHA-256 in hexadecimal by name of part and tensor.
    """
    found: dict[str, str] = {}
    known: dict[Any, str] = {}
    for part, module in parts.items():
        state = module.state_dict() if isinstance(module, nn.Module) else {}
        for name, value in state.items():
            if isinstance(value, Tensor):
                memory = (value.data_ptr(), value.shape, value.stride(), value.dtype)
                if memory not in known or not value.numel():
                    known[memory] = digest(value)
                found[f"{part}.{name}"] = known[memory]
    return found


def check_weights(folder: Path, then: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise a `CheckpointError` if model or learner differ from those of a folder."""
    odd = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if odd:
        raise CheckpointError(
            f"The customers in `{folder}` were written for other weights: {listed(odd)} differ. "
            "Parameters of customers fit the model and the learner that wrote them. Load those "
            "weights, or write the customers again."
        )


def remove_leftovers(folder: Path, file: str) -> None:
    """Remove temporary files of a writer of ``file`` that was killed."""
    for path in folder.glob(f".{file}.*{TEMPORARY}"):
        with suppress(OSError):
            path.unlink()


def _packed(start: str, part: Part, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Put the tensors of a part into ``tensors``; return its facts."""
    values = []
    for name, value in part.params.items():
        if not isinstance(value, Factored) or not has_name(value.form):
            tensors[f"{start}/params/{name}"] = built(value)
            values.append({"name": name})
            continue
        form: dict[str, Any] = {"form": type(value.form).__name__, "options": value.form.__dict__}
        for kind, its in (("factors", value.factors), ("shared", value.shared)):
            form[kind] = list(its)
            for its_name, tensor in its.items():
                tensors[f"{start}/{kind}/{name}/{its_name}"] = tensor
        values.append({"name": name, **form})
    facts: dict[str, Any] = {"names": part.names, "about": list(part.about), "values": values}
    if part.records:
        records: Any = part.records
        held, facts["records"] = type(records[0]).pack(records)
        facts["kind"] = next(n for n, kind in RECORDS.items() if isinstance(records[0], kind))
        tensors |= {f"{start}/records/{name}": tensor for name, tensor in held.items()}
    return facts


def _unpacked(
    path: Path,
    facts: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    products: bool,
) -> Part:
    params = Params()
    for its in facts["values"]:
        name = its["name"]
        if name not in own:
            raise CheckpointError(
                f"`{path}` holds parameters {name!r}, which the model does not have. They were "
                "written for another architecture. Load that model."
            )
        if "form" not in its:
            params[name] = tensors[f"params/{name}"].to(own[name].device)
            continue
        factors, shared = (
            {n: tensors[f"{kind}/{name}/{n}"].to(own[name].device) for n in its[kind]}
            for kind in ("factors", "shared")
        )
        form = form_of(path, its["form"], its["options"])
        params[name] = Factored(form, own[name].detach(), factors, shared)
    records: list[Record] = []
    if "records" in facts:
        held = {n.removeprefix("records/"): t for n, t in tensors.items() if n[:8] == "records/"}
        more = (products,) if facts["kind"] == "summed" else ()
        records = [*RECORDS[facts["kind"]].unpack(held, facts["records"], *more)]
    return Part(facts["names"], params, facts["about"], records)
