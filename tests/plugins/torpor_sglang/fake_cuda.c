/* A CUDA driver without a GPU: device memory is host memory, and what it is told to fail at fails.
 *
 * FAKE_CUDA_FAIL=<function>:<n>:<code> has the n-th call of a function (from 1) return an error code.
 * FAKE_CUDA_NO_CONTEXT=1 leaves every thread without a context.
 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long address;

static _Thread_local void *current;
static atomic_int pinned, streams;
static atomic_int calls[8];
static int main_context;

static int failure(const char *name, int slot) {
    const char *wanted = getenv("FAKE_CUDA_FAIL");
    int call = atomic_fetch_add(&calls[slot], 1) + 1;
    char function[64];
    int number = 0, code = 0;
    if (!wanted || sscanf(wanted, "%63[^:]:%d:%d", function, &number, &code) != 3) return 0;
    return strcmp(function, name) == 0 && call == number ? code : 0;
}

int cuGetErrorString(int code, const char **text) {
    *text = code == 2 ? "out of memory" : code == 700 ? "an illegal memory access was encountered" : NULL;
    return 0;
}

int cuCtxGetCurrent(void **context) {
    *context = getenv("FAKE_CUDA_NO_CONTEXT") ? NULL : &main_context;
    return failure("cuCtxGetCurrent", 0);
}

int cuCtxSetCurrent(void *context) {
    current = context;
    return failure("cuCtxSetCurrent", 1);
}

int cuStreamCreate(void **stream, unsigned flags) {
    (void)flags;
    *stream = malloc(1);
    atomic_fetch_add(&streams, 1);
    return failure("cuStreamCreate", 2);
}

int cuStreamDestroy_v2(void *stream) {
    free(stream);
    atomic_fetch_sub(&streams, 1);
    return 0;
}

int cuStreamSynchronize(void *stream) {
    (void)stream;
    return current ? failure("cuStreamSynchronize", 3) : 201;
}

int cuMemHostAlloc(void **memory, size_t size, unsigned flags) {
    int code = failure("cuMemHostAlloc", 4);
    (void)flags;
    if (!current) return 201;
    if (code) return code;
    *memory = malloc(size);
    atomic_fetch_add(&pinned, 1);
    return 0;
}

int cuMemFreeHost(void *memory) {
    free(memory);
    atomic_fetch_sub(&pinned, 1);
    return 0;
}

int cuMemcpyHtoDAsync_v2(address target, const void *source, size_t size, void *stream) {
    int code = failure("cuMemcpyHtoDAsync_v2", 5);
    if (!current || !stream) return 201;
    if (!code) memcpy((void *)target, source, size);
    return code;
}

int cuMemcpyDtoHAsync_v2(void *target, address source, size_t size, void *stream) {
    int code = failure("cuMemcpyDtoHAsync_v2", 6);
    if (!current || !stream) return 201;
    if (!code) memcpy(target, (const void *)source, size);
    return code;
}

/* For the tests: what is still held. */
int fake_pinned(void) { return pinned; }
int fake_streams(void) { return streams; }
void fake_forget(void) { memset(calls, 0, sizeof calls); }
