"""A logical device: for PyTorch an accelerator, whose numbers are in main memory.

Code that was never run on an accelerator makes three kinds of mistakes that a CPU cannot show: it mixes tensors of two
devices, it waits for the device when it could continue, and it copies between main memory and the device more often
than necessary. On this device each of them is an event with the line of code that caused it:

    with LogicalDevice() as logical:
        denoiser.to(logical.device)
        ...
    for event in logical.events:
        print(event)

The device is PyTorch's `PrivateUse1` backend under the name `logical`, with two devices, `logical:0` and `logical:1`. A
tensor on it is a `LogicalTensor`, a subclass with that device which holds a tensor of the CPU; a dispatch mode computes
every operator with these. So numbers are those of the CPU, and the device of every tensor, autograd, autocast,
`nn.Module.to` and checkpointing behave as on an accelerator. Results, speed and availability of an accelerator's own
kernels cannot be tested here.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn, final

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Event", "EventKind", "LogicalDevice", "LogicalTensor", "MixedDevicesError"]

EventKind = Literal["mix", "wait", "to device", "to host", "pageable"]
"""What an event is: see `Event`."""

_NAME = "logical"
_COUNT = 2
_PACKAGE = Path(__file__).resolve().parents[1]
_OWN = str(Path(__file__).resolve())

_ATEN = torch.ops.aten
_TRANSFERS = frozenset({_ATEN._to_copy.default, _ATEN.copy_.default})
_TAKE_A_NUMBER = frozenset({_ATEN.index_put_.default, _ATEN.index_put.default})
"""Operators that accept a tensor without axes from another device, in addition to the pointwise ones."""
_INDEXING = frozenset(
    {_ATEN.index.Tensor, _ATEN.index_put_.default, _ATEN.index_put.default, _ATEN._index_put_impl_.default}
)
_RESHAPE_IN_PLACE = frozenset(
    {"resize_", "set_", "squeeze_", "unsqueeze_", "t_", "transpose_", "as_strided_", "swapaxes_", "swapdims_"}
)


class MixedDevicesError(RuntimeError):
    """An operator was given tensors of two devices, which an accelerator refuses."""


@final
@dataclass(frozen=True)
class Event:
    """Something that an accelerator would refuse, or that costs time there.

    Attributes:
        kind: `"mix"`: an operator had tensors of two devices. `"wait"`: the program needed a number, or a size that
            depends on numbers, and so waits until the device has computed it. `"to device"` and `"to host"`: a copy.
            `"pageable"`: a copy that was to run in the background, but starts in memory that is not pinned.
        operator: Name of the operator.
        path: File of the innermost running line of the package, relative to the folder that holds the package; that of
            the caller if no line of the package runs.
        function: The function in that file.
        line: The line in that file.
        captured: Whether a CUDA graph would be capturing at that time.
    """

    kind: EventKind
    operator: str
    path: str
    function: str
    line: int
    captured: bool = False

    @property
    def place(self) -> str:
        """The file and the function, which do not depend on line numbers."""
        return f"{self.path}:{self.function}"

    def __str__(self) -> str:
        inside = " inside a captured region" if self.captured else ""
        return f"{self.kind}: {self.operator} at {self.path}:{self.line} in {self.function}{inside}"


@final
class LogicalTensor(Tensor):
    """A tensor on the logical device.

    Attributes:
        host: Its numbers, on the CPU.
    """

    host: Tensor

    @staticmethod
    def __new__(cls: type[LogicalTensor], host: Tensor, device: torch.device) -> LogicalTensor:
        """The tensor with the numbers of `host` on `device`."""
        new: LogicalTensor = Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=device,
        )
        new.host = host
        return new

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute an operator while no `LogicalDevice` is open."""
        return _compute(func, args, kwargs or {}, lambda kind, operator: None)

    def tolist(self) -> Any:
        """The numbers as Python numbers, which waits for the device."""
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        """The address of the numbers."""
        return self.host.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        """The memory of the numbers."""
        return self.host.untyped_storage()

    def numpy(self, *, force: bool = False) -> NoReturn:
        """Refused, as by every accelerator.

        Raises:
            TypeError: Always.
        """
        raise TypeError(f"cannot convert a tensor on {self.device} to numpy: use Tensor.cpu() first.")

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """The numbers and the device."""
        return f"LogicalTensor({self.host}, device={str(self.device)!r})"


