"""From what a user calls a model to the model: ``package.module:Class``, ``net.py:Class``, ``torchvision:NAME``."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import io
import os
import socket
import sys
import sysconfig
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from ckpt_tools.checkpoint import Checkpoint
from ckpt_tools.errors import CkptError, MissingDependency
from ckpt_tools.runtime.replica import empty_like
from ckpt_tools.sources import Source
from ckpt_tools.verification.arguments import parse_arguments as parse_arguments

PICKLE = "pickle"

FORMS = "package.module:Class, path/to/file.py:Class, torchvision:NAME, timm:NAME or pickle"
"""What a specification of a model may look like; the class may be a function that returns a model."""


class MissingArguments(CkptError):
    """The class needs arguments that were not given: their *names*."""

    def __init__(self, problem: str, names: Sequence[str], *, remedy: str) -> None:
        super().__init__(problem, remedy=remedy)
        self.names = tuple(names)


class WantsDownload(CkptError):
    """The class tried to reach the network while it was being built."""


def locate(
    spec: str,
    args: Sequence[object] = (),
    kwargs: Mapping[str, object] | None = None,
    *,
    checkpoint: Checkpoint | None = None,
    trust: bool = False,
    empty: bool = True,
) -> nn.Module:
    """Build the model that *spec* names (see `FORMS`), by calling it with *args* and *kwargs*.

    ``pickle`` is the model that *checkpoint* holds whole: loading it runs what the file says, so *trust* must be
    true. With *empty*, parameters are made on the meta device where the class allows: they cost neither memory
    nor initialization; buffers are real. Nothing is downloaded: torchvision and timm are asked for no weights,
    and connections fail. What the class prints goes to standard error.

    Raises `CkptError` that says which step failed: the specification, the import, the constructor.
    """
    place, _, name = spec.rpartition(":")
    with _contained(os.path.dirname(os.path.abspath(place)) if _is_file(place) else os.getcwd()) as network:
        if spec == PICKLE:
            return _unpickle(checkpoint, trust)
        if not place or not name:
            raise CkptError(f"{spec!r} names no model", remedy=f"It may be {FORMS}")
        make, kwargs = _find(place, name, dict(kwargs or {}))
        if isinstance(make, nn.Module):
            return make
        if not callable(make):
            raise CkptError(f"{spec} is of type {type(make).__name__}, neither a class nor a function")
        _check_arguments(spec, make, args, kwargs)
        return _build(spec, lambda: make(*args, **kwargs), network, empty)


# --- what a specification names


def _find(place: str, name: str, kwargs: dict[str, object]) -> tuple[object, dict[str, object]]:
    """What to call, and with which named arguments."""
    if place == "torchvision":
        return _torchvision(name, kwargs)
    if place == "timm":
        return _timm(name, kwargs)
    found: object = _from_file(place) if _is_file(place) else _import(place)
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            names = [key for key in dir(found) if callable(getattr(found, key)) and not key.startswith("_")]
            raise CkptError(f"{place} has no {part!r}", remedy=_similar(part, names)) from None
    return found, kwargs


def _is_file(place: str) -> bool:
    return place.endswith(".py") or os.path.sep in place


def model_names(library: str) -> list[str]:
    """The models that ``torchvision:NAME`` or ``timm:NAME`` may be."""
    if library == "timm":
        import timm

        return list(timm.list_models())
    return list(_torchvision_models().list_models())


def _torchvision(name: str, kwargs: dict[str, object]) -> tuple[object, dict[str, object]]:
    models = _torchvision_models()
    try:
        builder = models.get_model_builder(name)
    except ValueError:
        raise CkptError(f"torchvision has no model {name!r}", remedy=_similar(name, models.list_models())) from None
    accepted = inspect.signature(builder).parameters
    for option in ("weights", "weights_backbone"):
        if option in accepted:
            kwargs.setdefault(option, None)
    return builder, kwargs


def _torchvision_models() -> Any:
    """``torchvision.models``, imported without torch's compiler where that is still to come.

    torchvision/ops/roi_align.py takes one function from the compiler at import, which is most of what importing
    torchvision takes. It stands in for itself here, and comes when it is called.
    """
    package, name = "torch._dynamo", "torch._dynamo.utils"
    if package not in sys.modules:
        later: Any = ModuleType(name)
        later.is_compile_supported = lambda device: importlib.import_module(name).is_compile_supported(device)
        sys.modules |= {package: ModuleType(package), name: later}
        try:
            from torchvision import models
        except (ImportError, AttributeError):  # there is no torchvision, or one that takes more: again, with all
            pass
        else:
            return models
        finally:
            del sys.modules[package], sys.modules[name]
    try:
        from torchvision import models
    except ImportError:
        raise MissingDependency("torchvision", "torch", "a model of torchvision") from None
    return models


def _timm(name: str, kwargs: dict[str, object]) -> tuple[object, dict[str, object]]:
    try:
        import timm
    except ImportError:
        raise MissingDependency("timm", "timm", "a model of timm") from None
    if not timm.is_model(name):
        raise CkptError(f"timm has no model {name!r}", remedy=_similar(name, timm.list_models()))
    return timm.create_model, {"model_name": name, "pretrained": False, **kwargs}


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise CkptError(
                f"there is no module {error.name!r}",
                remedy="Modules are looked for in this environment and in the current folder",
            ) from None
        raise CkptError(f"importing {name} failed: {_said(error)}") from error
    except (Exception, SystemExit, _Refused) as error:
        raise CkptError(f"importing {name} failed: {_said(error)}", remedy=_advice(error)) from error


def _from_file(path: str) -> ModuleType:
    if not os.path.isfile(path):
        raise CkptError("no such file", path=path)
    folder, stem = os.path.dirname(os.path.abspath(path)), os.path.basename(path).removesuffix(".py")
    # under its own name, so that a module beside it may import it, unless that name is taken
    name = stem if stem not in sys.modules else f"{stem} of {folder}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CkptError("is no Python file", path=path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit, _Refused) as error:
        del sys.modules[name]
        raise CkptError(f"importing {path} failed: {_said(error)}", remedy=_advice(error)) from error
    return module


def _unpickle(checkpoint: Checkpoint | None, trust: bool) -> nn.Module:
    if checkpoint is None or checkpoint.module is None:
        raise CkptError("it holds no pickled module", remedy=f"Name its class: {FORMS.removesuffix(' or pickle')}")
    class_name = checkpoint.module.class_name
    if not trust:
        raise CkptError(
            f"loading the pickled {class_name} runs what the file says, whatever that is",
            remedy="Allow it with --trust where you trust who wrote the file; ckpt audit shows what it would run",
        )
    source = checkpoint.source
    assert isinstance(source, Source)  # what a folder holds is no pickled module
    located = source.locate(0)
    found: Any
    try:
        if located is not None and located[1] == 0 and os.path.getsize(located[0]) == source.size:
            found = torch.load(located[0], "cpu", weights_only=False, mmap=checkpoint.format == "torch_zip")
        else:
            found = torch.load(io.BytesIO(source.read(0, source.size)), "cpu", weights_only=False)
        key: Any
        for key in checkpoint.module_path:
            found = found[key] if isinstance(found, dict | list | tuple) else getattr(found, str(key))
    except (ImportError, AttributeError) as error:
        raise CkptError(
            f"its class {class_name} cannot be imported: {_said(error)}",
            remedy="Run where it can be, or name the class as it is now: module:Class",
        ) from error
    except (Exception, SystemExit, _Refused) as error:
        raise CkptError(f"unpickling {class_name} failed: {_said(error)}") from error
    if not isinstance(found, nn.Module):
        raise CkptError(f"unpickling gave a {type(found).__name__}, not an nn.Module")
    return found


def _similar(name: str, names: Sequence[str]) -> str | None:
    close = difflib.get_close_matches(name, names, 3, 0.5)
    return f"Did you mean {' or '.join(close)}?" if close else None


# --- the call


def _check_arguments(
    spec: str, make: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]
) -> None:
    """Raise what does not fit a signature, before anything runs."""
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # what is written in C may have none
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        try:
            taken = set(signature.bind_partial(*args, **kwargs).arguments)
        except TypeError:  # too many, or of a name that it does not take
            raise CkptError(f"{spec} cannot be called so: {error}", remedy=f"It takes {signature}") from None
        missing = [
            parameter.name
            for parameter in signature.parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            and parameter.name not in taken
        ]
        options = " ".join(f"--kwargs {name}=VALUE" for name in missing)
        raise MissingArguments(
            f"{spec} needs arguments: {', '.join(missing)}",
            missing,
            remedy=f"Give them with {options} (JSON), or name a function without arguments that makes the model",
        ) from None


def _build(spec: str, call: Callable[[], object], network: _Network, empty: bool) -> nn.Module:
    try:
        model = _built(call, network, empty)
    except (Exception, SystemExit, _Refused) as error:
        if network.asked:
            raise WantsDownload(
                f"{spec} wants to download something from {network.asked}, such as pretrained weights",
                remedy="Have it built without, by an argument of its own such as --kwargs pretrained=false",
            ) from error
        raise CkptError(f"{spec} raised {_said(error)}", remedy=_advice(error)) from error
    if not isinstance(model, nn.Module):
        raise CkptError(f"{spec} returned a {type(model).__name__}, not an nn.Module")
    return model


def _advice(error: BaseException) -> str | None:
    """What helps against what classes do that expect to be run by their own script."""
    if "NVIDIA" in str(error) or "CUDA" in str(error):
        return "Leave it to the caller to move the model to a GPU; --device cuda does, where there is one"
    if isinstance(error, EOFError):
        return "It asks for input, which nobody gives here"
    if isinstance(error, SystemExit):
        return "Keep what reads the command line, and what ends the program, under if __name__ == '__main__'"
    return None


def _built(call: Callable[[], object], network: _Network, empty: bool) -> object:
    if empty:
        try:
            with _empty_parameters():
                return call()
        except Exception:
            # some constructors compute with their parameters, which works only where these are real
            if network.asked:
                raise
    return call()


@contextlib.contextmanager
def _empty_parameters() -> Iterator[None]:
    """Every parameter that a module is given becomes one on the meta device; a shared one stays shared."""
    made: dict[int, tuple[weakref.ref[nn.Parameter], nn.Parameter]] = {}

    def empty(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter:
        if parameter.is_meta or nn.parameter.is_lazy(parameter):
            return parameter
        known = made.get(id(parameter))
        if known is None or known[0]() is not parameter:
            known = made[id(parameter)] = (weakref.ref(parameter), empty_like(parameter))
        return known[1]

    handle = register_module_parameter_registration_hook(empty)
    try:
        with _Undrawn():
            yield
    finally:
        handle.remove()


class _Undrawn(TorchFunctionMode):  # type: ignore[misc]
    """Drawing values into what has no data does nothing; torch would bring in its compiler to do as much."""

    def __torch_function__(
        self, function: Any, types: object, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        if function in _DRAWS and isinstance(target, Tensor) and target.is_meta:
            return target
        return function(*args, **kwargs)


_DRAWS = {
    Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_, Tensor.exponential_, Tensor.geometric_, Tensor.log_normal_,
    Tensor.cauchy_, Tensor.random_, nn.init.normal_,
}  # fmt: skip


# --- the surroundings


class _Refused(BaseException):
    """Out of reach of ``except Exception``."""


class _Network:
    """Whom the code inside tried to reach."""

    asked = ""


@contextlib.contextmanager
def _contained(folder: str) -> Iterator[_Network]:
    """What runs inside prints to standard error, imports from *folder* too, and reaches no network."""
    network = _Network()
    lookup, connect = socket.getaddrinfo, socket.socket.connect

    def refuse(host: object) -> NoReturn:
        # what can do without may go on; what tries again, for minutes at times, is ended
        error = _Refused if network.asked else ConnectionRefusedError
        network.asked = str(host)
        raise error(f"ckpt-tools lets nothing be downloaded (from {host})")

    def refuse_lookup(host: object, *args: object, **kwargs: object) -> NoReturn:
        refuse(host)

    def refuse_connection(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple):
            refuse(address[0])
        connect(self, address)  # a socket of this machine

    sys.path.insert(0, folder)
    socket.getaddrinfo = refuse_lookup
    socket.socket.connect = refuse_connection  # type: ignore[assignment,method-assign]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield network
    finally:
        socket.getaddrinfo = lookup
        socket.socket.connect = connect  # type: ignore[method-assign]
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _said(error: BaseException) -> str:
    """An exception in a line, with where in a file it was raised."""
    message = " ".join(str(error).split())
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if isinstance(error, SyntaxError):
        return text  # which names file and line itself
    place = place_of(error)
    return f"{text} ({place})" if place else text


def place_of(error: BaseException, *, own_only: bool = False) -> str:
    """The file and line at which an exception came up: the last of the user's code, where some of the way is that.

    With *own_only* "" where none is, else it is that of the library.
    """
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<", _OURS)) and frame.lineno is not None
    ]
    own = [frame for frame in frames if not frame.filename.startswith(_INSTALLED)]
    told = own if own_only else own or frames
    return f"{told[-1].filename}, line {told[-1].lineno}" if told else ""


_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_INSTALLED = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")})
