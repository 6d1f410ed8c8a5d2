"""Send functions to workers by value: lambdas, closures, functions of a notebook or a program.

A job names them like others, `module:function`; what they are travels beside the job, over the
driver's own connection to its workers, once to each (`parcels.py`), and is stored nowhere. The
settings of both sides must allow it (`transforms.allow_by_value`), which is checked before anything
is unpickled.

Code of the user's own modules that such a function uses is sent with it, as this process has it.
Libraries are not: workers import them.
"""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from threading import Lock
from typing import Any

from pipeline.concurrency import single_flight
from pipeline.errors import JobError, TransformNotAllowedError
from pipeline.report.humanize import byte_size
from pipeline.runs.transforms.packages import versions_in_use
from pipeline.runs.transforms.parcels import Parcels, parcel_digest
from pipeline.runs.transforms.reach import Reached
from pipeline.runs.transforms.user_code import describe, is_from_signal
from pipeline.runs.transforms.value_digests import ValueDigests

MAIN = "__main__"
MAX_BYTES = 16_000_000
"""Maximum size of a function with what it uses, which is sent to each worker process once; larger
data belong in an object or a table."""
_registry = Lock()
"""Held while modules are registered with cloudpickle, whose list belongs to the process."""


@dataclass(frozen=True, slots=True)
class ValueFunction:
    """A function that is sent by value."""

    name: str
    """Name in the job: `module:function`."""
    parcel: bytes = field(repr=False)
    """The pickled function."""
    digests: dict[str, str] = field(repr=False)
    """Digest of each definition and value that it reaches, by module and name."""
    packages: tuple[str, ...] = ()
    """Installed packages that it uses."""

    @property
    def reached(self) -> Reached:
        """What the fingerprint of the function covers."""
        module = self.name.partition(":")[0]
        code = [f"{name}={digest}" for name, digest in sorted(self.digests.items())]
        return Reached({module: {"by value": code}}, len(self.digests), (), self.digests)

    @property
    def modules(self) -> set[str]:
        """The modules whose code it has."""
        return {name.partition(":")[0] for name in self.digests}

    def load(self) -> Callable[..., Any]:
        """Unpickle the function, once per process.

        Raises:
            JobError: This process lacks a package, or other code, that it needs.
        """
        try:
            function: Callable[..., Any] = _unpickle(self.parcel)
        except BaseException as error:
            if is_from_signal(error):
                raise
            raise JobError(
                f"{self.name} was sent by value, and cannot be loaded here: {describe(error)}",
                hint="install what it imports for the workers too, or put the function into a "
                "module that transforms.allow names",
            ) from error
        return function

    def to_json(self) -> dict[str, Any]:
        """Return what batches say of it, as JSON: the function itself by its digest."""
        return {
            "parcel": parcel_digest(self.parcel),
            "digests": self.digests,
            "packages": list(self.packages),
        }

    @classmethod
    def from_json(cls, name: str, data: dict[str, Any], parcels: Parcels) -> ValueFunction:
        """Return what `to_json` wrote, with the function itself; nothing is unpickled.

        Raises:
            FunctionMissingError: This process has not got the function.
        """
        parcel = parcels.get(data["parcel"])
        return cls(name, parcel, dict(data["digests"]), tuple(data["packages"]))


@single_flight(32)
def _unpickle(parcel: bytes) -> Any:
    return pickle.loads(parcel)


def send_by_value(function: Callable[..., Any], taken: Sequence[str] = ()) -> ValueFunction:
    """Pickle a function with the values and the code of the user that it uses now.

    Args:
        function: Any callable.
        taken: Names of other functions of the same job.

    Raises:
        JobError: It uses something that cannot be sent, or is too large.
    """
    name = _free_name(function, taken)
    walk = ValueDigests(name)
    walk.add(function)
    import cloudpickle

    try:
        with _sending_whole(walk.modules):
            parcel: bytes = cloudpickle.dumps(function, protocol=5)
    except Exception as error:
        raise JobError(
            f"{name} cannot be sent to workers: {describe(error)}",
            hint="make connections, locks and files inside the function; pass what it needs as "
            "params",
        ) from error
    if len(parcel) > MAX_BYTES:
        raise JobError(
            f"{name} is {byte_size(len(parcel))} with the values that it uses; at most "
            f"{byte_size(MAX_BYTES)} are sent to workers",
            hint="write large values to Parquet, and read them in the function: read_table(uri)",
        )
    packages = tuple(sorted(walk.packages))
    digests = walk.digests
    module, _, short = name.partition(":")
    digests[f"{module}:libraries of {short}"] = sha256(
        repr([sys.version_info[:2], sorted(versions_in_use(packages).items())]).encode()
    ).hexdigest()[:16]
    return ValueFunction(name, parcel, digests, packages)


def _free_name(function: Any, taken: Sequence[str]) -> str:
    """Return a name of the form `module:function` that no other function of the job has."""
    innermost = function
    while isinstance(innermost, partial):
        innermost = innermost.func
    module = getattr(innermost, "__module__", None) or MAIN
    module = module if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", module) else MAIN
    text = getattr(innermost, "__name__", None) or type(innermost).__name__
    text = re.sub(r"\W", "", text) or "function"
    base = name = f"{module}:{text if text[0].isalpha() or text[0] == '_' else '_' + text}"
    number = 1
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    return name


@contextmanager
def _sending_whole(modules: set[str]) -> Iterator[None]:
    """Have cloudpickle send the code of these modules, and not their names."""
    import cloudpickle

    with _registry:
        loaded = [sys.modules[name] for name in sorted(modules - {MAIN}) if name in sys.modules]
        known = set(cloudpickle.list_registry_pickle_by_value())
        new = [module for module in loaded if module.__name__ not in known]
        for module in new:
            cloudpickle.register_pickle_by_value(module)
        try:
            yield
        finally:
            for module in new:
                cloudpickle.unregister_pickle_by_value(module)


def refuse_by_value(name: str) -> TransformNotAllowedError:
    """Return the error for a function by value where the settings do not allow it."""
    return TransformNotAllowedError(
        f"{name} would be sent by value, which transforms.allow_by_value does not allow",
        hint="put it into a module that transforms.allow names; or set transforms.allow_by_value "
        "here and where the workers are started; or run it on this machine: with "
        "chunkmap.local()",
    )


def refuse_program_function(name: str) -> TransformNotAllowedError:
    """Return the error for a function of a program that this process does not have."""
    return TransformNotAllowedError(
        f"{name} was sent by value from a program or notebook, and exists only there",
        hint="run it again there (job.run() resumes the run); or put the function into a module "
        "that transforms.allow names",
    )