@final
class LogicalDevice(TorchDispatchMode):
    """Makes the logical device available inside a `with` block, and records events.

    Args:
        strict: Whether mixed devices raise `MixedDevicesError` at once, as on an accelerator.

    Attributes:
        device: The device to use, `logical:0`. PyTorch's current device is `logical:1`, so that code which drops the
            index of a device mixes devices.
        events: The recorded events, in order.
        operators: Number of runs of each operator on the device, by name.
    """

    def __init__(self, *, strict: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        _register()
        self.device = torch.device(_NAME, 0)
        self.events: list[Event] = []
        self.operators: Counter[str] = Counter()
        self._strict, self._paused, self._captured = strict, False, 0
        self._lock = threading.Lock()

    def __enter__(self) -> LogicalDevice:
        """Open the device."""
        _State.open += 1
        torch._C._set_only_lift_cpu_tensors(True)  # so `torch.tensor(..., device=...)` is a copy
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        """Close the device; its tensors can still be used."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        _State.open -= 1
        torch._C._set_only_lift_cpu_tensors(_State.open > 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute an operator, and record its events."""
        return _compute(func, args, kwargs or {}, self._note)

    @contextlib.contextmanager
    def capturing(self) -> Iterator[None]:
        """A region that a CUDA graph would capture. Its events are marked: a copy or a wait in it is an error."""
        self._captured += 1
        try:
            yield
        finally:
            self._captured -= 1

    def clear(self) -> None:
        """Delete all records, and record again."""
        self.events.clear()
        self.operators.clear()
        self._paused = False

    def pause(self) -> None:
        """Record nothing until `clear`; mixed devices are still refused."""
        self._paused = True

    def of_kind(self, *kinds: EventKind) -> list[Event]:
        """The events of the given kinds."""
        return [event for event in self.events if event.kind in kinds]

    def _note(self, kind: EventKind | None, operator: str) -> None:
        with self._lock:
            if self._paused and kind != "mix":
                return
            if kind is None:
                self.operators[operator] += 1
                return
            event = Event(kind, operator, *_caller(), captured=self._captured > 0)
            self.events.append(event)
        if kind == "mix" and self._strict:
            raise MixedDevicesError(str(event))


# -- operators --------------------------------------------------------------------------------------------------

_Note = Callable[[EventKind | None, str], None]


@final
@dataclass(frozen=True)
class _Facts:
    """Properties of an operator.

    Attributes:
        name: Name of the operator.
        takes_numbers: Whether tensors without axes may be on another device.
        indexes: Whether it gets indices or masks of positions.
        waits: Whether the size or the value of its result depends on numbers.
        written: The arguments that it writes into and returns, by place and name.
        reshapes: Whether it changes the shape of an argument.
    """

    name: str
    takes_numbers: bool
    indexes: bool
    waits: bool
    written: tuple[tuple[int, str], ...]
    reshapes: bool

    @classmethod
    @functools.cache
    def of(cls, func: Any) -> _Facts:
        tags, schema = func.tags, func._schema
        dynamic = torch.Tag.dynamic_output_shape in tags or torch.Tag.data_dependent_output in tags
        returned = bool(schema.returns) and schema.returns[0].alias_info is not None
        written = [
            (place, argument.name)
            for place, argument in enumerate(schema.arguments)
            if returned and argument.alias_info is not None and argument.alias_info.is_write
        ]
        return cls(
            str(func),
            torch.Tag.pointwise in tags or func in _TAKE_A_NUMBER,
            func in _INDEXING,
            (dynamic and func not in _INDEXING) or func is _ATEN.equal.default,
            tuple(written),
            schema.name.split("::")[1] in _RESHAPE_IN_PLACE,
        )


def _compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], note: _Note) -> Any:
    """The result of an operator, on the device that PyTorch would choose."""
    facts = _Facts.of(func)
    if func in _TRANSFERS:
        return _transfer(func, facts.name, args, kwargs, note)
    if func is _ATEN._pin_memory.default or func is _ATEN.is_pinned.default:
        return _pin(func, args[0])
    tensors = [*_tensors(args), *_tensors(kwargs)]
    device = next((tensor.device for tensor in tensors if isinstance(tensor, LogicalTensor)), None)
    ours, wanted = device is not None, kwargs.get("device")
    if wanted is not None:
        wanted = torch.device(wanted)
        device = _indexed(wanted) if wanted.type == _NAME else None
        kwargs = kwargs | {"device": torch.device("cpu")}
    if device is None and not ours:
        return func(*args, **kwargs)
    if facts.reshapes:
        raise NotImplementedError(f"the logical device has no {facts.name}: reshape to a new tensor instead.")
    _check(func, facts, tensors, note)
    note(None, facts.name)
    result = func(*_hosts(args), **_hosts(kwargs))
    if facts.written:
        written = [args[place] if place < len(args) else kwargs[name] for place, name in facts.written]
        return written[0] if len(written) == 1 else tuple(written)
    return _wrapped(device, result)


def _check(func: Any, facts: _Facts, tensors: list[Tensor], note: _Note) -> None:
    """Record mixed devices, and whether the program waits for the operator."""
    devices = {
        tensor.device
        for tensor in tensors
        if isinstance(tensor, LogicalTensor) or not facts.takes_numbers or tensor.ndim
    }
    if len(devices) > 1:
        note("mix", facts.name)
    if facts.waits or (facts.indexes and _waits_for_masks(func, tensors)):
        note("wait", facts.name)


