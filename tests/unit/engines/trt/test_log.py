from __future__ import annotations

import threading
from typing import Any, Final, cast

import pytest

from engines.trt.log import Log, sentence
from engines.trt.surface import Module
from tests.support import fake_trt


class OneLogger:
    """A module of which only the logger is used."""

    ILogger = fake_trt.FakeLogger


def made() -> tuple[Log, Any]:  # Any: a logger's class is made at run time
    log = Log(cast("Module", OneLogger()))
    return log, log.logger


UNBUILT: Final = (
    "IBuilder::build: Error Code 4: API Usage Error (Network must have at least one output. "
    "In validate at /_src/optimizer/api/network.cpp:3810)"
)
UNLOADED: Final = (
    "IRuntime::deserialize: Error Code 1: Cuda Runtime (In ScopedCudaStream at "
    "/_src/cudaResources.cpp:25 (cudaError 35: CUDA driver version is insufficient))"
)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (UNBUILT, "Network must have at least one output"),
        (UNLOADED, "cudaError 35: CUDA driver version is insufficient"),
        ("plain\n words ", "plain words"),
        ("", ""),
    ],
)
def test_a_message_becomes_a_sentence(message: str, said: str) -> None:
    assert sentence(message) == said


def test_the_first_error_since_forget_is_the_reason() -> None:
    log, logger = made()
    assert log.why() == ""
    logger.log(fake_trt.Severity["WARNING"], "hm")
    logger.log(fake_trt.Severity["ERROR"], "first")
    logger.log(fake_trt.Severity["INTERNAL_ERROR"], "second")
    assert log.why() == "first"
    log.forget()
    assert log.why() == ""


def test_many_errors_do_not_push_out_the_first() -> None:
    log, logger = made()
    said = ["error 0", *["another"] * 99]
    for message in said:
        logger.log(fake_trt.Severity["ERROR"], message)
    assert log.why() == "error 0"


def test_a_thread_hears_its_own_errors_only() -> None:
    log, logger = made()
    worker = threading.Thread(target=logger.log, args=(fake_trt.Severity["ERROR"], "elsewhere"))
    worker.start()
    worker.join()
    assert log.why() == ""
