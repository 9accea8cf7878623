"""A pretend accelerator: the device "pretend:0", whose kernels run on the CPU.

`install()` registers it with torch (PrivateUse1), for the whole process. Its tensors have storages
of their own, in main memory. A kernel that is asked for is that of the CPU, over the same memory,
after the check that CUDA makes: all tensors of an operation must lie on one device, but for
0-dimensional CPU tensors in pointwise ones, for indices, and for copies. As on a card, random
numbers come from a stream of its own, and a generator of the CPU is refused.

It has no `torch.Generator`, and cannot show float16 in CUDA's kernels, xformers, speed or memory.
"""

import contextlib
import functools
import types
from typing import Any

import accelerate
import pytest
import torch
from torch.library import Library, fallthrough_kernel
from torch.utils import backend_registration

import align.models.load
import align.models.processes

NAME = "pretend"
CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
SET = torch.ops.aten.set_.source_Storage_storage_offset
INDEXING = ("index", "_unsafe_index", "index_put_", "_index_put_impl_", "index_put")
SCALARS_TOO = ("fill_", "masked_fill_", "masked_fill", "index_put_", "_index_put_impl_")
_random = torch.Generator()  # what a card's own generator would give


def _convolution_backward(grad, inputs, weight, *settings):
    bias = [grad.shape[1]] if settings[-1][2] else None
    return torch.ops.aten.convolution_backward(grad, inputs, weight, bias, *settings)


# What torch asks of a device of one's own alone, and the CPU has under another name.
STAND_INS = {
    "_copy_from": lambda source, into, non_blocking=False: into.copy_(source),
    "convolution_overrideable": torch.ops.aten.convolution,
    "convolution_backward_overrideable": _convolution_backward,
}


@functools.cache
def install() -> torch.device:
    """The device, registered with torch at the first call."""
    module = types.SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        set_device=lambda device: None,
        device=lambda index: contextlib.nullcontext(),
        synchronize=lambda device=None: None,
        empty_cache=lambda: None,
        manual_seed=_random.manual_seed,
        manual_seed_all=_random.manual_seed,
        get_rng_state=lambda device=None: _random.get_state(),
        set_rng_state=lambda state, device=None: _random.set_state(state),
        get_amp_supported_dtype=lambda: [torch.float16, torch.bfloat16],
        _is_in_bad_fork=lambda: False,
    )
    backend_registration._setup_privateuseone_for_python_backend(NAME, module)
    kernels = Library("_", "IMPL"), Library("aten", "IMPL")
    kernels[0].fallback(_kernel, "PrivateUse1")
    kernels[0].fallback(fallthrough_kernel, "AutocastPrivateUse1")
    for name in _taken_apart():
        op = torch.ops.aten
        for part in (name if "." in name else f"{name}.default").split("."):
            op = getattr(op, part)
        kernels[1].impl(name, functools.partial(_kernel, op), "PrivateUse1")
    # Conjugation is a mark on a tensor, which torch would take off by a copy, and so for ever.
    copy = functools.partial(_kernel, torch.ops.aten._copy_from.default)
    kernels[1].impl("_copy_from", copy, "Conjugate")
    install.kept = kernels  # registered as long as they live
    return torch.device(NAME, 0)


@pytest.fixture(scope="module")
def device():
    """The device, which what is told none takes as well; import it by this name."""
    there = install()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accelerate.PartialState, "default_device", there)
        for room in (align.models.load, align.models.processes):
            patch.setattr(room, "best_device", lambda: NAME)
        # Else a thread of the device's own, which torch starts before the first backward pass of
        # the process or never, would run its share.
        with torch.autograd.set_multithreading_enabled(False):
            yield there