def _waits_for_masks(func: Any, tensors: list[Tensor]) -> bool:
    """Whether an indexing operator must count the true entries of a mask: all do, except filling with one number."""
    indices = tensors[1:] if func is _ATEN.index.Tensor else tensors[1:-1]
    masks = [tensor for tensor in indices if tensor.dtype in (torch.bool, torch.uint8)]
    fills = func is not _ATEN.index.Tensor and len(indices) == 1 and tensors[-1].numel() == 1
    return bool(masks) and not fills


def _transfer(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], note: _Note) -> Any:
    """A copy, from one device to another or within one."""
    if func is _ATEN.copy_.default:
        source, target = args[1], args[0].device
        background = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
    else:
        source = args[0]
        wanted = kwargs.get("device")
        target = source.device if wanted is None else _indexed(torch.device(wanted))
        background = kwargs.get("non_blocking", False)
    places = {source.device.type == _NAME, target.type == _NAME}
    if places == {True, False}:
        note("to device" if target.type == _NAME else "to host", name)
        if background and target.type == _NAME and not _is_pinned(source):
            note("pageable", name)
        if target.type != _NAME and not background:
            note("wait", name)
    elif target.type == _NAME:
        note(None, name)
    else:
        return func(*args, **kwargs)
    kwargs = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory")}
    result = func(*_hosts(args), **_hosts(kwargs))
    if func is _ATEN.copy_.default:
        return args[0]
    return _wrapped(target, result)


def _pin(func: Any, tensor: Tensor) -> Any:
    """Pinned memory of the CPU, from which a copy can run in the background."""
    if func is _ATEN.is_pinned.default:
        return _is_pinned(tensor)
    pinned = tensor.clone()
    pinned._is_pinned_for_logical_device = True  # type: ignore[attr-defined]
    return pinned


def _is_pinned(tensor: Tensor) -> bool:
    return getattr(tensor, "_is_pinned_for_logical_device", False)


def _hosts(values: Any) -> Any:
    """Arguments with tensors of the CPU in place of those of the device."""
    if isinstance(values, LogicalTensor):
        return values.host
    if isinstance(values, list | tuple):
        return type(values)(map(_hosts, values))
    if isinstance(values, dict):
        return {name: _hosts(value) for name, value in values.items()}
    return values


def _wrapped(device: torch.device | None, values: Any) -> Any:
    """A result of the CPU as a result of the device."""
    if isinstance(values, Tensor):
        return values if device is None or device.type != _NAME else LogicalTensor(values, device)
    if isinstance(values, list | tuple):
        return type(values)(_wrapped(device, value) for value in values)
    return values


def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors in some arguments, in order."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        for value in values.values():
            yield from _tensors(value)


def _indexed(device: torch.device) -> torch.device:
    """A device with an index: by default that of the current device, which differs from `LogicalDevice.device`."""
    return torch.device(_NAME, 1) if device.type == _NAME and device.index is None else device


def _caller() -> tuple[str, str, int]:
    """The innermost running line of the package; otherwise the innermost line outside PyTorch."""
    frame: FrameType | None = sys._getframe(2)
    outside: tuple[str, str, int] | None = None
    while frame is not None:
        path = frame.f_code.co_filename
        if path != _OWN:
            here = frame.f_code.co_name, frame.f_lineno
            if path.startswith(f"{_PACKAGE}/"):
                return (str(Path(path).relative_to(_PACKAGE.parent)), *here)
            if outside is None and "site-packages" not in path and not path.startswith("<"):
                outside = path, *here
        frame = frame.f_back
    return outside or ("autograd", "backward", 0)


# -- the backend ------------------------------------------------------------------------------------------------


class _State:
    """State of the process.

    Attributes:
        open: Number of open logical devices.
    """

    open = 0


class _Module:
    """The module that PyTorch expects as `torch.logical`."""

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def is_available() -> bool:
        return _State.open > 0

    @staticmethod
    def current_device() -> int:
        return 1

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        pass

    @staticmethod
    def device_count() -> int:
        return _COUNT if _State.open else 0

    @staticmethod
    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return True

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    @staticmethod
    def get_rng_state(device: Any = None) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    @staticmethod
    def set_rng_state(state: Tensor, device: Any = None) -> None:
        pass

    class Event:
        """An event that has always happened, because this device runs synchronously."""

        def record(self) -> None:
            pass

        def synchronize(self) -> None:
            pass

    @staticmethod
    def device(index: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


@functools.cache
def _register() -> None:
    """Give PyTorch's unused backend this name, once per process.

    Raises:
        RuntimeError: If this process uses that backend for something else.
    """

    class Hooks(torch._C._acc.PrivateUse1Hooks):
        def is_available(self) -> bool:
            return _State.open > 0

        def has_primary_context(self, index: int) -> bool:
            return True

        def is_built(self) -> bool:
            return True

    class Guard(torch._C._acc.DeviceGuard):
        def type_(self) -> Any:
            return torch._C._autograd.DeviceType.PrivateUse1

    backend_registration._setup_privateuseone_for_python_backend(_NAME, _Module(), Hooks(), Guard())
