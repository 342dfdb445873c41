/* Stands in for NVML.
 *
 * TORPOR_FAKE_GPU      "UUID|NAME|MIB|MAJOR.MINOR" for each GPU, separated by semicolons; an empty one: no GPU
 * TORPOR_FAKE_DRIVER   the driver's version
 * TORPOR_FAKE_USED     a folder; each file in it holds the bytes that a process has on a GPU (process.py writes them): the file
 *                      "GPU-PID" on the GPU of that number, one of any other name on the first
 * TORPOR_FAKE_MIG      "1" for GPUs in MIG mode
 * TORPOR_FAKE_HOLDERS  "PID=BYTES,..." for the list of processes of each GPU, separated by semicolons */
#define _GNU_SOURCE
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, INSUFFICIENT_SIZE = 7, UNINITIALIZED = 1 };

struct memory { unsigned long long total, free, used; };
struct process { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; };

enum { GPUS = 8 };

static int opened; /* never closed again: see torpor.snapshots.gpu.driver */
static int handles[GPUS];

static const char *setting(const char *name, const char *otherwise)
{
	const char *value = getenv(name);
	return value ? value : otherwise;
}

static int number_of(void *device) { return (int *)device - handles; }

/* The words for a GPU; empty if there are none. */
static void words(const char *all, int gpu, char *text, unsigned size)
{
	unsigned at = 0;

	while (gpu && *all)
		gpu -= *all++ == ';';
	for (; *all && *all != ';' && at + 1 < size; at++)
		text[at] = *all++;
	text[at] = 0;
}

static void part(int gpu, int number, char *text, unsigned size)
{
	char copy[256], *rest, *word;

	words(setting("TORPOR_FAKE_GPU", "GPU-11111111-2222-3333-4444-555555555555|NVIDIA H200|143771|9.0"), gpu, copy, sizeof(copy));
	word = strtok_r(copy, "|", &rest);
	while (number-- && word)
		word = strtok_r(NULL, "|", &rest);
	snprintf(text, size, "%s", word ? word : "");
}

const char *nvmlErrorString(int code) { return code == UNINITIALIZED ? "Uninitialized" : "Some error"; }
int nvmlInitWithFlags(unsigned flags) { opened++; return flags; }

int nvmlSystemGetDriverVersion(char *text, unsigned size)
{
	snprintf(text, size, "%s", setting("TORPOR_FAKE_DRIVER", "580.159.04"));
	return opened ? SUCCESS : UNINITIALIZED;
}

int nvmlDeviceGetCount_v2(unsigned *count)
{
	char uuid[96] = "?";
	for (*count = 0; *count < GPUS; ++*count) {
		part(*count, 0, uuid, sizeof(uuid));
		if (!*uuid)
			break;
	}
	return opened ? SUCCESS : UNINITIALIZED;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned number, void **device)
{
	*device = &handles[number % GPUS];
	return number < GPUS ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceGetUUID(void *device, char *text, unsigned size) { part(number_of(device), 0, text, size); return SUCCESS; }
int nvmlDeviceGetName(void *device, char *text, unsigned size) { part(number_of(device), 1, text, size); return SUCCESS; }

int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor)
{
	char text[16];
	part(number_of(device), 3, text, sizeof(text));
	return sscanf(text, "%d.%d", major, minor) == 2 ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceGetMemoryInfo(void *device, struct memory *memory)
{
	const char *folder = setting("TORPOR_FAKE_USED", "/nonexistent");
	DIR *files = opendir(folder);
	struct dirent *file;
	char text[1024];

	part(number_of(device), 2, text, sizeof(text));
	memory->total = strtoull(text, NULL, 10) << 20;
	memory->used = 0;
	while (files && (file = readdir(files))) {
		unsigned long long bytes = 0;
		int gpu = 0, pid, length = 0;
		FILE *one;
		if (sscanf(file->d_name, "%d-%d%n", &gpu, &pid, &length) != 2 || file->d_name[length])
			gpu = 0;
		if (gpu != number_of(device))
			continue;
		snprintf(text, sizeof(text), "%s/%s", folder, file->d_name);
		if (*file->d_name == '.' || !(one = fopen(text, "r")))
			continue;
		if (fscanf(one, "%llu", &bytes) == 1)
			memory->used += bytes;
		fclose(one);
	}
	if (files)
		closedir(files);
	memory->free = memory->total - memory->used;
	return SUCCESS;
}

int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending)
{
	(void)device;
	*current = *pending = (unsigned)atoi(setting("TORPOR_FAKE_MIG", "0"));
	return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, struct process *processes)
{
	char copy[256], *rest, *word;
	unsigned room = processes ? *count : 0;

	words(setting("TORPOR_FAKE_HOLDERS", ""), number_of(device), copy, sizeof(copy));
	*count = 0;
	for (word = strtok_r(copy, ",", &rest); word; word = strtok_r(NULL, ",", &rest)) {
		struct process one = { 0 };
		sscanf(word, "%u=%llu", &one.pid, &one.used);
		if (*count < room)
			processes[*count] = one;
		++*count;
	}
	return *count > room ? INSUFFICIENT_SIZE : SUCCESS;
}
