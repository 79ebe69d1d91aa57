from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from loadtests import perf_analyzer, perf_analyzer_binary
from loadtests.perf_analyzer import Measured, RunFailed

_CLIENT: Final = """\
Request concurrency: {concurrency}
  Client: 
    Request count: 11154
    Throughput: 3094.24 infer/sec
    Avg latency: 322 usec (standard deviation 174 usec)
    p50 latency: 306 usec
    p90 latency: 329 usec
    p95 latency: 396 usec
    p99 latency: 599 usec
    Avg gRPC time: 316 usec ((un)marshal request/response 1 usec + response wait 315 usec)
"""  # noqa: W291 - as the tool prints it
_SERVER: Final = """\
  Server: 
    Inference count: 11155
    Execution count: 11155
    Successful request count: {requests}
    Avg request latency: 76 usec (overhead 12 usec + queue 35 usec + compute input 4 usec + \
compute infer 22 usec + compute output 1 usec)

"""  # noqa: W291 - as the tool prints it
_SUMMARY: Final = """\
Inferences/Second vs. Client Average Batch Latency
Concurrency: 1, throughput: 3094.24 infer/sec, latency 322 usec
"""


def _report(concurrency: int, requests: int = 11155) -> str:
    return _CLIENT.format(concurrency=concurrency) + _SERVER.format(requests=requests)


def test_a_report_is_read_for_each_concurrency() -> None:
    found = perf_analyzer.read(_report(1) + _report(8) + _SUMMARY)
    one = Measured(
        concurrency=1,
        per_second=3094.24,
        average_us=322,
        p50_us=306,
        p99_us=599,
        requests=11155,
        queue_us=35,
        input_us=4,
        infer_us=22,
        output_us=1,
    )
    assert found[0] == one
    assert [row.concurrency for row in found] == [1, 8]


def test_a_report_without_the_servers_times_is_a_failed_run() -> None:
    # This is what a server gets that does not list the statistics extension.
    silent = _CLIENT.format(concurrency=1)
    with pytest.raises(RunFailed, match="the server's times"):
        perf_analyzer.read(silent + _report(8) + _SUMMARY)


def test_a_report_of_no_request_is_a_failed_run() -> None:
    with pytest.raises(RunFailed, match="no request was counted"):
        perf_analyzer.read(_report(1, requests=0))


def test_the_table_has_every_figure_in_a_column_of_its_own() -> None:
    (row,) = perf_analyzer.read(_report(8))
    assert perf_analyzer.show(row).split() == ["8", "3094", "322", "599", "35", "4", "22", "1"]


def test_missing_libraries_are_found_in_the_linkers_words() -> None:
    ldd = (
        "\tlinux-vdso.so.1 (0x00007f18c58d1000)\n"
        "\tlibb64.so.0d => not found\n"
        "\tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f18c4be1000)\n"
        "/lib/libstdc++.so.6: version `GLIBCXX_3.4.30' not found (required by ./perf_analyzer)\n"
    )
    assert perf_analyzer_binary.missing_libraries(ldd) == [
        "libb64.so.0d",
        "/lib/libstdc++.so.6: version `GLIBCXX_3.4.30'",
    ]


def test_the_advice_names_the_package_of_each_missing_library() -> None:
    advice = perf_analyzer_binary.advice(["libb64.so.0d", "libssl.so.3", "libcrypto.so.3"])
    assert "libb64.so.0d, libssl.so.3, libcrypto.so.3" in advice
    assert advice.endswith("apt-get install libb64-0d libssl3")


def test_an_environment_without_the_cuda_runtime_is_not_whole(tmp_path: Path) -> None:
    binary = tmp_path / "bin" / "perf_analyzer"
    binary.parent.mkdir()
    binary.touch()
    assert perf_analyzer_binary.find(tmp_path) is None
    runtime = tmp_path / "lib" / "python3.11" / "site-packages" / "nvidia" / "cuda_runtime" / "lib"
    runtime.mkdir(parents=True)
    found = perf_analyzer_binary.find(tmp_path)
    assert found is not None
    assert found.path == binary
    assert found.environ["LD_LIBRARY_PATH"].split(":")[0] == str(runtime)
