/* Stands in for libcuda: enough of it for a process to put memory "on a GPU", and the checkpoint calls.
 *
 * The GPU is a file, TORPOR_FAKE_DEVICE. A process that has called cuInit holds it open and mapped, with a slot of its own by
 * its pid, and obeys checkpoint calls of others in a thread, as a process with CUDA obeys the driver: it listens at the
 * abstract socket "torpor-fake-cuda-PID" of its network namespace. TORPOR_FAKE_USED is a folder in which it says how many
 * bytes it has on the GPU.
 *
 * TORPOR_FAKE_CUDA injects errors into the caller of a checkpoint call: "CALL=CODE" or "CALL:PID=CODE", separated by commas;
 * CALL is init, state, lock, checkpoint, restore or unlock; CODE is a CUresult, "hang" (the call never comes back) or "crash". */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, OPERATING_SYSTEM = 304,
       ILLEGAL_STATE = 401, NOT_READY = 600, NOT_SUPPORTED = 801, UNKNOWN = 999 };
enum { RUNNING, LOCKED, CHECKPOINTED };

#define SLOT_BYTES (64ull << 20)
#define SLOTS 4096 /* enough that no two processes of a test share one */

static struct {
	int initialised, state, file, listener;
	char *on_gpu, *on_host;
	unsigned long long bytes;
} own = { .file = -1, .listener = -1 };

/* ---- the process that has memory on the GPU ---- */

static void tell_used(unsigned long long bytes)
{
	const char *folder = getenv("TORPOR_FAKE_USED");
	char path[512];
	FILE *file;

	if (!folder)
		return;
	snprintf(path, sizeof(path), "%s/%d", folder, getpid());
	if (!bytes) {
		unlink(path);
	} else if ((file = fopen(path, "we"))) {
		fprintf(file, "%llu", bytes);
		fclose(file);
	}
}

static int open_device(void)
{
	const char *device = getenv("TORPOR_FAKE_DEVICE");

	own.file = device ? open(device, O_RDWR | O_CLOEXEC) : -1;
	if (own.file < 0)
		return NO_DEVICE;
	own.on_gpu = mmap(NULL, SLOT_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, own.file, getpid() % SLOTS * SLOT_BYTES);
	if (own.on_gpu == MAP_FAILED)
		return OUT_OF_MEMORY;
	return OK;
}

static void close_device(void)
{
	munmap(own.on_gpu, SLOT_BYTES);
	close(own.file);
	own.file = -1;
}

static int obey(char what)
{
	int from = what == 'l' ? RUNNING : what == 'r' ? CHECKPOINTED : LOCKED;

	if (what == 's')
		return OK;
	if (own.state != from)
		return ILLEGAL_STATE;
	if (what == 'c') {
		own.on_host = malloc(own.bytes + 1);
		memcpy(own.on_host, own.on_gpu, own.bytes);
		memset(own.on_gpu, 0, own.bytes);
		close_device();
		tell_used(0);
	} else if (what == 'r') {
		int code = open_device();
		if (code)
			return code;
		memcpy(own.on_gpu, own.on_host, own.bytes);
		free(own.on_host);
		tell_used(own.bytes);
	}
	own.state = what == 'c' ? CHECKPOINTED : what == 'u' ? RUNNING : LOCKED;
	return OK;
}

static void *serve(void *unused)
{
	char what;

	for (;;) {
		int one = accept4(own.listener, NULL, NULL, SOCK_CLOEXEC);
		if (one >= 0 && read(one, &what, 1) == 1) {
			int answer[2] = { obey(what) };
			answer[1] = own.state;
			if (write(one, answer, sizeof(answer)) < 0)
				perror("fake libcuda");
		}
		close(one);
	}
	return unused;
}

static socklen_t address_of(int pid, struct sockaddr_un *address)
{
	*address = (struct sockaddr_un){ .sun_family = AF_UNIX };
	return offsetof(struct sockaddr_un, sun_path) + 1 +
	       snprintf(address->sun_path + 1, sizeof(address->sun_path) - 1, "torpor-fake-cuda-%d", pid);
}

static int begin(void)
{
	struct sockaddr_un address;
	socklen_t length = address_of(getpid(), &address);
	pthread_t thread;
	int code = open_device();

	if (code)
		return code;
	own.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (bind(own.listener, (void *)&address, length) || listen(own.listener, 8) || pthread_create(&thread, NULL, serve, NULL))
		return UNKNOWN;
	return OK;
}

/* In a forked child: what it inherited is its parent's. Not a call of CUDA, which cannot be used after a fork at all. */
void fake_forked(void)
{
	close_device();
	close(own.listener);
	own.initialised = own.state = own.bytes = 0;
}

int cuDeviceGet(int *device, int number) { *device = number; return own.initialised ? OK : NOT_INITIALIZED; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &own; return device ? INVALID_VALUE : OK; }
int cuCtxSetCurrent(void *context) { return context == &own ? OK : INVALID_VALUE; }

int cuMemAlloc_v2(unsigned long long *pointer, size_t bytes)
{
	if (own.bytes + bytes > SLOT_BYTES)
		return OUT_OF_MEMORY;
	*pointer = own.bytes;
	own.bytes += bytes;
	tell_used(own.bytes);
	return OK;
}

