"""NVIDIA's driver libraries for a machine without them: C that answers what it is compiled to.

Only the answers are made up. What reads them (ctypes, nvidia-ml-py) is the real thing.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_CUDA = r"""
#include <string.h>
#include <stdio.h>
#ifndef INIT
#define INIT 0
#endif
#ifndef GPUS
#define GPUS 2
#endif
#ifndef DRIVER
#define DRIVER 13000
#endif
#ifndef NAME
#define NAME "Stub GPU"
#endif
static int is_ready;
int cuDriverGetVersion(int *version) { *version = DRIVER; return 0; }
int cuInit(unsigned flags) { if (flags) return 1; is_ready = !INIT; return INIT; }
int cuDeviceGetCount(int *count) { *count = GPUS; return is_ready ? 0 : 3; }
int cuDeviceGet(int *device, int ordinal) {
  *device = 10 + ordinal; return ordinal < GPUS ? 0 : 101; }
int cuDeviceGetName(char *name, int room, int device) {
  snprintf(name, room, "%s %d", NAME, device - 10); return 0; }
#ifndef NO_MEMORY_CALL
int cuDeviceTotalMem_v2(size_t *bytes, int device) {
  *bytes = ((size_t)80 << 30) + device; return 0; }
#endif
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  if (attribute == 75) *value = 9; else if (attribute == 76) *value = device - 10; else return 1;
  return 0; }
static int uuid(unsigned char *to, int first) {
  for (int i = 0; i < 16; i++) to[i] = first + i; return 0; }
#ifdef UUID_V1
int cuDeviceGetUuid(unsigned char *to, int device) { return uuid(to, 0x10 * (device - 10)); }
#endif
#ifdef UUID_V2
int cuDeviceGetUuid_v2(unsigned char *to, int device) { return UUID_V2 ? UUID_V2 : uuid(to, 0x80); }
#endif
"""


def cuda_driver(folder: Path, *defines: str, name: str = "libcuda.so.1") -> Path:
    """Compile a CUDA driver that says what the macros (INIT=100, GPUS=0 ...) make it say."""
    return compiled(folder / name, _CUDA, *defines)


def compiled(library: Path, source: str, *defines: str) -> Path:
    """Compile a shared library, or skip the test where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to make the driver's library with")
    library.parent.mkdir(parents=True, exist_ok=True)
    command = [compiler, "-shared", "-fPIC", "-w", "-x", "c", "-o", str(library)]
    macros = [f"-D{define}" for define in defines]
    subprocess.run([*command, *macros, "-"], input=source, text=True, check=True)
    return library


_NVML = r"""
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#ifndef INIT
#define INIT 0
#endif
#ifndef GPUS
#define GPUS 2
#endif
enum { NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, LOST_GPU = 15 };
typedef struct { unsigned gpu, memory; } Rates;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu, compute; } Process;
static unsigned asked;
static long number(void *handle) { return (long)handle - 1; }
int nvmlInitWithFlags(unsigned flags) { return INIT; }
int nvmlShutdown(void) {
#ifdef TELL_END
  fputs("nvmlShutdown\n", stderr);
#endif
  return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = GPUS; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
#ifdef LOST
  if (index == LOST) return LOST_GPU;
#endif
  *handle = (void *)(long)(index + 1); return 0; }
int nvmlDeviceGetUUID(void *handle, char *to, unsigned room) {
  snprintf(to, room, "GPU-%ld", number(handle)); return 0; }
int nvmlDeviceGetName(void *handle, char *to, unsigned room) {
  snprintf(to, room, "Stub \"GPU\" %ld", number(handle)); return 0; }
int nvmlDeviceGetUtilizationRates(void *handle, Rates *rates) {
#ifdef HANG
  close(creat(getenv("HANGS"), 0600));
  for (;;) sleep(60);
#endif
#ifdef MIG
  return NOT_SUPPORTED;
#endif
  rates->gpu = 25 + 50 * number(handle); rates->memory = ++asked % 100; return 0; }
int nvmlDeviceGetMemoryInfo(void *handle, Memory *memory) {
  memory->total = 80ull << 30; memory->used = (5ull << 30) + number(handle);
  memory->free = memory->total - memory->used; return 0; }
int nvmlDeviceGetPowerUsage(void *handle, unsigned *milliwatts) {
#ifdef MIG
  return NOT_SUPPORTED;
#endif
  *milliwatts = 123456; return 0; }
int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *celsius) {
  *celsius = sensor ? 0 : 61; return 0; }
int nvmlDeviceGetTotalEccErrors(void *handle, int kind, int counter, unsigned long long *count) {
#ifdef MIG
  return NOT_SUPPORTED;
#endif
  *count = (kind == 1 && counter == 0) ? 7 : 999; return 0; }
#ifndef OLD
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, Process *to) {
  if (number(handle) > 0) { *count = 0; return 0; }
  if (*count < 3) { *count = 3; return INSUFFICIENT_SIZE; }
  to[0] = (Process){1, 111, 0, 0};
  to[1] = (Process){getpid(), 2048, 1, 0};
  to[2] = (Process){getpid(), 1024, 2, 0};
  *count = 3; return 0; }
#endif
"""


def management_library(folder: Path, *defines: str) -> Path:
    """Compile NVIDIA's management library with two GPUs, changed by the macros."""
    return compiled(folder / "libnvidia-ml.so.1", _NVML, *defines)
