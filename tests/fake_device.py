"""A GPU that is not there: tensors lie on the CPU and obey CUDA's rules about mixing devices.

A storage that was made on the device, or from what lies there, has a mark. One mode answers `.device` by it and carries
out `.to` and `device=` on the CPU; the other sees every operation, those of backward passes and recomputations too,
refuses what CUDA would refuse, and marks what comes out. The rules: `copy_` moves between devices, indices may lie on
the CPU, a number on the CPU (a tensor without dimensions) goes with everything, and anything else wants one device.
Left out: kernels, streams, numerics, memory, other threads, and what C++ moves without an operation.
"""

import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode

import_module("bitsandbytes")  # it looks for a GPU when it is imported, and would find this one
DEVICE, aten = torch.device("cuda", 0), torch.ops.aten
CUDA = dict(
    is_available=lambda: True, device_count=lambda: 1, current_device=lambda: 0, set_device=lambda device: None,
    is_bf16_supported=lambda including_emulation=True: True, mem_get_info=lambda device=None: (8 * 2**30,) * 2,
    memory_reserved=lambda device=None: 0, memory_allocated=lambda device=None: 0, empty_cache=lambda: None,
    synchronize=lambda device=None: None, is_current_stream_capturing=lambda: False,
)  # fmt: skip


class Mixed(RuntimeError):
    """Tensors of two devices in one operation."""


def tensors_in(values) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


class Marks:
    """The storages that lie on the device."""

    def __init__(self):
        self.keys: set[int] = set()

    def has(self, tensor: Tensor) -> bool:
        return tensor.layout is torch.strided and tensor.untyped_storage()._cdata in self.keys

    def put(self, tree):
        for tensor in tensors_in([tree]):
            if tensor.layout is torch.strided and not self.has(tensor):
                storage = tensor.untyped_storage()
                self.keys.add(storage._cdata)
                weakref.finalize(storage, self.keys.discard, storage._cdata)
        return tree

    def take(self, tensor: Tensor) -> Tensor:
        self.keys.discard(tensor.untyped_storage()._cdata)
        return tensor


class Operations(TorchDispatchMode):
    def __init__(self, marks: Marks):
        super().__init__()
        self.marks, self.count = marks, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = list(tensors_in([*args, *kwargs.values()]))
        there = [self.marks.has(tensor) for tensor in tensors]
        if function in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default) and there[0]:
            operands = [tensors[0], *(args[2:3])]  # not the indices
            there = [self.marks.has(tensor) for tensor in operands]
        else:
            operands = tensors
        if any(there) and function is not aten.copy_.default:
            if any(not own and tensor.dim() for own, tensor in zip(there, operands)):
                told = ", ".join(f"{'cuda' if own else 'cpu'} {(*x.shape,)}" for own, x in zip(there, operands))
                raise Mixed(f"{function}: expected all tensors on one device, found {told}")
        self.count += any(there)
        out = function(*args, **kwargs)
        stays = there and there[0] if function is aten.copy_.default else any(there)
        return self.marks.put(out) if stays else out


class FakeDevice(TorchFunctionMode):
    """To be used as a context; `operations.count` of them were seen on the device."""

    def __init__(self):
        super().__init__()
        self.marks, self.stack = Marks(), ExitStack()
        self.operations = Operations(self.marks)

    def __enter__(self):
        for name, value in CUDA.items():
            self.stack.enter_context(mock.patch.object(torch.cuda, name, value))
        # The check of what is recomputed asks for devices in a custom function's backward pass, where no mode answers.
        checks = checkpoint._allowed_determinism_checks_to_fns
        self.stack.enter_context(mock.patch.dict(checks, default=lambda tensor: None))
        self.stack.enter_context(self.operations)
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.stack.close()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in (Tensor.device.__get__, Tensor.is_cuda.__get__, Tensor.is_cpu.__get__):
            there = self.marks.has(args[0])
            on_cpu = function(*args) if function is Tensor.is_cpu.__get__ else False
            return {
                Tensor.device.__get__: DEVICE if there else function(*args),
                Tensor.is_cuda.__get__: there,
                Tensor.is_cpu.__get__: on_cpu and not there,
            }[function]
        if function in (Tensor.numpy, Tensor.__array__) and self.marks.has(args[0]):
            raise Mixed("a tensor on the device has no numpy form")
        if function in (Tensor.cpu, Tensor.cuda):
            return self.move(args[0], function is Tensor.cuda)
        if function is Tensor.to:
            return self.to(*args, **kwargs)
        if function is Tensor.backward:  # this mode is off in here, and what is recomputed must see it
            super().__enter__()
            try:
                return torch.autograd.backward(args[0])
            finally:
                super().__exit__(None, None, None)
        if "device" in kwargs and isinstance(kwargs["device"], str | torch.device):
            if torch.device(kwargs["device"]).type == "cuda":
                return self.marks.put(function(*args, **kwargs | {"device": "cpu"}))
        return function(*args, **kwargs)

    def move(self, tensor: Tensor, there: bool) -> Tensor:
        if self.marks.has(tensor) == there:
            return tensor
        copied = tensor.clone()
        return self.marks.put(copied) if there else self.marks.take(copied)

    def to(self, tensor: Tensor, *args, **kwargs) -> Tensor:
        device, dtype = kwargs.get("device"), kwargs.get("dtype")
        for value in args:
            if isinstance(value, Tensor):
                device, dtype = DEVICE if self.marks.has(value) else "cpu", value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, str | torch.device):
                device = value
        if device is None or torch.device(device).type == "meta":
            return Tensor.to(tensor, *args, **kwargs)
        moved = self.move(tensor, torch.device(device).type == "cuda")
        return Tensor.to(moved, dtype or tensor.dtype, copy=kwargs.get("copy", False))
