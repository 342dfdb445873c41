/* Stands in for libcuda: enough of it for a process to put memory "on a GPU", and the checkpoint calls.
 *
 * A GPU is a file: TORPOR_FAKE_DEVICE is that of the first, and the number at its end counts. TORPOR_FAKE_GPU lists the GPUs (see
 * libnvml.c). A process that has called cuInit holds the file of every GPU that CUDA_VISIBLE_DEVICES names open and mapped, with
 * a slot of its own by its pid, and obeys checkpoint calls of others in a thread, as a process with CUDA obeys the driver: it
 * listens at the abstract socket "torpor-fake-cuda-PID" of its network namespace. TORPOR_FAKE_USED is a folder in which it says how
 * many bytes it has on each GPU.
 *
 * A restore obeys the rules that were seen of driver 580: without pairs the GPUs are those of the checkpoint; a list of pairs names
 * every GPU of TORPOR_FAKE_GPU at cuInit, whatever CUDA_VISIBLE_DEVICES said, and each new GPU once; else it is refused.
 *
 * TORPOR_FAKE_CUDA injects faults into the caller of a checkpoint call: "CALL=CODE" or "CALL:PID=CODE", separated by commas;
 * CALL is init, state, lock, checkpoint, restore or unlock; CODE is a CUresult, "hang" (the call never comes back), "crash",
 * "forget" (it reports success and does nothing), "keep" (a checkpoint that leaves a device file open) or "meetN" (it goes on when
 * N such calls are under way, and fails if they do not come).
 * TORPOR_FAKE_LOG is a file that gets a line for the begin and the end of each call, and the pairs of each restore. */
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
#define GPU_SHIFT 40
#define OFFSET ((1ull << GPU_SHIFT) - 1)
#define SLOTS 4096 /* enough that no two processes of a test share one */

enum { GPUS = 8, FORGET = -1, KEEP = -2 };

struct gpu {
	char uuid[41]; /* by which the driver knows it in this process; a restore changes it */
	int where;     /* the number of the card */
	int file;
	char *on_gpu, *on_host;
	unsigned long long bytes;
};

static struct {
	int initialised, state, listener, visible[GPUS], count, current;
	struct gpu gpus[GPUS];
} own = { .listener = -1 };

/* The UUIDs of the GPUs that the environment lists; how many there are. */
static int listed(char uuids[GPUS][41])
{
	const char *all = getenv("TORPOR_FAKE_GPU");
	int count = 0;

	for (all = all ? all : "GPU-11111111-2222-3333-4444-555555555555|"; *all && count < GPUS; count++) {
		snprintf(uuids[count], 41, "%.40s", all);
		uuids[count][strcspn(uuids[count], "|")] = 0;
		all = strchrnul(all, ';');
		all += *all == ';';
	}
	return count;
}

/* ---- the process that has memory on the GPU ---- */

static void tell_used(struct gpu *gpu, unsigned long long bytes)
{
	const char *folder = getenv("TORPOR_FAKE_USED");
	char path[512];
	FILE *file;

	if (!folder)
		return;
	snprintf(path, sizeof(path), "%s/%d-%d", folder, gpu->where, getpid());
	if (!bytes) {
		unlink(path);
	} else if ((file = fopen(path, "we"))) {
		fprintf(file, "%llu", bytes);
		fclose(file);
	}
}

static int open_device(struct gpu *gpu)
{
	const char *device = getenv("TORPOR_FAKE_DEVICE");
	char path[512];

	snprintf(path, sizeof(path), "%s", device ? device : "");
	if (!*path)
		return NO_DEVICE;
	path[strlen(path) - 1] = '0' + gpu->where;
	gpu->file = open(path, O_RDWR | O_CLOEXEC);
	if (gpu->file < 0)
		return NO_DEVICE;
	gpu->on_gpu = mmap(NULL, SLOT_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, gpu->file, getpid() % SLOTS * SLOT_BYTES);
	return gpu->on_gpu == MAP_FAILED ? OUT_OF_MEMORY : OK;
}

