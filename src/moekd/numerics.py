"""Seed, device, dtype, threads: the only module that decides any of them."""

from __future__ import annotations

import ctypes
import datetime
import hashlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import numpy as np
    import torch

# glibc's mallopt parameters (malloc.h). Keeping freed blocks in the process instead of returning them to the kernel
# saves the page faults of every large tensor: 10 to 25 % of a CPU training step.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_BYTES = 1 << 30
_PATIENCE = datetime.timedelta(hours=12)  # of processes that wait for the first one to prepare the data


def seed_of(*parts: object) -> int:
    """Derive a 63-bit seed from names and numbers; equal parts give equal seeds on every platform."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: object) -> np.random.Generator:
    """A NumPy generator of its own for each purpose, for example `generator(seed, "batches", epoch)`."""
    import numpy as np

    return np.random.default_rng(seed_of(*parts))


def configure(threads: int) -> None:
    """Set torch's threads, ask for deterministic kernels, and keep large blocks of memory in the process."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading and saving weights: files of a few megabytes
    logging.set_verbosity_error()  # a head that starts at random is what is wanted, and no news
    torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else a GPU's deterministic products are refused
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads what it has not written
    if "GLIBC_TUNABLES" not in os.environ:
        _keep_large_blocks()


def release_memory() -> None:
    """Return freed blocks to the kernel after all; between epochs, since batches of every length leave gaps."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _keep_large_blocks() -> None:
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)


def _glibc() -> ctypes.CDLL | None:
    """The GNU C library, or None: elsewhere only speed is lost."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt, libc.malloc_trim  # noqa: B018 - AttributeError where it is another library
    except (OSError, AttributeError):
        return None
    return libc


def device() -> torch.device:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def accelerator() -> str | None:
    """Name of the accelerator that models run on, as a result's provenance; None where they run on the processor."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def bf16_is_fast() -> bool:
    """Whether the device multiplies bfloat16 in hardware; elsewhere autocast would be slower than fp32."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def attention() -> str:
    """The attention kernel to use, by transformers' name.

    On a CPU the fused kernel's backward pass is slow: plain products under bf16 train small encoders 1.1 to 1.6 times
    as fast (docs/experiments.md).
    """
    return "eager" if device().type == "cpu" else "sdpa"


def tokens_at_once() -> int:
    """Tokens that a small model should score at once: what it makes of them stays in a CPU core's cache."""
    return 1024 if device().type == "cpu" else 16_384


def rank_and_processes() -> tuple[int, int]:
    """This process's rank and the number of processes that train together: 0 and 1 without `accelerate launch`."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    from accelerate import PartialState

    state = PartialState(cpu=device().type == "cpu", timeout=_PATIENCE)
    return state.process_index, state.num_processes


def mean_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The mean over all processes; the values themselves where there is one only."""
    if rank_and_processes()[1] == 1:
        return values
    from accelerate.utils import reduce

    return reduce(values, reduction="mean")


def average_gradients(model: torch.nn.Module) -> None:
    """Replace the gradients by their mean over all processes, sent in one piece."""
    if rank_and_processes()[1] == 1:
        return
    import torch

    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    mean = mean_over_processes(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    for gradient, part in zip(gradients, mean.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def wait_for_all() -> None:
    """Return when every process has come here."""
    if rank_and_processes()[1] > 1:
        from accelerate.utils import wait_for_everyone

        wait_for_everyone()


def tell_all(value: bool) -> bool:
    """Return the first process's value in every process."""
    if rank_and_processes()[1] == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return bool(broadcast_object_list([value])[0])


def autocast(bf16: bool) -> AbstractContextManager[None]:
    """bfloat16 matrix products where asked for and fast; weights and sums stay fp32."""
    import torch

    return torch.autocast(device().type, dtype=torch.bfloat16, enabled=bf16 and bf16_is_fast())
