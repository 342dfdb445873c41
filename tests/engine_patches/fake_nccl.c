/* NCCL without a GPU: communicators whose ranks are processes that meet in a folder, and faults on request.
 *
 * FAKE_NCCL_FOLDER                      where ranks meet, and where each call is logged, one line each, in log-RANK
 * FAKE_NCCL_VERSION=21807               what ncclGetVersion says; 23007 by default
 * FAKE_NCCL_FAULT=RANK:CALL:N:KIND      the N-th call (from 1) of ncclCommSuspend or ncclCommResume on that rank:
 *                                       fail   returns an error at once, and does not meet the others
 *                                       hang   never returns
 *                                       forget reports success, meets the others, and does nothing
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct communicator {
    char name[64];
    int rank, size, suspended, meetings;
    unsigned long long suspendable, stays;
};

static int calls[2];

void *fake_comm(const char *name, int rank, int size, unsigned long long suspendable) {
    struct communicator *made = calloc(1, sizeof *made);
    snprintf(made->name, sizeof made->name, "%s", name);
    made->rank = rank, made->size = size, made->suspendable = suspendable, made->stays = 4 << 20;
    return made;
}

static const char *folder(void) { return getenv("FAKE_NCCL_FOLDER"); }

/* Wait until every rank has come to this meeting of the communicator. */
static void meet(struct communicator *comm) {
    char path[512];
    int number = comm->meetings++;
    snprintf(path, sizeof path, "%s/%s-%d-%d", folder(), comm->name, number, comm->rank);
    close(open(path, O_CREAT | O_WRONLY, 0600));
    for (int rank = 0; rank < comm->size; rank++) {
        snprintf(path, sizeof path, "%s/%s-%d-%d", folder(), comm->name, number, rank);
        while (access(path, F_OK)) usleep(1000);
    }
}

static void note(struct communicator *comm, const char *call) {
    char path[512];
    snprintf(path, sizeof path, "%s/log-%s", folder(), getenv("RANK"));
    FILE *log = fopen(path, "a");
    fprintf(log, "%s %s\n", call, comm->name);
    fclose(log);
}

/* 0: nothing, 1: fail, 2: forget; hang does not return. */
static int fault(const char *call, int which) {
    const char *wanted = getenv("FAKE_NCCL_FAULT");
    char rank[16], name[32], kind[16];
    int number = 0;
    calls[which]++;
    if (!wanted || sscanf(wanted, "%15[^:]:%31[^:]:%d:%15s", rank, name, &number, kind) != 4) return 0;
    if (strcmp(rank, getenv("RANK")) || strcmp(name, call) || calls[which] != number) return 0;
    while (!strcmp(kind, "hang")) usleep(10000);
    return !strcmp(kind, "fail") ? 1 : 2;
}

static int change(struct communicator *comm, const char *call, int which, int suspended) {
    note(comm, call);
    int wanted = fault(call, which);
    if (wanted == 1) return 1;
    if (comm->suspended == suspended) return 5;
    meet(comm);
    if (wanted != 2) comm->suspended = suspended;
    return 0;
}

int ncclGetVersion(int *version) {
    const char *wanted = getenv("FAKE_NCCL_VERSION");
    *version = wanted ? atoi(wanted) : 23007;
    return 0;
}

const char *ncclGetErrorString(int code) { return code == 1 ? "unhandled cuda error" : "invalid usage"; }
int ncclCommSuspend(struct communicator *comm, int flags) { return flags == 1 ? change(comm, "ncclCommSuspend", 0, 1) : 4; }
int ncclCommResume(struct communicator *comm) { return change(comm, "ncclCommResume", 1, 0); }

int ncclCommMemStats(struct communicator *comm, int kind, unsigned long long *value) {
    unsigned long long values[] = {comm->suspendable, comm->suspended, comm->stays, comm->suspendable + comm->stays};
    if (kind < 0 || kind > 3) return 4;
    *value = values[kind];
    return 0;
}