int cuMemcpyHtoD_v2(unsigned long long pointer, const void *source, size_t bytes)
{
	if (own.state != RUNNING)
		return ILLEGAL_STATE; /* the real one waits */
	memcpy(own.on_gpu + pointer, source, bytes);
	return OK;
}

int cuMemcpyDtoH_v2(void *target, unsigned long long pointer, size_t bytes)
{
	if (own.state != RUNNING)
		return ILLEGAL_STATE;
	memcpy(target, own.on_gpu + pointer, bytes);
	return OK;
}

int cuMemHostAlloc(void **pointer, size_t bytes, unsigned flags)
{
	*pointer = flags ? NULL : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	return *pointer == MAP_FAILED || !*pointer ? OUT_OF_MEMORY : OK;
}

/* ---- the caller of the checkpoint calls ---- */

static int injected(const char *call, int pid)
{
	const char *rules = getenv("TORPOR_FAKE_CUDA");
	char copy[1024], *rule, *rest, who[64];

	snprintf(copy, sizeof(copy), "%s", rules ? rules : "");
	snprintf(who, sizeof(who), "%s:%d", call, pid);
	for (rule = strtok_r(copy, ",", &rest); rule; rule = strtok_r(NULL, ",", &rest)) {
		char *code = strchr(rule, '=');
		if (!code)
			continue;
		*code++ = 0;
		if (strcmp(rule, call) && strcmp(rule, who))
			continue;
		while (!strcmp(code, "hang"))
			pause();
		if (!strcmp(code, "crash"))
			raise(SIGSEGV);
		return atoi(code);
	}
	return OK;
}

int cuInit(unsigned flags)
{
	int code = flags ? INVALID_VALUE : injected("init", 0);

	if (!code && !own.initialised)
		code = begin();
	own.initialised = !code;
	return code;
}

int cuGetErrorName(int code, const char **name)
{
	static const struct { int code; const char *name; } names[] = {
		{ INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE" }, { OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY" },
		{ NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED" }, { NO_DEVICE, "CUDA_ERROR_NO_DEVICE" },
		{ OPERATING_SYSTEM, "CUDA_ERROR_OPERATING_SYSTEM" }, { ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE" },
		{ NOT_READY, "CUDA_ERROR_NOT_READY" }, { NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED" },
	};
	for (size_t at = 0; at < sizeof(names) / sizeof(*names); at++)
		if (names[at].code == code) {
			*name = names[at].name;
			return OK;
		}
	*name = NULL;
	return INVALID_VALUE;
}

int cuGetErrorString(int code, const char **text)
{
	static __thread char said[64];

	if (cuGetErrorName(code, text))
		return INVALID_VALUE;
	snprintf(said, sizeof(said), "words for error %d", code);
	*text = said;
	return OK;
}

__attribute__((unused)) static int ask(int pid, char what, int *state)
{
	struct sockaddr_un address;
	socklen_t length = address_of(pid, &address);
	int answer[2] = { UNKNOWN, -1 };
	int one = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (kill(pid, 0) && errno == ESRCH)
		answer[0] = OPERATING_SYSTEM;
	else if (connect(one, (void *)&address, length))
		answer[0] = NOT_INITIALIZED;
	else if (write(one, &what, 1) != 1 || recv(one, answer, sizeof(answer), MSG_WAITALL) != sizeof(answer))
		answer[0] = UNKNOWN;
	close(one);
	if (state)
		*state = answer[1];
	return answer[0];
}

#ifndef OLD
struct lock_args { unsigned timeout_ms, reserved0; unsigned long long reserved1[7]; };

int cuCheckpointProcessGetState(int pid, int *state)
{
	int code = own.initialised ? injected("state", pid) : NOT_INITIALIZED;
	return code ? code : ask(pid, 's', state);
}

int cuCheckpointProcessLock(int pid, struct lock_args *args)
{
	int code = own.initialised ? injected("lock", pid) : NOT_INITIALIZED;

	if (!args || !args->timeout_ms || args->reserved0)
		return INVALID_VALUE;
	for (int at = 0; at < 7; at++)
		if (args->reserved1[at])
			return INVALID_VALUE;
	return code ? code : ask(pid, 'l', NULL);
}

int cuCheckpointProcessCheckpoint(int pid, void *args)
{
	int code = own.initialised ? injected("checkpoint", pid) : NOT_INITIALIZED;
	return code ? code : args ? INVALID_VALUE : ask(pid, 'c', NULL);
}

int cuCheckpointProcessRestore(int pid, void *args)
{
	int code = own.initialised ? injected("restore", pid) : NOT_INITIALIZED;
	return code ? code : args ? INVALID_VALUE : ask(pid, 'r', NULL);
}

int cuCheckpointProcessUnlock(int pid, void *args)
{
	int code = own.initialised ? injected("unlock", pid) : NOT_INITIALIZED;
	return code ? code : args ? INVALID_VALUE : ask(pid, 'u', NULL);
}
#endif
