"""Restore what a run changes in its process."""

from __future__ import annotations

import os
import random
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from torch.utils.data._utils import signal_handling
from transformers.utils import logging

from peft_audio.training.hardware import device_type


@contextmanager
def restored_process_state() -> Iterator[None]:
    """Clear the state of Accelerate, and restore the state of this process at the end.

    Covers signal handlers, random generators, the number of torch threads, flags of torch and cuDNN, progress bars,
    warning filters, environment variables and Accelerate's state.
    """
    with ExitStack() as restore:
        restore.enter_context(warnings.catch_warnings())
        for keep in (_accelerate_state, _signal_handlers, _random_states, _torch_flags, _progress_bars, _environment):
            restore.enter_context(keep())
        yield


@contextmanager
def _accelerate_state() -> Iterator[None]:
    """Clear Accelerate's state, and restore it at the end."""
    states = {state: dict(state._shared_state) for state in (AcceleratorState, PartialState, GradientState)}
    had_group = torch.distributed.is_available() and torch.distributed.is_initialized()
    for state in states:
        state._shared_state.clear()
    try:
        yield
        # Not after an error: other processes can be inside a collective operation, and NCCL would wait for them.
        if not had_group:
            PartialState().destroy_process_group()
    finally:
        for state, before in states.items():
            # Instances share this dictionary, so it must stay the same object.
            state._shared_state.clear()
            state._shared_state.update(before)


@contextmanager
def _signal_handlers() -> Iterator[None]:
    """Restore signal handlers at the end."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python allows no handlers here, so nothing changes
        return
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    # A DataLoader with workers installs a handler once per process and remembers that here.
    known = signal_handling._SIGCHLD_handler_set
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)
        signal_handling._SIGCHLD_handler_set = known


@contextmanager
def _random_states() -> Iterator[None]:
    """Restore random generators at the end."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if device_type() == "cuda" else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        for device, state in enumerate(cuda):
            torch.cuda.set_rng_state(state, device)


@contextmanager
def _torch_flags() -> Iterator[None]:
    """Restore the number of threads and the flags of torch at the end."""
    threads, tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32 = tf32
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


@contextmanager
def _progress_bars() -> Iterator[None]:
    """Restore the progress bars and the verbosity of libraries at the end."""
    hub, transformers = are_progress_bars_disabled(), logging.is_progress_bar_enabled()
    verbosity = logging.get_verbosity()
    try:
        yield
    finally:
        # Transformers also switches the progress bars of huggingface_hub.
        if logging.is_progress_bar_enabled() != transformers:
            (logging.enable_progress_bar if transformers else logging.disable_progress_bar)()
        if are_progress_bars_disabled() != hub:
            (disable_progress_bars if hub else enable_progress_bars)()
        logging.set_verbosity(verbosity)


@contextmanager
def _environment() -> Iterator[None]:
    """Restore environment variables at the end."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})