static void close_device(struct gpu *gpu)
{
	munmap(gpu->on_gpu, SLOT_BYTES);
	close(gpu->file);
	gpu->file = -1;
}

/* The GPUs whose files are open while the process runs. */
#define each_open(gpu) \
	for (struct gpu *gpu = own.gpus; gpu < own.gpus + GPUS; gpu++) \
		for (int at_##gpu = 0; at_##gpu < own.count; at_##gpu++) \
			if (own.visible[at_##gpu] == gpu - own.gpus)

struct pair { char old[41], new[41]; int where; };
struct order { char what; int pairs; struct pair pair[GPUS]; };

static int move(struct order *order)
{
	for (int gpu = 0; gpu < GPUS && *own.gpus[gpu].uuid; gpu++) {
		int at = 0;
		while (at < order->pairs && strcmp(order->pair[at].old, own.gpus[gpu].uuid))
			at++;
		if (at == order->pairs)
			return INVALID_VALUE; /* a GPU that it could see is missing */
		for (int other = 0; other < at; other++)
			if (!strcmp(order->pair[other].new, order->pair[at].new))
				return INVALID_VALUE;
		if (order->pair[at].where < 0)
			return INVALID_VALUE; /* there is no such GPU here */
	}
	for (int gpu = 0; gpu < GPUS && *own.gpus[gpu].uuid; gpu++)
		for (int at = 0; at < order->pairs; at++)
			if (!strcmp(order->pair[at].old, own.gpus[gpu].uuid)) {
				strcpy(own.gpus[gpu].uuid, order->pair[at].new);
				own.gpus[gpu].where = order->pair[at].where;
				break;
			}
	return OK;
}

static int obey(struct order *order)
{
	char what = order->what;
	int from = what == 'l' ? RUNNING : what == 'r' ? CHECKPOINTED : LOCKED, code = OK;

	if (what == 's')
		return OK;
	if (own.state != from)
		return ILLEGAL_STATE;
	if (what == 'k')
		dup(own.gpus[own.visible[0]].file);
	if (what == 'c' || what == 'k') {
		each_open(gpu) {
			gpu->on_host = malloc(gpu->bytes + 1);
			memcpy(gpu->on_host, gpu->on_gpu, gpu->bytes);
			memset(gpu->on_gpu, 0, gpu->bytes);
			close_device(gpu);
			tell_used(gpu, 0);
		}
	} else if (what == 'r') {
		if ((code = move(order)))
			return code;
		each_open(gpu) {
			if ((code = open_device(gpu)))
				return code;
			memcpy(gpu->on_gpu, gpu->on_host, gpu->bytes);
			free(gpu->on_host);
			tell_used(gpu, gpu->bytes);
		}
	}
	own.state = what == 'c' || what == 'k' ? CHECKPOINTED : what == 'u' ? RUNNING : LOCKED;
	return OK;
}

static void *serve(void *unused)
{
	struct order order;

	for (;;) {
		int one = accept4(own.listener, NULL, NULL, SOCK_CLOEXEC);
		if (one >= 0 && recv(one, &order, sizeof(order), MSG_WAITALL) == sizeof(order)) {
			int answer[2] = { obey(&order) };
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
	char uuids[GPUS][41] = { 0 }, *rest;
	const char *visible = getenv("CUDA_VISIBLE_DEVICES");
	int count = listed(uuids);

	for (int gpu = 0; gpu < count; gpu++) {
		strcpy(own.gpus[gpu].uuid, uuids[gpu]);
		own.gpus[gpu].where = gpu;
		own.gpus[gpu].file = -1;
	}
	own.count = visible ? 0 : count;
	for (int gpu = 0; gpu < own.count; gpu++)
		own.visible[gpu] = gpu;
	for (char *copy = strdup(visible ? visible : ""), *word = strtok_r(copy, ",", &rest); word; word = strtok_r(NULL, ",", &rest))
		if (atoi(word) < count && own.count < GPUS)
			own.visible[own.count++] = atoi(word);
	if (!own.count)
		return NO_DEVICE;
	own.current = own.visible[0];
	each_open(gpu) {
		int code = open_device(gpu);
		if (code)
			return code;
	}
	own.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (bind(own.listener, (void *)&address, length) || listen(own.listener, 8) || pthread_create(&thread, NULL, serve, NULL))
		return UNKNOWN;
	return OK;
}

/* In a forked child: what it inherited is its parent's. Not a call of CUDA, which cannot be used after a fork at all. */
void fake_forked(void)
{
	each_open(gpu) {
		close_device(gpu);
		gpu->bytes = 0;
	}
	close(own.listener);
	own.initialised = own.state = 0;
}

int cuDeviceGet(int *device, int number)
{
	if (!own.initialised || number >= own.count)
		return own.initialised ? INVALID_VALUE : NOT_INITIALIZED;
	*device = own.visible[number];
	return OK;
}

int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &own.gpus[device]; return OK; }
int cuCtxSetCurrent(void *context) { own.current = (struct gpu *)context - own.gpus; return OK; }

int cuMemAlloc_v2(unsigned long long *pointer, size_t bytes)
{
	struct gpu *gpu = &own.gpus[own.current];

	if (gpu->bytes + bytes > SLOT_BYTES)
		return OUT_OF_MEMORY;
	*pointer = (unsigned long long)own.current << GPU_SHIFT | gpu->bytes;
	gpu->bytes += bytes;
	tell_used(gpu, gpu->bytes);
	return OK;
}

int cuMemcpyHtoD_v2(unsigned long long pointer, const void *source, size_t bytes)
{
	if (own.state != RUNNING)
		return ILLEGAL_STATE; /* the real one waits */
	memcpy(own.gpus[pointer >> GPU_SHIFT].on_gpu + (pointer & OFFSET), source, bytes);
	return OK;
}

int cuMemcpyDtoH_v2(void *target, unsigned long long pointer, size_t bytes)
{
	if (own.state != RUNNING)
		return ILLEGAL_STATE;
	memcpy(target, own.gpus[pointer >> GPU_SHIFT].on_gpu + (pointer & OFFSET), bytes);
	return OK;
}

int cuMemHostAlloc(void **pointer, size_t bytes, unsigned flags)
{
	*pointer = flags ? NULL : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	return *pointer == MAP_FAILED || !*pointer ? OUT_OF_MEMORY : OK;
}

/* ---- the caller of the checkpoint calls ---- */

/* Wait until so many callers are here; an error if they do not come. */
static int meet(int wanted)
{
	static int arrived;

	__sync_fetch_and_add(&arrived, 1);
	for (int left = 5000; __sync_fetch_and_add(&arrived, 0) < wanted; left--) {
		if (!left)
			return NOT_READY;
		usleep(1000);
	}
	return OK;
}

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
		if (!strcmp(code, "forget") || !strcmp(code, "keep"))
			return *code == 'f' ? FORGET : KEEP;
		if (!strncmp(code, "meet", 4))
			return meet(atoi(code + 4));
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
		{ UNKNOWN, "CUDA_ERROR_UNKNOWN" },
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

struct args { char (*pairs)[2][16]; unsigned count; char reserved[44]; unsigned long long reserved1; };

static void note(const char *what, const char *call, int pid, const char *more)
{
	const char *path = getenv("TORPOR_FAKE_LOG");
	char line[1024];
	int file = path ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600) : -1;

	snprintf(line, sizeof(line), "%s %s %d %s\n", what, call, pid, more);
	if (file >= 0 && write(file, line, strlen(line)) < 0)
		perror("fake libcuda");
	close(file);
}

static void uuid_text(char *text, const char *raw)
{
	int at = sprintf(text, "GPU-");

	for (int byte = 0; byte < 16; byte++)
		at += sprintf(text + at, "%s%02x", byte == 4 || byte == 6 || byte == 8 || byte == 10 ? "-" : "", raw[byte] & 255);
}

/* The pairs of a restore; without any, every GPU stays. */
static void fill(struct order *order, int pid, struct args *args)
{
	char here[GPUS][41] = { 0 }, told[800] = "";
	int count = listed(here);

	order->pairs = args ? (int)args->count : count;
	for (int at = 0; at < order->pairs && at < GPUS; at++) {
		struct pair *pair = &order->pair[at];
		if (args) {
			uuid_text(pair->old, args->pairs[at][0]);
			uuid_text(pair->new, args->pairs[at][1]);
		} else {
			strcpy(pair->old, here[at]);
			strcpy(pair->new, here[at]);
		}
		for (pair->where = count - 1; pair->where >= 0 && strcmp(here[pair->where], pair->new); pair->where--)
			;
		if (args)
			snprintf(told + strlen(told), sizeof(told) - strlen(told), "%s=%s,", pair->old, pair->new);
	}
	note("pairs", "restore", pid, told);
}

__attribute__((unused)) static int ask(int pid, struct order *order, int *state)
{
	struct sockaddr_un address;
	socklen_t length = address_of(pid, &address);
	int answer[2] = { UNKNOWN, -1 };
	int one = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (kill(pid, 0) && errno == ESRCH)
		answer[0] = OPERATING_SYSTEM;
	else if (connect(one, (void *)&address, length))
		answer[0] = NOT_INITIALIZED;
	else if (write(one, order, sizeof(*order)) != sizeof(*order) ||
		 recv(one, answer, sizeof(answer), MSG_WAITALL) != sizeof(answer))
		answer[0] = UNKNOWN;
	close(one);
	if (state)
		*state = answer[1];
	return answer[0];
}

__attribute__((unused)) static int make(const char *call, int pid, char what, struct args *args, int *state)
{
	struct order order = { .what = what };
	char said[16];
	int code;

	note("begin", call, pid, "");
	code = own.initialised ? injected(call, pid) : NOT_INITIALIZED;
	if (code == KEEP)
		order.what = 'k', code = OK;
	if (what == 'r')
		fill(&order, pid, args);
	if (!code)
		code = ask(pid, &order, state);
	if (code == FORGET)
		code = OK;
	snprintf(said, sizeof(said), "%d", code);
	note("end", call, pid, said);
	return code;
}

#ifndef OLD
struct lock_args { unsigned timeout_ms, reserved0; unsigned long long reserved1[7]; };

int cuCheckpointProcessGetState(int pid, int *state) { return make("state", pid, 's', NULL, state); }

int cuCheckpointProcessLock(int pid, struct lock_args *args)
{
	if (!args || !args->timeout_ms || args->reserved0)
		return INVALID_VALUE;
	for (int at = 0; at < 7; at++)
		if (args->reserved1[at])
			return INVALID_VALUE;
	return make("lock", pid, 'l', NULL, NULL);
}

int cuCheckpointProcessCheckpoint(int pid, void *args)
{
	return args ? INVALID_VALUE : make("checkpoint", pid, 'c', NULL, NULL);
}

int cuCheckpointProcessRestore(int pid, struct args *args)
{
	if (args && (!args->pairs || !args->count || args->count > GPUS || args->reserved1))
		return INVALID_VALUE;
	for (int at = 0; args && at < 44; at++)
		if (args->reserved[at])
			return INVALID_VALUE;
	return make("restore", pid, 'r', args, NULL);
}

int cuCheckpointProcessUnlock(int pid, void *args)
{
	return args ? INVALID_VALUE : make("unlock", pid, 'u', NULL, NULL);
}
#endif
