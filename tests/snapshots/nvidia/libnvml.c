/* Stands in for NVML, one GPU.
 *
 * TORPOR_FAKE_GPU      "UUID|NAME|MIB|MAJOR.MINOR"; an empty one: no GPU
 * TORPOR_FAKE_DRIVER   the driver's version
 * TORPOR_FAKE_USED     a folder; each file in it holds the bytes that a process has on the GPU (process.py writes them)
 * TORPOR_FAKE_HOLDERS  "PID=BYTES,..." for the list of processes */
#define _GNU_SOURCE
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, INSUFFICIENT_SIZE = 7, UNINITIALIZED = 1 };

struct memory { unsigned long long total, free, used; };
struct process { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; };

static int opened; /* never closed again: see torpor.snapshots.gpu.driver */

static const char *setting(const char *name, const char *otherwise)
{
	const char *value = getenv(name);
	return value ? value : otherwise;
}

static void part(int number, char *text, unsigned size)
{
	char copy[256], *rest, *word;

	snprintf(copy, sizeof(copy), "%s",
		 setting("TORPOR_FAKE_GPU", "GPU-11111111-2222-3333-4444-555555555555|NVIDIA H200|143771|9.0"));
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
	char uuid[96];
	part(0, uuid, sizeof(uuid));
	*count = *uuid != 0;
	return opened ? SUCCESS : UNINITIALIZED;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned number, void **device)
{
	*device = &opened;
	return number ? INVALID_ARGUMENT : SUCCESS;
}

int nvmlDeviceGetUUID(void *device, char *text, unsigned size) { part(0, text, size); return device != &opened; }
int nvmlDeviceGetName(void *device, char *text, unsigned size) { part(1, text, size); return device != &opened; }

int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor)
{
	char text[16];
	part(3, text, sizeof(text));
	return device == &opened && sscanf(text, "%d.%d", major, minor) == 2 ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceGetMemoryInfo(void *device, struct memory *memory)
{
	const char *folder = setting("TORPOR_FAKE_USED", "/nonexistent");
	DIR *files = opendir(folder);
	struct dirent *file;
	char text[1024];

	part(2, text, sizeof(text));
	memory->total = strtoull(text, NULL, 10) << 20;
	memory->used = 0;
	while (files && (file = readdir(files))) {
		unsigned long long bytes = 0;
		FILE *one;
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
	return device != &opened;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, struct process *processes)
{
	char copy[256], *rest, *word;
	unsigned room = processes ? *count : 0;

	snprintf(copy, sizeof(copy), "%s", setting("TORPOR_FAKE_HOLDERS", ""));
	*count = 0;
	for (word = strtok_r(copy, ",", &rest); word; word = strtok_r(NULL, ",", &rest)) {
		struct process one = { 0 };
		sscanf(word, "%u=%llu", &one.pid, &one.used);
		if (*count < room)
			processes[*count] = one;
		++*count;
	}
	if (device != &opened)
		return INVALID_ARGUMENT;
	return *count > room ? INSUFFICIENT_SIZE : SUCCESS;
}