def _taken_apart() -> list[str]:
    """Operations that cards have kernels of, and that torch would refuse or take apart, by rules
    that no card follows, before it came to `_kernel`."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    rules = "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional"
    known = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("aten::")]
    parted = [n for n in known if has(n, "CPU") and any(has(n, rule) for rule in rules)]
    return [n.removeprefix("aten::") for n in parted] + list(STAND_INS)


@functools.cache
def _facts(op) -> types.SimpleNamespace:
    """What the schema of an operation says; reading it takes as long as a small kernel."""
    name, arguments = op._schema.name.removeprefix("aten::"), op._schema.arguments
    return types.SimpleNamespace(
        name=name,
        function=STAND_INS.get(name, op),
        arguments=[a.name for a in arguments],
        written={a.name for a in arguments if a.alias_info and a.alias_info.is_write},
        mutable=op._schema.is_mutable,
        copies=name in ("_copy_from", "copy_"),
        indexing=name in INDEXING,
        scalars=torch.Tag.pointwise in op.tags or name in SCALARS_TOO,
        random=torch.Tag.nondeterministic_seeded in op.tags,
    )


class _Call:
    """A call of a kernel: tensors of the device are lent to the CPU, and results taken back."""

    def __init__(self):
        self.lent: list[tuple[torch.Tensor, torch.Tensor]] = []  # the CPU's view, our tensor
        self.foreign: list[tuple[str, torch.Tensor]] = []
        self.storages: dict[int, torch.UntypedStorage] = {}  # ours, by the CPU storage beneath

    def give(self, name: str, value: Any) -> Any:
        """An argument for the CPU's kernel."""
        if isinstance(value, torch.Tensor):
            if value.device.type != NAME:
                self.foreign.append((name, value))
                return value
            owner = self.give(name, value.untyped_storage())
            plain = torch.empty(0, dtype=value.dtype)
            plain.set_(owner, value.storage_offset(), value.shape, value.stride())
            plain = plain.conj() if value.is_conj() else plain
            self.lent.append((plain, value))
            return plain
        if isinstance(value, list | tuple):
            return [self.give(name, entry) for entry in value]
        if isinstance(value, torch.device):
            return torch.device("cpu")
        if isinstance(value, torch.UntypedStorage) and value.device.type == NAME:
            self.storages[value.owner._cdata] = value
            return value.owner
        if isinstance(value, torch.Generator):
            raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
        return value

    def take(self, plain: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
        """A tensor of the device over the memory of one of the CPU."""
        owner = plain.untyped_storage()
        ours = self.storages.get(owner._cdata)
        if ours is None or ours.data_ptr() != owner.data_ptr():  # new, or resized
            address, size = owner.data_ptr(), owner.nbytes()
            ours = torch._C._construct_storage_from_data_pointer(
                address, torch.device(NAME, 0), size
            )
            ours.owner = owner  # lives as long as ours
            self.storages[owner._cdata] = ours
        if into is None:
            into = torch._C._acc.create_empty_tensor([0], plain.dtype)
        SET.redispatch(CPU, into, ours, plain.storage_offset(), plain.shape, plain.stride())
        return into

    def take_back(self, value: Any) -> Any:
        """The device's results for the CPU's."""
        if isinstance(value, torch.Tensor):
            for plain, ours in self.lent:
                if plain is value:
                    return ours
            if any(value is tensor for _, tensor in self.foreign):
                return value
            return self.take(value.clone() if value._is_zerotensor() else value)
        if isinstance(value, list | tuple):
            return type(value)(self.take_back(entry) for entry in value)
        return value


def _kernel(op, *args, **kwargs):
    facts, call = _facts(op), _Call()
    plain = [call.give(*pair) for pair in zip(facts.arguments, args, strict=False)]
    named = {name: call.give(name, value) for name, value in kwargs.items()}
    for name, tensor in call.foreign:
        scalar = facts.scalars and tensor.ndim == 0 and name not in facts.written
        if not (facts.copies or scalar or (facts.indexing and name == "indices")):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{NAME}:0 and {tensor.device}! ({name} of {facts.name})"
            )
    result = _drawing(facts.function, plain, named) if facts.random else None
    if not facts.random:
        result = facts.function(*plain, **named)
    if facts.mutable:
        for lent, ours in call.lent:
            if (lent.data_ptr(), lent.shape, lent.stride()) != (
                ours.data_ptr(),
                ours.shape,
                ours.stride(),
            ):
                call.take(lent, ours)
    return call.take_back(result)


def _drawing(function, args, kwargs):
    """With the device's own stream of random numbers in the place of the CPU's."""
    before = torch.get_rng_state()
    torch.set_rng_state(_random.get_state())
    try:
        return function(*args, **kwargs)
    finally:
        _random.set_state(torch.get_rng_state())
        torch.set_rng_state(before)
